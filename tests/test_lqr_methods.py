"Golden cases of lqr: published and learned solutions, estimators, certificates."

import warnings

import lqr_plain as plain
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import signal, stats

from rlpapers.lqr import systems
from rlpapers.lqr.algebra import (
    NotStabilizingError,
    RankConditionError,
    abscissa,
)
from rlpapers.lqr.certificates import certificate
from rlpapers.lqr.estimators import ESTIMATORS, OfflineLQR, estimate
from rlpapers.lqr.iteration import policy_iteration
from rlpapers.lqr.matrices import WindowData
from rlpapers.lqr.moments import expected_windows
from rlpapers.lqr.records import Trajectories
from rlpapers.lqr.reference import care, kleinman, perturbed_kleinman
from rlpapers.lqr.signals import OU, MultiSine, White, exploration
from rlpapers.lqr.simulation import simulate
from rlpapers.lqr.systems import LinearPlant
from rlpapers.lqr.value import certainty_equivalent, value_iteration
from rlpapers.lqr.windows import build_windows

DIESEL_Q = np.diag([100.0, 0, 0, 0, 0, 100])


def windows(model, u, e, x0, T, l, Kb=None, nodes=12):
    "Windows of one noiseless episode; u and e as of `plain.tones`."
    plant = LinearPlant(*model)
    e = MultiSine(*e) if e is not None else None
    return build_windows(simulate(plant, Kb, MultiSine(*u), e, x0, T, l, nodes=nodes))


# 1. Scalar


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    w=st.lists(st.floats(0.5, 12), min_size=2, max_size=5),
    phase=st.floats(0, 6.28),
    x0=st.floats(-2, 2),
)
def test_scalar(w, phase, x0):
    assume(np.diff(sorted(w)).min() > 0.4)
    f = np.array([w])
    u = f, np.ones_like(f), np.full_like(f, phase)
    e = np.array([[0.83, 3.1]]), np.ones((1, 2)), np.zeros((1, 2))
    W = windows(([[-1.0]], [[1.0]], [[1.0]]), u, e, [x0], 0.2, 60)
    r = policy_iteration(W, [[1.0]], [[1.0]], "zero", use_e=True)
    assert abs(r.P[-1].item() - (np.sqrt(2) - 1)) < 1e-10
    assert abs(r.K[-1].item() - (np.sqrt(2) - 1)) < 1e-10


def test_scalar_plant_of_the_library():
    p = systems.scalar(-1.0, 1.0, 0.5)
    assert (p.A.item(), p.B.item(), p.D.item()) == (-1, 1, 0.5)


# 2. Double integrator


def test_double_integrator():
    p = systems.double_integrator()
    assert_allclose(p.A, [[0, 1], [0, 0]])
    assert_allclose(np.ravel(p.B), [0, 1])
    Q, R, K0 = np.eye(2), np.eye(1), np.array([[1.0, 1.0]])
    s = np.sqrt(3)
    K, P = care(p.A, p.B, Q, R)
    assert_allclose(P, [[s, 1], [1, s]], rtol=1e-12)
    Ps, Ks = plain.kleinman(p.A, p.B, Q, R, K0, 4)
    assert_allclose(
        [np.diag(x) for x in Ps[:3]], [[2, 2], [1.75] * 2, [1.73214285714] * 2]
    )
    assert_allclose([Ks[1, 0], Ks[2, 0]], [[1, 2], [1, 1.75]])
    mine = kleinman(p.A, p.B, Q, R, K0, 1e-12, 20)
    assert_allclose(np.array(mine.P)[:4], Ps, atol=1e-12)

    rng = np.random.default_rng(0)
    D = p.D if p.D is not None and p.D.size else np.array([[0.5], [1.0]])
    u, e = plain.tones(rng, 1, 6, 0.5, 8, 2.0), plain.tones(rng, 1, 4, 0.4, 7, 2.0)
    W = windows((p.A, p.B, D), u, e, [1.0, -1], 0.2, 60, Kb=K0)
    r = policy_iteration(W, Q, R, K0, use_e=True)
    assert np.abs(W.G[:, 3, 3]).max() > 0.1, "the data are disturbed"
    assert_allclose(r.P[:4], Ps, atol=1e-9)
    assert_allclose(r.K[:5], Ks, atol=1e-9)
    assert_allclose(r.P[-1], [[s, 1], [1, s]], atol=1e-9)
    with pytest.warns(UserWarning, match="stopped"):
        wrong = policy_iteration(W, Q, R, K0, use_e=False)
    assert plain.distance(wrong.K[-1], K) > 1e-3


# 3, 4. F-16 and diesel engine


def test_f16():
    p = systems.f16_short_period()
    for got, want in zip((p.A, p.B, p.D), plain.F16, strict=True):
        assert_allclose(got, want)
    want = [
        [1.4245, 1.1682, -0.1352],
        [1.1682, 1.4349, -0.1501],
        [-0.1352, -0.1501, 0.4329],
    ]
    K, P = care(p.A, p.B, np.eye(3), np.eye(1))
    assert_allclose(P, want, atol=6e-5)
    rng = np.random.default_rng(0)
    u, e = plain.tones(rng, 1, 10, 0.5, 12, 2.0), plain.tones(rng, 1, 6, 0.4, 9, 2.0)
    W = windows((p.A, p.B, p.D), u, e, [1.0, -1, 0.5], 0.1, 80)
    r = policy_iteration(W, np.eye(3), np.eye(1), "zero", use_e=True)
    assert_allclose(r.P[-1], want, atol=6e-5)
    assert plain.distance(r.K[-1], K) < 1e-9


def test_diesel_reference():
    p = systems.diesel_engine()
    for got, want in zip((p.A, p.B, p.D), plain.DIESEL, strict=True):
        assert_allclose(got, want)
    K, P = care(p.A, p.B, DIESEL_Q, np.eye(2))
    want = [
        [10.7537, 0.3875, 0.4006, 24.8446, -13.6677, -0.1672],
        [8.9983, 0.2031, 0.0681, 9.2032, -5.0796, 0.0180],
    ]
    assert_allclose(K, want, atol=6e-5)
    assert_allclose(np.trace(P), 1161.0097, atol=6e-5)
    K, P = care(p.A, p.B, np.diag([1, 1, 0.1, 0.1, 0.1, 0.1]), np.eye(2))
    assert_allclose(
        K[0], [-0.7952, -0.0684, -0.0726, 0.0242, -0.0488, -0.0002], atol=6e-5
    )
    assert_allclose(np.trace(P), 150.2872, atol=6e-5)


@pytest.fixture(scope="module")
def diesel():
    "The default setting of the specification."
    rng = np.random.default_rng(0)
    u, e = plain.tones(rng, 2, 20, -20, 20, 5.0), plain.tones(rng, 1, 20, -10, 10, 5.0)
    x0 = np.array([20.0, 5, 10, 2, -1, -2])
    return windows(plain.DIESEL, u, e, x0, 0.1, 300, nodes=16)


def test_diesel_learned_from_disturbed_data(diesel):
    A, B, D = plain.DIESEL
    K, P = plain.riccati(A, B, DIESEL_Q, np.eye(2))
    r = policy_iteration(diesel, DIESEL_Q, np.eye(2), "zero", use_e=True, truth=(K, P))
    assert (r.rank.rank, r.rank.needed) == (39, 39)
    assert r.converged and plain.distance(r.K[-1], K) < 1e-9
    assert plain.distance(r.P[-1], P) < 1e-9
    Ps, Ks = plain.kleinman(A, B, DIESEL_Q, np.eye(2), np.zeros((2, 6)), len(r.P))
    for got, want in zip(r.K, Ks, strict=True):
        assert np.linalg.norm(got - want) <= 1e-9 * max(1, np.linalg.norm(want))
    for got, want in zip(r.P, Ps, strict=True):
        assert plain.distance(got, want) < 1e-9
    assert abscissa(A - B @ r.K[-1]) < 0


def test_diesel_without_the_disturbance_block_is_wrong(diesel):
    K, P = plain.riccati(*plain.DIESEL[:2], DIESEL_Q, np.eye(2))
    with pytest.raises(NotStabilizingError, match="value_iteration"):
        policy_iteration(diesel, DIESEL_Q, np.eye(2), "zero", use_e=False)
    with pytest.warns(UserWarning, match="stopped"):
        r = policy_iteration(
            diesel, DIESEL_Q, np.eye(2), "zero", use_e=False, certify=False
        )
    assert not r.converged and plain.distance(r.K[-1], K) > 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_diesel_with_other_signals(seed):
    rng = np.random.default_rng(seed)
    u, e = plain.tones(rng, 2, 20, -20, 20, 5.0), plain.tones(rng, 1, 20, -10, 10, 5.0)
    W = windows(plain.DIESEL, u, e, np.array([20.0, 5, 10, 2, -1, -2]), 0.1, 300)
    K, _ = plain.riccati(*plain.DIESEL[:2], DIESEL_Q, np.eye(2))
    r = policy_iteration(W, DIESEL_Q, np.eye(2), "zero", use_e=True)
    assert plain.distance(r.K[-1], K) < 1e-9


@pytest.mark.parametrize(("n", "m", "q"), [(3, 2, 1), (2, 1, 3), (4, 3, 2), (1, 2, 2)])
def test_any_numbers_of_states_inputs_and_disturbances(n, m, q):
    p = systems.random_stable(n, m, q, 3)
    assert (p.A.shape, p.B.shape, p.D.shape) == ((n, n), (n, m), (n, q))
    assert abscissa(p.A) < 0
    rng = np.random.default_rng(1)
    N = n * (n + 1) // 2 + n * (m + q)
    u, e = (plain.tones(rng, k, N // 2 + 3, 0.3, 20, 2.0) for k in (m, q))
    W = windows((p.A, p.B, p.D), u, e, rng.normal(size=n), 0.1, 2 * N + 10, nodes=12)
    r = policy_iteration(W, np.eye(n), np.eye(m), "zero", use_e=True)
    K, P = plain.riccati(p.A, p.B, np.eye(n), np.eye(m))
    assert r.K.shape[1:] == (m, n) and r.F.shape[1:] == (q, n)
    assert plain.distance(r.K[-1], K) < 1e-8
    assert plain.distance(r.F[-1], p.D.T @ r.P[-1]) < 1e-8


# 8. Solvers


SOLVERS = ["direct", "compressed", "operator", "naive"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_agree_on_consistent_data(diesel, solver):
    r, s = (
        policy_iteration(diesel, DIESEL_Q, np.eye(2), "zero", use_e=True, solver=x)
        for x in ("direct", solver)
    )
    assert plain.distance(s.K[-1], r.K[-1]) < 1e-8
    assert plain.distance(s.P[-1], r.P[-1]) < 1e-8
    assert plain.distance(s.F[-1], r.F[-1]) < 1e-8


def test_torch_agrees(diesel):
    r, s = (
        policy_iteration(diesel, DIESEL_Q, np.eye(2), "zero", use_e=True, backend=x)
        for x in ("numpy", "torch")
    )
    assert plain.distance(s.K[-1], r.K[-1]) < 1e-8


@pytest.fixture(scope="module")
def episodes():
    "Noisy windows of the oscillators, 64 episodes."
    rng = np.random.default_rng(2)
    u = MultiSine(*plain.tones(rng, 2, 8, 0.2, 8.0))
    x0 = np.array([1.0, -1, 0.5, 0])
    plant = LinearPlant(*plain.OSCILLATORS)
    t = simulate(plant, None, u, OU(0.5, 0.5), x0, 0.1, 150, 64, seed=1)
    return build_windows(t, T=0.1)


@pytest.mark.parametrize("intercept", [False, True])
def test_compressed_is_direct_on_noisy_data(episodes, intercept):
    W = episodes.without_e().average()
    assert len(W) == 150
    make = lambda s: policy_iteration(
        W, np.eye(4), np.eye(2), "zero", use_e=False, intercept=intercept, solver=s
    )
    r, s, o, k = (make(x) for x in ("direct", "compressed", "operator", "naive"))
    assert plain.distance(s.K[-1], r.K[-1]) < 1e-9
    assert plain.distance(k.K[-1], r.K[-1]) < 1e-8
    assert plain.distance(o.K[-1], r.K[-1]) > 1e-6, "another estimator on noisy data"


# 10. Intercept


def learned_by_plain(W, steps=12, T=None, burn=0):
    "The explicit Kronecker solution of averaged windows of four states and two inputs."
    n, m = 4, 2
    i, j = np.triu_indices(n)
    full = np.empty((len(W), n, n))
    full[:, i, j] = full[:, j, i] = W.delta * np.where(i == j, 1.0, 0.5)
    data = (
        full.reshape(len(W), -1), W.G[:, :n, :n].reshape(len(W), -1),
        W.G[:, :n, n : n + m].reshape(len(W), -1),
    )  # fmt: skip
    data = [d[burn:] for d in data]
    T = None if T is None else W.T[burn:]
    return plain.learn(*data, None, np.eye(n), np.eye(m), np.zeros((m, n)), steps, T)


@pytest.mark.parametrize("intercept", [False, True])
def test_unmeasured_iterates_are_those_of_the_kronecker_form(episodes, intercept):
    W = episodes.without_e().average()
    P, K, _, kappa = learned_by_plain(W, T=intercept or None)
    r = policy_iteration(W, np.eye(4), np.eye(2), "zero", intercept=intercept)
    assert plain.distance(r.K[-1], K[len(r.P)]) < 1e-8
    assert plain.distance(r.P[-1], P[len(r.P) - 1]) < 1e-8
    if intercept:
        assert_allclose(r.kappa[-1], kappa[len(r.P) - 1], rtol=1e-7)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_intercept_is_the_cost_rate_of_white_noise(sigma):
    "Estimates of kappa from independent batches of episodes against tr(P D Sigma D')."
    A, B, D = plain.OSCILLATORS
    rng = np.random.default_rng(2)
    u = MultiSine(*plain.tones(rng, 2, 8, 0.2, 8.0))
    x0 = np.array([1.0, -1, 0.5, 0])
    P = plain.riccati(A, B, np.eye(4), np.eye(2))[1]
    want = sigma**2 * np.trace(D.T @ P @ D)
    got = []
    plant, noise = LinearPlant(A, B, D), White(sigma**2)
    for k in range(12):
        t = simulate(plant, None, u, noise, x0, 0.1, 150, 200, seed=k)
        W = build_windows(t, T=0.1).without_e().average().drop(10)
        r = policy_iteration(W, np.eye(4), np.eye(2), "zero", intercept=True)
        got.append(r.kappa[-1])
        if sigma == 0:
            assert abs(got[0]) < 1e-6
            return
    error = np.std(got, ddof=1) / np.sqrt(len(got))
    assert abs(np.mean(got) - want) < 3 * error
    assert error < 0.1 * want


def test_intercept_of_coloured_noise_on_a_scalar_plant():
    "C_xe = 1/12 for a = -1, d = 1, sigma = tau = 1/2, hence kappa = p/6."
    plant = LinearPlant([[-1.0]], [[1.0]], [[1.0]])
    u = MultiSine(*plain.tones(np.random.default_rng(0), 1, 4, 0.5, 6))
    W = expected_windows(plant, None, u, OU(0.5, 0.5), np.array([1.0]), 0.1, 200)
    W = W.without_e().drop(80)
    r = policy_iteration(W, [[1.0]], [[1.0]], "zero", intercept=True)
    p = np.sqrt(2) - 1
    assert_allclose(r.P[-1].item(), p, rtol=1e-6)
    assert_allclose(r.kappa[-1], p / 6, rtol=1e-5)
    for P, kappa in zip(r.P, r.kappa, strict=True):
        assert_allclose(kappa, P.item() / 6, rtol=1e-4)


def test_intercept_of_simulated_coloured_noise():
    plant = LinearPlant([[-1.0]], [[1.0]], [[1.0]])
    u = MultiSine(*plain.tones(np.random.default_rng(0), 1, 4, 0.5, 6))
    got = []
    for k in range(10):
        t = simulate(
            plant, None, u, OU(0.5, 0.5), np.array([1.0]), 0.1, 150, 400, seed=k
        )
        W = build_windows(t, T=0.1).without_e().average().drop(30)
        r = policy_iteration(W, [[1.0]], [[1.0]], "zero", intercept=True)
        got.append(r.kappa[-1] / r.P[-1].item())
    error = np.std(got, ddof=1) / np.sqrt(len(got))
    assert abs(np.mean(got) - 1 / 6) < 3 * error and error < 0.03


# 11. Population limit


@pytest.fixture(scope="module")
def limits():
    "Expected windows of the oscillators, library's and from the moment equations."
    A, B, D = plain.OSCILLATORS
    u = plain.tones(np.random.default_rng(2), 2, 8, 0.2, 8.0)
    x0 = np.array([1.0, -1, 0.5, 0])
    make = lambda d: expected_windows(
        LinearPlant(A, B, D), None, MultiSine(*u), d, x0, 0.1, 150
    ).without_e()  # fmt: skip
    exact = lambda tau: plain.expected(A, B, D, plain.sines(*u), x0, 0.1, 150, 0.5, tau)
    return {
        "ou": (make(OU(0.5, 0.5)), exact(0.5)),
        "white": (make(White(0.25)), exact(None)),
    }


def gain_error(r):
    return plain.distance(
        r.K[-1], plain.riccati(*plain.OSCILLATORS[:2], np.eye(4), np.eye(2))[0]
    )


@pytest.mark.parametrize(("kind", "spec"), [("ou", 0.0256), ("white", 0.0316)])
def test_averaging_ends_in_a_neighbourhood(limits, kind, spec):
    """The floor is that of the moment equations.

    The specification's 0.0256 and 0.0316 hold for an exploration and a start that it
    does not state; other draws of the same kind move them by a factor of two and more.
    """
    W, exact = limits[kind]
    r = policy_iteration(W, np.eye(4), np.eye(2), "zero")
    _, K, *_ = plain.learn(*exact, None, np.eye(4), np.eye(2), np.zeros((2, 4)), 15)
    best = plain.riccati(*plain.OSCILLATORS[:2], np.eye(4), np.eye(2))[0]
    assert_allclose(gain_error(r), plain.distance(K[-1], best), rtol=1e-3)
    assert spec / 2 < gain_error(r) < 2 * spec


@pytest.mark.parametrize(
    ("kind", "floor", "left"),
    [
        ("ou", 0.0256, {0: 5.1e-3, 10: 1.1e-4, 40: 1.4e-6}),
        ("white", 0.0316, {0: 2.2e-7, 10: 2.1e-7, 40: 7.7e-8}),
    ],
)
def test_golden_neighbourhood(kind, floor, left):
    """The floors of the specification, with the exploration and start of 11_moments.

    What the intercept leaves is stated for these; the specification, for its own, has
    2.9e-3, 1.6e-4, 1e-6 for coloured and 2.5e-7 for white noise.
    """
    u, x0 = exploration(2, 8, 0.2, 8, amplitude=1, seed=1), np.array([1, 0.5, -0.5, 0])
    d = OU(0.5, 0.5) if kind == "ou" else White(0.25)
    W = expected_windows(LinearPlant(*plain.OSCILLATORS), None, u, d, x0, 0.1, 150)
    W = W.without_e()
    r = policy_iteration(W, np.eye(4), np.eye(2), "zero")
    assert_allclose(gain_error(r), floor, rtol=0.05)
    for burn, want in left.items():
        V = W.drop(burn) if burn else W
        r = policy_iteration(V, np.eye(4), np.eye(2), "zero", intercept=True)
        assert_allclose(gain_error(r), want, rtol=0.05)


@pytest.mark.parametrize(
    ("kind", "burn", "bound"),
    [("white", 0, 2.5e-6), ("ou", 0, 2.9e-2), ("ou", 10, 1.6e-3), ("ou", 40, 1e-5)],
)
def test_intercept_removes_the_neighbourhood(limits, kind, burn, bound):
    W, exact = limits[kind]
    r = policy_iteration(W.drop(burn), np.eye(4), np.eye(2), "zero", intercept=True)
    assert gain_error(r) < bound
    if kind == "ou" and burn < 40:
        data = [d[burn:] for d in exact]
        T = np.full(150 - burn, 0.1)
        K = plain.learn(*data, None, np.eye(4), np.eye(2), np.zeros((2, 4)), 15, T)[1]
        best = plain.riccati(*plain.OSCILLATORS[:2], np.eye(4), np.eye(2))[0]
        assert_allclose(gain_error(r), plain.distance(K[-1], best), rtol=2e-2)
        assert gain_error(r) > bound / 60


def test_expected_windows_are_the_mean_of_episodes(limits):
    u = MultiSine(*plain.tones(np.random.default_rng(2), 2, 8, 0.2, 8.0))
    x0 = np.array([1.0, -1, 0.5, 0])
    plant = LinearPlant(*plain.OSCILLATORS)
    t = simulate(plant, None, u, OU(0.5, 0.5), x0, 0.1, 60, 1500, seed=3)
    W = build_windows(t, T=0.1).without_e()
    M = W.average()
    rows = W.delta.reshape(1500, 60, -1)
    error = rows.std(0) / np.sqrt(1500)
    z = (M.delta - limits["ou"][0].delta[:60]) / error
    assert np.sqrt(np.mean(z**2)) < 1.3 and np.abs(z).max() < 5.5


# Estimators


def test_estimators_in_the_order_of_the_specification():
    assert set(ESTIMATORS) >= {
        "single", "stacked", "averaged", "averaged+intercept", "measured",
        "certainty_equivalent",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:policy iteration stopped")
@pytest.mark.parametrize("kind", ["ou", "white"])
def test_estimators_reproduce_the_table(kind):
    "Medians of five seeds at 32 and 512 episodes: the shape of the table in 3.4."
    A, B, D = plain.OSCILLATORS
    best = plain.riccati(A, B, np.eye(4), np.eye(2))[0]
    u = MultiSine(*plain.tones(np.random.default_rng(2), 2, 8, 0.2, 8.0))
    d = OU(0.5, 0.5) if kind == "ou" else White(0.25)
    names = ("stacked", "averaged", "averaged+intercept", "certainty_equivalent")
    errors = {}
    for s in range(5):
        t = simulate(
            LinearPlant(A, B, D), None, u, d, np.zeros(4), 0.1, 150, 512, seed=s
        )
        W = build_windows(t, T=0.1)
        for name in names:
            for M in (32, 512):
                K = estimate(W, np.eye(4), np.eye(2), name, first=M)[0]
                gap = np.nan_to_num(plain.distance(K, best), nan=1.0)  # no gain
                errors.setdefault((name, M), []).append(gap)
    e = {k: np.median(v) for k, v in errors.items()}
    assert e["stacked", 512] > 0.6 * e["stacked", 32], "stacking does not average"
    assert e["averaged", 512] < 0.5 * e["stacked", 512]
    assert e["averaged+intercept", 512] < 0.5 * e["averaged+intercept", 32]
    assert e["averaged+intercept", 512] < e["averaged", 512]
    assert e["certainty_equivalent", 512] < e["averaged+intercept", 512]
    assert e["averaged", 32] < {"ou": 0.1, "white": 0.4}[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ou", "white"])
def test_two_thousand_episodes_reach_the_population_limit(kind):
    "Floor within 15 %, stacking worse in every seed, slope -1/2 with the intercept."
    A, B, D = plain.OSCILLATORS
    best = plain.riccati(A, B, np.eye(4), np.eye(2))[0]
    u = MultiSine(*plain.tones(np.random.default_rng(2), 2, 8, 0.2, 8.0))
    d = OU(0.5, 0.5) if kind == "ou" else White(0.25)
    plant, Q, R, sizes = (
        LinearPlant(A, B, D),
        np.eye(4),
        np.eye(2),
        (128, 512, 2048),
    )
    limit = expected_windows(plant, None, u, d, np.zeros(4), 0.1, 150)
    floor = plain.distance(estimate(limit, Q, R, "averaged")[0], best)
    with_T, averaged, stacked = [], [], []
    for s in range(20):
        t = simulate(plant, None, u, d, np.zeros(4), 0.1, 150, 2048, seed=s)
        W = build_windows(t, T=0.1)
        far = lambda name, M, W=W: np.nan_to_num(
            plain.distance(estimate(W, Q, R, name, first=M)[0], best), nan=1.0
        )  # fmt: skip
        with_T.append([far("averaged+intercept", M) for M in sizes])
        averaged.append(far("averaged", 2048))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stacked.append(far("stacked", 2048))
    assert abs(np.median(averaged) / floor - 1) < 0.15
    p = stats.wilcoxon(averaged, stacked, alternative="less").pvalue
    assert p < 1e-3
    slope = np.polyfit(np.log(sizes), np.log(with_T).T, 1)[0]
    half = stats.t.ppf(0.975, 19) * np.std(slope, ddof=1) / np.sqrt(20)
    low, high = np.mean(slope) - half, np.mean(slope) + half
    assert low < -0.35 and high > -0.65 and high < 0


def test_measured_estimator_is_exact_up_to_quadrature(episodes):
    K = estimate(episodes, np.eye(4), np.eye(2), "measured", first=8)[0]
    best = plain.riccati(*plain.OSCILLATORS[:2], np.eye(4), np.eye(2))[0]
    assert plain.distance(K, best) < 2e-2  # Simpson on rough e


def test_stacking_is_not_averaging(episodes):
    Q, R = np.eye(4), np.eye(2)
    stacked = estimate(episodes, Q, R, "stacked")[0]
    averaged = estimate(episodes, Q, R, "averaged")[0]
    W = episodes.without_e()
    want = policy_iteration(W.drop(10), Q, R, "zero").K[-1]
    bare = policy_iteration(W, Q, R, "zero").K[-1]
    assert min(plain.distance(stacked, want), plain.distance(stacked, bare)) < 1e-7
    assert plain.distance(stacked, averaged) > 0.01


@pytest.mark.filterwarnings("ignore:policy iteration stopped")
def test_first_episodes_only(episodes):
    Q, R = np.eye(4), np.eye(2)
    few = episodes.select(first=16)
    a = estimate(episodes, Q, R, "averaged", first=16)[0]
    b = estimate(few, Q, R, "averaged")[0]
    assert_allclose(a, b, rtol=1e-12)
    one = estimate(episodes, Q, R, "single")[0]
    assert_allclose(one, estimate(episodes, Q, R, "averaged", first=1)[0], rtol=1e-9)


def test_mean_of_means_is_the_mean(episodes):
    "Averages of 16 and of 48 episodes together are the average of 64."
    W = episodes.without_e()
    parts = W.rows(W.episode < 16).average(), W.rows(W.episode >= 16).average()
    both, whole = parts[0].append(parts[1]).average(), W.average()
    for name in ("delta", "G", "T", "dx", "iz"):
        assert_allclose(getattr(both, name), getattr(whole, name), atol=1e-12)
    assert (both.count == 64).all() and (whole.count == 64).all()
    mean = W.delta.reshape(64, 150, -1).mean(0)
    assert_allclose(whole.delta, mean, atol=1e-12)


def test_certainty_equivalence_identifies_the_plant(diesel):
    A, B, D = plain.DIESEL
    K, P, found = certainty_equivalent(diesel, DIESEL_Q, np.eye(2), use_e=True)
    assert plain.distance(K, plain.riccati(A, B, DIESEL_Q, np.eye(2))[0]) < 1e-8
    for got, want in zip(
        np.split(np.hstack(found), [6, 8], axis=1), (A, B, D), strict=True
    ):
        assert plain.distance(got, want) < 1e-8


def test_offline_lqr(diesel):
    model = OfflineLQR(DIESEL_Q, np.eye(2), estimator="measured")
    assert model.fit(diesel) is model
    K, P = plain.riccati(*plain.DIESEL[:2], DIESEL_Q, np.eye(2))
    assert plain.distance(model.K_, K) < 1e-9
    x = np.random.default_rng(0).normal(size=(5, 6))
    assert_allclose(model.predict(x), -x @ model.K_.T)
    assert_allclose(model.predict(x[0]), -model.K_ @ x[0])
    loop = model.to_control(LinearPlant(*plain.DIESEL))
    assert_allclose(loop.A, plain.DIESEL[0] - plain.DIESEL[1] @ model.K_)


def test_cost_rate_of_the_fitted_model():
    A, B, D = plain.OSCILLATORS
    u = MultiSine(*plain.tones(np.random.default_rng(2), 2, 8, 0.2, 8.0))
    W = expected_windows(
        LinearPlant(A, B, D),
        None,
        u,
        White(0.25),
        np.array([1.0, -1, 0.5, 0]),
        0.1,
        150,
    )
    model = OfflineLQR(np.eye(4), np.eye(2)).fit(W)
    P = plain.riccati(A, B, np.eye(4), np.eye(2))[1]
    assert_allclose(model.cost_rate_, 0.25 * (D.T @ P @ D).item(), rtol=1e-4)


# 13. Excitation; no stabilising gain


def arrays(model, Kb, u, e, x0, h, steps):
    "A recording through arrays."
    t = h * np.arange(steps + 1)
    return t, *plain.sampled(*model, Kb, u, e, x0, t)


def test_pure_feedback_is_never_exciting():
    A, B, D = plain.OSCILLATORS
    K = np.array([[0.5, 0.1, 0.3, 0], [0, 0.2, 0.1, 0.4]])
    none = np.zeros((2, 0)), np.zeros((2, 0)), np.zeros((2, 0))
    e = plain.tones(np.random.default_rng(0), 1, 12, 0.2, 8)
    t, x, u, d = arrays((A, B, D), K, none, e, np.ones(4), 0.01, 1500)
    assert_allclose(u, -x @ K.T)
    W = build_windows(Trajectories.from_arrays(t, x, u, d), T=0.1)
    with pytest.raises(RankConditionError) as error:
        policy_iteration(W, np.eye(4), np.eye(2), "zero", use_e=True)
    assert error.value.needed == 10 + 8 + 4 and error.value.rank <= 14
    assert len(error.value.singular_values)


def test_one_sinusoid_excites_three_directions():
    A, B, D = plain.OSCILLATORS
    w, h = 1.3, 0.01
    phasor = np.linalg.solve(1j * w * np.eye(4) - A, B @ np.array([1.0, 0.7]))
    t = h * np.arange(2001)
    wave = np.exp(1j * w * t)
    x, u = (wave[:, None] * phasor).real, (wave[:, None] * np.array([1, 0.7])).real
    W = build_windows(Trajectories.from_arrays(t, x, u), T=0.1, rule="simpson")
    with pytest.raises(RankConditionError) as error:
        policy_iteration(W, np.eye(4), np.eye(2), "zero")
    assert error.value.needed == 18 and error.value.rank <= 4


@pytest.fixture(scope="module")
def pendulum():
    "Short records of the unstable pendulum from several starts, without feedback."
    p, rng, W = systems.triple_inverted_pendulum(), np.random.default_rng(0), None
    for g in range(20):
        u = MultiSine(*plain.tones(rng, p.m, 20, 1, 40, 1.0))
        x0 = 0.2 * rng.normal(size=p.n)
        part = build_windows(simulate(p, None, u, None, x0, 0.02, 20, group=g))
        W = part if W is None else W.append(part)
    return p, W


def test_triple_pendulum_is_unstable_and_has_the_published_start():
    p = systems.triple_inverted_pendulum()
    assert p.n == 6 and abscissa(p.A) > 0
    K0 = signal.place_poles(p.A, p.B, -np.arange(1.0, 7)).gain_matrix
    assert abscissa(p.A - p.B @ K0) == pytest.approx(-1, abs=1e-6)


def test_value_iteration_replaces_a_stabilising_gain(pendulum):
    p, W = pendulum
    Q, R = np.eye(p.n), np.eye(p.m)
    K, P = plain.riccati(p.A, p.B, Q, R)
    start = value_iteration(W, Q, R)[0]
    assert abscissa(p.A - p.B @ start) < 0
    r = policy_iteration(W, Q, R, start)
    assert plain.distance(r.K[-1], K) < 1e-5
    s = policy_iteration(W, Q, R, "value_iteration")
    assert plain.distance(s.K[-1], K) < 1e-5


# 14. Recorded data


RECORDED = dict(u_cols=["thrust"], e_cols=["gust"], x_cols=["alpha", "pitch", "fin"])


@pytest.fixture(scope="module")
def tables():
    "The same F-16 flight sampled at several rates."
    import pandas as pd

    rng = np.random.default_rng(0)
    u, e = plain.tones(rng, 1, 10, 0.5, 12, 2.0), plain.tones(rng, 1, 6, 0.4, 9, 2.0)

    def make(h):
        steps = round(8.0 / h)
        t, x, us, es = arrays(
            plain.F16, np.zeros((1, 3)), u, e, [1.0, -1, 0.5], h, steps
        )
        cols = dict(zip(RECORDED["x_cols"], x.T, strict=True))
        return pd.DataFrame(dict(time=t, **cols, thrust=us[:, 0], gust=es[:, 0]))

    return make


def flight_error(frame, rule):
    traj = Trajectories.from_dataframe(frame, **RECORDED, time_col="time")
    assert list(traj.x_names) == RECORDED["x_cols"]
    W = build_windows(traj, T=0.1, rule=rule)
    r = policy_iteration(W, np.eye(3), np.eye(1), "zero", use_e=True)
    return plain.distance(
        r.K[-1], plain.riccati(*plain.F16[:2], np.eye(3), np.eye(1))[0]
    )


def test_recorded_flight(tables):
    assert flight_error(tables(1e-3), "simpson") < 1e-5


@pytest.mark.parametrize(("rule", "factor"), [("simpson", 8), ("trapezoid", 3)])
def test_order_of_the_quadrature(tables, rule, factor):
    coarse, fine = (flight_error(tables(h), rule) for h in (0.025, 0.0125))
    assert coarse / fine >= factor


def test_jittered_time_stamps(tables):
    "Samples every few milliseconds, at times that are known but irregular."
    import pandas as pd

    rng = np.random.default_rng(0)
    u, e = plain.tones(rng, 1, 10, 0.5, 12, 2.0), plain.tones(rng, 1, 6, 0.4, 9, 2.0)
    t = np.cumsum(rng.integers(3, 8, 1600)) / 1000.0
    t -= t[0]
    x, us, es = plain.sampled(*plain.F16, np.zeros((1, 3)), u, e, [1.0, -1, 0.5], t)
    cols = dict(zip(RECORDED["x_cols"], x.T, strict=True))
    frame = pd.DataFrame(dict(time=t, **cols, thrust=us[:, 0], gust=es[:, 0]))
    W = build_windows(
        Trajectories.from_dataframe(frame, **RECORDED, time_col="time"),
        length=21,
        rule="simpson",
    )
    assert W.T.std() > 1e-3, "windows by index have unequal lengths"
    r = policy_iteration(W, np.eye(3), np.eye(1), "zero", use_e=True)
    best = plain.riccati(*plain.F16[:2], np.eye(3), np.eye(1))[0]
    assert plain.distance(r.K[-1], best) < 1e-4


def test_files_are_round_trips(tmp_path, tables):
    traj = Trajectories.from_dataframe(tables(0.01), **RECORDED, time_col="time")
    traj.save_npz(tmp_path / "flight.npz")
    back = Trajectories.from_npz(tmp_path / "flight.npz")
    for a, b in zip(traj.blocks, back.blocks, strict=True):
        for name in ("t", "x", "u", "e"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert list(back.x_names) == RECORDED["x_cols"]
    W = build_windows(traj, T=0.1)
    W.save(tmp_path / "w.npz")
    V = WindowData.load(tmp_path / "w.npz")
    for name in ("delta", "G", "T", "dx", "iz", "group", "window", "episode"):
        np.testing.assert_array_equal(getattr(W, name), getattr(V, name))


# 15. Certificate


def unstable_gain():
    "A gain of the oscillators with one closed-loop pair at +0.05."
    A, B, _ = plain.OSCILLATORS
    poles = [0.05 + 1j, 0.05 - 1j, -0.8, -1.0]
    return signal.place_poles(A, B, poles).gain_matrix


def test_the_unstable_gain_is_unstable():
    A, B, _ = plain.OSCILLATORS
    assert abscissa(A - B @ unstable_gain()) == pytest.approx(0.05, abs=1e-8)


def test_certificate_of_a_hundred_noisy_recordings():
    A, B, D = plain.OSCILLATORS
    K, P = plain.riccati(A, B, np.eye(4), np.eye(2))
    bad = unstable_gain()
    # a favourable matrix for the bad gain: cost of the loop shifted into stability
    shifted = A - 0.06 * np.eye(4)
    tempting = plain.kleinman(shifted, B, np.eye(4), np.eye(2), bad, 1)[0][0]
    assert np.linalg.eigvalsh(tempting)[0] > 0
    u = MultiSine(*plain.tones(np.random.default_rng(2), 2, 8, 0.2, 8.0))
    good, fooled, plant = 0, 0, LinearPlant(A, B, D)
    for k in range(100):
        t = simulate(plant, None, u, White(0.25), np.zeros(4), 0.1, 100, 64, seed=k)
        W = build_windows(t, T=0.1).drop(10)
        c = lambda K, P, W=W, k=k: certificate(
            W, K, P, intercept=True, bootstrap=60, seed=k
        )  # fmt: skip
        good += bool(c(K, P).certified)
        fooled += sum(bool(c(bad, S).certified) for S in (P, tempting, None))
    assert fooled == 0
    assert good >= 95


def test_certificate_of_exact_data_is_the_lyapunov_derivative(diesel):
    A, B, D = plain.DIESEL
    K, P = plain.riccati(A, B, DIESEL_Q, np.eye(2))
    c = certificate(diesel, K, P, use_e=True, bootstrap=50)
    Ak = A - B @ K
    M = Ak.T @ P + P @ Ak
    assert_allclose(c.m_max, np.linalg.eigvalsh(M)[-1], atol=1e-6 * np.linalg.norm(M))
    assert_allclose(c.p_min, np.linalg.eigvalsh(P)[0], rtol=1e-9)
    stable = np.eye(6)
    full = plain.kleinman(A, B, stable, np.eye(2), K, 1)[0][0]
    assert certificate(diesel, K, full, use_e=True, bootstrap=50).certified
    assert not certificate(diesel, K, -full, use_e=True, bootstrap=50).certified


# Robust policy iteration


def test_injected_errors_give_errors_of_their_size():
    A, B, _ = plain.OSCILLATORS
    Q, R = np.eye(4), np.eye(2)
    K = plain.riccati(A, B, Q, R)[0]
    gap = []
    for size in (1e-2, 1e-3, 1e-4):
        out = perturbed_kleinman(
            A, B, Q, R, np.zeros((2, 4)), size, np.random.default_rng(0)
        )
        gap.append(plain.distance(np.array(out.K)[-1], K))
    assert_allclose(np.diff(np.log10(gap)), -1, atol=0.35)


def test_designed_exploration_excites():
    u = exploration(2, 12, 0.2, 8.0, 1.0, 0)
    w = np.abs(np.asarray(u.freqs)).ravel()
    assert len(np.unique(np.round(w, 9))) == 24, "inputs share a frequency"
    e = exploration(1, 6, 0.2, 8.0, 1.0, 1, avoid=u)
    assert not set(np.round(np.ravel(e.freqs), 9)) & set(np.round(w, 9))


# Batches of plants


@pytest.fixture(scope="module")
def batch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    A, B, D = (
        rng.normal(size=(5, 3, 3)) / 2, rng.normal(size=(5, 3, 2)),
        rng.normal(size=(5, 3, 1)),
    )  # fmt: skip
    for a in A:
        a -= (np.linalg.eigvals(a).real.max() + 0.4) * np.eye(3)
    return tuple(torch.as_tensor(v) for v in (A, B, D))


def test_batched_reference_is_the_single_one(batch):
    import torch

    from rlpapers.lqr import batched

    A, B, D = batch
    Q, R = torch.eye(3, dtype=A.dtype), torch.eye(2, dtype=A.dtype)
    out = batched.batched_kleinman(A, B, Q, R)
    P = batched.lyapunov(A, Q.expand(5, 3, 3))
    assert out.ok.all() and out.converged.all()
    for k in range(5):
        best, cost = plain.riccati(A[k].numpy(), B[k].numpy(), np.eye(3), np.eye(2))
        assert plain.distance(out.K[k], best) < 1e-10
        assert plain.distance(out.P[k], cost) < 1e-10
        free = plain.kleinman(
            A[k].numpy(), B[k].numpy(), np.eye(3), np.eye(2), np.zeros((2, 3)), 1
        )
        assert plain.distance(P[k], free[0][0]) < 1e-10
        loop = batched.abscissas(A[k : k + 1])[0]
        assert_allclose(loop, abscissa(A[k].numpy()), rtol=1e-9)


@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_batched_windows_and_iteration_are_the_single_ones(batch, gain):
    import torch

    from rlpapers.lqr import batched

    A, B, D = batch
    rng = np.random.default_rng(1)
    u, e = (MultiSine(*plain.tones(rng, k, 10, 0.3, 6.0)) for k in (2, 1))
    K = gain * torch.as_tensor(rng.normal(size=(5, 2, 3)))
    W = batched.batched_windows(
        A, B, D, u, e, np.ones(3), 0.1, 60, 8, K=K if gain else None, measured=True
    )
    Q, R = torch.eye(3, dtype=A.dtype), torch.eye(2, dtype=A.dtype)
    out = batched.batched_policy_iteration(W, Q, R)
    for k in range(5):
        plant = LinearPlant(*(v[k].numpy() for v in (A, B, D)))
        V = build_windows(
            simulate(plant, K[k].numpy() if gain else None, u, e, np.ones(3), 0.1, 60)
        )
        assert_allclose(W.delta[k], V.delta, atol=1e-9)
        assert_allclose(W.G[k], V.G, atol=1e-5)
        best = plain.riccati(plant.A, plant.B, np.eye(3), np.eye(2))[0]
        assert plain.distance(out.K[k], best) < 1e-4


@pytest.mark.parametrize("kind", ["ou", "white"])
def test_batched_noise_has_the_moments(kind):
    torch = pytest.importorskip("torch")
    from rlpapers.lqr import batched

    A, B, D = plain.OSCILLATORS
    u = plain.tones(np.random.default_rng(2), 2, 8, 0.2, 8.0)
    d, tau = (OU(0.5, 0.5), 0.5) if kind == "ou" else (White(0.25), None)
    batch = [torch.as_tensor(np.repeat(v[None], 4, 0)) for v in (A, B, D)]
    W = batched.batched_windows(
        *batch, MultiSine(*u), d, np.zeros(4), 0.1, 40, 8, episodes=4000
    )
    dxx, Ixx, Ixu = plain.expected(
        A, B, D, plain.sines(*u), np.zeros(4), 0.1, 40, 0.5, tau
    )
    got = W.G[..., :4, :4].numpy().reshape(4, 40, 16)
    spread = np.abs(got - got.mean(0)).max()
    assert 1e-6 < spread < 0.02
    assert np.abs(got.mean(0) - Ixx).max() < 2 * spread
    assert np.abs(W.G[..., :4, 4:].numpy().reshape(4, 40, 8).mean(0) - Ixu).max() < 0.02
