"Graphs: data, files that lie, input that is refused, planted communities."

import gzip
import hashlib
import os
import warnings
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.communityhiding import graphs
from rlpapers.communityhiding.generators import affiliation_graph
from rlpapers.communityhiding.graphs import (
    LOCAL,
    PACKAGED,
    GraphArrays,
    GraphInputError,
    as_arrays,
    load_graph,
    read_graph,
)
from rlpapers.core.paths import UserError, home

FOLDER = os.environ.get("RLPAPERS_GRAPHS")  # of graphs that are not ours to carry
DATA = home() / "communityhiding" / "data"
SIZES = {
    "kar": (34, 78), "words": (112, 425), "vote": (889, 2914), "nets": (1461, 2742),
    "pow": (4941, 6594), "football": (115, 613), "dol": (62, 159), "polb": (105, 441),
    "lesm": (77, 254),
}  # fmt: skip
AWAY = {
    "fb-75": (6386, 217662), "ego-facebook": (4039, 88234),
    "email-eu-core": (1005, 16064), "mad": (64, 243),
}  # fmt: skip


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


# Data


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged(name):
    graph = load_graph(name)
    assert type(graph) is nx.Graph
    assert (len(graph), graph.size()) == SIZES[name]
    assert not nx.get_edge_attributes(graph, "weight")
    assert nx.number_of_selfloops(graph) == 0


@pytest.mark.parametrize("name", sorted(set(PACKAGED) - {"kar", "lesm"}))
def test_readme_tells_the_truth(name):
    rows = [x.split("|") for x in (DATA / "README.md").read_text().splitlines()]
    row = next(r for r in rows if len(r) > 4 and r[1].strip() == f"{name}.edges.gz")
    text = gzip.decompress((DATA / f"{name}.edges.gz").read_bytes())
    assert row[4].strip() == hashlib.sha256(text).hexdigest()[:16]
    assert (int(row[2]), int(row[3])) == SIZES[name]
    assert text.split(b"\n")[0].decode() == (
        "# {} undirected simple nodes={} edges={}".format(name, *SIZES[name])
    )


def test_only_what_may_be_carried():
    files = {p.name for p in DATA.iterdir()}
    want = {f"{n}.edges.gz" for n in set(PACKAGED) - {"kar", "lesm"}}
    assert files == want | {"football.labels.txt", "README.md"}
    assert sum(p.stat().st_size for p in DATA.iterdir()) < 60_000


def test_data_is_found_through_home(monkeypatch, tmp_path):
    "A wheel has its data elsewhere."
    (tmp_path / "communityhiding").mkdir()
    (tmp_path / "communityhiding" / "data").symlink_to(DATA)
    monkeypatch.setattr(graphs, "home", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(load_graph("words")) == 112
    (tmp_path / "communityhiding" / "data").unlink()
    with pytest.raises(GraphInputError, match="there is no file"):
        load_graph("words")


def test_conferences():
    graph = load_graph("football")
    label = graph.nodes(data="conference")
    inside = sum(label[a] == label[b] for a, b in graph.edges)
    assert len({label[v] for v in graph}) == 12 and inside > 0.6 * graph.size()


@pytest.mark.parametrize("name", LOCAL)
def test_local_graphs_say_what_to_do(name, tmp_path):
    with pytest.raises(GraphInputError, match="pass source=FOLDER"):
        load_graph(name)
    with pytest.raises(GraphInputError, match=f"no file of '{name}'"):
        load_graph(name, source=tmp_path)
    write(tmp_path, f"{LOCAL[name][0]}.mtx", "3 3 2\n2 1\n3 1\n")
    assert load_graph(name, source=tmp_path).size() == 2
    write(tmp_path, f"{name}.edges.gz", "0 1\n")
    assert load_graph(name, source=str(tmp_path)).size() == 1


@pytest.mark.skipif(not FOLDER, reason="$RLPAPERS_GRAPHS names no folder")
@pytest.mark.parametrize("name", LOCAL)
def test_local_graphs(name):
    graph = load_graph(name, source=FOLDER)
    assert (len(graph), graph.size()) == AWAY[name]


def test_source_wins_over_the_package(tmp_path):
    write(tmp_path, "words.txt", "a b\n")
    assert list(load_graph("words", source=tmp_path)) == ["a", "b"]


# Files


@pytest.mark.parametrize("end", ("", ".gz"))
@pytest.mark.parametrize("sign", (" ", "\t", ",", ", ", ";"))
def test_edge_lists(tmp_path, end, sign):
    text = "# comment\n% another\n\n" + f"b{sign}a\n c{sign}b \r\n"
    graph = load_graph(write(tmp_path, "x.edges" + end, text))
    assert list(graph) == ["b", "a", "c"] and graph.size() == 2


def test_order_and_isolated_nodes(tmp_path):
    graph = read_graph(write(tmp_path, "a.txt", "7 3\n3 -1\n"))
    assert list(graph) == [7, 3, -1]
    graph = read_graph(write(tmp_path, "b.txt", "# x nodes=5 edges=1\n3 1\n"))
    assert list(graph) == [0, 1, 2, 3, 4] and graph.size() == 1


LIES = {
    "pattern with weights": "pattern symmetric\n3 3 2\n2 1 0.5\n3 1 -2\n",
    "real without weights": "real general\n3 3 2\n2 1\n3 1\n",
    "too many promised": "pattern symmetric\n3 3 9\n2 1\n3 1\n",
    "too few promised": "pattern symmetric\n3 3 1\n2 1\n3 1\n",
    "complex": "complex hermitian\n3 3 2\n2 1 1 1\n3 1 0 1\n",
    "nan": "real symmetric\n3 3 2\n2 1 nan\n3 1 inf\n",
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(tmp_path, lie):
    text = "%%MatrixMarket matrix coordinate " + LIES[lie]
    path = write(tmp_path, "x.mtx", text)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        graph = load_graph(path)
    assert sorted(graph.edges) == [(0, 1), (0, 2)]
    assert bool(said) == (lie != "real without weights")


BAD = {
    "a.mtx": ("4 5 1\n1 2\n", "must be square"),
    "b.mtx": ("%%MatrixMarket matrix array real general\n2 2\n1\n", "dense"),
    "c.mtx": ("2 2 1\n1 3\n", r"\(1, 3\) is outside of 1 to 2"),
    "d.mtx": ("2 2 1\n0 1\n", r"\(0, 1\) is outside"),
    "e.mtx": ("2 2 1\n1 one\n", "line 2 of e.mtx: 'one' is not an integer"),
    "f.mtx": ("2 2 2\n1 2\n2 1\n", "simplify=True"),
    "g.mtx": ("", "no size line"),
    "h.mtx": ("-3 -3 1\n1 1\n", "must be square"),
    "a.edges": ("# x nodes=2 edges=1\n0 2\n", "has 2"),
    "b.edges": ("# x nodes=2 edges=3\n0 1\n", "promises 3 edges, but has 1"),
    "c.edges": ("0\n", "line 1 of c.edges is not a pair"),
    "d.edges": ("0 1\n1 0\n", "simplify=True"),
    "e.edges": ("0 1\n1 1\n", "1 self-loops"),
    "f.edges": ("# nothing\n", "no nodes"),
    "i.mtx": ("2000000000 2000000000 1\n1 2\n", "too many for its 1 pairs"),
    "i.edges": ("# x nodes=2000000000 edges=1\n0 1\n", "too many for its 1 pairs"),
    "a.csv": ("ann bob\n", "line 1 of a.csv is not a pair"),
    "g.edges": ("# x nodes=999999999999\n", "too many"),
    "h.edges": ("# x nodes=3\nann bob\n", "has 'ann'"),
    "a.gml": ("graph [ node [ id 0", "not a graph in GML"),
    "b.gml": ("graph [\n directed 1\n node [ id 0 ]\n node [ id 1 ]\n]", "directed"),
    "a.json": ("{}", "must end in"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, name):
    text, message = BAD[name]
    with pytest.raises(GraphInputError, match=message):
        load_graph(write(tmp_path, name, text))


def test_byte_order_mark(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf0,1\n1,2\n")
    assert list(load_graph(tmp_path / "x.csv")) == [0, 1, 2]
    (tmp_path / "y.csv").write_bytes(b"\xef\xbb\xbf0,1\n1,0\n")
    with pytest.raises(GraphInputError, match="1 repeated edges"):
        load_graph(tmp_path / "y.csv")


@pytest.mark.parametrize(
    "name, sign", [("x.csv", ","), ("x.tsv", "\t"), ("x.txt", " ")]
)
def test_headings(tmp_path, name, sign):
    text = f"source{sign}target\n3{sign}5\n5{sign}9\n"
    with pytest.warns(UserWarning, match="taken for a heading"):
        assert list(load_graph(write(tmp_path, name, text))) == [3, 5, 9]
    text = f"ann{sign}bob\nbob{sign}eve\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(load_graph(write(tmp_path, name, text))) == ["ann", "bob", "eve"]
    text = f"3{sign}ann\n5{sign}9\n"
    assert list(load_graph(write(tmp_path, name, text))) == ["3", "ann", "5", "9"]


def test_names_with_blanks_and_numbers_with_points(tmp_path):
    path = write(tmp_path, "x.tsv", "Ann Smith\tBob Jones\nBob Jones\tEve\n")
    assert list(load_graph(path)) == ["Ann Smith", "Bob Jones", "Eve"]
    path = write(tmp_path, "x.csv", '"Smith, Ann",Bob\n')
    assert list(load_graph(path)) == ["Smith, Ann", "Bob"]
    assert list(load_graph(write(tmp_path, "y.csv", "1;2\n2;4\n"))) == [1, 2, 4]
    assert list(load_graph(write(tmp_path, "x.txt", "0.0 1.0\n1 2.\n"))) == [0, 1, 2]


def test_damaged_files(tmp_path):
    whole = gzip.compress(b"0 1\n" * 999)
    (tmp_path / "short.edges.gz").write_bytes(whole[:-12])
    (tmp_path / "other.edges.gz").write_bytes(b"no gzip at all")
    (tmp_path / "latin.edges").write_bytes(b"M\xfcller Schmidt\n")
    for name in ("short.edges.gz", "other.edges.gz", "latin.edges"):
        with pytest.raises(GraphInputError, match=f"{name} cannot be read"):
            load_graph(tmp_path / name)
    with pytest.raises(GraphInputError, match="there is no file"):
        load_graph(tmp_path / "none.edges")


def test_gml_labels_and_repeated_labels(tmp_path):
    node = '  node [ id {} label "{}" ]\n'
    edges = "  edge [ source 0 target 1 weight 2.5 ]\n]"
    text = "graph [\n" + node.format(0, "ann") + node.format(1, "bob") + edges
    with pytest.warns(UserWarning, match="weights of 1 edges are ignored"):
        assert list(load_graph(write(tmp_path, "x.gml", text))) == ["ann", "bob"]
    with pytest.warns(UserWarning):
        same = write(tmp_path, "y.gml", text.replace("bob", "ann"))
        assert list(load_graph(same)) == [0, 1]


def test_simplify_counts(tmp_path):
    path = write(tmp_path, "x.txt", "0 1\n1 0\n0 1\n2 2\n1 2\n")
    with pytest.warns(UserWarning, match="1 self-loops, 2 repeated edges"):
        graph = load_graph(path, simplify=True)
    assert sorted(graph.edges) == [(0, 1), (1, 2)]


def test_unknown_names():
    with pytest.raises(GraphInputError, match="did you mean 'football'"):
        load_graph("footbal")
    with pytest.raises(GraphInputError, match="there are: kar, words"):
        load_graph("zzzzzz")


# Arrays


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40),
    st.randoms(use_true_random=False),
)
def test_arrays_are_the_graph(n, pairs, rng):
    names = [f"v{i}" for i in range(n)]
    rng.shuffle(names)
    graph = nx.Graph()
    graph.add_nodes_from(names)
    pairs = [(a % n, b % n) for a, b in pairs if a % n != b % n]
    graph.add_edges_from((names[a], names[b]) for a, b in pairs)
    a = as_arrays(graph)
    assert a.names == tuple(names) and a.m == graph.size()
    for v in names:
        i = a.index[v]
        near = a.neighbors(i).tolist()
        assert near == sorted(a.index[w] for w in graph[v])
        assert a.degree[i] == graph.degree[v]
    back = a.to_networkx()
    assert list(back) == names and set(back.edges) <= {
        e for x, y in graph.edges for e in ((x, y), (y, x))
    }
    assert nx.utils.graphs_equal(back, graph)
    assert np.array_equal(GraphArrays(n, a.edges[::-1, ::-1]).edges, a.edges)


def test_arrays_cannot_be_changed():
    a = as_arrays(load_graph("kar"))
    for values in (a.edges, a.indices, a.indptr, a.degree):
        with pytest.raises(ValueError):
            values[0] = 1
    with pytest.raises(AttributeError):
        a.n = 3
    assert (a.edges.dtype, a.indices.dtype, a.indptr.dtype) == ("i4", "i4", "i8")


@pytest.mark.parametrize(
    "n, edges, text",
    [
        (0, [], "needs 1 to"),
        (3, [(1, 1)], "node 1 has a self-loop"),
        (3, [(1, 0), (0, 1)], r"edge \(0, 1\) is given twice"),
        (3, [(0, 3)], r"edge \(0, 3\) is outside of the 3 nodes"),
        (3, [(-1, 0)], r"edge \(-1, 0\) is outside"),
        (3, [(0.0, 1.0)], "pairs of integers"),
        (3, [(0, 1, 2)], "pairs of integers"),
    ],
)
def test_arrays_refused(n, edges, text):
    with pytest.raises(GraphInputError, match=text):
        GraphArrays(n, edges)


def test_names_must_differ():
    with pytest.raises(GraphInputError, match="the same name"):
        GraphArrays(2, [(0, 1)], ("ann", "ann"))


def weighted(value) -> nx.Graph:
    graph = nx.path_graph(3)
    graph.edges[0, 1]["weight"] = value
    return graph


REFUSED = {
    "directed": (nx.DiGraph([(0, 1)]), "is directed"),
    "multigraph": (nx.MultiGraph([(0, 1), (0, 1)]), "a multigraph"),
    "multidigraph": (nx.MultiDiGraph([(0, 1)]), "directed and a multigraph"),
    "loop": (nx.Graph([(0, 0)]), "with 1 self-loops"),
    "empty": (nx.Graph(), "no nodes"),
    "list": ([(0, 1)], "got list"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind):
    graph, message = REFUSED[kind]
    with pytest.raises(GraphInputError, match=message) as e:
        as_arrays(graph)
    assert isinstance(e.value, UserError) and isinstance(e.value, ValueError)
    if kind in ("empty", "list"):
        with pytest.raises(GraphInputError):
            as_arrays(graph, simplify=True)
        return
    with pytest.warns(UserWarning, match="graph made simple"):
        assert as_arrays(graph, simplify=True).m == (kind != "loop")


@pytest.mark.parametrize(
    "value, more", [(2, ""), (float("nan"), "not finite"), ("x", "not finite")]
)
def test_weights_are_ignored_aloud(value, more):
    with pytest.warns(UserWarning, match="weights of 1 edges are ignored.*" + more):
        assert as_arrays(weighted(value)).m == 2


def test_plain_graphs_make_no_noise():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in PACKAGED:
            as_arrays(load_graph(name))
        as_arrays(nx.disjoint_union(nx.path_graph(3), nx.empty_graph(2)))


# Planted communities


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 5), st.floats(0, 1), st.integers(0, 99))
def test_affiliation_extremes(n, count, share, seed):
    mean = share * count
    graph, planted = affiliation_graph(n, count, mean, 1.0, 0.0, seed)
    inside = {frozenset((a, b)) for c in planted for a in c for b in c if a != b}
    assert {frozenset(e) for e in graph.edges} == inside
    own = [sum(v in c for c in planted) for v in range(n)]
    assert set(own) <= {int(mean), int(mean) + 1} and len(planted) == count
    again, same = affiliation_graph(n, count, mean, 1.0, 0.0, seed)
    assert same == planted and set(again.edges) == set(graph.edges)


def test_affiliation_of_many_nodes():
    "More than one block of rows."
    graph, planted = affiliation_graph(600, 20, 1, 1.0, 0.0, seed=3)
    found = sorted(map(sorted, nx.connected_components(graph)))
    assert found == sorted(map(sorted, planted))
    assert graph.size() == sum(len(c) * (len(c) - 1) // 2 for c in planted)


def test_affiliation_probability():
    "Pairs that share no, one or two communities are joined as often as they should."
    hits, pairs, p = np.zeros(3), np.zeros(3), [0.05, 0.335, 0.5345]
    for seed in range(20):
        graph, planted = affiliation_graph(90, 5, 2, 0.3, 0.05, seed)
        inside = np.array([[v in c for v in range(90)] for c in planted], int)
        shared = (inside.T @ inside)[np.triu_indices(90, 1)]
        joined = nx.to_numpy_array(graph, range(90))[np.triu_indices(90, 1)]
        hits += np.bincount(shared, joined, 3)[:3]
        pairs += np.bincount(shared, minlength=3)[:3]
    error = np.abs(hits / pairs - p) / np.sqrt(np.multiply(p, 1 - np.array(p)) / pairs)
    assert (error < 4).all(), (hits / pairs, p)


@pytest.mark.parametrize(
    "options",
    [(0, 3), (5, 0), (5, 3, 4), (5, 3, -1), (5, 3, 1, 1.5), (5, 3, 1, 0.5, -1)],
)
def test_affiliation_refuses(options):
    with pytest.raises(GraphInputError):
        affiliation_graph(*options)
