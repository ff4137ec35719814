"The protocol's algebra, its agents and its numbers (golden 14)."

import json

import gymnasium as gym
import numpy as np
import pytest

minigrid = pytest.importorskip("minigrid")
pytest.importorskip("numba")

import abide_plain as plain  # noqa: E402

from rlpapers.abidegym import (  # noqa: E402
    AtStep,
    BeforeSubgoal,
    FrozenPlanAgent,
    LevelReplay,
    MoveObject,
    OracleAgent,
    RandomAgent,
    Rekey,
    RemapActions,
    Resize,
    Rule,
    StaleModelAgent,
    Stall,
    State,
    brittleness,
    env_worlds,
    evaluate,
    plan,
    recovery,
    resilience,
    strategy_mix,
    vec_worlds,
)  # fmt: skip
from rlpapers.abidegym.outcomes import (  # noqa: E402
    Episodes,
    median_time,
    paired,
    restricted_mean,
    share_by,
)  # fmt: skip
from rlpapers.abidegym.protocol import run_episodes  # noqa: E402
from rlpapers.core.stats import kaplan_meier  # noqa: E402

SIX = "MiniGrid-DoorKey-6x6-v0"


def survival(times, observed, x):
    "Kaplan and Meier's product, from its definition."
    out = 1.0
    for t in sorted({t for t, o in zip(times, observed, strict=True) if o and t <= x}):
        deaths = sum(o and u == t for u, o in zip(times, observed, strict=True))
        out *= 1 - deaths / sum(u >= t for u in times)
    return out


def test_kaplan_meier_by_hand():
    "Golden 14: times 1, 2, 2+, 4, 5+."
    curve = kaplan_meier([1, 2, 2, 4, 5], [True, True, False, True, False])
    got = [1 - share_by(curve, x) for x in (1, 2, 3, 4, 5)]
    np.testing.assert_allclose(got, [0.8, 0.6, 0.6, 0.3, 0.3], atol=1e-12)
    assert median_time(curve) == 4


@pytest.mark.parametrize("seed", range(12))
def test_kaplan_meier_of_random_times(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    t = np.round(rng.exponential(3, n), int(rng.integers(0, 3))) + 0.5
    seen = rng.random(n) < rng.random()
    curve = kaplan_meier(t, seen)
    grid = np.linspace(0, t.max() + 1, 60)
    want = [survival(t.tolist(), seen.tolist(), x) for x in grid]
    np.testing.assert_allclose([1 - share_by(curve, x) for x in grid], want, atol=1e-12)
    h = float(rng.uniform(0.5, t.max()))
    fine = np.sort(np.r_[0, np.unique(t[t < h]), h])
    area = sum(
        (b - a) * survival(t.tolist(), seen.tolist(), a)
        for a, b in zip(fine[:-1], fine[1:], strict=True)
    )
    assert restricted_mean(curve, h) == pytest.approx(area, abs=1e-10)
    below = [x for x in np.unique(t) if survival(t.tolist(), seen.tolist(), x) <= 0.5]
    assert median_time(curve) == (below[0] if below else np.inf)


def table(solved, lengths, event, left, limit=100, strategy=None):
    m = len(solved)
    return Episodes(
        np.arange(m), np.where(solved, 0.9, 0.0), np.array(lengths),
        np.array(solved, bool), np.array(event), np.array(left, float),
        np.array(strategy or [0] * m, np.int8), np.full(m, limit), np.full(m, -1),
    )  # fmt: skip


def test_recovery_censors_and_drops_nothing():
    "Solved: observed. Out of time or dead: censored at the end of the time."
    e = table(
        [1, 1, 0, 0, 1],
        [20, 30, 100, 13, 9],
        [10, 10, 40, 10, -1],
        [10, 5, 6, 10, np.nan],
    )
    r = recovery(e)
    assert len(r.ratio) == 4 and r.observed.tolist() == [True, True, False, False]
    assert r.ratio.tolist() == [1, 4, 10, 9] and r.excess.tolist() == [0, 15, 54, 80]
    curve = kaplan_meier(r.ratio, r.observed)
    assert share_by(curve, 20) == pytest.approx(0.5)  # not 1, as without the censored


def test_algebra_of_the_measures():
    assert brittleness(0.8, 0.2) == pytest.approx(0.75) and np.isnan(
        brittleness(0, 0.3)
    )
    assert brittleness(0.5, 0.6) == pytest.approx(-0.2)
    assert resilience(0.9, 0.9, 0.1) == 1 and resilience(0.1, 0.9, 0.1) == 0
    assert resilience(-0.1, 0.9, 0.1) == pytest.approx(-0.25)  # not clipped
    assert np.isnan(resilience(0.3, 0.3, 0.3))
    e = table([1, 1, 1, 0], [9] * 4, [1] * 4, [5] * 4, strategy=[1, 2, 2, 3])
    mix = strategy_mix(e)
    assert mix["key"] == pytest.approx(1 / 3) and mix["switch"] == pytest.approx(2 / 3)
    h = -(np.log2(1 / 3) / 3 + 2 * np.log2(2 / 3) / 3)
    assert mix["other"] == 0 and mix["entropy"] == pytest.approx(h)
    assert set(paired(e, e).values()) == {0.0}


@pytest.fixture(scope="module")
def reports():
    "Four agents on the same 24 pairs, by wrapper and MiniGrid."
    world = env_worlds(SIX, max_steps=90)
    oracle = evaluate(OracleAgent(), world, episodes=24, seed=5)
    both = dict(episodes=24, seed=5, references=(oracle.oracle, oracle.chance))
    agents = dict(
        random=RandomAgent(), frozen=FrozenPlanAgent(), stale=StaleModelAgent()
    )
    rest = {k: evaluate(a, world, **both) for k, a in agents.items()}
    return {"oracle": oracle, **rest}


def test_ends_of_the_scale(reports):
    "Golden 14: oracle B = 0, R = 1, F(1) = 1; chance R = 0."
    got = reports["oracle"].numbers()
    assert [got[k] for k in ("brittleness", "resilience", "recovered_by_1")] == [
        0,
        1,
        1,
    ]
    assert got["regret"] == 0 and got["success"] == 1
    assert reports["random"].numbers()["resilience"] == 0
    met = reports["oracle"].perturbed.event >= 0
    assert met.mean() > 0.8
    r = recovery(reports["oracle"].perturbed)
    assert r.observed.all() and (r.ratio == 1).all() and (r.excess == 0).all()


def test_pairs_share_their_layout(reports):
    "The same seeds; up to the change the oracle's two episodes are one."
    rep = reports["oracle"]
    assert np.array_equal(rep.clean.seeds, rep.perturbed.seeds)
    env = gym.make(SIX).unwrapped
    for i, seed in enumerate(rep.clean.seeds):
        env.reset(seed=int(seed))
        L = len(plain.shortest(env))
        assert rep.clean.lengths[i] == L
        assert rep.clean.returns[i] == 1 - 0.9 * (L / 90)
    met = rep.perturbed.event >= 0
    assert (rep.perturbed.event[met] < rep.perturbed.lengths[met]).all()
    lengths = rep.perturbed.event + rep.perturbed.oracle_left
    assert np.array_equal(lengths[met], rep.perturbed.lengths[met])
    assert np.array_equal(rep.clean.lengths[~met], rep.perturbed.lengths[~met])


def test_memorised_routines_break(reports):
    for name in ("frozen", "stale"):
        rep = reports[name]
        met = rep.perturbed.event >= 0
        assert rep.clean.solved.all() and not rep.perturbed.solved[met].any()
        assert rep.perturbed.solved[~met].all()
        got = rep.numbers()
        assert got["brittleness"] == pytest.approx(met.mean())
        assert got["resilience"] < 0.5 and got["recovery_median"] == np.inf
    same = paired(reports["frozen"].clean, reports["oracle"].clean)
    assert same["solved"] == same["returns"] == same["lengths"] == 0


def test_numbers_from_episodes_by_hand(reports):
    "Each number of the report from its definition."
    rep = reports["random"]
    got, a, b = rep.numbers(), rep.clean, rep.perturbed
    s0, s1 = a.solved.mean(), b.solved.mean()
    want = float("nan") if s0 == 0 else 1 - s1 / s0
    assert got["brittleness"] == pytest.approx(want, nan_ok=True)
    assert got["regret"] == pytest.approx(rep.oracle.returns.mean() - b.returns.mean())
    r = recovery(b)
    f2 = 1 - survival(r.ratio.tolist(), r.observed.tolist(), 2)
    assert got["recovered_by_2"] == pytest.approx(f2)
    assert json.loads(rep.to_json()) and len(rep.table()) >= 8
    assert rep.plot_recovery() is not None


def test_batch_and_order_change_nothing():
    one = run_episodes(
        env_worlds(SIX, max_steps=60)(True), RandomAgent(), range(6), batch=6
    )
    two = run_episodes(
        env_worlds(SIX, max_steps=60)(True), RandomAgent(), range(6), batch=2
    )
    for k, v in one.arrays().items():
        assert np.array_equal(v, two.arrays()[k], equal_nan=v.dtype.kind == "f"), k


def test_engine_worlds_give_the_same_algebra():
    rep = evaluate(OracleAgent(), vec_worlds(SIX), episodes=100)
    got = rep.numbers()
    assert [got[k] for k in ("brittleness", "resilience", "recovered_by_1")] == [
        0,
        1,
        1,
    ]
    assert got["key_clean"] == 1
    stale = evaluate(StaleModelAgent(), vec_worlds(SIX), 100,
                     references=(rep.oracle, rep.chance))  # fmt: skip
    met = stale.perturbed.event >= 0
    assert not stale.perturbed.solved[met].any() and stale.clean.solved.all()


class Predicts:
    "What Stable-Baselines3 has."

    def __init__(self):
        self.calls = 0

    def predict(self, obs, state=None, episode_start=None, deterministic=False):
        self.calls += 1
        n = len(obs["direction"] if isinstance(obs, dict) else obs)
        return np.full(n, 2), state


def test_an_object_with_predict_is_an_agent():
    agent = Predicts()
    rep = evaluate(agent, "AbideGym-Empty-MoveGoal-v0", episodes=3)
    assert agent.calls > 10 and not rep.clean.solved.any()
    assert np.isnan(rep.numbers()["brittleness"])


@pytest.mark.parametrize("rule", [
    Rule(AtStep(3), RemapActions()), Rule(AtStep(3), Resize(2)),
    Rule(AtStep(2), MoveObject("goal")), Rule(Stall(4), Rekey()),
])  # fmt: skip
def test_oracle_is_an_oracle_under_other_changes(rule):
    "Also where actions are renamed or the room grows: F(1) = 1."
    rep = evaluate(OracleAgent(), env_worlds(SIX, [rule], max_steps=60), episodes=8)
    got = rep.numbers()
    assert got["success"] == 1 and got["brittleness"] == 0 and got["resilience"] == 1
    if (rep.perturbed.event >= 0).any():
        assert got["recovered_by_1"] == 1


def test_stale_model_is_fooled_only_by_rules():
    "It replans: a moved goal does not trouble it, another lock does."
    moved = evaluate(
        StaleModelAgent(), env_worlds(SIX, [Rule(AtStep(2), MoveObject("goal"))]), 15
    )
    assert moved.perturbed.solved.all()
    frozen = evaluate(
        FrozenPlanAgent(), env_worlds(SIX, [Rule(AtStep(2), MoveObject("goal"))]), 15
    )
    assert frozen.perturbed.solved.mean() < 0.6


def test_the_old_model_tries_the_key_at_the_door():
    "It fetches the key, walks to the door and toggles in vain, for ever."
    for seed in range(6):
        env = plain.made(SIX, [Rule(AtStep(1), Rekey())], max_steps=60)
        env.reset(seed=seed)
        agent, memory, acts = StaleModelAgent(), None, []
        for _ in range(40):
            a, memory = agent(np.zeros(1), {"states": [State.from_env(env)]}, memory)
            acts.append(int(a[0]))
            *_, info = env.step(acts[-1])
        if not info["abide"]["n_events"]:
            continue
        b = env.unwrapped
        ahead = b.grid.get(*b.front_pos)
        assert ahead.type == "door" and ahead.is_locked and acts[-5:] == [5] * 5
        assert b.carrying.type == "key"


def test_the_old_model_does_not_know_of_new_names():
    world = env_worlds(SIX, [Rule(AtStep(2), RemapActions())], max_steps=45)(True)
    stale, oracle = (
        run_episodes(world, a, range(8)) for a in (StaleModelAgent(), OracleAgent())
    )
    assert oracle.solved.all() and stale.solved.mean() < 0.5


def test_random_agent_is_uniform_and_a_function_of_the_seed():
    agent = RandomAgent(3)
    info, state, out = {"seeds": np.arange(50)}, None, []
    for _ in range(200):
        a, state = agent(np.zeros(50), info, state)
        out.append(a)
    count = np.bincount(np.ravel(out), minlength=7)
    assert ((count - 10_000 / 7) ** 2 / (10_000 / 7)).sum() < 22.5  # chi-square, 1e-3
    flat = np.array(out)
    assert abs(np.corrcoef(flat[:-1].ravel(), flat[1:].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(flat[:, :-1].ravel(), flat[:, 1:].ravel())[0, 1]) < 0.05


def test_level_replay_weights_by_hand():
    "Rank prioritisation at temperature .1 mixed with staleness .3 (Jiang et al. 2021)."
    replay = LevelReplay(capacity=10, seed=0, replay=0.0)
    seeds = replay.draw(4)
    scores = dict(zip(seeds.tolist(), [0.1, 0.9, 0.5, 0.3], strict=True))
    for s, v in scores.items():
        replay.score(s, v)
    w = replay.weights()
    assert w.sum() == pytest.approx(1) and (w >= 0).all()
    assert np.argmax(w) == 1
    ranks = np.array([4, 1, 2, 3.0])
    by_rank = (1 / ranks) ** 10
    by_rank /= by_rank.sum()
    fresh = (w - 0.7 * by_rank) / 0.3
    assert (fresh > -1e-9).all() and fresh.sum() == pytest.approx(1)
    assert len(set(LevelReplay(seed=1, replay=0.0).draw(50).tolist())) == 50
    old = LevelReplay(capacity=10, seed=0, replay=1.0)
    first = old.draw(3)  # nothing to replay yet
    for s in first:
        old.score(int(s), 1.0)
    assert set(old.draw(40).tolist()) <= set(first.tolist())


def test_before_subgoal_in_pairs_hits_before_the_door():
    rep = run_episodes(env_worlds(SIX, [Rule(BeforeSubgoal(), Rekey())])(True),
                       OracleAgent(), range(30))  # fmt: skip
    env = gym.make(SIX)
    for seed, t in zip(rep.seeds, rep.event, strict=True):
        env.reset(seed=int(seed))
        assert t < len(plan(State.from_env(env), "door_open"))
