"Covers, their similarity, detectors of any kind, partitions (T7, T9, T10)."

import contextlib
import io
import random
import time

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.communityhiding.covers import (
    ArrayDetector,
    CommunityDetector,
    Cover,
    as_detector,
    dice,
    global_draws,
    hiding_f1,
    jaccard,
    membership_similarity,
    overlap_coefficient,
)
from rlpapers.communityhiding.graphs import (
    DetectorError,
    GraphArrays,
    GraphInputError,
    as_arrays,
    load_graph,
)
from rlpapers.communityhiding.nmi import overlapping_nmi, partition_nmi
from rlpapers.communityhiding.partitions import (
    METHODS,
    PartitionDetector,
    flip_gain,
    modularity,
)

sets = st.frozensets(st.integers(0, 15), max_size=10)
communities = st.lists(st.frozensets(st.integers(0, 15), min_size=1), max_size=6)


# Sets


@settings(max_examples=80, deadline=None, derandomize=True)
@given(sets, sets)
def test_similarities(a, b):
    d, j, o = dice(a, b), jaccard(a, b), overlap_coefficient(a, b)
    assert d == pytest.approx(2 * j / (1 + j), abs=1e-15)
    assert 0 <= j <= d <= o <= 1
    assert (d == 1) == (j == 1) == (bool(a) and a == b)
    assert (o == 1) == (bool(a and b) and (a <= b or b <= a))
    assert (d, j, o) == (dice(b, a), jaccard(b, a), overlap_coefficient(b, a))
    if not a or not b:
        assert d == j == o == 0.0


@settings(max_examples=80, deadline=None, derandomize=True)
@given(communities, sets, st.integers(0, 15), st.frozensets(st.integers(0, 15)))
def test_membership_similarity(found, target, u, ignore):
    s = membership_similarity(u, target, found, ignore)
    assert s == membership_similarity(u, target | {u}, found, ignore)
    assert s == membership_similarity(u, target, Cover.of(found), ignore)
    best = 0.0
    for c in found:
        if u in c:
            left, right = c - {u} - ignore, target - {u}
            if left and right:
                best = max(best, 2 * len(left & right) / (len(left) + len(right)))
    assert s == pytest.approx(best, abs=1e-15)
    if not any(u in c for c in found):
        assert s == 0.0


def test_proxies_would_dilute():
    target, found = set(range(5)), [{0, 1, 2, 3, 4, *range(90, 99)}]
    assert membership_similarity(0, target, found, range(90, 99)) == 1.0
    assert membership_similarity(0, target, found) < 0.5 + 1e-12


def test_f1():
    assert hiding_f1(1, 1) == 1 and hiding_f1(0.5, 1) == pytest.approx(2 / 3)
    assert hiding_f1(0, 0.3) == hiding_f1(0.3, 0) == hiding_f1(0, 0) == 0
    for bad in ((1.1, 0.5), (0.5, -0.1), (float("nan"), 1), (1, float("inf"))):
        with pytest.raises(ValueError, match="must lie in"):
            hiding_f1(*bad)


# Covers


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(sets, max_size=7), st.integers(0, 16))
def test_covers(found, n):
    cover, full = Cover.of(found), [c for c in found if c]
    assert cover.sets() == full and len(cover) == len(full)
    assert cover.sizes.tolist() == [len(c) for c in full]
    assert cover.covered().tolist() == sorted(frozenset().union(*found))
    for v in range(16):
        want = [i for i, c in enumerate(full) if v in c]
        assert cover.containing(v).tolist() == want
    kept = [{v for v in c if v < n} for c in full]
    assert cover.below(n).sets() == [c for c in kept if c]
    names = [f"v{i}" for i in range(16)]
    index = {v: i for i, v in enumerate(names)}
    assert Cover.of(cover.sets(names), index).sets() == full
    assert (cover.members.dtype, cover.offsets.dtype) == ("i4", "i8")


@pytest.mark.parametrize("bad", (["ab"], [3], [{"z"}], [{-1}], [{2**31}], [{None}]))
def test_unusable_covers(bad):
    with pytest.raises(DetectorError):
        Cover.of(bad)


# Detectors


def test_any_function():
    graph = nx.relabel_nodes(load_graph("kar"), "m{}".format)
    detector = as_detector(nx.community.greedy_modularity_communities)
    assert isinstance(detector, CommunityDetector) and as_detector(detector) is detector
    found = detector.detect(graph)
    assert frozenset().union(*found) == set(graph)
    ids = detector.cover(as_arrays(graph)).sets(tuple(graph))
    assert ids == found


def test_functions_are_seeded_and_generators_kept():
    def noisy(graph):
        nodes = sorted(graph)
        random.shuffle(nodes)
        np.random.shuffle(nodes)  # noqa: NPY002
        return [nodes[:9], nodes[9:]]

    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    graph, detector = load_graph("kar"), as_detector(noisy)
    assert detector.detect(graph) == detector.detect(graph)
    assert len({frozenset(detector.with_seed(s).detect(graph)) for s in range(9)}) > 5
    now = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert states == now

    def broken(graph):
        random.random()
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        as_detector(broken).detect(graph)
    assert random.getstate() == states[0]


def test_global_draws_repeat():
    values = []
    for seed in (1, 2**40, 1):
        with global_draws(seed):
            values.append((random.random(), np.random.random()))  # noqa: NPY002
    assert values[0] == values[2] != values[1]


@pytest.mark.parametrize(
    "answer", ({"a": 0}, "abc", 3, None, [3], ["ab"], [{"nobody"}])
)
def test_unusable_answers(answer):
    with pytest.raises(DetectorError):
        as_detector(lambda graph: answer).detect(nx.path_graph(3))


@pytest.mark.parametrize("bad", (3, "louvain", None, PartitionDetector))
def test_no_detector(bad):
    with pytest.raises(DetectorError):
        as_detector(bad)


def test_graphs_are_checked():
    class Nothing(ArrayDetector):
        def cover(self, arrays):
            return Cover.of([])

    assert Nothing().detect(nx.path_graph(2)) == []
    with pytest.raises(GraphInputError, match="directed"):
        Nothing().detect(nx.DiGraph([(0, 1)]))


# Similarity of covers


def h(n, *counts):
    return sum(-c / n * np.log2(c / n) for c in counts if c)


def by_loops(X, Y, n, kind):
    "The definition, pair by pair."

    def side(X, Y):
        for x in X:
            best = own = h(n, len(x), n - len(x))
            for y in Y:
                d, b, c = len(x & y), len(x - y), len(y - x)
                a = n - b - c - d
                gain = h(n, a) + h(n, d) - h(n, b) - h(n, c)
                if gain > (1e-12 if kind == "lfk" else -1e-12):
                    best = min(best, h(n, a, b, c, d) - h(n, len(y), n - len(y)))
            yield own, best

    sides = [list(side(X, Y)), list(side(Y, X))]
    if kind == "lfk":
        rates = [[g / H if H else 1.0 for H, g in s] for s in sides]
        return 1 - sum(sum(r) / len(r) for r in rates) / 2
    (Hx, gx), (Hy, gy) = ([sum(z) for z in zip(*s, strict=True)] for s in sides)
    return (Hx - gx + Hy - gy) / 2 / max(Hx, Hy) if max(Hx, Hy) else 1.0


filled = st.lists(st.frozensets(st.integers(0, 15), min_size=1), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(filled, filled, st.sampled_from(["lfk", "max"]), st.sampled_from([None, 0, 9]))
def test_nmi_is_the_definition(X, Y, kind, more):
    n = len(frozenset().union(*X, *Y)) + (more or 0)
    universe = "covered" if more is None else n
    value = overlapping_nmi(X, Y, kind, universe)
    if sorted(map(sorted, X)) == sorted(map(sorted, Y)):
        assert value == 1.0
    else:
        assert value == pytest.approx(max(0, by_loops(X, Y, n, kind)), abs=1e-12)
    assert overlapping_nmi(Y, X, kind, universe) == pytest.approx(value, abs=1e-14)
    assert overlapping_nmi(Cover.of(X), Cover.of(Y), kind, universe) == value


def test_nmi_golden():
    X, Y = [{1, 2}, {3, 5}, {4}, {6}], [{1, 3}, {4, 5}, {2}, {6}]
    assert overlapping_nmi(X, Y) == pytest.approx(0.470025, abs=5e-7)
    assert overlapping_nmi(X, Y, "max") == pytest.approx(0.423228, abs=5e-7)
    assert overlapping_nmi(X, Y, "max", 6) == overlapping_nmi(X, Y, "max")
    assert overlapping_nmi(X, Y, universe=60) > overlapping_nmi(X, Y)


def test_nmi_edges():
    assert overlapping_nmi([], []) == 1.0
    assert overlapping_nmi([], [{1}]) == overlapping_nmi([{1}], []) == 0.0
    assert overlapping_nmi([{1, 2}], [{1, 2}], universe=9) == 1.0
    assert overlapping_nmi([{1, 2, 3}], [{4, 5, 6}], universe=6) == 0.0
    for bad in (1, 2.5, "all", -3):
        with pytest.raises(ValueError, match="universe must be"):
            overlapping_nmi([{1, 2}], [{3}], universe=bad)
    with pytest.raises(ValueError, match="kind must be"):
        overlapping_nmi([], [], "mean")


def test_large_covers_take_the_sparse_way(monkeypatch):
    from rlpapers.communityhiding import nmi

    rng = np.random.default_rng(0)
    draw = lambda: [rng.choice(300, 12, replace=False).tolist() for _ in range(40)]
    a, b = Cover.of(draw()), Cover.of(draw())
    dense = overlapping_nmi(a, b)
    monkeypatch.setattr(nmi, "_DENSE", 0)
    assert overlapping_nmi(a, b) == dense


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)
)
def test_partition_nmi(labels):
    a, b = (
        [{v for v, x in enumerate(labels) if x[side] == c} for c in range(4)]
        for side in (0, 1)
    )
    igraph = pytest.importorskip("igraph")
    x, y = zip(*labels, strict=True)
    want = igraph.compare_communities(list(x), list(y), method="nmi")
    assert partition_nmi(a, b) == pytest.approx(want, abs=1e-12)
    with pytest.raises(ValueError, match="is not a partition"):
        partition_nmi([*a, {0}], b)


# Partitions

igraph = pytest.importorskip("igraph")


@pytest.mark.parametrize("name", ("kar", "words", "football", "nets"))
@pytest.mark.parametrize("method", METHODS)
def test_partitions(name, method):
    if (name, method) == ("nets", "infomap"):
        pytest.skip("seconds")
    arrays, detector = as_arrays(load_graph(name)), PartitionDetector(method, seed=5)
    state = random.getstate()
    cover = detector.cover(arrays)
    assert random.getstate() == state
    assert sorted(cover.members.tolist()) == list(range(arrays.n))
    assert detector.cover(arrays).sets() == cover.sets()
    call, options = METHODS[method]
    graph = igraph.Graph(n=arrays.n, edges=arrays.edges.tolist())
    igraph.set_random_number_generator(random.Random(5))
    try:
        found = getattr(graph, call)(**options)
    finally:
        igraph.set_random_number_generator(random)
    found = found.as_clustering() if hasattr(found, "as_clustering") else found
    assert cover.sets() == [frozenset(c) for c in found]


def test_seeds_differ_and_pythons_generator_comes_back():
    arrays = as_arrays(load_graph("words"))
    louvain = PartitionDetector("louvain")
    found = [frozenset(louvain.with_seed(s).cover(arrays).sets()) for s in range(8)]
    assert len(set(found)) > 2 and louvain.partition
    draws = []
    for _ in range(2):
        random.seed(11)
        louvain.cover(arrays)
        graph = igraph.Graph(n=arrays.n, edges=arrays.edges.tolist())
        draws.append(graph.community_label_propagation().membership)
    assert draws[0] == draws[1], "igraph no longer draws from `random`"


def test_generator_comes_back_after_an_error(monkeypatch):
    seen = []
    real = igraph.set_random_number_generator
    note = lambda g: (seen.append(g), real(g))
    monkeypatch.setattr(igraph, "set_random_number_generator", note)

    def fail(self, **_):
        raise RuntimeError("inside")

    monkeypatch.setattr(igraph.Graph, "community_multilevel", fail)
    with pytest.raises(RuntimeError, match="inside"):
        PartitionDetector("louvain").detect(nx.path_graph(4))
    assert seen[-1] is random and len(seen) == 2


def test_unknown_method():
    with pytest.raises(DetectorError, match="did you mean 'louvain'"):
        PartitionDetector("luovain")


def with_proxies(arrays: GraphArrays, u: int, k: int, p: float, rng) -> GraphArrays:
    proxies = range(arrays.n, arrays.n + k)
    inner = [(a, b) for a in proxies for b in proxies if a < b and rng.random() < p]
    edges = [*arrays.edges.tolist(), *inner, *((u, a) for a in proxies)]
    return GraphArrays(arrays.n + k, edges)


@pytest.mark.parametrize("name", ("kar", "dol", "words"))
@pytest.mark.parametrize("method", ("greedy", "louvain"))
def test_flip_gain_is_igraphs_difference(name, method):
    arrays, rng = as_arrays(load_graph(name)), np.random.default_rng(0)
    cover = PartitionDetector(method).cover(arrays)
    labels = np.empty(arrays.n, int)
    labels[cover.members] = cover.community
    for u in rng.choice(arrays.n, 17, replace=False).tolist():
        k = int(rng.integers(1, 9))
        g = with_proxies(arrays, u, k, 0.5, rng)
        graph = igraph.Graph(n=g.n, edges=g.edges.tolist())
        before = np.append(labels, np.full(k, len(cover)))
        after = before.copy()
        after[u] = len(cover)
        home = np.flatnonzero(labels == labels[u]).tolist()
        gain = flip_gain(g, u, home, range(arrays.n, g.n))
        assert abs(gain - graph.modularity(after) + graph.modularity(before)) < 1e-12
        split = [np.flatnonzero(before == c) for c in range(len(cover) + 1)]
        ours = modularity(g, Cover.of(s.tolist() for s in split))
        assert abs(ours - graph.modularity(before)) < 1e-12


@pytest.mark.parametrize("method", ("louvain", "leiden"))
def test_flip_gain_predicts_the_naive_trick(method):
    "Two cliques, u in the first, proxies that are a clique: moved where it gains."
    moved = []
    for size in (8, 10, 13):
        blocks = nx.disjoint_union(nx.complete_graph(size), nx.complete_graph(size))
        blocks.add_edge(0, size)
        for k in range(3, size + 6):
            g = with_proxies(as_arrays(blocks), 5, k, 1.0, np.random.default_rng(0))
            gain = flip_gain(g, 5, range(size), range(2 * size, 2 * size + k))
            found = PartitionDetector(method).cover(g).sets()
            mine = next(c for c in found if 5 in c)
            moved.append(gain > 0)
            assert (2 * size in mine) == (gain > 0)
            assert (3 in mine) == (gain < 0)
    assert any(moved) and not all(moved)


# Other libraries


@pytest.fixture(scope="module")
def cdlib():
    with contextlib.redirect_stdout(io.StringIO()):
        return pytest.importorskip("cdlib")


def scores(cdlib, X, Y, n):
    graph = nx.empty_graph(n)
    a, b = (
        cdlib.NodeClustering([list(c) for c in Z], graph, overlap=True) for Z in (X, Y)
    )
    e = cdlib.evaluation
    lfk = e.overlapping_normalized_mutual_information_LFK(a, b).score
    return lfk, e.overlapping_normalized_mutual_information_MGH(a, b).score


def networkit_max(X, Y, n):
    networkit = pytest.importorskip("networkit")
    covers = []
    for Z in (X, Y):
        cover = networkit.Cover(n)
        cover.setUpperBound(len(Z))
        for i, c in enumerate(Z):
            for v in c:
                cover.addToSubset(i, int(v))
        covers.append(cover)
    kind = networkit.community.Normalization.MAX
    distance = networkit.community.OverlappingNMIDistance(kind)
    return 1 - distance.getDissimilarity(networkit.Graph(n), *covers)


def pairs_of_covers(name):
    pytest.importorskip("numba")
    from rlpapers.communityhiding.demon import Demon

    arrays = as_arrays(load_graph(name))
    for epsilon in (0.25, 0.5, 0.8):
        one, two = (Demon(epsilon, seed=s).cover(arrays).sets() for s in (0, 1))
        if set(one) != set(two):
            yield arrays.n, one, two
    yield arrays.n, one, Demon(0.5, seed=2).cover(arrays).sets()


@pytest.mark.peer
@pytest.mark.parametrize("name", ("kar", "lesm", "words", "dol", "polb", "football"))
def test_nmi_of_cdlib_and_networkit(cdlib, name):
    for n, X, Y in pairs_of_covers(name):
        lfk, mgh = scores(cdlib, X, Y, n)
        assert abs(overlapping_nmi(X, Y) - lfk) < 1e-12
        assert abs(overlapping_nmi(X, Y, "max") - mgh) < 1e-12
        theirs = networkit_max(X, Y, n)
        assert abs(overlapping_nmi(X, Y, "max", n) - theirs) < 1e-12


@pytest.mark.peer
def test_nmi_of_random_covers(cdlib):
    rng, ties = np.random.default_rng(1), 0
    for _ in range(80):
        n = int(rng.integers(6, 60))
        sizes = lambda: rng.integers(1, max(2, n // 2), rng.integers(1, 8))  # noqa: B023
        X, Y = (
            [set(rng.choice(n, s, replace=False).tolist()) for s in sizes()]
            for _ in range(2)
        )
        lfk, mgh = scores(cdlib, X, Y, n)
        assert abs(overlapping_nmi(X, Y) - lfk) < 1e-12
        theirs = networkit_max(X, Y, n)
        assert abs(overlapping_nmi(X, Y, "max", n) - theirs) < 1e-12
        ties += abs(overlapping_nmi(X, Y, "max") - mgh) > 1e-12
    assert ties < 8, "cdlib decides ties of the larger form the other way, rarely"


@pytest.mark.peer
def test_nmi_of_a_tie(cdlib):
    "Where the two forms differ: cdlib has the one, networkit the other."
    X, Y = [{0, 1}, {4, 5, 6, 7}], [{1, 2, 3}]
    assert scores(cdlib, X, Y, 8)[0] == pytest.approx(overlapping_nmi(X, Y), abs=1e-12)
    value = overlapping_nmi(X, Y, "max", 8)
    assert networkit_max(X, Y, 8) == pytest.approx(value, abs=1e-12) and value > 0.008


@pytest.mark.peer
def test_nmi_speed(cdlib):
    "At least fifty times cdlib's, on 36 communities each."
    rng = np.random.default_rng(0)
    X, Y = (
        [rng.choice(112, s, replace=False).tolist() for s in rng.integers(5, 30, 36)]
        for _ in range(2)
    )
    graph = nx.empty_graph(112)
    a, b = (cdlib.NodeClustering(Z, graph, overlap=True) for Z in (X, Y))
    e, ours, theirs = cdlib.evaluation, [], []
    for _ in range(5):
        start = time.perf_counter()
        e.overlapping_normalized_mutual_information_LFK(a, b)
        theirs.append(time.perf_counter() - start)
        start = time.perf_counter()
        overlapping_nmi(X, Y)
        ours.append(time.perf_counter() - start)
    assert np.median(theirs) / np.median(ours) >= 50
