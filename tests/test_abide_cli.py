"AbideGym from outside: the commands, the ids in a fresh process, films and windows."

import json
import subprocess
import sys
import types
from importlib import import_module

import gymnasium as gym
import numpy as np
import pytest
from toy import CLI
from tree import PYPROJECT, ROOT

pytest.importorskip("minigrid")
pytest.importorskip("numba")

from rlpapers.cli.app import main

ENV = "AbideGym-DoorKey-5x5-v0"
BORDER = (255, 140, 0)


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    "The command in an empty folder, without a display."
    made = CLI(ROOT, tmp_path_factory.mktemp("empty"))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        made.env.pop(name, None)
    return made


def test_help(cli):
    said = cli("abidegym", "--help")
    for command in "play replay eval train".split():
        assert f"  {command} " in said


def test_without_a_display(cli):
    assert "--text" in cli.refused("abidegym", "play")
    assert "goes with --text" in cli.refused("abidegym", "play", "--record", "a.gif")


def test_play_reads_letters_from_a_pipe(cli):
    p = subprocess.run(
        [sys.executable, "-c", "from rlpapers.cli.app import main; main()"]
        + f"abidegym play --text --env {ENV} --seed 1 --log log.json".split(),
        input="l l l l l l l l l l\nq\n",
        capture_output=True, text=True, cwd=cli.cwd, env=cli.env,
    )  # fmt: skip
    assert p.returncode == 0, p.stderr
    assert "step 10: Rekey" in p.stdout and "log of 10 steps" in p.stdout
    assert p.stdout.count("##########") == 4, "the first picture, and one a line"


def test_replay_says_where_a_log_differs(cli):
    flags = ("--env", ENV, "--seed", 1, "--actions", "l" * 14, "--log", "game.json")
    cli("abidegym", "play", *flags)
    assert "1 changes, 2 states as logged" in cli("abidegym", "replay", "game.json")
    log = json.loads((cli.cwd / "game.json").read_text())
    log["actions"][2] = 1
    (cli.cwd / "other.json").write_text(json.dumps(log))
    told = cli.refused("abidegym", "replay", "other.json")
    assert "step 10: the digest of the state" in told
    (cli.cwd / "none.json").write_text("{}")
    assert "no log of an episode" in cli.refused("abidegym", "replay", "none.json")


def test_replay_makes_nothing_unknown(cli):
    log = json.loads((cli.cwd / "log.json").read_text())
    log["spec"] = log["spec"].replace("rlpapers.abidegym.ids:make_env", "os:abort")
    (cli.cwd / "evil.json").write_text(json.dumps(log))
    told = cli.refused("abidegym", "replay", "evil.json")
    assert "wants its environment made by os:abort" in told


def test_eval_is_the_protocol(cli):
    from rlpapers.abidegym import FrozenPlanAgent, evaluate, vec_worlds

    flags = ("--agent", "frozen", "--env", ENV, "--episodes", 30, "--seed", 4)
    got = json.loads(cli("abidegym", "eval", *flags, "--json"))["numbers"]
    want = evaluate(FrozenPlanAgent(), vec_worlds(ENV), 30, 4).numbers()
    assert want["recovery_median"] == np.inf and got["recovery_median"] is None
    finite = {k: v for k, v in want.items() if np.isfinite(v)}
    assert {k: got[k] for k in finite} == pytest.approx(finite, rel=1e-12)
    table = cli("abidegym", "eval", *flags)
    assert f"success_perturbed{want['success_perturbed']:>12.3f}"[:17] in table


def test_trained_agent_is_evaluated(tmp_path, capsys):
    place, name = str(tmp_path / "there" / "agent"), "AbideGym-DoorKey-5x5-Static-v0"
    flags = f"--env {name} --frames 1024 --envs 8 --eval-episodes 0".split()
    train = ["abidegym", "train", place, "--regime", "static", *flags]
    assert main(train) == 0
    assert "next: rlpapers abidegym eval" in capsys.readouterr().out
    words = ["--agent", f"{place}.json", "--env", name, "--episodes", "5", "--json"]
    assert main(["abidegym", "eval", *words]) == 0
    numbers = json.loads(capsys.readouterr().out)["numbers"]
    assert numbers["events"] == 0 and numbers["static_regret"] == 0
    assert main(train) == 1
    assert "give --resume or another name" in capsys.readouterr().err
    assert main(["abidegym", "eval", "--agent", "nobody"]) == 1
    assert "no agent and no checkpoint 'nobody'" in capsys.readouterr().err


# Ids


def test_entry_point_needs_neither_minigrid_nor_numba():
    [(name, value)] = PYPROJECT["project"]["entry-points"]["gymnasium.envs"].items()
    assert name == "__root__", "so that the ids get no prefix"
    module, function = value.split(":")
    code = f"""
import sys
sys.modules["minigrid"] = sys.modules["numba"] = sys.modules["torch"] = None
import gymnasium
from {module} import {function}
print(len({function}()), len([i for i in gymnasium.registry if i[:8] == "AbideGym"]))
"""
    p = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert p.returncode == 0, p.stderr
    registered = import_module(module).env_ids()
    assert p.stdout.split()[1] == str(len(registered))


@pytest.mark.parametrize(
    "code",
    [
        "import rlpapers.abidegym; print(gym.make('{}').spec.id)",
        "print(gym.make('rlpapers.abidegym:{}').spec.id)",
    ],
)
def test_ids_in_a_fresh_process(code):
    code = "import gymnasium as gym; " + code.format(ENV)
    p = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert p.stdout.strip() == ENV, p.stderr


# Pictures


def borders(frames):
    return [tuple(f[0, 0]) == BORDER for f in frames]


def test_record_video(monkeypatch, tmp_path):
    "Gymnasium's recorder with a film maker that keeps the frames."
    films = []

    class Clip:
        def __init__(self, frames, fps):
            films.append((list(frames), fps))

        def write_videofile(self, path, logger=None):
            films[-1] += (path,)

    names = "moviepy moviepy.video moviepy.video.io moviepy.video.io.ImageSequenceClip"
    for name in names.split():
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[names.split()[-1]].ImageSequenceClip = Clip
    env = gym.make(f"rlpapers.abidegym:{ENV}", render_mode="rgb_array")
    env = gym.wrappers.RecordVideo(env, str(tmp_path / "film"), lambda episode: True)
    env.reset(seed=1)
    for _ in range(12):
        env.step(0)
    env.close()
    [(frames, fps, path)] = films
    assert len(frames) == 13 and fps == env.metadata["render_fps"]
    assert borders(frames) == [i == 10 for i in range(13)] and path.endswith(".mp4")


def test_windows(monkeypatch):
    "MiniGrid's own window, and Gymnasium's around the pictures."
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    name = f"rlpapers.abidegym:{ENV}"
    around = gym.wrappers.HumanRendering(gym.make(name, render_mode="rgb_array"))
    inside = gym.make(name, render_mode="human")
    seen = []
    for env, screen in ((around, "window"), (inside, "unwrapped.window")):
        env.reset(seed=1)
        marked = []
        for _ in range(12):
            env.step(0)
            surface = env
            for part in screen.split("."):
                surface = getattr(surface, part)
            shot = pygame.surfarray.array3d(surface)
            marked.append(bool((shot == np.array(BORDER)).all(-1).any()))
        seen.append(marked)
        env.close()
    assert seen == [[i == 9 for i in range(12)]] * 2
