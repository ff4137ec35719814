"Golden numbers, exact theorems and sampled frequencies of vrail's tables."

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from scipy import stats

from rlpapers.vrail.attribution import anova, linear, pairwise, shapley
from rlpapers.vrail.features import GridFeatures, TaxiFeatures
from rlpapers.vrail.tabular import TabularMDP
from rlpapers.vrail.vector import TabularVectorEnv, env_speed

BACKENDS = ["numpy", "torch", pytest.param("numba", id="numba")]


@pytest.fixture(scope="module")
def taxi():
    return TabularMDP.from_gym("Taxi")


@pytest.fixture(scope="module")
def optimum(taxi):
    return taxi.value_iteration(0.99)


@pytest.fixture(scope="module")
def x():
    return TaxiFeatures("onehot19")


def greedy(q):
    return q >= q.max(1, keepdims=True) - 1e-9


def project(features, kind, values, states):
    design = features.design(kind, states)
    w = np.linalg.lstsq(design, values[states], rcond=None)[0]
    rest = ((values[states] - design @ w) ** 2).sum()
    return w, 1 - rest / ((values[states] - values[states].mean()) ** 2).sum()


# 1. the table is Gymnasium's


def test_taxi_table(taxi):
    assert taxi.next_state.sum() == 748_500
    assert taxi.reward.sum() == -11_628
    assert taxi.done.sum() == 4
    assert (taxi.init > 0).sum() == 300
    assert taxi.reachable().sum() == 404
    P = gym.make(taxi.info["env_id"]).unwrapped.P
    for s in range(500):
        for a in range(6):
            got = (
                t[s, a, 0] for t in (taxi.prob, taxi.next_state, taxi.reward, taxi.done)
            )
            assert [tuple(got)] == P[s][a]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ten_thousand_steps_equal_gymnasium(taxi, backend):
    env = TabularVectorEnv(taxi, 1, backend=backend, action_mask=True)
    peer = gym.make(taxi.info["env_id"])
    state, info = peer.reset(seed=0)
    obs, mine = env.reset(options={"state": state})
    over, rng = False, np.random.default_rng(0)
    for _ in range(10_000 if backend == "numpy" else 2_000):
        assert int(obs[0]) == state
        assert np.array_equal(np.asarray(mine["action_mask"][0]), info["action_mask"])
        if over:  # NEXT_STEP: the action is ignored and a start state comes back
            obs, reward, term, trunc, mine = env.step(np.array([0]))
            peer.reset()
            state = peer.unwrapped.s = int(obs[0])
            info = {"action_mask": peer.unwrapped.action_mask(state)}
            assert taxi.init[state] > 0 and reward[0] == 0 and not (term[0] or trunc[0])
            over = False
            continue
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        obs, reward, term, trunc, mine = env.step(np.array([action]))
        state, r, d, t, info = peer.step(action)
        assert (float(reward[0]), bool(term[0]), bool(trunc[0])) == (r, d, t)
        over = d or t


# 2. optimal values


def test_optimal_values(taxi):
    start = taxi.init > 0
    _, v = taxi.value_iteration(1.0)
    assert v[start].mean() == pytest.approx(7.93, abs=1e-9)
    assert (v[start].min(), v[start].max()) == (3, 15)
    length = 21 - v[start]  # every step costs 1, the last one pays 20
    assert length.mean() == pytest.approx(13.07, abs=1e-9) and length.max() == 18
    for gamma, want in [(0.99, 6.327464), (0.98, 4.928001)]:
        got = taxi.value_iteration(gamma)[1][start].mean()
        assert got == pytest.approx(want, abs=5e-7)


# 3, 4. potential-based shaping


def test_shaping_shifts_the_optimum_by_the_potential(taxi, optimum):
    q, v = optimum
    for seed in range(3):
        phi = np.random.default_rng(seed).normal(0, 10, 500)
        shaped, _ = taxi.shaped(phi, 0.99).value_iteration(0.99)
        np.testing.assert_allclose(shaped, q - phi[:, None], rtol=0, atol=1e-12)
        assert np.array_equal(greedy(shaped), greedy(q))
    shaped, value = taxi.shaped(v, 0.99).value_iteration(0.99)
    np.testing.assert_allclose(value, 0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(shaped[greedy(q)], 0, rtol=0, atol=1e-12)


def test_terminal_potential_changes_the_optimum(taxi, optimum):
    phi = np.where(taxi.terminal, -1000.0, 0.0)
    q, _ = taxi.shaped(phi, 0.99, terminal="learned").value_iteration(0.99)
    live = taxi.reachable() & ~taxi.terminal
    ends = taxi.done[..., 0]
    assert not (ends & greedy(q))[live].any()
    assert (ends & greedy(optimum[0]))[live].sum() == 4


# 5, 6, 13. what the features can say


def test_ranks_and_gauge(taxi, x):
    for states in (slice(None), taxi.reachable()):
        assert (x.rank("linear", states), x.rank("quadratic", states)) == (16, 100)
    w = np.random.default_rng(0).normal(size=19)
    moved = w.copy()
    moved[x.groups["row"]] += 3
    moved[x.groups["col"]] -= 3
    np.testing.assert_allclose(x.table @ moved, x.table @ w, atol=1e-12)
    one, two = (linear(v, x, "sum_to_zero") for v in (w, moved))
    np.testing.assert_allclose(one.main, two.main, atol=1e-12)
    np.testing.assert_allclose(one.mean, two.mean, atol=1e-12)


def test_gauge_of_pairs_is_unique_on_every_null_direction(x):
    design = x.design("quadratic")
    null = np.linalg.svd(design)[2][100:]
    W = np.random.default_rng(0).normal(size=(19, 19))
    stack = np.concatenate([W[None], W + 5 * null.reshape(-1, 19, 19)])
    a = pairwise(stack, x, "sum_to_zero")
    np.testing.assert_allclose(a.main, a.main[:1].repeat(262, 0), atol=1e-9)
    np.testing.assert_allclose(a.pair, a.pair[:1].repeat(262, 0), atol=1e-9)
    for g in x.groups.values():  # sums to zero in each group and over both margins
        np.testing.assert_allclose(a.main[:, g].sum(1), 0, atol=1e-9)
        np.testing.assert_allclose(a.pair[:, g].sum(1), 0, atol=1e-9)


def test_projection_of_the_optimal_values(taxi, optimum, x):
    seen = taxi.reachable()
    w, r2 = project(x, "linear", optimum[1], seen)
    assert r2 == pytest.approx(0.6074, abs=5e-5)
    assert project(x, "quadratic", optimum[1], seen)[1] == pytest.approx(
        0.9301, abs=5e-5
    )
    assert x.names[w.argmax()] == "P:T" and w.max() == pytest.approx(8.43, abs=5e-3)
    assert linear(w, x).contrasts()[14] == pytest.approx(8.146, abs=5e-4)


@pytest.mark.parametrize(
    "env, rows, cols", [("CliffWalking", 4, 12), ("FrozenLake8x8-v1", 8, 8)]
)
def test_quadratic_grid_features_represent_everything(env, rows, cols):
    mdp = TabularMDP.from_gym(env)
    features = GridFeatures(rows, cols)
    assert features.rank("quadratic") == rows * cols == mdp.n_states
    _, v = mdp.value_iteration(0.99)
    assert project(features, "quadratic", v, slice(None))[1] == pytest.approx(1)


# 11. shaping telescopes


@pytest.mark.parametrize("terminal", ["zero", "learned"])
def test_shaping_telescopes(taxi, terminal):
    rng, gamma = np.random.default_rng(1), 0.97
    phi = rng.normal(0, 10, 500)
    bonus = taxi.shaped(phi, gamma, terminal).reward - taxi.reward
    ended = 0
    for s0 in np.flatnonzero(taxi.init)[::3]:
        s, total, T, done = s0, 0.0, 0, False
        while T < 300 and not done:
            a = rng.choice(np.flatnonzero(taxi.action_mask[s]))
            total += gamma**T * bonus[s, a, 0]
            s, done, T = taxi.next_state[s, a, 0], taxi.done[s, a, 0], T + 1
        last = 0.0 if done and terminal == "zero" else phi[s]
        assert total == pytest.approx(gamma**T * last - phi[s0], abs=1e-9)
        ended += done
    assert ended  # both kinds of end were tested


# 14. sampled frequencies


def chi_square(mdp, backend, draws=1_000_000, n=5000):
    "p-value of the sampled next states of all (state, action) pairs, and the draws."
    S, A = mdp.n_states, mdp.n_actions
    rng, count = np.random.default_rng(0), np.zeros((S, A, S))
    env = TabularVectorEnv(mdp, n, seed=5, backend=backend, autoreset_mode="SAME_STEP")
    obs, _ = env.reset()
    for _ in range(draws // n):
        before, act = np.asarray(obs), rng.integers(0, A, n)
        obs, _, term, trunc, info = env.step(act)
        after = np.array(info.get("final_obs", obs))
        np.add.at(count, (before, act, after), 1)
        if rng.random() < 0.2:  # start anywhere, so that every pair is visited
            obs, _ = env.reset(options={"state": rng.integers(0, S, n)})
    p = np.zeros((S, A, S))
    s, a = np.indices((S, A))
    np.add.at(p, (s[..., None], a[..., None], mdp.next_state), mdp.prob)
    expected = p * count.sum(-1, keepdims=True)
    assert not count[p == 0].any()
    rows = ((expected >= 5) | (p == 0)).all(-1) & ((p > 0).sum(-1) > 1)
    gap = (count - expected)[rows] ** 2 / np.where(p[rows] > 0, expected[rows], 1)
    freedom = ((p[rows] > 0).sum(-1) - 1).sum()
    return stats.chi2.sf(gap.sum(), freedom), count.sum(), rows.sum()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: TabularMDP.from_gym("FrozenLake8x8-v1", is_slippery=True),
        lambda: TabularMDP.from_gym("Taxi", is_rainy=True),
    ],
    ids=["lake", "rainy taxi"],
)
def test_sampled_transitions(make, backend):
    mdp = make()
    assert mdp.n_outcomes > 1
    np.testing.assert_allclose(mdp.prob.sum(-1), 1, atol=1e-12)
    p, draws, rows = chi_square(mdp, backend)
    assert draws == 1_000_000 and rows > 100
    assert p > 1e-3


def test_start_states_follow_the_start_distribution(taxi):
    env = TabularVectorEnv(taxi, 30_000, seed=2)
    count = np.zeros(500)
    for _ in range(10):
        np.add.at(count, env.reset()[0], 1)
    assert not count[taxi.init == 0].any()
    assert stats.chisquare(count[taxi.init > 0]).pvalue > 1e-3


# 15. attributions add up


def test_anova_adds_up(taxi, optimum, x):
    _, v = optimum
    a = anova(v, x)
    for s in range(0, 500, 7):
        assert sum(a.at(s).values()) == pytest.approx(v[s], abs=1e-10)
    assert sum(a.variance().values()) == pytest.approx(1)
    for u, e in a.effects.items():
        for axis in range(len(u)):
            np.testing.assert_allclose(e.sum(axis), 0, atol=1e-9)
    quadratic = project(x, "quadratic", v, slice(None))[0].reshape(19, 19)
    one = pairwise(quadratic, x, "sum_to_zero")
    two = a.attribution()  # a projection on a product keeps the low orders
    np.testing.assert_allclose(one.main, two.main, atol=1e-9)
    np.testing.assert_allclose(one.pair, two.pair, atol=1e-9)


def test_shapley_adds_up(taxi, x):
    rng = np.random.default_rng(0)
    w, W = rng.normal(size=19), rng.normal(size=(19, 19))
    z = x.table.astype(float)
    back = z[taxi.init > 0]
    phi = shapley(w, z, back)
    np.testing.assert_allclose(phi, w * (z - back.mean(0)), atol=1e-12)
    np.testing.assert_allclose(phi.sum(1), z @ w - (back @ w).mean(), atol=1e-9)
    value = np.einsum("ni,ij,nj->n", z, W, z)
    for groups in (None, x):
        total = shapley(W, z, back, groups).sum(1)
        np.testing.assert_allclose(
            total, value - value[taxi.init > 0].mean(), atol=1e-9
        )


@pytest.mark.peer
def test_shapley_equals_shap(taxi, x):
    shap = pytest.importorskip("shap")
    W = np.random.default_rng(0).normal(size=(9, 9))
    z = GridFeatures(4, 5).table.astype(float)
    f = lambda v: np.einsum("ni,ij,nj->n", v, W, v)
    explainer = shap.explainers.Exact(f, shap.maskers.Independent(z, max_samples=20))
    np.testing.assert_allclose(shapley(W, z, z), explainer(z).values, atol=1e-8)


# the vector environment against Gymnasium's own


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_vector_environment_equals_gymnasiums(taxi, backend, mode):
    n = 6
    mode = gym.vector.AutoresetMode(mode)
    peer = gym.make_vec(
        taxi.info["env_id"],
        n,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
    )
    env = TabularVectorEnv(
        taxi, n, backend=backend, autoreset_mode=mode, action_mask=True
    )
    theirs, info = peer.reset(seed=0)
    ours, _ = env.reset(options={"state": theirs})
    assert env.observation_space == peer.observation_space
    assert env.action_space == peer.action_space
    was, rng, cut = np.zeros(n, bool), np.random.default_rng(0), 0
    for _ in range(450):
        act = [rng.choice(np.flatnonzero(m)) for m in info["action_mask"]]
        ours, reward, term, trunc, mine = env.step(np.array(act))
        theirs, *rest, info = peer.step(np.array(act))
        for a, b in zip((reward, term, trunc), rest, strict=True):
            assert np.array_equal(np.asarray(a), b)
        ended = rest[1] | rest[2]
        fresh = was if mode.value == "NextStep" else ended
        assert np.array_equal(np.asarray(ours)[~fresh], theirs[~fresh])
        if mode.value == "SameStep" and ended.any():
            assert np.array_equal(np.asarray(mine["_final_obs"]), info["_final_obs"])
            final = np.asarray(mine["final_obs"])
            assert final[ended].tolist() == info["final_obs"][ended].tolist()
            last = np.asarray(mine["final_info"]["action_mask"])
            assert np.array_equal(last[ended], info["final_info"]["action_mask"][ended])
        for i in np.flatnonzero(fresh):  # start states come from other streams
            peer.envs[i].unwrapped.s = int(ours[i])
        info["action_mask"] = np.asarray(mine["action_mask"])
        was, cut = ended, cut + rest[2].sum()
    assert cut >= n


def test_life_of_an_environment_does_not_depend_on_the_others(taxi):
    acts = np.random.default_rng(0).integers(0, 6, (250, 64))
    runs = []
    for n, backend in [(64, "numpy"), (7, "numpy"), (64, "numba"), (3, "torch")]:
        env = TabularVectorEnv(taxi, n, seed=9, backend=backend)
        out = [env.reset()[0], *(env.step(a[:n])[0] for a in acts)]
        runs.append(np.stack([np.asarray(o)[:3] for o in out]))
    for run in runs[1:]:
        assert np.array_equal(run, runs[0])
    other = TabularVectorEnv(taxi, 64, seed=10).reset()[0]
    assert (other[:-1] != runs[0][0][0]).any()


def test_neighbouring_seeds_share_no_environment(taxi):
    "Gymnasium seeds environment i with seed + i, so that seeds overlap; ours do not."
    first, second = (TabularVectorEnv(taxi, 500, seed=s).reset()[0] for s in (0, 1))
    assert (first[1:] == second[:-1]).mean() < 0.05


def test_wrappers_work(taxi):
    env = RecordEpisodeStatistics(TabularVectorEnv(taxi, 4))
    env.reset(seed=0)
    for _ in range(200):
        *_, infos = env.step(env.action_space.sample())
    assert infos["episode"]["l"].max() == 200


def test_returned_arrays_are_the_callers(taxi):
    for backend in ("numpy", "numba", "torch"):
        a, b = (TabularVectorEnv(taxi, 4, backend=backend) for _ in range(2))
        one, two = a.reset(seed=0)[0], b.reset(seed=0)[0]
        one[:] = 0
        for _ in range(3):
            one, two = a.step(np.ones(4, int))[0], b.step(np.ones(4, int))[0]
            assert one.tolist() == two.tolist()
            one[:] = 0


@pytest.mark.peer
def test_speed_against_peers():
    speed = env_speed()
    assert speed["numpy"] / speed["gymnasium"] >= 300
    if speed["envpool"]:
        assert speed["numpy"] / speed["envpool"] >= 30
