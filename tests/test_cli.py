"The command line on a small paper: what it prints, what it refuses, how it ends."

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from toy import CLI, MAIN, checkout, notebook, results, tree

from rlpapers.cli.kernel import NotebookRun
from rlpapers.cli.launch import _store
from rlpapers.cli.progress import Ticker
from rlpapers.cli.runner import _watch, ended, status
from rlpapers.core.paths import UserError

RUN = "toy", "count", "--preset", "smoke"
SHORT = "-p", "seeds=1", "-p", "steps=6"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("package"))


@pytest.fixture
def cli(package, tmp_path):
    return CLI(package, tmp_path)


@pytest.fixture(scope="module")
def finished(package, tmp_path_factory):
    "A folder with one finished run, and what the command printed."
    cwd = tmp_path_factory.mktemp("finished")
    return cwd, CLI(package, cwd)("run", *RUN, "--seeds", 1, "-p", "steps=6")


def resume_command(line: str) -> list[str]:
    "The words after `rlpapers` of the command a message ends with."
    words = shlex.split(line.split("go on with: rlpapers ")[1].strip().rstrip(")"))
    assert "--resume" in words
    return words


def wait_for(condition, process, seconds=60):
    "Poll until something holds."
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never came to it"
        time.sleep(0.02)


# looking ---------------------------------------------------------------------------


def test_help_is_quick_and_imports_nothing_heavy(cli):
    code = (
        "import sys; from rlpapers.cli.app import main; main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pydantic', 'papermill', 'rich'}\n"
        "bad = heavy & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    took = []
    for _ in range(3):
        start = time.monotonic()
        p = subprocess.run(
            [sys.executable, "-c", code], env=cli.env, capture_output=True, text=True
        )
        took.append(time.monotonic() - start)
        assert p.returncode == 0, p.stderr
    for command in "list show run sweep claims bench doctor test".split():
        assert f"  {command} " in p.stdout
    assert min(took) < 0.5, took


def test_list_and_show(cli):
    said = cli("list")
    assert re.search(r"^toy +Toy +count, report +smoke, small, paper", said, re.M)
    assert re.search(r"^later_one +Later +planned", said, re.M)
    said = cli("show", "toy", "count")
    assert re.search(
        r"^scale +float >= 0 +1 +factor of each number +paper, table 1", said, re.M
    )
    assert re.search(r"^steps +int in \[1, 10000\] +\(preset\) +steps", said, re.M)
    assert re.search(r"^scale +0\.1 *$", said, re.M), "values of the presets"
    assert "words" not in said and "words" in cli("show", "toy")
    assert cli("--version").startswith("rlpapers ")


def test_doctor(cli):
    found = json.loads(cli("doctor", "--json"))
    assert found["installed_as"] == "checkout" and found["papers"] == ["toy"]
    assert found["missing"] == [] and found["runs_folder"]["writable"]


def test_commands_of_a_paper(cli):
    assert cli("toy", "hello", "you") == "hello you\n"
    assert "hello" in cli("toy", "--help")
    assert "'hello'" in cli.refused("toy", "helo", code=2)
    assert "did you mean 'toy'" in cli.refused("tpy", "hello")


def test_bench(cli):
    said = cli("bench", "toy")
    assert "missing: envpool" in said and re.search(r"^reset .* no ", said, re.M)
    rows = json.loads(cli("bench", "toy", "--json"))
    assert [r["name"] for r in rows] == ["step", "reset", "batch"]
    assert "missed targets: reset" in cli.refused("bench", "toy", "--check")


def test_test_needs_a_checkout(cli):
    assert "needs a checkout" in cli.refused("test")


def test_test_takes_the_tools_of_its_environment(tmp_path):
    "Also where the environment is not activated; what is not installed is named."
    package = checkout(tmp_path / "package")
    (package / "tests").mkdir()
    script = 'echo "${PATH%%:*} ${1:-}"'
    (package / "tests/run.sh").write_text(script)
    cli = CLI(package, tmp_path)
    cli.env["PATH"] = os.defpath
    assert cli("test", "--all") == f"{os.path.dirname(sys.executable)} --all\n"
    code = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'ruff' else find(n, *a)\n"
        "from rlpapers.cli.app import main; sys.exit(main(['test']))"
    )
    p = subprocess.run(
        [sys.executable, "-c", code], env=cli.env, capture_output=True, text=True
    )
    said = 'error: ruff not installed; run: pip install -e ".[dev]"\n'
    assert (p.returncode, p.stdout, p.stderr) == (1, "", said)


# refusals before a kernel starts ---------------------------------------------------

REFUSED = {
    "unknown paper 'toi'; did you mean 'toy'?": ["toi"],
    "later_one is planned": ["later-one"],
    "unknown experiment of toy 'cuont'; did you mean 'count'?": ["toy", "cuont"],
    "unknown preset of toy 'smal'; did you mean 'small'?": ["toy", "--preset", "smal"],
    "unknown parameter 'stesp' for toy/count; did you mean 'steps'?": [
        "toy",
        "-p",
        "stesp=1",
    ],
    "steps: got 'x' (str); expected int": ["toy", "-p", "steps=x"],
    "steps: got True (bool); expected int": ["toy", "-p", "steps=true"],
    "scale: got -1.0 (float); expected float >= 0": ["toy", "-p", "scale=-1.0"],
    "rule: got 'cube' (str)": ["toy", "-p", "rule=cube"],
    "seeds: got 0 (int)": ["toy", "--seeds", 0],
    "'seed' is given twice": ["toy", "--seed", 1, "-p", "seed=2"],
    "not of the form key=value": ["toy", "-p", "steps"],
    "steps of toy/count has no known value": ["toy", "--preset", "paper"],
    "is not a plain folder name": ["toy", "--name", "../elsewhere"],
}


@pytest.mark.parametrize("line", REFUSED)
def test_refused(line, cli):
    assert line in cli.refused("run", *REFUSED[line])
    assert not list(cli.cwd.iterdir()), "nothing may be left behind"


def test_absent_gpu_is_refused(cli):
    "Before a folder is made, and without a hint to go on."
    cli.env["CUDA_VISIBLE_DEVICES"] = ""
    here = "toy", "count", "--preset", "smoke", "-p", "device=cuda"
    for words in (("run", *here), ("sweep", *here), ("run", *here, "--resume")):
        err = cli.refused(*words)
        assert "device cuda is not there; use -p device=cpu" in err
        assert "--resume" not in err
        assert words[-1] == "--resume" or not list(cli.cwd.iterdir())
    assert not list(cli.cwd.rglob("r001"))


def test_wrong_options(cli):
    assert "--colour" in cli.refused("run", "toy", "--colour", code=2)
    assert "--seeds" in cli.refused("run", "toy", "--seeds", "many", code=2)
    cli.refused("run", code=2)


def test_debug_shows_the_traceback(cli):
    p = cli.start("--debug", "run", "toi")
    assert "Traceback" in p.communicate()[1] and p.returncode == 1


# a run -----------------------------------------------------------------------------


def test_run_says_what_one_needs(finished):
    cwd, said = finished
    folder = cwd / "_runs/toy/count/smoke/r001"
    assert said.startswith(
        "toy count, preset smoke, expected: about 0.5 min\nrun folder: _runs"
    )
    assert re.search(r"^mean +-?\d", said, re.M) and re.search(
        r"^seed0 +-?\d", said, re.M
    )
    assert "notebook    _runs/toy/count/smoke/r001/count.ipynb" in said
    assert said.endswith("\nnext: rlpapers run toy count --preset small\n")
    nb = nbformat.read(folder / "count.ipynb", 4)
    given = next(
        c.source
        for c in nb.cells
        if "injected-parameters" in c.metadata.get("tags", [])
    )
    names = set(re.findall(r"^(\w+) =", given, re.M))
    assert names == {"steps", "seeds", "preset", "out_dir", "resume"}, (
        "only what was given"
    )
    assert json.loads((folder / "meta.json").read_text())["status"] == "done"


def test_finished_run_only_prints(finished, package):
    cwd, _ = finished
    cli, before = CLI(package, cwd), results(cwd / "_runs/toy/count/smoke/r001")
    start = time.monotonic()
    said = cli("run", *RUN, *SHORT, "--resume")
    assert "already finished" in said and "seed0" in said
    assert time.monotonic() - start < 3, "no kernel may start"
    assert results(cwd / "_runs/toy/count/smoke/r001") == before


def test_existing_folder_is_not_entered(finished, package):
    cli = CLI(package, finished[0])
    assert "--resume" in cli.refused("run", *RUN, *SHORT, "--name", "r001")
    err = cli.refused(
        "run", *RUN, *SHORT, "-p", "scale=2.0", "--name", "r001", "--resume"
    )
    assert "other parameters" in err and "scale" in err


def test_store_and_claims(finished, package):
    cwd, said = finished
    cli = CLI(package, cwd)
    assert re.search(r"^positive +0\.5 +– +– +– +undecided", said, re.M), "after a run"
    assert "--store" not in said, "a run of other values is no evidence"
    err = cli.refused("run", *RUN, *SHORT, "--resume", "--store")
    assert "keeps runs with the values of the preset; leave out seeds, steps" in err
    stored = package / "nbs/toy/results/smoke/count/result.json"
    assert not stored.exists()
    said = cli("run", *RUN, "-p", "steps=20", "--name", "kept")
    assert said.count("--store)") == 1
    said = cli("run", *RUN, "-p", "steps=20", "--name", "kept", "--resume", "--store")
    assert said.endswith("next: rlpapers claims toy --update\n")
    result = cwd / "_runs/toy/count/smoke/kept/result.json"
    assert result.read_bytes() == stored.read_bytes()
    said = cli("claims", "toy", "--update")
    assert re.search(r"^positive +The mean is a number\. .* 2 +reproduced", said, re.M)
    assert "reproduced" in (package / "README.md").read_text()
    found = json.loads(cli("claims", "--json"))["toy"][0]
    ours = json.loads(result.read_text())["mean"]
    assert found["status"] == "reproduced" and found["ours"] == float(f"{ours:.4g}")
    assert re.search(r"^toy .* 1 of 1", cli("list"), re.M)


def test_all_runs_each_in_order(cli):
    said = cli(
        "run",
        "toy",
        "all",
        "--preset",
        "smoke",
        *SHORT,
        "-p",
        "words=hi",
        "--out",
        "my out",
    )
    assert said.index("toy count") < said.index("toy report") and "hi" in said
    assert (cli.cwd / "my out/toy/report/smoke/r001/report.ipynb").exists()
    assert not (cli.cwd / "_runs").exists()


def test_kernel_is_this_interpreter(package, tmp_path):
    "Whatever kernel is registered as python3, and whatever the folder is called."
    spec = tmp_path / "share/kernels/python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"})
    )
    cwd = tmp_path / "a {strange} folder"
    cwd.mkdir()
    cli = CLI(package, cwd)
    cli.env |= {"JUPYTER_PATH": str(tmp_path / "share"), "HOME": "/nowhere"}
    cli("run", "toy", "report", "--preset", "smoke", "--quiet")


# failures --------------------------------------------------------------------------


def test_failing_notebook(cli):
    err = cli.refused("run", *RUN, *SHORT, "-p", "fail=bug")
    assert "ZeroDivisionError: division by zero" in err
    nb = nbformat.read(cli.cwd / "_runs/toy/count/smoke/r001/count.ipynb", 4)
    assert any(o.output_type == "error" for c in nb.cells for o in c.get("outputs", []))
    assert resume_command(err)[-3:] == ["--name", "r001", "--resume"]


def test_dead_kernel(cli):
    err = cli.refused("run", *RUN, *SHORT, "-p", "fail=die")
    assert "the kernel died" in err
    resume_command(err)
    assert not ended(cli.cwd / "_runs/toy/count/smoke/r001/count.ipynb")


def test_cell_fails_after_finish(cli):
    "Complete results are not a finished run where the notebook is not."
    words = "run", *RUN, *SHORT, "-p", "fail=late"
    assert "the figure cannot be drawn" in cli.refused(*words)
    folder = cli.cwd / "_runs/toy/count/smoke/r001"
    assert json.loads((folder / "meta.json").read_text())["status"] == "done"
    assert status(folder) != "done" and not ended(folder / "count.ipynb")
    with pytest.raises(UserError, match="cannot be stored"):
        _store(folder, quiet=True)
    assert "the figure cannot be drawn" in cli.refused(*words, "--resume")
    was = results(folder)
    (cli.cwd / "mended").touch()
    said = cli(*words, "--resume")
    assert "already finished" not in said and results(folder) == was
    assert status(folder) == "done" and ended(folder / "count.ipynb")
    assert "already finished" in cli(*words, "--resume")


def test_out_that_cannot_be(cli):
    (cli.cwd / "file").touch()
    why = "(file exists|not a directory|no such file or directory)"
    for out in ("file", "file/below", "/proc/nowhere"):
        err = cli.refused("run", *RUN, "--out", out)
        line = rf"cannot (make|write) \S*{out}\S*: {why}; choose another --out"
        assert re.search(line, err), err
    assert list(cli.cwd.iterdir()) == [cli.cwd / "file"]


def namespace(script: str) -> list[str] | None:
    "Start of a command in a mount namespace of its own, None where that is forbidden."
    start = ["unshare", "-rm", "bash", "-c", f'{script} && exec "$@"', "bash"]
    try:
        ok = subprocess.run([*start, "true"], capture_output=True).returncode == 0
    except OSError:
        ok = False
    return start if ok else None


def in_namespace(cli, script, *words, instead=None):
    "Run a command where a file system was mounted for it alone, or a stand-in."
    start = namespace(script) or instead
    if start is None:
        pytest.skip("needs mount namespaces, or a user other than root")
    main = "import sys; from rlpapers.cli.app import main; sys.exit(main())"
    command = [*start, sys.executable, "-c", main, *map(str, words)]
    p = subprocess.run(
        command, env=cli.env, cwd=cli.cwd, capture_output=True, text=True
    )
    assert p.returncode == 1 and p.stderr.count("\n") == 1, (p.stdout, p.stderr)
    return p.stderr


def test_read_only_folder(cli):
    out = cli.cwd / "out"
    out.mkdir()
    script = f"mount -t tmpfs -o ro tmpfs {shlex.quote(str(out))}"
    plain = ["env"] if os.getuid() else None  # root may write anywhere
    out.chmod(0o555)
    err = in_namespace(cli, script, "run", *RUN, "--out", "out", instead=plain)
    out.chmod(0o755)
    assert re.search("read-only|permission denied", err), err
    assert "choose another --out" in err


# a limit for each file, where no disk can be made
LIMIT = ["bash", "-c", 'ulimit -f 1024 && exec "$@"', "bash"]


def test_disk_full(cli):
    out = cli.cwd / "out"
    out.mkdir()
    script = f"mount -t tmpfs -o size=1m tmpfs {shlex.quote(str(out))}"
    words = "run", *RUN, *SHORT, "-p", "fail=fill", "--out", "out"
    err = in_namespace(cli, script, *words, instead=LIMIT)
    assert "o space left" in err or "file too large" in err


def test_file_size_limit(cli):
    "What stands in for a full disk where none can be made."
    words = "run", *RUN, *SHORT, "-p", "fail=fill", "--out", "out"
    command = [*LIMIT, sys.executable, "-c", MAIN, *map(str, words)]
    p = subprocess.run(
        command, env=cli.env, cwd=cli.cwd, capture_output=True, text=True
    )
    assert p.returncode == 1 and p.stderr.count("\n") == 1, p.stderr
    assert "file too large" in p.stderr


def test_long_run(cli):
    "Progress in a pipe, one run in a folder, SIGTERM, and then a corrupt checkpoint."
    words = "run", *RUN, "-p", "steps=1000", "-p", "pause=0.1", "-p", "seeds=1"
    words = *words, "--name", "a"
    with open(cli.cwd / "said", "w") as out:
        p = cli.start(*words, stdout=out)
    folder = cli.cwd / "_runs/toy/count/smoke/a"
    wait_for(lambda: list(folder.glob("units/*/checkpoint*.json")), p)
    assert "another run is at work" in cli.refused(*words, "--resume")
    said = cli.cwd / "said"
    line = r"^0:\d\d · cell \d+/\d+ · seed0: step \d+, total -?\d"
    wait_for(lambda: re.search(line, said.read_text(), re.M), p)
    assert said.read_text().count("cell ") <= 3, "one line in ten seconds"
    os.kill(p.pid, signal.SIGTERM)
    err = p.communicate(timeout=30)[1]
    assert p.returncode == 130 and err.count("\n") == 1, err
    for f in folder.glob("units/seed0/checkpoint*.safetensors"):
        f.write_bytes(f.read_bytes()[:-3])
    err = cli.refused(*words, "--resume")
    assert "checkpoint" in err and "delete" in err


# Ctrl-C ----------------------------------------------------------------------------


def test_interrupt_and_resume(cli):
    "Ctrl-C ends kernel and workers; the resumed run is equal to one left alone."
    words = "run", *RUN, "-p", "steps=60", "-p", "pause=0.03", "-p", "seeds=2"
    p = cli.start(*words)
    folder = cli.cwd / "_runs/toy/count/smoke/r001"
    wait_for(lambda: len(list(folder.glob("units/*/checkpoint*.json"))) == 2, p)
    family = tree(p.pid)
    assert len(family) >= 4, "command, kernel and two workers"
    os.killpg(p.pid, signal.SIGINT)
    out, err = p.communicate(timeout=30)
    assert p.returncode == 130 and err.count("\n") == 1, (out, err)
    assert "nothing is lost" in err
    time.sleep(0.2)
    left = [q.cmdline() for q in family if q.is_running() and q.status() != "zombie"]
    assert left == []
    assert json.loads((folder / "meta.json").read_text())["status"] == "interrupted"
    cli(*resume_command(err))
    cli(*words, "--name", "whole")
    assert results(folder) == results(folder.parent / "whole") != {}


# sweeps ----------------------------------------------------------------------------


def test_sweep(cli):
    words = (
        "sweep",
        "toy",
        "report",
        "--preset",
        "smoke",
        "-p",
        "words=a,b",
        "--jobs",
        2,
    )
    said = cli(*words)
    table = cli.cwd / "_runs/toy/report/smoke/sweep.csv"
    assert (
        table.read_text().splitlines()
        == [
            "run,words,status,n",
            '"sweep+words=a",a,done,2',
            '"sweep+words=b",b,done,2',
        ]
        or "sweep+words=a,a,done,2" in table.read_text()
    )
    assert "\n0 of 2 runs\n" in said and "2 of 2 runs" in said
    cli.refused(*words)
    start = time.monotonic()
    cli(*words, "--resume")
    assert time.monotonic() - start < 6, "finished runs are only read"


def test_sweep_refuses_before_it_starts(cli):
    assert "rule: got 'x'" in cli.refused("sweep", "toy", "count", "-p", "rule=plain,x")
    assert "unknown engine 'rey'" in cli.refused(
        "sweep", "toy", "count", "-p", "steps=1", "--engine", "rey"
    )
    assert not list(cli.cwd.iterdir())


def test_sweep_goes_on_after_a_failure(cli):
    words = "sweep", "toy", "count", "--preset", "smoke", "-p", "fail=user,no"
    p = cli.start(*words, "-p", "seeds=1", "-p", "steps=1", "--jobs", 2)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 1 and "Traceback" not in err
    assert "the moon is full; wait a day (" in out and re.search(r"fail=no.* done", out)


def test_sweep_on_ray(cli):
    words = "sweep", "toy", "report", "--preset", "smoke", "-p", "words=a,b"
    if importlib.util.find_spec("ray"):
        assert "2 of 2 runs" in cli(*words, "--engine", "ray")
    else:
        err = cli.refused(*words, "--engine", "ray")
        assert "pip install 'rlpapers[ray]'" in err
        assert not list(cli.cwd.iterdir())


RAY = """
import os

class Ref:
    def __init__(self, f, args):
        self.f, self.args = f, args

class Task:
    def __init__(self, f, **options):
        self.f, self.given = f, options

    def options(self, **more):
        return Task(self.f, **self.given, **more)

    def remote(self, *args):
        with open(os.environ["FAKE_RAY"], "a") as f:
            f.write(f"{self.given['num_gpus']}\\n")
        return Ref(self.f, args)

def init(**options): pass
def shutdown(): pass
def remote(**options): return lambda f: Task(f, **options)
def wait(refs, timeout): return refs[:1], refs[1:]

def get(ref):
    if "words=lost" in ref.args[0]:
        raise RuntimeError("the worker\\ndied")
    return ref.f(*ref.args)
"""


def test_sweep_on_a_ray_that_loses_a_task(cli, tmp_path_factory):
    "A stand-in for Ray: one run succeeds, the one before it is lost with its machine."
    other = tmp_path_factory.mktemp("ray")
    (other / "ray.py").write_text(RAY)
    cli.env["PYTHONPATH"] += f"{os.pathsep}{other}"
    cli.env |= {"FAKE_RAY": str(other / "asked"), "CUDA_VISIBLE_DEVICES": ""}
    sweep = "sweep", "toy", "report", "--preset", "smoke", "--engine", "ray"
    p = cli.start(*sweep, "-p", "words=lost,kept")
    out, err = p.communicate(timeout=120)
    assert p.returncode == 1 and err == "", (out, err)
    assert "lost: RuntimeError: the worker died" in out
    table = (cli.cwd / "_runs/toy/report/smoke/sweep.csv").read_text()
    assert re.search(r"words=kept.*,kept,done,2$", table, re.M), table
    assert re.search(r"words=lost.*,lost,lost: RuntimeError", table, re.M), table
    assert (other / "asked").read_text().split() == ["0.0", "0.0"]
    words = *sweep, "--name", "gpu", "-p", "device=cuda", "-p", "words=hi"
    p = cli.start(*words)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 1 and "device cuda is not there" in out, (out, err)
    cli.start(*words, "--gpus", 0.25, "--resume").communicate(timeout=120)
    assert (other / "asked").read_text().split()[2:] == ["1.0", "0.25"]


def test_interrupted_sweep_ends_its_runs(cli):
    words = (
        "sweep",
        "toy",
        "count",
        "--preset",
        "smoke",
        "-p",
        "steps=500",
        "-p",
        "pause=1.0",
    )
    p = cli.start(*words, "-p", "seeds=1", "-p", "rule=plain,square", "--jobs", 2)
    folder = cli.cwd / "_runs/toy/count/smoke"
    wait_for(lambda: len(list(folder.glob("*/units/*/metrics.jsonl"))) == 2, p)
    family = tree(p.pid)
    p.send_signal(signal.SIGINT)
    err = p.communicate(timeout=60)[1]
    assert p.returncode == 130 and "--resume" in err and err.count("\n") == 1, err
    left = [q.cmdline() for q in family if q.is_running() and q.status() != "zombie"]
    assert left == []


# progress --------------------------------------------------------------------------


def test_long_run_says_so(capsys):
    "Past the expected time the progress line tells it."

    class Brief(NotebookRun):
        waits = 0

        def wait(self, seconds):
            self.waits += 1
            return self.waits > 3

    ticker = Ticker(every=0.0)
    _watch(Brief("a", "b", {}), "nowhere", ticker, 0)
    _watch(Brief("a", "b", {}), "nowhere", Ticker(every=0.0), 1e-9)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "0:00 · starting the kernel"
    assert second == "0:00 (longer than the expected 1e-09 min) · starting the kernel"


def test_quiet_says_nothing(cli):
    assert cli("run", "toy", "report", "--preset", "smoke", "--quiet") == ""


def test_a_paper_without_parameters_module_is_one_line(cli, tmp_path):
    package = checkout(tmp_path / "other")
    (package / "rlpapers/toy/params.py").unlink()
    notebook(package / "nbs/toy/01_count.ipynb", ["x: int = None"])
    assert "toy has no experiments" in CLI(package, tmp_path).refused("run", "toy")
