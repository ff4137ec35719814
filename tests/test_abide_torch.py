"""The engines in tensors and in Triton against the numba engine, bit for bit."""

import importlib.util
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("minigrid")
import torch

from rlpapers.abidegym import torch_engine
from rlpapers.abidegym.changes import Rule
from rlpapers.abidegym.layouts import LevelBank
from rlpapers.abidegym.perturbations import Rekey
from rlpapers.abidegym.schedules import (
    AtStep,
    BeforeSubgoal,
    Deadline,
    Periodic,
    Pressure,
    Stall,
)
from rlpapers.abidegym.torch_engine import AbideTorchEnv
from rlpapers.abidegym.torch_training import torch_envs, torch_speed
from rlpapers.abidegym.training import TrainConfig, engine_envs, train
from rlpapers.core.paths import UserError
from rlpapers.rl.ppo import PPOConfig

ODDS = torch.tensor([0.15, 0.15, 0.3, 0.15, 0.05, 0.15, 0.05])


def rule(schedule, **options):
    return Rule(schedule, Rekey(**options))


def make(backend, short, n, rules=(), max_steps=60, **options):
    env_id = f"MiniGrid-{short}-v0"
    options = {"device": "cpu", "backend": backend, **options}
    if max_steps:
        options["max_steps"] = max_steps
    return AbideTorchEnv(n, env_id, rules, **options)


def draw(generator, n):
    return torch.multinomial(ODDS, n, replacement=True, generator=generator)


def same(a, b):
    "Two values, nested or not, are equal bit for bit."
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def walk(a, b, steps, seed=0):
    "Step two environments alike; number of changes, of skipped ones and of ends."
    generator = torch.Generator().manual_seed(seed)
    same(a.reset(seed=seed)[0], b.reset(seed=seed)[0])
    events = skipped = ends = 0
    for k in range(steps):
        action = draw(generator, a.num_envs)
        if k % 3:
            action = action.to(torch.int32 if k % 3 == 1 else torch.uint8)
        (obs, *got, info), (obs2, *got2, info2) = a.step(action), b.step(action)
        same((obs, got), (obs2, got2))
        for name in ("grid", "pose", "carry", "step", "name"):
            x, y = (getattr(env.engine.worlds, name).long() for env in (a, b))
            same(*((x & 0xFFFF, y & 0xFFFF) if name == "carry" else (x, y)))
        over = info["_final_obs"]
        same(over, info2["_final_obs"])
        pick = lambda x, over=over: {k: v[over] for k, v in x.items()}
        if isinstance(obs, dict):
            same(pick(info["final_obs"]), pick(info2["final_obs"]))
        else:
            same(info["final_obs"][over], info2["final_obs"][over])
        if a.rules:
            same(a.engine.memory.clone(), b.engine.memory.clone())
            same(info["abide"], info2["abide"])
            same(pick(info["final_info"]["abide"]), pick(info2["final_info"]["abide"]))
            events += int(info["abide"]["event"].sum())
            skipped += int(info["final_info"]["abide"]["skipped"][over].sum())
        ends += int(over.sum())
    return events, skipped, ends


FAMILIES = """DoorKey-5x5 DoorKey-16x16 Empty-Random-6x6 Empty-8x8 FourRooms LavaGapS6
SimpleCrossingS9N2 LavaCrossingS9N1 Unlock""".split()


@pytest.mark.parametrize("short", FAMILIES)
def test_every_family_without_rules(short):
    _, _, ends = walk(
        *(make(b, short, 48, max_steps=25) for b in ("numba", "torch")), 60
    )
    assert ends >= 90


RULES = {
    "stall": ("DoorKey-5x5", [rule(Stall(6))], 1),
    "stall twice": ("DoorKey-6x6", [rule(Stall(5, max_events=2))], 2),
    "before": ("DoorKey-8x8", [rule(BeforeSubgoal())], 1),
    "large": ("DoorKey-16x16", [rule(BeforeSubgoal())], 1),
    "sometimes": ("DoorKey-6x6", [rule(Pressure(0.5).with_prob(0.5), plate=True)], 1),
    "deadline": ("DoorKey-6x6", [rule(Deadline(9, "key_held"))], 1),
    "clock": ("DoorKey-5x5", [rule(AtStep(4)), rule(Periodic(9))], 3),
    "no switch": ("DoorKey-6x6", [rule(AtStep(4), switch=False), rule(AtStep(6))], 2),
    "unlock": ("Unlock", [rule(BeforeSubgoal())], 1),
    "unlock by plate": ("Unlock", [rule(Stall(9), plate=True)], 1),
}


@pytest.mark.parametrize("name", RULES)
def test_every_schedule(name):
    short, rules, most = RULES[name]
    options = {"rules": rules, "max_events": most, "obs_mode": "packed"}
    pair = [make(b, short, 48, **options) for b in ("numba", "torch")]
    events, _, ends = walk(*pair, 70)
    assert events > 20 and ends >= 48


@pytest.mark.parametrize("short", ["FourRooms", "Empty-8x8", "LavaGapS7"])
def test_a_change_of_the_lock_needs_a_lock(short):
    for backend in ("numba", "torch"):
        with pytest.raises(ValueError, match="Rekey needs a"):
            make(backend, short, 2, [rule(Stall(7))])


@pytest.mark.parametrize("mode", ["image", "packed", "onehot"])
def test_observations(mode):
    pair = [make(b, "DoorKey-6x6", 16, obs_mode=mode) for b in ("numba", "torch")]
    walk(*pair, 70)
    for env in pair:
        obs = env.reset(seed=1)[0]
        obs = obs if mode == "onehot" else obs["image"]
        space = env.observation_space
        space = space if mode == "onehot" else space["image"]
        assert space.contains(obs.numpy())


def test_trying_again_after_an_unsolvable_change():
    options = {"on_unsolvable": "retry_next_step", "max_tries": 2}
    pair = [
        make(b, "DoorKey-5x5", 48, [rule(AtStep(3))], **options)
        for b in ("numba", "torch")
    ]
    events, skipped, ends = walk(*pair, 130)
    assert events > 60 and skipped > events // 10 and ends > 48


def bank():
    return LevelBank.from_env("MiniGrid-DoorKey-6x6-v0", range(40), max_steps=50)


def test_a_bank_and_chosen_levels():
    levels = bank()
    pair = [
        make(b, "DoorKey-6x6", 16, [rule(Stall(8))], 0, reset_mode=levels)
        for b in ("numba", "torch")
    ]
    walk(*pair, 120)
    for env in pair:
        env.reset(seed=0, options={"levels": torch.arange(16)})
        for i in range(16):
            np.testing.assert_array_equal(
                env.engine.worlds.grid[i], levels.grid[i].ravel().view(np.int16)
            )
        with pytest.raises(ValueError, match="levels must lie in"):
            env.reset(options={"levels": [40] * 16})
    with pytest.raises(ValueError, match="needs a LevelBank"):
        make("torch", "DoorKey-6x6", 2).reset(options={"levels": [0, 0]})


def test_a_bank_beyond_the_solver_is_refused():
    levels = bank()
    levels.grid[7][levels.grid[7] == 1] = 6
    with pytest.raises(ValueError, match="level 7 is none; use AbideVecEnv"):
        make("torch", "", 2, [rule(Stall(8))], 0, reset_mode=levels)
    walk(*(make(b, "", 8, (), 0, reset_mode=levels) for b in ("numba", "torch")), 40)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_worlds_do_not_depend_on_their_number(backend):
    rules = [rule(Stall(7).with_prob(0.7))]
    envs = [make(backend, "DoorKey-6x6", n, rules) for n in (1, 3, 256)]
    for env in envs:
        env.reset(seed=11)
    generator = torch.Generator().manual_seed(4)
    for _ in range(80):
        action = draw(generator, 256)
        outs = [env.step(action[: env.num_envs]) for env in envs]
        for env, (obs, reward, term, trunc, info) in zip(envs, outs, strict=True):
            n = env.num_envs
            big, *rest, told = outs[-1]
            same(obs, {k: v[:n] for k, v in big.items()})
            same([reward, term, trunc], [x[:n] for x in rest])
            same(info["abide"], {k: v[:n] for k, v in told["abide"].items()})


def test_reset_again_by_mask_and_by_seeds():
    pair = [make(b, "DoorKey-6x6", 6, [rule(Stall(7))]) for b in ("numba", "torch")]
    mask = torch.tensor([True, False, True, False, False, False])
    first = pair[0].reset(seed=[3, 1, 4, 1, 5, 9])[0]["image"]
    same(first[1], first[3])
    again = pair[0].reset(options={"reset_mask": mask})[0]["image"]
    same(again[~mask], first[~mask])
    pair[1].reset(seed=[3, 1, 4, 1, 5, 9])
    same(pair[1].reset(options={"reset_mask": mask})[0]["image"], again)


def test_state_goes_from_one_engine_to_the_other():
    a, b = (make(x, "DoorKey-6x6", 16, [rule(Stall(7))]) for x in ("numba", "torch"))
    generator = torch.Generator().manual_seed(0)
    a.reset(seed=2)
    for _ in range(40):
        a.step(draw(generator, 16))
    state = {k: v.view(b._tensors()[k].shape) for k, v in a.state_dict().items()}
    b.load_state_dict({k: v for k, v in state.items()})
    for _ in range(60):
        action = draw(generator, 16)
        (obs, *got, info), (obs2, *got2, info2) = a.step(action), b.step(action)
        same((obs, got, info["abide"]), (obs2, got2, info2["abide"]))
    with pytest.raises(ValueError, match="has shape"):
        make("torch", "DoorKey-6x6", 3, [rule(Stall(7))]).load_state_dict(state)


def test_actions_that_are_none():
    for backend in ("numba", "torch"):
        env = make(backend, "DoorKey-5x5", 2)
        with pytest.raises(Exception, match="call reset"):
            env.step(torch.zeros(2, dtype=torch.int64))
        env.reset(seed=0)
        z = torch.zeros
        wrong = (z(2), z(2, dtype=torch.int16), z(3, dtype=torch.int64), [0, 1], None)
        for actions in (*wrong, np.zeros(2, np.int64), z(2, dtype=torch.bool)):
            with pytest.raises(ValueError, match="actions must be"):
                env.step(actions)
        with pytest.raises(ValueError, match="must be on cpu, got them on meta"):
            env.step(z(2, dtype=torch.int64, device="meta"))
        for bad in (7, -1):
            with pytest.raises(ValueError, match=f"got {bad} for world 1"):
                env.step(torch.tensor([0, bad]))


def test_options_that_are_none():
    for options, text in (
        ({"backend": "cupy"}, "backend must be one of"),
        ({"obs_mode": "rgb"}, "obs_mode must be one of"),
        ({"notify": True}, "notify must be 'none' or 'flag'"),
        ({"obs_mode": "onehot", "notify": "flag"}, "obs_mode must be one of"),
        ({"reset_mode": "minigrid"}, "reset_mode must be 'native'"),
        ({"max_events": 0}, "max_events must be at least 1"),
        ({"on_unsolvable": "raise"}, "on_unsolvable must be"),
        ({"device": "meta"}, "device must be cpu or cuda"),
        ({"env_id": "MiniGrid-MultiRoom-N2-S4-v0"}, "use a LevelBank"),
    ):
        with pytest.raises(ValueError, match=text):
            AbideTorchEnv(2, **{"device": "cpu", **options})
    with pytest.raises(ValueError, match="the engine knows Rekey"):
        make("torch", "DoorKey-5x5", 2, [rule(Stall(7) | AtStep(3))])
    env = make("torch", "DoorKey-5x5", 2)
    for seed in ([1, 2, 3], "x"):
        with pytest.raises(ValueError):
            env.reset(seed=seed)


def test_a_card_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="use device='cpu'"):
        AbideTorchEnv(2)
    assert make("auto", "DoorKey-5x5", 2).backend == "numba"


def test_without_triton_there_is_one_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    torch_engine._say_once.cache_clear()
    task, cuda = make("torch", "DoorKey-5x5", 1).task, torch.device("cuda")
    with pytest.warns(UserWarning, match="triton is not installed"):
        assert torch_engine._choose("auto", cuda, task, None) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch_engine._choose("auto", cuda, task, None) == "torch"
    with pytest.raises(UserError, match="backend 'triton' is not there"):
        torch_engine._choose("triton", cuda, task, None)


def test_importing_needs_neither_numba_nor_triton():
    code = "import sys, rlpapers.abidegym.torch_training\n"
    code += "print([m for m in ('numba', 'minigrid', 'triton') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


def test_training_is_the_same_in_both():
    config = TrainConfig(frames=768, envs=8, regime="notify", eval_episodes=0)
    config = TrainConfig(**{**vars(config), "ppo": PPOConfig(steps=48, minibatch=128)})
    other = lambda c, r: torch_envs(c, r, backend="torch")
    results = [train(config, envs=envs) for envs in (engine_envs, torch_envs, other)]
    for result in results[1:]:
        for x, y in zip(
            results[0].model.parameters(), result.model.parameters(), strict=True
        ):
            same(x, y)


def test_training_on_tensors_can_be_stopped_and_continued(tmp_path):
    ppo = PPOConfig(steps=32, minibatch=128)
    config = lambda frames: TrainConfig(
        frames=512, envs=8, eval_every=256, eval_episodes=0, ppo=ppo
    )
    envs = lambda c, r: torch_envs(c, r, backend="torch")
    whole = train(config(512), envs=envs)
    path, calls = tmp_path / "state", []

    def stop(_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(512), envs=envs, checkpoint=path, log=stop)
    rest = train(config(512), envs=envs, checkpoint=path, resume=True)
    for x, y in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        same(x, y)


def test_level_replay_keeps_to_the_host():
    with pytest.raises(ValueError, match="use engine_envs"):
        train(TrainConfig(frames=64, envs=4, regime="plr"), envs=torch_envs)


def test_speed_is_a_rate():
    assert torch_speed(make("torch", "Empty-8x8", 64), 5, warmup=1) > 100


@pytest.mark.slow
def test_a_million_steps():
    rules = [rule(BeforeSubgoal().with_prob(0.5)), rule(Stall(16))]
    for short in ("DoorKey-6x6", "DoorKey-8x8"):
        options = {"rules": rules, "max_events": 2, "max_steps": 120}
        pair = [make(b, short, 1024, **options) for b in ("numba", "torch")]
        events, _, ends = walk(*pair, 500)
        assert events > 1000 and ends > 1000


INTERPRETED = """
import sys
sys.path.insert(0, "tests")
from test_abide_torch import *
for short, rules, mode in (
    ("DoorKey-8x8", [], "packed"),
    ("Unlock", [rule(Stall(9))], "packed"),
    ("DoorKey-5x5", [rule(Stall(5), plate=True)], "onehot"),
    ("Empty-Random-6x6", [], "image"),
    ("Empty-5x5", [], "image"),
    ("LavaGapS5", [], "image"),
):
    options = dict(rules=rules, max_steps=40, obs_mode=mode)
    pair = [make(b, short, 24, **options) for b in ("numba", "triton")]
    print(short, walk(*pair, 60))
pair = [make(b, "", 16, [], 0, reset_mode=bank()) for b in ("numba", "triton")]
print("bank", walk(*pair, 60))
print("done")
"""

CHANGES = """
import sys
sys.path.insert(0, "tests")
from test_abide_torch import *
total = 0
for short, rules, steps, more in (
    ("DoorKey-5x5", [rule(BeforeSubgoal())], 22, {}),
    ("DoorKey-8x8", [rule(BeforeSubgoal())], 8, {"max_steps": 40}),
    ("DoorKey-5x5", [rule(AtStep(2)), rule(Periodic(5), plate=True)], 20, {}),
    ("DoorKey-6x6", [rule(Deadline(2, "key_held"), switch=False)], 6, {}),
    ("DoorKey-5x5", [rule(Pressure(0.5, "room_entered").with_prob(0.5))], 24, {}),
    ("DoorKey-5x5", [rule(BeforeSubgoal("goal"))], 22, {}),
    ("DoorKey-5x5", [rule(AtStep(3))], 8, {"on_unsolvable": "retry_next_step"}),
):
    options = {"rules": rules, "max_steps": 16, "max_events": 2, "max_tries": 4, **more}
    pair = [make(b, short, 8, **options) for b in ("numba", "triton")]
    assert pair[1].engine.fused
    result = walk(*pair, steps)
    total += result[0]
    print(short, rules[0].schedule, result, flush=True)
assert total > 20
print("done")
"""


@pytest.mark.peer
@pytest.mark.parametrize("program", [INTERPRETED, CHANGES], ids=["steps", "changes"])
def test_triton_kernels_in_the_interpreter(program):
    pytest.importorskip("triton")
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    out = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True
    )
    assert out.stdout.strip().endswith("done"), out.stdout + out.stderr[-3000:]


@pytest.mark.peer
def test_triton_kernels_compile_for_a_card_that_is_not_there():
    pytest.importorskip("triton")
    from rlpapers.abidegym.triton_events import compile_events_for
    from rlpapers.abidegym.triton_kernels import compile_kernels_for

    sizes = compile_kernels_for(90) | compile_events_for(90)
    names = {name.split()[0] for name in sizes}
    assert names == {"act", "begin", "show", "note", "fire", "rearm"}
    assert all(n > 1000 for n in sizes.values())


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_on_a_card(backend):
    rules = [rule(BeforeSubgoal().with_prob(0.5))]
    a = make("numba", "DoorKey-8x8", 256, rules)
    b = make(backend, "DoorKey-8x8", 256, rules, device="cuda")
    generator = torch.Generator().manual_seed(0)
    same(a.reset(seed=0)[0], {k: v.cpu() for k, v in b.reset(seed=0)[0].items()})
    for _ in range(4000):
        action = draw(generator, 256)
        (obs, *got, info), (obs2, *got2, info2) = a.step(action), b.step(action.cuda())
        same(obs, {k: v.cpu() for k, v in obs2.items()})
        same(got, [x.cpu() for x in got2])
        same(info["abide"], {k: v.cpu() for k, v in info2["abide"].items()})
