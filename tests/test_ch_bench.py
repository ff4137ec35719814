"The bench of communityhiding: its rows, and what they say when something is missing."

import sys

import numpy as np
import pytest

pytest.importorskip("numba")

from rlpapers.communityhiding import bench
from rlpapers.communityhiding.graphs import as_arrays, load_graph

ROW = {"name", "ours", "peer", "unit", "ratio", "target", "ok", "note"}


def test_measures_are_taken_in_turn():
    seen = []
    clock = iter(range(1000)).__next__

    def measure(name):
        return lambda: seen.append(name) or clock()

    out = bench.in_turn({"a": measure("a"), "b": measure("b")}, 3)
    assert seen == ["a", "b"] * 4
    assert out == {"a": 4.0, "b": 5.0}  # the first round is not counted


def test_seconds_are_those_of_one_call():
    times = iter([10.0, 16.0]).__next__
    calls = []
    assert bench.per_call(lambda: calls.append(1), 3, times)() == 2.0
    assert len(calls) == 3


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cdlib", None)
    monkeypatch.delitem(sys.modules, "cdlib.algorithms", raising=False)
    monkeypatch.delitem(sys.modules, "cdlib.evaluation", raising=False)
    rows = bench.detector_rows("kar", 1)
    rows += [bench.nmi_row("kar", 1), bench.training_row("kar", 4, 1)]
    assert len(rows) == 6
    for r in rows:
        assert set(r) == ROW and r["ours"] > 0
        assert r["peer"] is None and r["ok"] is None and "rlpapers[bench]" in r["note"]


def test_without_torch_geometric_the_row_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    r = bench.update_row("kar", 4, 1)
    assert r["ours"] > 0 and r["peer"] is None and "torch_geometric" in r["note"]


def test_without_a_gpu_the_row_says_so():
    import torch

    if not torch.cuda.is_available():
        assert bench.gpu_row()["note"] == "not run (needs one H100)"


def test_threads_are_not_judged_where_there_is_one_core(monkeypatch):
    monkeypatch.setattr(bench, "_plain_gain", lambda: 1.0)
    r = bench.thread_row("kar", 4, 1)
    assert r["ok"] is None and "1.00 times" in r["note"] and r["ratio"] > 0
    monkeypatch.setattr(bench, "_plain_gain", lambda: 2.0)
    assert bench.thread_row("kar", 4, 1)["ok"] is not None


def test_attempts_are_of_the_budget_unit():
    arrays = as_arrays(load_graph("football"))
    batch, begin, _ = bench.some_attempts(arrays, 6)
    assert (batch.k, batch.budget, batch.size) == (5, 5, 6)
    s = batch.reset(*begin)
    assert (s > 0.3).all() and len(np.unique(begin[3])) > 1


@pytest.mark.peer
def test_all_rows_at_smoke():
    pytest.importorskip("cdlib.algorithms")
    rows = bench.bench("smoke")
    assert [set(r) for r in rows] == [ROW] * len(rows) and len(rows) == 19
    assert all(r["ok"] is None for r in rows)
    assert all(r["ratio"] for r in rows[:4])
