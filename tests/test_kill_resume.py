"""SIGKILL at random moments, then --resume: the same results, byte for byte.

The foundation's test, not a paper's: VRAIL's study at size smoke where it is there,
else the small paper of `toy.py`. The moments are spread over the duration of a whole
run and drawn from a fixed seed, which is printed.
"""

import random
import time

import pytest
from toy import CLI, ROOT, checkout, kill, results

from rlpapers.cli.runner import ended

KILLS, SEED = 10, 20250916


@pytest.fixture
def job(tmp_path):
    "The command line of an installation, and the words of a run."
    cwd = tmp_path / "work"
    cwd.mkdir()
    if list((ROOT / "nbs" / "vrail").glob("[0-9][0-9]_study.ipynb")):
        return CLI(ROOT, cwd), ("run", "vrail", "study", "--preset", "smoke", "--quiet")
    words = "run", "toy", "count", "--preset", "smoke", "--quiet"
    steps = "-p", "steps=100", "-p", "pause=0.03", "-p", "seeds=3"
    return CLI(checkout(tmp_path / "package"), cwd), (*words, *steps)


def test_ten_kills(job):
    cli, words = job
    start = time.monotonic()
    cli(*words, "--name", "whole")
    took = time.monotonic() - start
    base = next(cli.cwd.glob("_runs/*/*/smoke"))
    whole = results(base / "whole")
    assert {"result.json", "metrics.jsonl"} <= set(whole)
    assert complete(base / "whole")
    draw = random.Random(SEED)
    parts = [(i + draw.random()) / KILLS for i in range(KILLS)]  # of a run's duration
    kills, ends = [], 0
    for chain in (parts[0::2], parts[1::2]):  # early kills first, so that most strike
        fresh = True
        for i, part in enumerate(chain):
            name, start = f"k{ends}", time.monotonic()
            while not one_attempt(cli, words, name, part * took, i % 2 == 0):
                assert results(base / name) == whole  # it ended before its moment
                assert complete(base / name)
                took = min(took, time.monotonic() - start) if fresh else took
                ends, fresh = ends + 1, True
                name, start = f"k{ends}", time.monotonic()
            kills.append(round(part * took, 1))
            fresh = False
        cli(*words, "--name", f"k{ends}", "--resume")
        assert results(base / f"k{ends}") == whole
        assert complete(base / f"k{ends}")
        ends += 1
    assert len(kills) == KILLS
    print(f"\nseed {SEED}: killed after {kills} s, {ends} runs came to an end,")
    print(f"each equal to the run left alone; such a run takes {took:.1f} s")


def complete(folder) -> bool:
    "Whether the folder holds one executed notebook, run to its end."
    found = list(folder.glob("*.ipynb"))
    return len(found) == 1 and ended(found[0])


def one_attempt(cli, words, name, moment, everything) -> bool:
    "Go on with a run and kill it after a while; False when it was done by then."
    p = cli.start(*words, "--name", name, "--resume")
    try:
        err = p.communicate(timeout=moment)[1]
    except Exception:
        kill(p, everything)
        return True
    assert p.returncode == 0, err
    return False
