"""AEnt: golden numbers with independent references, and the loop on a tiny model."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_run import WORLD, made

from rlpapers.aent import (
    AdaptiveCoefficient,
    AEnt,
    EntropyBonus,
    TokenSet,
    fused_policy_loss,
)
from rlpapers.aent.exact import ascend, best_mass, half_mass_coefficient, optimal_value
from rlpapers.aent.onestate import expected_reward, one_step, problem, train
from rlpapers.aent.regularizers import METHODS, ClipCov, KLCov, TargetBonus, method
from rlpapers.aent.words import new_policy, off_support
from rlpapers.llm.decisions import Decisions
from rlpapers.llm.learner import LearnerConfig, Regularizer
from rlpapers.llm.logprob import TokenStats
from rlpapers.llm.losses import surrogate


def coefficient(**kw):
    base = dict(low=0.15, high=0.24, lr=0.002, bounds=(6e-4, 9e-3))
    return AdaptiveCoefficient(0.002, **(base | kw))


@pytest.mark.parametrize("e, want", [(0.10, 0.0021), (0.30, 0.00188), (0.20, 0.002)])
def test_one_step(e, want):  # golden 8
    assert coefficient().step(e) == pytest.approx(want, abs=1e-12)


def test_bounds_and_warmup():  # golden 8
    c = coefficient()
    with pytest.warns(UserWarning, match="H_low=0.15"):
        values = [c.step(0.0) for _ in range(100)]
    assert values[-1] == 9e-3 and max(values) <= 9e-3
    c = coefficient(warmup=5)
    assert [c.step(0.0) for _ in range(5)] == [0.002] * 5 and c.step(0.0) > 0.002


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 3), min_size=1, max_size=30), st.floats(0, 1))
def test_recurrence_written_out(entropies, pull):
    c, lam = coefficient(pull=pull), 0.002
    for e in entropies:
        up, down = max(0.15 - e, 0.0), max(e - 0.24, 0.0)
        lam = lam + 0.002 * up - 0.002 * down - 0.002 * pull * (lam - 0.002)
        lam = min(max(lam, 6e-4), 9e-3)
        assert c.step(e) == pytest.approx(lam, abs=1e-12)


def optimum(actions, best, coef):
    "Softmax of reward over lambda."
    w = math.exp(1 / coef)
    return best * w / (best * w + actions - best)


def test_exact():  # goldens 9 and 10; the specification prints 0.90454 and 0.98453
    sizes = (50, 3, 0.2), (10, 3, 0.2), (1e5, 5, 0.1), (67_000, 5, 0.1), (1e3, 2, 0.1)
    for args in sizes:
        assert best_mass(*args) == pytest.approx(optimum(*args), rel=1e-12)
    assert best_mass(50, 3, 0.2) == pytest.approx(0.90454, abs=3e-5)
    assert best_mass(10, 3, 0.2) == pytest.approx(0.98453, abs=3e-5)
    assert half_mass_coefficient(1e5, 5) == pytest.approx(0.10098, abs=5e-6)
    assert half_mass_coefficient(1e3, 5) == pytest.approx(0.18892, abs=5e-6)
    assert best_mass(1e5, 5, half_mass_coefficient(1e5, 5)) == pytest.approx(0.5)


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 200_000), st.floats(0.01, 3), st.integers(0, 10_000))
def test_bias_bound(A, lam, k):  # golden 10
    N = 1 + k % min(A - 1, 40)
    assert 1 - best_mass(A, N, lam) <= lam * math.log(A / N) + 1e-12
    if lam > 0.02:
        Z = N * math.exp(1 / lam) + A - N
        assert optimal_value(A, N, lam) == pytest.approx(lam * math.log(Z), rel=1e-9)


@pytest.mark.parametrize("kept", [None, 10])
def test_ascent_ends_at_the_optimum(kept):  # golden 9
    r = [1.0] * 3 + [0.0] * 47
    s = None if kept is None else TokenSet("top_k", kept)
    start = None if s is None else [1.0] * 10 + [-12.0] * 40
    p = ascend(r, 0.2, s, start=start)
    inside = p[: kept or 50].sum()
    want = optimum(kept or 50, 3, 0.2)
    assert float(p[:3].sum() / inside) == pytest.approx(want, abs=1e-5)
    assert float(inside) > 0.9999


def test_first_figure():  # the golden values of the exact bias
    want = {5: (0.5241, 0.6218, 0.9910), 2: (0.3058, 0.3967, 0.9778)}
    for n, row in want.items():
        for k, v in zip((100_000, 67_000, 1000), row, strict=True):
            assert best_mass(k, n, 0.1) == pytest.approx(v, abs=6e-5)


def plain_ascent(p, coef, kept, updates, group, lr):
    "One seed at a time, dense gradients by autograd, the same random numbers."
    from rlpapers.core.seeding import derive, uniform

    out = []
    for i, seed in enumerate(p.seeds):
        z = p.logits.double().clone()
        for t in range(updates):
            z.requires_grad_()
            pi = z.softmax(-1)
            u = uniform(np.int64(derive(seed, "actions")), np.int64(t), group)
            total = z.detach().float().softmax(-1).cumsum(0)
            u = torch.tensor(u).float() * total[-1]
            a = torch.searchsorted(total, u, right=True)
            r = torch.where(a == 0, p.easy, 0.0).double()
            r[torch.isin(a, p.best[i])] = 1.0
            gain = ((r - r.mean()) * pi.log()[a]).mean()
            q = z.topk(kept).values.log_softmax(-1)
            (d,) = torch.autograd.grad(gain - coef * (q.exp() * q).sum(), z)
            z = (z + lr * d).detach()
        pi = z.softmax(-1)
        out.append(float(p.easy * pi[0] + pi[p.best[i]].sum()))
    return out


@pytest.mark.parametrize("s, kept", [(None, 600), (TokenSet("top_k", 60), 60)])
def test_synthetic_problem(s, kept):
    p = problem([3, 4], actions=600, best=3, low=5, high=60)
    _, curve = train(p, 0.05, s, updates=25, group=16, lr=4.0)
    np.testing.assert_allclose(
        curve[:, -1], plain_ascent(p, 0.05, kept, 25, 16, 4.0), atol=2e-4
    )


def trainer(policy, regularizer=None):
    "The small run of `llm_run`, from a policy."
    t = made(
        regularizers=[regularizer or Regularizer()], learner=LearnerConfig(lr=3e-3)
    )
    t.policy.load_state_dict(policy.state_dict())
    return t


def test_bonus_moves_the_entropy():
    ends = {}
    for coef in (0.0, 0.5):
        policy = new_policy(WORLD, 0, 16)
        with torch.no_grad():
            policy.model.embed.weight.mul_(30)  # a sure policy to begin with
        log = trainer(policy, EntropyBonus(coef)).train(6)
        ends[coef] = log[-1]["entropy"] - log[0]["entropy"]
    assert ends[0.5] > ends[0.0] + 0.01


def test_lambda_follows_the_measured_entropy():
    policy = new_policy(WORLD, 0, 16)
    steer = AdaptiveCoefficient(0.02, 10.0, 11.0, 0.01, (0.0, 5.0))
    log = trainer(policy, AEnt(steer, TokenSet("top_k", 20))).train(3)
    lam = 0.02
    for m in log:
        assert m["entropy/lambda"] == pytest.approx(lam, abs=1e-12)
        lam += 0.01 * (10.0 - m["clamped_entropy"])
    assert steer.value == pytest.approx(lam, abs=1e-9)


def test_off_support_is_a_mean_probability():
    policy = new_policy(WORLD, 0, 16)
    t = trainer(policy)
    d, _ = t.collect()
    found = off_support(policy, d, WORLD.noise_ids, rows=16)
    with torch.no_grad():
        p = policy(d.ids, d.mask).softmax(-1)[..., 45:].sum(-1)
    want = [float(p[i, d.at[i, j]]) for i, j in d.counts.nonzero().tolist()]
    assert found == pytest.approx(np.mean(want), abs=1e-5) and len(want) > 16


def test_public_names():
    import rlpapers.aent as aent

    for name in (
        "AEnt",
        "AdaptiveCoefficient",
        "token_stats",
        "fused_policy_loss",
        "TokenSet",
    ):
        assert callable(getattr(aent, name))


def test_a_target_instead_of_a_band():
    r, coef, on, used = TargetBonus(0.2, 0.25, 0.4), 0.0, False, []
    for e in (0.1, 0.15, 0.1, 0.3, 0.3, 0.2, 0.1, 0.1):
        r.observe(e - 0.05, 9.0)
        r.observe(e + 0.05, 9.0)
        used.append((r.step_end()["lambda"], coef if on else 0.0))
        on = e <= 0.2 + 1e-12  # TRL 1.16: <= for the switch and the direction
        coef = min(max(coef + (0.25 if on else -0.25), 0.0), 0.4)
    np.testing.assert_allclose(*zip(*used, strict=True))
    assert max(u for u, _ in used) == 0.4
    r = TargetBonus(0.25, 0.05, init=0.1)  # a quarter is exact
    assert r.coefficient() == 0.0  # nothing is measured yet
    for e, want in ((0.25, 0.15), (0.2500001, 0.0), (0.25, 0.15)):
        r.observe(e, 9.0)
        r.step_end()
        assert r.coefficient() == pytest.approx(want)


def test_methods_are_what_the_table_says():
    steer = AdaptiveCoefficient(0.03, 0.1, 0.2, 0.1, (0.0, 1.0))
    s = TokenSet("top_k", 7)
    made = {m: method(m, token_set=s, coef=0.02, adaptive=steer) for m in METHODS}
    coefs = {k: r.coefficient() for k, (_, r) in made.items()}
    assert coefs == dict.fromkeys(METHODS, 0.0) | {
        "entreg": 0.02, "clamped": 0.02, "full_adaptive": 0.03, "aent": 0.03
    }  # fmt: skip
    full = {k for k, (_, r) in made.items() if r.token_set is None}
    assert full == {"entreg", "skywork", "full_adaptive"}
    highs = {k: c.eps_high for k, (c, _) in made.items()}
    other = {"clip_higher": 0.28, "kl_cov": math.inf}
    assert highs == dict.fromkeys(METHODS, 0.2) | other
    for seed in (0, 5):
        assert method("clip_cov", token_set=s, seed=seed)[1].seed == seed


def test_kl_cov_clips_nothing():
    c, _ = method("kl_cov", token_set=TokenSet("top_k", 7))
    change = torch.linspace(-4, 4, 9)
    for a in (-1.0, 1.0):
        got = surrogate(change, torch.zeros(9), torch.full((9,), a), c)
        torch.testing.assert_close(got, a * change.exp())


def test_a_first_lambda_outside_its_box_is_refused():
    for bounds in ((0.003, 0.009), (0.0, 0.001)):
        with pytest.raises(ValueError, match="init must lie within bounds"):
            coefficient(bounds=bounds, warmup=30)
    assert coefficient(bounds=(0.002, 0.009)).value == 0.002


@pytest.mark.parametrize(
    "kw", [{"bounds": (0.002, 0.002)}, {"lr": 0.0, "bounds": (0.002, 0.009)}]
)
def test_a_weight_that_is_to_rest_warns_of_nothing(kw):
    c = coefficient(**kw)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [c.step(e) for e in (0.0, 3.0) * 60] == [0.002] * 120


def test_a_step_in_the_band_begins_the_count_anew():
    c = coefficient(bounds=(6e-4, 0.002))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(150):
            c.step(0.2 if k % 50 == 49 else 0.0)
        for _ in range(50):
            c.step(0.0)
    with pytest.warns(UserWarning, match="more than 50 steps"):
        c.step(0.0)


def decided(lp, A):
    "Decisions of one row a list, with nothing but what a covariance needs."
    lp, A = torch.tensor(lp), torch.tensor(A)
    long = torch.zeros(lp.shape).long()
    on = long == 0
    return Decisions(long, on, long, long, lp, A, torch.ones(lp.shape), on)


def held(k, d, change=0.3):
    "Slope of the penalty in each log-probability, over its weight."
    k.prepare(d)
    now = (d.flat(d.logprob_old) + change).requires_grad_()
    w = torch.full((len(now),), 0.25)
    extra = k.term(TokenStats(now, None, None, now), w, d)
    return torch.autograd.grad(extra, now)[0] / 0.25


def test_kl_cov_holds_as_many_as_it_says():
    rng = np.random.default_rng(0)
    lp = rng.normal(-2, 1, (20, 20)).astype("float32")
    A = np.full((20, 20), 0.3, "float32")  # no advantage over another
    assert float(held(KLCov(0.01), decided(lp, A)).abs().sum()) == 0
    A = rng.normal(size=(20, 20)).astype("float32")
    slope = held(KLCov(0.01), decided(lp, A))
    c = ((lp - lp.mean()) * (A - A.mean())).ravel()
    assert set(slope.nonzero()[:, 0].tolist()) == set(np.argsort(-c)[:4].tolist())
    four = decided(np.tile(lp[:1], (20, 1)), np.tile(A[:1], (20, 1)))  # 20 of each
    slope = held(KLCov(0.06), four)  # the first twenty, and four of the second
    assert float(slope.sum()) == pytest.approx(24, abs=1e-4)
    assert sorted(slope.unique().tolist()) == pytest.approx([0, 0.2, 1.0])


@pytest.mark.parametrize(("change", "moved"), [(3e-5, 0), (-3e-5, 0), (3e-4, 1)])
def test_rounding_is_no_change(change, moved):
    rng = np.random.default_rng(1)
    d = decided(*rng.normal(size=(2, 4, 5)).astype("float32"))
    assert float(held(KLCov(0.05), d, change).sum()) == moved


def test_the_choices_of_the_covariance_methods_are_named():
    page = (Path(__file__).parents[1] / "nbs/aent/03_regularizers.ipynb").read_text()
    for words in (
        "which tokens the ratio clips",
        "has no clip",
        "is none: at the first",
    ):
        assert words in page


def test_an_ignored_label_does_not_count():
    g = torch.Generator().manual_seed(0)
    h, w = torch.randn(8, 4, generator=g), torch.randn(30, 4, generator=g)
    w.requires_grad_()
    labels, on = torch.arange(8), torch.ones(8).bool()
    old, A = torch.full((8,), -3.0), torch.randn(8, generator=g)
    some = labels != 5
    runs = (torch.where(some, labels, -100), on), (labels, on & some)
    out = [fused_policy_loss(h, w, x, old, A, m, ent_coef=0.1) for x, m in runs]
    grads = [torch.autograd.grad(o.loss, w)[0] for o in out]
    torch.testing.assert_close(*grads)
    assert out[0].metrics == out[1].metrics and out[0].metrics["tokens"] == 7
    with pytest.raises(ValueError, match="label 30 of token 5"):
        fused_policy_loss(h, w, torch.where(some, labels, 30), old, A, on)


def test_without_a_bonus_the_easy_action_wins():
    p = problem([0, 1, 2, 3], actions=2000, best=5)
    for coef, s in ((0.0, None), (0.2, TokenSet("top_k", 50))):
        z, curve = train(p, coef, s)
        np.testing.assert_allclose(expected_reward(p, z), curve[:, -1], atol=1e-6)
        if not coef:
            np.testing.assert_allclose(curve[:, -1], 0.6, atol=0.01)
    assert curve[:, -1].mean() > 0.8


@pytest.mark.parametrize("s", [None, TokenSet("top_k", 60), TokenSet("fraction", 0.5)])
def test_one_exact_step(s):
    p = problem([3, 4], actions=600, best=8, low=5, high=500)
    found = one_step(p, 0.1, s, lr=5.0, head=200)
    for i in range(2):
        z = p.logits.double().clone().requires_grad_()
        r = torch.zeros(600, dtype=torch.double)
        r[p.best[i]], r[0] = 1.0, p.easy
        kept = 600 if s is None else s.kept(600)
        q = z.topk(kept).values.log_softmax(0)
        value = z.softmax(0) @ r - 0.1 * (q.exp() * q).sum()
        (d,) = torch.autograd.grad(value, z)
        moved = (z + 5.0 * d).softmax(0).detach() - z.softmax(0).detach()
        kind = ["likely"] * 200 + ["tail"] * 400
        kind[0] = "easy"
        for b in p.best[i].tolist():
            kind[b] = "best"
        for name, change in found.items():
            want = sum(float(m) for m, k in zip(moved, kind, strict=True) if k == name)
            assert float(change[i]) == pytest.approx(want, abs=1e-9), name
        assert {"best", "easy", "likely", "tail"} == set(found) == set(kind)
    assert (p.best < 200).any() and (p.best >= 200).any()


@pytest.mark.parametrize("name", METHODS)
def test_settings_tell_methods_apart(name):
    "What a checkpoint compares is JSON, and changes with each number of a method."

    def made(**more):
        band = {"init": 0.01, "low": 0.1, "high": 0.2, "lr": 0.1, "bounds": (0.0, 1.0)}
        coefficient = AdaptiveCoefficient(**(band | more.pop("band", {})))
        how = {"coef": 0.02, "adaptive": coefficient} | more
        bonus = method(name, token_set=TokenSet("top_k", 4), **how)[1]
        return bonus.settings()

    assert json.loads(json.dumps(made())) == made()
    if name in ("aent", "full_adaptive"):
        for change in ({"low": 0.15}, {"lr": 0.2}, {"warmup": 3}, {"bounds": (0, 2)}):
            assert made(band=change) != made()
    if name in ("entreg", "clamped"):
        assert made(coef=0.03) != made()
    if name == "clip_cov":
        assert made(seed=1) != made()


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (ClipCov, [{"share": 0.5}, {"low": 0.5}, {"high": 9.0}, {"seed": 3}]),
        (KLCov, [{"share": 0.5}, {"coef": 9.0}]),
        (TargetBonus, [{"target": 0.3}, {"delta": 0.01}, {"highest": 2.0}]),
    ],
)
def test_settings_hold_every_number(make, changes):
    seen = [make().settings(), *(make(**c).settings() for c in changes)]
    assert len({json.dumps(s, sort_keys=True) for s in seen}) == len(seen)
