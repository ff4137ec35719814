"""AEnt: golden numbers with independent references, and the whole loop on a tiny model."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.aent import AdaptiveCoefficient, AEnt, EntropyBonus, TokenSet
from rlpapers.aent.exact import best_mass, half_mass_coefficient, optimal_value
from rlpapers.aent.onestate import problem, train
from rlpapers.aent.regularizers import METHODS, method
from rlpapers.aent.words import new_policy, off_support
from rlpapers.core.checkpoint import load_state, save_state
from rlpapers.llm.learner import LearnerConfig, Regularizer
from rlpapers.llm.mod10 import Mod10Questions, Mod10World
from rlpapers.llm.native import NativeEngine
from rlpapers.llm.rewards import TaskReward
from rlpapers.llm.trainer import RLTrainer, TrainerConfig


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
    "Newton's way: softmax of reward over lambda, in mpmath-free float64."
    w = math.exp(1 / coef)
    return best * w / (best * w + actions - best)


def test_exact():  # goldens 9 and 10; the specification prints 0.90454 and 0.98453
    for args in ((50, 3, 0.2), (10, 3, 0.2), (1e5, 5, 0.1), (67_000, 5, 0.1), (1e3, 2, 0.1)):
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
            a = torch.searchsorted(total, torch.tensor(u).float() * total[-1], right=True)
            good = torch.isin(a, p.best[i])
            r = torch.where(good, 1.0, torch.where(a == 0, p.easy, 0.0)).double()
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


def trainer(policy, world, regularizers=(), loss=None, folder=None, **kw):
    questions = Mod10Questions(world)
    more = {} if loss is None else {"loss": loss}
    return RLTrainer(
        policy, NativeEngine(policy, world.tokenizer), world.tokenizer, questions,
        TaskReward(questions) if kw.get("real") else Lengths(),
        TrainerConfig(4, 4, 8, seed=1), learner=LearnerConfig(lr=3e-3),
        regularizers=regularizers, folder=folder, **more,
    )  # fmt: skip


class Lengths:
    "A reward that an untrained policy can earn: the share of words that mean something."

    def __call__(self, batch):
        share = [np.mean([not w.startswith("w") for w in t.split()] or [0]) for t in batch.texts]
        return torch.tensor(share, dtype=torch.float32)


WORLD = Mod10World((1, 2), 90)


def test_zero_coefficient_changes_no_bit():  # golden 12, through the whole loop
    ends = []
    for reg in ((), [EntropyBonus(0.0, TokenSet("fraction", 0.33))], [Regularizer()]):
        policy = new_policy(WORLD, 0, 16)
        log = trainer(policy, WORLD, reg).train(3)
        assert log[-1]["grad_norm"] > 0
        ends.append(policy.state_dict())
    for other in ends[1:]:
        assert all(torch.equal(ends[0][k], other[k]) for k in other)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_bit_for_bit(name, tmp_path):  # rlpt 15
    def made():
        policy = new_policy(WORLD, 0, 16)
        steer = AdaptiveCoefficient(0.02, 0.5, 1.0, 0.01, (0.0, 0.3))
        loss, reg = method(name, token_set=TokenSet("top_k", 20), coef=0.02, adaptive=steer)
        return trainer(policy, WORLD, [reg], loss)

    whole = made()
    log = whole.train(4)
    part = made()
    part.train(2)
    save_state(tmp_path / "c", part.state_dict())
    again = made()
    again.load_state_dict(load_state(tmp_path / "c"))
    assert again.train(4) == log[2:]
    a, b = whole.policy.state_dict(), again.policy.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_bonus_moves_the_entropy():
    ends = {}
    for coef in (0.0, 0.5):
        policy = new_policy(WORLD, 0, 16)
        with torch.no_grad():
            policy.model.embed.weight.mul_(30)  # a sure policy to begin with
        log = trainer(policy, WORLD, [EntropyBonus(coef)]).train(6)
        ends[coef] = log[-1]["entropy"] - log[0]["entropy"]
    assert ends[0.5] > ends[0.0] + 0.01


def test_lambda_follows_the_measured_entropy():
    policy = new_policy(WORLD, 0, 16)
    steer = AdaptiveCoefficient(0.02, 10.0, 11.0, 0.01, (0.0, 5.0))
    log = trainer(policy, WORLD, [AEnt(steer, TokenSet("top_k", 20))]).train(3)
    lam = 0.02
    for m in log:
        assert m["entropy/lambda"] == pytest.approx(lam, abs=1e-12)
        lam += 0.01 * (10.0 - m["clamped_entropy"])
    assert steer.value == pytest.approx(lam, abs=1e-9)


def test_off_support_is_a_mean_probability():
    policy = new_policy(WORLD, 0, 16)
    t = trainer(policy, WORLD)
    d, _ = t.collect()
    found = off_support(policy, d, WORLD.noise_ids, rows=16)
    ids, mask = d.ids, d.mask
    p = policy(ids, mask).softmax(-1)[..., 45:].sum(-1)
    want = [float(p[i, d.at[i, j]]) for i, j in d.counts.nonzero().tolist()]
    assert found == pytest.approx(np.mean(want), abs=1e-5)
    assert copy.deepcopy(policy)(ids, mask).shape[-1] == 90


def test_public_names():
    import rlpapers.aent as aent

    for name in ("AEnt", "AdaptiveCoefficient", "token_stats", "fused_policy_loss", "TokenSet"):
        assert callable(getattr(aent, name))
