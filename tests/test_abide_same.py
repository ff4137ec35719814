"The same worlds from every engine, for any batch and threads, as MiniGrid draws them."

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats

minigrid = pytest.importorskip("minigrid")
pytest.importorskip("numba")

import abide_plain as plain  # noqa: E402

from rlpapers.abidegym import (  # noqa: E402
    AbideGymWrapper,
    AbideVecEnv,
    AtStep,
    BeforeSubgoal,
    Bernoulli,
    Blackout,
    Clear,
    Deadline,
    Distractors,
    LevelBank,
    Loop,
    MoveObject,
    Near,
    Obstruct,
    OnEvent,
    Periodic,
    Pressure,
    Recolor,
    Rekey,
    RemapActions,
    Resize,
    Rule,
    SeeThrough,
    ShrinkView,
    Stall,
    State,
    Sticky,
    Task,
    ToggleDoor,
    Visited,
    plan,
)  # fmt: skip
from rlpapers.abidegym.layouts import draw_state  # noqa: E402

DOOR = "MiniGrid-DoorKey-{0}x{0}-v0"
SETS = {
    "stall": ([Rule(Stall(8, max_events=2), Rekey())], 3),
    "before": ([Rule(BeforeSubgoal(), Rekey())], 1),
    "some": ([Rule(BeforeSubgoal().with_prob(0.5), Rekey())], 1),
    "late": ([Rule(Deadline(9), Rekey()), Rule(Pressure(2.0), Rekey())], 2),
    "clock": ([Rule(AtStep(5), Rekey()), Rule(Periodic(11), Rekey())], 4),
    "plate": ([Rule(Stall(6), Rekey(plate=True))], 1),
    "room": (
        [
            Rule(AtStep(4), Resize(1, extend_time=False)),
            Rule(Stall(9), Resize(2, extend_time=False)),
        ], 2,
    ),
    "names": (
        [Rule(Stall(5, max_events=3), RemapActions()), Rule(AtStep(9), Sticky(0.3))], 3
    ),
    "views": (
        [
            Rule(AtStep(3), ShrinkView(5)), Rule(Periodic(7), Recolor()),
            Rule(AtStep(12), Blackout(0.4)), Rule(AtStep(16), SeeThrough()),
        ], 9,
    ),
    "things": (
        [
            Rule(Periodic(5), MoveObject("key")), Rule(AtStep(6), MoveObject("goal")),
            Rule(AtStep(8), MoveObject("door")), Rule(AtStep(11), Distractors(2)),
            Rule(AtStep(13), Obstruct("wall", 2)), Rule(Stall(9), Clear("wall")),
        ], 9,
    ),
    "doors": (
        [
            Rule(OnEvent("door_opened"), ToggleDoor("close")),
            Rule(OnEvent("key_picked") | Visited(0.3), ToggleDoor("lock")),
            Rule(Loop(5) & ~Near("door", 2), Obstruct("lava")),
            Rule(Bernoulli(0.1).after(AtStep(3)), ToggleDoor("unlock")),
        ], 9,
    ),
}  # fmt: skip


def world(state):
    "What can be compared of a state."
    return (state.grid.tolist(), tuple(map(int, state.pos)), int(state.dir),
            int(state.carry), int(state.step), int(state.max_steps))  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_engine_lives_the_life_of_the_wrapper(name):
    "Golden 11: event for event, cell for cell, over several episodes."
    rules, most = SETS[name]
    n, kw, env_id = 5, dict(max_steps=45), DOOR.format(6)
    batch = AbideVecEnv(n, env_id, rules, max_events=most, reset_mode="minigrid", **kw)
    envs = [
        AbideGymWrapper(gym.make(env_id, **kw), rules, max_events=most)
        for _ in range(n)
    ]
    batch.reset(seed=20)
    for i, e in enumerate(envs):
        e.reset(seed=20 + i)
    met, ends, opened, rng = 0, 0, 0, np.random.default_rng(1)
    for _ in range(150):
        acts = rng.choice(7, n, p=plain.BUSY)
        obs, reward, over, cut, info = batch.step(acts)
        for i, e in enumerate(envs):
            seen, *want, one = e.step(int(acts[i]))
            assert want == [reward[i], over[i], cut[i]]
            told, mine = one["abide"], info["abide"]
            if want[1] or want[2]:
                ends += 1
                mine = info["final_info"]["abide"]
                last = info["final_obs"][i]
                assert np.array_equal(last["image"], seen["image"])
                k = int(mine["strategy"][i])
                names = ("key", "switch", "other", "none")  # the last is -1
                assert names[k] == told["strategy"]
                opened += k >= 0
                seen, _ = e.reset()
            else:
                assert bool(mine["event"][i]) == bool(told["events"])
                assert mine["since_progress"][i] == told["since_progress"]
                assert world(batch.engine.state(i)) == world(State.from_env(e))
                met += len(told["events"])
                if told["events"]:
                    left = told["events"][-1]["oracle_remaining"]
                    assert mine["oracle_remaining"][i] == left
            assert mine["n_events"][i] == told["n_events"]
            assert np.array_equal(obs["image"][i], seen["image"])
    assert met > 8 and ends > 8 and opened > 0


def life(n, threads, steps=70, size=6, **kwargs):
    "Everything the first three worlds are told."
    rules = [Rule(BeforeSubgoal(), Rekey()), Rule(Stall(9), Rekey())]
    env = AbideVecEnv(n, DOOR.format(size), rules, max_events=2, threads=threads,
                      max_steps=40, **kwargs)  # fmt: skip
    m = min(3, n)
    obs, _ = env.reset(seed=4)
    out, met = [obs["image"][:m].copy()], 0
    acts = np.random.default_rng(2).choice(7, (steps, 1024), p=plain.BUSY)
    for a in acts:
        obs, *rest, info = env.step(a[:n])
        told = info["abide"]
        out += [obs["image"][:m].copy(), obs["direction"][:m].copy()]
        out += [np.array(x[:m]) for x in rest]
        out += [np.array(v[:m]) for k, v in sorted(told.items()) if k[0] != "_"]
        met += int(told["event"][:m].sum())
    env.close()
    return out, met


def test_batch_and_threads_change_nothing():
    "Golden 11: threads 1, 2, 7 and N = 1, 3, 1024."
    want, met = life(3, 1)
    assert met >= 3
    for n, threads in ((3, 2), (3, 7), (1024, 1), (1024, 2), (1024, 7), (1, 1), (1, 7)):
        got, _ = life(n, threads)
        m = min(n, 3)
        for a, b in zip(want, got, strict=True):
            assert np.array_equal(a[:m], b), (n, threads)


def test_batch_changes_nothing_with_minigrids_layouts():
    want, _ = life(3, 1, 50, 5, reset_mode="minigrid")
    for n, threads in ((1, 2), (40, 7)):
        got, _ = life(n, threads, 50, 5, reset_mode="minigrid")
        m = min(n, 3)
        for a, b in zip(want, got, strict=True):
            assert np.array_equal(a[:m], b)


def test_same_seed_same_life_other_seed_another():
    "A seed is heard by layout and changes; without one the episodes go on."

    def run(seed):
        env = AbideVecEnv(8, DOOR.format(6), [Rule(Stall(5), Rekey())])
        env.reset(seed=seed)
        out = [env.step(np.zeros(8, int))[0]["image"].copy() for _ in range(8)]
        return np.array(out), env

    (a, env), (b, _), (c, _) = run(1), run(1), run(2)
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    again, _ = env.reset()
    first, _ = env.reset(seed=1)
    assert not np.array_equal(again["image"], first["image"])
    one, two = (plain.made(DOOR.format(6), [Rule(AtStep(2), Rekey())]) for _ in "ab")
    for seed in (3, None, None):
        logs = []
        for e in (one, two):
            plain.play(e, [0] * 4, seed)
            logs.append(e.log["events"])
        assert logs[0] == logs[1] and logs[0]
    assert one.log["episode"] == 2
    plain.play(one, [0] * 4, 3)
    assert one.log["episode"] == 0 and one.log["events"] != logs[0]


def test_worlds_of_other_numbers_differ():
    "The number of a world goes into its changes, and only there."
    choices, layouts = set(), set()
    for m in range(12):
        env = plain.made(DOOR.format(8), [Rule(AtStep(1), Rekey())], sub_env=m)
        env.reset(seed=0)
        layouts.add(env.unwrapped.hash())
        env.step(0)
        choices.add(str(env.log["events"][0]["edit"]["cells"]))
    assert len(layouts) == 1 and len(choices) > 8


def layouts(task, n, seed=0):
    "Many starts of the native generator: cells (n, H, W), column, row, direction."
    states = [draw_state(task, seed, env=i) for i in range(n)]
    grid = np.array([s.grid for s in states])
    pose = np.array([(*s.pos, s.dir) for s in states])
    return grid, pose


def theirs(env_id, n):
    env = gym.make(env_id).unwrapped
    grid, pose = [], []
    for seed in range(n):
        env.reset(seed=seed)
        s = State.from_env(env)
        grid.append(s.grid)
        pose.append((*s.pos, s.dir))
    return np.array(grid), np.array(pose)


def door_numbers(grid, pose):
    "Split column, door row, key cell, agent cell, direction of DoorKey layouts."
    kind = grid & 15
    n, _, w = kind.shape
    _, door_y, door_x = np.nonzero(kind == 4)
    _, key_y, key_x = np.nonzero(kind == 5)
    assert len(door_x) == len(key_x) == n and ((grid >> 7 & 3)[kind == 4] == 2).all()
    return {
        "split": door_x, "row": door_y, "key": key_y * w + key_x,
        "agent": pose[:, 1] * w + pose[:, 0], "direction": pose[:, 2],
    }  # fmt: skip


def exact(n):
    "Probabilities of DoorKey's numbers, from MiniGrid's source by hand."
    columns, rows = range(2, n - 2), range(1, n - 2)
    cells = np.zeros((n, n))
    for s in columns:  # the agent: any free cell left of the wall
        cells[1 : n - 1, 1:s] += 1 / len(columns) / ((s - 1) * (n - 2))
    return {
        "split": {s: 1 / len(columns) for s in columns},
        "row": {r: 1 / len(rows) for r in rows},
        "key": {i: p for i, p in enumerate(cells.ravel()) if p},
        "agent": {i: p for i, p in enumerate(cells.ravel()) if p},
        "direction": {d: 0.25 for d in range(4)},
    }


@pytest.mark.parametrize("n", [5, 6, 8])
def test_native_layouts_have_the_right_distribution(n):
    "Golden 12 against exact probabilities, 20,000 layouts."
    got = door_numbers(*layouts(Task.from_id(DOOR.format(n)), 20_000, seed=n))
    assert set(got["row"]) == set(range(1, n - 2)), "never in row n - 2"
    assert (got["key"] != got["agent"]).all()
    for name, probs in exact(n).items():
        values = np.array(sorted(probs))
        count = np.array([(got[name] == v).sum() for v in values])
        assert count.sum() == 20_000, name
        want = 20_000 * np.array([probs[v] for v in values])
        if len(values) > 1:
            assert stats.chisquare(count, want).pvalue > 1e-3, name
    for name in ("row split", "row agent", "direction agent"):  # independent
        a, b = (got[k] for k in name.split())
        table = stats.contingency.crosstab(a, b).count
        if min(table.shape) > 1:
            assert stats.chi2_contingency(table).pvalue > 1e-3, name


def two_samples(a, b, least=5):
    "p of the same distribution; rare values together."
    values = np.union1d(a, b)
    table = np.array([[(x == v).sum() for v in values] for x in (a, b)])
    rare = table.sum(0) * min(len(a), len(b)) / (len(a) + len(b)) < least
    if rare.any():
        table = np.c_[table[:, ~rare], table[:, rare].sum(1)]
    table = table[:, table.sum(0) > 0]
    return 1.0 if table.shape[1] < 2 else stats.chi2_contingency(table).pvalue


OTHERS = (
    "Empty-8x8 Empty-Random-6x6 FourRooms LavaGapS7 SimpleCrossingS9N1 "
    "LavaCrossingS9N2 SimpleCrossingS9N3 Unlock"
).split()


def same_family(name, many):
    env_id = f"MiniGrid-{name}-v0"
    (g, p), (h, q) = (
        layouts(Task.from_id(env_id), 3 * many, seed=1),
        theirs(env_id, many),
    )
    w = g.shape[2]
    tests = {"agent": (p[:, 1] * w + p[:, 0], q[:, 1] * w + q[:, 0]),
             "direction": (p[:, 2], q[:, 2])}  # fmt: skip
    for kind, what in (
        (2, "walls"),
        (9, "lava"),
        (4, "doors"),
        (5, "keys"),
        (8, "goal"),
    ):
        for axis, of in ((1, "column"), (2, "row")):
            a, b = (((x & 15) == kind).sum(axis) for x in (g, h))
            code = lambda x: np.unique(x, axis=0, return_inverse=True)[1].ravel()
            both = code(np.r_[a, b])
            tests[f"{what} by {of}"] = (both[: len(a)], both[len(a) :])
    colors = [np.where((x & 15) == 4, x >> 4 & 7, 0).max((1, 2)) for x in (g, h)]
    tests["colour of the door"] = tuple(colors)
    cells = [((x & 15) != 1).reshape(len(x), -1) for x in (g, h)]
    for name, (a, b) in tests.items():
        assert two_samples(a, b) > 1e-4, name
    rate, both = [c.mean(0) for c in cells], np.concatenate(cells).mean(0)
    spread = np.sqrt(both * (1 - both) * (1 / len(g) + 1 / len(h)))
    assert (np.abs(rate[0] - rate[1]) <= 5 * spread).all()  # each cell by itself


@pytest.mark.parametrize("name", OTHERS)
def test_native_layouts_are_those_of_minigrid(name):
    "Golden 12 for the other families, 400 of MiniGrid's layouts."
    same_family(name, 400)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OTHERS, "DoorKey-5x5", "DoorKey-6x6", "DoorKey-8x8"])
def test_native_layouts_are_those_of_minigrid_many(name):
    "Golden 12: 20,000 of MiniGrid's layouts of the door and key, 5,000 of the others."
    same_family(name, 20_000 if "DoorKey" in name else 5_000)


def test_every_native_layout_can_be_solved():
    for name in (*OTHERS, "DoorKey-16x16"):
        task = Task.from_id(f"MiniGrid-{name}-v0")
        for i in range(40):
            s = draw_state(task, 5, i)
            assert plan(s), (name, i)
            assert s.max_steps == task.max_steps


def test_layouts_of_the_engine_are_those_of_the_generator():
    "World m in episode q starts as `draw_state` says, also by a step's reset."
    env = AbideVecEnv(3, DOOR.format(5), max_steps=7)
    task = Task.from_id(DOOR.format(5), max_steps=7)
    env.reset(seed=11)
    for episode in range(3):
        got = [world(env.engine.state(i)) for i in range(3)]
        name = [tuple(map(int, r)) for r in env.engine.worlds.name]
        assert got == [world(draw_state(task, *r)) for r in name]
        assert len(set(name)) == 3 and {r[2] for r in name} == {episode}
        for _ in range(7):
            env.step(np.zeros(3, int))


def test_level_bank_gives_its_levels(tmp_path):
    bank = LevelBank.from_env(DOOR.format(6), [5, 9, 2])
    bank.save(tmp_path / "b.npz")
    again = LevelBank.load(tmp_path / "b.npz")
    bare = gym.make(DOOR.format(6)).unwrapped
    for i, seed in enumerate((5, 9, 2)):
        bare.reset(seed=seed)
        assert world(again.state(i)) == world(State.from_env(bare))
    env = AbideVecEnv(64, reset_mode=again)
    env.reset(seed=0)
    seen = {str(world(env.engine.state(i))) for i in range(64)}
    assert seen == {str(world(bank.state(i))) for i in range(3)}
