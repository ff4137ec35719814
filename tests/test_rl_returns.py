"Returns, advantages and rollouts of rlpapers.rl against loops (golden 15)."

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from rlpapers.rl.returns import (
    discounted_returns,
    explained_variance,
    gae,
    next_values,
    normalize,
)  # fmt: skip
from rlpapers.rl.rollouts import Collector, Rollout, columns, final_rows, minibatches

DOUBLE = dict(dtype=torch.float64)


def loop_gae(r, v, after, term, trunc, gamma, lam):
    "Sums of the definition, one environment and one step at a time."
    T, N = r.shape
    out = np.zeros((T, N))
    for i in range(N):
        for t in range(T):
            w = 1.0
            for k in range(t, T):
                delta = r[k, i] + gamma * after[k, i] * (not term[k, i]) - v[k, i]
                out[t, i] += w * delta
                if term[k, i] or trunc[k, i]:
                    break
                w *= gamma * lam
    return out


@pytest.mark.parametrize("seed", range(10))
def test_advantages_are_the_sums_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    T, N = rng.integers(1, 20), rng.integers(1, 5)
    r, v, after = rng.normal(size=(3, T, N))
    term = rng.random((T, N)) < 0.2
    trunc = (rng.random((T, N)) < 0.2) & ~term
    gamma, lam = rng.random(2)
    got = gae(*map(torch.tensor, (r, v, after, term, trunc)), gamma, lam)
    want = loop_gae(r, v, after, term, trunc, gamma, lam)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-10)


def test_advantages_by_hand():
    "Golden 15: constant reward, and a stop at the end of an episode."
    one, zero = torch.ones(3, 1, **DOUBLE), torch.zeros(3, 1, **DOUBLE)
    last = torch.tensor([[False], [False], [True]])
    no = torch.zeros(3, 1, dtype=torch.bool)
    for term, trunc in ((last, no), (no, last)):
        got = gae(one, zero, zero, term, trunc, 0.9, 0.5)[:, 0].tolist()
        assert got == pytest.approx([1.6525, 1.45, 1.0], abs=1e-12)
    middle = torch.tensor([[False], [True], [False]])
    got = gae(one, zero, zero, middle, no, 0.9, 0.5)[:, 0].tolist()
    assert got == pytest.approx([1.45, 1.0, 1.0])
    value = torch.full((3, 1), 10.0, **DOUBLE)  # a terminal state is worth nothing
    got = gae(one, zero, value, middle, no, 0.9, 0.5)[:, 0].tolist()
    assert got == pytest.approx([10 + 0.45 * 1, 1.0, 10.0])
    got = gae(one, zero, value, no, middle, 0.9, 0.5)[:, 0].tolist()  # a cut one is
    assert got == pytest.approx([10 + 0.45 * 10, 10.0, 10.0])


@pytest.mark.parametrize("seed", range(5))
def test_returns_are_sums(seed):
    rng = np.random.default_rng(seed)
    r, ended, last = (
        rng.normal(size=(9, 3)),
        rng.random((9, 3)) < 0.25,
        rng.normal(size=3),
    )
    want = np.zeros((9, 3))
    for i in range(3):
        for t in range(9):
            for k in range(t, 9):
                want[t, i] += 0.8 ** (k - t) * r[k, i]
                if ended[k, i]:
                    break
            else:
                want[t, i] += 0.8 ** (9 - t) * last[i]
    got = discounted_returns(
        torch.tensor(r), 0.8, torch.tensor(ended), torch.tensor(last)
    )
    np.testing.assert_allclose(got.numpy(), want, atol=1e-10)


def test_next_values_shift_and_replace():
    v, last = torch.tensor([[1.0, 2], [3, 4], [5, 6]]), torch.tensor([7.0, 8])
    assert next_values(v, last).tolist() == [[3, 4], [5, 6], [7, 8]]
    put = torch.tensor([[False, True], [False, False], [True, False]])
    final = torch.full((3, 2), 9.0)
    got = next_values(v, last, put, final)
    assert got.tolist() == [[3, 9], [5, 6], [9, 8]]


@pytest.mark.parametrize(
    "gamma, lam", [(-0.1, 0.5), (1.1, 0.5), (0.5, -1), (0.5, 2), (float("nan"), 0.5)]
)
def test_discounts_outside_the_unit_interval_are_refused(gamma, lam):
    z, no = torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="gamma|lam"):
        gae(z, z, z, no, no, gamma, lam)


def test_shapes_that_do_not_fit_are_refused():
    z, no = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises((ValueError, RuntimeError)):
        gae(z, torch.zeros(4, 2), z, no)
    with pytest.raises((ValueError, TypeError)):
        gae(z, z, z, torch.zeros(3, 1, dtype=torch.bool))


def test_normalize_and_explained_variance():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=g, **DOUBLE) * 3 + 2
    keep = torch.rand(50, 4, generator=g) < 0.6
    y = normalize(x, keep)
    assert y[keep].mean().abs() < 1e-9 and (y[~keep] == 0).all()
    assert abs(float(y[keep].std(unbiased=False)) - 1) < 0.02
    assert torch.isfinite(normalize(torch.ones(5))).all()
    r = torch.tensor([1.0, 2, 3, 4])
    assert explained_variance(r, r) == pytest.approx(1)
    assert explained_variance(r * 0 + 2.5, r) == pytest.approx(0)
    assert explained_variance(-r, r) == pytest.approx(-3)
    assert np.isnan(explained_variance(r, r * 0))


def test_minibatches_are_a_partition():
    data = {
        "i": torch.arange(60).reshape(12, 5),
        "x": torch.arange(60.0).reshape(12, 5, 1),
    }
    valid = torch.ones(12, 5, dtype=torch.bool)
    valid[3:5] = False
    for mask, want in (
        (None, set(range(60))),
        (valid, set(range(60)) - set(range(15, 25))),
    ):
        parts = list(minibatches(data, 16, torch.Generator().manual_seed(1), mask))
        seen = torch.cat([p["i"] for p in parts]).tolist()
        assert sorted(seen) == sorted(want)
        assert seen != sorted(seen)
        for p in parts:
            assert torch.equal(p["i"].double(), p["x"][:, 0].double())
            assert abs(len(p["i"]) - len(want) / len(parts)) <= 1
    order = lambda s: torch.cat(
        [p["i"] for p in minibatches(data, 16, torch.Generator().manual_seed(s))]
    )
    assert torch.equal(order(1), order(1)) and not torch.equal(order(1), order(2))


def test_columns_keep_their_steps_together():
    data = {"i": torch.arange(60).reshape(12, 5)}
    seen = []
    for part, which in columns(data, 24, torch.Generator().manual_seed(0)):
        assert torch.equal(part["i"], data["i"][:, which]) and len(part["i"]) == 12
        seen += which.tolist()
    assert sorted(seen) == list(range(5))


def test_rollout_keeps_steps_in_order():
    store = Rollout(3)
    for t in range(3):
        store.add(a=torch.full((2,), t), b=torch.full((2, 4), -1.0 * t))
    with pytest.raises((IndexError, ValueError, RuntimeError)):
        store.add(a=torch.zeros(2, dtype=torch.int64), b=torch.zeros(2, 4))
    store.clear()


class Counting(gym.Env):
    "Observation t of an episode of 4 steps is t; reward 1; truncated or terminated."

    observation_space = gym.spaces.Box(0, 100, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, cut=True, length=4):
        self.cut, self.length = cut, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        return (np.full(1, self.t, np.float32), 1.0, over and not self.cut,
                over and self.cut, {})  # fmt: skip


class Reads(torch.nn.Module):
    "A policy of chance whose value is ten times the observation."

    def initial(self, n):
        return None

    def forward(self, obs, hidden=None, starts=None):
        from rlpapers.rl.networks import Categorical

        logits = torch.zeros(*obs.shape[:-1], 2)
        return Categorical(logits), 10 * obs[..., 0], None


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("cut", [True, False])
def test_collected_values_follow_each_step(mode, cut):
    "In each autoreset mode: what follows a truncation is the value of its last state."
    lengths = (4, 3)
    env = gym.vector.SyncVectorEnv(
        [lambda n=n: Counting(cut, n) for n in lengths], autoreset_mode=mode
    )
    data = Collector(env, Reads(), encode=torch.as_tensor).collect(
        Rollout(11), torch.Generator().manual_seed(0)
    )
    names = set(data)
    assert {"obs", "actions", "rewards", "following", "terminated"} <= names, names
    valid = data.get("valid", torch.ones(11, 2, dtype=torch.bool))
    for i, n in enumerate(lengths):
        for t in torch.nonzero(valid[:, i]).ravel().tolist():
            seen = float(data["obs"][t, i, 0])
            assert seen < n, "an episode's last state is no start of a step"
            assert data["rewards"][t, i] == 1
            over = seen == n - 1
            assert bool(data["terminated"][t, i]) == (over and not cut)
            assert bool(data["truncated"][t, i]) == (over and cut)
            if not (over and not cut):
                assert float(data["following"][t, i]) == 10 * (seen + 1)
        assert valid[:, i].sum() >= 8
    adv = gae(*(data[k].float() for k in ("rewards", "values", "following")),
              data["terminated"], data["truncated"], 0.9, 0.5)  # fmt: skip
    assert torch.isfinite(adv[valid]).all()


def test_episodes_are_counted():
    env = gym.vector.SyncVectorEnv([lambda: Counting(True, 4)] * 2,
                                   autoreset_mode=AutoresetMode.SAME_STEP)  # fmt: skip
    c = Collector(env, Reads(), encode=torch.as_tensor)
    c.collect(Rollout(10), torch.Generator().manual_seed(0))
    assert c.finished() == [(4.0, 4)] * 4 and c.finished() == []


def test_final_rows_of_both_layouts():
    info = {"final_obs": np.array([None, np.ones(3), None, np.zeros(3)], dtype=object)}
    got = final_rows(info, np.array([False, True, False, True]))
    assert np.asarray(got).tolist() == [[1, 1, 1], [0, 0, 0]]
