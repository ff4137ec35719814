"Files and states: exact round trips, and what happens when the disk fails."

import errno
import json
import math
import os
import subprocess
import sys

import hypothesis.extra.numpy as hnp
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.core import checkpoint as ck
from rlpapers.core.checkpoint import CheckpointError, load_state, save_state
from rlpapers.core.paths import RunError, Stored

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["__rlpapers__", "is", "000000"])
)
ARRAYS = hnp.arrays(
    hnp.boolean_dtypes()
    | hnp.integer_dtypes(endianness="=")
    | hnp.unsigned_integer_dtypes(endianness="=")
    | hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
)
KEYS = (
    st.text(max_size=3) | st.integers(-5, 5) | st.tuples(st.integers(), st.booleans())
)
KEYS |= st.just("__rlpapers__")
STATES = st.recursive(
    LEAVES | ARRAYS | ARRAYS.map(lambda a: torch.from_numpy(a.copy())),
    lambda s: (
        st.lists(s, max_size=3)
        | st.lists(s, max_size=3).map(tuple)
        | st.dictionaries(KEYS, s, max_size=3)
    ),
    max_leaves=8,
)


def same(a, b):
    "Equal in value, type, dtype and order."
    assert type(a) is type(b), (a, b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        return all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and same(a.numpy(), b.numpy())
    if isinstance(a, np.ndarray):
        ok = a.dtype == b.dtype and a.shape == b.shape and b.flags.writeable
        return ok and np.ascontiguousarray(a).tobytes() == b.tobytes()
    return repr(a) == repr(b) if isinstance(a, float) else a == b


@given(STATES)
@settings(max_examples=150, deadline=None)
def test_states_come_back_exactly(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("s") / "c"
    save_state(path, state)
    assert same(state, load_state(path))
    json.loads(path.with_suffix(".json").read_text(), parse_constant=pytest.fail)


def test_unusual_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    layer = torch.nn.Linear(2, 2)
    state = {
        "view": base[1:, ::2],
        "again": base,
        "same": base,
        "transposed": base.T,
        "half": torch.randn(2, 2).bfloat16(),
        "parameter": layer.weight,
        "expanded": torch.ones(1, 3).expand(4, 3),
        "big_endian": np.arange(3, dtype=">i4"),
        "scalar": np.float32(0.1),
    }
    save_state(tmp_path / "c", state)
    back = load_state(tmp_path / "c")
    for k, v in state.items():
        assert np.array_equal(torch.as_tensor(back[k]).float(), _float(v)), k
    assert type(back["scalar"]) is float and not back["parameter"].requires_grad
    back["view"][0] = 9
    assert back["again"][1, 0] == 4


def _float(v):
    v = v.astype("f8") if isinstance(v, np.ndarray) else v
    return torch.as_tensor(v).detach().float()


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, b"x", np.array(["a"]), np.array([None]), np.zeros(1, "c16")]
    + [torch.ones(2).to_sparse(), lambda: 0, pd.DataFrame({"a": [1]})],
)
def test_what_cannot_be_saved_is_refused_and_leaves_the_old_state(tmp_path, value):
    save_state(tmp_path / "c", {"w": torch.ones(2)})
    with pytest.raises(TypeError, match="cannot be saved"):
        save_state(tmp_path / "c", {"w": torch.zeros(2), "x": [value]})
    assert load_state(tmp_path / "c")["w"].sum() == 2


def test_optimiser_and_generators_go_on_exactly(tmp_path):
    def make():
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 3)
        return net, torch.optim.Adam(net.parameters(), lr=1e-2)

    def train(net, opt, gen, n):
        for _ in range(n):
            opt.zero_grad()
            net(torch.randn(5, 4, generator=gen)).pow(2).sum().backward()
            opt.step()

    whole, gen = make(), torch.Generator().manual_seed(1)
    train(*whole, gen, 6)
    half, gen = make(), torch.Generator().manual_seed(1)
    train(*half, gen, 3)
    rng = np.random.default_rng(5)
    rng.random(3)
    state = {"net": half[0].state_dict(), "opt": half[1].state_dict()}
    state |= {"gen": gen.get_state(), "rng": rng.bit_generator.state}
    save_state(tmp_path / "c", state)
    back, (net, opt), gen2 = load_state(tmp_path / "c"), make(), torch.Generator()
    net.load_state_dict(back["net"])
    opt.load_state_dict(back["opt"])
    gen2.set_state(back["gen"])
    train(net, opt, gen2, 3)
    pairs = zip(net.parameters(), whole[0].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    rng2 = np.random.default_rng()
    rng2.bit_generator.state = back["rng"]
    assert rng2.random() == rng.random()


def test_every_truncation_and_every_changed_byte_is_noticed(tmp_path):
    state = {"w": torch.arange(4.0), "step": 3, "t": (1, math.inf)}
    save_state(tmp_path / "c", state)
    for file in sorted(tmp_path.iterdir()):
        data = file.read_bytes()
        broken = [data[:n] for n in range(0, len(data) - 1, 7)]
        for i in range(len(data) - 1):
            broken.append(data[:i] + bytes([data[i] ^ 2]) + data[i + 1 :])
        for b in broken:
            file.write_bytes(b)
            with pytest.raises(CheckpointError, match="without --resume") as e:
                load_state(tmp_path / "c")
            assert "\n" not in str(e.value)
        file.unlink()
        with pytest.raises(CheckpointError, match="missing"):
            load_state(tmp_path / "c")
        file.write_bytes(data)
    assert same(load_state(tmp_path / "c"), state)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format": 2}', "\xff", "1"])
def test_foreign_files_are_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError):
        load_state(tmp_path / "c")


class Killed(BaseException):
    pass


def test_a_kill_at_any_write_leaves_the_old_or_the_new_state(tmp_path, monkeypatch):
    for stop in range(8):
        path, calls = tmp_path / str(stop) / "c", []
        save_state(path, {"w": torch.zeros(3), "k": 0})

        def count(real, calls=calls, stop=stop):
            def f(*args, **kw):
                calls.append(1)
                if len(calls) > stop:
                    raise Killed
                return real(*args, **kw)

            return f

        with monkeypatch.context() as m:
            for name in ("fsync", "replace", "unlink"):
                m.setattr(os, name, count(getattr(os, name)))
            try:
                save_state(path, {"w": torch.ones(3), "k": 1})
            except Killed:
                pass
        back = load_state(path)
        assert back["w"].sum() == 3 * back["k"]
        save_state(path, {"w": torch.ones(3), "k": 1})
        left = {p.name for p in path.parent.iterdir() if not p.name.startswith(".")}
        assert len(left) == 2
    assert len(calls) == 5  # two files written and renamed, one removed: no more to try


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    "code, words",
    [
        (errno.ENOSPC, "no space left on device; free some space"),
        (errno.EROFS, "read-only file system; choose another --out"),
        (errno.EACCES, "permission denied; choose another --out"),
        (errno.EIO, "input/output error"),
    ],
)
def test_disk_errors_are_one_line(tmp_path, monkeypatch, call, code, words):
    ck.write_atomic(tmp_path / "a", "old")

    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(RunError) as e:
        ck.write_atomic(tmp_path / "a", "new")
    assert words in str(e.value) and "--resume" in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_write_that_stops_half_way(tmp_path):
    "A real limit on the size of files stands in for a full disk."
    code = """
import resource, sys, numpy as np
from rlpapers.core import save_state, load_state, UserError
save_state(sys.argv[1], {"k": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_state(sys.argv[1], {"k": 1, "w": np.zeros(10_000)})
except UserError as e:
    print(type(e).__name__, load_state(sys.argv[1]), str(e).count("\\n"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c")],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "RunError {'k': 0} 0\n", done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        save_state(tmp_path / "x" / "c", {"k": 1})


def test_canonical_text():
    values = {"b": [np.float64(1 / 3), np.int64(2)], "a": {2: None, 1: math.inf}}
    values |= {"t": torch.tensor([1.0, math.nan]), "n": np.bool_(True)}
    text = ck.canonical_json(values)
    assert json.loads(text) == {
        "a": {"1": None, "2": None},
        "b": [1 / 3, 2],
        "n": True,
        "t": [1.0, None],
    }
    assert text == ck.canonical_json(dict(reversed(values.items())))
    for bad in ({1}, object(), b"x"):
        with pytest.raises(TypeError):
            ck.canonical_json({"x": bad})


@given(st.lists(st.floats(width=64), min_size=1))
@settings(deadline=None)
def test_tables_are_exact(tmp_path_factory, xs):
    folder = tmp_path_factory.mktemp("t")
    ck.write_atomic(folder / "x.csv.gz", ck.to_csv(pd.DataFrame({"x": xs}), gz=True))
    back = Stored(folder, "small").table("x").x.to_numpy(float)
    assert np.array_equal(back, np.array(xs), equal_nan=True)


def test_tables_and_arrays_do_not_depend_on_the_clock(monkeypatch):
    df = pd.DataFrame({"x": [1.5, 2.5]}, index=pd.Index(["a", "b"], name="arm"))
    arrays = {"file": np.arange(5), "y": np.eye(2)}
    before = ck.to_csv(df, gz=True), ck.to_npz(arrays)
    assert ck.to_csv(df) == b"arm,x\na,1.5\nb,2.5\n"
    import time

    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert (ck.to_csv(df, gz=True), ck.to_npz(arrays)) == before
    with pytest.raises(TypeError, match="'o' holds objects"):
        ck.to_npz({"o": np.array([{}])})
