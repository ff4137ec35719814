"The wheel holds all that a run needs, and works from an empty folder."

import os
import subprocess
import sys
import zipfile

import pytest
from toy import CLI, ROOT, checkout

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]


def build(source, folder):
    "The wheel of a source tree, made without a network."
    flags = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    env = {**os.environ, "PIP_NO_INDEX": "1"}
    command = [*PIP, "wheel", *flags, str(source)]
    subprocess.run(command, check=True, env=env, capture_output=True)
    return next(folder.glob("rlpapers-*.whl"))


def install(wheel, target):
    "Install a wheel, without what it depends on, in a folder of its own."
    flags = ["--no-deps", "--no-index", "--no-compile", "--target", str(target)]
    subprocess.run(
        [*PIP, "install", *flags, str(wheel)], check=True, capture_output=True
    )
    return target


def files(*names):
    "Files of these folders of the checkout that git knows or would know."
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", *names]
    p = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [f for f in p.stdout.splitlines() if (ROOT / f).is_file()]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    "A copy of the checkout, so that no build folder is left in it."
    root = tmp_path_factory.mktemp("source")
    if (ROOT / ".git").exists():
        top = (
            "settings.ini pyproject.toml setup.py MANIFEST.in README.md LICENSE".split()
        )
        for f in files("rlpapers", "nbs", *top):
            to = root / f
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes((ROOT / f).read_bytes())
    else:
        pytest.skip("needs a git checkout")
    if not list((root / "nbs").glob("*/presets/smoke.yaml")):
        for part in ("rlpapers/toy", "nbs/toy"):
            small = root.parent / "toy"
            if not small.exists():
                checkout(small)
            os.renames(small / part, root / part)
    return root


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def cli(wheel, tmp_path_factory):
    "The installed command, in an empty folder."
    package = install(wheel, tmp_path_factory.mktemp("installed"))
    return CLI(package, tmp_path_factory.mktemp("empty"))


def test_holds_what_it_needs(wheel, source):
    held = set(zipfile.ZipFile(wheel).namelist())
    kinds = {".ipynb", ".yaml", ".csv", ".json", ".npz"}
    for f in (source / "nbs").rglob("*"):
        name = f.relative_to(source / "nbs")
        if f.suffix in kinds and not any(p[0] in "._" for p in name.parts):
            assert f"rlpapers/_nbs/{name}" in held, name
    assert "rlpapers/_nbs/settings.ini" in held
    python = [f.relative_to(source) for f in (source / "rlpapers").rglob("*.py")]
    assert {str(f) for f in python} <= held
    strange = [
        n for n in held if n.startswith(("nbs/", "tests/")) or ".ipynb_check" in n
    ]
    assert strange == []


def test_works_from_an_empty_folder(cli):
    listed = cli("list")
    paper = next(line.split()[0] for line in listed.splitlines() if "smoke" in line)
    assert "smoke" in cli("show", paper)
    said = cli("run", paper, "--preset", "smoke")
    runs = list(cli.cwd.glob(f"_runs/{paper}/*/smoke/r001"))
    assert len(runs) == 1 and "next: rlpapers run" in said
    assert (runs[0] / "result.json").exists() or (runs[0] / "result.csv").exists()
    assert len(list(runs[0].glob("*.ipynb"))) == 1


def test_refuses_what_needs_a_checkout(cli):
    paper = next(s.split()[0] for s in cli("list").splitlines() if "smoke" in s)
    assert "needs a checkout" in cli.refused("test")
    assert "needs a checkout" in cli.refused("claims", "--update")
    assert "needs a checkout" in cli.refused("run", paper, "--store")
