"What Gymnasium asks of AbideGym: checker, specs, vectors, wrappers on top (golden 13)."

import json
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import (
    RecordEpisodeStatistics,
    RecordVideo,
    TimeLimit,
    TransformReward,
)  # fmt: skip

minigrid = pytest.importorskip("minigrid")
pytest.importorskip("numba")

import abide_plain as plain  # noqa: E402
from minigrid.wrappers import (  # noqa: E402
    FlatObsWrapper,
    FullyObsWrapper,
    ImgObsWrapper,
    OneHotPartialObsWrapper,
    RGBImgPartialObsWrapper,
)  # fmt: skip

from rlpapers.abidegym import (  # noqa: E402
    AbideGymWrapper,
    AbideVecEnv,
    AtStep,
    MoveObject,
    Rekey,
    Resize,
    Rule,
    Stall,
    env_ids,
    register_ids,
)  # fmt: skip

IDS = env_ids()
SIX = "AbideGym-DoorKey-6x6-v0"
NEEDED = (
    ["AbideGym-DoorKey-{n}x{n}-v0", "AbideGym-DoorKey-{n}x{n}-{v}-v0"],
    (5, 6, 8, 16),
    "Static Rekey Resize Lock MoveKey MoveGoal Lava Remap Blackout Full".split(),
)


def test_ids_are_those_of_the_specification():
    names, sizes, variants = NEEDED
    want = {f.format(n=n, v=v) for f in names for n in sizes for v in variants}
    assert want <= set(IDS) and want <= set(gym.registry)
    for task in "Empty FourRooms LavaGapS7 SimpleCrossingS9N1 Unlock".split():
        assert {i for i in IDS if i.startswith(f"AbideGym-{task}")}
    assert len(IDS) == len(set(IDS)) and register_ids() == []


@pytest.mark.parametrize("env_id", IDS)
def test_checker_is_content(env_id):
    "Golden 13: warnings are errors; that a wrapper is none of the base is said of all."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*different from the unwrapped version"
        )
        env = gym.make(env_id)
        check_env(env, skip_render_check=True)
        for k in range(3):
            env.reset(seed=k)
            for a in plain.busy(12, k):
                *_, over, cut, _ = env.step(int(a))
                if over or cut:
                    break
        env.close()


def test_checker_renders(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for known in (".*different from the unwrapped version", "The system font"):
            warnings.filterwarnings("ignore", message=known)  # the font is MiniGrid's
        check_env(gym.make(SIX, render_mode="rgb_array"))


def trace(env, steps=50, seed=3):
    "All that an environment says."
    obs, info = env.reset(seed=seed)
    out = [obs["image"].tolist(), obs["direction"]]
    for a in np.random.default_rng(0).integers(0, 3, steps):
        obs, *rest, info = env.step(int(a))
        told = info["abide"]
        out += [obs["image"].tolist(), obs["direction"], *rest, obs["mission"],
                json.dumps(told["events"], default=str), told["n_events"]]  # fmt: skip
        if rest[1] or rest[2]:
            break
    return out


@pytest.mark.parametrize("env_id", IDS[::7] + ["AbideGym-DoorKey-6x6-Full-v0"])
def test_specs_make_the_same_environment(env_id):
    "Golden 13: the spec pickles, survives JSON and makes what it was made from."
    env = gym.make(env_id, max_events=2)
    want = trace(env)
    assert want[-1] <= 2
    for spec in (env.spec, pickle.loads(pickle.dumps(env.spec)),
                 EnvSpec.from_json(env.spec.to_json())):  # fmt: skip
        again = gym.make(spec)
        assert trace(again) == want
        assert again.spec.id == env_id


def test_specs_of_own_rules_too():
    rules = [Rule(Stall(5), MoveObject("goal")), Rule(AtStep(12), Resize(delta=2))]
    env = AbideGymWrapper(gym.make("MiniGrid-FourRooms-v0"), rules=rules, max_events=3)
    want = trace(env)
    assert want[-1] == 2
    spec = env.spec
    for s in (
        spec,
        pickle.loads(pickle.dumps(spec)),
        EnvSpec.from_json(spec.to_json()),
    ):
        assert trace(gym.make(s)) == want


def same(a, b):
    return all(np.array_equal(a[k], b[k]) for k in ("image", "direction", "mission"))


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("env_id", ["AbideGym-DoorKey-5x5-v0", "AbideGym-Unlock-v0"])
def test_three_ways_to_vectorize_are_equal(env_id, mode):
    "Golden 13: sync and vector_entry_point, trajectory for trajectory; all modes."
    n, kw = 3, dict(max_steps=30)
    their = gym.make_vec(env_id, n, vectorization_mode="sync",
                         vector_kwargs=dict(autoreset_mode=mode), **kw)  # fmt: skip
    ours = gym.make_vec(env_id, n, vectorization_mode="vector_entry_point",
                        reset_mode="minigrid", autoreset_mode=mode, **kw)  # fmt: skip
    assert ours.metadata["autoreset_mode"] == mode == their.metadata["autoreset_mode"]
    assert ours.single_observation_space == their.single_observation_space
    assert ours.action_space == their.action_space
    a, b = their.reset(seed=8)[0], ours.reset(seed=8)[0]
    assert same(a, b) and ours.observation_space.contains(b)
    rng, ends, met = np.random.default_rng(3), 0, 0
    for _ in range(100):
        act = rng.choice(7, n, p=plain.BUSY)
        x, y = their.step(act), ours.step(act)
        assert same(x[0], y[0])
        for i in (1, 2, 3):
            assert np.array_equal(x[i], y[i]) and x[i].dtype == y[i].dtype
        over = x[2] | x[3]
        ends += over.sum()
        told = y[4]["abide"]
        if mode == AutoresetMode.SAME_STEP and over.any():
            assert np.array_equal(x[4]["_final_obs"], y[4]["_final_obs"])
            assert np.array_equal(y[4]["_final_info"], over)
            for p, q in zip(
                x[4]["final_obs"][over], y[4]["final_obs"][over], strict=True
            ):
                assert np.array_equal(p["image"], q["image"])
            last = [
                y[4]["final_info"]["abide"]["n_events"][i] for i in np.flatnonzero(over)
            ]
            want = x[4]["final_info"]["abide"]["n_events"][over]
            assert list(want) == last
        elif not over.any() and "abide" in x[4]:
            have = x[4]["abide"]["_n_events"]
            assert np.array_equal(
                x[4]["abide"]["n_events"][have], told["n_events"][have]
            )
        met += int(told["event"].sum())
        if mode == AutoresetMode.DISABLED and over.any():
            opt = {"reset_mask": over}
            seeds = [int(s) for s in rng.integers(0, 99, n)]
            x, y = (e.reset(seed=seeds, options=dict(opt)) for e in (their, ours))
            assert same(x[0], y[0])
    assert ends > 6 and met > 3
    for e in (their, ours):
        e.close()


def test_async_is_equal_too():
    n, apart = 2, dict(shared_memory=False)  # MiniGrid's missions cannot be shared
    one = gym.make_vec(
        SIX, n, vectorization_mode="async", vector_kwargs=apart, max_steps=20
    )
    two = gym.make_vec(SIX, n, vectorization_mode="sync", max_steps=20)
    try:
        assert same(one.reset(seed=1)[0], two.reset(seed=1)[0])
        for _ in range(40):
            a, b = one.step(np.zeros(n, int)), two.step(np.zeros(n, int))
            assert same(a[0], b[0]) and np.array_equal(a[3], b[3])
    finally:
        one.close()
        two.close()


@pytest.mark.parametrize("env_id", [i for i in IDS if "8x8" in i or "DoorKey" not in i])
def test_the_engine_takes_an_id_or_says_why_not(env_id):
    "vector_entry_point: no id is quietly played by other rules."
    try:
        env = gym.make_vec(env_id, 2, vectorization_mode="vector_entry_point",
                           reset_mode="minigrid")  # fmt: skip
    except ValueError as e:
        assert "AbideGymWrapper" in str(e) or "wrapper" in str(e)
        return
    one = gym.make(env_id)
    env.reset(seed=4)
    one.reset(seed=4)
    for a in np.random.default_rng(0).integers(0, 3, 45):
        obs, _, over, cut, info = env.step(np.array([a, 0]))
        seen, _, ended, stopped, told = one.step(int(a))
        assert info["abide"]["n_events"][0] == told["abide"]["n_events"] or over[0]
        if ended or stopped:
            assert over[0] or cut[0]
            break
        assert np.array_equal(obs["image"][0], seen["image"])


def test_statistics_and_limits_on_top():
    "Golden 13: RecordEpisodeStatistics, TimeLimit, TransformReward."
    env = RecordEpisodeStatistics(TimeLimit(gym.make(SIX), 25))
    env.reset(seed=0)
    for t in range(1, 26):
        *_, cut, info = env.step(0)
        assert cut == (t == 25)
    assert info["episode"]["l"] == 25 and info["episode"]["r"] == 0
    assert info["abide"]["n_events"] == 1
    env = TransformReward(gym.make("AbideGym-Empty-Static-v0"), lambda r: 10 * r)
    env.reset(seed=0)
    out = [env.step(a) for a in [2] * 5 + [1] + [2] * 5]
    assert out[-1][2] and out[-1][1] == pytest.approx(10 * (1 - 0.9 * 11 / 256))
    vec = gym.wrappers.vector.RecordEpisodeStatistics(AbideVecEnv(4, max_steps=9))
    vec.reset(seed=0)
    for _ in range(9):
        *_, info = vec.step(np.zeros(4, int))
    got = info.get("episode") or info["final_info"]["episode"]
    assert list(got["l"]) == [9] * 4


@pytest.mark.parametrize("on_top", [
    FullyObsWrapper, ImgObsWrapper, FlatObsWrapper, OneHotPartialObsWrapper,
    RGBImgPartialObsWrapper,
])  # fmt: skip
def test_minigrids_observation_wrappers_on_top(on_top):
    "Golden 13; seeds pass through, the world on top is the world below."
    env, bare = on_top(gym.make(SIX)), on_top(gym.make("MiniGrid-DoorKey-6x6-v0"))
    (a, _), (b, _) = env.reset(seed=5), bare.reset(seed=5)
    images = lambda o: o["image"] if isinstance(o, dict) else o
    assert np.array_equal(images(a), images(b))
    assert env.observation_space == bare.observation_space
    met = 0
    for _ in range(20):
        obs, *_, info = env.step(0)
        plainly, *_ = bare.step(0)
        assert env.observation_space.contains(obs)
        if not met:
            met = info["abide"]["n_events"]
            same = np.array_equal(images(obs), images(plainly))
            assert same or met
    assert met == 1


def test_an_observation_wrapper_below_is_refused():
    for wrap in (ImgObsWrapper, FullyObsWrapper, FlatObsWrapper):
        with pytest.raises(ValueError, match=wrap.__name__):
            AbideGymWrapper(wrap(gym.make("MiniGrid-DoorKey-6x6-v0")))


def test_frames_of_events_have_a_border_and_a_lever():
    env = gym.make(SIX, render_mode="rgb_array_list")
    env.reset(seed=0)
    for _ in range(15):
        env.step(0)
    frames = env.render()
    border = [tuple(f[0, 0]) == (255, 140, 0) for f in frames]
    assert len(frames) == 16 and border.index(True) == 12 and sum(border) == 1
    assert not np.array_equal(frames[11][8:-8, 8:-8], frames[12][8:-8, 8:-8])
    env = plain.made("MiniGrid-DoorKey-6x6-v0", [Rule(AtStep(1), Rekey())],
                     render_mode="rgb_array")  # fmt: skip
    env.reset(seed=0)
    env.step(0)
    b = env.unwrapped
    ((x, y),) = [
        (x, y) for x in range(6) for y in range(6) if plain.is_switch(b.grid.get(x, y))
    ]
    tile = b.tile_size
    cut = lambda f: f[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile]
    env.step(0)
    before = cut(env.render()).copy()
    d, spot = next((d, (x - i, y - j)) for d, (i, j) in enumerate(plain.MOVES)
                   if b.grid.get(x - i, y - j) is None)  # fmt: skip
    b.agent_pos, b.agent_dir = spot, d
    env.step(5)
    assert not np.array_equal(before, cut(env.render())), (
        "a pressed lever looks pressed"
    )
    ball = gym.make("MiniGrid-DoorKey-6x6-v0", render_mode="rgb_array").unwrapped
    ball.reset(seed=0)
    ball.grid.set(x, y, minigrid.core.world_object.Ball(b.grid.get(x, y).color))
    assert not np.array_equal(before, cut(ball.render())), "a switch is not a ball"


def test_a_video_is_recorded(tmp_path):
    "Golden 13: a file where MoviePy is installed, else the frames that would be in it."
    try:
        import moviepy  # noqa: F401
    except ImportError:
        env = gym.make(SIX, render_mode="rgb_array_list")
        env.reset(seed=0)
        for _ in range(14):
            env.step(0)
        assert len({f.shape for f in env.render()}) == 1
        with pytest.raises(gym.error.DependencyNotInstalled, match="moviepy"):
            RecordVideo(gym.make(SIX, render_mode="rgb_array"), str(tmp_path))
        return
    env = RecordVideo(gym.make(SIX, render_mode="rgb_array"), str(tmp_path))
    env.reset(seed=0)
    for _ in range(14):
        env.step(0)
    env.close()
    (movie,) = tmp_path.glob("*.mp4")
    assert movie.stat().st_size > 1000


def test_import_is_light_and_registers():
    "Neither MiniGrid nor numba before something is made; the ids are there at once."
    code = """
import sys, gymnasium as gym, rlpapers.abidegym
print([m for m in ("minigrid", "numba", "pygame", "torch") if m in sys.modules])
print(len([i for i in gym.registry if i.startswith("AbideGym")]))
env = gym.make("AbideGym-DoorKey-5x5-v0")
env.reset(seed=0)
print("numba" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = out.stdout.split("\n")
    assert lines[:2] == ["[]", str(len(IDS))], out.stderr[-500:]
