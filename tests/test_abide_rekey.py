"The change of rule by hand, and no change without a way out (goldens 5 and 6)."

import copy

import numpy as np
import pytest

minigrid = pytest.importorskip("minigrid")
pytest.importorskip("numba")

import abide_plain as plain  # noqa: E402
import gymnasium as gym  # noqa: E402
from hypothesis import HealthCheck, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from minigrid.core.grid import Grid  # noqa: E402
from minigrid.core.mission import MissionSpace  # noqa: E402
from minigrid.core.world_object import (  # noqa: E402
    Ball,
    Box,
    Door,
    Goal,
    Key,
    Lava,
    Wall,
)  # fmt: skip
from minigrid.minigrid_env import MiniGridEnv  # noqa: E402

from rlpapers.abidegym import (  # noqa: E402
    AbideGymWrapper,
    AtStep,
    BeforeSubgoal,
    Bernoulli,
    Blackout,
    Clear,
    Distractors,
    MoveObject,
    Obstruct,
    OnEvent,
    Recolor,
    Rekey,
    RemapActions,
    Resize,
    Rule,
    SeeThrough,
    ShrinkView,
    Stall,
    State,
    Stream,
    ToggleDoor,
    UnsolvableError,
)  # fmt: skip
from rlpapers.abidegym.changes import propose_solvable  # noqa: E402
from rlpapers.abidegym.context import Context  # noqa: E402
from rlpapers.abidegym.edits import make_switch  # noqa: E402

LEFT, RIGHT, GO, PICK, DROP, TOGGLE, DONE = range(7)


class Made(MiniGridEnv):
    "A world from a picture; `<>^v` the agent, k K keys, d D locked doors, G goal."

    def __init__(self, rows, max_steps=100, **kwargs):
        self.rows = rows
        super().__init__(
            mission_space=MissionSpace(mission_func=lambda: "go"),
            width=len(rows[0]), height=len(rows), max_steps=max_steps, **kwargs,
        )  # fmt: skip

    def _gen_grid(self, width, height):
        self.grid, self.mission = Grid(width, height), "go"
        things = {
            "#": Wall, "G": Goal, "~": Lava,
            "k": lambda: Key("yellow"), "K": lambda: Key("blue"),
            "d": lambda: Door("yellow", is_locked=True),
            "D": lambda: Door("blue", is_locked=True),
            "c": lambda: Door("red"), "o": lambda: Ball("green"),
            "b": lambda: Box("purple", Key("yellow")),
        }  # fmt: skip
        for y, row in enumerate(self.rows):
            for x, c in enumerate(row):
                if c in things:
                    self.grid.set(x, y, things[c]())
                elif c in ">v<^":
                    self.agent_pos, self.agent_dir = (x, y), ">v<^".index(c)


FIVE = ["#####", "#>#.#", "#kd.#", "#.#G#", "#####"]


def go(env, actions):
    "The last step's result."
    for a in actions:
        out = env.step(a)
    return out


def front(env):
    return env.unwrapped.grid.get(*env.unwrapped.front_pos)


def rekeyed(rows=FIVE, first=(), **kwargs):
    "A world in which `Rekey` strikes right after the given actions."
    rules = [Rule(AtStep(len(first) + 1), Rekey(**kwargs))]
    env = AbideGymWrapper(Made(rows), rules, certificate=True)
    env.reset(seed=0)
    info = go(env, [*first, DONE])[-1]["abide"]
    return env, info


def test_rekeyed_room_by_hand():
    "Golden 5: the key fits no more, the switch opens, the reward is exact."
    env, info = rekeyed(first=[RIGHT, PICK])  # the key is in hand, the agent at (1, 1)
    (event,) = info["events"]
    b = env.unwrapped
    door = b.grid.get(2, 2)
    switches = [
        (x, y) for x in range(5) for y in range(5) if plain.is_switch(b.grid.get(x, y))
    ]
    assert event["kind"] == "Rekey" and event["step"] == 3 and info["n_events"] == 1
    assert door.is_locked and door.color not in ("yellow",) and info["rule"] == "switch"
    assert b.grid.get(*switches[0]).color == door.color
    # (1, 2) would be in the way: there is only one cell before the door
    assert switches == [(1, 3)]
    go(env, [GO, LEFT])  # before the door, looking at it, yellow key in hand
    for _ in range(5):
        env.step(TOGGLE)
        assert door.is_locked and not door.is_open
    env.step(RIGHT)
    lever = front(env)
    assert plain.is_switch(lever) and lever.encode()[0] == 6  # a ball to the eye
    _, reward, over, cut, info = go(env, [PICK, GO])  # neither taken nor walked over
    assert front(env) is lever and (reward, over, cut) == (0, False, False)
    assert env.unwrapped.carrying.type == "key"
    before = info["abide"]["subgoals"]
    assert before["switch_pressed"] == -1 or before["switch_pressed"] is None
    env.step(TOGGLE)
    assert door.is_open and not door.is_locked
    *_, info = go(env, [LEFT, GO, GO, RIGHT])
    _, reward, over, cut, info = env.step(GO)
    t = 3 + 2 + 5 + 1 + 2 + 1 + 4 + 1
    assert over and not cut and reward == 1 - 0.9 * (t / 100)
    assert info["abide"]["strategy"] == "switch"


def test_key_still_does_what_keys_do():
    "Golden 5: the old key can be put down and taken again."
    env, _ = rekeyed(first=[RIGHT, PICK])
    assert env.unwrapped.carrying is not None
    go(env, [DROP])
    assert env.unwrapped.carrying is None and front(env).type == "key"
    go(env, [PICK])
    assert env.unwrapped.carrying.color == "yellow" and front(env) is None


def test_switch_can_only_be_toggled_facing_it():
    rows = ["#######", "#>..#.#", "#...d.#", "#k..#G#", "#######"]
    env, _ = rekeyed(rows)
    b = env.unwrapped
    ((x, y),) = [
        (x, y) for x in range(7) for y in range(5) if plain.is_switch(b.grid.get(x, y))
    ]
    for d, (i, j) in enumerate(plain.MOVES):  # back, left and right of it
        spot = (x - i, y - j)
        if b.grid.get(*spot) is not None:
            continue
        for turn in range(1, 4):
            b.agent_pos, b.agent_dir = spot, (d + turn) % 4
            if not (front(env) is not None and front(env).type == "key"):
                env.step(TOGGLE)
            assert plain.shut(env)


def test_event_shows_at_once_and_its_reward_is_minigrids():
    "The observation of the step of the event is that of the new world."
    for seed in range(6):
        env = plain.made("MiniGrid-DoorKey-6x6-v0", [Rule(AtStep(4), Rekey())])
        bare = gym.make("MiniGrid-DoorKey-6x6-v0").unwrapped
        env.reset(seed=seed)
        bare.reset(seed=seed)
        for a in plain.busy(4, seed):
            obs, *ours, info = env.step(int(a))
            old, *theirs, _ = bare.step(int(a))
            assert ours == theirs
        assert info["abide"]["events"]
        fresh = env.unwrapped.gen_obs()
        assert np.array_equal(obs["image"], fresh["image"])
        assert bare.hash() != env.unwrapped.hash()


def reference(env, seed):
    "The first solvable of 32 tries, by our own draws and our own search."
    numbers, b = plain.Numbers(seed), env.unwrapped
    for _ in range(32):
        got = plain.rekey_choices(b, numbers)
        if got is None:
            return None
        trial = copy.deepcopy(b)
        door, color, cell = got
        trial.grid.get(*door).color = color
        trial.grid.set(*cell, make_switch(color))
        way = plain.shortest(trial)
        if way is not None and len(way) <= b.max_steps - b.step_count:
            return door, color, cell, len(way)
    return None


@pytest.mark.parametrize("size, seeds", [(5, 60), (6, 40), (8, 15)])
def test_choices_are_those_of_the_specification(size, seeds):
    "Door, colour, cell and the oracle's steps, drawn and searched by our own means."
    met = 0
    for seed in range(seeds):
        when = 1 + seed % 5
        env = plain.made(
            f"MiniGrid-DoorKey-{size}x{size}-v0", [Rule(AtStep(when), Rekey())]
        )
        bare = gym.make(f"MiniGrid-DoorKey-{size}x{size}-v0").unwrapped
        env.reset(seed=seed)
        bare.reset(seed=seed)
        for a in plain.busy(when, seed):
            info = env.step(int(a))[-1]["abide"]
            bare.step(int(a))
        want = reference(bare, seed)
        if want is None:
            assert not info["events"] and info["skipped"]
            continue
        door, color, cell, left = want
        met += 1
        (event,) = info["events"]
        assert event["oracle_remaining"] == left
        assert env.unwrapped.grid.get(*door).color == color
        assert env.unwrapped.grid.get(*door).is_locked
        assert plain.is_switch(env.unwrapped.grid.get(*cell))
        assert env.unwrapped.grid.get(*cell).color == color
    assert met > seeds / 2


def random_world(rng):
    "Rooms with walls, lava, doors, keys, balls, a box and a goal, wherever they fall."
    w, h = rng.integers(5, 9, 2)
    rows = np.full((h, w), "#")
    rows[1:-1, 1:-1] = "."
    inner = [(y, x) for y in range(1, h - 1) for x in range(1, w - 1)]
    if w > 5 and rng.random() < 0.8:
        wall = int(rng.integers(2, w - 2))
        rows[1:-1, wall] = "#"
        rows[rng.integers(1, h - 1), wall] = rng.choice(list("ddDc"))
    free = [c for c in inner if rows[c] == "."]
    order = iter(rng.permutation(len(free)))
    pick = lambda: free[int(next(order))]
    rows[pick()], rows[pick()] = rng.choice(list("<>^v")), "G"
    for c in rng.choice(list("kkKo#~b"), min(int(rng.integers(0, 6)), len(free) - 3)):
        rows[pick()] = c
    return ["".join(r) for r in rows]


KINDS = [
    Rekey(), Rekey(plate=True), Rekey(switch=False),
    *(ToggleDoor(m) for m in ("lock", "unlock", "close", "open")),
    *(MoveObject(k) for k in ("goal", "key", "door")),
    *(Obstruct(k, 2) for k in ("wall", "lava", "ball")),
    Clear("wall", 1), Clear("lava"), Distractors(3), RemapActions(),
    Resize(2), Resize(1, mode="shrink"), Recolor(), ShrinkView(3), Blackout(0.5),
    SeeThrough(),
]  # fmt: skip


def applicable(env, kinds):
    "Rules that the wrapper takes for this world."
    out = []
    for k in kinds:
        try:
            AbideGymWrapper(copy.deepcopy(env), [Rule(AtStep(1), k)])
            out.append(k)
        except ValueError as e:
            assert "applicable" in str(e) or "no " in str(e) or "needs" in str(e), e
    return out


def solvability(number, most, length):
    "Live a random history; how many changes there were, each with a plan that works."
    rng = np.random.default_rng(number)
    rows = random_world(rng)
    env = Made(rows, max_steps=int(rng.integers(15, 90)))
    env.reset(seed=0)
    kinds = applicable(env, [KINDS[i] for i in rng.permutation(len(KINDS))[:4]])
    rules = [
        Rule(AtStep(int(rng.integers(1, 8))), k)
        if rng.random() < 0.5
        else Rule(Bernoulli(0.4), k)
        for k in kinds
    ]
    ours = AbideGymWrapper(env, rules, max_events=most, certificate=True)
    ours.reset(seed=number)
    for a in rng.choice(7, length, p=plain.BUSY):
        _, reward, over, cut, info = ours.step(int(a))
        told = info["abide"]
        assert not (told["events"] or told["skipped"]) or not (over or cut)
        for s in told["skipped"]:
            assert s["reason"] in ("unsolvable", "no_time", "not_applicable")
        if over or cut:
            break
        if told["events"] and told["n_events"] == most:
            (*_, event) = told["events"]
            assert event["oracle_remaining"] == len(event["plan"]) > 0
            b = ours.unwrapped
            assert len(event["plan"]) <= b.max_steps - b.step_count
            mine = plain.shortest(b) if event["kind"] != "RemapActions" else None
            if mine and few_things(b):
                assert len(event["plan"]) <= len(mine)
            for k, act in enumerate(event["plan"]):
                _, reward, over, cut, info = ours.step(act)
                assert over == (k == len(event["plan"]) - 1), (rows, event)
            assert reward > 0, (rows, event)
            break
    return told["n_events"]


def few_things(env):
    "Within what the planner is exact for: few doors, keys and things in the way."
    count = lambda f: sum(o is not None and f(o) for o in env.grid.grid)
    kind = lambda *names: count(lambda o: o.type in names)
    things = count(lambda o: o.can_pickup()) + (env.carrying is not None)
    return (
        kind("floor", "box") == 0
        and things <= 6
        and (kind("door") <= 2 and kind("key") <= 2 and count(plain.is_switch) <= 1)
    )


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**9), st.integers(1, 3), st.integers(3, 25))
@example(0, 1, 20)
def test_every_change_leaves_a_way(number, most, length):
    "Golden 6: random worlds, perturbations and histories; each plan works in MiniGrid."
    solvability(number, most, length)


def test_random_worlds_do_change():
    "The property above is not empty."
    assert sum(solvability(n, 1, 20) for n in range(60)) > 25


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**12), st.integers(1, 4), st.integers(1, 60))
def test_every_change_leaves_a_way_many(number, most, length):
    solvability(number, most, length)


def test_where_nothing_can_be_done_the_reason_is_told():
    "Golden 6: one cell before the door, so that no switch leaves the way free."
    rows = ["######", "#>d.G#", "######"]
    env = AbideGymWrapper(Made(rows), [Rule(AtStep(2), Rekey())], max_events=3)
    env.reset(seed=0)
    go(env, [DONE])
    before = State.from_env(env).digest()
    *_, info = env.step(DONE)
    assert not info["abide"]["events"] and info["abide"]["n_events"] == 0
    (skip,) = info["abide"]["skipped"]
    assert skip["reason"] in ("unsolvable", "not_applicable") and skip["step"] == 2
    assert env.unwrapped.hash() and State.from_env(env).digest() != before  # the clock
    assert plain.locked(env) and env.unwrapped.grid.get(2, 1).color == "yellow"
    blocked = [
        "#######",
        "#>.d.G#",
        "#######",
    ]  # a switch fits, and then is in the way?
    env = AbideGymWrapper(Made(blocked), [Rule(AtStep(1), Rekey())], certificate=True)
    env.reset(seed=0)
    *_, info = env.step(DONE)
    for event in info["abide"]["events"]:  # it can be opened from afar, not passed
        raise AssertionError(event)
    assert info["abide"]["skipped"][0]["reason"] == "unsolvable"
    with pytest.raises(UnsolvableError, match="Rekey"):
        env = AbideGymWrapper(
            Made(blocked), [Rule(AtStep(1), Rekey())], on_unsolvable="raise"
        )
        env.reset(seed=0)
        env.step(DONE)


@pytest.mark.parametrize("limit, step", [(6, 3), (20, 17)])
def test_no_time_is_told(limit, step):
    "A way that is shorter than an episode, and longer than what is left of it."
    env = AbideGymWrapper(Made(FIVE, max_steps=limit), [Rule(AtStep(step), Rekey())])
    env.reset(seed=0)
    *_, info = go(env, [DONE] * step)
    assert [s["reason"] for s in info["abide"]["skipped"]] == ["no_time"]


@pytest.mark.parametrize("mode", ["lock", "close"])
def test_doors_do_not_shut_on_the_agent(mode):
    "Golden 6: the agent stands in the doorway."
    rows = ["#####", "#k..#", "#>d.#", "#..G#", "#####"]
    env = AbideGymWrapper(Made(rows), [Rule(AtStep(4), ToggleDoor(mode))])
    env.reset(seed=0)
    *_, info = go(env, [LEFT, PICK, RIGHT])
    *_, info = env.step(TOGGLE)  # the change comes with this step, the door open
    assert bool(info["abide"]["events"]) == (
        env.unwrapped.grid.get(2, 2).is_open is False
    )
    env = AbideGymWrapper(
        Made(rows), [Rule(AtStep(5), ToggleDoor(mode)), Rule(AtStep(5), Rekey())]
    )
    env.reset(seed=0)
    *_, info = go(env, [LEFT, PICK, RIGHT, TOGGLE, GO])
    assert tuple(env.unwrapped.agent_pos) == (2, 2)
    assert not info["abide"]["events"]
    assert [s["reason"] for s in info["abide"]["skipped"]] == ["not_applicable"] * 2
    assert env.unwrapped.grid.get(2, 2).is_open
    _, reward, over, *_ = go(env, [GO, RIGHT, GO])
    assert over and reward > 0


def test_only_key_in_hand_when_the_door_is_rekeyed():
    "Golden 6: the key of the door is carried; its colour is not the new one either."
    colors = set()
    for seed in range(30):
        env = AbideGymWrapper(Made(FIVE), [Rule(AtStep(2), Rekey())], certificate=True)
        env.reset(seed=seed)
        *_, info = go(env, [RIGHT, PICK])
        (event,) = info["abide"]["events"]
        assert env.unwrapped.carrying.color == "yellow"
        colors.add(env.unwrapped.grid.get(2, 2).color)
        _, reward, over, *_ = go(env, event["plan"])
        assert over and reward == 1 - 0.9 * ((2 + len(event["plan"])) / 100)
    assert colors == {"red", "green", "blue", "purple", "grey"}


def test_a_second_key_keeps_its_door():
    "The new colour is of no key: with a blue one about, blue is never drawn."
    rows = ["######", "#>.#.#", "#k.d.#", "#K.#G#", "######"]
    colors = set()
    for seed in range(40):
        env = AbideGymWrapper(Made(rows), [Rule(AtStep(1), Rekey())])
        env.reset(seed=seed)
        env.step(DONE)
        colors.add(env.unwrapped.grid.get(3, 2).color)
    assert colors == {"red", "green", "purple", "grey"}


def test_key_dropped_before_the_door():
    "Golden 6: the key lies in the only cell before the door and has to be moved."
    rows = ["######", "#..#.#", "#>kd.#", "#..#G#", "######"]
    for seed in range(10):
        env = AbideGymWrapper(Made(rows), [Rule(AtStep(1), Rekey())], certificate=True)
        env.reset(seed=seed)
        *_, info = env.step(DONE)
        (event,) = info["abide"]["events"]
        assert PICK in event["plan"]
        _, reward, over, *_ = go(env, event["plan"])
        assert over and reward > 0


def test_the_goal_does_not_move_onto_the_agent_nor_lava_fall_on_it():
    env = Made(["#####", "#>..#", "#..G#", "#####"])
    env.reset(seed=0)
    cells = set()
    for what in (MoveObject("goal"), Obstruct("lava"), Obstruct("wall"), Distractors()):
        for seed in range(60):
            got = propose_solvable(what, Context(env), Stream(seed))
            for x, y, _, new in got.edit.cells if got.edit else ():
                assert new & 15 == 1 or (x, y) != (1, 1), what
                cells.add((x, y))
    assert len(cells) == 5


def test_a_plate_opens_where_it_is_walked_over_and_a_switch_does_not():
    "The opt-in variant of section 3.4."
    rows = ["#######", "#>.#..#", "#k.d..#", "#..#.G#", "#######"]
    opened = {}
    for plate in (False, True):
        env, _ = rekeyed(rows, plate=plate)
        b = env.unwrapped
        kind = (
            (lambda o: o is not None and o.type == "floor")
            if plate
            else plain.is_switch
        )
        ((x, y),) = [
            (x, y) for x in range(7) for y in range(5) if kind(b.grid.get(x, y))
        ]
        d, (i, j) = next(
            (d, m) for d, m in enumerate(plain.MOVES)
            if 1 <= x - m[0] <= 2 and 1 <= y - m[1] <= 3
            and b.grid.get(x - m[0], y - m[1]) is None
        )  # fmt: skip
        b.agent_pos, b.agent_dir = (x - i, y - j), d
        env.step(GO)
        opened[plate] = not plain.shut(env)
    assert opened == {False: False, True: True}


def test_two_doors_are_drawn_from():
    "Two locked doors: either may be the one, and the other keeps its lock."
    rows = ["#######", "#kd..D#", "#>#.G.#", "#K#####", "#######"]
    rows = ["#######", "#k.d.D#", "#>.#.G#", "#K.#..#", "#######"]
    seen = set()
    for seed in range(20):
        env = AbideGymWrapper(Made(rows), [Rule(AtStep(1), Rekey())])
        env.reset(seed=seed)
        *_, info = env.step(DONE)
        if info["abide"]["events"]:
            g = env.unwrapped.grid
            seen.add((g.get(3, 1).color != "yellow", g.get(5, 1).color != "blue"))
    assert seen <= {(True, False), (False, True)} and (True, False) in seen


@pytest.mark.parametrize("rule", [Rule(Stall(5), Rekey()),
                                  Rule(OnEvent("key_picked"), Rekey()),
                                  Rule(BeforeSubgoal(), Rekey())])  # fmt: skip
def test_after_any_schedule_the_key_is_useless(rule):
    "The certificate never uses the old key on the door: without the switch no way."
    for seed in range(8):
        env = plain.made("MiniGrid-DoorKey-6x6-v0", [rule])
        b = env.unwrapped
        for *_, info in plain.play(env, plain.busy(60, seed), seed):
            if info["abide"]["events"]:
                break
        else:
            continue
        if not info["abide"]["n_events"]:
            continue
        trial = copy.deepcopy(b)
        for x in range(6):
            for y in range(6):
                if plain.is_switch(trial.grid.get(x, y)):
                    trial.grid.set(x, y, None)
        if plain.shut(trial) and plain.locked(trial):
            assert plain.shortest(trial) is None


def test_a_switch_opens_the_doors_of_its_colour_only():
    "In MiniGrid and in the planner's world; every door of the colour."
    from rlpapers.abidegym import verify

    rows = ["#######", "#>.d..#", "#..#..#", "#.#D###", "#....G#", "#######"]
    for color, want in (("yellow", (True, False)), ("blue", (False, True))):
        env = Made(rows)
        env.reset(seed=0)
        env.grid.set(2, 1, make_switch(color))
        env.step(TOGGLE)
        assert (env.grid.get(3, 1).is_open, env.grid.get(3, 3).is_open) == want
        assert (env.grid.get(3, 1).is_locked, env.grid.get(3, 3).is_locked) == tuple(
            not w for w in want
        )
    env = Made(["########", "#>.d.dG#", "########"])
    env.reset(seed=0)
    env.grid.set(2, 1, make_switch("yellow"))
    env.step(TOGGLE)
    assert env.grid.get(3, 1).is_open and env.grid.get(5, 1).is_open
    assert not verify(State.from_env(env), [TOGGLE])
