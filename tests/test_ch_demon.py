"DEMON: the package's answers, closed cases, edits against full runs (T2, T3, T4)."

import contextlib
import io
import os
import random
import time

import numpy as np
import pytest

pytest.importorskip("numba")

import ch_plain_demon as plain
import networkx as nx
from ch_plain import rows as neighbours
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.communityhiding.adjacency import EditGraph, slotted
from rlpapers.communityhiding.agreement import agreement_kernels
from rlpapers.communityhiding.circles import all_circles
from rlpapers.communityhiding.coalitions import Coalitions, least_part
from rlpapers.communityhiding.demon import Demon
from rlpapers.communityhiding.demon_updates import IncrementalDemon
from rlpapers.communityhiding.graphs import (
    DetectorError,
    GraphArrays,
    GraphInputError,
    as_arrays,
    load_graph,
)
from rlpapers.communityhiding.propagation import groups_of

SMALL = ("kar", "lesm", "words", "dol", "polb", "football")
ALL = (*SMALL, "vote", "nets", "pow")
FOLDER = os.environ.get("RLPAPERS_GRAPHS")  # of graphs that are not ours to carry
KINDS = [("ascending", "keyed"), ("package", "keyed")]
KINDS += [("ascending", "mt19937"), ("package", "mt19937")]
ORDERS = {"ascending": plain.ascending, "package": plain.package}


def random_graph(seed: int) -> nx.Graph:
    n, p = 5 + 3 * (seed % 17), 0.08 + 0.05 * (seed % 11)
    return nx.gnp_random_graph(n, p, seed=seed)


def numbered(name: str) -> GraphArrays:
    "A graph with its ids as names."
    if name == "mad" and not FOLDER:
        pytest.skip("mad is read from the folder $RLPAPERS_GRAPHS only")
    graph = load_graph(name, source=FOLDER if name == "mad" else None)
    arrays = as_arrays(graph)
    return GraphArrays(arrays.n, arrays.edges)


# The algorithm


@pytest.mark.parametrize("epsilon", (0.25, 0.5, 0.8, 1.0))
@pytest.mark.parametrize("order, rng", KINDS)
def test_plain_python_agrees(order, rng, epsilon):
    some = 0
    for seed in range(36):
        arrays, least = as_arrays(random_graph(seed)), 1 + seed % 4
        draws = plain.Keyed(seed) if rng == "keyed" else None
        draws = draws or plain.Replayed(random.Random(seed))
        want = plain.demon(neighbours(arrays), epsilon, least, draws, ORDERS[order])
        found = Demon(epsilon, least, seed, order, rng).cover(arrays)
        assert found.sets() == want
        some += len(want)
    assert some > 36


def test_package_order_where_an_ego_knows_half_of_all():
    "networkx takes a set's order below half of the nodes, else theirs."
    for seed in range(12):
        n = 34 + seed % 4
        arrays = as_arrays(nx.gnp_random_graph(n, 0.49, seed=seed))
        assert {n // 2 - 1, n // 2} & set(arrays.degree.tolist())
        want = plain.demon(neighbours(arrays), 0.9, 3, plain.Keyed(seed), plain.package)
        assert Demon(0.9, 3, seed, "package").cover(arrays).sets() == want


@pytest.mark.parametrize("name", ALL)
def test_plain_python_agrees_on_data(name):
    arrays = numbered(name)
    want = plain.demon(neighbours(arrays), 0.8, 3, plain.Keyed(2))
    assert Demon(seed=2).cover(arrays).sets() == want


def test_groups_of_an_ego():
    arrays = numbered("football")
    rows, groups = neighbours(arrays), Demon(seed=4).groups(arrays)
    for ego in range(arrays.n):
        found = plain.circles(plain.ascending(rows, ego), ego, plain.Keyed(4))
        want = [[g[0], *g[2:], ego] for g in found if len(g) > 3]
        assert [m.tolist() for m in groups_of(*groups, ego)] == want
    assert [m.tolist() for m in Demon(seed=4).micro(arrays, 114)] == want


def test_seed_matters_and_repeats():
    arrays = numbered("words")
    found = {s: Demon(seed=s).cover(arrays).sets() for s in range(6)}
    assert len({frozenset(c) for c in found.values()}) > 1
    for s in (3, 3 + 2**64, 3 - 2**64):
        assert Demon().with_seed(s).cover(arrays).sets() == found[3]


def test_names_stand_for_ids():
    graph = load_graph("kar")
    named = nx.relabel_nodes(graph, "member {}".format)
    want = [frozenset(map("member {}".format, c)) for c in Demon().detect(graph)]
    assert Demon().detect(named) == want


# Closed cases

TWO = nx.disjoint_union(nx.complete_graph(8), nx.complete_graph(8))
TWO.add_edge(0, 8)
CLOSED = {
    "K3": (nx.complete_graph(3), 0.8, []),
    "K5": (nx.complete_graph(5), 0.8, [5]),
    "K6": (nx.complete_graph(6), 0.8, [6]),
    "K6 low": (nx.complete_graph(6), 0.25, [6]),
    "K7": (nx.complete_graph(7), 0.8, [7]),
    "shared": (
        nx.compose(nx.complete_graph(6), nx.complete_graph(range(5, 11))), 0.8, [6, 6],
    ),
    "bridge": (TWO, 0.8, [8, 8]),
    "star": (nx.star_graph(9), 0.8, []),
    "cycle": (nx.cycle_graph(10), 0.8, []),
    "empty": (nx.empty_graph(4), 0.8, []),
    "one": (nx.empty_graph(1), 0.8, []),
}  # fmt: skip


@pytest.mark.parametrize("case", CLOSED)
@pytest.mark.parametrize("order, rng", KINDS)
def test_closed_cases(case, order, rng):
    graph, epsilon, sizes = CLOSED[case]
    for seed in range(25):
        found = Demon(epsilon, seed=seed, order=order, rng=rng).detect(graph)
        assert [len(c) for c in found] == sizes


def test_least_size_is_strict():
    for least, sizes in ((4, [5]), (5, [])):
        found = Demon(min_community_size=least).detect(nx.complete_graph(5))
        assert [len(c) for c in found] == sizes
    pair = nx.path_graph(2)
    assert Demon(min_community_size=1).detect(pair) == [{0, 1}]
    assert Demon(min_community_size=2).detect(pair) == []


# Merging


def in_pool(groups: list, n: int) -> tuple[np.ndarray, np.ndarray]:
    "Groups (first member, ego, others) as those of one ego."
    where, pool = np.zeros(n, np.int32), [0, len(groups)]
    where[0] = 1
    for first, ego, *others in groups:
        pool += [2 + len(others), first, *others, ego]
    return where, np.array(pool, np.int32)


group = st.lists(st.integers(0, 11), min_size=2, max_size=6, unique=True)
shaped = st.tuples(group, st.booleans()).map(lambda g: sorted(g[0]) if g[1] else g[0])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(shaped, max_size=40), st.sampled_from([0.2, 0.5, 2 / 3, 0.8, 1.0]))
def test_merging(groups, epsilon):
    found = Coalitions(12, epsilon).unite(*in_pool(groups, 12))
    assert found.sets() == plain.merge(groups, epsilon)


def test_merging_goes_through_both_special_cases():
    "A group that is there already, in order; a union that is there already."
    skipped = [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    moved = [[0, 1, 2], [3, 4, 5], [1, 0, 2]]
    unite = lambda groups: Coalitions(6, 1.0).unite(*in_pool(groups, 6)).sets()
    assert unite(skipped) == [{0, 1, 2}, {3, 4, 5}]
    assert unite(moved) == [{3, 4, 5}, {0, 1, 2}]
    twin = [[5, 0, 1], [0, 1, 2, 3], [9, 0, 1, 2, 3], [9, 5, 0, 1]]
    for epsilon in (0.5, 0.67, 0.8, 1.0):
        found = Coalitions(12, epsilon).unite(*in_pool(twin, 12))
        assert found.sets() == plain.merge(twin, epsilon)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(1e-3, 1.0), st.integers(1, 400))
def test_least_part_is_the_division(epsilon, s):
    need = int(least_part(epsilon, s)[s])
    counts = [c for c in range(1, s + 1) if c / s >= epsilon]
    assert need == counts[0]


# Edits


def pairs_to_toggle(rng: np.random.Generator, live: EditGraph, count: int):
    "Half are edges or close triangles, so that the density stays."
    for _ in range(count):
        v = int(rng.integers(live.n))
        near = live.neighbors(v)
        w = int(rng.integers(live.n))
        if len(near) and rng.random() < 0.7:
            w = int(rng.choice(near))
            far = live.neighbors(w)
            w = int(rng.choice(far)) if rng.random() < 0.5 else w
        yield (v, w) if v != w else (v, (v + 1) % live.n)


def follow(name: str, count: int, order: str, epsilon: float = 0.8) -> dict:
    "Toggle, and compare with a full run after every edit."
    arrays = numbered(name)
    demon, rng = Demon(epsilon, seed=1, order=order), np.random.default_rng(5)
    live, twin = demon.incremental().fit(arrays), EditGraph(arrays, slack=1)
    seen, last = {"crossed": 0, "changed": 0, "egos": 0}, live.cover()
    for a, b in pairs_to_toggle(rng, twin, count):
        near = [set(twin.neighbors(v).tolist()) for v in (a, b)]
        before = twin.deg[[a, b]].min()
        twin.toggle(a, b)
        after = twin.deg[[a, b]].min()
        seen["crossed"] += bool(min(before, after) < 3 <= max(before, after))
        done = live.toggle_ids(a, b)
        assert done == len({a, b} | near[0] & near[1])
        full, now = demon.cover(twin.to_arrays()), live.cover()
        assert np.array_equal(now.members, full.members)
        assert np.array_equal(now.offsets, full.offsets)
        seen["changed"] += not np.array_equal(now.members, last.members)
        seen["egos"] += done
        last = now
    assert np.array_equal(live.to_arrays().edges, twin.to_arrays().edges)
    return seen


@pytest.mark.parametrize("order", ("ascending", "package"))
@pytest.mark.parametrize("name", ALL)
def test_edits_equal_full_runs(name, order):
    seen = follow(name, 500 if name in SMALL or order == "ascending" else 120, order)
    assert seen["changed"] > 5 and seen["egos"] > 0
    assert seen["crossed"] > 0 or name == "football"


@pytest.mark.parametrize("epsilon", (0.25, 0.5, 1.0))
def test_edits_at_other_thresholds(epsilon):
    assert follow("lesm", 200, "ascending", epsilon)["changed"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("order", ("ascending", "package"))
@pytest.mark.parametrize("name", ALL)
def test_ten_thousand_edits(name, order, record_property):
    seen = follow(name, 10_000, order)
    record_property("edits", 10_000)
    print(f"{name}, {order}: 10000 edits, cover changed {seen['changed']} times")
    assert seen["changed"] > 100


@pytest.mark.parametrize("order", ("ascending", "package"))
def test_toggling_twice_restores(order):
    live = Demon(order=order).incremental().fit(load_graph("lesm"))
    rng, first = np.random.default_rng(0), live.communities()
    groups = [[m.tolist() for m in live.micro(v)] for v in range(live.n)]
    pairs = [rng.choice(live.n, 2, replace=False).tolist() for _ in range(40)]
    for a, b in pairs + pairs[::-1]:
        live.toggle_ids(a, b)
    assert live.communities() == first
    assert [[m.tolist() for m in live.micro(v)] for v in range(live.n)] == groups


def test_snapshot_and_proxies():
    live = IncrementalDemon().fit(load_graph("kar"), extra_nodes=3)
    assert live.names[-1] == ("proxy", 2) and live.n == 37
    kept, first = live.snapshot(), live.communities()
    proxies = [("proxy", i) for i in range(3)]
    for i, p in enumerate(proxies):
        live.toggle(p, 0)
        for q in proxies[:i]:
            live.toggle(p, q)
    assert {0, *proxies} in live.communities()
    live.restore(kept)
    assert live.communities() == first
    live.toggle(("proxy", 0), 33)
    live.restore(kept)
    assert live.communities() == first and live.to_arrays().m == 78


def test_untouched_egos_keep_their_groups():
    "Injected proxies change no group of any ego but u and themselves."
    for name in ("kar", "words"):
        arrays = numbered(name)
        before = Demon(seed=3).groups(arrays)
        for u in range(0, arrays.n, 7):
            k = 4
            live = Demon(seed=3).incremental().fit(arrays, extra_nodes=k)
            for i in range(k):
                live.toggle_ids(u, arrays.n + i)
                for j in range(i):
                    live.toggle_ids(arrays.n + i, arrays.n + j)
            for v in set(range(arrays.n)) - {u}:
                old = [m.tolist() for m in groups_of(*before, v)]
                assert [m.tolist() for m in live.micro(v)] == old


def test_replayed_draws_compute_everything_again():
    demon = Demon(0.5, seed=9, order="package", rng="mt19937")
    live, arrays = demon.incremental().fit(numbered("dol")), numbered("dol")
    for a, b in ((0, 1), (5, 40), (0, 1)):
        assert live.toggle_ids(a, b) == arrays.n
        assert live.cover().sets() == demon.cover(live.to_arrays()).sets()


# Room and bad input


def test_full_arrays_are_doubled():
    graph = nx.complete_graph(80)
    graph.add_edges_from((v, 80 + v) for v in range(80))
    rows = slotted(as_arrays(graph), 0, 0)
    for order, rng in KINDS:
        some, many = (all_circles(rows, 3, 1, order, rng, r) for r in (1, 60_000))
        assert all(np.array_equal(a, b) for a, b in zip(some, many, strict=True))
    small = Coalitions(112, 0.8)
    small._many = small._lists = 1
    small._make()
    arrays = numbered("words")
    found = small.unite(*Demon().groups(arrays))
    assert found.sets() == Demon().cover(arrays).sets()


def guarded(arrays, kept: list):
    "The same arrays, each in front of places that nobody may touch."
    if isinstance(arrays, tuple):
        return tuple(guarded(a, kept) for a in arrays)
    whole = np.full(arrays.size + 4000, 77, arrays.dtype)
    kept.append(whole[arrays.size :])
    whole[: arrays.size] = arrays.ravel()
    return whole[: arrays.size].reshape(arrays.shape)


@pytest.mark.parametrize("order", ("ascending", "package"))
@pytest.mark.parametrize("labels", (1, 40, 4096))
def test_nothing_is_written_past_an_end(monkeypatch, order, labels):
    from rlpapers.communityhiding import circles

    kept: list = []
    plain_scratch = circles.circle_scratch
    scratch = lambda *a: guarded(plain_scratch(*a), kept)
    monkeypatch.setattr(circles, "circle_scratch", scratch)
    graphs = [nx.star_graph(1500), nx.complete_graph(60), nx.wheel_graph(1200)]
    graphs += [nx.gnp_random_graph(80, 0.4, seed=s) for s in range(3)]
    for graph in graphs:
        arrays = as_arrays(graph)
        for rng in ("keyed", "mt19937"):
            rows = guarded(slotted(arrays, 0, 0), kept)
            groups = circles.all_circles(rows, 3, 0, order, rng, labels)
            merger = Coalitions(arrays.n, 0.8)
            merger._merged = guarded(merger._merged, kept)
            found = merger.unite(*guarded(groups, kept)).sets()
            assert found == Demon(0.8, 3, 0, order, rng).cover(arrays).sets()
    assert len(kept) > 100 and all((g == 77).all() for g in kept)


@pytest.mark.parametrize("order, rng", KINDS)
def test_hubs(order, rng):
    for size in (1200, 5000):
        star = nx.star_graph(size)
        assert Demon(order=order, rng=rng).detect(star) == []
    live = Demon(order=order).incremental().fit(nx.empty_graph(1500))
    for v in range(1, 1500):
        live.toggle_ids(0, v)
    live.toggle_ids(1, 2)
    assert live.micro(0) == [] and live.communities() == []


def test_incremental_arrays_grow():
    live = Demon().incremental().fit(nx.empty_graph(90))
    rng, graph = np.random.default_rng(1), nx.empty_graph(90)
    live._labels = 1
    live._local = None
    live._wider()
    for a, b in rng.permutation(list(nx.complete_graph(90).edges))[:900].tolist():
        live.toggle_ids(a, b)
        graph.add_edge(a, b)
    assert live.communities() == Demon().detect(graph)


def test_one_group_larger_than_the_pool():
    "The pool is nearly empty, and packing it frees nothing."
    graph = nx.gnp_random_graph(301, 0.5, seed=1)
    graph.add_edges_from((0, v) for v in range(1, 301))
    graph.remove_edge(0, 1)
    demon = Demon(min_community_size=300)
    live, rounds = demon.incremental().fit(graph), []
    grow = live._more_pool
    live._more_pool = lambda: (rounds.append(1), grow(), 1 / (len(rounds) < 9))
    live.toggle_ids(0, 1)
    assert [len(c) for c in live.communities()] == [301] and rounds


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=200))
def test_sorting(keys):
    mine = np.array(keys, np.uint64)
    agreement_kernels().sort_keys(mine, len(mine))
    assert mine.tolist() == sorted(keys)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"epsilon": 0.0}, "epsilon must lie in"),
        ({"epsilon": 1.01}, "got 1.01"),
        ({"epsilon": float("nan")}, "got nan"),
        ({"min_community_size": 0}, "1 or more, got 0"),
        ({"min_community_size": 2.5}, "1 or more, got 2.5"),
        ({"min_community_size": float("nan")}, "1 or more, got nan"),
        ({"epsilon": "x"}, "epsilon must lie in"),
        ({"epsilon": None}, "epsilon must lie in"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"order": "random"}, "order: 'ascending' or 'package'"),
        ({"rng": "pcg"}, "'keyed' or 'mt19937'"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(DetectorError, match=text):
        Demon(**options)


def test_bad_edits():
    live = Demon().incremental()
    with pytest.raises(DetectorError, match="call fit"):
        live.cover()
    live.fit(load_graph("kar"))
    for bad in ((0, 0), (0, 34), (-1, 3)):
        with pytest.raises(GraphInputError):
            live.toggle_ids(*bad)
    with pytest.raises(GraphInputError, match="no node 'x'"):
        live.toggle("x", 0)
    assert live.communities() == Demon().detect(load_graph("kar"))


# The package itself


@contextlib.contextmanager
def silence():
    with contextlib.redirect_stdout(io.StringIO()):
        with contextlib.redirect_stderr(io.StringIO()):
            yield


@pytest.fixture(scope="module")
def package():
    "The unmodified package: graph, epsilon, least size -> communities in its order."
    with silence():
        module = pytest.importorskip("demon")

    def run(graph, epsilon, least=3):
        with silence():
            d = module.Demon(graph=graph, epsilon=epsilon, min_community_size=least)
            return [frozenset(c) for c in d.execute()]

    return run


class StandIns:
    "Keyed draws in place of Python's, for calls in the package's order."

    def __init__(self, graph, seed):
        self.graph, self.draws = graph, plain.Keyed(seed)
        self.egos, self.calls, self.waiting = list(graph), 0, []

    def shuffle(self, nodes):
        ego, turn = self.egos[self.calls // plain.TURNS], self.calls % plain.TURNS
        self.calls += 1
        assert not self.waiting
        nodes[:] = self.draws.order(nodes, ego, turn)
        near = set(self.graph[ego])
        self.ego = ego
        if turn == 0:
            self.waiting = [v for v in nodes if near & set(self.graph[v])]

    def sample(self, choices, k):
        assert k == 1
        return [self.draws.one(choices, self.ego, self.waiting.pop(0))]


def ascending_ego_graph(graph, ego, radius=1, center=True, **_):
    near, out = set(graph[ego]), nx.Graph()
    out.add_nodes_from(sorted(near | {ego} if center else near))
    for v in list(out):
        out.add_edges_from((v, w) for w in sorted(graph[v]) if w in out)
    return out


@pytest.mark.peer
@pytest.mark.parametrize("epsilon", (0.25, 0.5, 0.8))
@pytest.mark.parametrize("name", (*ALL, "mad"))
def test_package_with_stand_ins(package, monkeypatch, name, epsilon):
    "T2: keyed draws and ascending order in the package itself."
    arrays = numbered(name)
    graph = arrays.to_networkx()
    stand = StandIns(graph, 7)
    monkeypatch.setattr(random, "shuffle", stand.shuffle)
    monkeypatch.setattr(random, "sample", stand.sample)
    monkeypatch.setattr(nx, "ego_graph", ascending_ego_graph)
    want = package(graph, epsilon)
    assert stand.calls == plain.TURNS * arrays.n
    assert Demon(epsilon, seed=7).cover(arrays).sets() == want


@pytest.mark.peer
@pytest.mark.parametrize("epsilon", (0.25, 0.5, 0.8))
@pytest.mark.parametrize("name", (*ALL, "mad"))
def test_unmodified_package(package, name, epsilon):
    "Package order and replayed draws, community by community."
    arrays = numbered(name)
    for seed in range(3 if name in SMALL else 1):
        random.seed(seed)
        want = package(arrays.to_networkx(), epsilon)
        found = Demon(epsilon, 3, seed, "package", "mt19937").cover(arrays)
        assert found.sets() == want


@pytest.mark.peer
def test_unmodified_package_on_random_graphs(package):
    for seed in range(60):
        arrays, least = as_arrays(random_graph(seed)), 1 + seed % 3
        random.seed(seed)
        want = package(arrays.to_networkx(), 0.6, least)
        found = Demon(0.6, least, seed, "package", "mt19937").cover(arrays)
        assert found.sets() == want


@pytest.mark.peer
@pytest.mark.parametrize("case", CLOSED)
def test_closed_cases_of_the_package(package, case):
    graph, epsilon, sizes = CLOSED[case]
    for seed in range(25):
        random.seed(seed)
        assert [len(c) for c in package(graph, epsilon)] == sizes


@pytest.mark.peer
@pytest.mark.parametrize("name", SMALL)
def test_cdlib(name):
    with silence():
        algorithms = pytest.importorskip("cdlib.algorithms")
    arrays = numbered(name)
    for epsilon in (0.25, 0.8):
        random.seed(4)
        with silence():
            found = algorithms.demon(arrays.to_networkx(), epsilon, 3)
        ours = Demon(epsilon, 3, 4, "package", "mt19937").cover(arrays).sets()
        assert set(map(frozenset, found.communities)) == set(ours)


@pytest.mark.peer
def test_speed():
    "At least fifty times cdlib's on every graph, side by side."
    with silence():
        algorithms = pytest.importorskip("cdlib.algorithms")

    def median(f, count):
        times = []
        for _ in range(count):
            start = time.perf_counter()
            f()
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    ratios = {}
    for name in ("kar", "lesm", "words", "football", "vote", "nets", "pow"):
        arrays, graph = numbered(name), numbered(name).to_networkx()
        Demon().cover(arrays)
        with silence():
            theirs = median(lambda: algorithms.demon(graph, 0.8, 3), 5)  # noqa: B023
        ratios[name] = theirs / median(lambda: Demon().cover(arrays), 15)  # noqa: B023
    assert min(ratios.values()) >= 50, ratios
