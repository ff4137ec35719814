"A room that grows, and actions that do something else (goldens 9 and 10)."

import json

import gymnasium as gym
import numpy as np
import pytest

minigrid = pytest.importorskip("minigrid")
pytest.importorskip("numba")

import abide_plain as plain  # noqa: E402

from rlpapers.abidegym import (  # noqa: E402
    AtStep,
    Blackout,
    PaddedFullyObs,
    Recolor,
    RemapActions,
    Resize,
    ResizeCurriculum,
    Rule,
    SeeThrough,
    ShrinkView,
    State,
    Sticky,
    plan,
    replay,
)  # fmt: skip

DOOR6 = "MiniGrid-DoorKey-6x6-v0"
WALL = (2, 5, 0)


def grids(env):
    "Type, colour and state of every cell, by MiniGrid's own encoding, indexed [x, y]."
    return env.unwrapped.grid.encode().copy()


def grow(seed, when=3, delta=2, env_id=DOOR6, **kwargs):
    "Before and after a growth; the agent has moved a little."
    env = plain.made(env_id, [Rule(AtStep(when), Resize(delta, **kwargs))])
    bare = gym.make(env_id).unwrapped
    first, _ = env.reset(seed=seed)
    bare.reset(seed=seed)
    for a in plain.busy(when, seed):
        obs, *_, info = env.step(int(a))
        old, *_ = bare.step(int(a))
    assert len(info["abide"]["events"]) == 1
    return env, bare, obs, old


@pytest.mark.parametrize("delta", [1, 2, 5])
def test_growth_keeps_what_was_there(delta):
    "Golden 9: every old inner cell, the pose, what is carried, doors, the clock."
    for seed in range(12):
        env, bare, _, _ = grow(seed, delta=delta)
        new, old, n = grids(env), grids(bare), 6 + delta
        assert new.shape == (n, n, 3) and env.unwrapped.width == n
        want = old[:5, :5].copy()
        want[4, 4] = (1, 0, 0)  # the goal has moved
        assert np.array_equal(new[:5, :5], want)
        assert tuple(new[n - 2, n - 2]) == (8, 1, 0)
        wall = next(x for x in range(1, 5) if (old[x, :, 0] == 4).any())  # the door's
        for i in range(n):  # the border, and what is new inside
            assert tuple(new[i, 0]) == tuple(new[0, i]) == WALL
            assert tuple(new[i, n - 1]) == tuple(new[n - 1, i]) == WALL
            if 5 <= i < n - 1:
                assert tuple(new[wall, i]) == WALL, "the wall goes on"
                for j in range(1, n - 1):
                    if j != wall and (j, i) != (n - 2, n - 2):
                        assert tuple(new[j, i]) == (1, 0, 0)
                        assert (i, j) == (n - 2, n - 2) or tuple(new[i, j]) == (
                            WALL if i == wall else (1, 0, 0)
                        )
        a, b = env.unwrapped, bare
        assert tuple(a.agent_pos) == tuple(b.agent_pos)
        assert (a.agent_dir, a.step_count) == (b.agent_dir, b.step_count)
        assert (a.carrying is None) == (b.carrying is None)
        assert a.max_steps == 10 * n * n and b.max_steps == 360


def test_growth_shows_only_beyond_the_old_wall():
    "Golden 9: a cell of the view that differs is not one of the old room's."
    changed = 0
    for seed in range(25):
        env, bare, new, old = grow(seed, when=1 + seed % 7)
        assert env.observation_space.contains(new)
        assert new["image"].shape == old["image"].shape
        for i, j in zip(
            *np.nonzero((new["image"] != old["image"]).any(-1)), strict=True
        ):
            x, y = cell_of(bare, i, j)
            assert x >= 4 or y >= 4 or (x, y) == (4, 4), (seed, x, y)
            assert max(x, y) >= 5 or (x, y) == (4, 4)
            changed += 1
    assert changed > 20


def cell_of(env, i, j):
    "Cell of the world that column i, row j of the view shows."
    ahead, aside = 6 - j, i - 3
    dx, dy = plain.MOVES[env.agent_dir]
    x, y = map(int, env.agent_pos)
    return x + ahead * dx - aside * dy, y + ahead * dy + aside * dx


@pytest.mark.parametrize("extend", [True, False])
def test_growth_and_the_clock(extend):
    "The limit grows by ten steps a cell, or stays."
    env, *_ = grow(0, extend_time=extend)
    assert env.unwrapped.max_steps == (640 if extend else 360)
    steps = plan(State.from_env(env))
    assert len(steps) == len(plain.shortest(env))
    for a in steps:
        _, reward, over, _, _ = env.step(a)
    assert over
    assert reward == 1 - 0.9 * ((3 + len(steps)) / (640 if extend else 360))


def test_growth_is_replayed_from_its_log():
    "Golden 9: the same hash; and the space is that of a room that never grows."
    for seed in range(4):
        env = gym.make("AbideGym-DoorKey-6x6-Resize-v0")
        still = gym.make("AbideGym-DoorKey-6x6-Static-v0")
        assert env.observation_space == still.observation_space
        env.reset(seed=seed)
        for a in np.random.default_rng(seed).integers(0, 3, 30):
            env.step(int(a))
        assert env.unwrapped.width == 8
        log = json.loads(json.dumps(env.get_wrapper_attr("log")))
        assert replay(log).unwrapped.hash() == env.unwrapped.hash()


def test_a_goal_elsewhere_stays():
    env = plain.made("MiniGrid-FourRooms-v0", [Rule(AtStep(1), Resize(2))])
    for seed in range(10):
        env.reset(seed=seed)
        old = grids(env)
        (before,) = np.argwhere(old[..., 0] == 8)
        env.step(0)
        (after,) = np.argwhere(grids(env)[..., 0] == 8)
        assert (tuple(before) == (17, 17)) or tuple(before) == tuple(after)


def test_growth_stops_at_the_largest_size():
    rules = [Rule(AtStep(k), Resize(2, max_size=9)) for k in range(1, 6)]
    env = plain.made(DOOR6, rules, max_events=9)
    env.reset(seed=0)
    told = [env.step(0)[-1]["abide"] for _ in range(5)]
    assert env.unwrapped.width == 8
    assert [len(t["events"]) for t in told] == [1, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="30"):
        plain.made(DOOR6, [Rule(AtStep(1), Resize(size=30, max_size=16))])
    with pytest.raises(ValueError, match="4"):
        plain.made(DOOR6, [Rule(AtStep(1), Resize(size=4, mode="shrink"))])


def test_shrinking_loses_nothing():
    "What is shrunk back is the old room; with something in the way it is not done."
    rules = [Rule(AtStep(1), Resize(2)), Rule(AtStep(2), Resize(2, mode="shrink"))]
    env = plain.made(DOOR6, rules, max_events=2)
    env.reset(seed=0)
    old = grids(env)
    env.step(1)
    env.step(1)
    assert np.array_equal(grids(env), old) and env.unwrapped.max_steps == 360
    env = plain.made(DOOR6, rules, max_events=2)
    env.reset(seed=0)
    env.step(1)
    env.unwrapped.agent_pos = (6, 5)
    *_, info = env.step(1)
    assert not info["abide"]["events"] and env.unwrapped.width == 8


def test_full_grid_in_a_square_of_fixed_size():
    env = PaddedFullyObs(gym.make("AbideGym-DoorKey-6x6-Resize-v0"), max_size=12)
    obs, _ = env.reset(seed=0)
    shapes, inner = set(), []
    for _ in range(20):
        obs, *_ = env.step(0)
        assert env.observation_space.contains(obs)
        shapes.add(obs["image"].shape)
        w = env.unwrapped.width
        full = grids(env)
        x, y = env.unwrapped.agent_pos
        full[x, y] = obs["image"][x, y]
        assert np.array_equal(obs["image"][:w, :w], full)
        rest = obs["image"].copy()
        rest[:w, :w] = WALL
        assert (rest == WALL).all()
        inner.append(w)
    assert shapes == {(12, 12, 3)} and set(inner) == {6, 8}


def test_curriculum_by_hand():
    c = ResizeCurriculum([5, 6, 8], up=0.9, down=0.3, window=10)
    sizes = [c.record(True) for _ in range(9)]
    assert set(sizes) == {5} and c.record(True) == 6
    for _ in range(9):
        assert c.record(False) == 6
    assert c.record(False) == 5
    for k in range(10):
        assert c.record(k > 0) == (6 if k == 9 else 5)  # nine of ten are enough
    for k in range(30):
        assert c.record(k % 2 == 0) == 6  # one half is between the two
    with pytest.raises(ValueError):
        ResizeCurriculum([])
    with pytest.raises(ValueError):
        ResizeCurriculum([8, 6])
    with pytest.raises(ValueError):
        ResizeCurriculum([5, 6], window=0)


def oracle(env, seed, follow):
    "Return of plans on the true state; after a change the certificate's."
    env.reset(seed=seed)
    todo, done = plan(State.from_env(env)), []
    while todo:
        a = todo.pop(0)
        done.append(a)
        _, reward, over, cut, info = env.step(a)
        for e in info["abide"]["events"]:
            if follow:
                todo = list(e["plan"])
                assert sorted(e["params"].get("perm") or range(7)) == list(range(7))
        if over or cut:
            return reward, len(done)
    return 0.0, len(done)


@pytest.mark.parametrize("when", [1, 4, 6])
def test_remap_leaves_the_oracles_return(when):
    "Golden 10: up to the names of the actions nothing has changed."
    lost = 0
    for seed in range(25):
        env = plain.made(DOOR6, [Rule(AtStep(when), RemapActions())], certificate=True)
        bare = plain.made(DOOR6)
        want = oracle(bare, seed, False)
        assert oracle(env, seed, True) == want
        lost += oracle(env, seed, False)[0] == 0
    assert lost > 20  # the memorised names are of no use


def test_remap_and_its_inverse_are_the_identity():
    "Golden 10: the actions of the log lead to the same states, renamed."
    sigma = (1, 0, 3, 2, 5, 4, 6)
    back = tuple(int(i) for i in np.argsort(sigma))
    for rules in ([RemapActions(sigma)], [RemapActions(sigma), RemapActions(back)]):
        env = plain.made(
            DOOR6, [Rule(AtStep(k + 1), r) for k, r in enumerate(rules)], max_events=2
        )
        bare = gym.make(DOOR6).unwrapped
        env.reset(seed=5)
        bare.reset(seed=5)
        acts = [6, 6, *plain.busy(40, 5).tolist()]
        if len(rules) == 1:
            acts[1] = 6
        for k, a in enumerate(acts):
            does = a if k < 1 or (len(rules) == 2 and k >= 2) else sigma[a]
            if env.step(a)[2] | bare.step(does)[2]:
                break
            assert bare.hash() == env.unwrapped.hash()
        assert env.log["actions"] == acts[: k + 1]


def test_random_remap_is_a_derangement_of_what_is_of_use():
    seen = set()
    for seed in range(40):
        env = plain.made(DOOR6, [Rule(AtStep(1), RemapActions())])
        env.reset(seed=seed)
        env.step(0)
        edit = env.log["events"][0]["edit"]["changes"]["remap"][1]
        assert sorted(edit) == list(range(7))
        assert all(edit[a] != a for a in (0, 1, 2, 3, 5))
        seen.add(tuple(edit))
    assert len(seen) > 15


def test_views_by_hand():
    "Section 3.4: hidden cells become unseen, colours change, walls turn to glass."
    bare = gym.make(DOOR6).unwrapped
    hidden = 0
    for seed in range(12):
        old, _ = bare.reset(seed=seed)
        shown = {}
        for what in (
            ShrinkView(3),
            Blackout(1.0),
            SeeThrough(),
            Recolor((1, 2, 3, 4, 0, 5)),
        ):
            env = plain.made(DOOR6, [Rule(AtStep(1), what)])
            env.reset(seed=seed)
            obs, *_ = env.step(6)
            assert env.observation_space.contains(obs)
            shown[type(what).__name__] = obs["image"]
        img = old["image"]
        small = np.zeros_like(img)
        small[2:5, 4:7] = img[2:5, 4:7]
        assert np.array_equal(shown["ShrinkView"], small)
        assert not shown["Blackout"].any()
        glass = gym.make(DOOR6, see_through_walls=True).reset(seed=seed)[0]["image"]
        assert np.array_equal(shown["SeeThrough"], glass)
        hidden += not np.array_equal(glass, img)
        other = img.copy()
        for t in (4, 5):
            m = img[..., 0] == t
            other[m, 1] = np.array([1, 2, 3, 4, 0, 5])[img[m][:, 1]]
        assert np.array_equal(shown["Recolor"], other)
    assert hidden > 3


def test_blackout_and_stickiness_have_their_probability():
    "Each step by itself; what is repeated is the action before."
    env = plain.made(DOOR6, [Rule(AtStep(1), Blackout(0.3))], max_steps=3000)
    env.reset(seed=1)
    dark = [not env.step(0)[0]["image"].any() for _ in range(1500)]
    assert abs(np.mean(dark) - 0.3) < 4 * np.sqrt(0.21 / 1500)
    env = plain.made(DOOR6, [Rule(AtStep(1), Sticky(0.25))], max_steps=3000)
    env.reset(seed=1)
    env.step(0)
    kept, last, rng = [], env.unwrapped.agent_dir, np.random.default_rng(0)
    did = 0
    for a in rng.integers(0, 2, 1500):
        env.step(int(a))
        now = env.unwrapped.agent_dir
        does = {3: 0, 1: 1}[(now - last) % 4]
        if a != did:
            kept.append(does == did)
        assert a != did or does == a
        did, last = does, now
    assert abs(np.mean(kept) - 0.25) < 4 * np.sqrt(0.1875 / len(kept))
