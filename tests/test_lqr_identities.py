"Identities of lqr: integrals, regression rows, invariances, exact discretisation."

import dataclasses

import lqr_plain as plain
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import linalg

from rlpapers.lqr import algebra
from rlpapers.lqr.diffusion import van_loan
from rlpapers.lqr.iteration import policy_iteration
from rlpapers.lqr.moments import expected_windows
from rlpapers.lqr.rank import rank_report
from rlpapers.lqr.records import Trajectories
from rlpapers.lqr.reference import care, cost_matrix, cost_rate, kleinman
from rlpapers.lqr.regression import assemble
from rlpapers.lqr.signals import OU, MultiSine, Pulse, Step, White, Zero
from rlpapers.lqr.simulation import simulate
from rlpapers.lqr.systems import LinearPlant
from rlpapers.lqr.windows import build_windows

few = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


def plant(rng, n, m, q):
    "Random matrices with a stable A."
    A = rng.normal(size=(n, n)) / np.sqrt(n)
    A -= (np.linalg.eigvals(A).real.max() + 0.5) * np.eye(n)
    return A, rng.normal(size=(n, m)), rng.normal(size=(n, q))


def symmetric(rng, n):
    P = rng.normal(size=(n, n))
    return P + P.T


def definite(rng, n):
    L = rng.normal(size=(n, n))
    return L @ L.T + 0.5 * np.eye(n)


def case(seed, n, m, q, T=0.1, l=None, count=None):
    "Plant, exploration, disturbance, start and the windows of the simulator."
    rng = np.random.default_rng([seed, n, m, q])
    A, B, D = plant(rng, n, m, q)
    unknowns = n * (n + 1) // 2 + n * (m + q)
    count = count or unknowns // 2 + 3
    u, e = (plain.tones(rng, k, count, 0.3, 20.0, 2.0) for k in (m, q))
    Kb = 0.1 * rng.normal(size=(m, n))
    x0 = rng.normal(size=n)
    l = l or 2 * unknowns + 10
    W = build_windows(
        simulate(
            LinearPlant(A, B, D), Kb, MultiSine(*u), MultiSine(*e), x0, T, l, nodes=12
        )
    )
    return rng, A, B, D, Kb, u, e, x0, W


# Vectors of symmetric matrices


@few
@given(seed=seeds, n=st.integers(1, 6))
def test_svec_phi_and_fold_are_one_convention(seed, n):
    rng = np.random.default_rng(seed)
    P, x, G = symmetric(rng, n), rng.normal(size=n), rng.normal(size=(n, n))
    upper = [P[i, j] for i in range(n) for j in range(i, n)]
    assert_allclose(algebra.svec(P), upper)
    assert_allclose(algebra.smat(algebra.svec(P)), P)
    assert_allclose(algebra.phi(x), plain.basis(x))
    assert_allclose(algebra.phi(x) @ algebra.svec(P), x @ P @ x, atol=1e-12)
    assert_allclose(algebra.fold(G) @ algebra.svec(P), np.sum(G * P), atol=1e-12)


# Simulator and windows against an ODE solver


def disturbance(kind, rng, q):
    "A signal of the library and the same as a function of time."
    if kind == "sines":
        e = plain.tones(rng, q, 3, 0.5, 9.0)
        return MultiSine(*e), plain.sines(*e)
    amp = rng.normal(size=q)
    if kind == "pulse":
        return Pulse(amp, 0.4, 3.0), lambda t: amp * np.exp(-0.4 * t) * np.sin(3.0 * t)
    if kind == "step":
        return Step(amp, 0.0), lambda t: amp
    return Zero(q), lambda t: np.zeros(q)


@pytest.mark.parametrize("kind", ["sines", "pulse", "step", "zero"])
@pytest.mark.parametrize(("n", "m", "q"), [(1, 1, 1), (3, 2, 1), (2, 1, 3)])
def test_windows_are_the_integrals(kind, n, m, q):
    rng = np.random.default_rng([n, m, q])
    A, B, D = plant(rng, n, m, q)
    u = plain.tones(rng, m, 4, 0.5, 12.0)
    signal, e = disturbance(kind, rng, q)
    v, Kb, x0 = plain.sines(*u), 0.2 * rng.normal(size=(m, n)), rng.normal(size=n)
    T, l = 0.15, 12
    X, G, Z = plain.record(A, B, D, lambda t, x: v(t) - Kb @ x, e, x0, T, l)
    traj = simulate(LinearPlant(A, B, D), Kb, MultiSine(*u), signal, x0, T, l, nodes=8)
    W = build_windows(traj)
    p = n + m if kind == "zero" and W.G.shape[1] == n + m else n + m + q
    assert_allclose(W.T, T, rtol=1e-12)
    assert_allclose(W.dx, np.diff(X, axis=0), atol=1e-9)
    assert_allclose(W.G, G[:, :p, :p], atol=1e-9)
    assert_allclose(W.iz, Z[:, :p], atol=1e-9)
    ends = np.array([plain.basis(x) for x in X])
    assert_allclose(W.delta, np.diff(ends, axis=0), atol=1e-8)


def test_unstable_plant_is_simulated_exactly():
    A, B, D = np.array([[0.0, 1], [2, 0.5]]), np.array([[0.0], [1]]), np.eye(2)[:, :1]
    u, e = (plain.tones(np.random.default_rng(i), 1, 3, 1, 5) for i in (0, 1))
    v, d, x0 = plain.sines(*u), plain.sines(*e), np.array([0.1, 0.0])
    X, G, _ = plain.record(A, B, D, lambda t, x: v(t), d, x0, 0.1, 20)
    traj = simulate(
        LinearPlant(A, B, D), None, MultiSine(*u), MultiSine(*e), x0, 0.1, 20
    )
    W = build_windows(traj)
    assert_allclose(W.dx, np.diff(X, axis=0), rtol=1e-8, atol=1e-9)
    assert_allclose(W.G, G, rtol=1e-8, atol=1e-9)


# 5. Row identities


@few
@given(seed=seeds, n=st.integers(1, 4), m=st.integers(1, 3), q=st.integers(1, 3))
def test_row_identity_for_any_symmetric_matrix(seed, n, m, q):
    rng, A, B, D, *_, W = case(seed, n, m, q, l=8, count=4)
    P = symmetric(rng, n)
    xx, ux, ex = W.G[:, :n, :n], W.G[:, n : n + m, :n], W.G[:, n + m :, :n]
    left = W.delta @ algebra.svec(P)
    right = (
        np.sum(xx * (A.T @ P + P @ A), (1, 2))
        + 2 * np.sum(ux * (B.T @ P), (1, 2))
        + 2 * np.sum(ex * (D.T @ P), (1, 2))
    )
    scale = np.abs(W.delta).max() * np.abs(P).max() + np.abs(W.G).max()
    assert_allclose(left, right, atol=1e-11 * max(scale, 1))


@few
@given(
    seed=seeds, n=st.integers(1, 4), m=st.integers(1, 3), q=st.integers(1, 3),
    intercept=st.booleans(),
)  # fmt: skip
def test_regression_rows_for_any_gain_and_matrix(seed, n, m, q, intercept):
    "Theta times (P, R^-1 B'P, D'P, kappa) is the derivative of x'Px along u = -Kx."
    rng, A, B, D, *_, W = case(seed, n, m, q, l=8, count=4)
    P, K, Q, R = (
        symmetric(rng, n),
        rng.normal(size=(m, n)),
        definite(rng, n),
        definite(rng, m),
    )
    Theta, xi = assemble(W, Q, R, K, use_e=True, intercept=intercept)[:2]
    up, F = np.linalg.solve(R, B.T @ P), D.T @ P
    theta = np.concatenate([algebra.svec(P), up.ravel("F"), F.ravel("F")])
    kappa = 0.7
    if intercept:
        theta = np.append(theta, kappa)
    Ak = A - B @ K
    xx = W.G[:, :n, :n]
    want = np.sum(xx * (Ak.T @ P + P @ Ak), (1, 2)) - (kappa * W.T if intercept else 0)
    scale = max(1.0, np.abs(Theta).max() * np.abs(theta).max())
    assert Theta.shape == (8, len(theta))
    assert_allclose(Theta @ theta, want, atol=1e-11 * scale)
    assert_allclose(xi, -np.sum(xx * (Q + K.T @ R @ K), (1, 2)), rtol=1e-12)


def test_regression_rows_equal_the_kronecker_form():
    rng, A, B, D, Kb, u, e, x0, W = case(3, 3, 2, 1, l=6, count=4)
    v = plain.sines(*u)
    X, G, _ = plain.record(
        A, B, D, lambda t, x: v(t) - Kb @ x, plain.sines(*e), x0, 0.1, 6
    )
    dxx, Ixx, Ixu, Ixe = plain.kron_data(X, G, 3, 2)
    K, Q, R = rng.normal(size=(2, 3)), definite(rng, 3), definite(rng, 2)
    Theta, xi = assemble(W, Q, R, K, use_e=True, intercept=False)[:2]
    eye = np.eye(3)
    gain = -2 * Ixx @ np.kron(eye, K.T @ R) - 2 * Ixu @ np.kron(eye, R)
    assert_allclose(Theta[:, 6:12], gain, atol=1e-9)
    assert_allclose(Theta[:, 12:], -2 * Ixe, atol=1e-9)
    i, j = np.triu_indices(3)
    full = dxx.reshape(-1, 3, 3)
    assert_allclose(Theta[:, :6], np.where(i == j, 1, 2) * full[:, i, j], atol=1e-9)
    assert_allclose(xi, -Ixx @ (Q + K.T @ R @ K).ravel("F"), atol=1e-8)


# 6. The disturbance block


@few
@given(seed=seeds, n=st.integers(1, 3), m=st.integers(1, 3), q=st.integers(1, 3))
def test_data_driven_iterates_are_kleinmans(seed, n, m, q):
    rng, A, B, D, *_, W = case(seed, n, m, q)
    Q, R, K0 = definite(rng, n), definite(rng, m), np.zeros((m, n))
    Ps, Ks = plain.kleinman(A, B, Q, R, K0, 5)
    r = policy_iteration(W, Q, R, K0, use_e=True)
    assume(r.cond.max() < 1e8)  # else too close to unexcited for a sharp comparison
    assert r.converged
    k = min(5, len(r.P))
    tol = 1e-14 * r.cond.max() * 100 + 1e-9
    for got, want in ((r.P[:k], Ps[:k]), (r.K[1 : k + 1], Ks[1 : k + 1])):
        for a, b in zip(got, want, strict=True):
            assert plain.distance(a, b) < tol
    for F, P in zip(r.F[:k], Ps[:k], strict=True):
        assert np.linalg.norm(F - D.T @ P) < tol * max(1, np.linalg.norm(D.T @ P))


def test_zero_disturbance_is_reported_and_dropped():
    rng = np.random.default_rng(0)
    n, m, q = 3, 2, 1
    A, B, D = plant(rng, n, m, q)
    u = plain.tones(rng, m, 12, 0.3, 15.0)
    x0 = rng.normal(size=n)
    traj = simulate(LinearPlant(A, B, D), None, MultiSine(*u), Zero(), x0, 0.1, 60)
    b = traj.blocks[0]
    e = np.zeros((*b.x.shape[:2], q))
    silent = dataclasses.replace(traj, blocks=[dataclasses.replace(b, e=e)])
    W = build_windows(silent)
    N = n * (n + 1) // 2 + m * n + q * n
    report = rank_report(W, use_e=True)
    assert (report.rank, report.needed) == (N - q * n, N)
    assert not report.excited
    Q, R = np.eye(n), np.eye(m)
    with pytest.warns(UserWarning, match=r"(?i)constant|zero|dropped"):
        r = policy_iteration(W, Q, R, "zero", use_e=True)
    bare = policy_iteration(W.without_e(), Q, R, "zero")
    assert_allclose(r.K[-1], bare.K[-1], rtol=1e-12, atol=1e-12)
    assert plain.distance(r.K[-1], plain.riccati(A, B, Q, R)[0]) < 1e-9


# 7. Monotone and quadratic


@pytest.mark.parametrize("data", [True, False], ids=["data", "model"])
def test_iterates_fall_and_converge_quadratically(data):
    A, B, D = plain.F16
    A = A + 0.9 * np.eye(3) * np.array([1, 1, 0])  # unstable, so that iterations count
    Q, R, K0 = np.eye(3), np.eye(1), np.zeros((1, 3))
    best = linalg.solve_continuous_are(A, B, Q, R)
    K0 = np.linalg.solve(R, B.T @ linalg.solve_continuous_are(A, B, 400 * Q, R))
    if data:
        u, e = (
            plain.tones(np.random.default_rng(i), 1, 10, 0.5, 15, 3) for i in (0, 1)
        )
        W = build_windows(
            simulate(
                LinearPlant(A, B, D),
                K0,
                MultiSine(*u),
                MultiSine(*e),
                np.ones(3),
                0.1,
                80,
            )
        )
        P = policy_iteration(W, Q, R, K0, use_e=True).P
    else:
        P = np.array(kleinman(A, B, Q, R, K0, 1e-12, 20).P)
    assert len(P) >= 5
    for a, b in zip(P[:-1], P[1:], strict=True):
        assert np.linalg.eigvalsh(a - b)[0] >= -1e-9 * np.linalg.norm(a)
    gap = np.array([np.linalg.norm(p - best) for p in P])
    gap = gap[gap > 1e-7 * np.linalg.norm(best)]
    c = gap[1:] / gap[:-1] ** 2
    assert len(c) >= 3
    assert c[-3:].max() < 3 * c[-3:].min()


# 9. Invariances


def moved(traj, S=None, time=1.0):
    "The same recording in other coordinates and another unit of time."
    S = np.eye(traj.blocks[0].x.shape[-1]) if S is None else S
    out = []
    for b in traj.blocks:
        w = None if b.weights is None else b.weights * time
        out.append(dataclasses.replace(b, x=b.x @ S.T, t=b.t * time, weights=w))
    return dataclasses.replace(traj, blocks=out)


@pytest.fixture(scope="module")
def recording():
    rng = np.random.default_rng(5)
    A, B, D = plant(rng, 3, 2, 1)
    u, e = (plain.tones(rng, k, 14, 0.3, 18.0, 2.0) for k in (2, 1))
    x0, Q, R = rng.normal(size=3), definite(rng, 3), definite(rng, 2)
    traj = simulate(
        LinearPlant(A, B, D), None, MultiSine(*u), MultiSine(*e), x0, 0.1, 90
    )
    return (
        traj,
        Q,
        R,
        policy_iteration(build_windows(traj), Q, R, "zero", use_e=True),
        (A, B),
    )


def test_learned_gain_is_optimal(recording):
    _, Q, R, r, (A, B) = recording
    K, P = plain.riccati(A, B, Q, R)
    assert plain.distance(r.K[-1], K) < 1e-9
    assert plain.distance(r.P[-1], P) < 1e-9


def test_other_coordinates(recording):
    traj, Q, R, r, _ = recording
    S = np.array([[2.0, 0.3, 0], [-0.5, 1, 0.2], [0, 0.7, 0.5]])
    V = np.linalg.inv(S)
    W = build_windows(moved(traj, S))
    q = V.T @ Q @ V
    other = policy_iteration(W, (q + q.T) / 2, R, "zero", use_e=True)
    assert plain.distance(other.K[-1], r.K[-1] @ V) < 1e-8
    assert plain.distance(other.P[-1], V.T @ r.P[-1] @ V) < 1e-8


@few
@given(c=st.floats(1e-6, 1e6))
def test_scaled_weights_leave_the_gain(recording, c):
    traj, Q, R, r, _ = recording
    other = policy_iteration(build_windows(traj), c * Q, c * R, "zero", use_e=True)
    assert plain.distance(other.K[-1], r.K[-1]) < 1e-8
    assert plain.distance(other.P[-1], c * r.P[-1]) < 1e-8


def test_other_unit_of_time(recording):
    "In milliseconds the cost matrix is a thousand times as large, the gain the same."
    traj, Q, R, r, _ = recording
    W = build_windows(moved(traj, time=1000.0))
    other = policy_iteration(W, Q, R, "zero", use_e=True)
    assert plain.distance(other.K[-1], r.K[-1]) < 1e-8
    assert plain.distance(other.P[-1], 1000 * r.P[-1]) < 1e-8


@pytest.mark.parametrize("solver", ["direct", "compressed", "operator"])
def test_order_of_windows_does_not_matter(recording, solver):
    traj, Q, R, r, _ = recording
    W = build_windows(traj)
    order = np.random.default_rng(0).permutation(len(W))
    other = policy_iteration(W.permute(order), Q, R, "zero", use_e=True, solver=solver)
    assert plain.distance(other.K[-1], r.K[-1]) < 1e-8


# Model-based reference


@few
@given(seed=seeds, n=st.integers(1, 5), m=st.integers(1, 3))
def test_reference_functions_against_scipy(seed, n, m):
    rng = np.random.default_rng(seed)
    A, B, D = plant(rng, n, m, 1)
    Q, R = definite(rng, n), definite(rng, m)
    K, P = care(A, B, Q, R)
    K2, P2 = plain.riccati(A, B, Q, R)
    assert plain.distance(K, K2) < 1e-9 and plain.distance(P, P2) < 1e-9
    Kx = np.zeros((m, n))
    Ps, Ks = plain.kleinman(A, B, Q, R, Kx, 4)
    assert plain.distance(cost_matrix(A, B, Q, R, Kx), Ps[0]) < 1e-9
    mine = kleinman(A, B, Q, R, Kx, 1e-13, 30)
    assert plain.distance(np.array(mine.P[:4]), Ps[: len(mine.P[:4])]) < 1e-9
    assert plain.distance(mine.K[1], Ks[1]) < 1e-9
    rate = cost_rate(P, D, np.array([[2.0]]))
    assert_allclose(rate, 2 * (D.T @ P @ D).item(), rtol=1e-12)


def test_care_methods_agree():
    pytest.importorskip("slycot")
    rng = np.random.default_rng(0)
    A, B, _ = plant(rng, 40, 5, 1)
    one, two = (
        care(A, B, np.eye(40), np.eye(5), method=m) for m in ("scipy", "slycot")
    )
    assert plain.distance(one[1], two[1]) < 1e-11


# 12. Exact discretisation


@few
@given(seed=seeds, n=st.integers(1, 4), q=st.integers(1, 2), h=st.floats(1e-3, 1.0))
def test_van_loan_is_the_integral(seed, n, q, h):
    rng = np.random.default_rng(seed)
    A, _, D = plant(rng, n, 1, q)
    S = definite(rng, q)
    Phi, cov = van_loan(A, D, S, h)[:2]
    nodes, weights = np.polynomial.legendre.leggauss(40)
    want = np.zeros((n, n))
    for s, w in zip((nodes + 1) * h / 2, weights * h / 2, strict=True):
        E = linalg.expm(A * s) @ D
        want += w * E @ S @ E.T
    assert_allclose(Phi, linalg.expm(A * h), atol=1e-12)
    assert_allclose(cov, want, atol=1e-12 * max(1, np.abs(want).max()))


def test_ou_keeps_its_variance():
    tau, sigma, h = 0.5, 0.7, 0.0125
    one = np.eye(1)
    Phi, cov = van_loan(-one / tau, one, 2 * sigma**2 / tau * one, h)[:2]
    assert_allclose(Phi**2 * sigma**2 + cov, sigma**2, rtol=1e-12)


@pytest.fixture(scope="module")
def noisy():
    A, B, D = plain.OSCILLATORS
    run = lambda d: simulate(
        LinearPlant(A, B, D),
        None,
        None,
        d,
        np.zeros(4),
        0.25,
        120,
        3000,
        substeps=2,
        seed=1,
    )
    return run(White(0.25)), run(OU(0.5, 0.5))


def gaussian_error(S, M):
    "Standard errors of a sample covariance of M Gaussian vectors."
    return np.sqrt((np.outer(np.diag(S), np.diag(S)) + S**2) / M)


def test_white_noise_fills_the_lyapunov_covariance(noisy):
    A, _, D = plain.OSCILLATORS
    x = noisy[0].blocks[0].x[:, -1]
    want = linalg.solve_continuous_lyapunov(A, -0.25 * D @ D.T)
    want = want - linalg.expm(30 * A) @ want @ linalg.expm(30 * A).T
    z = (x.T @ x / len(x) - want) / gaussian_error(want, len(x))
    assert np.abs(z).max() < 3


def test_coloured_noise_fills_the_joint_covariance(noisy):
    A, _, D = plain.OSCILLATORS
    F = np.block([[A, D], [np.zeros((1, 4)), -2 * np.eye(1)]])
    N = np.zeros((5, 5))
    N[4, 4] = 2 * 0.25 / 0.5
    want = linalg.solve_continuous_lyapunov(F, -N)
    b = noisy[1].blocks[0]
    z = np.concatenate([b.x[:, -1], b.e[:, -1]], 1)
    got = z.T @ z / len(z)
    assert np.abs((got - want) / gaussian_error(want, len(z))).max() < 3.5
    first = b.e[:, 0, 0].var()
    assert abs(first - 0.25) < 3 * 0.25 * np.sqrt(2 / len(z))


def test_episodes_are_the_same_however_many_there_are():
    A, B, D = plain.OSCILLATORS
    u = MultiSine(*plain.tones(np.random.default_rng(0), 2, 3, 0.5, 5))
    for d in (White(0.25), OU(0.5, 0.5)):
        make = lambda M, s, d=d: simulate(
            LinearPlant(A, B, D), None, u, d, np.ones(4), 0.1, 6, M, seed=s
        ).blocks[0].x  # fmt: skip
        many, one, other = make(9, 3), make(2, 3), make(2, 4)
        np.testing.assert_array_equal(many[:2], one)
        assert np.abs(one - other).max() > 1e-3
        assert np.abs(many[0] - many[1]).max() > 1e-3


def test_unbroken_mean_of_episodes_is_the_noiseless_path():
    A, B, D = plain.OSCILLATORS
    u = plain.tones(np.random.default_rng(0), 2, 3, 0.5, 5)
    x0 = np.array([1.0, -1, 0.5, 0])
    t = simulate(
        LinearPlant(A, B, D),
        None,
        MultiSine(*u),
        White(0.25),
        x0,
        0.1,
        40,
        4000,
        seed=2,
    )
    X, *_ = plain.record(
        A, B, D, lambda s, x: plain.sines(*u)(s), lambda s: np.zeros(1), x0, 0.1, 40
    )
    x = t.blocks[0].x[:, -1]
    z = (x.mean(0) - X[-1]) / (x.std(0) / np.sqrt(len(x)))
    assert np.abs(z).max() < 3.5


def test_backends_draw_the_same_noise():
    pytest.importorskip("torch")
    A, B, D = plain.OSCILLATORS
    u = MultiSine(*plain.tones(np.random.default_rng(0), 2, 3, 0.5, 5))
    for d in (White(0.25), OU(0.5, 0.5)):
        a, b = (
            simulate(
                LinearPlant(A, B, D), None, u, d, np.ones(4), 0.1, 20, 5, seed=3, **put
            ).blocks[0]
            for put in (dict(stream="counter"), dict(backend="torch"))
        )
        assert_allclose(b.x, a.x, atol=1e-10)


def test_counter_noise_is_normal_and_white():
    "The stream for GPUs: mean, variance and correlation of a pure random walk."
    walk = LinearPlant([[0.0]], [[1.0]], [[1.0]])
    x = simulate(
        walk, None, None, White(4.0), [0.0], 0.5, 50, 4000, seed=1, stream="counter"
    ).blocks[0].x[:, :, 0]  # fmt: skip
    z = np.diff(x) / np.sqrt(4.0 * 0.5 / 8)
    N = z.size
    assert abs(z.mean()) < 4 / np.sqrt(N) and abs(z.var() - 1) < 4 * np.sqrt(2 / N)
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < 4 / np.sqrt(N)
    assert abs((z[1:] * z[:-1]).mean()) < 4 / np.sqrt(N)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / N)


def test_plants_travel_through_control():
    pytest.importorskip("control")
    A, B, D = plain.DIESEL
    there = LinearPlant(A, B, D, e_names=["load"]).to_control()
    back = LinearPlant.from_control(there, disturbances=1)
    for got, want in zip((back.A, back.B, back.D), (A, B, D), strict=True):
        assert_allclose(got, want)
    assert list(back.e_names) == ["load"]
    K = np.ones((2, 6))
    loop = LinearPlant(A, B, D).closed_loop(K)
    assert_allclose(loop.A, A - B @ K)
    assert_allclose(loop.B, D)


# 11. Expected windows against the moment equations


@pytest.mark.parametrize("tau", [None, 0.5], ids=["white", "ou"])
@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_expected_windows_solve_the_moment_equations(tau, gain):
    A, B, D = plain.OSCILLATORS
    u = plain.tones(np.random.default_rng(2), 2, 8, 0.2, 8.0)
    x0 = np.array([1.0, -1, 0.5, 0])
    Kb = gain * np.random.default_rng(0).normal(size=(2, 4))
    d = White(0.25) if tau is None else OU(tau, 0.5)
    W = expected_windows(LinearPlant(A, B, D), Kb, MultiSine(*u), d, x0, 0.1, 30)
    v = plain.sines(*u)
    dxx, Ixx, Ixv = plain.expected(A - B @ Kb, B, D, v, x0, 0.1, 30, 0.5, tau)
    Ixx, Ixv = Ixx.reshape(-1, 4, 4), Ixv.reshape(-1, 4, 2)
    i, j = np.triu_indices(4)
    want = np.where(i == j, 1, 2) * dxx.reshape(-1, 4, 4)[:, i, j]
    assert_allclose(W.delta, want, atol=1e-10)
    # what remains is the error of Simpson's rule at 12.5 ms
    assert_allclose(W.G[:, :4, :4], Ixx, atol=1e-6)
    assert_allclose(W.G[:, :4, 4:6], Ixv - Ixx @ Kb.T, atol=1e-6)


def test_state_and_coloured_noise_become_correlated():
    "C_xe = d sigma^2 / (1/tau - a) = 1/12 for a = -1, sigma = tau = 1/2."
    plant = LinearPlant([[-1.0]], [[1.0]], [[1.0]])
    W = expected_windows(plant, None, None, OU(0.5, 0.5), np.zeros(1), 0.1, 150)
    if W.q:
        assert_allclose(W.G[-1, 0, 2] / 0.1, 1 / 12, rtol=1e-9)
        assert_allclose(W.G[:, 2, 2] / 0.1, 0.25, rtol=1e-9)
        assert abs(W.G[0, 0, 2]) < 0.4 * W.G[-1, 0, 2], "not correlated at the start"


def test_recorded_arrays_are_the_simulators_samples():
    "The same noisy recording through from_arrays gives the same windows."
    A, B, D = plain.OSCILLATORS
    u = MultiSine(*plain.tones(np.random.default_rng(0), 2, 3, 0.5, 5))
    traj = simulate(
        LinearPlant(A, B, D), None, u, OU(0.5, 0.5), np.ones(4), 0.1, 10, 3, seed=2
    )
    b = traj.blocks[0]
    U = np.broadcast_to(b.u, (3, *b.u.shape[1:]))
    mine = build_windows(traj, T=0.1)
    theirs = build_windows(Trajectories.from_arrays(b.t, b.x, U, b.e), T=0.1)
    for name in ("delta", "G", "T", "dx", "iz"):
        assert_allclose(
            getattr(theirs, name), getattr(mine, name), rtol=1e-9, atol=1e-11
        )
