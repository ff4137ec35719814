"The compiled batch against one graph at a time (T6, T10, T14)."

import numpy as np
import pytest

pytest.importorskip("numba")

import networkx as nx

from rlpapers.communityhiding.angel import Angel
from rlpapers.communityhiding.batches import HidingBatch
from rlpapers.communityhiding.covers import membership_similarity
from rlpapers.communityhiding.graphs import (
    BudgetError,
    DetectorError,
    GraphArrays,
    GraphInputError,
    TargetError,
    as_arrays,
    load_graph,
)

MU = {"kar": 3, "lesm": 3, "words": 3, "football": 5, "vote": 3, "nets": 2, "pow": 2}


def pairs_of(arrays, seed=0, threshold=0.8):
    "Every node with every community that it is in."
    cover = Angel(threshold, seed=seed).cover(arrays)
    return [(u, c) for c in cover.sets() for u in sorted(c)]


def injection(rng, u, n, k):
    inside = [(n + i, n + j) for i in range(k) for j in range(i) if rng.random() < 0.5]
    return [(u, n + i) for i in range(k)] + inside


def start(batch, rng, seeds=None, pairs=None):
    "Reset all environments to random tasks; the tasks."
    n, B = batch.n, batch.size
    pairs = pairs or pairs_of(batch.base, threshold=batch.threshold)
    tasks = [pairs[i] for i in rng.integers(len(pairs), size=B)]
    marks = np.array([[v in c for v in range(n)] for _, c in tasks])
    seeds = rng.integers(5, size=B) if seeds is None else seeds
    edges = [injection(rng, u, n, batch.k) for u, _ in tasks]
    batch.reset(np.arange(B), [u for u, _ in tasks], marks, seeds, edges)
    return tasks, seeds


def actions(batch, rng):
    source = rng.integers(batch.k + 1, size=batch.size)
    dest = rng.integers(batch.N, size=batch.size)
    node = np.where(source == 0, batch.target, batch.n + source - 1)
    return source, np.where(dest == node, (dest + 1) % batch.N, dest)


def judged(batch, b, task, seed, **kw):
    (u, c), n = task, batch.n
    cover = Angel(batch.threshold, seed=int(seed)).cover(batch.arrays(b))
    ignore = () if batch.count_proxies else range(n, batch.N)
    return membership_similarity(u, c, cover.sets(), ignore), cover


@pytest.mark.parametrize("count_proxies", (False, True))
@pytest.mark.parametrize("threshold", (0.5, 0.8))
@pytest.mark.parametrize("name", ("kar", "lesm", "words"))
def test_steps_are_full_detections(name, threshold, count_proxies):
    rng, arrays = np.random.default_rng(1), as_arrays(load_graph(name))
    batch = HidingBatch(
        arrays, 3, 6, 5, threshold=threshold, count_proxies=count_proxies
    )
    below = 0
    for _ in range(3):
        tasks, seeds = start(batch, rng)
        for _ in range(12):
            source, dest = actions(batch, rng)
            active = rng.random(5) < 0.8
            before = batch.similarity.copy()
            batch.step(source, dest, active)
            assert (batch.similarity == before)[~active].all()
            for b in range(5):
                s, cover = judged(batch, b, tasks[b], seeds[b])
                assert batch.similarity[b] == s
                assert batch.cover(b).sets() == cover.sets()
                assert batch.found[b] == len(cover.containing(tasks[b][0]))
                below += s < 1
    assert below > 0


@pytest.mark.parametrize("name", ("football", "vote", "nets", "pow"))
def test_steps_on_larger_graphs(name):
    rng, arrays = np.random.default_rng(2), as_arrays(load_graph(name))
    batch = HidingBatch(arrays, MU[name], 6, 4)
    tasks, seeds = start(batch, rng)
    for _ in range(6):
        batch.step(*actions(batch, rng))
        b = int(rng.integers(4))
        assert batch.similarity[b] == judged(batch, b, tasks[b], seeds[b])[0]


@pytest.mark.parametrize("name", ("kar", "lesm", "words", "football"))
def test_the_naive_trick_never_hides(name):
    "T6: whatever is joined to the user alone, for every pair, SR is exactly 0."
    arrays, rng = as_arrays(load_graph(name)), np.random.default_rng(0)
    pairs, mu = pairs_of(arrays), MU[name]
    pairs = pairs[:: max(1, len(pairs) // 120)]
    marks = np.array([[v in c for v in range(arrays.n)] for _, c in pairs])
    for k in (1, mu, 4 * mu):
        batch = HidingBatch(arrays, k, 1, len(pairs))
        edges = [injection(rng, u, arrays.n, k) for u, _ in pairs]
        us = [u for u, _ in pairs]
        s = batch.reset(range(len(pairs)), us, marks, [0] * len(pairs), edges)
        assert not batch.hidden.any() and (s > 0.5).all()


@pytest.mark.parametrize("name", ("kar", "lesm", "words"))
def test_the_naive_trick_changes_no_micro_community(name):
    "T6: all egos but the user, to the last member."
    arrays, rng = as_arrays(load_graph(name)), np.random.default_rng(0)
    n, angel = arrays.n, Angel(seed=4)
    base = [[m.tolist() for m in angel.micro(arrays, e)] for e in range(n)]
    for k in (1, 3, 12):
        for u in range(0, n, 5):
            edges = np.concatenate([arrays.edges, injection(rng, u, n, k)])
            live = angel.incremental().fit(GraphArrays(n + k, edges))
            for e in set(range(n)) - {u}:
                assert [m.tolist() for m in live.micro(e)] == base[e]


@pytest.mark.parametrize("name", MU)
def test_no_edit_hides_nobody(name):
    "T14: without an edit and with the same seed every similarity is 1."
    arrays = as_arrays(load_graph(name))
    pairs = pairs_of(arrays, seed=3)
    pairs = pairs[:: max(1, len(pairs) // 50)]
    marks = np.array([[v in c for v in range(arrays.n)] for _, c in pairs])
    batch = HidingBatch(arrays, 0, 1, len(pairs))
    us = [u for u, _ in pairs]
    s = batch.reset(range(len(us)), us, marks, [3] * len(us), [[]] * len(us))
    assert (s == 1).all() and not batch.hidden.any() and not batch.uncovered.any()


def test_threads_and_sizes_do_not_matter():
    arrays = as_arrays(load_graph("words"))
    one = HidingBatch(arrays, 3, 4, 16)
    two = HidingBatch(arrays, 3, 4, 16, threads=3)
    for batch in (one, two):
        start(batch, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for _ in range(10):
        move = actions(one, rng)
        active = rng.random(16) < 0.7
        assert np.array_equal(one.step(*move, active), two.step(*move, active))
    for name in ("deg", "nbr", "found", "inside", "common"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


def test_environments_do_not_see_each_other():
    arrays, rng = as_arrays(load_graph("lesm")), np.random.default_rng(0)
    batch = HidingBatch(arrays, 2, 5, 8)
    tasks, seeds = start(batch, rng)
    moves = [actions(batch, rng) for _ in range(5)]
    for move in moves:
        batch.step(*move)
    alone = HidingBatch(arrays, 2, 5, 1)
    rng = np.random.default_rng(0)
    edges = []
    rng.integers(len(pairs_of(arrays)), size=8), rng.integers(5, size=8)
    edges = [injection(rng, u, 77, 2) for u, _ in tasks]
    for b, (u, c) in enumerate(tasks):
        mark = np.array([[v in c for v in range(77)]])
        alone.reset([0], [u], mark, [seeds[b]], [edges[b]])
        for source, dest in moves:
            alone.step(source[b : b + 1], dest[b : b + 1])
        assert alone.similarity[0] == batch.similarity[b]
        assert np.array_equal(alone.deg[0], batch.deg[b])


def test_toggling_twice_restores():
    rng, arrays = np.random.default_rng(3), as_arrays(load_graph("lesm"))
    batch = HidingBatch(arrays, 3, 3, 6)
    start(batch, rng)
    keep = [getattr(batch, k).copy() for k in ("similarity", "deg", "inside", "common")]
    moves = [actions(batch, rng) for _ in range(20)]
    for move in moves + moves[::-1]:
        batch.step(*move)
    for k, was in zip(("similarity", "deg", "inside", "common"), keep, strict=True):
        assert np.array_equal(getattr(batch, k), was), k


def test_rows_pools_and_merges_grow():
    "Far more toggles than the budget, from buffers that are too small."
    rng, arrays = np.random.default_rng(4), as_arrays(load_graph("polb"))
    batch = HidingBatch(arrays, 2, 1, 4, threads=2)
    batch._own = np.zeros((4, 2), np.int32)
    batch._shared = np.zeros((8, 2), np.int32)
    for tools in batch._tools:
        tools._labels, tools.merger._room = 4, [1, 1]
        tools.merger._make()
        tools.renew()
    tasks, seeds = start(batch, rng)
    for _ in range(4):
        for v in range(100):
            source, dest = actions(batch, rng)
            batch.step(np.zeros(4, int), np.where(batch.target == v, 104, v))
        b = int(rng.integers(4))
        s, cover = judged(batch, b, tasks[b], seeds[b])
        assert batch.similarity[b] == s and batch.cover(b).sets() == cover.sets()
    for b in range(4):
        g = batch.arrays(b)
        row = lambda v: batch.nbr[b, batch.start[v] :][: batch.deg[b, v]]  # noqa: B023
        assert all(np.array_equal(row(v), g.neighbors(v)) for v in range(g.n))


def test_many_seeds_push_out_old_ones():
    rng, arrays = np.random.default_rng(5), as_arrays(load_graph("kar"))
    batch, pairs = HidingBatch(arrays, 1, 2, 3), pairs_of(arrays)
    for turn in range(60):
        seeds = rng.integers(2**63, size=3).astype(np.uint64)
        seeds[0] = 7 if turn % 2 else seeds[0]
        tasks, seeds = start(batch, rng, seeds, pairs)
        batch.step(*actions(batch, rng))
        b = turn % 3
        assert batch.similarity[b] == judged(batch, b, tasks[b], seeds[b])[0]
    assert len(batch._known) <= 64 and len(set(batch._known.values())) == len(
        batch._known
    )


def test_partial_resets_leave_the_others():
    rng, arrays = np.random.default_rng(6), as_arrays(load_graph("kar"))
    batch, pairs = HidingBatch(arrays, 2, 5, 4), pairs_of(arrays)
    tasks, seeds = start(batch, rng)
    seeds = list(seeds)
    for turn in range(30):
        batch.step(*actions(batch, rng))
        b = turn % 4
        u, c = tasks[b] = pairs[int(rng.integers(len(pairs)))]
        seeds[b] = 100 + turn
        mark = np.array([[v in c for v in range(34)]])
        batch.reset([b], [u], mark, [seeds[b]], [injection(rng, u, 34, 2)])
        for i in range(4):
            assert batch.similarity[i] == judged(batch, i, tasks[i], seeds[i])[0]


def test_features():
    rng, arrays = np.random.default_rng(7), as_arrays(load_graph("words"))
    batch = HidingBatch(arrays, 3, 6, 5)
    tasks, _ = start(batch, rng)
    for turn in range(8):
        batch.step(*actions(batch, rng))
        left = rng.random(5).astype(np.float32)
        out = np.full((5, batch.N, 9), 7, np.float32)
        rows = None if turn % 2 else np.array([1, 3])
        assert batch.features(out, left, rows) is out
        for b in range(5):
            if rows is not None and b not in rows:
                assert (out[b] == 7).all()
                continue
            g, (u, c) = batch.arrays(b), tasks[b]
            near = [set(g.neighbors(v).tolist()) for v in range(g.n)]
            want = [
                [
                    v == u, v >= 112, v in c, u in near[v],
                    len(near[v]) / arrays.degree.max(),
                    len(near[v] & near[u]) / 10 if v != u else 0,
                    len(near[v] & c) / max(1, len(near[v])),
                    left[b], batch.similarity[b],
                ]
                for v in range(g.n)
            ]  # fmt: skip
            np.testing.assert_allclose(out[b], np.array(want, float), rtol=1e-6)


def test_isolating_the_user_hides():
    "An empty maximum is 0; the user is then in no community, and it is said."
    arrays = as_arrays(load_graph("kar"))
    u, c = next((u, c) for u, c in pairs_of(arrays) if len(arrays.neighbors(u)) == 2)
    batch = HidingBatch(arrays, 0, 9, 1)
    mark = np.array([[v in c for v in range(34)]])
    batch.reset([0], [u], mark, [0], [[]])
    for v in arrays.neighbors(u).tolist():
        batch.step([0], [v])
    assert batch.similarity[0] == 0 and batch.hidden[0] and batch.uncovered[0]
    assert batch.deg[0, u] == 0


def test_a_user_in_two_communities_must_leave_both():
    "Node 0 is in two cliques; cut out of the first it has left only that one."
    a, b = nx.complete_graph(8), nx.complete_graph([0, *range(8, 15)])
    arrays = as_arrays(nx.compose(a, b))
    mine = [c for c in Angel().cover(arrays).sets() if 0 in c]
    first = [c for c in mine if c <= set(range(8))]
    second = [c for c in mine if c <= {0, *range(8, 15)}]
    assert first and second and len(first) + len(second) == len(mine)
    batch = HidingBatch(arrays, 0, 9, len(mine))
    marks = np.array([[v in c for v in range(15)] for c in mine])
    R = range(len(mine))
    s = batch.reset(R, [0] * len(mine), marks, [0] * len(mine), [[]] * len(mine))
    assert (s == 1).all()
    of_first = np.array([c in first for c in mine])
    for v in range(1, 8):
        batch.step([0] * len(mine), [v] * len(mine))
    assert batch.hidden[of_first].all() and not batch.hidden[~of_first].any()
    assert (batch.similarity[~of_first] == 1).all() and not batch.uncovered.any()
    for v in range(8, 15):
        batch.step([0] * len(mine), [v] * len(mine))
    assert batch.hidden.all() and batch.uncovered.all()


@pytest.mark.parametrize("leaves", (1200, 5000))
def test_a_hub_without_arcs(leaves):
    "More neighbours than the first room for labels, none of them joined."
    arrays = as_arrays(nx.star_graph(leaves))
    batch = HidingBatch(arrays, 2, 3, 2, threads=2)
    marks = np.zeros((2, leaves + 1), bool)
    marks[0, :9] = marks[1, :4] = True
    hub = [[(0, leaves + 1), (0, leaves + 2)], [(3, leaves + 1)]]
    s = batch.reset([0, 1], [0, 3], marks, [0, 1], hub)
    assert (s == 0).all() and batch.uncovered.all()
    batch.step([0, 1], [5, 0])
    assert batch.deg[0, 0] == leaves + 1 and batch.deg[1, 0] == leaves + 1


def test_injections_go_to_the_row_they_are_for():
    "Rows in any order, injections of different lengths."
    arrays, rng = as_arrays(load_graph("kar")), np.random.default_rng(8)
    pairs = pairs_of(arrays)
    tasks = [pairs[i] for i in rng.integers(len(pairs), size=4)]
    marks = np.array([[v in c for v in range(34)] for _, c in tasks])
    edges = [injection(rng, u, 34, 3)[: 1 + i] for i, (u, _) in enumerate(tasks)]
    batch = HidingBatch(arrays, 3, 2, 6)
    rows = [5, 0, 3, 2]
    batch.reset(rows, [u for u, _ in tasks], marks, [0, 1, 2, 3], edges)
    for i, b in enumerate(rows):
        have = {tuple(e) for e in batch.arrays(b).edges.tolist()}
        have -= {tuple(e) for e in arrays.edges.tolist()}
        assert have == {tuple(sorted(e)) for e in edges[i]}
        assert batch.similarity[b] == judged(batch, b, tasks[i], i)[0]


def test_refusals():
    club = as_arrays(load_graph("kar"))
    for kw, what in (
        ({"k": -1}, "k must"),
        ({"budget": 0}, "budget must"),
        ({"size": 0}, "size must"),
        ({"threads": 0}, "threads must"),
        ({"k": 1.7}, "k must"),
        ({"budget": 2.9}, "budget must"),
    ):
        with pytest.raises(BudgetError, match=what):
            HidingBatch(club, **({"k": 1, "budget": 1, "size": 1} | kw))
    for tau in (1.0, -0.1, float("nan"), "a"):
        with pytest.raises(TargetError, match="tau must"):
            HidingBatch(club, 1, 1, 1, tau)
    with pytest.raises(GraphInputError):
        HidingBatch(nx.DiGraph([(0, 1)]), 1, 1, 1)
    taken = nx.relabel_nodes(load_graph("kar"), {3: ("proxy", 0)})
    with pytest.raises(GraphInputError, match="already has a node"):
        HidingBatch(taken, 1, 1, 1)
    assert HidingBatch(taken, 0, 1, 1).n == 34
    with pytest.raises(DetectorError, match="threshold"):
        HidingBatch(club, 1, 1, 1, threshold=1.0)
    batch = HidingBatch(club, 1, 2, 2)
    with pytest.raises(DetectorError, match="after reset"):
        batch.step([0, 0], [1, 1], [True, True])
    start(batch, np.random.default_rng(0))
    mark, deg = np.ones((1, 34), bool), batch.deg.copy()
    for args, what in (
        (([2], [0], mark, [0], [[]]), "rows must lie"),
        (([0.5], [0], mark, [0], [[]]), "rows must be integers"),
        (([0], [34], mark, [0], [[]]), "targets must lie"),
        (([0], [0], mark[:, :5], [0], [[]]), "communities of 34 nodes"),
        (([0], [0], mark, [0, 1], [[]]), "as many targets, seeds"),
        (([0, 1], [0, 1], np.ones((2, 34), bool), [5], [[], []]), "as many"),
        (([0], [0], mark, [0], [[(0, 0)]]), "injected edges"),
        (([0], [0], mark, [0], [[(0, 35)]]), "injected edges"),
        (([0], [0], mark, [0], [[(0, 1)]]), "have a proxy"),
        (([0], [0], mark, [0], [[(0, 34), (34, 0)]]), "each be given once"),
        (([0], [0], mark, [0], [[(0.5, 34)]]), "injected must be integers"),
        (([0], [0], np.eye(34, dtype=bool)[:1], [0], [[]]), "two or more"),
    ):
        with pytest.raises(TargetError, match=what):
            batch.reset(*args)
    with pytest.raises(DetectorError, match="detector_seeds"):
        batch.reset([0], [0], mark, [1.5], [[]])
    assert np.array_equal(batch.deg, deg) and batch._live.all()
    u = int(batch.target[0])
    for source, dest in (
        (0, u),
        (1, 34),
        (2, 3),
        (-1, 3),
        (0, 35),
        (0, -1),
        (0, 2**32),
    ):
        with pytest.raises(DetectorError, match="environment 0 cannot toggle"):
            batch.step([source, 0], [dest, 0], [True, False])
    with pytest.raises(TargetError, match="source must be integers"):
        batch.step([0.7, 0], [3, 3])
    for wrong in (([0], [3]), ([[0, 0]], [[3, 3]])):
        with pytest.raises(DetectorError, match="2 entries each"):
            batch.step(*wrong)
    with pytest.raises(DetectorError, match="2 entries each"):
        batch.step([0, 0], [3, 3], [1, 0])
    for look in (batch.cover, batch.arrays):
        for b in (-1, 2, 0.5):
            with pytest.raises(DetectorError, match="no environment"):
                look(b)
    out = np.zeros((2, 35, 9), np.float32)
    for rows in ([10**6], [-1], [[0]]):
        with pytest.raises(DetectorError, match="rows lie below"):
            batch.features(out, np.zeros(2), rows)
    for left in (np.zeros(0), np.zeros(3), 0.5):
        with pytest.raises(DetectorError, match="budget_left has 2"):
            batch.features(out, left)
    with pytest.raises(DetectorError, match="features go into"):
        batch.features(np.zeros((2, 34, 9), np.float32), np.zeros(2))
