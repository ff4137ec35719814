"A checkout in miniature, with one small paper, for tests of the command line."

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
MAIN = "import sys; from rlpapers.cli.app import main; sys.exit(main())"

PARAMS = """
from typing import Literal
from rlpapers.core.params import P, Params

class Count(Params):
    "Sums random numbers, slowly."
    steps: int = P(..., "numbers to add", unit="steps", ge=1, le=10_000)
    pause: float = P(0.0, "rest after each step", unit="seconds", ge=0, le=60)
    scale: float = P(1.0, "factor of each number", source="paper, table 1", ge=0)
    rule: Literal["plain", "square"] = P("plain", "what is added")
    fail: Literal["no", "bug", "user", "die", "fill", "late"] = P("no", "how to fail")

class Report(Params):
    "Says how many seeds there are."
    words: str = P("none", "what to say")

PARAMS = {"count": Count, "report": Report}
"""

WORK = """
import os, signal, time
import numpy as np
import torch
from rlpapers.core.paths import UserError

def walk(p, seed, unit):
    "One seed: a sum of random numbers with a checkpoint every few steps."
    state = unit.load() or {"step": 0, "total": 0.0, "path": torch.zeros(p.steps)}
    step, total, path = state["step"], state["total"], state["path"]
    while step < p.steps:
        x = np.random.default_rng([seed, step]).normal() * p.scale
        total += x * x if p.rule == "square" else x
        path[step] = total
        step += 1
        unit.log(step=step, total=total)
        if step % 5 == 0:
            unit.save({"step": step, "total": total, "path": path})
        time.sleep(p.pause)
    return {"total": total, "path": path}

def fail(how):
    "Fail in some way."
    if how == "bug":
        1 / 0
    if how == "user":
        raise UserError("the moon is full; wait a day")
    if how == "late" and not os.path.exists("mended"):
        raise UserError("the figure cannot be drawn")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
"""

COUNT = [
    "preset: str = ''\nout_dir: str = ''\nresume: bool = False\nseed: int = None\n"
    "seeds: int = None\ndevice: str = None\nsteps: int = None\npause: float = None\n"
    "scale: float = None\nrule: str = None\nfail: str = None",
    "import pandas as pd\nfrom rlpapers.core.run import Run\n"
    "from rlpapers.toy.params import PARAMS\n"
    "from rlpapers.toy.work import fail as break_off, walk",
    "run = Run.start(PARAMS['count'], globals())\np = run.params",
    "names = {f'seed{s}': (p, s) for s in range(p.seed, p.seed + p.seeds)}\n"
    "rows = run.map(walk, names)",
    "if p.fail != 'late':\n    break_off(p.fail)",
    "data = b'x' * (2_000_000 if p.fail == 'fill' else 10)\n"
    "totals = [r['total'] for r in rows.values()]\n"
    "run.log(mean=sum(totals) / len(totals))\n"
    "run.table(pd.DataFrame({'run': list(rows), 'total': totals}))\n"
    "run.arrays('paths', **{k: r['path'].numpy() for k, r in rows.items()})\n"
    "if p.fail == 'fill':\n"
    "    import numpy as np\n"
    "    run.arrays('big', x=np.random.default_rng(0).random(1_000_000))\n"
    "run.result({'mean': sum(totals) / len(totals), 'n': p.seeds})",
    "run.finish()",
    "if p.fail == 'late':\n    break_off(p.fail)",
]

REPORT = [
    "preset: str = ''\nout_dir: str = ''\nresume: bool = False\nseed: int = None\n"
    "seeds: int = None\ndevice: str = None\nwords: str = None",
    "from rlpapers.core.run import Run\nfrom rlpapers.toy.params import PARAMS",
    "run = Run.start(PARAMS['report'], globals())",
    "run.result({'words': run.params.words, 'n': run.params.seeds})\nrun.finish()",
]

BENCH = """
def bench(preset):
    "One target met, one missed, one peer that is not there."
    head = "name ours peer unit ratio target ok".split()
    rows = [
        ("step", 1.0, 5.0, "µs", 5.0, 4.0, True),
        ("reset", 2.0, 4.0, "µs", 2.0, 3.0, False),
        ("batch", 1.0, None, "µs", None, None, None),
    ]
    return [dict(zip(head, r)) | {"missing": "" if r[2] else "envpool"} for r in rows]
"""

CLAIMS = """
from rlpapers.core.claims import Finding

def positive(evidence):
    "Whether there is a mean at all."
    r = evidence[0].result
    return Finding(ours=r["mean"], n=r["n"], status="reproduced")

CLAIMS = {"positive": positive}
"""

CLAIMS_YAML = """- id: positive
  statement: The mean is a number.
  source: table 1
  paper_value: 0.5
  preset: smoke
  evidence: [smoke/count]
  status: undecided
"""

COMMANDS = """
import typer

app = typer.Typer()

@app.callback()
def root():
    "Commands of the toy paper."

@app.command()
def hello(name: str):
    "Greet."
    print(f"hello {name}")
"""


def notebook(file: Path, cells: list[str]):
    "Write a notebook whose first cell holds the parameters."
    head = nbformat.v4.new_code_cell(cells[0], metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(
        cells=[head, *(nbformat.v4.new_code_cell(c) for c in cells[1:])],
        metadata={
            "kernelspec": {"name": "python3", "language": "python", "display_name": ""}
        },
    )
    nbformat.write(nb, file)


def checkout(root: Path) -> Path:
    "A copy of the package beside a notebook folder with the paper `toy` alone."
    papers = [p.parent.name for p in (ROOT / "nbs").glob("*/presets")]
    skip = shutil.ignore_patterns("_nbs", "__pycache__", *papers)
    shutil.copytree(ROOT / "rlpapers", root / "rlpapers", ignore=skip)
    shutil.copy(ROOT / "settings.ini", root)
    nbs, package = root / "nbs" / "toy", root / "rlpapers" / "toy"
    (nbs / "presets").mkdir(parents=True)
    package.mkdir()
    (root / "nbs" / "papers.yaml").write_text(
        "- {key: toy, title: 'Toy: A paper for tests', authors: Nobody,"
        " arxiv: '0000.00000', about: Adds numbers.}\n"
        "- {key: later_one, title: Later, authors: Nobody,"
        " arxiv: '0000.00001', about: Not there yet.}\n"
    )
    (nbs / "presets" / "smoke.yaml").write_text("count:\n  steps: 20\n")
    (nbs / "presets" / "small.yaml").write_text("count:\n  steps: 40\n  scale: 1e-1\n")
    (nbs / "presets" / "paper.yaml").write_text("count:\n  steps: null\n")
    notebook(nbs / "01_count.ipynb", COUNT)
    notebook(nbs / "02_report.ipynb", REPORT)
    (nbs / "claims.yaml").write_text(CLAIMS_YAML)
    table = "<!-- papers:start -->\n<!-- papers:end -->"
    (root / "README.md").write_text(f"# Toys\n\n{table}\n")
    index = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(table)])
    nbformat.write(index, root / "nbs" / "index.ipynb")
    (package / "__init__.py").write_text("")
    for name, text in {
        "params": PARAMS,
        "work": WORK,
        "bench": BENCH,
        "claims": CLAIMS,
        "cli": COMMANDS,
    }.items():
        (package / f"{name}.py").write_text(textwrap.dedent(text))
    return root


class CLI:
    "The command line of one installation, started in one folder."

    def __init__(self, package: Path, cwd: Path):
        self.package, self.cwd = package, cwd
        keep = {k: v for k, v in os.environ.items() if not k.startswith("RLPAPERS_")}
        self.env = keep | {"PYTHONPATH": str(package)}

    def start(self, *words, **kw) -> subprocess.Popen:
        "Start a command in a session of its own."
        command = [sys.executable, "-c", MAIN, *map(str, words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        kw = {
            "cwd": self.cwd,
            "env": self.env,
            "start_new_session": True,
            **pipes,
            **kw,
        }
        return subprocess.Popen(command, **kw)

    def __call__(self, *words, code: int = 0, **kw) -> str:
        "Run a command, check its exit code; its output, or its error when one is due."
        p = self.start(*words, **kw)
        try:
            out, err = p.communicate(timeout=300)
        except BaseException:
            p.kill()
            raise
        assert p.returncode == code, (p.returncode, out, err)
        assert "Traceback" not in err, err
        return err if code else out

    def refused(self, *words, code: int = 1, **kw) -> str:
        "Run a command that has to fail with one line on standard error."
        err = self(*words, code=code, **kw)
        assert err.startswith("error: ") and err.count("\n") == 1, err
        return err


def tree(pid: int) -> list:
    "A process and all its descendants."
    import psutil

    try:
        me = psutil.Process(pid)
        return [me, *me.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(process: subprocess.Popen, everything: bool):
    "SIGKILL the command alone, or with its kernel and workers."
    victims = tree(process.pid) if everything else []
    for p in victims:
        p.send_signal(signal.SIGSTOP)  # so that none sees the others die
    for p in victims:
        p.kill()
    process.kill()
    process.communicate()


def results(folder: Path) -> dict[str, bytes]:
    "What has to be the same byte for byte, however often a run was killed."
    keep = [p for p in sorted(folder.iterdir()) if p.suffix in (".csv", ".gz", ".npz")]
    keep += [folder / "result.json", folder / "metrics.jsonl"]
    return {p.name: p.read_bytes() for p in keep if p.exists()}
