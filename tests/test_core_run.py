"Runs: once, resume byte for byte, kills, locks, workers, folders and storing."

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import types
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers import core
from rlpapers.core import folder as folder_module
from rlpapers.core import parallel, paths
from rlpapers.core import run as run_module
from rlpapers.core import unit as unit_module
from rlpapers.core.folder import new_run_dir, store
from rlpapers.core.paths import RunError
from rlpapers.core.run import Resolved, Run, Unit

WORK = """
import os, sys, time
from pathlib import Path
import numpy as np
from rlpapers.core.params import P, Params
from rlpapers.core.run import Resolved, Run

class Study(Params):
    gamma: float = P(0.9, "discount", ge=0, le=1)
    steps: int = P(12, "steps", ge=1)
    pause: float = P(0.0, "seconds a step", ge=0)

PARAMS = {"study": Study}

def work(seed, steps, pause, unit):
    s = unit.load() or {"i": 0, "rng": np.random.default_rng(seed).bit_generator.state}
    rng = np.random.default_rng()
    rng.bit_generator.state = s["rng"]
    (unit.dir / ".pid").write_text(str(os.getpid()))
    for i in range(s["i"], steps):
        time.sleep(pause)
        unit.log(step=i, x=rng.random(), bad=float("nan"))
        if i % 3 == 2:
            unit.save({"i": i + 1, "rng": rng.bit_generator.state})
    return {"last": rng.random(), "w": rng.random(4), "pair": (seed, None)}

def main(folder, resume=False, jobs=2, pause=0.0, gamma=0.9):
    import pandas as pd
    # the pause is no parameter here: killed and whole runs must be the same run
    p = Study(gamma=gamma, seeds=4)
    run = Run(Resolved(p, {}, "smoke", "vrail", "study"), Path(folder), resume)
    seeds = range(p.seed, p.seed + p.seeds)
    args = {f"seed{s}": (s, p.steps, pause) for s in seeds}
    print("started", flush=True)
    rows = run.map(work, args, jobs)
    total = run.once("total", lambda: sum(r["last"] for r in rows.values()))
    run.log(total=total)
    run.result({"total": total, "nan": float("nan")})
    run.table(pd.DataFrame({"seed": seeds, "last": [r["last"] for r in rows.values()]}))
    run.arrays("weights", w=np.stack([r["w"] for r in rows.values()]))
    print(run.finish(), flush=True)
    return run

def environment(name):
    return os.environ.get(name)

def die(x):
    os.kill(os.getpid(), 9)

class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")

def odd(x):
    raise Odd("two", "parts")

def nap(x):
    if x == 0:
        raise ValueError("no zero")
    time.sleep(60)
"""
COMPARED = ("metrics.jsonl", "result.json", "result.csv", "weights.npz", "params.yaml")


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    "The module `work`, importable here and in workers."
    folder = tmp_path_factory.mktemp("work")
    (folder / "core_run_work.py").write_text(WORK)
    sys.path.insert(0, str(folder))
    import core_run_work

    yield core_run_work
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def whole(work, tmp_path_factory):
    "The files of a run that was left alone."
    folder = tmp_path_factory.mktemp("whole") / "run"
    work.main(folder, jobs=1)
    return contents(folder)


def everything(folder):
    files = (p for p in Path(folder).rglob("*") if p.is_file() and p.name != ".lock")
    return {p: p.read_bytes() for p in files}


def contents(folder):
    return {n: (Path(folder) / n).read_bytes() for n in COMPARED}


def spawn(work, folder, **kw):
    "`work.main` in a process of its own."
    call = ", ".join([repr(str(folder)), *(f"{k}={v!r}" for k, v in kw.items())])
    code = f"import core_run_work; core_run_work.main({call})"
    env = os.environ | {"PYTHONPATH": str(Path(work.__file__).parent)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, text=True, stdout=-1, stderr=-1
    )


def until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def test_a_run_leaves_what_the_design_says(work, tmp_path):
    run = work.main(tmp_path / "r", jobs=1)
    names = sorted(p.name for p in run.dir.iterdir() if not p.name.startswith("."))
    assert names == sorted([*COMPARED, "meta.json", "units"])
    lines = [
        json.loads(x) for x in (run.dir / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert [x.get("unit") for x in lines[::12]] == [
        "seed0",
        "seed1",
        "seed2",
        "seed3",
        None,
    ]
    assert lines[0]["bad"] is None and list(lines[0]) == ["unit", "step", "x", "bad"]
    meta = json.loads((run.dir / "meta.json").read_text())
    assert (
        meta["status"] == "done" and meta["seeds"] == 4 and "torch" in meta["libraries"]
    )
    for file in ("meta.json", *COMPARED[:3], "params.yaml"):
        text = (run.dir / file).read_text()
        assert str(tmp_path) not in text and os.uname().nodename not in text
    assert not list(run.dir.rglob("checkpoint*"))
    assert str(tmp_path) not in repr(run) + run.finish() + run.params._repr_markdown_()


def test_workers_and_one_process_give_the_same(work, whole, tmp_path):
    work.main(tmp_path / "r", jobs=2)
    assert contents(tmp_path / "r") == whole


def test_a_finished_run_is_read_and_not_computed(work, whole, tmp_path, monkeypatch):
    run = work.main(tmp_path / "r", jobs=1)
    before = everything(run.dir)
    monkeypatch.setattr(work, "work", lambda *a, **k: pytest.fail("computed again"))
    again = work.main(tmp_path / "r", resume=True, jobs=1)
    assert again.done and contents(tmp_path / "r") == whole
    assert everything(run.dir) == before


def test_a_finished_run_is_not_written_any_more(work, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    run = work.main(tmp_path / "r", jobs=1)
    before = everything(run.dir)
    new = {"version": "9.9", "git": {"commit": "b", "dirty": True}}
    monkeypatch.setattr(run_module, "provenance", lambda p: new)
    again = Run(run.resolved, run.dir, resume=True)
    again.log(x=1)
    again.result({"x": 1})
    again.table(pd.DataFrame({"a": [1]}))
    again.table(pd.DataFrame({"a": [1]}), "new")
    again.arrays("weights", w=[1])
    again.figure(Figure(), "new")
    with pytest.raises(ZeroDivisionError):
        again.once("new", lambda: 1 / 0)
    assert again.finish().endswith("done")
    assert everything(run.dir) == before and again.status == "done"


@given(unit=st.integers(0, 3), stop=st.integers(0, 11), partial_line=st.booleans())
@settings(max_examples=15, deadline=None)
def test_interrupted_anywhere_and_resumed(
    work, whole, tmp_path_factory, unit, stop, partial_line
):
    folder, real, n = tmp_path_factory.mktemp("i") / "r", Unit.log, [0]

    def log(self, **fields):
        if n[0] == 12 * unit + stop:
            if partial_line:
                self._file is None and self._cut(0)
                self._file.write(b'{"unit": "se')
            raise KeyboardInterrupt
        n[0] += 1
        real(self, **fields)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(Unit, "log", log)
        with pytest.raises(KeyboardInterrupt):
            work.main(folder, jobs=1)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["status"] == "interrupted"
    lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    assert len([json.loads(x) for x in lines]) == 12 * unit + stop
    work.main(folder, resume=True, jobs=1)
    assert contents(folder) == whole
    assert "error" not in json.loads((folder / "meta.json").read_text())


@pytest.mark.parametrize("after", [0.0, 0.5])
def test_killed_and_resumed(work, whole, tmp_path, after):
    process = spawn(work, tmp_path / "r", pause=0.05, jobs=2)
    pids = lambda: [int(p.read_text() or 0) for p in (tmp_path / "r").rglob(".pid")]
    until(lambda: len(pids()) >= 2)
    time.sleep(after)
    process.kill()
    process.wait()
    workers = pids()
    resumed = spawn(work, tmp_path / "r", resume=True, jobs=2)
    out, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, err
    assert contents(tmp_path / "r") == whole
    assert not any(alive(p) for p in workers)
    assert not [p for p in (tmp_path / "r").rglob(".*.tmp")]


def test_interrupt_ends_the_workers(work, tmp_path):
    process = spawn(work, tmp_path / "r", pause=0.2, jobs=2)
    pids = lambda: [int(p.read_text() or 0) for p in (tmp_path / "r").rglob(".pid")]
    until(lambda: len(pids()) >= 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in err
    until(lambda: not any(alive(p) for p in pids()), 5)
    meta = json.loads((tmp_path / "r" / "meta.json").read_text())
    assert meta["status"] == "interrupted"


def test_a_second_process_is_refused(work, tmp_path, monkeypatch):
    process = spawn(work, tmp_path / "r", pause=0.3, jobs=1)
    process.stdout.readline()
    monkeypatch.setattr(unit_module, "WAIT", 0.2)
    with pytest.raises(RunError, match=f"in use by process {process.pid}"):
        work.main(tmp_path / "r", resume=True)
    process.kill()
    process.wait()
    work.main(tmp_path / "r", resume=True, jobs=1)


def test_workers_of_a_killed_run_are_waited_for(work, tmp_path, monkeypatch):
    work.main(tmp_path / "r", jobs=1)
    lock = unit_module.flock(tmp_path / "r" / ".workers", shared=True)
    monkeypatch.setattr(unit_module, "WAIT", 0.2)
    with pytest.raises(RunError, match="workers of a killed run still write"):
        work.main(tmp_path / "r", resume=True)
    os.close(lock)
    work.main(tmp_path / "r", resume=True, jobs=1)


def test_folders_of_others_are_refused(work, tmp_path):
    work.main(tmp_path / "r", jobs=1)
    with pytest.raises(RunError, match="holds a run; go on with --resume"):
        work.main(tmp_path / "r")
    with pytest.raises(RunError, match="gamma: 0.9 there, 0.5 now") as e:
        work.main(tmp_path / "r", resume=True, gamma=0.5)
    assert "steps" not in str(e.value)
    home = tmp_path / "home"
    (home / "units").mkdir(parents=True)
    for name in ("letter.txt", ".letter.txt.7.tmp", ".x.tmp", "units/.x.7.tmp"):
        (home / name).write_text("x")
    before = everything(home)
    for resume in (False, True):
        with pytest.raises(RunError):
            work.main(home, resume=resume)
    assert everything(home) == before and not (home / ".lock").exists()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "study.ipynb").write_text("papermill's")
    work.main(tmp_path / "new", jobs=1)
    work.main(tmp_path / "never" / "there", resume=True, jobs=1)


def test_only_files_of_killed_runs_are_removed(tmp_path):
    run = Run(resolved(), tmp_path / "r")
    run_module.leave(run.dir)
    own = [".meta.json.12.tmp", "units/a/.value.json.3.tmp", "units/.x.4.tmp"]
    other = [".notes.tmp", "data/.x.5.tmp", "units/a/.mine.tmp", "units/a/x.5.tmp"]
    for name in own + other:
        (run.dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run.dir / name).write_text("x")
    Run(resolved(), run.dir, resume=True)
    assert [n for n in own + other if (run.dir / n).exists()] == other


def test_folders_with_files_that_hold_no_mapping(project):
    new = partial(new_run_dir, "vrail", "study", "smoke", resume=True)
    folder = new_run_dir("vrail", "study", "smoke")
    Run(resolved(), folder)
    run_module.leave(folder)
    assert new(params=core.Params()) == new() == folder
    for file, text in (
        ("meta.json", "[1]"),
        ("params.yaml", "- 1"),
        ("params.yaml", "x"),
    ):
        good = (folder / file).read_text()
        (folder / file).write_text(text)
        with pytest.raises(RunError, match=f"{file} holds no names"):
            Run(resolved(), folder, resume=True)
        with pytest.raises(RunError, match=f"{file} of r001 holds no names"):
            getattr(core.Stored(folder, "smoke"), file.split(".")[0])
        for params in (None, core.Params()):
            other = new(params=params)
            assert other != folder
            other.rmdir()
        (folder / file).write_text(good)
    assert new(params=core.Params()) == folder


def test_an_impossible_out_has_no_hint_to_resume(project):
    (project / "file").write_text("")
    with pytest.raises(RunError, match="; choose another --out$"):
        new_run_dir("vrail", "study", "smoke", out=project / "file")


def test_parts_of_a_run(tmp_path, monkeypatch):
    said = {"version": "1", "git": {"commit": "a" * 40, "dirty": False}, "gpu": "A"}
    monkeypatch.setattr(run_module, "provenance", lambda p: said)
    meta = lambda: json.loads((tmp_path / "r" / "meta.json").read_text())

    def go_on():
        run = Run(resolved(), tmp_path / "r", resume=True)
        run_module.leave(run.dir)
        return run

    go_on()
    first = meta()
    assert first["parts"] == [
        {
            "version": "1",
            "commit": "a" * 40,
            "dirty": False,
            "started": first["started"],
        }
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go_on()
    said = {"version": "2", "git": {"commit": "b" * 40, "dirty": True}, "gpu": "B"}
    with pytest.warns(UserWarning) as w:
        run = go_on()
    assert str(w[0].message) == (
        "resumed with another version (1 before, 2 now)"
        " and another commit (aaaaaaaaaaaa before, bbbbbbbbbbbb now)"
    )
    run.finish()
    after = meta()
    assert [p["version"] for p in after["parts"]] == ["1", "1", "2"]
    assert after["parts"][2]["dirty"] is True and after["resumed"] == 2
    same = ("version", "git", "gpu", "started")
    assert {k: after[k] for k in same} == {k: first[k] for k in same}


def test_a_temporary_folder_is_removed_unless_the_run_failed(project, work):
    code = """
import sys
from pathlib import Path
import core_run_work as w
from rlpapers.core import paths
from rlpapers.core.run import Run
paths.root = Path.cwd
run = Run.start(w.Study, {"preset": "smoke"}, paper="vrail", experiment="study")
print(run.dir, flush=True)
if sys.argv[1] == "fail":
    run.once("a", lambda: 1 / 0)
if sys.argv[1] == "mend":
    try:
        run.once("a", lambda: 1 / 0)
    except ZeroDivisionError:
        run.once("a", lambda: 1)
if sys.argv[1] != "leave":
    run.finish()
assert run.dir.is_dir()
"""
    env = os.environ | {"PYTHONPATH": str(Path(work.__file__).parent)}
    env["TMPDIR"] = str(project)
    stays = {}
    for how in ("finish", "leave", "mend", "fail"):
        p = subprocess.run(
            [sys.executable, "-c", code, how],
            env=env,
            text=True,
            capture_output=True,
        )
        assert (p.returncode == 0) == (how != "fail"), p.stderr
        stays[how] = Path(p.stdout.strip()).is_dir()
    assert stays == {"finish": False, "leave": False, "mend": False, "fail": True}


def test_tensorboard_is_asked_for_and_missing(project, work, monkeypatch):
    monkeypatch.setenv("RLPAPERS_TENSORBOARD", "1")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said = "^tensorboard is not installed; run: pip install 'rlpapers.lab.'$"
    with pytest.raises(core.MissingExtra, match=said):
        Run.start(work.Study, {"preset": "smoke", "out_dir": "o"}, paper="vrail")
    assert not (project / "o").exists()
    monkeypatch.setenv("RLPAPERS_TENSORBOARD", "0")
    Run.start(work.Study, {"preset": "smoke", "out_dir": "o"}, paper="vrail")


def test_tensorboard_gets_the_numbers_of_the_logs(work, whole, tmp_path, monkeypatch):
    got = []

    class Writer:
        def __init__(self, folder):
            self.name = str(Path(folder).relative_to(tmp_path / "r" / "tensorboard"))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def add_scalar(self, name, value, step):
            got.append((self.name, name, value, step))

    board = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setenv("RLPAPERS_TENSORBOARD", "1")
    run = work.main(tmp_path / "r", jobs=1)
    assert contents(run.dir) == whole and len(got) == 4 * 12 + 1
    lines = [json.loads(x) for x in whole["metrics.jsonl"].splitlines()]
    assert got[1] == ("seed0", "x", lines[1]["x"], 1)
    assert got[-1] == ("run", "total", lines[-1]["total"], 0)


def test_tensorboard_for_real(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("RLPAPERS_TENSORBOARD", "1")
    run = Run(resolved(), tmp_path / "r")
    run.once("a/b", lambda unit: [unit.log(step=2 * i, x=i) for i in range(3)] and None)
    run.finish()
    events = EventAccumulator(str(run.dir / "tensorboard" / "a" / "b")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("x")] == [(0, 0), (2, 1), (4, 2)]


@pytest.mark.parametrize("what", ["value.json", "metrics.jsonl"])
def test_a_damaged_unit_is_named(work, whole, tmp_path, what):
    work.main(tmp_path / "r", jobs=1)
    file = tmp_path / "r" / "units" / "seed2" / what
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(core.CheckpointError, match="delete .*seed2 or start"):
        work.main(tmp_path / "r", resume=True, jobs=1)
    for p in file.parent.iterdir():
        p.unlink()
    work.main(tmp_path / "r", resume=True, jobs=1)
    assert contents(tmp_path / "r") == whole


def test_a_log_shorter_than_its_checkpoint(tmp_path):
    unit = Unit("a", tmp_path)
    unit.log(x=1)
    unit.save({"i": 1})
    (unit.dir / "metrics.jsonl").write_text("")
    with pytest.raises(core.CheckpointError, match="shorter than its checkpoint"):
        Unit("a", tmp_path).load()


def resolved(**kw):
    return Resolved(core.Params(**kw), {}, "smoke", "vrail", "study")


def test_once_gives_what_is_read_back(tmp_path):
    run = Run(resolved(), tmp_path / "r")
    first = run.once("a", lambda: {"x": np.float32(0.1), "t": torch.ones(2), "n": (1,)})
    again = run.once("a", lambda: pytest.fail("computed again"))
    assert type(first["x"]) is float and first["x"] == again["x"]
    assert first["n"] == again["n"] == (1,) and torch.equal(first["t"], again["t"])
    assert run.once("b", partial(math.pow, 2, 3)) == 8.0
    assert run.once("c/d", lambda unit: unit.name) == "c/d"
    assert run.once("none", lambda: None) is None
    with pytest.raises(TypeError, match="a DataFrame cannot be saved"):
        run.once("e", lambda: pd.DataFrame())
    for bad in ("", "../x", "a b", "/a", ".a", "a/"):
        with pytest.raises(ValueError, match="unit's name"):
            run.unit(bad)
    for bad in ("../x", "", "a/b"):
        with pytest.raises(ValueError, match="file's name"):
            run.table(pd.DataFrame({"a": [1]}), bad)


def test_failure_is_noted_and_mended(tmp_path):
    run = Run(resolved(), tmp_path / "r")
    with pytest.raises(ZeroDivisionError):
        run.once("a", lambda: 1 / 0)
    meta = lambda: json.loads((tmp_path / "r" / "meta.json").read_text())
    assert (meta()["status"], meta()["error"]) == ("failed", "ZeroDivisionError")
    assert run.once("a", lambda: 1) == 1
    run.finish()
    assert meta()["status"] == "done" and "error" not in meta()


def test_a_run_that_was_left_is_interrupted(tmp_path):
    code = f"""
from pathlib import Path
from rlpapers.core.run import *
from rlpapers.core import Params, Resolved
resolved = Resolved(Params(), {{}}, "smoke", "vrail", "study")
run = Run(resolved, Path({str(tmp_path / "r")!r}))
run.log(x=1)
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 3
    meta = json.loads((tmp_path / "r" / "meta.json").read_text())
    assert meta["status"] == "interrupted"
    assert (tmp_path / "r" / "metrics.jsonl").read_text() == '{"x": 1}\n'


def test_full_disk_in_the_log_and_the_result(tmp_path, monkeypatch):
    run, unit = Run(resolved(), tmp_path / "r"), Unit("a", tmp_path)
    unit.log(x=1)
    with open("/dev/full", "ab", buffering=0) as full:
        unit._file.close()
        unit._file = full
        with pytest.raises(RunError, match="no space left on device; free some space"):
            unit.log(x=2)
    run.result({"x": 1})
    with monkeypatch.context() as m:
        m.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(RunError, match="cannot write .*result.json: full"):
            run.result({"x": 2})
        with pytest.raises(RunError):
            run.once("a", lambda: 1)
    assert json.loads((tmp_path / "r" / "result.json").read_text()) == {"x": 1}
    assert run.once("a", lambda: 1) == 1


def test_a_file_where_the_run_folder_should_be(tmp_path):
    (tmp_path / "r").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        Run(resolved(), tmp_path / "r")


# --- pmap ---------------------------------------------------------------------------


def test_pmap_sets_threads_and_keeps_the_order(work):
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "HOME"]
    before = dict(os.environ)
    out = parallel.pmap(work.environment, names, jobs=2)
    assert out == ["1", "1", "1", os.environ.get("HOME")]
    assert dict(os.environ) == before


def test_errors_of_workers(work):
    start = time.monotonic()
    with pytest.raises(ValueError, match="no zero"):
        parallel.pmap(work.nap, [1, 0, 2, 3], jobs=2)
    assert time.monotonic() - start < 30
    with pytest.raises(RunError, match="a worker process was killed"):
        parallel.pmap(work.die, [1, 2], jobs=2)
    with pytest.raises(RuntimeError, match="Odd: two parts"):
        parallel.pmap(work.odd, [1, 2], jobs=2)
    assert parallel.pmap(work.environment, [], jobs=2) == []


def test_a_function_of_a_notebook_runs_here(work, monkeypatch, tmp_path):
    monkeypatch.setattr(work.environment, "__module__", "__main__")
    with pytest.warns(UserWarning, match="environment is not an exported function"):
        assert len(parallel.pmap(work.environment, ["HOME", "HOME"], jobs=2)) == 2
    run = Run(resolved(), tmp_path / "r")
    with pytest.warns(UserWarning, match="running in this process"):
        values = run.map(lambda x: x + 1, {"a": (1,), "b": (2,)}, jobs=2)
    assert values == {"a": 2, "b": 3}
    with pytest.raises(TypeError, match="must be a tuple"):
        run.map(work.environment, {"c": "HOME"})


def test_number_of_jobs(monkeypatch):
    monkeypatch.delenv("RLPAPERS_JOBS", raising=False)
    assert parallel.job_count(None, "small") == core.settings("small").jobs
    monkeypatch.setenv("RLPAPERS_JOBS", "7")
    assert parallel.job_count() == 7 and parallel.job_count(3) == 3
    monkeypatch.setenv("RLPAPERS_JOBS", "many")
    with pytest.raises(core.ParamError, match="RLPAPERS_JOBS"):
        parallel.job_count()
    with pytest.raises(core.ParamError, match="at least 1"):
        parallel.job_count(0)


# --- folders and storing ------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text(core.settings_file().read_text())
    (tmp_path / "nbs" / "vrail" / "presets").mkdir(parents=True)
    (tmp_path / "nbs" / "vrail" / "presets" / "smoke.yaml").write_text("study: {}")
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_start_takes_the_values_of_a_notebook(project, work):
    cell = {"preset": "smoke", "out_dir": "out", "resume": False, "gamma": 0.5, "x": 1}
    run = Run.start(work.Study, cell | {"steps": None}, paper="vrail")
    assert (run.paper, run.experiment, run.preset) == ("vrail", "study", "smoke")
    assert run.params.gamma == 0.5 and run.params.seeds == core.settings("smoke").seeds
    assert run.dir == project / "out" and run.resolved.origin["gamma"] == "given"
    temporary = Run.start(work.Study, {"preset": "smoke"}, paper="vrail")
    assert temporary.dir.is_dir() and project not in temporary.dir.parents
    for bad in ({"resume": "yes"}, {"preset": 3}, {"gamma": "x"}):
        with pytest.raises(core.ParamError):
            Run.start(work.Study, {"preset": "smoke"} | bad, paper="vrail")


def test_names_of_run_folders(project, work):
    new = partial(new_run_dir, "vrail", "study", "smoke")
    base = project / "_runs" / "vrail" / "study" / "smoke"
    assert new() == base / "r001" and new() == base / "r002"
    (base / "r007").mkdir()
    assert new() == base / "r008" and new(name="mine") == base / "mine"
    assert new(out=project / "o") == project / "o/vrail/study/smoke/r001"
    Run(resolved(), base / "r008").finish()
    Run(resolved(seed=1), base / "r007").finish()
    with pytest.raises(RunError, match="holds a run"):
        new(name="r008")
    assert new(name="r008", resume=True, params=core.Params()) == base / "r008"
    with pytest.raises(RunError, match="seed: 0 there, 1 now"):
        new(name="r008", resume=True, params=core.Params(seed=1))
    assert new(resume=True, params=core.Params()) == base / "r008"
    assert (
        new(resume=True, params={"seed": 1, "seeds": 1, "device": "cpu"})
        == base / "r007"
    )
    assert new(resume=True, params=core.Params(seed=5)) == base / "r009"
    (base / "r007" / "params.yaml").write_text("{")
    assert new(resume=True, params=core.Params(seed=1)) == base / "r010"
    for bad in ("../x", "a/b", ".x"):
        with pytest.raises(RunError, match="run's name"):
            new(name=bad)


@pytest.fixture
def own(project, work, monkeypatch):
    "The project with the experiment of `work`, in a git repository without changes."
    for preset in ("smoke", "small"):
        file = project / "nbs/vrail/presets" / f"{preset}.yaml"
        file.write_text("study: {seeds: 4}")
    monkeypatch.setattr(folder_module, "experiments", lambda paper: work.PARAMS)
    monkeypatch.setattr(folder_module, "root", lambda: project)
    (project / ".gitignore").write_text("ignored/\n")
    (project / "nbs/vrail/results/small/old").mkdir(parents=True)
    for name in ("nbs/vrail/results/small/old/result.json", "nbs/vrail/claims.yaml"):
        (project / name).write_text("{}")
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    return project


def git(folder, *words):
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", "-C", str(folder), *who, *words]
    subprocess.run(command, check=True, capture_output=True)


def test_what_makes_a_checkout_dirty(own, work):
    dirty = lambda: folder_module.provenance(core.Params())["git"]["dirty"]
    assert dirty() is False
    work.main(own / "out" / "r", jobs=1)
    work.main(own / "nbs/vrail/r", jobs=1)
    for name in (
        "nbs/vrail/results/small/new/result.json",
        "nbs/vrail/results/small/old/result.json",
        "nbs/vrail/results/big/new.csv",
        "nbs/lqr/results/small/new/result.json",
        "nbs/vrail/claims.yaml",
        "README.md",
        "notes.txt",
        "ignored/nbs/x.py",
    ):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text("changed")
        assert dirty() is False, name
    for name in ("nbs/vrail/99_new.ipynb", "rlpapers/ü x.py", "nbs/lqr/presets/a.yaml"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text("changed")
        assert dirty() is True, name
        (own / name).unlink()
    (own / "settings.ini").write_text("changed")
    assert dirty() is True


def test_only_the_parameters_of_the_preset_are_stored(own, work):
    run = work.main(own / "r", jobs=1)
    target = store(run.dir)
    assert [s.split(" ")[0] for s in folder_module.stale("vrail")] == ["small/old"]
    other = work.main(own / "other", jobs=1, gamma=0.5)
    said = "parameters of preset smoke .gamma: 0.5 there, 0.9 now.; it is not stored$"
    with pytest.raises(RunError, match=said):
        store(other.dir)
    assert core.stored("vrail", "study", "smoke").params["gamma"] == 0.9
    (own / "nbs/vrail/results/small/old/result.json").unlink()
    (own / "nbs/vrail/results/small/old").rmdir()
    assert folder_module.stale("vrail") == []
    (own / "nbs/vrail/presets/smoke.yaml").write_text("study: {seeds: 4, gamma: 0.1}")
    assert folder_module.stale("vrail") == ["smoke/study (gamma: 0.9 there, 0.1 now)"]
    (own / "nbs/vrail/presets/smoke.yaml").unlink()
    assert "unknown preset 'smoke'" in folder_module.stale("vrail")[0]
    target.rename(target.with_name("gone"))
    assert "no known experiment" in folder_module.stale("vrail")[0]


def test_storing_warns_of_uncommitted_changes(own, work):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store(work.main(own / "clean", jobs=1).dir)
    (own / "settings.ini").write_text((own / "settings.ini").read_text() + "\n")
    run = work.main(own / "r", jobs=1)
    with pytest.warns(UserWarning, match="^smoke/study was computed with changes"):
        store(run.dir)


def test_storing_never_loses_what_was_stored(own, work, monkeypatch):
    run = work.main(own / "r", jobs=1)
    target, real = store(run.dir), os.replace
    before = everything(target)

    def fail(a, b):
        if Path(b) == target and Path(a).name.endswith(".tmp"):
            raise OSError(28, "full")
        real(a, b)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RunError, match="full"):
        store(run.dir)
    assert everything(target) == before
    assert [p.name for p in target.parent.iterdir()] == ["study"]

    def kill(a, b):
        if Path(b) == target and Path(a).name.endswith(".tmp"):
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        store(run.dir)
    kept = target.with_name(".study.old")
    assert {p.name for p in kept.iterdir()} == {p.name for p in before}
    monkeypatch.setattr(os, "replace", real)
    with monkeypatch.context() as m:
        full = OSError(28, "full")
        m.setattr(shutil, "copyfile", lambda *a: (_ for _ in ()).throw(full))
        with pytest.raises(RunError, match="full"):
            store(run.dir)
    assert everything(target) == before
    assert everything(store(run.dir)) == before
    assert [p.name for p in target.parent.iterdir()] == ["study"]


def test_store(own, project, work):
    run = work.main(project / "r", jobs=1)
    target = store(run.dir)
    assert target == project / "nbs/vrail/results/smoke/study"
    have = ["meta.json", "params.yaml", "result.csv", "result.json", "weights.npz"]
    assert sorted(p.name for p in target.iterdir()) == have
    s = core.stored("vrail", "study", "smoke")
    assert s.result == run.shown().result and s.params["gamma"] == 0.9
    assert s.arrays("weights")["w"].shape == (4, 4) and len(s.table()) == 4
    (target / "old.csv").write_text("")
    (run.dir / "big.csv").write_bytes(b"x" * 1_600_000)
    with pytest.warns(UserWarning, match="^not stored, over 1.5 MB: big.csv$"):
        assert sorted(p.name for p in store(run.dir).iterdir()) == have
    (run.dir / "result.csv").write_bytes(b"x" * 1_600_000)
    with pytest.raises(RunError, match="over 1.5 MB"):
        store(run.dir)
    assert sorted(p.name for p in target.iterdir()) == have
    half = Run(resolved(), project / "half")
    with pytest.raises(RunError, match="not finished .status running"):
        store(half.dir)
    assert core.stored("vrail", "study") is None


def test_shown_is_the_stored_small_at_smoke(own, project, work):
    p = work.Study(seeds=4)
    small = Run(Resolved(p, {}, "small", "vrail", "study"), project / "s")
    small.result({"x": "small"})
    small.finish()
    smoke = Run(resolved(), project / "r")
    smoke.result({"x": "smoke"})
    smoke.finish()
    assert smoke.shown().result["x"] == "smoke"
    store(small.dir)
    assert smoke.shown().result["x"] == "small" and smoke.shown().preset == "small"
    assert small.shown().result["x"] == "small"


def test_storing_needs_a_checkout(project, work, monkeypatch):
    run = work.main(project / "r", jobs=1)
    monkeypatch.setattr(folder_module, "is_checkout", lambda: False)
    with pytest.raises(RunError, match="in a checkout only"):
        store(run.dir)


def test_figures_are_the_same_bytes(tmp_path):
    from matplotlib.figure import Figure

    run = Run(resolved(), tmp_path / "r")
    for name in ("a", "b.png"):
        fig = Figure()
        fig.subplots().plot([1, 2])
        run.figure(fig, name)
    a, b = ((tmp_path / "r" / f"{n}.png").read_bytes() for n in "ab")
    assert a == b and a.startswith(b"\x89PNG")
