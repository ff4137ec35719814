"When changes come: the clock of progress, timeouts, sub-goals (goldens 7, 8, 16)."

import json
import math
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest

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
    ToggleDoor,
    Visited,
    plan,
    replay,
)  # fmt: skip
from rlpapers.abidegym.combinators import schedule  # noqa: E402
from rlpapers.abidegym.context import kind_of  # noqa: E402

DOOR8 = "MiniGrid-DoorKey-8x8-v0"


def events(env, actions, seed=0):
    "Steps of the changes of an episode."
    told = [i["abide"]["events"] for *_, i in plain.play(env, actions, seed)]
    return [e["step"] for step in told for e in step]


@pytest.mark.parametrize("timeout", [1, 7, 12])
@pytest.mark.parametrize("act", [(0,), (1,), (6,), (0, 6), (1, 6), (0, 0, 6, 6)])
def test_an_agent_that_turns_is_changed_at_the_timeout(timeout, act):
    "Golden 7: neither earlier nor later."
    for seed in range(4):
        env = plain.made(DOOR8, [Rule(Stall(timeout), Rekey())])
        assert events(env, [*act] * 40, seed) == [timeout]


def test_timeouts_start_again_and_are_counted():
    "Golden 7: re-armed after each change; both limits hold."
    goal = MoveObject("goal")
    cases = [
        (3, 9, [7, 14, 21]), (9, 2, [7, 14]), (1, 9, [7]), (9, 4, [7, 14, 21, 28]),
    ]  # fmt: skip
    for of_rule, of_env, want in cases:
        rules = [Rule(Stall(7, max_events=of_rule), goal)]
        env = plain.made(DOOR8, rules, max_events=of_env)
        assert events(env, [0] * 33) == want
        *_, info = plain.play(env, [0] * 33, 0)[-1]
        assert info["abide"]["n_events"] == len(want)
        assert info["abide"]["since_progress"] == 33 - want[-1]


def gaps(env, actions):
    "Longest time between two steps of progress, by our own search."
    longest = since = 0
    best, held, opened = plain.steps_left(env), False, False
    for a in actions:
        env.step(a)
        since += 1
        b = env.unwrapped
        now = plain.steps_left(env) if b.step_count < len(actions) else 0
        new = (b.carrying is not None and not held) or (not plain.shut(b) > opened)
        held, opened = held or b.carrying is not None, opened or not plain.shut(b)
        if new or (a > 1 and now < best):
            best, since = min(best, now), 0
        longest = max(longest, since)
    return longest


def test_the_oracle_is_left_alone():
    "Golden 7: by timeouts above its own longest pause, which is never long."
    for seed in range(25):
        bare = gym.make(DOOR8).unwrapped
        bare.reset(seed=seed)
        steps = plan(State.from_env(bare))
        longest = gaps(bare, steps)
        assert longest <= 4
        env = plain.made(DOOR8, [Rule(Stall(longest + 1), Rekey())])
        assert events(env, steps, seed) == []


def looks(b):
    "All of a world but where the agent looks."
    held = None if b.carrying is None else b.carrying.encode()
    return tuple(map(int, b.agent_pos)), b.grid.encode().tobytes(), held


def clock_of_plain(env, shown, actions, task="goal"):
    "Progress as section 3.3 defines it, kept beside the wrapper; steps compared."
    b = env.unwrapped
    best, since, reached = plain.steps_left(b, task), 0, set()
    for n, a in enumerate(actions):
        here, was = tuple(b.agent_pos), looks(b)
        pressed = a == 5 and kind_of(b.grid.get(*b.front_pos)) == "switch"
        *_, over, cut, info = env.step(int(a))
        if over or cut:
            return n
        since += 1
        doors = [o for o in b.grid.grid if o is not None and o.type == "door"]
        now = set(reached)
        if b.carrying is not None and b.carrying.type == "key":
            now.add("key")
        if any(d.is_open for d in doors):
            now.add("door")
        under = b.grid.get(*here)
        if under is not None and under.type == "door" and here != tuple(b.agent_pos):
            shown.setdefault("crossed", []).append(n)
        left = plain.steps_left(b, task)
        acted = pressed or looks(b) != was
        if now > reached or (acted and left < best):
            best, since, reached = min(best, left), 0, now
        if "crossed" in shown and "room" not in reached:
            return n  # the room is entered where the notebook says; not judged here
        if info["abide"]["events"]:
            best, since = left, 0
        assert info["abide"]["since_progress"] == since, (n, a)
    return len(actions)


def test_the_clock_is_that_of_the_specification():
    "Distances by our own search, on random histories with changes in them."
    steps = 0
    for seed in range(30):
        rules = [Rule(Stall(6, max_events=9), Rekey())]
        env = plain.made("MiniGrid-DoorKey-6x6-v0", rules, max_events=3)
        env.reset(seed=seed)
        steps += clock_of_plain(env, {}, plain.busy(60, seed))
    assert steps > 600


def first_time(size, seed):
    "The step `BeforeSubgoal` draws, by our own numbers and our own search."
    env = gym.make(f"MiniGrid-DoorKey-{size}x{size}-v0").unwrapped
    env.reset(seed=seed)
    L = len(plain.shortest(env, "door_open"))
    numbers = plain.Numbers(seed, 0, 0, plain.EPISODE)
    return None if L < 2 else 1 + ((numbers.at(0) * (L - 1)) >> 64)


@pytest.mark.parametrize("size", [5, 6, 8])
def test_before_subgoal_strikes_at_the_drawn_step(size):
    "Stream `EPISODE`, index 0 for the first part of the first rule."
    seen = set()
    for seed in range(60):
        want = first_time(size, seed)
        env = plain.made(f"MiniGrid-DoorKey-{size}x{size}-v0",
                         [Rule(BeforeSubgoal(), Rekey())])  # fmt: skip
        env.reset(seed=seed)
        steps = plan(State.from_env(env))
        got = None
        for a in steps:
            *_, over, _, info = env.step(a)
            told = info["abide"]
            if told["events"] or told["skipped"]:
                assert got is None and plain.shut(env)
                got = env.unwrapped.step_count
                if told["events"]:
                    break
        assert got == want
        seen.add(want)
    assert len(seen) > 4


@pytest.mark.parametrize("n", [5, 8])
def test_before_subgoal_never_misses_the_oracle(n):
    "Golden 8: 5,000 episodes of the oracle on the engine, no exception."
    rules = [Rule(BeforeSubgoal(), Rekey())]
    env = AbideVecEnv(
        2500, f"MiniGrid-DoorKey-{n}x{n}-v0", rules, autoreset_mode="DISABLED"
    )
    env.reset(seed=7)
    states = [env.engine.state(i) for i in range(2500)]
    ways = [plan(s) for s in states]
    doors = np.array([len(plan(s, "door_open")) for s in states])
    met = np.zeros(2500, bool)
    skipped = np.zeros(2500, bool)
    for t in range(1, doors.max()):
        acts = np.array([w[t - 1] if t <= len(w) else 6 for w in ways])
        acts[met | skipped | (t >= doors)] = 6
        _, _, over, _, info = env.step(acts)
        assert not over.any()
        now = info["abide"]["event"]
        for i in np.flatnonzero(now):
            g = env.engine.state(i).grid
            assert ((g & 15 == 4) & (g >> 7 & 3 == 2)).any() and t < doors[i]
        assert not (now & (met | skipped)).any()
        met |= now
        skipped |= info["abide"]["skipped"] > 0
    early = doors < 2  # no step before the door: nothing to draw from
    assert (met | skipped | early).all()
    assert skipped.mean() < (0.4 if n == 5 else 0.05) and met.mean() > 0.5


@pytest.mark.slow
def test_before_subgoal_never_misses_the_oracle_in_the_wrapper():
    "Golden 8 with MiniGrid's layouts: 5,000 episodes."
    env = plain.made("MiniGrid-DoorKey-6x6-v0", [Rule(BeforeSubgoal(), Rekey())])
    bad = 0
    for seed in range(5000):
        env.reset(seed=seed)
        L = len(plan(State.from_env(env), "door_open"))
        told = 0
        for a in plan(State.from_env(env)):
            *_, info = env.step(a)
            if info["abide"]["events"] or info["abide"]["skipped"]:
                assert plain.shut(env)
                told += 1
                break
        bad += told != 1 and L > 1
    assert bad == 0


def test_event_never_on_a_terminal_step():
    "Golden 16: a change due at the step that ends the episode does not come."
    for seed in range(10):
        env = plain.made("MiniGrid-DoorKey-6x6-v0")
        env.reset(seed=seed)
        steps = plan(State.from_env(env))
        for when in (len(steps), len(steps) - 1):
            rules = [Rule(AtStep(when), w) for w in (MoveObject("key"), Recolor())]
            env = plain.made("MiniGrid-DoorKey-6x6-v0", rules)
            out = plain.play(env, steps, seed)
            for _, over, cut, info in out:
                told = info["abide"]
                assert not (over or cut) or not (told["events"] or told["skipped"])
            assert out[-1][1] and (out[-1][3]["abide"]["n_events"] > 0) == (
                when < len(steps)
            )
    env = plain.made(
        "MiniGrid-DoorKey-6x6-v0", [Rule(AtStep(9), Recolor())], max_steps=9
    )
    out = plain.play(env, [0] * 20)
    assert out[-1][2] and not out[-1][3]["abide"]["events"]
    batch = AbideVecEnv(3, DOOR8, [Rule(AtStep(9), Rekey())], max_steps=9)
    batch.reset(seed=0)
    for _ in range(9):
        *_, cut, info = batch.step(np.zeros(3, int))
    assert cut.all() and not info["abide"]["event"].any()
    for name in ("n_events", "skipped"):
        assert not info["final_info"]["abide"][name].any()


def test_reward_of_the_step_of_a_change_is_untouched():
    "Golden 16: same rewards as bare MiniGrid up to and at the step of the change."
    for what in (Rekey(), Resize(2), Obstruct("lava", 2), MoveObject("goal")):
        for seed in range(5):
            env = plain.made("MiniGrid-DoorKey-6x6-v0", [Rule(AtStep(11), what)])
            bare = gym.make("MiniGrid-DoorKey-6x6-v0").unwrapped
            bare.reset(seed=seed)
            acts = plain.busy(11, seed)
            want = [bare.step(int(a))[1:4] for a in acts]
            assert [o[:3] for o in plain.play(env, acts, seed)] == want


def test_reward_after_growth_is_of_the_limit_then():
    env = plain.made("MiniGrid-Empty-6x6-v0", [Rule(AtStep(1), Resize(2))])
    env.reset(seed=0)
    limit = env.unwrapped.max_steps
    env.step(0)
    grown = limit + 10 * (64 - 36)
    assert env.unwrapped.max_steps == grown
    steps = plan(State.from_env(env))
    for a in steps:
        _, reward, over, *_ = env.step(a)
    assert over and reward == 1 - 0.9 * ((len(steps) + 1) / grown)


def test_schedules_by_hand():
    "Steps at which each schedule of section 3.3 fires for an agent that only turns."
    cases = [
        (AtStep(4), [4]), (Periodic(6), [6, 12, 18]), (Bernoulli(1.0), [1, 2, 3, 4]),
        (Bernoulli(0.0), []), (Deadline(5), [5]),
        (~AtStep(1) & AtStep(3), [3]), (AtStep(3) | AtStep(5), [3, 5]),
        (AtStep(5).after(AtStep(3)), [5]), (AtStep(3).after(AtStep(5)), []),
        (Periodic(4).after(AtStep(9)), [12, 16, 20]), (Periodic(4).with_prob(0), []),
        (Periodic(9).with_prob(1), [9, 18]), (Visited(1.0), []), (Loop(4), [8]),
    ]  # fmt: skip
    for when, want in cases:
        env = plain.made(DOOR8, [Rule(when, Recolor())], max_events=4)
        got = events(env, [0] * 20)
        assert got == want, (when, got)


def test_deadline_pressure_and_happenings():
    "Late agents are struck, early ones are not; a happening strikes when it happens."
    bare = gym.make(DOOR8).unwrapped
    for seed in range(6):
        bare.reset(seed=seed)
        way = plan(State.from_env(bare))
        L = len(plain.shortest(bare, "door_open"))
        for rho in (0.25, 0.5, 1, 1.1, 1.5):
            T = max(1, math.ceil(Fraction(str(rho)) * L))
            rules = [Rule(Pressure(rho), Recolor())]
            assert events(plain.made(DOOR8, rules), [0] * 60, seed) == [T]
            hit = events(plain.made(DOOR8, rules), way, seed)
            assert hit == ([T] if T < L else []), (rho, L)
        picked = way.index(3) + 1
        for rule, want in (
            (OnEvent("key_picked"), picked), (OnEvent("door_opened"), L),
            (Deadline(picked + 1, "key_held"), None),
            (Deadline(picked - 1, "key_held"), picked - 1),
        ):  # fmt: skip
            env = plain.made(DOOR8, [Rule(rule, Recolor())])
            assert events(env, way, seed) == ([] if want is None else [want]), rule


def test_before_subgoal_is_over_once_it_is_reached():
    "As a part of another condition it does not hold with the door open."
    hits = {"door_opened": 0, "key_picked": 0}
    for seed in range(12):
        for other in hits:
            env = plain.made(DOOR8, [Rule(BeforeSubgoal() & OnEvent(other), Recolor())])
            env.reset(seed=seed)
            hits[other] += len(events(env, plan(State.from_env(env)), seed))
    assert hits["door_opened"] == 0 < hits["key_picked"]


def test_near_and_visited():
    env = plain.made("MiniGrid-Empty-6x6-v0", [Rule(Near("goal", 2), Recolor())])
    assert events(env, [2, 2, 2, 1, 2, 2, 2]) == [5]
    for share, want in ((0.125, [1]), (0.25, [3]), (0.375, [6])):
        env = plain.made("MiniGrid-Empty-6x6-v0", [Rule(Visited(share), Recolor())])
        assert events(env, [2, 2, 2, 1, 2, 2]) == want  # 16 cells, one at the start


def test_with_prob_is_drawn_once_an_episode():
    "A share p of the episodes, and those are struck every time."
    env = plain.made(
        DOOR8, [Rule(Periodic(2).with_prob(0.3), MoveObject("key"))], max_events=9
    )
    told = [[i["abide"] for *_, i in plain.play(env, [0] * 10, s)] for s in range(200)]
    counts = [sum(len(t["events"] + t["skipped"]) for t in one) for one in told]
    assert set(counts) == {0, 5}
    share = np.mean(np.array(counts) > 0)
    assert abs(share - 0.3) < 4 * np.sqrt(0.21 / 200)


RULES = [
    Rule(Stall(20).with_prob(0.5), Rekey()), Rule(Deadline(40), Resize(delta=2)),
    Rule(BeforeSubgoal() & ~Near("door", 2), ToggleDoor("unlock")),
    Rule(Pressure(0.5).after(OnEvent("key_picked")), MoveObject("key")),
    Rule(AtStep(3) | Periodic(5), RemapActions((1, 0, 2, 3, 4, 5, 6))),
    Rule(Bernoulli(0.1), Sticky(0.2)), Rule(Visited(0.3), Clear("wall", 2)),
    Rule(Loop(6), Obstruct("lava", 2)), Rule(AtStep(9), Blackout(0.4)),
    Rule(AtStep(9), ShrinkView(5)), Rule(AtStep(9), Recolor((1, 0, 2, 3, 4, 5))),
    Rule(AtStep(9), SeeThrough(True)), Rule(AtStep(9), Distractors(3)),
    Rule(AtStep(2), Rekey(switch=False)), Rule(AtStep(2), Rekey(plate=True)),
    Rule(AtStep(2), Resize(size=9, mode="grow", extend_time=False)),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda r: repr(r)[:40])
def test_rules_survive_json(rule):
    "Golden 16."
    data = json.loads(json.dumps(rule.to_dict()))
    assert Rule.from_dict(data) == rule
    assert schedule(data["schedule"]) == rule.schedule
    changed = json.loads(json.dumps(data).replace("false", "0.123").replace("9", "8"))
    try:
        assert changed == data or Rule.from_dict(changed) != rule
    except (ValueError, TypeError):
        pass


@pytest.mark.parametrize("variant", ["Full", "Rekey", "Resize", "Remap", "Lava"])
def test_a_log_is_lived_again(variant):
    "Golden 16: the same hash at the end, after JSON, in a new process' terms."
    for seed in range(3):
        env = gym.make(f"AbideGym-DoorKey-6x6-{variant}-v0")
        env.reset(seed=seed)
        env.reset()  # the second episode of the seed
        for a in np.random.default_rng(seed).integers(0, 3, 40):
            *_, over, cut, info = env.step(int(a))
            if over or cut:
                break
        log = json.loads(json.dumps(env.get_wrapper_attr("log")))
        again = replay(log)
        assert again.unwrapped.hash() == env.unwrapped.hash()
        assert again.unwrapped.step_count == env.unwrapped.step_count
        assert info["abide"]["n_events"] > 0
        noticed = 0
        for act in range(7):  # another last action, unless it leads to the same state
            try:
                replay({**log, "actions": [*log["actions"][:-1], act]})
            except AssertionError:
                noticed += 1
        assert noticed > 0
        with pytest.raises(AssertionError):
            replay({**log, "actions": [0, 0, *log["actions"]]})


def test_after_a_reset_nothing_is_left():
    "Remap, size, view and clock are those of a new episode."
    env = gym.make("AbideGym-DoorKey-6x6-Full-v0")
    bare = gym.make("MiniGrid-DoorKey-6x6-v0")
    env.reset(seed=3)
    for a in np.random.default_rng(1).integers(0, 3, 60):
        env.step(int(a))
    env.reset(seed=4)
    bare.reset(seed=4)
    assert env.unwrapped.hash() == bare.unwrapped.hash()
    for a in (0, 2, 1, 3, 2):
        one, two = env.step(a), bare.step(a)
        assert np.array_equal(one[0]["image"], two[0]["image"]) and one[1:4] == two[1:4]
    assert env.unwrapped.max_steps == 360 and one[-1]["abide"]["n_events"] == 0


def test_engine_and_wrapper_take_part_in_the_same_episodes():
    "`with_prob` and `BeforeSubgoal` draw the same numbers in the engine."
    rules = [Rule(BeforeSubgoal().with_prob(0.5), Rekey())]
    n, env_id = 24, "MiniGrid-DoorKey-6x6-v0"
    batch = AbideVecEnv(n, env_id, rules, reset_mode="minigrid")
    batch.reset(seed=50)
    envs = [AbideGymWrapper(gym.make(env_id), rules) for _ in range(n)]
    for i, e in enumerate(envs):
        e.reset(seed=50 + i)
    hit = 0
    for _ in range(12):
        *_, info = batch.step(np.zeros(n, int))
        for i, e in enumerate(envs):
            one = e.step(0)[-1]["abide"]
            assert bool(info["abide"]["event"][i]) == bool(one["events"])
            assert info["abide"]["skipped"][i] >= len(one["skipped"])
            hit += len(one["events"])
            if one["events"]:
                assert (
                    batch.engine.state(i).grid.tolist()
                    == State.from_env(e).grid.tolist()
                )
    assert 3 < hit < 20
