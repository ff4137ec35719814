"Claims: rules of the status, the file, and the way from evidence to table."

import io
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.core import claims as C
from rlpapers.core import paths
from rlpapers.core.claims import STATUSES, ClaimError, Finding, combine, decide
from rlpapers.core.paths import UserError
from rlpapers.core.stats import Interval, wilson

TEXT = """# What the example paper says.

# Counted as the paper does.
- id: stability
  statement: All runs converge.
  source: fig. 3
  paper_value: 10/10
  preset: small
  evidence: [small/study]
- id: speed
  statement: "It is faster: by a tenth."
  source: table 1
  paper_value: 1e-1
  preset: h100
  evidence: [h100/study, small/study]
  needs: one H100, 20 minutes

# the end
"""
interval = st.tuples(st.floats(-5, 5), st.floats(-5, 5)).map(sorted)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A checkout with one paper, its claims, one stored result and an index."
    nbs = tmp_path / "nbs"
    (nbs / "fake" / "presets").mkdir(parents=True)
    (tmp_path / "settings.ini").write_text("")
    (nbs / "papers.yaml").write_text(
        "- {key: fake, title: A fake, arxiv: '2506.00001'}\n"
        "- {key: other, title: Another, arxiv: '2506.00002'}\n"
    )
    (nbs / "fake" / "claims.yaml").write_text(TEXT)
    store = nbs / "fake" / "results" / "small" / "study"
    store.mkdir(parents=True)
    (store / "result.json").write_text(json.dumps({"converged": 8, "runs": 10}))
    monkeypatch.setattr(paths, "root", lambda: tmp_path)

    def stability(evidence):
        r = evidence[0].result
        i = wilson(r["converged"], r["runs"])
        status = decide(False, i, effect=1.0, null=0.5)
        return Finding(f"{r['converged']}/{r['runs']}", i, status=status)

    functions = {"stability": stability, "speed": lambda evidence: 1 / 0}
    module = SimpleNamespace(CLAIMS=functions)
    monkeypatch.setitem(sys.modules, "rlpapers.fake.claims", module)
    return tmp_path


def claims_file(root):
    return root / "nbs" / "fake" / "claims.yaml"


# --- status


@pytest.mark.parametrize(
    "passed, ends, effect, power, expected",
    [
        (True, (0.1, 0.3), 0.2, None, "reproduced"),
        (True, (0.3, 0.5), 0.2, None, "reproduced"),  # larger than the paper's
        (True, None, None, None, "reproduced"),
        (True, (-0.3, -0.1), 0.2, None, "contradicted"),  # passed, but the wrong way
        (False, (-0.3, -0.1), 0.2, 0.9, "contradicted"),
        (False, (-0.3, 0.0), 0.2, None, "not reproduced"),  # touches no effect
        (False, (-0.1, 0.19), 0.2, None, "not reproduced"),  # excludes the effect
        (False, (-0.1, 0.2), 0.2, None, "undecided"),  # touches the effect
        (False, (-0.1, 0.3), 0.2, 0.8, "not reproduced"),  # had the power
        (False, (-0.1, 0.3), 0.2, 0.79, "undecided"),
        (False, (-math.inf, math.inf), 0.2, None, "undecided"),  # one run
        (False, (None, None), 0.2, None, "undecided"),  # the same, from JSON
        (False, None, None, None, "undecided"),
        (True, (0.1, 0.3), -0.2, None, "contradicted"),  # the paper's effect is a loss
    ],
)
def test_decide_follows_the_rules(passed, ends, effect, power, expected):
    assert decide(passed, ends, effect, power=power) == expected


@given(st.booleans(), interval, st.floats(-5, 5), st.floats(-5, 5))
def test_decide_is_symmetric_and_shift_free(passed, ends, effect, null):
    status = decide(passed, ends, effect, null)
    low, high = ends
    assert status == decide(passed, (-high, -low), -effect, -null)
    assert status in STATUSES and status != "partly"


@given(interval, st.floats(-5, 5))
def test_decide_without_a_pass_is_never_reproduced(ends, effect):
    assert decide(False, ends, effect) != "reproduced"


def test_decide_takes_an_interval_and_a_direction():
    assert decide(False, Interval(0.8, 0.5, 0.9, 10), null=0.4, direction="less") == (
        "contradicted"
    )
    assert decide(True, (0.1, 0.2), direction="greater") == "reproduced"
    for bad in [{"direction": "up"}, {"power": 2}, {"interval": (2, 1)}]:
        with pytest.raises(ClaimError):
            decide(True, **bad)
    with pytest.raises(ClaimError, match="low <= high"):
        decide(True, (math.nan, 1.0))


@given(st.lists(st.sampled_from(STATUSES), min_size=1, max_size=5))
def test_combine_properties(kinds):
    one = combine(kinds)
    assert one == combine(kinds[::-1]) and one == combine([one, *kinds])
    assert (one == "reproduced") == (set(kinds) == {"reproduced"})
    assert (one == "partly") == (
        one != "reproduced" and bool({*kinds} & {*STATUSES[:2]})
    )


def test_combine_of_cases_not_run():
    away = "not run (needs a GPU)"
    assert combine([away, away]) == away
    assert combine(["reproduced", away]) == "partly"
    assert combine(["undecided", away]) == "undecided"
    with pytest.raises(ClaimError, match="at least one case"):
        combine([])


@pytest.mark.parametrize(
    "bad", ["Reproduced", "", "not run", "not run (needs )", "yes"]
)
def test_only_the_vocabulary(bad):
    with pytest.raises(ClaimError, match="status must be one of"):
        Finding(1.0, status=bad)


# --- findings


def test_finding_rounds_and_becomes_plain():
    f = Finding(np.float64(4.123456), (np.float32(3.0), 12345.678), np.int64(4))
    assert (f.ours, f.interval, f.n) == (4.123, [3.0, 12350.0], 4)
    assert type(f.ours) is float and type(f.n) is int
    assert Finding(-0.0).ours == 0 and str(Finding(-0.0).ours) == "0.0"
    assert Finding(123456).ours == 123456  # whole numbers stay
    assert Finding([np.float64(1 / 3), 2]).ours == [0.3333, 2]


def test_finding_takes_an_interval():
    f = Finding("8/10", wilson(8, 10))
    assert (f.interval, f.n) == ([0.4902, 0.9433], 10)
    assert Finding("8/10", wilson(8, 10), 5).n == 5


@pytest.mark.parametrize(
    "args", [(math.nan,), (object(),), (1, (1, math.nan)), (1, (3, 2)), (1, (1, 2, 3))]
)
def test_finding_refuses(args):
    with pytest.raises(ClaimError):
        Finding(*args)


# --- the file


def test_parse_reads_numbers_and_defaults():
    a, b = C.parse_claims(TEXT)
    assert (a.paper_value, b.paper_value) == ("10/10", 0.1)
    assert a.status.startswith("not run") and a.ours is None
    assert C.parse_claims("# nothing yet\n") == []


@pytest.mark.parametrize(
    "old, new, why",
    [
        ("source: fig. 3\n", "source: ''\n", "stability: source"),
        ("  source: fig. 3\n", "", "stability: source: Field required"),
        ("id: speed", "id: stability", "stability occurs twice"),
        ("id: speed", "id: Speed!", "id: String should match"),
        ("small/study]\n- id", "results/small/study]\n- id", "evidence.0"),
        ("preset: small", "preset: full", "'full' is not among its evidence"),
        ("needs: one", "status: maybe\n  needs: one", "status must be one of"),
        ("needs: one", "paper: x\n  needs: one", "speed: paper: Extra inputs"),
        ("needs: one", "id: x\n  needs: one", "'id' stands twice"),
        ("- id: speed", "id: speed", "line"),
    ],
)
def test_parse_names_the_fault_in_one_line(old, new, why):
    assert old in TEXT
    with pytest.raises(ClaimError) as e:
        C.parse_claims(TEXT.replace(old, new, 1), "fake/claims.yaml")
    assert str(e.value).startswith("fake/claims.yaml: ") and why in str(e.value)
    assert "\n" not in str(e.value) and isinstance(e.value, UserError)


def test_rewrite_keeps_what_is_written_by_hand():
    f = Finding(0.21, (0.1, 0.30004), 10, "reproduced", "paired test: p = 0.01")
    new = C.rewrite(TEXT, {"speed": f})
    old_rows, rows = yaml.safe_load(TEXT), yaml.safe_load(new)
    for a, b in zip(old_rows, rows, strict=True):
        by_hand = {"id", "statement", "source", "preset", "evidence", "needs"} & set(a)
        assert {k: a[k] for k in by_hand} == {k: b[k] for k in by_hand}
    assert rows[1]["paper_value"] == 0.1
    assert (rows[1]["ours"], rows[1]["interval"]) == (0.21, [0.1, 0.3])
    assert rows[1]["note"] == "paired test: p = 0.01" and rows[0]["ours"] is None
    assert [line for line in new.splitlines() if line.startswith("#")] == [
        line for line in TEXT.splitlines() if line.startswith("#")
    ]
    assert C.rewrite(new, {"speed": f}) == new == C.rewrite(new, {})


text = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]),
    min_size=1,
)
value = st.none() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False) | text


@settings(max_examples=60, deadline=None)
@given(
    text,
    value.filter(lambda v: v not in (math.inf, -math.inf)),
    value,
    interval,
    st.integers(1, 99),
)
def test_rewrite_round_trips_any_value(statement, paper_value, ours, ends, n):
    row = dict(id="a", statement=statement, source="s", paper_value=paper_value)
    f = Finding(ours, ends, n, "undecided", statement)
    new = C.rewrite("- " + json.dumps(row, ensure_ascii=False), {"a": f})
    (claim,) = C.parse_claims(new)
    assert (claim.statement, claim.paper_value) == (statement, paper_value)
    assert (claim.ours, claim.note, claim.n) == (f.ours, f.note, n)
    assert list(claim.interval) == f.interval
    assert C.rewrite(new, {}) == new


def test_rewrite_refuses_unknown_ids_and_odd_layout():
    with pytest.raises(ClaimError, match="no claim has the id x"):
        C.rewrite(TEXT, {"x": Finding()})
    with pytest.raises(ClaimError, match="at the start of a line"):
        C.rewrite("[{id: a, statement: x, source: s}]\n", {})


# --- from evidence to table


def test_recompute_reads_the_evidence(checkout):
    found = C.recompute("fake")
    assert list(found) == ["stability", "speed"]
    assert found["stability"] == Finding("8/10", (0.4902, 0.9433), 10, "not reproduced")
    assert found["speed"].status == "not run (needs one H100, 20 minutes)"


def test_update_then_check_then_nothing_changes(checkout):
    assert C.load_claims("fake")[0].ours is None
    before = C.check("fake")
    assert any("stability: ours is None, evidence says '8/10'" in d for d in before)
    assert C.update("fake") == before
    first = claims_file(checkout).read_bytes()
    assert C.check("fake") == [] == C.update("fake")
    assert claims_file(checkout).read_bytes() == first
    assert not [p.name for p in claims_file(checkout).parent.glob("*.tmp")]


def test_check_sees_a_number_typed_by_hand(checkout):
    C.update("fake")
    file = claims_file(checkout)
    file.write_text(file.read_text().replace("0.4902", "0.5902"))
    (only,) = C.check("fake")
    assert "stability: interval" in only
    file.write_text(file.read_text().replace("0.5902", "0.4903"))
    assert C.check("fake") == []  # another library's last digit


def test_removed_evidence_takes_the_number_away(checkout):
    C.update("fake")
    store = checkout / "nbs" / "fake" / "results" / "small" / "study"
    (store / "result.json").unlink()
    store.rmdir()
    C.update("fake")
    a = C.load_claims("fake")[0]
    assert (a.ours, a.interval, a.n) == (None, None, None)
    assert a.status == "not run (needs small/study)"


def test_errors_of_claim_functions_are_one_line(checkout):
    functions = sys.modules["rlpapers.fake.claims"].CLAIMS
    functions["stability"] = lambda evidence: evidence[0].result["no such key"]
    with pytest.raises(ClaimError, match="fake: the claim stability failed: KeyError"):
        C.recompute("fake")
    functions["stability"] = lambda evidence: evidence[0].arrays("curves")
    with pytest.raises(UserError, match="curves"):
        C.recompute("fake")
    functions["stability"] = lambda evidence: "reproduced"
    with pytest.raises(ClaimError, match="gave 'reproduced', no Finding"):
        C.recompute("fake")
    del functions["stability"]
    with pytest.raises(ClaimError, match="stability is missing from CLAIMS"):
        C.recompute("fake")
    functions |= {"stability": None, "extra": None}
    with pytest.raises(ClaimError, match="extra is missing from claims.yaml"):
        C.recompute("fake")


def test_unknown_papers_and_missing_parts(checkout, monkeypatch):
    with pytest.raises(UserError, match="fak"):
        C.load_claims("fak")
    monkeypatch.delitem(sys.modules, "rlpapers.fake.claims")
    with pytest.raises(ClaimError, match="no module claims"):
        C.recompute("fake")
    claims_file(checkout).unlink()
    with pytest.raises(ClaimError, match="fake has no claims.yaml"):
        C.load_claims("fake")
    assert len(C.table()) == 0


def test_update_needs_a_checkout(checkout):
    (checkout / "settings.ini").unlink()
    for f in (lambda: C.update("fake"), C.update_index):
        with pytest.raises(ClaimError, match="checkout"):
            f()


def test_table_is_fit_for_a_page(checkout):
    C.update("fake")
    t = C.table()
    assert list(t.columns) == [*C.COLUMNS] and len(t) == 2
    assert t.iloc[0].tolist()[2:] == [
        "10/10 (fig. 3)",
        "8/10 [0.49, 0.943]",
        "10",
        "not reproduced",
        "small/study",
    ]
    assert t.equals(C.table("fake")) and t.equals(C.table(["fake"]))
    text = C.render()
    assert len({line.count("|") for line in text.splitlines()}) == 1
    with pytest.raises(ClaimError, match="markdown or rich"):
        C.render(to="html")


def test_rich_table_keeps_brackets(checkout):
    from rich.console import Console

    C.update("fake")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(C.render(to="rich"))
    assert "8/10 [0.49, 0.943]" in console.export_text()


def test_index_is_written_once(checkout):
    marks = "<!-- papers:start -->\n<!-- papers:end -->\n"
    readme, index = checkout / "README.md", checkout / "nbs" / "index.ipynb"
    readme.write_text(f"# Title\n\n{marks}\nrest\n")
    cells = [{"cell_type": "markdown", "source": ["# é\n"]}]
    cells += [{"cell_type": "markdown", "source": marks.splitlines(keepends=True)}]
    index.write_text(json.dumps({"cells": cells, "nbformat": 4}), encoding="utf-8")
    C.update("fake")
    assert C.update_index(write=False) == ["README.md", "index.ipynb"]
    assert "A fake" not in readme.read_text()
    assert C.update_index() == ["README.md", "index.ipynb"]
    assert C.update_index() == [] == C.update_index(write=False)
    source = "".join(json.loads(index.read_text())["cells"][1]["source"])
    assert source.strip() in readme.read_text() and "é" in index.read_text()
    rows = [r.split("|")[3:-1] for r in source.splitlines() if r.startswith("| `")]
    assert [c.strip() for c in rows[0]] == ["", "", "1", "", "", "1"]
    assert rows[1][0].strip() == "planned"
    assert readme.read_text().endswith("\nrest\n")
    readme.write_text("no marks")
    with pytest.raises(ClaimError, match="README.md has no"):
        C.update_index()
