"""Golden tests of vocabulary head, advantages and losses; independent references."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.llm.advantages import (
    frac_zero_variance,
    group_relative,
    leave_one_out,
    mixed_groups,
)
from rlpapers.llm.entropy import TokenSet, entropy_from_logits, row_stats
from rlpapers.llm.fused import fused_policy_loss
from rlpapers.llm.logprob import token_stats
from rlpapers.llm.losses import PolicyLossConfig, kl_estimate, policy_loss, surrogate


def reference_clamped(z, removed):
    "The author's formula: mask the removed smallest logits, log-sum-exp minus mean."
    z = np.asarray(z, dtype=np.float64)
    kept = np.sort(z)[removed:]
    lse = kept.max() + np.log(np.exp(kept - kept.max()).sum())
    return lse - (np.exp(kept - lse) * kept).sum()


def ppo_reference(lp, old, adv, low, high, dual):
    "PPO-clip of one token, written out."
    r = math.exp(lp - old)
    gain = min(r * adv, min(max(r, 1 - low), 1 + high) * adv)
    return max(gain, dual * adv) if adv < 0 else gain


def test_no_removal_is_the_entropy():  # golden 1
    z = torch.randn(50, 333, dtype=torch.double, requires_grad=True)
    ours = entropy_from_logits(z, token_set=TokenSet("fraction", 0.0))
    theirs = torch.distributions.Categorical(logits=z).entropy()
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
    a, b = (torch.autograd.grad(h.square().sum(), z)[0] for h in (ours, theirs))
    torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "keep, want", [(4, 1.2798542), (3, 1.0608569), (2, 0.6829081), (1, 0.0)]
)
def test_hand_values(keep, want):  # golden 2
    z = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.double).log()
    for s in (TokenSet("top_k", keep), TokenSet("fraction", (4 - keep) / 4)):
        assert entropy_from_logits(z, token_set=s).item() == pytest.approx(
            want, abs=1e-7
        )


def test_counts():  # golden 3
    assert 151_936 - TokenSet("fraction", 0.33).kept(151_936) == 50_138
    assert TokenSet("fraction", 0.33).kept(100_000) == 67_000


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 60),
    st.floats(0.0, 0.95),
    st.floats(0.1, 8.0),
    st.integers(0, 10_000),
)
def test_reference_formula(V, p, scale, seed):  # goldens 6 and 14
    g = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(4, V, dtype=torch.double, generator=g)
    ours = entropy_from_logits(z, token_set=TokenSet("fraction", p))
    want = [reference_clamped(row, int(p * V)) for row in z]
    np.testing.assert_allclose(ours, want, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 50), st.integers(0, 10_000))
def test_bounds_and_monotone(V, seed):  # golden 6
    g = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(3, V, dtype=torch.double, generator=g)
    h = [
        entropy_from_logits(z, token_set=TokenSet("top_k", k)) for k in range(1, V + 1)
    ]
    for k, x in enumerate(h, 1):
        assert (x >= 0).all() and (x <= math.log(k) + 1e-9).all()
    for a, b in zip(h, h[1:], strict=False):
        assert (b >= a - 1e-9).all()


@pytest.mark.parametrize(
    "kind, value",
    [("fraction", 0.33), ("top_k", 4), ("top_p", 0.8), ("min_prob", 0.04)],
)
def test_gradient(kind, value):  # golden 4
    g = torch.Generator().manual_seed(1)
    z = torch.randn(5, 13, dtype=torch.double, generator=g, requires_grad=True)
    s = TokenSet(kind, value)
    f = lambda z: entropy_from_logits(z, token_set=s)
    assert torch.autograd.gradcheck(f, z)
    (d,) = torch.autograd.grad(f(z).sum(), z)
    torch.testing.assert_close(d.sum(1), torch.zeros(5, dtype=torch.double))
    torch.testing.assert_close(f(z + 7.5), f(z))
    low = row_stats(z.detach(), s).threshold
    assert (d[z < low[:, None]] == 0).all() and (d[z > low[:, None]] != 0).all()


def test_ties():  # golden 5
    z = torch.tensor([[1.0, 1.0, 1.0, 0.0]], dtype=torch.double, requires_grad=True)
    h = entropy_from_logits(z, token_set=TokenSet("top_k", 2))
    assert h.item() == pytest.approx(math.log(2))
    (d,) = torch.autograd.grad(h.sum(), z)
    torch.testing.assert_close(d, torch.zeros_like(d), atol=1e-12, rtol=0)
    g = torch.Generator().manual_seed(0)
    z = torch.randint(0, 4, (6, 20), generator=g).double().requires_grad_()
    order = torch.randperm(20, generator=g)
    for k in (1, 3, 8, 15):
        f = lambda x, k=k: entropy_from_logits(x, token_set=TokenSet("top_k", k))
        (a,), (b,) = (
            torch.autograd.grad(f(z).sum(), z),
            torch.autograd.grad(f(z[:, order]).sum(), z),
        )
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
        want = [reference_clamped(row, 20 - k) for row in z.detach()]
        np.testing.assert_allclose(f(z).detach(), want, atol=1e-9)
        for row, grad in zip(z.detach(), a, strict=True):
            x = row.clone().requires_grad_()
            q = x.topk(k).values.log_softmax(-1)
            (one,) = torch.autograd.grad(-(q.exp() * q).sum(), x)
            edge = row == row.sort(descending=True).values[k - 1]
            # the mean over every way to break the tie
            one[edge] = one[edge].sum() / edge.sum()
            torch.testing.assert_close(grad, one, atol=1e-12, rtol=0)
    tied = (z == z.max()).sum(1) >= 2
    (d,) = torch.autograd.grad(
        entropy_from_logits(z, token_set=TokenSet("top_k", 1)).sum(), z
    )
    assert tied.any() and (d == 0).all()


def test_temperature():  # golden 7
    g = torch.Generator().manual_seed(2)
    h, w = (torch.randn(n, 6, dtype=torch.double, generator=g) for n in (9, 40))
    labels = torch.randint(40, (9,), generator=g)
    tau = 0.3 + torch.rand(9, generator=g, dtype=torch.double)
    for t in (0.7, tau):
        scaled = h / (t if isinstance(t, float) else t[:, None])
        a = token_stats(h, w, labels, temperature=t, token_set=TokenSet())
        b = token_stats(scaled, w, labels, token_set=TokenSet())
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(1, 39), st.integers(0, 10_000))
def test_chain_rule(V, k, seed):  # golden 6
    k = min(k, V)
    g = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(3, V, dtype=torch.double, generator=g)
    s = row_stats(z, TokenSet("top_k", k))
    p = z.softmax(-1).sort(-1, descending=True).values.numpy()
    h = lambda q: -(q * np.log(np.maximum(q, 1e-300))).sum(-1)
    m, rest = p[:, :k].sum(-1), p[:, k:].sum(-1)
    binary = h(np.stack([m, rest], -1))
    others = h(p[:, k:] / np.maximum(rest, 1e-300)[:, None]) if k < V else 0
    np.testing.assert_allclose(s.log_mass.exp(), m, atol=1e-12)
    total = binary + m * s.clamped.numpy() + rest * others
    np.testing.assert_allclose(s.entropy, total, atol=1e-9)
    assert (s.clamped <= s.entropy + 1e-9).all()
    flat = row_stats(torch.full((1, V), 2.5, dtype=torch.double), TokenSet("top_k", k))
    assert flat.clamped.item() == pytest.approx(math.log(k), abs=1e-12)


def test_temperature_gradients():  # golden 7
    g = torch.Generator().manual_seed(5)
    draw = lambda *s: torch.randn(*s, dtype=torch.double, generator=g).requires_grad_()
    h, w, b = draw(9, 6), draw(40, 6), draw(40)
    labels = torch.randint(40, (9,), generator=g)
    tau = 0.3 + torch.rand(9, generator=g, dtype=torch.double)
    c = torch.randn(3, 9, dtype=torch.double, generator=g)
    t = token_stats(
        h, w, labels, temperature=tau, bias=b, token_set=TokenSet("top_k", 11), chunk=4
    )
    ours = torch.autograd.grad(
        sum((x * y).sum() for x, y in zip(t[:3], c, strict=True)), (h, w, b)
    )
    x = ((h @ w.T + b) / tau[:, None]).log_softmax(-1)
    q = x.topk(11).values.log_softmax(-1)
    lp = x.gather(1, labels[:, None])[:, 0]
    plain = c[0] * lp - c[1] * (x.exp() * x).sum(-1) - c[2] * (q.exp() * q).sum(-1)
    for a, e in zip(ours, torch.autograd.grad(plain.sum(), (h, w, b)), strict=True):
        torch.testing.assert_close(a, e, atol=1e-10, rtol=1e-8)


def problem(dtype=torch.float32, n=19, d=8, V=157, seed=3):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(d, n, generator=g).T.to(dtype).requires_grad_()
    w = torch.randn(V, d, generator=g).to(dtype).requires_grad_()
    labels = torch.randint(V, (n,), generator=g)
    z = (h @ w.T).detach().double()
    lp = z.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    old = (lp + 0.5 * torch.randn(n, generator=g)).float()
    mask = torch.rand(n, generator=g) < 0.8
    return h, w, labels, old, torch.randn(n, generator=g), mask


@pytest.mark.parametrize("chunk", [1, 7, 19, 22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused(chunk, dtype):  # golden 11, against an all-logits loss in float64
    h, w, labels, old, adv, mask = problem(dtype)
    V, coef = len(w), 0.07
    out = fused_policy_loss(
        h,
        w,
        labels,
        old,
        adv,
        mask,
        token_set=TokenSet("fraction", 0.4),
        ent_coef=coef,
        chunk=chunk,
        logits_dtype=torch.float32,
    )
    ours = torch.autograd.grad(out.loss, (h, w))
    x, y = (v.detach().double().requires_grad_() for v in (h, w))
    z = x @ y.T
    lp = z.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    r = (lp - old).exp()
    gain = torch.minimum(r * adv, r.clamp(0.8, 1.2) * adv)
    gain = torch.where(adv < 0, torch.maximum(gain, 3 * adv), gain)
    q = z.topk(V - int(0.4 * V), -1).values.log_softmax(-1)
    H = -(q.exp() * q).sum(-1)
    loss = -((gain + coef * H) * mask).sum() / mask.sum()
    exact = torch.autograd.grad(loss, (x, y))
    tol = 1e-4 if dtype == torch.float32 else 1e-2
    assert out.loss.item() == pytest.approx(
        loss.item(), abs=1e-5 if tol < 1e-3 else 1e-2
    )
    for a, b in zip(ours, exact, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < tol
    want = np.mean(
        [
            ppo_reference(*v, 0.2, 0.2, 3.0)
            for v in zip(
                lp[mask].tolist(), old[mask].tolist(), adv[mask].tolist(), strict=True
            )
        ]
    )
    assert out.metrics["policy_loss"] == pytest.approx(
        -want, abs=1e-2 if tol > 1e-3 else 1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["ppo_clip", "cispo", "reinforce"])
@pytest.mark.parametrize("s", [None, TokenSet("top_p", 0.7), TokenSet("top_k", 9)])
def test_fused_is_unfused(dtype, kind, s):  # golden 11: temperatures, bias, weights
    h, w, labels, old, adv, mask = problem(dtype)
    g = torch.Generator().manual_seed(9)
    b = torch.randn(len(w), generator=g).to(dtype).requires_grad_()
    tau, share, bonus = (0.5 + torch.rand(len(h), generator=g) for _ in range(3))
    c = PolicyLossConfig(kind, eps_high=0.3)
    labels = torch.where(mask, labels, -100)
    t = token_stats(h, w, labels, temperature=tau, bias=b, token_set=s, chunk=6)
    rows = (x[None] for x in (t.logprob, old, adv, mask))
    loss, moved = policy_loss(*rows, c, weights=share[None])
    H = t.entropy if s is None else t.clamped_entropy
    loss = loss - 0.3 * (H * bonus * mask).sum()
    plain = torch.autograd.grad(loss, (h, w, b))
    assert not h.is_contiguous()
    for chunk in (1, 7, 19, 22):
        out = fused_policy_loss(
            h, w, labels, old, adv, mask, loss=c, token_set=s, ent_coef=0.3,
            temperature=tau, bias=b, weights=share, bonus_weights=bonus, chunk=chunk,
        )  # fmt: skip
        assert out.loss.item() == pytest.approx(loss.item(), rel=1e-5)
        for x, y in zip(torch.autograd.grad(out.loss, (h, w, b)), plain, strict=True):
            gap = float((x.double() - y.double()).norm() / y.double().norm())
            assert gap < (1e-4 if dtype == torch.float32 else 1e-2)
        for k, v in moved.items():
            assert out.metrics[k] == pytest.approx(v, rel=1e-4)


def test_no_tokens_and_zero_coefficient():  # goldens 11 and 12
    h, w, labels, old, adv, mask = problem()
    none = fused_policy_loss(h[:0], w, labels[:0], old[:0], adv[:0], mask[:0])
    assert (
        none.loss.item() == 0 and torch.autograd.grad(none.loss, w)[0].abs().sum() == 0
    )
    for s in (TokenSet("fraction", 0.33), TokenSet("top_k", 3), TokenSet("top_p", 0.5)):
        a, b = (
            torch.autograd.grad(
                fused_policy_loss(h, w, labels, old, adv, mask, token_set=t).loss,
                (h, w),
            )
            for t in (None, s)
        )
        assert all(map(torch.equal, a, b))


def test_advantages():  # rlpt 3
    r = torch.tensor([1.0, 0, 0, 0])
    np.testing.assert_allclose(
        group_relative(r, 4, eps=0), [1.5, -0.5, -0.5, -0.5], atol=1e-6
    )
    x = np.random.default_rng(0).random(20)
    want = np.concatenate(
        [(v - v.mean()) / (v.std(ddof=1) + 1e-6) for v in x.reshape(5, 4)]
    )
    np.testing.assert_allclose(group_relative(torch.tensor(x), 4), want, atol=1e-9)
    others = np.concatenate([v - (v.sum() - v) / 3 for v in x.reshape(5, 4)])
    np.testing.assert_allclose(leave_one_out(torch.tensor(x), 4), others, atol=1e-9)


def test_advantages_do_not_feel_shift_or_scale():  # rlpt 3
    x = torch.rand(24, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    same = torch.testing.assert_close
    for scale in ("std", "none", "max"):
        f = lambda r, scale=scale: group_relative(r, 6, scale, eps=0)
        same(f(x + 3), f(x))
        same(f(5 * x), 5 * f(x) if scale == "none" else f(x))
        same(f(x).reshape(4, 6).mean(1), torch.zeros(4, dtype=torch.double))
        assert (f(torch.full((6,), 0.7, dtype=torch.double)) == 0).all()
        assert (f(torch.full((6,), 0.1)) == 0).all()
    for r in (torch.full((6,), 0.7, dtype=torch.double), torch.full((6,), 0.1)):
        assert (leave_one_out(r, 6) == 0).all()
    order = torch.randperm(24)
    groups = torch.arange(24) // 6
    same(group_relative(x[order], groups[order]), group_relative(x, 6)[order])


@pytest.mark.parametrize("kind", ["ppo_clip", "reinforce", "cispo"])
def test_gradient_of_a_bandit(kind):  # rlpt 4, every outcome of two tokens
    theta = torch.randn(2, 3, dtype=torch.double, requires_grad=True)
    lp, worth = theta.log_softmax(-1), torch.randn(3, 3, dtype=torch.double)
    exact = ours = 0
    for a in range(3):
        for b in range(3):
            row = torch.stack([lp[0, a], lp[1, b]])[None]
            chance = row.sum().exp()
            exact = exact + chance * worth[a, b]
            c = PolicyLossConfig(kind, agg="constant", length=1)
            mask = torch.ones(1, 2).bool()
            loss, _ = policy_loss(row, row.detach(), worth[a, b][None], mask, c)
            ours = ours - chance.detach() * loss
    a, b = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in (ours, exact))
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_a_mixture_has_the_gradient_of_its_parts():
    x = torch.randn(4, 5, dtype=torch.double, requires_grad=True)
    mask = torch.arange(5) < torch.tensor([[5], [2], [1], [3]])
    A, old = torch.randn(4), x.detach() + 0.1
    of = lambda w: policy_loss(x, old, A, mask, weight=torch.tensor(w))[0]
    grad = lambda w: torch.autograd.grad(of(w), x)[0]
    parts = grad([1.0, 1, 0, 0]), grad([0.0, 0, 1, 1])
    torch.testing.assert_close(grad([1, 1, 0.3, 0.3]), parts[0] + 0.3 * parts[1])


@pytest.mark.parametrize("agg", ["token", "sequence", "constant"])
@pytest.mark.parametrize("kind", ["ppo_clip", "gspo", "cispo", "reinforce"])
def test_losses_written_out(agg, kind):
    rng = np.random.default_rng(1)
    lp, old = -rng.random((4, 5)), -4 * rng.random((4, 5))
    adv, mask = rng.normal(size=4), np.arange(5) < np.array([[5], [2], [1], [3]])
    rows = []
    for i in range(4):
        s = math.exp((lp[i] - old[i])[mask[i]].mean())
        row = []
        for t in np.flatnonzero(mask[i]):
            r = math.exp(lp[i, t] - old[i, t])
            if kind == "reinforce":
                row.append(adv[i] * lp[i, t])
            elif kind == "cispo":
                row.append(min(max(r, 0.8), 1.2) * adv[i] * lp[i, t])
            else:
                r = s if kind == "gspo" else r
                dual = math.inf if kind == "gspo" else 3.0  # which it has not
                row.append(ppo_reference(math.log(r), 0.0, adv[i], 0.2, 0.2, dual))
        rows.append(row)
    want = {
        "token": np.sum([sum(r) for r in rows]) / mask.sum(),
        "sequence": np.mean([np.mean(r) for r in rows]),
        "constant": np.sum([sum(r) for r in rows]) / 4 / 10,
    }[agg]
    c = PolicyLossConfig(kind, agg=agg, length=10)
    loss, _ = policy_loss(*map(torch.tensor, (lp, old, adv, mask)), c)
    assert loss.item() == pytest.approx(-want, abs=1e-6)


KINDS = ["ppo_clip", "gspo", "cispo", "reinforce"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pad", [-1000.0, -math.inf, math.nan])
def test_what_does_not_count_has_no_gradient(kind, pad):
    grads = []
    for old in (pad, -3.0):
        lp = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
        there = torch.tensor([[-1.1, -2.0, old]])
        mask, A = torch.tensor([[True, True, False]]), torch.tensor([1.0])
        loss, m = policy_loss(lp, there, A, mask, PolicyLossConfig(kind))
        (d,) = torch.autograd.grad(loss, lp)
        grads.append((loss.item(), d.tolist(), m))
    assert grads[0] == grads[1] and grads[0][1][0][2] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("A", [1.0, -1.0])
@pytest.mark.parametrize("far", [100.0, -100.0])
def test_a_ratio_beyond_all_bounds(kind, A, far):
    lp = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    old = torch.tensor([[-1.0, -2.0, -3.0 - far]])
    c = PolicyLossConfig(kind, dual_clip=None)
    loss, m = policy_loss(lp, old, torch.tensor([A]), torch.ones(1, 3).bool(), c)
    (d,) = torch.autograd.grad(loss, lp)
    assert math.isfinite(loss.item()) and torch.isfinite(d).all()
    assert all(map(math.isfinite, m.values()))
    if kind == "gspo":
        return
    h = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    w = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    h, w, labels = h.requires_grad_(), w.requires_grad_(), torch.tensor([1, 2, 3])
    now = token_stats(h, w, labels).logprob.detach()
    there = now - torch.tensor([0.0, 0.0, far])
    out = fused_policy_loss(
        h, w, labels, there, torch.full((3,), A), torch.ones(3).bool(), loss=c
    )
    assert all(torch.isfinite(x).all() for x in torch.autograd.grad(out.loss, (h, w)))
    assert all(map(math.isfinite, out.metrics.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_groups_do_not_measure_each_other(dtype):
    r = torch.tensor([0.0, 1, 0, 1, 0, 1e6], dtype=dtype)
    for scale in ("std", "none", "max"):
        whole = group_relative(r, 2, scale)
        alone = [group_relative(r[i : i + 2], 2, scale) for i in (0, 2, 4)]
        assert torch.equal(whole, torch.cat(alone)) and (whole != 0).all()
    assert (leave_one_out(r, 2) != 0).all()
    few = torch.tensor([0.0, 1, 0, 0], dtype=dtype)
    for size in (1.0, 1e-3, 1e-6, 1e-15):
        got = group_relative(few * size, 4, eps=0)
        torch.testing.assert_close(got, group_relative(few, 4, eps=0))
        assert (leave_one_out(few * size, 4) != 0).all()
    assert mixed_groups(few * 1e-20, 4).all()


def test_rounding_is_no_difference():
    r = torch.tensor([0.1 + 0.2, 0.3, 0.3], dtype=torch.double)
    assert r[0] != r[1]
    for f in (group_relative, leave_one_out):
        assert (f(r, 3) == 0).all()
    assert not mixed_groups(r, 3).any() and frac_zero_variance(r, 3) == 1
    for n in (3, 64, 1000):  # the mean of many equal numbers is rounded too
        r = torch.full((n,), 0.1)
        assert (group_relative(r, n) == 0).all() and (leave_one_out(r, n) == 0).all()


def test_gradients_of_divergence_estimates():
    g = torch.Generator().manual_seed(0)
    q = torch.randn(6, generator=g, dtype=torch.double).log_softmax(0)
    z = torch.randn(6, generator=g, dtype=torch.double, requires_grad=True)
    lp = z.log_softmax(0)
    grad = lambda x: torch.autograd.grad(x, z, retain_graph=True)[0]
    of = lambda k: grad((lp.exp().detach() * kl_estimate(lp, q, k)).sum())
    forward, back = (lp.exp() * (lp - q)).sum(), (q.exp() * (q - lp)).sum()
    want = {"k1": torch.zeros_like(z), "k2": grad(forward), "k3": grad(back)}
    for k, w in want.items():
        torch.testing.assert_close(of(k), w, atol=1e-12, rtol=0)
    assert (want["k2"] - want["k3"]).abs().max() > 0.01


def test_gspo_has_no_dual_clip():
    lp, one = torch.full((1, 4), -1.0), torch.ones(1, 4).bool()
    old = lp - math.log(5)
    for dual in (3.0, None):
        c = PolicyLossConfig("gspo", dual_clip=dual)
        loss, m = policy_loss(lp, old, torch.tensor([-1.0]), one, c)
        assert loss.item() == pytest.approx(5.0) and m["clip_frac"] == 0
    c = PolicyLossConfig("ppo_clip")
    assert surrogate(lp, old, -one.float(), c, one).mean().item() == pytest.approx(-3)


def test_clips_are_counted_where_they_act():
    lp, old = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.5, -0.5]])
    one = torch.ones(1, 2).bool()
    of = lambda kind, A, old=old, **kw: policy_loss(
        lp, old, torch.tensor([A]), one, PolicyLossConfig(kind, **kw)
    )[1]
    for A in (1.0, -1.0):
        m = of("gspo", A)  # the ratio of the response is one
        assert (m["clip_frac"], m["ratio_max"]) == (0.0, 1.0) and m["approx_kl"] > 0.1
        assert of("cispo", A)["clip_frac"] == 1.0  # both, whatever the sign
        assert of("cispo", A, eps_low=1.0)["clip_frac"] == 0.5
        assert of("ppo_clip", A)["clip_frac"] == 0.5
    far = lp - 0.3
    assert (
        of("gspo", 1.0, far)["clip_frac"] == 1
        and not of("gspo", -1.0, far)["clip_frac"]
    )


@pytest.mark.parametrize(
    "bad", [dict(agg="mean"), dict(agg="constant"), dict(agg="constant", length=0)]
)
def test_averages_that_cannot_be(bad):
    with pytest.raises(ValueError, match="got"):
        PolicyLossConfig(**bad)


RANKS = """
import sys, torch
from rlpapers.llm.distributed import Ranks
from rlpapers.llm.losses import policy_loss, token_weights
rank = int(sys.argv[1])
where = "file://" + sys.argv[2]
torch.distributed.init_process_group("gloo", where, rank=rank, world_size=2)
g, ranks = torch.Generator().manual_seed(0), Ranks()
x = torch.randn(2, 7, generator=g, dtype=torch.double).requires_grad_()
A = torch.randn(2, generator=g, dtype=torch.double)
mask = torch.arange(7) < torch.tensor([[3], [7]])
one = slice(rank, rank + 1)
w = token_weights(mask[one], total=ranks.sum(float(mask[one].sum())))
policy_loss(x[one], x[one].detach(), A[one], mask[one], weights=w)[0].backward()
ranks.sum_gradients([x])
whole = x.detach().clone().requires_grad_()
policy_loss(whole, x.detach(), A, mask)[0].backward()
torch.testing.assert_close(x.grad, whole.grad)
print("equal")
"""


def test_two_ranks(tmp_path):  # golden 13
    call = [sys.executable, "-c", RANKS]
    pair = [
        subprocess.Popen(
            [*call, str(r), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    for p in pair:
        out, err = p.communicate(timeout=120)
        assert out.strip() == "equal", err[-800:]


INTERPRET = """
import torch
from rlpapers.llm.entropy import RowGradient, TokenSet, row_gradient_, row_stats
from rlpapers.llm.kernels import kernel_gradient_, kernel_stats
from rlpapers.llm.logprob import token_stats
g = torch.Generator().manual_seed(0)
sets = [None, TokenSet(), TokenSet("top_k", 1), TokenSet("top_k", 10)]
sets.append(TokenSet("top_p", 0.8))
for dtype, tol in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
    for V in (50, 1300):
        z = (3 * torch.randn(3, V, generator=g)).to(dtype)
        z[1], z[2, : V // 2], z[0, 5] = z[1].round(), 1.0, -torch.inf
        tau, labels = torch.tensor([1.0, 0.7, 1.3]), torch.tensor([0, 3, V - 1])
        for s in sets:
            k, x = kernel_stats(z, tau, s), z.float() / tau[:, None]
            r = row_stats(x, s)
            for name in ("lse", "entropy", "clamped", "log_mass"):
                a, b = getattr(k, name), getattr(r, name)
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
            c = None if s is None else torch.tensor([1.0, 2.0, -1.0])
            one = torch.ones(3)
            d = RowGradient(torch.tensor([1.0, -0.5, 0.2]), one, one, c)
            ours = kernel_gradient_(z.clone(), tau, k, d, labels).float()
            twin = row_gradient_(x.clone(), r, d, labels) / tau[:, None]
            torch.testing.assert_close(ours, twin, atol=tol, rtol=tol)
h, w = (torch.randn(n, 6, generator=g, requires_grad=True) for n in (5, 90))
labels = torch.randint(90, (5,), generator=g)
get = lambda b: token_stats(h, w, labels, token_set=TokenSet(), backend=b, chunk=2)
got = [get(b) for b in ("torch", "triton")]
grads = [torch.autograd.grad(sum(v.sum() for v in t), (h, w)) for t in got]
for a, b in zip((*got[0], *grads[0]), (*got[1], *grads[1]), strict=True):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
print("equal")
"""


@pytest.mark.peer
def test_kernel_in_the_interpreter():
    "The Triton kernel equals its twin; it has never run on a GPU."
    pytest.importorskip("triton")
    env = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", INTERPRET], env=env, capture_output=True, text=True
    )
    assert run.stdout.strip() == "equal", run.stderr[-800:]


@pytest.mark.peer
def test_peer_entropies():  # golden 14, optional
    trl = pytest.importorskip("trl.trainer.utils")
    z = torch.randn(3, 5, 40)
    ours = entropy_from_logits(z)
    torch.testing.assert_close(ours, trl.entropy_from_logits(z), atol=1e-5, rtol=1e-5)
