"Bad input: what the specification's section 7 refuses, and how."

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
    Deadline,
    LevelBank,
    Loop,
    MoveObject,
    Near,
    Obstruct,
    OracleAgent,
    Periodic,
    Pressure,
    Rekey,
    RemapActions,
    Resize,
    Rule,
    ShrinkView,
    Stall,
    State,
    Sticky,
    Stream,
    ToggleDoor,
    UnsolvableError,
    Visited,
    evaluate,
    plan,
    replay,
)  # fmt: skip
from rlpapers.abidegym.ids import rules_of, variants  # noqa: E402

DOOR = "MiniGrid-DoorKey-6x6-v0"
REKEY = [Rule(Stall(9), Rekey())]


@pytest.fixture
def env():
    e = plain.made(DOOR, REKEY)
    e.reset(seed=0)
    return e


def test_step_before_reset():
    for e in (plain.made(DOOR), gym.make("AbideGym-DoorKey-6x6-v0"), AbideVecEnv(2)):
        with pytest.raises(gym.error.ResetNeeded):
            e.step(np.zeros(2, int) if isinstance(e, AbideVecEnv) else 0)


@pytest.mark.parametrize("bad, said", [
    (7, "7"), (-1, "-1"), (2.5, "2.5"), (float("nan"), "nan"), (None, "None"),
    ("2", "2"), (np.array([1, 2]), "1"), (1e9, "1"), (np.float32(1), "1"),
])  # fmt: skip
def test_wrapper_names_a_bad_action(env, bad, said):
    before = env.unwrapped.hash(), env.unwrapped.step_count
    with pytest.raises((ValueError, TypeError), match=said):
        env.step(bad)
    assert before == (env.unwrapped.hash(), env.unwrapped.step_count)
    env.step(np.int64(2))  # goes on


@pytest.mark.parametrize("bad, said", [
    ([0, 7, 0], "7.*1|1.*7"), ([0, 0, -1], "-1.*2|2.*-1"), ([0.0, 1.0, 2.0], "float"),
    ([0, np.nan, 0], "float|nan"), ([0, 1], "shape|3"), ([[0, 1, 2]], "shape|3"),
    (0, "shape|3"), (["a", "b", "c"], "action|int"), ([True, False, True], "bool"),
    ([None] * 3, "action|int"), (None, "action|int|shape"),
    (np.array([0, 2**40, 1]), str(2**40)), (np.zeros(3, complex), "complex"),
])  # fmt: skip
def test_engine_names_bad_actions(bad, said):
    "Nothing is quietly taken for `done`; no world has moved."
    batch = AbideVecEnv(3, DOOR, REKEY)
    batch.reset(seed=0)
    before = batch.engine.worlds.step.copy(), batch.engine.worlds.pose.copy()
    with pytest.raises(ValueError, match=said):
        batch.step(bad)
    assert np.array_equal(before[0], batch.engine.worlds.step)
    assert np.array_equal(before[1], batch.engine.worlds.pose)
    batch.step(np.array([1, 2, 0], np.uint8))


def test_integers_of_any_width_are_taken_without_a_copy():
    from rlpapers.abidegym.vectors import check_actions

    for dtype in (np.int64, np.int32, np.uint8):
        a = np.array([0, 6], dtype)
        assert check_actions(a, 2) is a or np.shares_memory(check_actions(a, 2), a)


def test_base_must_be_minigrid():
    for other in (gym.make("CartPole-v1"), gym.make("FrozenLake-v1")):
        with pytest.raises(TypeError, match="MiniGrid"):
            AbideGymWrapper(other)


@pytest.mark.parametrize("task, what, said", [
    ("Empty-8x8", Rekey(), "Rekey.*locked door|locked door.*Rekey"),
    ("FourRooms", Rekey(), "locked door"), ("LavaGapS7", Rekey(), "locked door"),
    ("Empty-8x8", ToggleDoor("lock"), "door"), ("Empty-8x8", MoveObject("key"), "key"),
    ("Unlock", MoveObject("goal"), "goal"),
])  # fmt: skip
def test_rules_that_cannot_apply(task, what, said):
    "A layout without a door under `Rekey`, and its like, in wrapper and engine."
    with pytest.raises(ValueError, match=said):
        AbideGymWrapper(gym.make(f"MiniGrid-{task}-v0"), [Rule(AtStep(3), what)])
    with pytest.raises(ValueError):
        e = AbideVecEnv(2, f"MiniGrid-{task}-v0", [Rule(AtStep(3), what)])
        e.reset(seed=0)


@pytest.mark.parametrize("make, said", [
    (lambda: Stall(0), "0"), (lambda: Stall(-3), "-3"), (lambda: Stall(2.5), "2.5"),
    (lambda: Stall(5, max_events=0), "0"), (lambda: Deadline(0), "0"),
    (lambda: Deadline(3, "fame"), "fame"), (lambda: Pressure(0), "0"),
    (lambda: Pressure(-1.0), "-1"), (lambda: Pressure(float("nan")), "nan"),
    (lambda: BeforeSubgoal("gaol"), "gaol.*goal"), (lambda: AtStep(0), "0"),
    (lambda: Periodic(0), "0"), (lambda: Bernoulli(1.5), "1.5"),
    (lambda: Bernoulli(float("nan")), "nan"), (lambda: Near("goat", 1), "goat.*goal"),
    (lambda: Near("goal", -1), "-1"), (lambda: Visited(1.2), "1.2"),
    (lambda: Loop(0), "0"), (lambda: Stall(5).with_prob(-0.1), "-0.1"),
    (lambda: RemapActions((0, 0, 1, 2, 3, 4, 5)), "0, 0"),
    (lambda: RemapActions((0, 1, 2)), "0, 1, 2"), (lambda: Sticky(2.0), "2.0"),
    (lambda: Blackout(-1), "-1"), (lambda: ShrinkView(4), "4"),
    (lambda: ShrinkView(1), "1"), (lambda: Obstruct("lava", 0), "0"),
    (lambda: Obstruct("goal"), "goal"), (lambda: MoveObject("wall"), "wall"),
    (lambda: ToggleDoor("bolt"), "bolt"), (lambda: Resize(0), "0"),
    (lambda: Resize(size=4), "4"), (lambda: Resize(size=99), "99"),
    (lambda: Resize(mode="melt"), "melt"), (lambda: Stream(0).below(0), "0"),
])  # fmt: skip
def test_parameters_out_of_range_are_named(make, said):
    with pytest.raises((ValueError, TypeError), match=said):
        make()


@pytest.mark.parametrize("kwargs, said", [
    (dict(max_events=0), "max_events.*0"), (dict(notify="shout"), "shout"),
    (dict(max_tries=0), "max_tries.*0"), (dict(on_unsolvable="weep"), "weep"),
    (dict(rules=[Stall(5)]), "Rule|rule"), (dict(rules=[Rekey()]), "Rule|rule"),
    (dict(rules=Rule(Stall(5), Rekey())), "rules|list|iter"),
    (dict(rules=[{"schedule": {"type": "Stal"}}]), "schedule|Stal"),
    (dict(sub_env=-1), "-1"),
])  # fmt: skip
def test_options_of_the_wrapper(kwargs, said):
    rules = kwargs.pop("rules", [])
    with pytest.raises((ValueError, TypeError), match=said):
        AbideGymWrapper(gym.make(DOOR), rules, **kwargs)


@pytest.mark.parametrize("kwargs, said", [
    (dict(num_envs=0), "num_envs.*0"), (dict(threads=-1), "threads.*-1"),
    (dict(obs_mode="text"), "text"), (dict(reset_mode="fast"), "fast"),
    (dict(autoreset_mode="never"), "never"), (dict(max_events=0), "max_events.*0"),
    (dict(env_id="CartPole-v1"), "CartPole|MiniGrid"),
    (dict(env_id="MiniGrid-DoorKee-6x6-v0"), "DoorKee"),
])  # fmt: skip
def test_options_of_the_engine(kwargs, said):
    with pytest.raises((ValueError, TypeError, gym.error.Error), match=said):
        AbideVecEnv(**({"num_envs": 2, "env_id": DOOR} | kwargs))


def test_engine_refuses_rules_it_does_not_know():
    "And says who knows them."
    from dataclasses import dataclass

    from rlpapers.abidegym.combinators import Schedule

    @dataclass(frozen=True)
    class Own(Schedule):
        def fires(self, ctx, place=0):
            return True

    with pytest.raises((ValueError, TypeError), match="AbideGymWrapper|Own"):
        AbideVecEnv(2, DOOR, [Rule(Own(), Rekey())]).reset(seed=0)


def test_seeds_of_a_batch():
    batch = AbideVecEnv(3, DOOR)
    with pytest.raises(ValueError, match="3"):
        batch.reset(seed=[1, 2])
    one = batch.reset(seed=[7, 8, 9])[0]["image"].copy()
    assert np.array_equal(one[1], batch.reset(seed=[8, 8, 1])[0]["image"][0])
    batch = AbideVecEnv(3, DOOR, reset_mode="minigrid")
    one = batch.reset(seed=[7, 8, 9])[0]["image"].copy()
    assert np.array_equal(one, batch.reset(seed=7)[0]["image"])
    with pytest.raises((ValueError, TypeError, gym.error.Error)):
        batch.reset(seed=1.5)


def test_what_cannot_be_solved_raises_when_asked_to():
    rule = [Rule(AtStep(2), Rekey(switch=False))]
    e = plain.made(DOOR, rule, on_unsolvable="raise")
    e.reset(seed=0)
    e.step(0)
    with pytest.raises(UnsolvableError, match="step 2.*unsolvable|unsolvable.*step 2"):
        e.step(0)
    e = plain.made(DOOR, rule, on_unsolvable="retry_next_step")
    e.reset(seed=0)
    told = [e.step(0)[-1]["abide"]["skipped"] for _ in range(4)]
    assert [len(t) for t in told] == [0, 1, 1, 1]


def test_max_tries_is_heard():
    "With one try some changes are given up that 32 tries find."
    counts = []
    for tries in (1, 32):
        e = plain.made(DOOR, [Rule(AtStep(1), Obstruct("wall", 3))], max_tries=tries)
        n = 0
        for seed in range(60):
            e.reset(seed=seed)
            n += len(e.step(6)[-1]["abide"]["events"])
        counts.append(n)
    assert counts[0] < counts[1]


def test_unknown_ids_and_variants():
    with pytest.raises(ValueError, match="did you mean"):
        rules_of("DoorKey-6x6", "Reky")
    with pytest.raises(ValueError, match="DoorKey-7x7"):
        variants("DoorKey-7x7")
    with pytest.raises(gym.error.Error):
        gym.make("AbideGym-DoorKey-7x7-v0")


def test_a_bank_that_is_none(tmp_path):
    path = tmp_path / "none.npz"
    with pytest.raises(FileNotFoundError):
        LevelBank.load(path)
    np.savez(path, a=1)
    with pytest.raises((ValueError, KeyError), match="none.npz|grid|task|bank"):
        LevelBank.load(path)
    with pytest.raises(ValueError):
        LevelBank.from_env(DOOR, [])


def test_planner_arguments():
    s = State.from_env(made_reset())
    with pytest.raises(ValueError, match="gaol"):
        plan(s, "gaol")


def made_reset():
    e = gym.make(DOOR)
    e.reset(seed=0)
    return e


def test_replay_needs_a_log_of_this_series():
    with pytest.raises((ValueError, KeyError, TypeError)):
        replay({})
    e = plain.made(DOOR, REKEY)
    plain.play(e, [0] * 12, 3)
    log = e.log
    with pytest.raises(AssertionError, match="step 9"):
        replay({**log, "seed": log["seed"] + 1})


def test_protocol_refuses_what_it_cannot_run():
    with pytest.raises((TypeError, ValueError), match="agent|callable|predict"):
        evaluate(3, DOOR, episodes=2)
    with pytest.raises(ValueError, match="episodes"):
        evaluate(OracleAgent(), DOOR, episodes=0)
    with pytest.raises((TypeError, ValueError)):
        evaluate(OracleAgent(), "CartPole-v1", episodes=1)


def test_notify_changes_what_is_observed_and_only_that():
    shapes = {}
    for how in ("none", "flag", "full"):
        e = plain.made(DOOR, REKEY, notify=how)
        obs, _ = e.reset(seed=0)
        assert e.observation_space.contains(obs)
        shapes[how] = set(obs)
        bits = []
        for _ in range(12):
            obs, *_, info = e.step(0)
            assert e.observation_space.contains(obs)
            bits.append(int(obs.get("changed", 0)))
        assert sum(bits) == (how == "flag") and (how != "flag" or bits[8] == 1)
        assert "state" not in info["abide"] or info["abide"]["state"] is None
    assert shapes["none"] == {"image", "direction", "mission"}
    assert (
        len(shapes["flag"] - shapes["none"])
        == len(shapes["full"] - shapes["none"])
        == 1
    )


def test_structured_state_is_the_truth():
    import json

    e, lengths = plain.made(DOOR, REKEY, structured=True), set()
    e.reset(seed=0)
    for t in range(1, 12):
        *_, info = e.step(1)
        s = info["abide"]["state"]
        b = e.unwrapped
        d = s.to_dict()
        assert json.loads(s.to_json()) == json.loads(json.dumps(d))
        assert (s.step, s.max_steps, tuple(s.size)) == (t, 360, (6, 6))
        assert (
            tuple(s.agent["pos"]) == tuple(b.agent_pos)
            and s.agent["dir"] == b.agent_dir
        )
        assert s.rule == ("key" if t < 9 else "switch")
        assert (s.switch is None) == (t < 9) and s.events_so_far == (t >= 9)
        assert s.oracle_remaining is None or s.oracle_remaining > 0
        door = b.grid.get(*s.door["pos"])
        assert door.type == "door" and door.color == s.door["color"]
        lengths.add((len(s.to_vector()), s.to_vector().dtype.name))
        assert np.isfinite(s.to_vector()).all()
        kinds = sorted(o["type"] for o in d["objects"])
        assert {"door", "goal", "key"} <= set(kinds) and len(kinds) == 3 + (t >= 9)
        assert s.to_graph().number_of_nodes() >= len(kinds)
    assert len(lengths) == 1 and lengths.pop()[1] == "float32"
    with pytest.raises(AttributeError):
        s.step = 3
