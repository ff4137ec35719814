"""Reference computations for the tests of lqr, written from the formulas alone.

A tight ODE solver, explicit Kronecker products, `pinv`, and matrices typed from their
sources. Nothing here imports rlpapers, so that an error of the library cannot hide in
its own reference."""

import numpy as np
from scipy import integrate, linalg

F16 = (
    np.array(
        [[-1.01887, 0.90506, -0.00215], [0.82225, -1.07741, -0.17555], [0, 0, -1]]
    ),
    np.array([[0.0], [0], [1]]),
    np.array([[1.0], [0], [0]]),
)
DIESEL = (
    np.array(
        [
            [-0.4125, -0.0248, 0.0741, 0.0089, 0, 0],
            [101.5873, -7.2651, 2.7608, 2.8068, 0, 0],
            [0.0704, 0.0085, -0.0741, -0.0089, 0, 0.02],
            [0.0878, 0.2672, 0, -0.3674, 0.0044, 0.3962],
            [-1.8414, 0.099, 0, 0, -0.0343, -0.033],
            [0, 0, 0, -359, 187.5364, -87.0316],
        ]
    ),
    np.array(
        [
            [-0.0042, 0.0064],
            [-1.036, 1.5849],
            [0.0042, 0],
            [0.1261, 0],
            [0, -0.0168],
            [0, 0],
        ]
    ),
    np.array([[0.0], [1], [0], [0.5], [0], [0]]),
)
OSCILLATORS = (
    np.array([[0, 0, 1, 0], [0, 0, 0, 1], [-2, 1, -0.3, 0], [1, -2, 0, -0.3]]),
    np.array([[0.0, 0], [0, 0], [1, 0], [0, 1]]),
    np.array([[0.0], [0], [1], [0.5]]),
)


def riccati(A, B, Q, R):
    "Optimal gain and cost matrix."
    P = linalg.solve_continuous_are(A, B, Q, R)
    return np.linalg.solve(R, B.T @ P), P


def kleinman(A, B, Q, R, K, steps):
    "Cost matrices of the first gains of policy iteration, and the gains."
    Ps, Ks = [], [np.atleast_2d(K)]
    for _ in range(steps):
        K = Ks[-1]
        Ak = A - B @ K
        Ps.append(linalg.solve_continuous_lyapunov(Ak.T, -(Q + K.T @ R @ K)))
        Ks.append(np.linalg.solve(R, B.T @ Ps[-1]))
    return np.array(Ps), np.array(Ks)


def tones(rng, channels, count, low, high, amplitude=1.0):
    "Frequencies, amplitudes and phases of random sinusoids, each (channels, count)."
    w = rng.uniform(low, high, (channels, count))
    return w, np.full(w.shape, amplitude), rng.uniform(0, 2 * np.pi, w.shape)


def sines(w, a, p):
    "The sum of sinusoids as a function of time."
    return lambda t: (a * np.sin(w * t + p)).sum(-1)


def record(A, B, D, u, e, x0, T, l):
    "States at the window ends, integrals of zz' and z over windows, by an ODE solver."
    n, p = len(A), len(A) + B.shape[1] + D.shape[1]

    def rhs(t, y):
        x = y[:n]
        ut, et = u(t, x), e(t)
        z = np.concatenate([x, ut, et])
        return np.concatenate([A @ x + B @ ut + D @ et, z, np.outer(z, z).ravel()])

    y, X, G, Z = np.concatenate([x0, np.zeros(p + p * p)]), [np.array(x0)], [], []
    for i in range(l):
        y[n:] = 0
        s = integrate.solve_ivp(
            rhs, (i * T, (i + 1) * T), y, "DOP853", rtol=1e-12, atol=1e-13
        )
        y = s.y[:, -1].copy()
        X.append(y[:n].copy())
        Z.append(y[n : n + p].copy())
        G.append(y[n + p :].reshape(p, p).copy())
    return np.array(X), np.array(G), np.array(Z)


def basis(x):
    "Squares and doubled products, in the order of the upper triangle."
    n = len(x)
    return np.array(
        [x[i] * x[j] * (1 if i == j else 2) for i in range(n) for j in range(i, n)]
    )


def learn(dxx, Ixx, Ixu, Ixe, Q, R, K, steps, T=None):
    "Policy iteration from Kronecker data with pinv; T adds the intercept."
    n, m = len(Q), len(R)
    out = [], [K], [], []
    for _ in range(steps):
        cols = [dxx]
        cols.append(
            -2 * Ixx @ np.kron(np.eye(n), K.T @ R) - 2 * Ixu @ np.kron(np.eye(n), R)
        )
        if Ixe is not None:
            cols.append(-2 * Ixe)
        if T is not None:
            cols.append(-T[:, None])
        Qk = Q + K.T @ R @ K
        # scaled columns, small cut-off: what is dropped are the duplicates of dxx only
        theta = np.hstack(cols)
        scale = np.linalg.norm(theta, axis=0)
        sol = (
            np.linalg.pinv(theta / scale, rcond=1e-13) @ (-Ixx @ Qk.ravel("F")) / scale
        )
        K = sol[n * n : n * n + m * n].reshape(m, n, order="F")
        out[0].append(sol[: n * n].reshape(n, n, order="F"))
        out[1].append(K)
        rest = sol[n * n + m * n :]
        if Ixe is not None:
            q = Ixe.shape[1] // n
            out[2].append(rest[: q * n].reshape(q, n, order="F"))
        if T is not None:
            out[3].append(rest[-1])
    return tuple(np.array(o) for o in out)


def kron_data(X, G, n, m):
    "The Kronecker data of recorded windows."
    dxx = np.array(
        [np.kron(b, b) - np.kron(a, a) for a, b in zip(X[:-1], X[1:], strict=True)]
    )
    l = len(G)
    return (
        dxx,
        G[:, :n, :n].reshape(l, -1),
        G[:, :n, n : n + m].reshape(l, -1),
        G[:, :n, n + m :].reshape(l, -1),
    )


def expected(A, B, D, v, x0, T, l, sigma, tau=None):
    """Kronecker data of infinitely many episodes under u = v(t), from moment equations.

    White noise of intensity sigma^2 without tau, else Ornstein-Uhlenbeck of standard
    deviation sigma.
    """
    n, m = B.shape
    if tau is None:
        F, x0 = A, np.asarray(x0, float)
        N, S0, k = sigma**2 * D @ D.T, np.zeros((n, n)), n
        H = B
    else:
        k = n + 1
        F = np.block([[A, D], [np.zeros((1, n)), -np.eye(1) / tau]])
        N = np.zeros((k, k))
        N[-1, -1] = 2 * sigma**2 / tau
        S0 = np.zeros((k, k))
        S0[-1, -1] = sigma**2
        H, x0 = np.vstack([B, np.zeros((1, m))]), np.append(x0, 0.0)
    kk = k * k

    def rhs(t, y):
        mu, S, vt = y[:k], y[k : k + kk].reshape(k, k), v(t)
        xx = (S + np.outer(mu, mu))[:n, :n]
        dS = F @ S + S @ F.T + N
        return np.concatenate(
            [F @ mu + H @ vt, dS.ravel(), xx.ravel(), np.outer(mu[:n], vt).ravel()]
        )

    y = np.concatenate([x0, S0.ravel(), np.zeros(n * n + n * m)])
    second = lambda y: (y[k : k + kk].reshape(k, k) + np.outer(y[:k], y[:k]))[:n, :n]
    dxx, Ixx, Ixu = [], [], []
    for i in range(l):
        y[k + kk :] = 0
        before = second(y)
        s = integrate.solve_ivp(
            rhs, (i * T, (i + 1) * T), y, "DOP853", rtol=1e-12, atol=1e-13
        )
        y = s.y[:, -1].copy()
        dxx.append((second(y) - before).ravel())
        Ixx.append(y[k + kk : k + kk + n * n].copy())
        Ixu.append(y[k + kk + n * n :].copy())
    return np.array(dxx), np.array(Ixx), np.array(Ixu)


def distance(X, Y):
    "Relative distance of matrices."
    return np.linalg.norm(np.asarray(X) - Y) / np.linalg.norm(Y)


def sampled(A, B, D, Kb, u, e, x0, t):
    """States, inputs and disturbances at given times, u = -Kb x + sinusoids, exactly.

    u and e are (frequencies, amplitudes, phases); the sinusoids are states of a larger
    linear system.
    """
    n = len(A)
    w = np.concatenate([u[0].ravel(), e[0].ravel()])
    k = len(w)
    S = np.zeros((n + 2 * k, n + 2 * k))
    S[:n, :n] = A - B @ Kb
    s0 = np.concatenate([u[2].ravel(), e[2].ravel()])
    col = n
    for M, (W, a, _) in ((B, u), (D, e)):
        for c in range(W.shape[0]):
            for f in range(W.shape[1]):
                S[:n, col] = M[:, c] * a[c, f]
                col += 2
    for i in range(k):
        j = n + 2 * i  # (sin, cos)
        S[j, j + 1], S[j + 1, j] = w[i], -w[i]
    y = np.concatenate([x0, np.stack([np.sin(s0), np.cos(s0)], 1).ravel()])
    x, step = [y[:n]], {}
    for h in np.diff(t):
        key = round(h, 15)
        if key not in step:
            step[key] = linalg.expm(S * h)
        y = step[key] @ y
        x.append(y[:n])
    x = np.array(x)
    us = np.array([sines(*u)(s) for s in t]) - x @ Kb.T
    return x, us, np.array([sines(*e)(s) for s in t])
