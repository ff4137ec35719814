"Judging methods: transfer, common seeds, tables, paired tests, audit (T10, T14)."

import math

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from scipy import stats

pytest.importorskip("numba")
pytest.importorskip("igraph")

from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.communityhiding.angel import Angel
from rlpapers.communityhiding.audit import (
    audit_table,
    clustering,
    visibility,
)
from rlpapers.communityhiding.covers import (
    Cover,
    hiding_f1,
    jaccard,
    membership_similarity,
)
from rlpapers.communityhiding.demon import Demon
from rlpapers.communityhiding.evaluation import (
    evaluate,
    mcnemar_exact,
    noise_floor,
    paired_bootstrap,
    reidentified,
    summary_table,
)
from rlpapers.communityhiding.graphs import (
    TargetError,
    as_arrays,
    load_graph,
)
from rlpapers.communityhiding.heuristics import (
    DICEHider,
    DisconnectInternalHider,
    NaiveProxyHider,
    NoOpHider,
    RandomHider,
)
from rlpapers.communityhiding.nmi import overlapping_nmi
from rlpapers.communityhiding.partitions import PartitionDetector
from rlpapers.communityhiding.sessions import edited
from rlpapers.communityhiding.tasks import HidingTask, make_tasks
from rlpapers.core.stats import wilson

ALL = ("kar", "lesm", "words", "dol", "polb", "football", "vote", "nets", "pow")
ANGEL, DEMON = Angel(), Demon()
KARATE = as_arrays(load_graph("kar"))
TASKS = make_tasks(KARATE, ANGEL)


# ----------------------------------------------------------------- noise floor, T14


@pytest.mark.parametrize("name", ALL)
def test_doing_nothing_hides_nobody_with_the_same_seed(name):
    arrays = as_arrays(load_graph(name))
    for detector in (ANGEL, Angel(order="package"), DEMON):
        tasks = make_tasks(arrays, detector, count=12)
        rows = evaluate(NoOpHider(detector), tasks, detector, seeds=(0, 7))
        rows = rows[~rows.skipped]
        assert len(rows) >= 12
        assert rows.success.eq(0).all() and rows.nmi.eq(1).all()
        assert rows.similarity.eq(1).all() and rows.edits.eq(0).all()


def test_another_seed_hides_some_of_lesm():
    "The floor: no edit is made, yet some are in other communities (pilot: .09)."
    arrays = as_arrays(load_graph("lesm"))
    floor = noise_floor(make_tasks(arrays, ANGEL), ANGEL)
    assert len(floor.draw.unique()) == 10 and set(floor.seed) == set(range(1, 11))
    assert 0.02 < floor.success.mean() < 0.25
    assert noise_floor(TASKS, ANGEL).success.mean() == 0  # karate: none (pilot: 0)


def test_louvain_without_a_seed_hides_some_of_karate():
    louvain = PartitionDetector("louvain")
    floor = noise_floor(make_tasks(KARATE, louvain), louvain, range(1, 21))
    assert 0.02 < floor.success.mean() < 0.4


def test_nmi_drops_proxies():
    "A clique of proxies is a community; all that is left of it in V is the user."
    tasks = [t.replace(k=12, p=1.0) for t in TASKS[:6]]
    rows = evaluate(NaiveProxyHider(ANGEL), tasks, ANGEL)
    assert len(ANGEL.cover(tasks[0].start)) > len(ANGEL.cover(KARATE))
    before = ANGEL.cover(KARATE).sets()
    for row in rows.itertuples():
        want = overlapping_nmi(before, [*before, {row.target}])
        assert row.nmi == pytest.approx(want) and row.success == 0
    counted = [t.replace(count_proxies=True) for t in tasks]
    naive = evaluate(NaiveProxyHider(ANGEL), counted, ANGEL)
    assert naive.nmi.equals(rows.nmi) and (naive.similarity <= rows.similarity).all()


# ------------------------------------------------------------------------- transfer


def test_communities_are_looked_up_in_the_other_detector():
    for name in ("kar", "words"):
        arrays = as_arrays(load_graph(name))
        cover, seen = DEMON.cover(arrays), 0
        for task in make_tasks(arrays, ANGEL, count=30):
            mine = [c for c in cover.sets() if task.u in c]
            got = reidentified(task, cover)
            if not mine:
                assert got is None
                continue
            best = max(jaccard(c, task.C) for c in mine)
            assert jaccard(got, task.C) == best and got in mine
            assert got == next(c for c in mine if jaccard(c, task.C) == best)
            seen += len(mine) > 1
            assert reidentified(task, ANGEL.cover(arrays)) == task.C
    assert seen


def test_rows_by_hand():
    "Everything in a row, from the graphs and covers before and after."
    hider = DICEHider(ANGEL)
    detectors = {"angel": ANGEL, "demon": DEMON, "greedy": PartitionDetector("greedy")}
    rows = evaluate(hider, TASKS[:8], detectors, seeds=(0, 3))
    assert len(rows) == 8 * 3 * 2
    for row in rows.itertuples():
        task = TASKS[row.task]
        detector = detectors[row.detector].with_seed(row.seed)
        result = hider.hide(task)
        before = detector.cover(task.graph)
        after = detector.cover(edited(task, result.edits))
        C = reidentified(task, before)
        assert row.skipped == (C is None) and row.draw == (row.seed == 3)
        assert (row.target, row.size, row.k) == (task.target, len(task.C), task.k)
        assert row.edits == len(result.edits) and row.method == "DICE+P"
        assert row.proxy_edits == sum("proxy" in map(kind, e) for e in result.edits)
        if C is None:
            assert math.isnan(row.success) and math.isnan(row.nmi)
            continue
        inside = [set(c) for c in after.sets()]
        s = membership_similarity(task.u, C, inside, range(34, 34 + task.k))
        assert row.similarity == pytest.approx(s) and row.success == (s <= 0.5)
        assert row.uncovered == (not any(task.u in c for c in inside))
        if row.detector != "greedy":
            inside = [c & set(range(34)) for c in inside]
            inside = [c for c in inside if c]
            want = overlapping_nmi(before.sets(), inside)
            assert row.nmi == pytest.approx(want, abs=1e-9)
        else:
            assert 0 < row.nmi <= 1
    assert rows.success.nunique() > 1


def kind(name):
    return name[0] if isinstance(name, tuple) else ""


def test_pairs_of_detectors():
    "Community and NMI from the first, verdict from the second."
    other = lambda g: [set(range(17)), set(range(17, 34))]
    rows = evaluate(NoOpHider(ANGEL), TASKS[:5], {"x": (ANGEL, other)})
    for row in rows.itertuples():
        task = TASKS[row.task]
        s = membership_similarity(task.u, task.C, other(None))
        assert row.similarity == pytest.approx(s) and row.nmi < 1
    fixed = evaluate(NoOpHider(ANGEL), TASKS[:5], other, target="fixed")
    assert fixed.similarity.tolist() == rows.similarity.tolist()
    again = evaluate(NoOpHider(ANGEL), TASKS[:5], other)
    assert again.similarity.eq(1).all()


def test_uncovered_users_are_skipped_and_counted():
    nobody = lambda g: [{33, 32}]
    rows = evaluate(NoOpHider(ANGEL), TASKS, {"none": nobody})
    there = [t.target in (32, 33) for t in TASKS]
    assert rows.skipped.tolist() == [not x for x in there]
    table = summary_table(rows)
    assert table.skipped.item() == there.count(False)
    assert table.n.item() == there.count(True)


@pytest.mark.slow
def test_parts_in_other_processes_give_the_same_rows():
    hiders = [RandomHider(ANGEL, seed=2), DisconnectInternalHider(ANGEL)]
    one = evaluate(hiders, TASKS[:6], [ANGEL, DEMON])
    two = evaluate(hiders, TASKS[:6], [ANGEL, DEMON], jobs=2)
    pd.testing.assert_frame_equal(
        one.drop(columns="seconds"), two.drop(columns="seconds")
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tasks": []}, "there are no tasks"),
        ({"target": "nearest"}, "target: 'reidentified' or 'fixed'"),
        ({"hiders": [NoOpHider(ANGEL)] * 2}, "two methods have the same name"),
        ({"detectors": [ANGEL, Angel(0.5)]}, "two detectors have the same name"),
    ],
)
def test_evaluations_refused(change, text):
    put = {"hiders": [NoOpHider(ANGEL)], "tasks": TASKS[:2], "detectors": [ANGEL]}
    with pytest.raises((ValueError, TargetError), match=text):
        evaluate(**put | change)


# --------------------------------------------------------------- tables, T10


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_summary_by_hand(success, nmi):
    rows = pd.DataFrame(
        {
            "method": "m",
            "detector": "d",
            "draw": 0,
            "skipped": False,
            "task": range(len(success)),
            "success": np.array(success, float),
            "nmi": nmi,
        }
    )
    line = summary_table(rows).iloc[0]
    ours = wilson(sum(success), len(success))
    assert line.sr == ours.value
    assert [line.low, line.high] == pytest.approx([ours.low, ours.high], abs=1e-9)
    assert line.f1 == pytest.approx(hiding_f1(ours.value, nmi), abs=1e-12)
    double = summary_table(pd.concat([rows, rows.assign(draw=1)])).iloc[0]
    assert double["rows"] == 2 * line["rows"] and double["n"] == line["n"]
    assert (double.low, double.high) == (line.low, line.high)


def test_f1_identities():
    assert hiding_f1(1, 1) == 1 and hiding_f1(0.5, 1) == pytest.approx(2 / 3)
    assert hiding_f1(0, 0.7) == hiding_f1(0.7, 0) == hiding_f1(0, 0) == 0


def test_order_of_the_table_is_that_of_the_methods():
    hiders = {"z": NoOpHider(ANGEL), "a": DisconnectInternalHider(ANGEL)}
    rows = evaluate(hiders, TASKS[:3], {"q": ANGEL, "b": DEMON})
    table = summary_table(rows)
    assert table.index.tolist() == [("z", "q"), ("z", "b"), ("a", "q"), ("a", "b")]
    assert table.index.names == ["method", "detector"]
    one = summary_table(rows, ["method"])
    assert one.index.tolist() == ["z", "a"] and one["rows"].tolist() == [6, 6]


# ------------------------------------------------------------------ paired tests


def frame(**methods):
    parts = []
    for name, (success, nmi) in methods.items():
        part = {"method": name, "task": range(len(success)), "success": success}
        parts.append(pd.DataFrame(part | {"nmi": nmi}))
    return pd.concat(parts).assign(detector="d", draw=0, skipped=False)


def test_bootstrap_against_drawing_by_hand():
    rng = np.random.default_rng(0)
    a, b = (rng.random(30) < 0.7).astype(float), (rng.random(30) < 0.4).astype(float)
    na, nb = rng.random(30), rng.random(30)
    got = paired_bootstrap(frame(a=(a, na), b=(b, nb)), "a", "b", "f1")
    f1 = lambda s, m: hiding_f1(float(np.mean(s)), float(np.mean(m)))
    assert got.difference == pytest.approx(f1(a, na) - f1(b, nb))
    draws = rng.integers(30, size=(4000, 30))
    boot = np.array([f1(a[i], na[i]) - f1(b[i], nb[i]) for i in draws])
    assert [got.low, got.high] == pytest.approx(
        np.quantile(boot, [0.025, 0.975]), abs=0.02
    )
    assert got.pvalue == pytest.approx((boot <= 0).mean(), abs=0.01)
    back = paired_bootstrap(frame(a=(a, na), b=(b, nb)), "b", "a", "f1")
    assert back.difference == -got.difference and back.pvalue > 0.8


def test_bootstrap_keeps_its_level():
    "Without a difference a one-sided p below .05 comes up about once in twenty."
    rng, small = np.random.default_rng(1), []
    for i in range(150):
        a, b = (rng.random((2, 60)) < 0.5).astype(float)
        rows = frame(a=(a, 0.9), b=(b, 0.9))
        p = paired_bootstrap(rows, "a", "b", "sr", n_boot=200, seed=i).pvalue
        small.append(p < 0.05)
    assert 0.005 < np.mean(small) < 0.11


def test_bootstrap_pairs_users_not_rows():
    rng = np.random.default_rng(2)
    a, b = (rng.random((2, 40)) < 0.5).astype(float)
    rows = frame(a=(a, a), b=(b, b))
    mixed = rows.sample(frac=1, random_state=3)
    for metric in ("f1", "sr", "nmi"):
        one = paired_bootstrap(rows, "a", "b", metric)
        two = paired_bootstrap(mixed, "a", "b", metric)
        assert one.difference == pytest.approx(two.difference)
        assert one.low == pytest.approx(two.low, abs=0.03)
    same = paired_bootstrap(frame(a=(a, a), b=(a, a)).sample(frac=1), "a", "b")
    assert same[:4] == (0, 0, 0, 1)


def test_bootstrap_of_training_seeds():
    a, b = np.ones(10), np.r_[np.zeros(5), np.ones(5)]
    rows = frame(a=(a, a), b=(b, a))
    three = pd.concat([rows[rows.method == "a"]] * 3 + [rows[rows.method == "b"]])
    plain = paired_bootstrap(three, "a", "b", "sr")
    whole = paired_bootstrap(three, "a", "b", "sr", cluster="task")
    assert (plain.n, whole.n) == (30, 10)
    assert whole.high - whole.low > 1.4 * (plain.high - plain.low)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(first="c"), "there is no method 'c'; there are: a, b"),
        (dict(metric="f2"), "metric must be"),
        (dict(first="b", second="a"), "several rows of one unit"),
    ],
)
def test_bootstrap_refuses(change, text):
    rows = frame(a=([1, 0], 1.0), b=([0, 0], 1.0))
    rows = pd.concat([rows, rows[rows.method == "a"]])
    with pytest.raises(ValueError, match=text):
        paired_bootstrap(rows, **{"first": "a", "second": "b"} | change)
    short = frame(a=([1, 0], 1.0), b=([0], 1.0))
    with pytest.raises(ValueError, match="not judged on the same units"):
        paired_bootstrap(short, "a", "b")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=80, deadline=None)
def test_mcnemar_from_binomials(pairs):
    a, b = zip(*pairs, strict=True)
    wins = sum(x and not y for x, y in pairs)
    n = sum(x != y for x, y in pairs)
    tail = sum(math.comb(n, i) for i in range(wins, n + 1)) / 2**n
    assert mcnemar_exact(a, b, "greater") == pytest.approx(tail)
    low = sum(math.comb(n, i) for i in range(wins + 1)) / 2**n
    assert mcnemar_exact(a, b) == pytest.approx(min(1, 2 * min(tail, low)))
    assert mcnemar_exact(a, b) == pytest.approx(mcnemar_exact(b, a))


def test_naive_trick_differs_between_partitions_and_egos():
    "Exact McNemar of greedy modularity against ANGEL on the same users."
    greedy = PartitionDetector("greedy")
    users = sorted({t.target for t in TASKS})
    found = {}
    for name, detector in (("greedy", greedy), ("angel", ANGEL)):
        tasks = {t.target: t for t in make_tasks(KARATE, detector, c=2)}
        rows = evaluate(NaiveProxyHider(detector), [tasks[u] for u in users], detector)
        found[name] = rows.success
    assert found["angel"].eq(0).all()
    assert mcnemar_exact(found["greedy"], found["angel"], "greater") < 1e-4


# --------------------------------------------------------------------------- audit


@pytest.mark.parametrize("name", ("kar", "dol"))
def test_audit_from_networkx(name):
    arrays = as_arrays(load_graph(name))
    assert np.allclose(
        clustering(arrays), list(nx.clustering(load_graph(name)).values())
    )
    task = HidingTask(arrays, 5, {5, 6}, k=4, seed=1)
    edits = [(("proxy", 1), 0), (("proxy", 1), 33), (5, 7)]
    graph = edited(task, edits).to_networkx()
    table = audit_table(task, edits)
    assert table.account.tolist() == [5, *(("proxy", i) for i in range(4))]
    exact = {
        "degree": dict(graph.degree),
        "clustering": nx.clustering(graph),
        "betweenness": nx.betweenness_centrality(graph, normalized=False),
    }
    for signal, values in exact.items():
        for row in table.itertuples():
            v = values[row.account]
            assert getattr(row, signal) == pytest.approx(v, abs=1e-9)
            rest = [values[w] for w in range(arrays.n) if w != 5]
            near = [abs(w - v) < 1e-8 for w in rest]
            below = [w < v - 1e-8 for w in rest]
            want = np.mean(below) + np.mean(near) / 2
            assert getattr(row, f"{signal}_rank") == pytest.approx(want)


def test_visibility_is_the_area_under_the_curve():
    tasks = [t.replace(k=3) for t in TASKS[:10]]
    tables = [audit_table(t) for t in tasks]
    seen = visibility(tables)
    areas = []
    for task in tasks:
        degree = task.start.degree
        rest = np.delete(degree[:34], task.u)
        u = stats.mannwhitneyu(degree[34:], rest).statistic
        areas.append(u / (3 * len(rest)))
    assert seen.auc["degree"] == pytest.approx(np.mean(areas))
    assert seen.proxies.eq(30).all()


def test_first_of_equals_and_nothing_of_nothing():
    task = HidingTask(KARATE, 0, {0, 1, 3})
    assert reidentified(task, Cover.of([{0, 9}, {0, 1, 2}, {0, 3, 4}])) == {0, 1, 2}
    assert reidentified(task, Cover.of([{0, 9}, {0, 3, 4}, {0, 1, 2}])) == {0, 3, 4}
    assert reidentified(task, Cover.of([])) is None
