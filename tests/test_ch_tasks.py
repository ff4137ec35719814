"Tasks and sessions: budgets (T13), injection, legal edits, every refusal, toggles."

import os
import re
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

pytest.importorskip("numba")

from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.communityhiding.angel import Angel
from rlpapers.communityhiding.covers import (
    Cover,
    as_detector,
    membership_similarity,
)
from rlpapers.communityhiding.demon import Demon
from rlpapers.communityhiding.graphs import (
    BudgetError,
    GraphArrays,
    GraphInputError,
    TargetError,
    as_arrays,
    load_graph,
)
from rlpapers.communityhiding.heuristics import RandomHider
from rlpapers.communityhiding.injection import (
    budget_of,
    budget_unit,
    draw_injection,
    inject_proxies,
    proxies_of,
    proxy_names,
)
from rlpapers.communityhiding.sessions import (
    HidingSession,
    edited,
    result_of,
)
from rlpapers.communityhiding.tasks import (
    HidingTask,
    coverage,
    make_tasks,
    sample_targets,
)
from rlpapers.core.paths import UserError

CLUB = frozenset({0, 1, 2, 3, 7, 8, 12, 13, 17, 19, 21})
KARATE = as_arrays(load_graph("kar"))


def everyone(graph):
    return [set(graph)]


def nobody(graph):
    return []


def task_on(seed: int, **more) -> HidingTask:
    "A task on a random graph, with a community that has nothing to do with it."
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 25))
    graph = nx.gnp_random_graph(n, float(rng.uniform(0, 0.6)), seed=seed)
    members = rng.permutation(n)[: int(rng.integers(2, n + 1))].tolist()
    put = dict(k=int(rng.integers(0, 4)), budget=int(rng.integers(1, 9)), seed=seed)
    return HidingTask(graph, members[0], members, **put | more)


# --------------------------------------------------------------------- budgets, T13

UNITS = {"kar": 3, "words": 3, "vote": 3, "nets": 2, "pow": 2}
UNITS |= {"lesm": 3, "football": 5, "dol": 3, "polb": 4}


@pytest.mark.parametrize("name", UNITS)
def test_budget_units(name):
    graph = load_graph(name)
    assert budget_unit(graph) == UNITS[name]
    assert budget_of(graph, 1) == proxies_of(graph, 1) == UNITS[name]
    assert budget_of(graph, 2) == 2 * UNITS[name]


def test_half_a_unit_on_karate_is_one_edit():
    assert budget_of(KARATE, 0.5) == 1
    assert proxies_of(KARATE, 0.5) == 2  # 1.5, to even


@pytest.mark.parametrize(
    ("n", "m", "unit"),
    [(3, 0, 1), (3, 3, 2), (10, 29, 3), (10, 30, 3), (10, 39, 3), (10, 40, 4)],
)
def test_budget_unit_at_its_edges(n, m, unit):
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)][:m]
    assert budget_unit(GraphArrays(n, pairs)) == unit


@pytest.mark.parametrize("beta", (0, -1, float("nan"), float("inf"), None, "1"))
def test_budget_factor_refused(beta):
    with pytest.raises(BudgetError, match="beta must be a number above 0"):
        budget_of(KARATE, beta)


@pytest.mark.parametrize("c", (-0.1, float("nan"), float("inf"), None, "1", ""))
def test_proxy_factor_refused(c):
    with pytest.raises(BudgetError, match="c must be a number of at least 0"):
        proxies_of(KARATE, c)


# ------------------------------------------------------------------------ injection


@given(st.integers(0, 30), st.integers(0, 12), st.floats(0, 1), st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_injection_joins_proxies_to_the_user_and_each_other_only(u, k, p, seed):
    edges = draw_injection(u, 31, k, p, seed)
    pairs = [tuple(e) for e in edges.tolist()]
    assert len(set(pairs)) == len(pairs) and all(a < b for a, b in pairs)
    ties = {(a, b) for a, b in pairs if a < 31}
    assert ties == {(u, 31 + i) for i in range(k)}
    assert all(31 <= a < b < 31 + k for a, b in set(pairs) - ties)
    assert np.array_equal(edges, draw_injection(u, 31, k, p, seed))
    if p == 1:
        assert len(pairs) == k + k * (k - 1) // 2


def test_injection_is_even_and_follows_its_seed():
    counts = [len(draw_injection(0, 5, 6, 0.5, s)) - 6 for s in range(2000)]
    assert abs(np.mean(counts) - 15 / 2) < 0.2
    assert abs(np.var(counts) - 15 / 4) < 0.5
    assert draw_injection(0, 5, 8, 0.0, 3).shape == (8, 2)


@pytest.mark.parametrize("seed", range(10))
def test_start_is_the_injected_graph(seed):
    task = task_on(seed)
    graph, new = inject_proxies(task.graph, task.target, task.k, task.p, task.seed)
    assert task.start.names == tuple(graph) and len(new) == task.k
    theirs = {frozenset(e) for e in graph.edges}
    assert {frozenset(e) for e in task.start.to_networkx().edges} == theirs
    inner = graph.subgraph(range(task.n))
    assert {frozenset(e) for e in inner.edges} == {
        frozenset(e) for e in task.graph.edges.tolist()
    }


def test_input_graph_is_not_changed():
    graph = load_graph("kar")
    before = sorted(graph.edges)
    inject_proxies(graph, 0, 3)
    session = HidingSession(HidingTask(graph, 8, CLUB, k=2), everyone)
    session.toggle(8, 0)
    assert sorted(graph.edges) == before and len(graph) == 34


# ------------------------------------------------------------------------- refusals


def test_errors_are_mistakes_of_the_user_and_values():
    for kind in (TargetError, BudgetError, GraphInputError):
        assert issubclass(kind, UserError) and issubclass(kind, ValueError)


@pytest.mark.parametrize(
    ("target", "community", "text"),
    [
        (99, CLUB, "the graph has no node 99"),
        ("8", CLUB, "the graph has no node '8'"),
        ([8], CLUB, "the graph has no node"),
        (8, CLUB | {77}, "the graph has no node 77"),
        (33, CLUB, "33 is not in the community of 11 members"),
        (8, {8}, "a community of 8 alone"),
        (8, (), "8 is not in the community of 0 members"),
    ],
)
def test_targets_refused(target, community, text):
    with pytest.raises(TargetError, match=text):
        HidingTask(KARATE, target, community)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("budget", 0, "the budget must be at least 1, got 0: give a whole number"),
        ("budget", -3, "got -3"),
        ("budget", 1.5, "got 1.5"),
        ("budget", float("nan"), "got nan: give a whole number of edits, or None"),
        ("budget", float("inf"), "got inf: give"),
        ("budget", -float("inf"), "got -inf: give"),
        ("budget", "3", "got '3': give"),
        ("budget", [3], "got \\[3\\]: give"),
        ("k", -1, "the number of proxies, must be at least 0, got -1"),
        ("k", 0.5, "got 0.5"),
        ("k", float("nan"), "got nan: give a whole number, 0 for none, or proxies_of"),
        ("k", float("inf"), "got inf: give"),
        ("k", None, "got None: give"),
        ("k", "2", "got '2': give"),
        ("p", 1.1, "p must lie in \\[0, 1\\], got 1.1"),
        ("p", float("nan"), "got nan: it is the chance of an edge between two"),
        ("p", float("inf"), "got inf"),
        ("p", None, "got None"),
        ("p", "0.5", "got '0.5'"),
    ],
)
def test_budgets_refused(field, value, text):
    with pytest.raises(BudgetError, match=text):
        HidingTask(KARATE, 8, CLUB, **{field: value})


@pytest.mark.parametrize(
    "tau", (1, -0.1, float("nan"), float("inf"), None, "0.5", "a", [0.5])
)
def test_thresholds_refused(tau):
    text = re.escape(f"tau must lie in [0, 1), got {tau!r}: it is the similarity")
    with pytest.raises(TargetError, match=text):
        HidingTask(KARATE, 8, CLUB, tau=tau)


@pytest.mark.parametrize("k", (float("nan"), float("inf"), None, "2", -1, 0.5))
def test_injections_refused(k):
    for call in (
        lambda: inject_proxies(KARATE, 8, k),
        lambda: draw_injection(8, 34, k),
        lambda: proxy_names((), k),
    ):
        with pytest.raises(BudgetError, match="number of proxies, must be at least 0"):
            call()


def test_numbers_of_numpy_are_numbers():
    put = dict(budget=np.int64(4), k=np.float32(2), p=np.float64(1), tau=np.float32(0))
    task = HidingTask(KARATE, 8, CLUB, **put)
    assert (task.budget, task.k, len(task.injected)) == (4, 2, 3)
    assert type(task.budget) is type(task.k) is int


@pytest.mark.parametrize("pair", [(8, 8), (8,), (8, 0, 1), (8, 99), (8, ("proxy", 0))])
def test_forbidden_pairs_refused(pair):
    with pytest.raises(TargetError):
        HidingTask(KARATE, 8, CLUB, forbidden=[pair])


def loops():
    graph = nx.Graph([(0, 1), (1, 2)])
    graph.add_edge(1, 1)
    return graph


@pytest.mark.parametrize(
    ("graph", "text"),
    [
        (nx.DiGraph([(0, 1)]), "directed"),
        (nx.MultiGraph([(0, 1), (0, 1)]), "multigraph"),
        (loops(), "self-loop"),
        (nx.Graph(), "no nodes"),
        ([[0, 1], [1, 0]], "networkx graph is needed"),
    ],
)
def test_graphs_refused(graph, text):
    with pytest.raises(GraphInputError, match=text):
        HidingTask(graph, 0, {0, 1})


def test_names_of_proxies_are_taken():
    grown, _ = inject_proxies(KARATE, 8, 2)
    for call in (
        lambda: inject_proxies(grown, 8, 1),
        lambda: HidingTask(grown, 8, CLUB, k=2),
    ):
        with pytest.raises(GraphInputError, match="already has a node .*proxy"):
            call()
    assert HidingTask(grown, 8, CLUB).N == 36


def test_nothing_found_says_how_little_is_covered():
    with pytest.raises(TargetError, match="nobody covers 0% of the nodes: .* no comm"):
        make_tasks(KARATE, nobody)
    with pytest.raises(TargetError, match="found no community"):
        sample_targets(Cover.of([[3]]))
    star = nx.star_graph(9)
    with pytest.raises(TargetError, match="ANGEL covers 0%"):
        make_tasks(star, Angel())
    with pytest.raises(ValueError, match="scheme must be"):
        sample_targets([{1, 2}], "largest")


# ---------------------------------------------------------------------- legal edits


@pytest.mark.parametrize("protect", (False, True))
@pytest.mark.parametrize("seed", range(15))
def test_legal_edits_by_definition(seed, protect):
    rng = np.random.default_rng(seed)
    some = task_on(seed)
    pairs = [rng.choice(some.N, 2, replace=False).tolist() for _ in range(5)]
    named = [[some.names[v] for v in p] for p in pairs]
    task = some.replace(protect_ties=protect, forbidden=named)
    shut = {frozenset(p) for p in pairs}
    graph = task.graph.to_networkx()
    sources = {task.u, *range(task.n, task.N)}
    for j in range(task.N):
        for v in range(-1, task.N + 1):
            tie = task.u in (j, v) and j < task.n and 0 <= v < task.n
            tie = tie and graph.has_edge(j, v)
            want = j in sources and v != j and 0 <= v < task.N
            want = want and frozenset((j, v)) not in shut and not (protect and tie)
            assert task.legal(j, v) == want
            if j in sources and 0 <= v < task.N:
                assert task.legal_mask[task.sources.index(j), v] == want


# -------------------------------------------------------------------------- targets


def test_all_pairs_and_their_order():
    cover = Angel().cover(KARATE)
    pairs = sample_targets(cover)
    assert len(pairs) == int(cover.sizes.sum())
    assert len(set(pairs)) == len(pairs) and all(v in c for v, c in pairs)
    drawn = sample_targets(cover, count=7, seed=1)
    assert len(drawn) == 7 and drawn == [p for p in pairs if p in set(drawn)]
    assert drawn == sample_targets(cover, count=7, seed=1)
    assert drawn != sample_targets(cover, count=7, seed=2)
    assert sample_targets(cover, count=10**6) == pairs


def test_targets_by_size():
    sets = [
        set(range(a, a + s)) for a, s in ((0, 100), (200, 48), (300, 31), (400, 79))
    ]
    pairs = sample_targets(sets, "size_quantiles", per_size=30)
    sizes = [len(c) for _, c in pairs]
    assert {s: sizes.count(s) for s in set(sizes)} == {48: 30, 31: 30, 79: 30}
    alone = sample_targets([{1, 2, 3}], "size_quantiles")
    assert [v for v, _ in alone] == [1, 2, 3]


def listing() -> str:
    "Targets and edits on a graph whose nodes are strings."
    named = {v: f"n{v}" for v in range(34)}
    graph, angel = nx.relabel_nodes(load_graph("kar"), named), Angel()
    some = sample_targets([{"ada", "bob", "cleo", "dan", "eve", "fay"}], count=3)
    out = [some[0][0]]
    for task in make_tasks(graph, angel, count=3):
        edits = RandomHider(angel, stop_early=False).hide(task).edits
        out.append(f"{task.target} {edits}")
    return "\n".join(out)


def test_nothing_depends_on_the_hashes_of_strings():
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    env = os.environ | {"PYTHONHASHSEED": other, "PYTHONPATH": path}
    run = [sys.executable, "-c", "import test_ch_tasks as t; print(t.listing())"]
    there = subprocess.run(run, env=env, capture_output=True, check=True, text=True)
    assert listing() == there.stdout.strip() and listing().count("\n") == 3


def test_tasks_share_the_graph_and_have_seeds_of_their_own():
    tasks = make_tasks(KARATE, Angel(), beta=2, c=0.5, tau=0.3, protect_ties=True)
    assert {id(t.graph) for t in tasks} == {id(tasks[0].graph)}
    assert len({t.seed for t in tasks}) == len(tasks)
    first = tasks[0]
    assert (first.budget, first.k, first.tau, first.protect_ties) == (6, 2, 0.3, True)
    assert coverage(Angel().cover(KARATE), 34) == 22 / 34
    assert coverage([], 34) == 0


# ------------------------------------------------------------------------- sessions


def brute(task, state):
    "The edited graph in networkx."
    graph = task.start.to_networkx()
    for a, b in state:
        a, b = task.names[a], task.names[b]
        graph.remove_edge(a, b) if graph.has_edge(a, b) else graph.add_edge(a, b)
    return graph


DETECTORS = [Angel(0.6), Angel(0.5, order="package"), Demon(0.4), nx.find_cliques]


@pytest.mark.parametrize("detector", DETECTORS, ids=["angel", "package", "demon", "f"])
@pytest.mark.parametrize("count_proxies", (False, True))
def test_sessions_follow_networkx(detector, count_proxies):
    "Random toggles and steps back, against graphs made anew."
    detector, seen_some = as_detector(detector), 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        task = task_on(seed + 100, budget=200, count_proxies=count_proxies)
        if task.n < 12:
            continue
        session, state, states = HidingSession(task, detector), [], set()
        for _ in range(25):
            if state and rng.random() < 0.3:
                assert session.undo() == state.pop()
            else:
                j = int(rng.choice(task.sources))
                v = int(rng.choice([v for v in range(task.N) if task.legal(j, v)]))
                before = brute(task, state).has_edge(task.names[j], task.names[v])
                assert session.toggle(j, v) == (not before)
                state.append((j, v))
            graph = brute(task, state)
            names = task.names
            for v in range(task.N):
                got = {names[w] for w in session.neighbors(v)}
                assert got == set(graph[names[v]])
            assert session.edits == state and session.left == 200 - len(state)
            found = detector.detect(graph)
            ignore = () if count_proxies else names[task.n :]
            want = membership_similarity(task.target, task.community, found, ignore)
            assert session.similarity() == pytest.approx(want, abs=1e-12)
            seen_some += 0 < want < 1
            assert session.hidden() == (want <= 0.5)
            assert session.cover().sets(names) == found
            states.add(frozenset(frozenset(e) for e in graph.edges))
            assert session.queries == len(states)
        again = edited(task, session.named())
        assert np.array_equal(again.edges, session.arrays().edges)
    assert seen_some > 10


def test_looking_ahead_leaves_no_trace():
    task = HidingTask(KARATE, 8, CLUB, k=2)
    session = HidingSession(task, Angel())
    session.toggle(8, 0)
    before = (session.neighbors(8), session.similarity(), list(session.edits))
    ahead = [session.peek(j, v) for j in task.sources for v in (5, 33) if j != v]
    assert (session.neighbors(8), session.similarity(), session.edits) == before
    fresh = HidingSession(task, Angel())
    fresh.toggle(8, 0), fresh.toggle(8, 5)
    assert fresh.similarity() == ahead[0]


def test_session_refuses():
    session = HidingSession(HidingTask(KARATE, 8, CLUB, k=1, budget=1), Angel())
    for j, v in ((0, 1), (8, 8), (8, 35), (-1, 8), (34, 34)):
        with pytest.raises(TargetError, match="is not allowed"):
            session.toggle(j, v)
    with pytest.raises(BudgetError, match="no edit to take back"):
        session.undo()
    session.toggle(34, 0)
    with pytest.raises(BudgetError, match="all 1 edits of the budget"):
        session.toggle(8, 0)


# ---------------------------------------------------------------- unusual situations


def test_user_in_no_community_is_hidden_and_flagged():
    result = result_of(HidingSession(HidingTask(KARATE, 8, CLUB), nobody))
    assert result.success and result.uncovered and result.similarity == 0
    assert not result.isolated and result.kept_ties == 1


def test_user_in_all_communities():
    "Hidden only when every one of its communities is unlike the one to leave."
    near, far = CLUB - {0}, {8, 30, 32, 33}
    task = HidingTask(KARATE, 8, CLUB)
    for listed, hidden in (([far], True), ([near], False), ([far, near, CLUB], False)):
        session = HidingSession(task, lambda g, listed=listed: listed)
        assert session.hidden() == hidden


def test_isolated_user():
    graph = nx.Graph()
    graph.add_nodes_from(range(4))
    graph.add_edge(1, 2)
    task = HidingTask(graph, 0, {0, 1}, k=2, budget=2)
    session = HidingSession(task, everyone)
    assert session.neighbors(0) == [4, 5]
    result = result_of(session)
    assert result.isolated and result.kept_ties == 1.0
    assert result.similarity == 0.5 and result.success  # at the threshold
    session.toggle(0, 1)
    assert not result_of(session).isolated


def test_names_may_be_anything_hashable():
    renamed = {v: f"n{v}" if v % 2 else (v, "x") for v in range(34)}
    graph = nx.relabel_nodes(load_graph("kar"), renamed)
    task = HidingTask(graph, renamed[8], [renamed[v] for v in CLUB], k=2, seed=5)
    plain = HidingTask(KARATE, 8, CLUB, k=2, seed=5)
    a, b = (HidingSession(t, Angel()) for t in (task, plain))
    for session in (a, b):
        session.toggle(8, 0), session.toggle(34, 33)
    assert a.similarity() == b.similarity()
    assert a.named() == ((renamed[8], renamed[0]), (("proxy", 0), "n33"))
    assert a.cover().sets() == b.cover().sets()


def test_disconnected_graph_and_one_without_edges():
    empty = nx.empty_graph(5)
    task = HidingTask(empty, 0, {0, 1}, k=1)
    assert task.budget == 1 and task.ties == frozenset()
    session = HidingSession(task, Angel())
    assert session.hidden() and session.toggle(0, 3)
