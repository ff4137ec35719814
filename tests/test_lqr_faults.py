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
from rlpapers.lqr.algebra import (
    IllConditionedWarning,
    NotStabilizingError,
    RankConditionError,
    abscissa,
)
from rlpapers.lqr.certificates import certificate
from rlpapers.lqr.estimators import OfflineLQR, estimate
from rlpapers.lqr.iteration import policy_iteration
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
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            r = policy_iteration(W, Q, R, bad)
        except ValueError as e:
            assert "value_iteration" in str(e)
        else:
            assert any("value_iteration" in str(w.message) for w in seen)
            assert not r.converged or plain.distance(r.K[-1], BEST) < 1e-3
            if r.best_K is not None:
                assert abscissa(A - B @ r.best_K) < 0


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
    try:
        c = Trajectories.from_dataframe(text, **COLS).blocks[0].x
        assert_allclose(c, a)
    except (ValueError, TypeError) as e:
        assert "x1" in str(e) or "could not convert" in str(e)
    gap = good.copy()
    gap["x1"] = pd.array([None, *good["x1"][1:]], dtype="Float64")
    with pytest.raises((ValueError, TypeError)):
        Trajectories.from_dataframe(gap, **COLS)


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
    "Seconds, or a refusal; never nanoseconds since 1970."
    import pandas as pd

    dates = frame(record)
    dates["t"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(dates["t"], unit="s")
    try:
        t = Trajectories.from_dataframe(dates, **COLS).blocks[0].t
    except (ValueError, TypeError) as e:
        assert "t" in str(e)
    else:
        assert_allclose(np.diff(t), 0.01, rtol=1e-6)


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
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            r = policy_iteration(broken, Q, R, "zero")
        except ValueError as e:
            assert str(e)
            return
    assert not r.converged
    assert seen, "no word of warning"


def test_noise_without_pattern_is_no_solution():
    rng = np.random.default_rng(0)
    t = 0.01 * np.arange(3001)
    x, u = rng.normal(size=(3001, 4)), rng.normal(size=(3001, 2))
    V = build_windows(Trajectories.from_arrays(t, x, u), T=0.1)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        try:
            r = policy_iteration(V, Q, R, "zero")
        except ValueError:
            return
    assert not (r.converged and r.residual[-1] < 0.1)


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


def test_a_half_written_file_is_refused(tmp_path, W):
    Compressed(W).save(tmp_path / "c.npz")
    data = (tmp_path / "c.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(Exception, match=".") as e:
        Compressed.load(tmp_path / "half.npz")
    assert not isinstance(e.value, AttributeError)


def test_nothing_is_read_with_pickle(tmp_path):
    np.savez(tmp_path / "evil.npz", t=np.array([{"a": 1}], dtype=object), x=1, u=1)
    with pytest.raises(ValueError, match="(?i)pickle|object"):
        Trajectories.from_npz(tmp_path / "evil.npz")


# Parameters


def test_unknown_values_of_the_paper_are_refused():
    models = params.experiments("lqr")
    refused = 0
    for experiment, model in models.items():
        try:
            params.resolve(model, "lqr", experiment, "paper")
        except params.ParamError as e:
            refused += 1
            assert "no known value" in str(e)
    assert refused >= 1


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
