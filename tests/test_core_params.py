"Parameters: YAML, pairs, merge, presets and messages."

import math
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from rlpapers import core
from rlpapers.core import params as P_
from rlpapers.core import paths
from rlpapers.core.params import P, ParamError, Params, merge, read_yaml, resolve

INI = """[DEFAULT]
runs_path = _runs
device = cpu
threads = 1
jobs = 2
seeds = 5
minutes = 5
[smoke]
seeds = 2
[small]
[h100]
device = cuda
"""


class Study(Params):
    gamma: float = P(0.99, "discount", ge=0, le=1)
    steps: int = P(..., "length", unit="steps", ge=1)
    sizes: list[int] = P([64, 64], "layers", min_length=1)
    clip: Annotated[float, Field(gt=0)] | Literal["off"] = P("off", "clip range")
    rule: Literal["sum", "mean"] = P("sum", "how")

    @model_validator(mode="after")
    def _check(self):
        if self.rule == "mean" and self.clip == "off":
            raise ValueError("rule=mean needs a clip range")
        return self


PARAMS = {"study": Study}


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A checkout with one paper, vrail."
    (tmp_path / "settings.ini").write_text(INI)
    presets = tmp_path / "nbs" / "vrail" / "presets"
    presets.mkdir(parents=True)
    (presets / "small.yaml").write_text("study: {steps: 10, gamma: 1e-1}\n")
    (presets / "smoke.yaml").write_text("study: {steps: 2}\n")
    (presets / "h100-big.yaml").write_text("study:\n  steps: null\n")
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    return tmp_path


def test_merge_order_and_origin(project, monkeypatch):
    r = resolve(Study, "vrail", "study", "small", {"seed": 3, "steps": None})
    assert (r.params.steps, r.params.gamma, r.params.seed) == (10, 0.1, 3)
    assert r.params.seeds == 5 and r.params.sizes == [64, 64]
    assert r.origin == {
        "seed": "given",
        "seeds": "settings.ini",
        "device": "settings.ini",
        "gamma": "preset",
        "steps": "preset",
        "sizes": "default",
        "clip": "default",
        "rule": "default",
    }
    assert "| `gamma` | `0.1` |  | preset | discount |" in r.params._repr_markdown_()
    monkeypatch.setenv("RLPAPERS_PRESET", "smoke")
    assert resolve(Study, "vrail", "study").params.seeds == 2
    monkeypatch.delenv("RLPAPERS_PRESET")
    assert resolve(Study, "vrail", "study").preset == "small"


def test_sizes_of_presets(project):
    assert core.preset_names("vrail") == ["smoke", "small", "h100-big"]
    assert core.settings("h100-big").device == "cuda"
    loaded = core.load_preset("vrail", "study", "small")
    assert loaded == {"device": "cpu", "seeds": 5, "steps": 10, "gamma": 0.1}
    assert core.load_preset("vrail", "other", "small") == {"device": "cpu", "seeds": 5}


@pytest.mark.parametrize(
    "given, words",
    [
        (
            {"gama": 1.0},
            "unknown parameter 'gama' for vrail/study; did you mean 'gamma'?",
        ),
        ({"gama": None}, "unknown parameter 'gama'"),
        ({"gamma": "x"}, "gamma: got 'x' (str); expected float in [0, 1]"),
        ({"gamma": 1.5}, "gamma: got 1.5 (float); expected float in [0, 1]"),
        ({"gamma": math.nan}, "gamma: got nan (float)"),
        ({"seeds": True}, "seeds: got True (bool); expected int >= 1"),
        ({"steps": 2.0}, "steps: got 2.0 (float); expected int >= 1"),
        ({"seed": -1}, "seed: got -1 (int); expected int >= 0"),
        (
            {"device": "gpu"},
            'device: got \'gpu\' (str); expected str one of "cpu", "cuda"',
        ),
        ({"sizes": []}, "sizes: got [] (list); expected list of int and length >= 1"),
        ({"sizes": [1, "a"]}, "sizes: got 'a' (str); expected list of int"),
        ({"clip": "on"}, "clip: got 'on' (str); expected float > 0 or \"off\""),
        ({"clip": -1.0}, "clip: got -1.0 (float)"),
        ({"rule": "mean"}, "vrail/study: rule=mean needs a clip range"),
        ({"gamma": 2, "seed": -1}, " | "),
    ],
)
def test_messages(project, given, words):
    with pytest.raises(ParamError) as e:
        resolve(Study, "vrail", "study", "small", given)
    assert words in str(e.value) and "\n" not in str(e.value)
    assert isinstance(e.value, core.UserError) and isinstance(e.value, ValueError)


def test_unknown_value_is_refused_by_key_and_can_be_given(project):
    with pytest.raises(ParamError, match="steps of vrail/study has no known value"):
        resolve(Study, "vrail", "study", "h100-big")
    r = resolve(Study, "vrail", "study", "h100-big", {"steps": 5})
    assert r.params.steps == 5 and r.params.device == "cuda"


@pytest.mark.parametrize(
    "text, words",
    [
        ("study: {stepz: 3}", "unknown parameter 'stepz' for vrail/study (in preset)"),
        ("stdy: {steps: 3}", "small.yaml: no experiment 'stdy'; did you mean 'study'?"),
        ("study: 3", "'study' is not a block"),
        ("- study", "expected a block per experiment"),
        ("study: {steps: 3, steps: 4}", "small.yaml, line 1: 'steps' stands twice"),
        ("study: {steps: x}", "steps (in preset): got 'x' (str)"),
        ("study: {steps: [", "small.yaml, line"),
        ("study: !!python/object:os.system {}", "small.yaml, line"),
    ],
)
def test_bad_preset_files(project, text, words):
    (project / "nbs/vrail/presets/small.yaml").write_text(text)
    with pytest.raises(ParamError) as e:
        resolve(Study, "vrail", "study", "small")
    assert words in str(e.value)


def test_unknown_names_list_the_known(project):
    with pytest.raises(ParamError, match="did you mean 'small'. known: smoke, small"):
        resolve(Study, "vrail", "study", "smal")
    with pytest.raises(ParamError, match="known: smoke, small, h100"):
        core.settings("tiny")
    with pytest.raises(core.UserError, match="did you mean 'vrail'"):
        resolve(Study, "vrial", "study", "small")
    with pytest.raises(core.UserError, match="unknown experiment 'x' of vrail"):
        core.notebook("vrail", "x")
    (project / "settings.ini").write_text(INI.replace("jobs = 2", "jobs = two"))
    with pytest.raises(ParamError, match="cannot read settings.ini"):
        core.settings("small")


def test_papers_in_the_order_of_papers_yaml(project):
    for name in ("lqr", "aent", "causal_reflection"):
        (project / "nbs" / name / "presets").mkdir(parents=True)
    assert core.papers() == ["aent", "causal_reflection", "lqr", "vrail"]
    order = "- key: vrail\n- key: mdpo\n- causal-reflection\n"
    (project / "nbs" / "papers.yaml").write_text(order)
    assert core.papers() == ["vrail", "causal_reflection", "aent", "lqr"]
    (project / "nbs" / "vrail" / "03_study.ipynb").write_text("{}")
    assert core.notebook("vrail", "study").name == "03_study.ipynb"
    assert paths.paper_name("Causal-Reflection") == "causal_reflection"


def test_home_of_a_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    assert not core.is_checkout()
    assert core.home() == tmp_path / "rlpapers" / "_nbs"
    assert core.settings_file() == core.home() / "settings.ini"


def test_model_finds_its_experiment(monkeypatch):
    assert P_.identify(Study, paper="vrail") == ("vrail", "study")
    monkeypatch.setattr(Study, "__module__", "rlpapers.vrail.params")
    monkeypatch.setitem(__import__("sys").modules, "rlpapers.vrail.params", P_)
    monkeypatch.setattr(P_, "PARAMS", {"main": Params, "study": Study}, raising=False)
    assert P_.identify(Study) == ("vrail", "study")


def test_describe():
    rows = {d["name"]: d for d in core.describe(Study)}
    assert list(rows)[:3] == ["seed", "seeds", "device"]
    assert {n: d["type"] for n, d in rows.items()} == {
        "seed": "int",
        "seeds": "int",
        "device": "str",
        "gamma": "float",
        "steps": "int",
        "sizes": "list",
        "clip": "float",
        "rule": "str",
    }
    assert rows["steps"]["default"] is ... and rows["steps"]["unit"] == "steps"
    assert rows["rule"]["constraints"] == 'one of "sum", "mean"'


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive_yaml_in_every_notation(x):
    for text in (repr(x), f"{x:.17e}", f"{x:.17E}".replace("E+", "E")):
        back = read_yaml(text)
        assert isinstance(back, float) and back == x


@given(st.integers(-(10**12), 10**12))
def test_integers_survive_yaml(n):
    assert read_yaml(str(n)) == n and type(read_yaml(str(n))) is int
    assert read_yaml(f"{n:_}") == n


@pytest.mark.parametrize("word", ["off", "on", "yes", "no", "2020-01-01", "1:30", "e5"])
def test_words_stay_text(word):
    assert read_yaml(word) == word


@pytest.mark.parametrize(
    "text, value",
    [("1e-4", 1e-4), ("1E5", 1e5), (".5", 0.5), ("3.", 3.0), ("-.inf", -math.inf)]
    + [
        ("010", 10),
        ("true", True),
        ("null", None),
        ("~", None),
        ("[1, 2e0]", [1, 2.0]),
    ],
)
def test_values(text, value):
    assert read_yaml(text) == value and type(read_yaml(text)) is type(value)


def test_pairs():
    assert core.parse_pairs(["a=1", "b=x=y", "c=", "d=[1, off]"]) == {
        "a": 1,
        "b": "x=y",
        "c": "",
        "d": [1, "off"],
    }
    for bad in (["a"], ["=1"], ["a b=1"], ["a=1", "a=2"], ["a=[1"]):
        with pytest.raises(ParamError):
            core.parse_pairs(bad)
    for null in ("null", "~", "NULL", " # nothing", "[1, null]"):
        with pytest.raises(ParamError) as e:
            core.parse_pairs(["seed=1", f"gamma={null}"])
        assert str(e.value) == "gamma: null means nothing here; leave it out"


@given(
    st.builds(
        Study,
        gamma=st.floats(0, 1),
        steps=st.integers(1, 10**9),
        sizes=st.lists(st.integers(), min_size=1),
        clip=st.floats(1e-9, 1e9) | st.just("off"),
    )
)
def test_params_survive_their_own_text(p):
    from rlpapers.core.folder import params_text

    back = merge(Study, {"given": read_yaml(params_text(p))})[0]
    assert back == p and hash(back) == hash(p)


def test_import_is_light():
    import subprocess
    import sys

    code = "import rlpapers.core, sys; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    heavy = {"torch", "pandas", "matplotlib", "scipy", "pydantic", "numpy", "yaml"}
    assert out.returncode == 0 and not heavy & set(out.stdout.split())
    code = "import rlpapers.core.run, sys; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    heavy = {"torch", "pandas", "matplotlib", "scipy"}
    assert out.returncode == 0 and not heavy & set(out.stdout.split())


def test_every_public_name_of_core_is_there():
    for name in core.__all__:
        assert getattr(core, name) is not None
    with pytest.raises(AttributeError):
        core.nonsense  # noqa: B018
