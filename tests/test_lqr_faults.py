"Bad input to lqr: each is refused by name, mended with a warning, or survived."

import dataclasses
import os
import signal
import subprocess
import sys
import time
import warnings

import lqr_plain as plain
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rlpapers.core import params
from rlpapers.lqr import estimators
from rlpapers.lqr.algebra import (
    IllConditionedWarning,
    NotStabilizingError,
    RankConditionError,
    abscissa,
)
from rlpapers.lqr.certificates import certificate
from rlpapers.lqr.estimators import OfflineLQR, estimate
from rlpapers.lqr.iteration import policy_iteration
from rlpapers.lqr.matrices import WindowData
from rlpapers.lqr.rank import rank_report
from rlpapers.lqr.records import Trajectories
from rlpapers.lqr.reference import care, cost_matrix, kleinman
from rlpapers.lqr.regression import Compressed
from rlpapers.lqr.signals import OU, MultiSine, Pulse, White, Zero
from rlpapers.lqr.simulation import simulate
from rlpapers.lqr.systems import LinearPlant, coupled_oscillators, double_integrator
from rlpapers.lqr.value import certainty_equivalent, value_iteration
from rlpapers.lqr.windows import build_windows

A, B, D = plain.OSCILLATORS
Q, R = np.eye(4), np.eye(2)
BEST = plain.riccati(A, B, Q, R)[0]


def tones(channels, count=8, seed=0):
    return plain.tones(
        np.random.default_rng([seed, channels]), channels, count, 0.2, 8.0
    )


@pytest.fixture(scope="module")
def record():
    "Times, states, inputs and disturbances of the oscillators, sampled at 10 ms."
    t = 0.01 * np.arange(1501)
    x0 = np.array([1.0, -1, 0.5, 0])
    return t, *plain.sampled(A, B, D, np.zeros((2, 4)), tones(2), tones(1, 6), x0, t)


@pytest.fixture(scope="module")
def W(record):
    return build_windows(Trajectories.from_arrays(*record), T=0.1)


def test_the_record_is_good(W):
    r = policy_iteration(W, Q, R, "zero")
    assert plain.distance(r.K[-1], BEST) < 1e-5


# Matrices


@pytest.mark.parametrize(
    ("matrices", "named"),
    [
        ((np.ones((2, 3)), np.ones((2, 1))), "A"),
        ((np.eye(2), np.ones((3, 1))), "B"),
        ((np.eye(2), np.ones((2, 1)), np.ones((3, 1))), "D"),
        ((np.array([[np.nan, 0], [0, 1]]), np.ones((2, 1))), "A"),
        ((np.eye(2), np.array([[np.inf], [0]])), "B"),
    ],
)
def test_plants_that_do_not_fit(matrices, named):
    with pytest.raises(ValueError, match=named):
        LinearPlant(*matrices)


BAD_WEIGHTS = [
    ("Q", np.diag([1.0, 1, 1, -0.5]), "-0.5"),
    ("Q", np.eye(3), r"\(4, 4\)"),
    ("Q", np.eye(4) + np.eye(4, k=1), "symmetric"),
    ("Q", np.full((4, 4), np.nan), "finite"),
    ("R", np.diag([1.0, 0]), "0"),
    ("R", np.diag([1.0, -2]), "-2"),
    ("R", np.eye(3), r"\(2, 2\)"),
    ("R", np.array([[1, 0.1], [0, 1]]), "symmetric"),
]
USERS = {
    "policy_iteration": lambda W, Q, R: policy_iteration(W, Q, R, "zero"),
    "value_iteration": lambda W, Q, R: value_iteration(W, Q, R),
    "certainty_equivalent": lambda W, Q, R: certainty_equivalent(W, Q, R),
    "estimate": lambda W, Q, R: estimate(W, Q, R, "averaged", burn=0),
    "OfflineLQR": lambda W, Q, R: OfflineLQR(Q, R, estimator="measured").fit(W),
    "care": lambda W, Q, R: care(A, B, Q, R),
    "kleinman": lambda W, Q, R: kleinman(A, B, Q, R, np.zeros((2, 4))),
}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(("name", "bad", "says"), BAD_WEIGHTS)
def test_bad_weights_are_named(W, user, name, bad, says):
    q, r = (bad, R) if name == "Q" else (Q, bad)
    with pytest.raises(ValueError, match=rf"{name}.*{says}"):
        USERS[user](W, q, r)


def test_slightly_asymmetric_weights_are_mended(W):
    q = np.eye(4)
    q[0, 1] = 1e-13
    with pytest.warns(UserWarning, match="Q symmetrised"):
        r = policy_iteration(W, q, R, "zero")
    assert plain.distance(r.K[-1], BEST) < 1e-5


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("stabilisable", (np.diag([1.0, -1]), np.array([[0.0], [1]]), np.eye(2))),
        ("detectable", (np.diag([1.0, -1]), np.ones((2, 1)), np.diag([0.0, 1]))),
    ],
)
def test_known_plants_without_a_solution(kind, model):
    a, b, q = model
    with pytest.raises(ValueError, match=kind):
        care(a, b, q, np.eye(1))


# Start gains


def test_unstable_start_of_a_known_plant(W):
    p = double_integrator()
    with pytest.raises(NotStabilizingError) as e:
        kleinman(p.A, p.B, np.eye(2), np.eye(1), np.zeros((1, 2)))
    assert e.value.abscissa >= 0
    with pytest.raises(NotStabilizingError):
        cost_matrix(p.A, p.B, np.eye(2), np.eye(1), np.array([[1.0, -1.0]]))
    bad = np.array([[0, 0, -2.0, 0], [0, 0, 0, -2.0]])
    with pytest.raises(NotStabilizingError) as e:
        policy_iteration(W, Q, R, bad, truth=LinearPlant(A, B, D))
    assert_allclose(e.value.abscissa, abscissa(A - B @ bad))


def test_unstable_start_with_data_only(W):
    bad = np.array([[0, 0, -2.0, 0], [0, 0, 0, -2.0]])
    with pytest.raises(
        NotStabilizingError, match="for K0; .*K0='value_iteration'"
    ) as e:
        policy_iteration(W, Q, R, bad)
    assert_allclose(e.value.abscissa, abscissa(A - B @ bad), rtol=1e-3)


def test_a_plant_that_nothing_stabilises():
    plant = LinearPlant(np.diag([0.5, -1.0]), [[0.0], [1.0]], np.eye(2))
    u, e = MultiSine(*tones(1)), MultiSine(*tones(2))
    V = build_windows(simulate(plant, None, u, e, np.ones(2), 0.2, 60))
    start = time.perf_counter()
    with pytest.raises(
        NotStabilizingError,
        match="no stabilising gain in 50000 steps; is the plant sta",
    ) as error:
        policy_iteration(V, np.eye(2), np.eye(1), "value_iteration")
    assert_allclose(error.value.abscissa, 0.5, rtol=1e-3)
    assert time.perf_counter() - start < 20
    with pytest.warns(
        UserWarning, match="did not finish in 100 steps.*not stabilising"
    ):
        value_iteration(V, np.eye(2), np.eye(1), max_iter=100)


def test_value_iteration_needs_no_start(W):
    K = value_iteration(W, Q, R)[0]
    assert abscissa(A - B @ K) < 0
    r = policy_iteration(W, Q, R, "value_iteration")
    assert plain.distance(r.K[-1], BEST) < 1e-5


@pytest.mark.parametrize(
    "K0", [np.zeros((4, 2)), np.zeros((2, 3)), np.full((2, 4), np.nan), "one"]
)
def test_start_gains_that_do_not_fit(W, K0):
    with pytest.raises((ValueError, TypeError), match="K0"):
        policy_iteration(W, Q, R, K0)


@pytest.mark.parametrize("K0", ["zero", "value_iteration", np.zeros((2, 4))])
def test_starts_without_certificate(W, K0):
    r = policy_iteration(W, Q, R, K0, certify=False)
    assert plain.distance(r.K[-1], BEST) < 1e-5


def test_unknown_choices_are_refused(W):
    with pytest.raises(ValueError, match="solver"):
        policy_iteration(W, Q, R, "zero", solver="fast")
    with pytest.raises(ValueError, match="backend"):
        policy_iteration(W, Q, R, "zero", backend="jax")
    with pytest.raises(ValueError, match="best"):
        estimate(W, Q, R, "best")
    with pytest.raises(ValueError, match="best"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        OfflineLQR(Q, R, estimator="best").fit(W)
    with pytest.raises(ValueError, match="use_e"):
        policy_iteration(W.without_e(), Q, R, "zero", use_e=True)
    with pytest.raises(ValueError):
        estimate(W.without_e(), Q, R, "measured")


# Excitation


def test_unexcited_input_is_named(record):
    t, x, u, e = record
    still = u.copy()
    still[:, 1] = 0
    V = build_windows(Trajectories.from_arrays(t, x, still, e), T=0.1)
    with pytest.raises(RankConditionError) as error:
        policy_iteration(V, Q, R, "zero")
    assert error.value.rank == error.value.needed - 4
    assert "u2" in str(error.value) and "u1" not in str(error.value)


def test_own_names_are_used(record):
    t, x, u, e = record
    still = u.copy()
    still[:, 1] = 0
    names = ["left", "right", "left speed", "right speed"]
    traj = Trajectories.from_arrays(
        t, x, still, e, x_names=names, u_names=["motor", "brake"], e_names=["wind"]
    )
    report = rank_report(build_windows(traj, T=0.1))
    assert not report.excited and "brake" in report.hint
    assert all("brake" in w for w in report.weakest)


def test_too_few_windows(W):
    few = W.rows(slice(0, 15))
    with pytest.raises(RankConditionError, match="windows") as e:
        policy_iteration(few, Q, R, "zero")
    assert (e.value.needed, e.value.rank) == (22, 15)


@pytest.mark.parametrize("solver", ["direct", "compressed", "operator", "naive"])
def test_feedback_is_refused_by_every_solver(solver):
    t = 0.01 * np.arange(1501)
    K = np.array([[0.3, 0, 0.2, 0], [0, 0.1, 0, 0.4]])
    none = np.zeros((2, 0)), np.zeros((2, 0)), np.zeros((2, 0))
    x, u, e = plain.sampled(A, B, D, K, none, tones(1, 12), np.ones(4), t)
    V = build_windows(Trajectories.from_arrays(t, x, u, e), T=0.1)
    with pytest.raises(RankConditionError, match="(?i)-Kx|feedback|explor"):
        policy_iteration(V, Q, R, "zero", solver=solver)


def test_a_zero_disturbance_is_dropped_with_a_warning():
    t = 0.01 * np.arange(1501)
    none = np.zeros((1, 0)), np.zeros((1, 0)), np.zeros((1, 0))
    x, u, e = plain.sampled(
        A, B, D, np.zeros((2, 4)), tones(2, 16), none, np.ones(4), t
    )
    V = build_windows(Trajectories.from_arrays(t, x, u, e), T=0.1)
    with pytest.warns(UserWarning, match="(?i)e1"):
        r = policy_iteration(V, Q, R, "zero")
    bare = policy_iteration(V.without_e(), Q, R, "zero")
    assert_allclose(r.K[-1], bare.K[-1], rtol=1e-10)
    assert r.F.shape[1] == 0 or not r.F.any()


def test_a_constant_disturbance_is_kept_with_a_warning():
    "Our choice: dropped, its push would bias the gain."
    t = 0.002 * np.arange(7501)
    push = np.zeros((1, 1)), np.ones((1, 1)), np.full((1, 1), np.pi / 2)
    x, u, e = plain.sampled(
        A, B, D, np.zeros((2, 4)), tones(2, 16), push, np.ones(4), t
    )
    assert np.ptp(e) < 1e-12 and abs(e).min() > 0
    V = build_windows(Trajectories.from_arrays(t, x, u, e), T=0.1)
    with pytest.warns(UserWarning, match="(?i)e1 is constant and was kept"):
        kept = policy_iteration(V, Q, R, "zero")
    with pytest.warns(UserWarning, match="(?i)e1 is constant and was dropped"):
        lost = policy_iteration(V, Q, R, "zero", certify=False, keep_constant=False)
    assert plain.distance(kept.K[-1], BEST) < 1e-6
    assert plain.distance(lost.K[-1], BEST) > 1e-2


@pytest.mark.parametrize("user", ["value_iteration", "certainty_equivalent", "fit"])
def test_zero_disturbance_stops_nobody(record, user):
    "What policy iteration drops with a warning is dropped by the others too."
    t, x, u, e = record
    none = tuple(np.zeros((1, 0)) for _ in range(3))
    x, u, e = plain.sampled(A, B, D, np.zeros((2, 4)), tones(2, 16), none, x[0], t)
    V = build_windows(Trajectories.from_arrays(t, x, u, e), T=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        K = {
            "value_iteration": lambda: value_iteration(V, Q, R)[0],
            "certainty_equivalent": lambda: certainty_equivalent(V, Q, R)[0],
            "fit": lambda: OfflineLQR(Q, R, estimator="measured").fit(V).K_,
        }[user]()
    assert plain.distance(K, BEST) < 1e-3


def test_collinear_frequencies():
    "One and the same signal in u and e cannot be told apart."
    t = 0.01 * np.arange(1501)
    u = tones(1, 12)
    x, us, _ = plain.sampled(A, B[:, :1] + D, D, np.zeros((1, 4)), u, tuple(
        np.zeros((1, 0)) for _ in range(3)
    ), np.ones(4), t)  # fmt: skip
    V = build_windows(Trajectories.from_arrays(t, x, us, us), T=0.1)
    with pytest.raises(RankConditionError):
        policy_iteration(V, Q, np.eye(1), "zero")


# Recordings


@pytest.mark.parametrize(("which", "name"), [(1, "x"), (2, "u"), (3, "e")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite(record, which, name, value):
    data = [a.copy() for a in record]
    data[which][37, 0] = value
    with pytest.raises(ValueError, match=rf"{name}1.*row 37.*episode 0"):
        Trajectories.from_arrays(*data)


def test_the_bad_episode_is_named(record):
    t, x, u, e = record
    X, U, E = (np.stack([a] * 3) for a in (x, u, e))
    X[2, 5, 1] = np.nan
    with pytest.raises(ValueError, match="row 5.*episode 2"):
        Trajectories.from_arrays(t, X, U, E)


@pytest.mark.parametrize("value", ["same", "back", "nan"])
def test_times_must_increase(record, value):
    t, *rest = record
    t = t.copy()
    t[50] = {"same": t[49], "back": t[48], "nan": np.nan}[value]
    with pytest.raises(ValueError, match="row 50"):
        Trajectories.from_arrays(t, *rest)


def frame(record, **more):
    import pandas as pd

    t, x, u, e = record
    cols = {f"x{i + 1}": c for i, c in enumerate(x.T)}
    return pd.DataFrame(dict(t=t, **cols, u1=u[:, 0], u2=u[:, 1], e1=e[:, 0], **more))


COLS = dict(x_cols=["x1", "x2", "x3", "x4"], u_cols=["u1", "u2"], e_cols=["e1"])


def test_tables_with_faults(record):
    good = frame(record)
    with pytest.raises(ValueError, match="x9"):
        Trajectories.from_dataframe(good, **COLS | {"x_cols": ["x1", "x9"]})
    bad = good.copy()
    bad.loc[7, "u2"] = np.nan
    with pytest.raises(ValueError, match="row 7"):
        Trajectories.from_dataframe(bad, **COLS)
    bad = good.copy()
    bad.loc[9, "t"] = bad.loc[3, "t"]
    with pytest.raises(ValueError, match="row 9"):
        Trajectories.from_dataframe(bad, **COLS)


def test_shuffled_index_and_text_numbers(record):
    import pandas as pd

    good = frame(record)
    odd = good.copy()
    odd.index = np.random.default_rng(0).permutation(len(odd))
    a, b = (Trajectories.from_dataframe(f, **COLS).blocks[0].x for f in (good, odd))
    assert_array_equal(a, b)
    text = good.astype({"x1": str})
    assert_allclose(Trajectories.from_dataframe(text, **COLS).blocks[0].x, a)
    text.loc[4, "x1"] = "n/a"
    with pytest.raises(
        ValueError, match="column 'x1' holds 'n/a' in row 4, which is no"
    ):
        Trajectories.from_dataframe(text, **COLS)
    gap = good.copy()
    gap["x1"] = pd.array([None, *good["x1"][1:]], dtype="Float64")
    with pytest.raises(ValueError, match="x1 is nan in row 0 of episode 0"):
        Trajectories.from_dataframe(gap, **COLS)


def test_one_column_may_be_a_string(record):
    one = Trajectories.from_dataframe(frame(record), "x1", "u1", "e1")
    assert (one.n, one.m, one.q) == (1, 1, 1)
    assert tuple(one.x_names) == ("x1",)


def test_episodes_in_one_table_are_told_apart(record):
    import pandas as pd

    a, b = frame(record, run="a"), frame(record, run="b")
    both = pd.concat([a, b], ignore_index=True).sample(frac=1, random_state=0)
    both = both.sort_values(["t", "run"])  # rows of the two runs alternate
    traj = Trajectories.from_dataframe(both, **COLS, episode_col="run")
    assert traj.episodes == 2
    one, V = (
        build_windows(Trajectories.from_arrays(*record), T=0.1),
        build_windows(traj, T=0.1),
    )
    assert len(V) == 2 * len(one)
    mean = V.average()
    assert_allclose(mean.delta, one.delta, atol=1e-12)
    assert (mean.count == 2).all()


def test_rows_without_a_label(record):
    half = [0.0] * 700 + [np.nan] * 801
    with pytest.raises(ValueError, match="700|run"):
        Trajectories.from_dataframe(frame(record, run=half), **COLS, episode_col="run")


def test_dates_as_times(record):
    "Seconds since the first row, never nanoseconds since 1970."
    import pandas as pd

    dates = frame(record)
    dates["t"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(dates["t"], unit="s")
    t = Trajectories.from_dataframe(dates, **COLS).blocks[0].t
    assert_allclose(t, record[0], atol=1e-8)
    dates["t"] = dates["t"].astype(str)
    with pytest.raises(ValueError, match="column 't' holds '2026-.*pd.to_datetime"):
        Trajectories.from_dataframe(dates, **COLS)


def test_seconds_since_1970(record):
    "Stamps of equal steps, far from zero, get their digits back."
    t, *rest = record
    far = Trajectories.from_arrays(1.7e9 + t, *rest)
    assert_allclose(far.blocks[0].t, t, atol=1e-6)
    assert np.ptp(np.diff(far.blocks[0].t)) < 1e-12
    r = policy_iteration(build_windows(far, T=0.1), Q, R, "zero")
    assert plain.distance(r.K[-1], BEST) < 1e-5


@pytest.mark.parametrize("how", [dict(T=0.1), dict(length=11)])
def test_gaps_are_refused(record, how):
    import pandas as pd

    a, b = frame(record), frame(record)
    b["t"] += a["t"].iloc[-1] + 3.0
    a["run"], b["run"] = 0, 1
    both = pd.concat([a, b], ignore_index=True)
    says = r"row 1501 of episode 0 of group 0 comes 3 s after row 1500.*episode_col"
    with pytest.raises(ValueError, match=says):
        build_windows(Trajectories.from_dataframe(both, **COLS), **how)
    for rule in ("simpson", "trapezoid"):
        lost = frame([np.delete(v, slice(503, 511), axis=0) for v in record])
        with pytest.raises(ValueError, match="row 503 .* comes 0.09 s after row 502"):
            build_windows(Trajectories.from_dataframe(lost, **COLS), rule=rule, **how)
    split = Trajectories.from_dataframe(both, **COLS, episode_col="run")
    r = policy_iteration(build_windows(split, **how), Q, R, "zero")
    assert plain.distance(r.K[-1], BEST) < 1e-5
    few = frame([np.delete(v, slice(503, 506), axis=0) for v in record])  # 4 steps
    assert len(build_windows(Trajectories.from_dataframe(few, **COLS), **how)) > 145


def test_jittered_episodes_can_be_averaged():
    "Every averaged row is exact: increments, integrals and lengths are averaged alike."
    import pandas as pd

    rng, runs = np.random.default_rng(0), []
    none = tuple(np.zeros((1, 0)) for _ in range(3))
    x0 = np.array([1.0, -1, 0.5, 0])
    for k in range(3):
        t = np.cumsum(rng.integers(8, 13, 1600)) / 1000.0
        t = np.concatenate([[0.0], t - t[0] + 0.01])
        t = t[t < 15.05]
        x, u, e = plain.sampled(A, B, D, np.zeros((2, 4)), tones(2), none, x0, t)
        runs.append(frame((t, x, u, e), run=k))
    traj = Trajectories.from_dataframe(pd.concat(runs), **COLS, episode_col="run")
    V = build_windows(traj, T=0.1).without_e()
    V = V.rows(V.window < 149)
    K = estimate(V, Q, R, "averaged", burn=0)[0]
    assert plain.distance(K, BEST) < 1e-3


def test_unequal_episodes(record):
    import pandas as pd

    rows = pd.concat([frame(record, run=0), frame([a[:901] for a in record], run=1)])
    traj = Trajectories.from_dataframe(rows, **COLS, episode_col="run")
    V = build_windows(traj, T=0.1)
    assert len(V) == 150 + 90
    with pytest.raises(ValueError, match="episode"):
        V.average()
    with pytest.raises(ValueError, match="episode"):
        estimate(V, Q, R, "averaged")
    stacked = estimate(V, Q, R, "measured")[0]  # rows of any length can be stacked
    assert plain.distance(stacked, BEST) < 1e-5


def test_short_windows(record):
    traj = Trajectories.from_arrays(*record)
    for how in (
        dict(length=1),
        dict(T=0.001),
        dict(T=0.0),
        dict(T=-1.0),
        dict(T=100.0),
    ):
        with pytest.raises(ValueError, match="(?i)window|T="):
            build_windows(traj, **how)
    with pytest.raises(ValueError, match="rule"):
        build_windows(traj, T=0.1, rule="milne")
    two = build_windows(traj, length=2)  # the shortest that is allowed: a trapezoid
    assert len(two) == 1500


def test_more_episodes_than_there_are(W):
    with pytest.raises(ValueError, match="5"):
        W.select(first=5)
    with pytest.raises(ValueError, match="500"):
        W.drop(500)


def test_integer_and_fortran_arrays(record):
    t, x, u, e = record
    ints = np.rint(1000 * x).astype(int), np.rint(1000 * u).astype(int)
    a = build_windows(Trajectories.from_arrays(t, *ints, e), T=0.1)
    b = build_windows(
        Trajectories.from_arrays(t, *(v.astype(float) for v in ints), e), T=0.1
    )
    assert a.G.dtype == np.float64
    assert_array_equal(a.G, b.G)
    f = build_windows(
        Trajectories.from_arrays(t, *map(np.asfortranarray, (x, u, e))), T=0.1
    )
    g = build_windows(Trajectories.from_arrays(t, x, u, e), T=0.1)
    assert_allclose(f.G, g.G, rtol=1e-13, atol=1e-13)
    r, s = (
        policy_iteration(V, q, r, K)
        for V, q, r, K in (
            (
                f,
                np.asfortranarray(Q),
                np.asfortranarray(R),
                np.zeros((2, 4), order="F"),
            ),
            (g, np.eye(4, dtype=int), np.eye(2, dtype=int), np.zeros((2, 4), int)),
        )
    )
    assert_allclose(r.K[-1], s.K[-1], rtol=1e-9, atol=1e-10)


def test_single_precision_is_taken_as_double(record):
    t, *rest = record
    V = build_windows(
        Trajectories.from_arrays(t, *(a.astype(np.float32) for a in rest)), T=0.1
    )
    assert V.G.dtype == np.float64 and V.delta.dtype == np.float64


def test_arguments_are_not_changed(record):
    copies = [a.copy() for a in record]
    q, r, K0 = np.eye(4), np.eye(2), np.zeros((2, 4))
    policy_iteration(build_windows(Trajectories.from_arrays(*record), T=0.1), q, r, K0)
    for a, b in zip(record, copies, strict=True):
        assert_array_equal(a, b)
    assert_array_equal(q, np.eye(4))
    assert_array_equal(K0, 0)


def test_time_stamps_in_milliseconds(record):
    "Stamps of a logger: milliseconds since boot, jittered, as integers."
    rng = np.random.default_rng(0)
    ms = np.cumsum(rng.integers(8, 13, 1600)) + 86_400_000
    t = (ms - ms[0]) / 1000
    x, u, e = plain.sampled(
        A, B, D, np.zeros((2, 4)), tones(2), tones(1, 6), record[1][0], t
    )
    gains = []
    for stamps, T in ((t, 0.1), (ms / 1000, 0.1), (ms, 100)):
        V = build_windows(Trajectories.from_arrays(stamps, x, u, e), T=T)
        gains.append(policy_iteration(V, Q, R, "zero").K[-1])
    assert plain.distance(gains[0], BEST) < 1e-4
    assert_allclose(gains[1], gains[0], atol=1e-5)
    assert_allclose(gains[2], gains[0], atol=1e-5)  # the gain has no time in it


def test_unknown_jitter_is_an_error_of_its_size(record):
    "Stamps off by up to 0.5 ms of 10 ms: a moderate error, no crash."
    t, x, u, e = record
    off = t + np.random.default_rng(0).uniform(-5e-4, 5e-4, len(t))
    V = build_windows(Trajectories.from_arrays(off, x, u, e), T=0.1)
    assert plain.distance(policy_iteration(V, Q, R, "zero").K[-1], BEST) < 0.1


# Simulation


@pytest.mark.parametrize(
    "change",
    [
        dict(T=0), dict(T=-0.1), dict(l=0), dict(episodes=0), dict(x0=np.ones(3)),
        dict(K_behaviour=np.zeros((4, 2))), dict(exploration=MultiSine(*tones(3))),
        dict(disturbance=OU(0.5, 0.5, 2)), dict(disturbance=MultiSine(*tones(2))),
        dict(disturbance=White(0.25), substeps=3), dict(backend="jax"),
        dict(x0=np.array([1, 2, np.nan, 0])), dict(episodes=3, x0=np.ones((2, 4))),
    ],
)  # fmt: skip
def test_simulations_that_make_no_sense(change):
    good = dict(
        plant=LinearPlant(A, B, D), K_behaviour=None, exploration=MultiSine(*tones(2)),
        disturbance=Zero(), x0=np.ones(4), T=0.1, l=5,
    )  # fmt: skip
    simulate(**good)
    with pytest.raises(ValueError):
        simulate(**good | change)


def test_signals_that_make_no_sense():
    for make in (
        lambda: OU(0.0, 1.0), lambda: OU(-1.0, 1.0), lambda: OU(1.0, -1.0),
        lambda: White(-1.0), lambda: White(np.ones((2, 3))), lambda: Pulse([1.0], -1.0),
        lambda: MultiSine([[np.nan]], 1.0),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            make()


def test_graphs_that_make_no_sense():
    import networkx as nx

    with pytest.raises(ValueError):
        coupled_oscillators(nx.Graph())
    with pytest.raises(ValueError, match="9"):
        coupled_oscillators(nx.path_graph(3), actuated=[9])


# Results that must not be trusted


def test_divergence_is_reported(W):
    "Windows with the sign of the input turned: the iteration cannot end well."
    G = W.G.copy()
    G[:, :4, 4:6] *= -1
    G[:, 4:6, :4] *= -1
    G[:, :4, :4] *= -1
    broken = dataclasses.replace(W, G=G)
    with pytest.raises(
        NotStabilizingError, match="look for a disturbance that was not"
    ):
        policy_iteration(broken, Q, R, "zero")
    with pytest.warns(UserWarning, match="stopped: P is not positive.*best_K is none"):
        r = policy_iteration(broken, Q, R, "zero", strict=False)
    assert not r.converged and r.best is r.best_K is r.best_P is None
    assert np.isnan(r.best_kappa)
    with pytest.warns(UserWarning, match="stopped"):
        K, P, _ = estimate(broken, Q, R, "measured")
    assert np.isnan(K).all() and np.isnan(P).all()


def test_noise_without_pattern_is_no_solution():
    rng = np.random.default_rng(0)
    t = 0.01 * np.arange(3001)
    x, u = rng.normal(size=(3001, 4)), rng.normal(size=(3001, 2))
    V = build_windows(Trajectories.from_arrays(t, x, u), T=0.1)
    with pytest.raises(NotStabilizingError, match="estimated from the data for K0"):
        policy_iteration(V, Q, R, "zero")


def noisy(episodes, l=150, sigma=0.5, first=0):
    "Episodes of the oscillators under coloured noise."
    plant, u = LinearPlant(A, B, D), MultiSine(*tones(2))
    run = dict(T=0.1, l=l, episodes=episodes, seed=1, first=first)
    return simulate(plant, None, u, OU(0.5, sigma), np.ones(4), **run)


def test_what_a_stopped_fit_hands_over_belongs_together():
    V = build_windows(noisy(32), T=0.1).without_e()
    with pytest.warns(
        UserWarning, match=r"no convergence in 3 iterations; best_K is K\[2"
    ):
        model = OfflineLQR(Q, R, options={"max_iter": 3}).fit(V)
    k = model.info_.best
    assert (k, model.converged_) == (2, False)
    assert_array_equal(model.K_, model.info_.K[k])
    assert_array_equal(model.P_, model.info_.P[k])
    assert model.cost_rate_ == model.info_.kappa[k]
    with pytest.raises(ValueError, match="no interval: no convergence in 3 iterations"):
        model.interval()
    with (
        pytest.warns(UserWarning, match="best_K is"),
        pytest.raises(ValueError, match="nothing was learned, only K0 itself passed"),
    ):
        OfflineLQR(Q, R, options={"max_iter": 1}).fit(V)


def test_converged_results_belong_together():
    V = build_windows(noisy(32), T=0.1).without_e()
    model = OfflineLQR(Q, R, options={"tol": 1e-10}).fit(V)
    again = policy_iteration(
        V.drop(10).average(), Q, R, model.K_, intercept=True, max_iter=2, tol=1e-6
    )
    assert plain.distance(again.P[0], model.P_) < 1e-9
    assert_allclose(again.kappa[0], model.cost_rate_, rtol=1e-8)


def test_one_record_with_e_is_told_of_the_other_estimator(W):
    with (
        pytest.warns(UserWarning, match="ignores; 'measured' uses it"),
        pytest.raises(ValueError, match="estimator='measured' or 'auto'") as e,
    ):
        OfflineLQR(Q, R).fit(W)
    assert "record more" not in str(e.value)
    assert plain.distance(OfflineLQR(Q, R, "auto").fit(W).K_, BEST) < 1e-5


@pytest.mark.parametrize("digits", [8, 6, 4, 3, "float32"])
@pytest.mark.parametrize("with_e", [True, False])
def test_rounded_feedback_is_no_exploration(digits, with_e):
    t = 0.01 * np.arange(1501)
    K = np.array([[0.3, 0, 0.2, 0], [0, 0.1, 0, 0.4]])
    none = tuple(np.zeros((2, 0)) for _ in range(3))
    x, u, e = plain.sampled(A, B, D, K, none, tones(1, 12), np.ones(4), t)
    u = u.astype(np.float32) if digits == "float32" else u.round(digits)
    V = build_windows(Trajectories.from_arrays(t, x, u, e if with_e else None), T=0.1)
    report = rank_report(V)
    assert report.excited and "rounding is no exploration" in str(report)
    with pytest.warns(UserWarning, match="is -Kx up to"):
        report.check()
    with (
        warnings.catch_warnings(),
        pytest.raises(RankConditionError, match="-Kx up to"),
    ):
        warnings.simplefilter("ignore")
        OfflineLQR(Q, R, "measured" if with_e else "averaged", burn=0).fit(V)
    with pytest.warns(UserWarning, match="is -Kx up to"):
        certainty_equivalent(V, Q, R)
    with pytest.warns(UserWarning, match="is -Kx up to"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(policy|value) iteration|condition number")
        try:
            policy_iteration(V, Q, R)
        except RankConditionError as error:
            assert "-Kx up to" in str(error)  # not that K0 does not stabilise


def test_small_exploration_on_a_feedback_is_exploration():
    t = 0.01 * np.arange(1501)
    K = np.array([[0.3, 0, 0.2, 0], [0, 0.1, 0, 0.4]])
    w, a, p = tones(2, 12)
    x, u, e = plain.sampled(A, B, D, K, (w, 0.02 * a, p), tones(1, 12), np.ones(4), t)
    report = rank_report(build_windows(Trajectories.from_arrays(t, x, u, e), T=0.1))
    assert report.excited and not report.rounding
    assert min(report.explored.values()) > 1e-3


def speaks(V):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        V.average()
    return [str(w.message) for w in seen]


def test_episodes_that_share_nothing():
    plant, runs = LinearPlant(A, B, D), {}
    for name, starts, seeds in (
        ("same", [0, 0, 0], [0, 0, 0]),
        ("start", [0, 1, 2], [0, 0, 0]),
        ("exploration", [0, 0, 0], [0, 1, 2]),
    ):
        for K in (None, np.full((2, 4), 0.3)):
            parts = [
                simulate(
                    plant, K, MultiSine(*tones(2, seed=s)), OU(0.5, 0.5),
                    np.ones(4) + 1e-3 * x, 0.1, 40, first=k,
                ) for k, (x, s) in enumerate(zip(starts, seeds, strict=True))
            ]  # fmt: skip
            V = build_windows(parts[0] + parts[1] + parts[2], T=0.1).without_e()
            runs[name, K is None] = V
    for bare in (True, False):
        assert speaks(runs["same", bare]) == []
        (text,) = speaks(runs["start", bare])
        assert "group 0 do not share their x(0)" in text and "group_col" in text
        (text,) = speaks(runs["exploration", bare])
        assert "group 0 do not share their exploration" in text
        with pytest.warns(UserWarning, match="do not share their exploration"):
            try:
                estimate(runs["exploration", bare], Q, R, "averaged")
            except ValueError:
                pass
        apart = dataclasses.replace(
            runs["exploration", bare], group=runs["exploration", bare].episode
        )
        assert speaks(apart) == []


@pytest.mark.filterwarnings("ignore:policy iteration stopped")
def test_one_record_makes_a_narrow_interval_and_says_so():
    "Coverage of entries at 95 %: with 16 episodes about that, with one far less."
    rates, wide = {}, {}
    for E in (1, 16):
        hits, width = [], []
        for k in range(20):
            V = build_windows(noisy(E, first=16 * k), T=0.1).without_e()
            V.episode[:] -= 16 * k
            try:
                model = OfflineLQR(Q, R).fit(V)
            except ValueError:
                continue
            if not model.converged_:
                continue
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                found = model.interval(bootstrap=200)
            assert found.kind == ("episodes" if E > 1 else "windows")
            narrow = any("record 16 episodes or more" in str(w.message) for w in seen)
            assert narrow == (E == 1)
            hits.append(found.covers(BEST).mean())
            width.append(np.median(found.K_high - found.K_low))
        rates[E], wide[E] = np.mean(hits), np.median(width)
    assert rates[1] < 0.8 < 0.88 < rates[16], rates
    assert wide[16] < wide[1]


def test_ill_conditioned_data_warn():
    "The diesel engine in the setting of the literature: ten digits are gone."
    rng = np.random.default_rng(0)
    u = plain.tones(rng, 2, 100, -50, 50)
    x0 = np.array([20.0, 5, 10, 2, -1, -2])
    plant = LinearPlant(*plain.DIESEL[:2])
    V = build_windows(simulate(plant, None, MultiSine(*u), Zero(0), x0, 0.01, 100))
    q = np.diag([100.0, 0, 0, 0, 0, 100])
    with (
        pytest.warns(IllConditionedWarning, match="accuracy"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "policy iteration stopped")
        r = policy_iteration(V, q, np.eye(2), "zero")
    assert r.cond.max() > 1e10 and r.best_K is not None
    best = plain.riccati(*plain.DIESEL[:2], q, np.eye(2))[0]
    assert plain.distance(r.K[-1], best) < 0.1


def test_iterations_run_out(W):
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        r = policy_iteration(W, Q, R, "zero", max_iter=2)
    assert not r.converged and len(r.P) == 2 and r.K.shape == (3, 2, 4)


@pytest.mark.parametrize("bad", [0, -1])
def test_limits_must_be_positive(W, bad):
    with pytest.raises(ValueError):
        policy_iteration(W, Q, R, "zero", max_iter=bad)


# Streaming


STREAM = """
import sys
import time
from pathlib import Path

import numpy as np

from rlpapers.lqr.regression import Compressed
from rlpapers.lqr.matrices import WindowData

file, chunks, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
c = Compressed.load(file) if file.exists() else Compressed()
for k in range(c.count // 50, 12):
    c.append(WindowData.load(chunks / f"{k}.npz"))
    c.save(file)
    print(c.count, flush=True)
    time.sleep(pause)
"""


def test_killed_stream_resumes_bit_for_bit(tmp_path, W):
    rng = np.random.default_rng(0)
    for k in range(12):
        noisy = W.rows(slice(0, 50))
        noise = 1e-2 * rng.normal(size=noisy.delta.shape)
        dataclasses.replace(noisy, delta=noisy.delta + noise).save(
            tmp_path / f"{k}.npz"
        )
    run = lambda name, pause: subprocess.Popen(
        [sys.executable, "-c", STREAM, tmp_path / name, tmp_path, str(pause)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    whole = run("whole.npz", 0)
    assert (
        whole.communicate(timeout=60)[0].split()[-1] == "600" and whole.returncode == 0
    )
    for _ in range(2):
        part = run("part.npz", 0.15)
        for _ in range(4):
            part.stdout.readline()
        time.sleep(0.05)
        os.kill(part.pid, signal.SIGKILL)
        part.wait()
        part.stdout.close()
        assert 0 < Compressed.load(tmp_path / "part.npz").count < 600
    last = run("part.npz", 0)
    last.communicate(timeout=60)
    assert last.returncode == 0
    with np.load(tmp_path / "whole.npz") as a, np.load(tmp_path / "part.npz") as b:
        assert set(a) == set(b)
        for key in a:
            assert_array_equal(a[key], b[key])
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_streamed_factor_solves_as_all_rows(W, tmp_path):
    parts = Compressed()
    for a in range(0, 150, 40):
        parts.append(W.rows(slice(a, a + 40)))
    assert parts.count == 150
    parts.save(tmp_path / "c.npz")
    step = Compressed.load(tmp_path / "c.npz").solve(np.zeros((2, 4)), Q, R)
    r = policy_iteration(W, Q, R, "zero", max_iter=8)
    assert plain.distance(step.P, r.P[0]) < 1e-9
    assert plain.distance(step.K, r.K[1]) < 1e-9


def test_a_half_written_file_is_refused(tmp_path, W, record):
    writers = {
        Compressed(W).save: Compressed.load,
        W.save: WindowData.load,
        Trajectories.from_arrays(*record).save_npz: Trajectories.from_npz,
    }
    for write, read in writers.items():
        write(tmp_path / "c.npz")
        data = (tmp_path / "c.npz").read_bytes()
        (tmp_path / "half.npz").write_bytes(data[: len(data) // 2])
        with pytest.raises(
            ValueError, match="half.npz is no whole NPZ file: write it ag"
        ):
            read(tmp_path / "half.npz")
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none.npz")


def test_files_are_checked(tmp_path, record):
    Trajectories.from_arrays(*record).save_npz(tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz") as z:
        good = dict(z)
    x = good["0_x"].copy()
    x[0, 7, 1] = np.nan
    for change, says in (
        ({"0_x": x}, "x2 is nan in row 7"),
        ({"0_t": good["0_t"][::-1]}, "times must increase"),
        ({"0_u": good["0_u"][:, :9]}, "u must have shape"),
        ({"0_group": np.zeros(3, int)}, "group must have shape"),
        ({"0_rule": np.array("milne")}, "rule must be samples or gauss, got 'milne'"),
    ):
        np.savez(tmp_path / "bad.npz", **good | change)
        with pytest.raises(ValueError, match=says):
            Trajectories.from_npz(tmp_path / "bad.npz")
    del good["0_x"]
    np.savez(tmp_path / "bad.npz", **good)
    with pytest.raises(ValueError, match="has no array '0_x'"):
        Trajectories.from_npz(tmp_path / "bad.npz")


def test_nothing_is_read_with_pickle(tmp_path):
    np.savez(tmp_path / "evil.npz", t=np.array([{"a": 1}], dtype=object), x=1, u=1)
    with pytest.raises(ValueError, match="(?i)pickle|object"):
        Trajectories.from_npz(tmp_path / "evil.npz")


# Parameters


EXPERIMENTS = "conditioning measured noise population robust scaling unmeasured".split()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_unknown_values_of_the_paper_are_refused(experiment):
    models = params.experiments("lqr")
    assert sorted(models) == EXPERIMENTS
    model, given, asked = models[experiment], {}, []
    good = params.resolve(model, "lqr", experiment, "small").params
    for _ in range(2):  # one value filled in: those still unknown are refused
        with pytest.raises(params.ParamError, match="has no known value here") as e:
            params.resolve(model, "lqr", experiment, "paper", given)
        name, _, where = str(e.value).split(" has")[0].partition(" of ")
        assert where == f"lqr/{experiment}" and name not in given
        asked.append(name)
        given[name] = getattr(good, name)
    assert len(set(asked)) == 2


def test_a_plant_of_python_control_is_accepted(W):
    control = pytest.importorskip("control")
    plant = LinearPlant(A, B, D)
    space = control.ss(A, np.hstack([B, D]), np.eye(4), np.zeros((4, 3)))
    args = (None, MultiSine(*tones(2)), MultiSine(*tones(1, 6)), np.ones(4), 0.1, 40)
    a, b = (simulate(p, *args).blocks[0].x for p in (plant, space))
    assert_array_equal(a, b)
    bare = control.ss(A, B, np.eye(4), np.zeros((4, 2)))
    a = simulate(plant, None, args[1], None, *args[3:]).blocks[0].x
    assert_array_equal(a, simulate(bare, None, args[1], None, *args[3:]).blocks[0].x)
    for truth in (space, bare, plant):
        r = policy_iteration(W, Q, R, "zero", truth=truth)
        assert r.errors["K"][-1] < 1e-5
    model = OfflineLQR(Q, R, "measured").fit(W)
    for p in (plant, space, bare):
        assert_allclose(model.to_control(p).A, A - B @ model.K_)
    with pytest.raises(
        ValueError, match="got TransferFunction: convert it with contro"
    ):
        LinearPlant.from_control(control.tf([1], [1, 1]))


@pytest.mark.parametrize(
    ("truth", "says"),
    [
        (
            (np.zeros((4, 2)), np.eye(4)),
            r"shapes \(2, 4\) and \(4, 4\).*got shapes \(4, 2",
        ),
        (double_integrator(), "4 states and 2 inputs, got 2 states and 1 inputs"),
        (np.zeros((2, 4)), "got ndarray"),
    ],
)
def test_truths_that_do_not_fit(W, truth, says):
    with pytest.raises(ValueError, match=says):
        policy_iteration(W, Q, R, "zero", truth=truth)


@pytest.mark.parametrize("solver", ["auto", "direct", "operator", "compressed"])
def test_zero_disturbance_of_compressed_data_is_dropped(solver):
    plant, u = LinearPlant(A, B, np.hstack([D, D])), MultiSine(*tones(2, 16))
    w, a, p = tones(2, 6)
    e = MultiSine(w, a * [[0], [1]], p)
    V = build_windows(simulate(plant, None, u, e, np.ones(4), 0.1, 150))
    with pytest.warns(UserWarning, match="e1 is zero and was dropped"):
        r = policy_iteration(Compressed(V), Q, R, "zero", solver=solver)
    assert r.F.shape[1:] == (1, 4) and tuple(r.e_names) == ("e2",)
    assert plain.distance(r.K[-1], BEST) < 1e-6


def test_messages_name_what_was_wrong(record, tmp_path):
    t, x, u, e = record
    V = build_windows(Trajectories.from_arrays(t, x, u, e), T=0.1)
    with pytest.raises(ValueError, match="x must have shape"):
        Trajectories.from_arrays(t, x[:, 0], u)
    with pytest.raises(ValueError, match="x holds 2 episodes, u holds 3"):
        Trajectories.from_arrays(t, np.stack([x] * 2), np.stack([u] * 3))
    with pytest.raises(ValueError, match="append windows first"):
        Compressed().save(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match="bootstrap must be at least 1"):
        certificate(V, BEST, bootstrap=0)
    with pytest.raises(ValueError, match="P must have shape"):
        certificate(V, BEST, np.eye(3))
    with pytest.raises(ValueError, match="estimator must be one of"):
        OfflineLQR(Q, R, estimator="best").fit(V)
    model = OfflineLQR(Q, R, "measured").fit(V)
    with pytest.raises(ValueError, match=r"x must end in n=4, got shape \(3,\)"):
        model.predict(np.ones(3))
    with pytest.raises(ValueError, match="burn must be >= 0, got -1"):
        estimate(V, Q, R, "averaged", burn=-1)
    with pytest.raises(TypeError, match="Trajectories.from_dataframe"):
        OfflineLQR(Q, R, T=0.1).fit(frame(record))
    with pytest.raises(ValueError, match=r"OfflineLQR\(T=...\)"):
        OfflineLQR(Q, R).fit(Trajectories.from_arrays(t, x, u, e))
    lost = dataclasses.replace(V, dx=np.where(V.window[:, None] == 3, np.nan, V.dx))
    with pytest.raises(ValueError, match="window 3 has values that are not finite"):
        certainty_equivalent(lost, Q, R)


def test_simulated_nodes_travel_through_a_file(tmp_path):
    u, e = MultiSine(*tones(2)), MultiSine(*tones(1, 6))
    traj = simulate(LinearPlant(A, B, D), None, u, e, np.ones(4), 0.1, 40)
    traj.save_npz(tmp_path / "gauss.npz")
    back = Trajectories.from_npz(tmp_path / "gauss.npz")
    assert_array_equal(build_windows(back).G, build_windows(traj).G)


def test_intervals_of_few_episodes_are_wider(monkeypatch):
    "Student's quantile for four episodes, and the bootstrap's missing factor E/(E-1)."
    freqs = np.linspace(0.3, 7.5, 16).reshape(2, 8)
    probe = MultiSine(freqs, np.ones((2, 8)), np.zeros((2, 8)))
    plant = LinearPlant(A, B, D)
    traj = simulate(
        plant, None, probe, OU(0.5, 0.1), np.ones(4), 0.1, 60, episodes=4, seed=3
    )
    W = build_windows(traj, T=0.1).without_e()
    call = (W, Q, R, BEST, "averaged+intercept")
    wide = estimators.interval(*call, bootstrap=100)
    monkeypatch.setattr(estimators, "_wider", lambda *_: 1.0)
    bare = estimators.interval(*call, bootstrap=100)
    ratio = (wide.K_high - wide.K_low) / (bare.K_high - bare.K_low)
    assert_allclose(ratio, 3.18245 / 1.95996 * np.sqrt(4 / 3), rtol=1e-5)
    assert_allclose(wide.cost, bare.cost)
