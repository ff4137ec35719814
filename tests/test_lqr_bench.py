"The bench of lqr: its rows, and the peers that it measures."

import lqr_plain as plain
import numpy as np
import pytest

from rlpapers.lqr import bench, peers
from rlpapers.lqr.signals import exploration
from rlpapers.lqr.windows import build_windows

ROW = {"name", "ours", "peer", "unit", "ratio", "target", "ok", "note"}


def test_loop_of_kronecker_products_gives_the_same_windows():
    _, traj = peers.recording(3, 2, 1, 20)
    W = build_windows(traj)
    delta, xx, xu, xe = peers.kron_windows(traj)
    i, j = np.triu_indices(3)
    twice = np.where(i == j, 1, 2) * delta.reshape(-1, 3, 3)[:, i, j]
    for mine, theirs in (
        (W.delta, twice),
        (W.G[:, :3, :3].reshape(20, -1), xx),
        (W.G[:, :3, 3:5].reshape(20, -1), xu),
        (W.G[:, :3, 5:].reshape(20, -1), xe),
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_network_in_a_process_of_its_own():
    rows = bench.network_rows(4)
    assert [set(r) for r in rows] == [ROW] * 3
    seconds, memory, error = (r["ours"] for r in rows)
    assert 0 < seconds < 60 and 0 < memory < 2 and error < 1e-8


def test_missing_peers_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "OpenControl", None)
    monkeypatch.delitem(
        __import__("sys").modules, "OpenControl.ADP_control", raising=False
    )
    rows = bench.diesel_rows(1, 60)
    for r in rows:
        assert set(r) == ROW and r["peer"] is None and r["ok"] is None
        assert "rlpapers[bench]" in r["note"]


def test_without_a_gpu_the_row_says_so():
    import torch

    if not torch.cuda.is_available():
        assert bench.gpu_row()["note"] == "not run (needs one H100)"


@pytest.mark.peer
def test_opencontrol_learns_the_same_gain():
    "Their gain from their own samples at 1 ms is ours to their accuracy."
    pytest.importorskip("OpenControl")
    u = exploration(2, 20, -20.0, 20.0, 5.0, 0)
    Q = np.diag([100.0, 0, 0, 0, 0, 100])
    best = plain.riccati(*plain.DIESEL[:2], Q, np.eye(2))[0]
    theirs, ours = peers.diesel_peer(u, 120, 1e-3), peers.diesel_ours(u, 120)
    assert plain.distance(theirs, best) < 1e-3
    assert plain.distance(ours, best) < 1e-3 * plain.distance(theirs, best)


@pytest.mark.peer
@pytest.mark.slow
def test_targets_are_met():
    rows = bench.bench("small")
    missed = [r["name"] for r in rows if r["ok"] is False]
    assert not missed
