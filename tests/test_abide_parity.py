"AbideGym against MiniGrid: trajectories, what is seen, shortest plans (goldens 1–4)."

import gymnasium as gym
import numpy as np
import pytest

minigrid = pytest.importorskip("minigrid")
pytest.importorskip("numba")

import abide_plain as plain  # noqa: E402
from minigrid.core.grid import Grid  # noqa: E402
from minigrid.core.world_object import Door, Key, Lava, Wall  # noqa: E402

from rlpapers.abidegym import (  # noqa: E402
    AbideGymWrapper,
    AbideVecEnv,
    State,
    Stream,
    plan,
    verify,
)
from rlpapers.abidegym.ids import TASKS  # noqa: E402
from rlpapers.abidegym.streams import stream_bits, stream_key  # noqa: E402
from rlpapers.abidegym.visibility import visible  # noqa: E402

MORE = (
    "Empty-Random-6x6 Empty-16x16 LavaGapS5 LavaCrossingS9N2 LavaCrossingS11N5 "
    "SimpleCrossingS11N5 DoorKey-16x16"
).split()


def parity(name, seeds, **kwargs):
    "Wrapper, engine and MiniGrid side by side until each episode ends; steps compared."
    env_id = f"MiniGrid-{name}-v0"
    bare = [gym.make(env_id, **kwargs).unwrapped for _ in range(seeds)]
    ours = [AbideGymWrapper(gym.make(env_id, **kwargs), rules=[]) for _ in range(seeds)]
    batch = AbideVecEnv(
        seeds, env_id, reset_mode="minigrid", autoreset_mode="DISABLED", **kwargs
    )
    many, _ = batch.reset(seed=0)
    seen = [e.reset(seed=s)[0] for s, e in enumerate(bare)]
    also = [e.reset(seed=s)[0] for s, e in enumerate(ours)]
    rng, alive, steps = np.random.default_rng(seeds), set(range(seeds)), 0
    chance = np.array([[1 / 7] * 7, plain.BUSY])
    while alive:
        for i in alive:
            for k in ("image", "direction", "mission"):
                assert np.array_equal(seen[i][k], also[i][k]), (name, i, k)
                assert np.array_equal(seen[i][k], many[k][i]), (name, i, k)
        acts = np.array([rng.choice(7, p=chance[i % 2]) for i in range(seeds)])
        gone = sorted(set(range(seeds)) - alive)
        if gone:  # the caller restarts; these are not looked at again
            batch.reset(options={"reset_mask": np.isin(np.arange(seeds), gone)})
        many, reward, term, trunc, _ = batch.step(acts)
        for i in list(alive):
            seen[i], *want, _ = bare[i].step(int(acts[i]))
            also[i], *have, _ = ours[i].step(int(acts[i]))
            assert want == have == [reward[i], term[i], trunc[i]], (name, i)
            steps += 1
            if want[1] or want[2] or steps % 7 == 0:
                assert bare[i].hash() == ours[i].unwrapped.hash()
                left = (bare[i].step_count, bare[i].carrying is None)
                assert left == (ours[i].unwrapped.step_count,
                                ours[i].unwrapped.carrying is None)  # fmt: skip
            if want[1] or want[2]:
                assert np.array_equal(seen[i]["image"], many["image"][i])
                assert np.array_equal(seen[i]["image"], also[i]["image"])
                alive.remove(i)
    return steps


def test_without_rules_nothing_differs_from_minigrid():
    "Golden 1 in short episodes: 50 seeds of every task."
    steps = {name: parity(name, 50, max_steps=24) for name in TASKS}
    print("steps compared:", steps, sum(steps.values()))
    assert min(steps.values()) > 500 and sum(steps.values()) > 8_000


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*TASKS, *MORE}))
def test_without_rules_nothing_differs_until_the_episode_ends(name):
    "Golden 1 as the specification has it."
    steps = parity(name, 50)
    print(f"steps compared on {name}: {steps}")
    assert steps > 500


@pytest.mark.parametrize("view", [3, 5, 9])
def test_other_views_are_minigrids(view):
    assert parity("DoorKey-6x6", 6, max_steps=30, agent_view_size=view) > 100


def test_see_through_walls_is_minigrids():
    assert parity("DoorKey-6x6", 4, max_steps=30, see_through_walls=True) > 80


@pytest.mark.parametrize(
    "name",
    "MultiRoom-N2-S4 LockedRoom KeyCorridorS3R1 UnlockPickup BlockedUnlockPickup "
    "Dynamic-Obstacles-5x5 Fetch-5x5-N2 GoToDoor-5x5 PutNear-6x6-N2 MemoryS7 "
    "RedBlueDoors-6x6 Playground DistShift1 ObstructedMaze-1Dl".split(),
)
def test_other_tasks_are_exact_or_refused(name):
    "An engine that quietly plays another game is worse than none."
    try:
        AbideVecEnv(1, f"MiniGrid-{name}-v0", reset_mode="minigrid").close()
    except (ValueError, TypeError) as e:
        assert name.split("-")[0].lower() in str(e).lower(), e
        bare, ours = (gym.make(f"MiniGrid-{name}-v0") for _ in "ab")
        ours = AbideGymWrapper(ours, rules=[])
        for seed in range(2):
            assert_same = np.testing.assert_array_equal
            assert_same(
                bare.reset(seed=seed)[0]["image"], ours.reset(seed=seed)[0]["image"]
            )
            for a in plain.busy(30, seed):
                one, two = bare.step(int(a)), ours.step(int(a))
                assert_same(one[0]["image"], two[0]["image"])
                assert one[1:4] == two[1:4]
                if one[2] or one[3]:
                    break
    else:
        assert parity(name, 4, max_steps=60) > 40


@pytest.mark.parametrize("v", [3, 5, 7, 9])
def test_visible_cells_are_minigrids(v):
    "Golden 2: 2,000 random windows with walls, doors, keys and lava."
    rng = np.random.default_rng(v)
    clear = np.ones((2000, v, v), bool)
    want = np.zeros((2000, v, v), bool)
    for k in range(2000):
        grid = Grid(v, v)
        dense = rng.random() * 0.7
        for x in range(v):
            for y in range(v):
                if (x, y) == (v // 2, v - 1) or rng.random() > dense:
                    continue
                kind = rng.integers(5)
                door = Door("red", is_open=kind == 1, is_locked=rng.random() < 0.5)
                obj = (Wall(), door, door, Lava(), Key("blue"))[kind]
                grid.set(x, y, obj)
                clear[k, y, x] = obj.see_behind()
        want[k] = grid.process_vis((v // 2, v - 1)).T
    assert (~want).any() and not clear.all()
    assert np.array_equal(visible(clear), want)


ORACLE = {  # mean plan, mean to the door, longest plan, seed 0, its door, mean return
    5: (9.63, 5.18, 14, 11, 6, 0.9653),
    6: (12.28, 6.84, 19, 14, 8, 0.9693),
    8: (16.80, 9.42, 26, 17, 10, 0.9764),
    16: (33.40, 18.35, 60, 29, 16, 0.9883),
}


@pytest.mark.parametrize("n", ORACLE)
def test_oracle_numbers(n):
    "Golden 3: 300 seeds; in MiniGrid each plan earns exactly what it should."
    env = gym.make(f"MiniGrid-DoorKey-{n}x{n}-v0").unwrapped
    long, door, earned = [], [], []
    for seed in range(300):
        env.reset(seed=seed)
        state = State.from_env(env)
        steps, to_door = plan(state), plan(state, "door_open")
        if n < 16 or seed % 10 == 0:  # our own search agrees
            assert len(steps) == len(plain.shortest(env))
            assert len(to_door) == len(plain.shortest(env, "door_open"))
        assert verify(state, steps) and not verify(state, steps[:-1])
        for a in steps:
            _, reward, over, _, _ = env.step(int(a))
        assert over and reward == 1 - 0.9 * (len(steps) / (10 * n * n))
        long.append(len(steps))
        door.append(len(to_door))
        earned.append(reward)
    mean, first, most, seed0, door0, gain = ORACLE[n]
    assert round(np.mean(long), 2) == mean and round(np.mean(door), 2) == first
    assert (max(long), long[0], door[0]) == (most, seed0, door0)
    assert round(np.mean(earned), 4) == gain


def test_splitmix_has_the_published_outputs():
    "Golden 4, and the start of a stream from its four numbers."
    want = [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
        4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
    state = plain.Numbers(0)
    state.key = 1234567
    assert [state.at(i) for i in range(5)] == want
    for seed, env, episode, event in ((0, 0, 0, 0), (7, 3, 2, 1), (2**63, 1, 9, 2)):
        ours, mine = (f(seed, env, episode, event) for f in (Stream, plain.Numbers))
        assert [ours.bits() for _ in range(4)] == [mine.at(i) for i in range(4)]
        ours = Stream(seed, env, episode, event)
        sizes = [1, 2, 7, 2**31 - 1]
        assert [ours.below(n) for n in sizes] == [mine.below(n) for n in sizes]
    key = stream_key(np.arange(5), 3, 2, 1)
    got = stream_bits(key, 4).astype(np.uint64)
    assert [int(b) for b in got] == [plain.Numbers(s, 3, 2, 1).at(4) for s in range(5)]


def test_actions_and_rewards_in_float32_and_other_integers():
    "The engine takes integers of several widths and gives the same steps."
    runs = []
    for dtype in (np.int64, np.int32, np.uint8):
        env = AbideVecEnv(4, "MiniGrid-Empty-5x5-v0")
        env.reset(seed=1)
        acts = np.random.default_rng(0).integers(0, 3, (60, 4)).astype(dtype)
        runs.append(np.array([env.step(a)[1] for a in acts]))
    assert (runs[0] > 0).any()
    assert np.array_equal(runs[0], runs[1]) and np.array_equal(runs[0], runs[2])
