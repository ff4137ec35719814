"The habits every notebook keeps."

import ast
import re
from copy import deepcopy

import nbformat
import pytest
from nbdev.clean import clean_nb
from tree import (
    BUILT,
    NBS,
    PYPROJECT,
    body,
    cells,
    directive,
    modules,
    name,
    notebooks,
    parameters,
    tracked,
)

ALL = notebooks()
LIBRARY = [p for p in ALL if directive(p, "default_exp")]
TAGGED = [p for p in ALL if parameters(p)]
every = pytest.mark.parametrize("path", ALL, ids=name)
library = pytest.mark.parametrize("path", LIBRARY, ids=name)
experiment = pytest.mark.parametrize("path", TAGGED, ids=name)

# Folders of a machine, put together so that this file holds no such path itself.
HOMES = "|".join(["root", "work", "farm", "opt/wheels", r"home/\w+", r"Users/\w+"])
SYSTEM = "|".join(
    ["tmp", "var/folders", "usr/lib/python", "usr/local/lib", "opt", "mnt"]
)
START = r"(?<![\w.~<}\]*-])"
DEVELOPER = re.compile(rf"{START}/(?:{HOMES})/")
PACKAGES = rf"{START}/\S*(?:site|dist)-packages/"
MACHINE = re.compile(rf"{DEVELOPER.pattern}|{START}/(?:{SYSTEM})(?![a-z])|{PACKAGES}")


def test_something_is_found():
    found = {p.parent.name for p in ALL}
    assert {"nbs", "core", "cli", *BUILT} <= found and BUILT, found
    assert {NBS / "index.ipynb", NBS / "claims.ipynb"} <= set(ALL)
    assert len(LIBRARY) >= 10, LIBRARY
    assert {p.parent.name for p in TAGGED} == set(BUILT)


@every
def test_title_and_subtitle(path):
    first = cells(path, "markdown")[0]["source"]
    first = re.sub(r"^#\|.*\n", "", first)
    assert re.match(r"# \S.*\n\n> \S[^\n]*\.$", first.strip()), first


def is_import(n: ast.stmt) -> bool:
    "An import, or `if TYPE_CHECKING:` with nothing but imports."
    if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING":
        return not n.orelse and all(map(is_import, n.body))
    return isinstance(n, (ast.Import, ast.ImportFrom))


@every
def test_imports_stand_alone(path):
    for c in cells(path):
        kinds = {is_import(n) for n in body(c["source"])}
        alone = kinds != {True, False} or "nbdev_export()" in c["source"]
        assert alone, c["source"]


@every
def test_imports_are_absolute(path):
    for c in cells(path):
        for n in ast.walk(ast.Module(body(c["source"]), [])):
            assert not (isinstance(n, ast.ImportFrom) and n.level), c["source"]


@every
def test_clean(path):
    nb = nbformat.read(path, 4)
    allowed = PYPROJECT["tool"]["nbdev"]["allowed_cell_metadata_keys"]
    cleaned = deepcopy(nb)
    clean_nb(cleaned, allowed_cell_metadata_keys=allowed)
    assert nb == cleaned, "run nbdev-clean"
    assert all(c.get("id") for c in nb.cells), "a cell has no id: run nbdev-clean"


@every
def test_small(path):
    assert path.stat().st_size < 300_000


def outputs(path):
    "Text of every output of a notebook; pictures left out."
    for c in cells(path):
        for o in c["outputs"]:
            yield "".join(o.get("text", []))
            yield "\n".join(o.get("traceback", []))
            for kind, data in o.get("data", {}).items():
                if kind.startswith("text/") or kind.endswith("json"):
                    yield data if isinstance(data, str) else "".join(data)


@every
def test_outputs_hold_no_machine(path):
    for text in outputs(path):
        assert not (m := MACHINE.search(text)), text[max(0, m.start() - 60) :][:200]
        address = re.search(r" at 0x[0-9a-f]{6,}", text)
        assert not address, f"changes with every save: {text[:200]}"


@every
def test_outputs_hold_no_error(path):
    for c in cells(path):
        for o in c["outputs"]:
            assert o["output_type"] != "error", o


def test_files_hold_no_path_of_a_developer():
    kinds = {".py", ".ipynb", ".md", ".yaml", ".yml", ".json", ".csv", ".toml", ".sh"}
    found = [p for p in tracked() if p.suffix in kinds or p.suffix == ""]
    assert len(found) > 30
    for p in found:
        text = re.sub(r'"image/png": "[^"]*"', "", p.read_text())
        assert not (m := DEVELOPER.search(text)), f"{name(p)}: {text[m.start() :][:80]}"


@pytest.mark.parametrize("key", BUILT)
def test_stored_results_hold_no_machine(key):
    found = [p for p in tracked() if (NBS / key / "results") in p.parents]
    found = [p for p in found if p.suffix in {".json", ".csv", ".yaml", ".txt"}]
    assert found, f"nothing is stored under nbs/{key}/results"
    for p in found:
        assert not (m := MACHINE.search(p.read_text())), f"{name(p)}: {m and m[0]}"


# The pattern itself: what it must see and what it must leave alone.
@pytest.mark.parametrize("folder", ["tmp/x", "root/x", "home/ada/x", "work/main/x"])
def test_machine_is_seen(folder):
    for text in [f"/{folder}", f"File '/{folder}', line 3", f"in: /{folder}/y"]:
        assert MACHINE.search(text), text
    packages = "/".join(
        ["", "v", "lib", "python3.11", "site-packages", "torch", "a.py"]
    )
    assert MACHINE.search(packages)


@pytest.mark.parametrize(
    "text",
    ["results/small/study", "https://x.org/{}", "a/{}", "sweep-{}", "<b>/options"],
)
def test_machine_is_not_seen(text):
    assert not MACHINE.search(text.format("/".join(["home", "ada", "b"])))


@library
def test_library_notebook_has_its_name(path):
    assert re.fullmatch(r"\d\d_[a-z0-9]+(_[a-z0-9]+)*", path.stem), path.stem
    expected = f"{path.parent.name}.{path.stem[3:]}"
    assert directive(path, "default_exp") == expected


@library
def test_library_notebook_ends_with_export(path):
    last = cells(path)[-1]["source"]
    assert last.split() == "#| hide import nbdev nbdev.nbdev_export()".split(), last


def test_numbers_within_a_folder_are_distinct():
    numbered = [(p.parent, p.stem[:2]) for p in ALL if p.parent != NBS]
    twice = {n for n in numbered if numbered.count(n) > 1}
    assert not twice, twice


@pytest.mark.parametrize("key", BUILT)
def test_a_paper_has_its_fixed_notebooks(key):
    stems = [p.stem[3:] for p in ALL if p.parent == NBS / key]
    assert stems[0] == "overview"
    assert {"params", "claims", "bench"} <= set(stems)
    exported = [p.stem[3:] for p in LIBRARY if p.parent == NBS / key]
    assert exported[0] == "params" and exported[-2:] == ["claims", "bench"], exported


@library
def test_lower_numbers_do_not_import_higher_ones(path):
    order = [p.stem[3:] for p in LIBRARY if p.parent == path.parent]
    own, package = path.stem[3:], f"rlpapers.{path.parent.name}"
    later = {f"{package}.{m}" for m in order[order.index(own) + 1 :]}
    for c in cells(path):
        if re.search(r"^#\|\s*export", c["source"], flags=re.M):
            for n in ast.walk(ast.Module(body(c["source"]), [])):
                if isinstance(n, ast.ImportFrom):
                    full = {n.module} | {f"{n.module}.{a.name}" for a in n.names}
                elif isinstance(n, ast.Import):
                    full = {a.name for a in n.names}
                else:
                    continue
                assert not (full & later), f"{path.stem} imports {full & later}"


@experiment
def test_experiment_runs_from_the_base_install(path):
    for c in cells(path):
        flags = re.findall(r"^#\| *([\w-]+:? *\w*)", c["source"], flags=re.M)
        bad = {"slow", "gpu"} | {f"eval:{s}false" for s in ("", " ")}
        assert not bad & {f.strip() for f in flags}, c["source"]
        for n in body(c["source"]):
            if isinstance(n, ast.ImportFrom):
                heads = {n.module.split(".")[0]}
            elif isinstance(n, ast.Import):
                heads = {a.name.split(".")[0] for a in n.names}
            else:
                continue
            assert not heads & {"nbdev", "fastcore"}, c["source"]


@experiment
def test_parameters_are_typed_defaults(path):
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    for n in body(tagged[0]["source"]):
        assert isinstance(n, ast.AnnAssign) and n.value is not None, ast.unparse(n)
        assert isinstance(n.annotation, ast.Name), f"papermill: {ast.unparse(n)}"
        ast.literal_eval(n.value)


@pytest.mark.parametrize("path", modules(), ids=name)
def test_public_names_are_documented(path):
    tree = ast.parse(path.read_text())
    for n in tree.body:
        kinds = (ast.FunctionDef, ast.ClassDef)
        if isinstance(n, kinds) and not n.name.startswith("_"):
            assert ast.get_docstring(n), f"{name(path)}: {n.name} has no docstring"
