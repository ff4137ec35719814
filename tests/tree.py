"The files of the checkout, as the tests of the house see them."

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
PACKAGE = ROOT / "rlpapers"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAPERS = yaml.safe_load((NBS / "papers.yaml").read_text())
KEYS = [p["key"] for p in PAPERS]
BUILT = [k for k in KEYS if (NBS / k / "presets").is_dir()]


def name(path: Path) -> str:
    "Test id of a file."
    return str(path.relative_to(ROOT))


def notebooks() -> list[Path]:
    "Notebooks that are pages or source, checkpoints left out."
    found = sorted(NBS.rglob("*.ipynb"))
    return [p for p in found if not re.search(r"(^|/)[._]", str(p.relative_to(NBS)))]


def cells(path: Path, kind: str = "code") -> list[dict]:
    "Cells of one kind, the source as one string."
    found = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]
    return [{**c, "source": "".join(c["source"])} for c in found]


def body(source: str) -> list[ast.stmt]:
    "Parsed code, magics and shell lines dropped."
    return ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M)).body


def directive(path: Path, key: str) -> str | None:
    "Value of the first `#| key value` of a notebook."
    for c in cells(path):
        if m := re.search(rf"^#\|\s*{key}\s+(\S+)", c["source"], flags=re.M):
            return m[1]
    return None


def parameters(path: Path) -> dict | None:
    "The cell tagged `parameters`."
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    return tagged[0] if tagged else None


def modules() -> list[Path]:
    "Modules of the package, nbdev's index left out."
    found = sorted(PACKAGE.rglob("*.py"))
    return [p for p in found if p.name != "_modidx.py" and "_nbs" not in p.parts]


def tracked() -> list[Path]:
    "Files that git tracks or would track."
    command = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = [ROOT / f for f in sorted(set(out.stdout.split("\0"))) if f]
    return [p for p in found if p.is_file()]


def imports(path: Path) -> set[str]:
    "Dotted names under rlpapers that a module imports, relative ones resolved."
    here = ("rlpapers", *path.relative_to(PACKAGE).with_suffix("").parts)
    found = set()
    for n in ast.walk(ast.parse(path.read_text())):
        if isinstance(n, ast.Import):
            found |= {a.name for a in n.names}
        elif isinstance(n, ast.ImportFrom):
            base = ".".join(here[: -n.level]) if n.level else ""
            base = ".".join(filter(None, [base, n.module]))
            found |= {base} | {f"{base}.{a.name}" for a in n.names}
    return {m for m in found if m.split(".")[0] == "rlpapers"}
