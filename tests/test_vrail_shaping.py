"Shaping wrappers, potentials, the bi-level map and VRAIL with continuous states."

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.vrail.bilevel import adam_fit, bilevel_map, inner_solve
from rlpapers.vrail.features import TaxiFeatures
from rlpapers.vrail.generic import (
    GenericConfig,
    GenericStudy,
    forward,
    init_networks,
    td_gradient,
    train_generic,
)
from rlpapers.vrail.pole import (
    LIMITS,
    cartpole,
    cartpole_block,
    cartpole_features,
    cartpole_step,
    controller_value,
)
from rlpapers.vrail.shaping import (
    PotentialShaping,
    VectorPotentialShaping,
    constant,
    oracle,
    project,
    random_potential,
)
from rlpapers.vrail.tabular import TabularMDP, from_gym, newest

TAXI = newest("Taxi")


def tilt(obs):
    "A potential of CartPole observations, one or many."
    obs = np.asarray(obs, float)
    return 1 - 10 * obs[..., 2] ** 2 + obs[..., 0]


@pytest.fixture(scope="module")
def taxi():
    return from_gym("Taxi")


# The wrapper


def bonus_of_episode(env, gamma, seed, policy=None):
    "Discounted sum of the bonus, first and last observation, length, terminated."
    obs, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    first, total, t = obs, 0.0, 0
    while True:
        a = int(policy[obs]) if policy is not None else env.action_space.sample()
        obs, r, terminated, truncated, info = env.step(a)
        total += gamma**t * (r - info["raw_reward"])
        t += 1
        if terminated or truncated:
            return total, first, obs, t, terminated


numbers = st.integers(0, 2**20)
options = st.tuples(
    st.sampled_from(["zero", "learned"]), st.sampled_from(["bootstrap", "terminal"])
)


@settings(max_examples=25, deadline=None)
@given(numbers, st.floats(0.5, 1.0), options, st.integers(3, 60))
def test_bonus_telescopes_in_taxi(seed, gamma, how, limit):
    phi = np.random.default_rng(seed).normal(0, 10, 500)
    terminal, truncation = how
    env = gym.make(TAXI, max_episode_steps=limit)
    env = PotentialShaping(env, phi, gamma, terminal, truncation)
    total, first, last, t, terminated = bonus_of_episode(env, gamma, seed)
    ended = terminated or truncation == "terminal"
    end = 0.0 if ended and terminal == "zero" else gamma**t * phi[last]
    assert total == pytest.approx(end - phi[first], abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(numbers, st.floats(0.5, 1.0), options, st.sampled_from([5, 500]))
def test_bonus_telescopes_in_cartpole(seed, gamma, how, limit):
    terminal, truncation = how
    env = gym.make("CartPole-v1", max_episode_steps=limit)
    env = PotentialShaping(env, tilt, gamma, terminal, truncation)
    total, first, last, t, terminated = bonus_of_episode(env, gamma, seed)
    ended = terminated or truncation == "terminal"
    end = 0.0 if ended and terminal == "zero" else gamma**t * tilt(last)
    assert total == pytest.approx(end - tilt(first), abs=1e-9)


def test_bonus_telescopes_over_a_delivery(taxi):
    q, _ = taxi.value_iteration(0.99)
    phi = np.random.default_rng(0).normal(size=500)
    env = PotentialShaping(gym.make(TAXI), phi, 0.99)
    total, first, _, _, terminated = bonus_of_episode(env, 0.99, 3, q.argmax(1))
    assert terminated and total == pytest.approx(-phi[first], abs=1e-9)


def test_wrapper_and_table_shape_alike(taxi):
    phi = np.random.default_rng(1).normal(size=500)
    for terminal in ("zero", "learned"):
        table = taxi.shaped(phi, 0.9, terminal).reward[:, :, 0]
        q, _ = taxi.value_iteration(0.99)
        env = PotentialShaping(gym.make(TAXI), phi, 0.9, terminal)
        for seed in range(5):
            s, _ = env.reset(seed=seed)
            terminated = truncated = False
            while not (terminated or truncated):
                a = int(q[s].argmax())
                want = table[s, a]
                s, r, terminated, truncated, _ = env.step(a)
                assert r == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("make", ["taxi", "cartpole"])
def test_gymnasium_checks_the_wrapper(make):
    if make == "taxi":
        env = PotentialShaping(gym.make(TAXI), np.linspace(-1, 1, 500))
    else:
        env = PotentialShaping(gym.make("CartPole-v1"), tilt, truncation="terminal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is a wrapper
        check_env(env, skip_render_check=True)


def test_wrapper_is_made_again_from_its_spec():
    env = PotentialShaping(gym.make(TAXI), np.arange(500.0), 0.9, "learned")
    again = gym.make(env.spec)
    while not isinstance(again, PotentialShaping):
        again = again.env
    assert (again.gamma, again.terminal, again.potential(7)) == (0.9, "learned", 7.0)


def test_wrapper_refuses():
    env = gym.make(TAXI)
    with pytest.raises(ValueError, match="gamma"):
        PotentialShaping(env, np.zeros(500), gamma=1.5)
    with pytest.raises(ValueError, match="'zero' or 'learned'"):
        PotentialShaping(env, np.zeros(500), terminal="one")
    with pytest.raises(ValueError, match="'bootstrap' or 'terminal'"):
        PotentialShaping(env, np.zeros(500), truncation="no")
    with pytest.raises(ValueError, match="shape"):
        PotentialShaping(env, np.zeros(499))
    with pytest.raises(ValueError, match="state 3 is not finite"):
        PotentialShaping(env, np.where(np.arange(500) == 3, np.nan, 0))
    with pytest.raises(TypeError, match="pass a function"):
        PotentialShaping(gym.make("CartPole-v1"), np.zeros(4))


@pytest.mark.peer
def test_stable_baselines3_takes_the_wrapper():
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_checker import check_env as sb3_check

    env = PotentialShaping(gym.make("CartPole-v1"), tilt)
    sb3_check(env, warn=False, skip_render_check=True)
    model = sb3.DQN("MlpPolicy", env, learning_starts=50, seed=0, device="cpu")
    model.learn(300)
    infos = model.get_env().step([0])[3]
    assert infos[0]["raw_reward"] == 1.0


# The vector wrapper


def singles(make, potential, actions, same_step, gamma, **how):
    "Shaped rewards of single environments on the same actions."
    out = np.zeros(actions.shape)
    for i in range(actions.shape[1]):
        env = PotentialShaping(make(), potential, gamma, **how)
        env.reset(seed=i)
        waiting = False
        for t, a in enumerate(actions[:, i]):
            if waiting:
                env.reset()
                waiting = False
                continue
            _, out[t, i], terminated, truncated, _ = env.step(a)
            if terminated or truncated:
                waiting = not same_step
                if same_step:
                    env.reset()
    return out


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("task", ["taxi", "cartpole"])
@pytest.mark.parametrize("truncation", ["bootstrap", "terminal"])
def test_vector_pays_what_singles_pay(mode, task, truncation):
    rng = np.random.default_rng(0)
    if task == "taxi":
        make = lambda: gym.make(TAXI, max_episode_steps=15)
        potential, n_actions = rng.normal(size=500), 6
    else:
        make = lambda: gym.make("CartPole-v1", max_episode_steps=25)
        potential, n_actions = tilt, 2
    actions = rng.integers(n_actions, size=(100, 3))
    same = mode == AutoresetMode.SAME_STEP
    want = singles(make, potential, actions, same, 0.9, truncation=truncation)
    env = SyncVectorEnv([make] * 3, autoreset_mode=mode)
    env = VectorPotentialShaping(env, potential, 0.9, truncation=truncation)
    env.reset(seed=[0, 1, 2])
    ends = 0
    for t, a in enumerate(actions):
        _, reward, terminated, truncated, info = env.step(a)
        np.testing.assert_allclose(reward, want[t], atol=1e-9)
        assert info["raw_reward"].shape == (3,)
        ends += (terminated | truncated).sum()
    assert ends >= 9


def test_vector_without_autoreset():
    make = lambda: gym.make("CartPole-v1", max_episode_steps=5)
    env = SyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.DISABLED)
    env = VectorPotentialShaping(env, tilt, 0.9)
    before, _ = env.reset(seed=[0, 1])
    for _ in range(12):
        obs, reward, terminated, truncated, info = env.step(np.array([0, 1]))
        after = np.where(terminated, 0, tilt(obs))
        np.testing.assert_allclose(
            reward - info["raw_reward"], 0.9 * after - tilt(before), atol=1e-9
        )
        over = terminated | truncated
        if over.any():
            obs, _ = env.reset(options={"reset_mask": over})
        before = obs


def test_vector_refuses_a_single_potential():
    env = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
    with pytest.raises(ValueError, match="2 finite potentials"):
        VectorPotentialShaping(env, lambda obs: 0.0).reset(seed=0)


def test_tabular_vector_env_is_shaped(taxi):
    vector = pytest.importorskip("rlpapers.vrail.vector")
    phi = oracle(taxi)
    env = VectorPotentialShaping(vector.TabularVectorEnv(taxi, 8, seed=0), phi)
    before, _ = env.reset(seed=0)
    before = np.array(before)
    rng = np.random.default_rng(0)
    for _ in range(20):
        obs, reward, terminated, truncated, info = env.step(rng.integers(6, size=8))
        assert not (terminated | truncated).any()
        want = 0.99 * phi[np.asarray(obs)] - phi[before]
        np.testing.assert_allclose(reward - info["raw_reward"], want, atol=1e-5)
        before = np.array(obs)


# Potentials


def test_oracle_leaves_nothing_to_learn(taxi):
    phi = oracle(taxi, 0.99)
    q, v = taxi.shaped(phi, 0.99).value_iteration(0.99)
    np.testing.assert_allclose(v, 0, atol=1e-10)
    start = taxi.init > 0
    assert phi[start].mean() == pytest.approx(6.327464, abs=5e-7)


def test_projection_is_numpys(taxi):
    x, v = TaxiFeatures().design(), oracle(taxi)
    got = project(TaxiFeatures(), v)
    want, _, rank, _ = np.linalg.lstsq(x, v, rcond=None)
    np.testing.assert_allclose(got.weight, want, atol=1e-9)
    assert got.rank == rank == 16
    assert np.abs(got.fitted).max() == pytest.approx(15.8907, abs=5e-5)


@settings(max_examples=25, deadline=None)
@given(numbers)
def test_weighted_projection_is_repetition_of_rows(seed):
    rng = np.random.default_rng(seed)
    x, y, k = rng.normal(size=(12, 3)), rng.normal(size=12), rng.integers(0, 4, 12)
    k[:4] = 1
    got = project(x, y, k)
    want = project(np.repeat(x, k, 0), np.repeat(y, k))
    np.testing.assert_allclose(got.weight, want.weight, atol=1e-8)
    assert got.r2 == pytest.approx(want.r2, abs=1e-8)


def test_bias_beside_one_hot_groups_warns(taxi):
    v, x = oracle(taxi), TaxiFeatures().design()
    with pytest.warns(UserWarning, match="gauge"):
        biased = project(np.c_[x, np.ones(500)], v)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = project(x, v)
    np.testing.assert_allclose(biased.fitted, plain.fitted, atol=1e-9)


def test_random_potential_has_the_spread_and_its_seed():
    f, like = TaxiFeatures(), np.random.default_rng(0).normal(0, 3, 500)
    a, b, c = (random_potential(f, like, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)
    assert a.std() == pytest.approx(like.std()) and a.mean() == pytest.approx(
        0, abs=1e-9
    )
    assert project(f, a).r2 == pytest.approx(1)
    assert random_potential(f, 2.0).std() == pytest.approx(2.0)


def test_constant_is_an_offset_of_the_reward(taxi):
    off = taxi.shaped(constant(500, 5.0), 0.9).reward - taxi.reward
    np.testing.assert_allclose(off[~taxi.done], -0.5)
    np.testing.assert_allclose(off[taxi.done], -5.0)


def test_project_refuses():
    x = np.eye(3)
    with pytest.raises(ValueError, match="need 3 values"):
        project(x, np.zeros(2))
    with pytest.raises(ValueError, match="weights must be"):
        project(x, np.zeros(3), [-1, 1, 1])
    with pytest.raises(ValueError, match="shape"):
        project(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="state 1 not finite"):
        project([[1.0], [np.nan]], np.zeros(2))


# The bi-level map (golden test 7)


def test_golden_oscillation(taxi):
    out = bilevel_map(taxi, TaxiFeatures(), cycles=3)
    peak = np.abs(out["phi"]).max(1)
    np.testing.assert_allclose(peak, [0, 15.8907, 0, 15.8907], atol=5e-5)
    np.testing.assert_allclose(out["phi"][1], out["projection"], atol=1e-9)
    np.testing.assert_allclose(out["phi"][3], out["projection"], atol=1e-9)


def test_golden_damping(taxi):
    out = bilevel_map(taxi, TaxiFeatures(), cycles=3, beta=0.5)
    for phi in out["phi"][1:]:
        np.testing.assert_allclose(phi, out["projection"] / 2, atol=1e-9)


def test_golden_unshaped(taxi):
    out = bilevel_map(taxi, TaxiFeatures(), cycles=3, target="unshaped")
    for phi in out["phi"][1:]:
        np.testing.assert_allclose(phi, out["projection"], atol=1e-9)


def random_mdp(rng, S, A, K):
    p = rng.random((S, A, K)) + 0.1
    return TabularMDP(
        next_state=rng.integers(S, size=(S, A, K)),
        prob=p / p.sum(-1, keepdims=True),
        reward=rng.normal(size=(S, A, K)),
        done=rng.random((S, A, K)) < 0.2,
        init=np.full(S, 1 / S),
    )


@settings(max_examples=20, deadline=None)
@given(numbers, st.integers(2, 9), st.integers(1, 3), st.floats(0.1, 1.0))
def test_map_is_its_closed_form(seed, S, K, beta):
    rng = np.random.default_rng(seed)
    mdp, x = random_mdp(rng, S, 2, K), rng.normal(size=(S, rng.integers(1, S + 1)))
    w = rng.random(S) + 0.1
    for target in ("shaped", "unshaped"):
        out = bilevel_map(mdp, x, 0.9, cycles=4, target=target, beta=beta, weights=w)
        keep, fixed = (1 - 2 * beta, 0.5) if target == "shaped" else (1 - beta, 1.0)
        goal = fixed * out["projection"]
        for k, phi in enumerate(out["phi"]):
            np.testing.assert_allclose(phi - goal, keep**k * -goal, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(numbers, st.integers(2, 9), st.integers(1, 3))
def test_inner_solve_is_the_identity(seed, S, K):
    rng = np.random.default_rng(seed)
    mdp, phi = random_mdp(rng, S, 3, K), rng.normal(0, 100, S)
    _, v = mdp.value_iteration(0.9)
    np.testing.assert_allclose(inner_solve(mdp, phi, 0.9), v - phi, atol=1e-8)


def test_adam_moves_no_weight_far(taxi):
    x = TaxiFeatures().design()
    theta = adam_fit(x.T @ x / 500, x.T @ (1e4 * np.ones(500)) / 500, np.zeros(19))
    assert np.abs(theta).max() <= 0.5 + 1e-6


def test_map_stops_when_it_diverges(taxi):
    design = TaxiFeatures().design("quadratic")
    out = bilevel_map(taxi, design, cycles=60, target="unshaped", sweeps=3)
    assert out["diverged"] and np.isnan(out["norm"][-1])
    assert not bilevel_map(taxi, design, cycles=2)["diverged"]


@pytest.mark.parametrize(
    ("given_", "match"),
    [
        ({"target": "x"}, "'shaped' or"),
        ({"solver": "x"}, "'exact' or"),
        ({"beta": 1.5}, "beta"),
        ({"cycles": 0}, "cycles"),
    ],
)
def test_map_refuses(taxi, given_, match):
    with pytest.raises(ValueError, match=match):
        bilevel_map(taxi, TaxiFeatures(), **given_)


# Continuous states

SHORT = GenericConfig(
    cycles=2, cycle_steps=150, learning_starts=64, eps_steps=200, dl_states=200
)


def same(a, i, b, j):
    "Whether seed i of a result is seed j of another, bit for bit."
    np.testing.assert_array_equal(a.returns[i], b.returns[j])
    np.testing.assert_array_equal(a.theta[i], b.theta[j])


def test_a_seed_is_the_same_in_any_company():
    env, f = cartpole, cartpole_features()
    together = train_generic(env, f, SHORT, [0, 1, 2, 3, 4])
    alone = train_generic(env, f, SHORT, [3])
    pair = train_generic(env, f, SHORT, [1, 0])
    same(together, 3, alone, 0)
    same(together, 1, pair, 0)
    same(together, 0, pair, 1)
    assert not np.array_equal(together.theta[0], together.theta[1])


@settings(max_examples=15, deadline=None)
@given(numbers, st.integers(1, 4), st.integers(1, 8))
def test_gradient_is_autograds(seed, n, batch):
    g = torch.Generator().manual_seed(seed)
    net = init_networks(range(n), (3, 8, 2))
    net = [p.double().requires_grad_() for p in net]
    x = torch.randn(n, batch, 3, generator=g, dtype=torch.float64)
    y = torch.randn(n, batch, generator=g, dtype=torch.float64)
    a = torch.randint(2, (n, batch), generator=g)
    q = forward(net, x)[2].gather(2, a[:, :, None])[:, :, 0]
    ((q - y) ** 2).mean(1).sum().backward()
    ours = td_gradient([p.detach() for p in net], x, a, y)
    for got, p in zip(ours, net, strict=True):
        torch.testing.assert_close(got, p.grad)


def study(**kw):
    config = GenericConfig(**{**SHORT.__dict__, **kw})
    return GenericStudy(cartpole, cartpole_features(), config, [0, 1])


@pytest.mark.parametrize("terminal", ["zero", "learned"])
@pytest.mark.parametrize("estimator", ["linear", "quadratic"])
def test_stored_bonus_is_the_formula(terminal, estimator):
    s = study(terminal_potential=terminal, estimator=estimator)
    s.run_cycle()
    f, r, n = cartpole_features(), s.replay, s.replay.size
    for i in range(2):

        def phi(obs, theta=s.theta[i]):
            x = np.asarray(f(obs), float)
            if estimator == "linear":
                return x @ theta
            return np.einsum("ni,ij,nj->n", x, theta.reshape(5, 5), x)

        after = phi(r.next_obs[i, :n])
        if terminal == "zero":
            after = after * (1 - r.done[i, :n])
        want = 0.99 * after - phi(r.obs[i, :n])
        np.testing.assert_allclose(r.bonus[i, :n], want, atol=1e-5)
    assert r.done[:, :n].sum() > 4


def test_without_shaping_there_is_no_bonus_but_a_fit():
    s = study(shaping="none")
    theta, _ = s.run_cycle()
    s.run_cycle()
    assert not s.replay.bonus.any() and np.abs(theta).min() >= 0 and theta.any()


def test_truncation_is_stored_as_the_agent_sees_it():
    make = lambda: gym.make("CartPole-v1", max_episode_steps=5)
    f = cartpole_features()
    for truncation, done in (("bootstrap", 0), ("terminal", 60)):
        config = GenericConfig(**{**SHORT.__dict__, "truncation": truncation})
        s = GenericStudy(make, f, config, [0, 1])
        s.run_cycle()
        assert s.replay.done.sum() == done


def test_quadratic_weights_are_symmetric():
    r = train_generic(cartpole, cartpole_features(), SHORT, [0])
    W = r.theta.reshape(2, 5, 5)
    np.testing.assert_allclose(W, W.mT, atol=1e-8)
    pair = r.weight("angle", "rate")
    np.testing.assert_allclose(pair, W[None, :, 2, 3] + W[None, :, 3, 2])


def test_a_diverged_seed_is_marked_and_the_others_go_on():
    s = study(cycle_steps=30)
    s.run_cycle()
    s.net[0][0] *= 1e30
    theta, loss = s.run_cycle()
    assert np.isnan(theta[0]).all() and np.isnan(loss[0])
    assert np.isfinite(theta[1]).all() and s.alive.tolist() == [False, True]
    theta, _ = s.run_cycle()
    assert np.isnan(theta[0]).all() and np.isfinite(theta[1]).all()


def test_generic_refuses():
    with pytest.raises(TypeError, match="vectors"):
        train_generic(lambda: gym.make(TAXI), cartpole_features(), SHORT, [0])
    with pytest.raises(TypeError, match="Discrete"):
        train_generic(lambda: gym.make("Pendulum-v1"), lambda o: o, SHORT, [0])
    with pytest.raises(ValueError, match="at least one seed"):
        train_generic(cartpole, cartpole_features(), SHORT, [])
    with pytest.raises(ValueError, match="cycles must be"):
        GenericConfig(cycles=0)


# CartPole


@settings(max_examples=20, deadline=None)
@given(numbers)
def test_physics_are_gymnasiums(seed):
    rng = np.random.default_rng(seed)
    states = rng.uniform(-1, 1, (5, 4)) * np.array(LIMITS)
    actions, env = rng.integers(2, size=5), gym.make("CartPole-v1").unwrapped
    for state, action, got in zip(
        states, actions, cartpole_step(states, actions), strict=True
    ):
        env.reset(seed=0)
        env.state = tuple(state)
        want = env.step(int(action))[0]
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_value_of_the_controller_is_bellmans():
    rng = np.random.default_rng(0)
    s = rng.uniform(-1, 1, (300, 4)) * np.array(LIMITS)
    gains = np.array([0.3, 0.6, 8.0, 1.7])
    after = cartpole_step(s, s @ gains > 0)
    limits = np.array(LIMITS)
    stands = (np.abs(after) <= limits)[:, [0, 2]].all(1)
    want = 1 + 0.99 * stands * controller_value(after, steps=999)
    np.testing.assert_allclose(controller_value(s), want, atol=1e-6)


def test_blocks_join():
    whole = cartpole_block(SHORT, [0, 1, 2])
    parts = [cartpole_block(SHORT, seeds) for seeds in ([0], [1, 2])]
    for k, v in whole.items():
        np.testing.assert_array_equal(v, np.concatenate([p[k] for p in parts]))
