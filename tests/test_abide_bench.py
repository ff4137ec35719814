"The bench of AbideGym: its rows, and what is said of peers that are not there."

import sys

import numpy as np
import pytest

pytest.importorskip("minigrid")
pytest.importorskip("numba")

from rlpapers.abidegym import bench

ROW = {"name", "ours", "peer", "unit", "ratio", "target", "ok", "note"}


def test_missing_peers_are_named(monkeypatch):
    "And no number stands in their place."
    for name in ("envpool", "navix", "xminigrid", "jax"):
        monkeypatch.setitem(sys.modules, name, None)
    rows = bench.engine_rows(4, 1, 0.01)
    assert all(set(r) == ROW for r in rows)
    gone = {r["note"]: r for r in rows if r["peer"] is None}
    assert len(gone) >= 3 and all(r["ok"] is None for r in gone.values())
    said = " ".join(gone)
    assert all(p in said for p in ("envpool", "navix", "xminigrid"))
    here = [r for r in rows if r["peer"] is not None]
    assert len(here) == 3 and all("minigrid 3" in r["note"] for r in here)


def test_targets_are_those_of_the_issue():
    rate = np.array([1.0, 2.0])
    seen = ("symbolic_first_person", "categorical_first_person")
    names = ("ours", "before", "stall", "minigrid")
    why = dict.fromkeys(("envpool", "xminigrid", *seen), "not here")
    rows = bench._engine_table(dict.fromkeys(names, rate), why, 1024)
    targets = {r["name"].split("against ")[1].split(",")[0]: r["target"] for r in rows}
    assert targets == {
        "MiniGrid": 200,
        "EnvPool": 10,
        "NAVIX": None,
        "XLand-MiniGrid": 8,
    }
    assert [r["target"] for r in rows] == [300, 200, 200, 10, 15, None, 8]
    assert [r["ok"] for r in rows] == [False] * 3 + [None] * 4


def test_rounds_alternate():
    "The runs of a round follow each other; the first round is not counted."
    order = []

    def run(name):
        return lambda: order.append(name) or 1

    got = bench.in_turns({"a": run("a"), "b": run("b")}, 2, 0.0)
    assert order == ["a", "b"] * 3 and {len(v) for v in got.values()} == {2}


def test_same_layouts_and_actions_on_both_sides():
    "World 0 of a bank of one level and MiniGrid see and do the same."
    import gymnasium as gym

    from rlpapers.abidegym import AbideVecEnv, LevelBank

    env = gym.make(bench.DOOR).unwrapped
    first, _ = env.reset(seed=0)
    batch = AbideVecEnv(3, reset_mode=LevelBank.from_env(bench.DOOR, [0]), copy=False)
    obs, _ = batch.reset(seed=0)
    assert all(np.array_equal(obs["image"][i], first["image"]) for i in range(3))
    for a in bench.actions_of(40, 3)[:, 0]:
        one, many = env.step(int(a))[0], batch.step(np.full(3, a))[0]
        assert np.array_equal(one["image"], many["image"][0])


def test_moved_bytes_by_hand():
    "49 cells and the state read, a cell and the state written, the view, the rest."
    assert bench.moved_bytes(64, 147) == 98 + 20 + 2 + 8 + 147 + 6


def test_rows_of_a_card_without_one():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    rows = bench.gpu_rows()
    assert len(rows) >= 5 and {r["note"] for r in rows} == {"not run (needs one H100)"}
    assert all(r["ours"] is None and r["ok"] is None for r in rows)
