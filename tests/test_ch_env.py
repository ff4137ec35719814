"Environments of community hiding: reward, ends, masks, and one step in many ways."

import gymnasium as gym
import networkx as nx
import numpy as np
import pytest

pytest.importorskip("numba")

from gymnasium.utils.env_checker import check_env

from rlpapers.communityhiding.adjacency import slotted
from rlpapers.communityhiding.angel import Angel
from rlpapers.communityhiding.backends import (
    CompiledBackend,
    SessionBackend,
    make_backend,
    node_features,
)
from rlpapers.communityhiding.covers import membership_similarity
from rlpapers.communityhiding.environments import (
    CommunityHidingEnv,
    hiding_reward,
)
from rlpapers.communityhiding.graphs import (
    BudgetError,
    DetectorError,
    TargetError,
    as_arrays,
    load_graph,
)
from rlpapers.communityhiding.tasks import HidingTask, make_tasks
from rlpapers.communityhiding.vectors import CommunityHidingVecEnv

ANGEL = Angel()


def tasks_of(name="kar", **more):
    return make_tasks(as_arrays(load_graph(name)), ANGEL, **more)


def legal_action(env, rng):
    at = np.argwhere(env.task.legal_mask)
    return at[rng.integers(len(at))]


def cliques(graph):
    return [c for c in nx.find_cliques(graph) if len(c) > 2]


@pytest.mark.parametrize("seed", range(6))
def test_reward_telescopes(seed):  # T10
    env = CommunityHidingEnv(tasks_of(beta=2), ANGEL, shaping=0.3)
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed)
    first, total, steps = info["similarity"], 0.0, 0
    while True:
        u = env.task.u
        near = [v for v in env.graph.neighbors(u) if v < env.task.n]
        pick = rng.random() < 0.5 and len(near)
        action = (0, rng.choice(near)) if pick else legal_action(env, rng)
        _, reward, done, cut, info = env.step(action)
        total, steps = total + reward, steps + 1
        assert not cut
        assert done == (info["hidden"] or steps == env.task.budget)
        if done:
            break
    s = info["similarity"]
    assert total == pytest.approx(0.3 * (first - s) + (s <= env.task.tau))


def test_reward_at_the_threshold():
    assert hiding_reward(1.0, 0.5, tau=0.5) == pytest.approx(1.05)
    assert hiding_reward(1.0, 0.5 + 1e-9, tau=0.5) == pytest.approx(0.05)
    assert hiding_reward(0.4, 0.9, tau=0.5, shaping=0.0) == 0


@pytest.mark.parametrize("k", [0, 1, 3])
def test_checker(k):  # T14
    for tasks in (tasks_of(k=k), tasks_of("lesm", k=k, budget=5, count=20)):
        check_env(CommunityHidingEnv(tasks, ANGEL), skip_render_check=True)


def test_same_seed_same_episode():
    runs = []
    for _ in range(2):
        env, rng = CommunityHidingEnv(tasks_of(beta=2), ANGEL), np.random.default_rng(0)
        obs, info = env.reset(seed=5)
        seen = [obs["features"], obs["edges"], info["task"], info["injection"]]
        for _ in range(3):
            obs, reward, *_ = env.step(legal_action(env, rng))
            seen += [obs["features"], reward]
        runs.append(seen)
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


VARIANTS = {
    "plain": {},
    "no proxies": {"k": 0},
    "protected": {"protect_ties": True, "budget": 6},
    "counted": {"count_proxies": True, "k": 6},
    "long": {"budget": 40, "k": 2},
    "strict": {"tau": 0.1},
}


def agree(single, many, steps, rng, wide):
    "Step both with the same actions and compare all they say."
    left, right = single.reset(seed=7), many.reset(seed=7)
    ended = 0
    for _ in range(steps):
        for key in left[0]:
            np.testing.assert_allclose(left[0][key], right[0][key], atol=1e-6)
        for key in ("similarity", "hidden", "illegal", "task", "injection"):
            np.testing.assert_allclose(left[-1][key], right[-1][key])
        if len(left) == 5:
            for a, b in zip(left[1:4], right[1:4], strict=True):
                np.testing.assert_allclose(a, b)
            ended += int(left[2].sum())
        K, N = wide
        actions = rng.integers([K, N], size=(many.num_envs, 2))
        actions[rng.random(many.num_envs) < 0.6, 0] = 0
        left, right = single.step(actions), many.step(actions)
    return ended


@pytest.mark.parametrize("name", VARIANTS)
def test_vector_equals_single(name):  # T14
    tasks, rng = tasks_of(**VARIANTS[name]), np.random.default_rng(1)
    make = lambda: CommunityHidingEnv(tasks, ANGEL, detector_seeds=(0, 4))
    mode = gym.vector.AutoresetMode.NEXT_STEP
    single = gym.vector.SyncVectorEnv([make] * 4, autoreset_mode=mode)
    many = CommunityHidingVecEnv(tasks, 4, ANGEL, detector_seeds=(0, 4))
    assert isinstance(many.backend, CompiledBackend)
    ended = agree(single, many, 45, rng, (tasks[0].k + 1, tasks[0].N))
    assert ended >= 3


def test_sessions_take_any_detector():
    named = nx.Graph((f"n{a}", f"n{b}") for a, b in load_graph("kar").edges)
    graph = as_arrays(named)
    tasks, rng = make_tasks(graph, cliques, k=2, count=9), np.random.default_rng(2)
    make = lambda: CommunityHidingEnv(tasks, cliques)
    single = gym.vector.SyncVectorEnv([make] * 3)
    many = CommunityHidingVecEnv(tasks, 3, cliques)
    assert isinstance(many.backend, SessionBackend)
    assert agree(single, many, 15, rng, (3, 36)) >= 3


@pytest.mark.parametrize("name", ["words", "lesm", "dol"])
def test_backends_agree(name):
    tasks = tasks_of(name, beta=3, count=30, seed=3)
    pair = [make(tasks, 24, ANGEL) for make in (SessionBackend, CompiledBackend)]
    rng = np.random.default_rng(0)
    which, seeds, more = (rng.integers(m, size=24) for m in (30, 3, 999))
    for backend in pair:
        backend.begin(np.arange(24), which, seeds, more)
    np.testing.assert_allclose(*(b.similarity for b in pair), atol=1e-12)
    for step in range(5):
        place = np.where(rng.random(24) < 0.7, 0, rng.integers(4, size=24))
        v = rng.integers(pair[0].N, size=24)
        u = pair[0].users[which]
        inside = [
            rng.choice(tasks[i].graph.neighbors(j))
            for i, j in zip(which, u, strict=True)
        ]
        v = np.where(rng.random(24) < 0.6, inside, v)
        active = pair[0].legal[np.arange(24), place, v]
        found = []
        for backend in pair:
            out = np.zeros((24, backend.N, 9), np.float32)
            s = backend.step(place, v, active).copy()
            backend.features(out, np.full(24, 0.25 * step))
            found.append((s, out))
        for a, b in zip(*found, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert (pair[0].similarity < 1).any()


def test_similarity_is_that_of_the_detector():
    tasks = tasks_of("words", beta=2, count=12)
    env, rng = CommunityHidingVecEnv(tasks, 6, ANGEL), np.random.default_rng(0)
    env.reset(seed=1)
    for _ in range(4):
        action = rng.integers([4, 115], size=(6, 2))
        action[:, 0] *= rng.random(6) < 0.3
        *_, info = env.step(action)
    for b in range(6):
        task = tasks[info["task"][b]]
        graph = env.backend.batch.arrays(b)
        found = ANGEL.with_seed(int(info["detector_seed"][b])).cover(graph).sets()
        s = membership_similarity(task.u, task.C, found, ignore=range(112, 115))
        assert s == pytest.approx(info["similarity"][b])


def test_nothing_happens_by_itself():  # T14
    names = "kar lesm words dol polb football vote nets pow"
    for name in names.split():
        tasks = tasks_of(name, count=40)
        backend = make_backend(tasks, len(tasks), ANGEL)
        at = np.arange(len(tasks))
        backend.begin(at, at, 0 * at, at)
        assert not (backend.similarity <= backend.tau).any(), name


def test_forbidden_stays():
    graph = as_arrays(load_graph("kar"))
    club = {0, 1, 2, 3, 7, 8, 12, 13, 17, 19, 21}
    pairs = [(8, 0), (("proxy", 0), 8), (5, ("proxy", 1))]
    task = HidingTask(graph, 8, club, k=2, protect_ties=True, forbidden=pairs, budget=9)
    env = CommunityHidingEnv(task, ANGEL)
    env.reset(seed=0)
    before = env.session.arrays().edges
    for action in [(0, 0), (0, 2), (1, 8), (0, 34), (2, 5), (1, 34)]:
        *_, info = env.step(action)
        assert info["illegal"], action
    np.testing.assert_array_equal(env.session.arrays().edges, before)
    *_, info = env.step((2, 8))
    assert not info["illegal"] and env.session.arrays().m == len(before) - 1
    many = CommunityHidingVecEnv(task, 1, ANGEL)
    obs, _ = many.reset(seed=0)
    assert obs["target_mask"][0].sum() == task.legal_mask.sum()
    obs, *_, info = many.step([[0, 2]])
    assert info["illegal"][0] and many.spent[0] == 1


def test_a_toggle_is_its_own_inverse():
    env = CommunityHidingEnv(tasks_of(budget=4), ANGEL)
    obs, info = env.reset(seed=3)
    v = int(env.graph.neighbors(env.task.u)[0])
    env.step((0, v))
    back, *_, again = env.step((0, v))
    np.testing.assert_array_equal(back["edges"], obs["edges"])
    np.testing.assert_allclose(back["features"][:, :7], obs["features"][:, :7])
    assert again["similarity"] == info["similarity"]


def test_isolated_user_is_hidden():
    env = CommunityHidingEnv(tasks_of(budget=40, k=0), ANGEL)
    env.reset(seed=0, options={"task": 3})
    for v in list(env.graph.neighbors(env.task.u)):
        *_, info = env.step((0, v))
    assert info["hidden"] and info["similarity"] == 0


def test_features_by_hand():
    graph = nx.Graph([(0, 1), (1, 2), (0, 2), (2, 3)])
    graph.add_node(4)
    rows = slotted(as_arrays(graph), 1)
    inside = np.array([1, 1, 1, 0, 0, 0], bool)
    x = node_features(*rows, 0, inside, 5, 3, 0.5, 0.25)
    np.testing.assert_allclose(x[0], [1, 0, 1, 0, 2 / 3, 0, 1, 0.5, 0.25], atol=1e-7)
    np.testing.assert_allclose(x[3], [0, 0, 0, 0, 1 / 3, 0.1, 1, 0.5, 0.25], atol=1e-7)
    np.testing.assert_allclose(x[2, [3, 5, 6]], [1, 0.1, 2 / 3], atol=1e-7)
    np.testing.assert_allclose(x[5], [0, 1, 0, 0, 0, 0, 0, 0.5, 0.25], atol=1e-7)


def test_budget_of_one_ends_at_once():
    env = CommunityHidingEnv(tasks_of(beta=0.5), ANGEL)  # T13: H = 1 on karate
    env.reset(seed=0)
    *_, done, cut, _ = env.step((1, 5))
    assert done and not cut and env.task.budget == 1


def test_by_name():
    tasks = tasks_of()
    name = "rlpapers.communityhiding.vectors:rlpapers/CommunityHiding-v0"
    env = gym.make(name, tasks=tasks, detector=ANGEL)
    assert env.reset(seed=0)[0]["features"].shape == (37, 9)
    many = gym.make_vec(name.partition(":")[2], 2, tasks=tasks, detector=ANGEL)
    assert many.reset(seed=0)[0]["features"].shape == (2, 37, 9)


def test_left_alone_or_begun_again():
    env = CommunityHidingVecEnv(tasks_of(), 3, ANGEL, autoreset_mode="Disabled")
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.tile([1, 34], (3, 1)))  # not allowed, and paid for
    assert env.done.all() and (env.spent == 3).all()
    env.reset(options={"reset_mask": np.array([True, False, False])})
    assert env.done.tolist() == [False, True, True] and env.spent.tolist() == [0, 3, 3]


def test_refusals():
    tasks = tasks_of()
    with pytest.raises(TargetError, match="detector is needed"):
        CommunityHidingVecEnv(tasks, 2)
    with pytest.raises(BudgetError, match="same tau"):
        CommunityHidingEnv([tasks[0], tasks[1].replace(tau=0.3)], ANGEL)
    with pytest.raises(TargetError, match="one graph"):
        CommunityHidingEnv([tasks[0], tasks_of()[0]], ANGEL)
    with pytest.raises(DetectorError, match="use SessionBackend"):
        CompiledBackend(tasks, 2, Angel(order="package"))
    with pytest.raises(gym.error.ResetNeeded):
        CommunityHidingEnv(tasks, ANGEL).step((0, 1))
    with pytest.raises(gym.error.ResetNeeded):
        CommunityHidingVecEnv(tasks, 2, ANGEL).step(np.zeros((2, 2), int))
