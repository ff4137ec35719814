"Training of community hiding: what it learns, how it goes on, and how it stops."

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from rlpapers.communityhiding.angel import Angel
from rlpapers.communityhiding.episodes import (
    Episodes,
    advantages,
    play,
    update,
)
from rlpapers.communityhiding.graphs import as_arrays, load_graph
from rlpapers.communityhiding.hider import ODRLHider
from rlpapers.communityhiding.policy import HidingStates, ODRLPolicy
from rlpapers.communityhiding.sessions import HidingSession, edited
from rlpapers.communityhiding.tasks import HidingTask, make_tasks
from rlpapers.communityhiding.training import ODRLConfig, train_odrl
from rlpapers.communityhiding.vectors import CommunityHidingVecEnv
from rlpapers.core.checkpoint import CheckpointError, has_state, load_state
from rlpapers.core.paths import RunError
from rlpapers.core.seeding import torch_generator
from rlpapers.rl.ppo import NonFiniteLoss

ANGEL = Angel()
close = torch.testing.assert_close


def guests(cliques=3, size=7):
    "Cliques around node 0, each with a guest who knows three of its members."
    graph, out = nx.Graph(), []
    for c in range(cliques):
        own = range(1 + c * (size + 1), 1 + c * (size + 1) + size)
        graph.add_edges_from(nx.complete_graph(own).edges)
        graph.remove_edge(own[1], own[2])
        out.append(own[-1] + 1)
        graph.add_edges_from([(0, own[-1]), *((out[-1], v) for v in own[:3])])
    return graph, out


def toy(**more):
    graph, who = guests()
    tasks = make_tasks(graph, ANGEL, **({"budget": 2, "k": 1} | more))
    return [t for t in tasks if t.target in who]


def same(a, b):
    pairs = zip(a.policy.parameters(), b.policy.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_one_deletion_hides():  # what T12 stands on
    for task in toy():
        session = HidingSession(task, ANGEL)
        hits = [
            (j, v)
            for j in task.sources
            for v in range(task.N)
            if task.legal(j, v) and session.peek(j, v) <= task.tau
        ]
        assert hits == [(task.u, min(task.ties))]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learns_the_toy(seed):  # T12
    tasks = toy()
    config = ODRLConfig(tasks=tasks, detector=ANGEL, iterations=40, seed=seed)
    result = train_odrl(config)
    last = np.mean([c["success"] for c in result.curves[-5:]])
    assert last >= 0.95 and result.curves[0]["success"] < 0.6
    found = [result.hider().hide(t) for t in tasks]
    assert all(r.success and len(r) == 1 for r in found)


@pytest.mark.parametrize("arm", [{"factored": False}, {"recurrent": False}])
def test_ablations_learn_the_toy(arm):
    config = ODRLConfig(tasks=toy(), detector=ANGEL, iterations=40, **arm)
    curves = train_odrl(config).curves
    assert np.mean([c["success"] for c in curves[-5:]]) > 0.8


def test_karate():  # T8, of the ascending variant
    tasks = make_tasks(as_arrays(load_graph("kar")), ANGEL)
    result = train_odrl(ODRLConfig(tasks=tasks, detector=ANGEL))
    found = [result.hider().hide(t) for t in tasks]
    assert np.mean([r.success for r in found]) >= 0.95
    assert np.mean([len(r) for r in found]) <= 1.6


def test_same_seed_same_training():
    config = ODRLConfig(tasks=toy(), detector=ANGEL, iterations=3, envs=8)
    a, b = train_odrl(config), train_odrl(config)
    assert a.curves == b.curves and same(a, b)
    assert (a.steps, a.queries) == (b.steps, b.queries)
    other = train_odrl(replace(config, seed=1))
    assert not same(a, other)


def test_goes_on_bit_for_bit(tmp_path):
    base = dict(tasks=toy(), detector=ANGEL, envs=8, detector_seeds=(0, 1, 2))
    whole = train_odrl(ODRLConfig(iterations=6, **base))
    put = base | {"checkpoint": tmp_path / "odrl"}
    train_odrl(ODRLConfig(iterations=4, **put))
    again = train_odrl(ODRLConfig(iterations=6, **put), resume=tmp_path / "odrl")
    assert again.curves == whole.curves and same(again, whole)
    assert (again.steps, again.queries) == (whole.steps, whole.queries)
    done = train_odrl(ODRLConfig(iterations=6, **put), resume=tmp_path / "odrl")
    assert done.curves == whole.curves  # nothing is left to do


KILLED = """
import sys, networkx as nx
sys.path.insert(0, {tests!r})
from test_ch_training import toy, ANGEL
from rlpapers.communityhiding.training import ODRLConfig, train_odrl
config = ODRLConfig(tasks=toy(), detector=ANGEL, envs=8, iterations=100000,
                    checkpoint={path!r}, save_every=2)
train_odrl(config)
"""


def test_killed_and_gone_on(tmp_path):
    path = str(tmp_path / "odrl")
    code = KILLED.format(tests=os.path.dirname(__file__), path=path)
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            if has_state(path) and load_state(path)["iteration"] >= 4:
                break
            time.sleep(0.05)
    except CheckpointError:  # read between two of its files
        pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    at = load_state(path)["iteration"]
    assert at >= 2 and at % 2 == 0
    base = dict(tasks=toy(), detector=ANGEL, envs=8, iterations=at + 3)
    again = train_odrl(ODRLConfig(**base), resume=path)
    whole = train_odrl(ODRLConfig(**base))
    assert again.curves == whole.curves and same(again, whole)


def test_threads_change_nothing():
    config = ODRLConfig(tasks=toy(), detector=ANGEL, iterations=3, envs=9)
    a, b = train_odrl(config), train_odrl(replace(config, threads=2))
    assert a.curves == b.curves and same(a, b)


def test_resume_refusals(tmp_path):
    put = dict(detector=ANGEL, envs=4, iterations=1, checkpoint=tmp_path / "odrl")
    train_odrl(ODRLConfig(tasks=toy(), **put))
    for change, what in (
        ({"seed": 3}, "seed"),
        ({"lr": 1.0}, "lr"),
        ({"detector": Angel(seed=5)}, "detector"),
        ({"tasks": toy(budget=1)}, "tasks"),
        ({"recurrent": False}, "recurrent"),
    ):
        config = ODRLConfig(**({"tasks": toy()} | put | change))
        with pytest.raises(RunError, match=f"other settings.*{what}"):
            train_odrl(config, resume=tmp_path / "odrl")
    with pytest.raises(RunError, match="no checkpoint"):
        train_odrl(ODRLConfig(tasks=toy(), **put), resume=tmp_path / "none")
    (tmp_path / "cut-1.safetensors").write_bytes(b"half")  # killed in the first save
    assert not has_state(tmp_path / "cut")
    with pytest.raises(RunError, match="no checkpoint"):
        train_odrl(ODRLConfig(tasks=toy(), **put), resume=tmp_path / "cut")
    again = train_odrl(
        ODRLConfig(tasks=toy(), **(put | {"checkpoint": tmp_path / "cut"}))
    )
    assert has_state(tmp_path / "cut") and len(again.curves) == 1
    ODRLPolicy().save(tmp_path / "policy")
    with pytest.raises(RunError, match="not a checkpoint"):
        train_odrl(ODRLConfig(tasks=toy(), **put), resume=tmp_path / "policy")


@pytest.mark.parametrize("keep", [True, False])
def test_loss_that_is_not_finite(tmp_path, keep):
    path = tmp_path / "odrl" if keep else None
    config = ODRLConfig(
        tasks=toy(), detector=ANGEL, envs=8, lr=1e38, checkpoint=path, save_every=1
    )
    with pytest.raises(NonFiniteLoss, match="not finite") as e:
        train_odrl(config)
    assert e.value.failed["iteration"] in (0, 1)
    if not keep:
        assert e.value.saved is None
        return
    batch = load_state(e.value.saved)["batch"]
    count = len(batch["when"])
    assert batch["features"].shape[0] == batch["deg"].shape[0] == count > 0
    assert batch["nbr"].shape[1] == batch["start"][-1]


def episodes_of(seed=0, envs=12, budget=4, factored=True):
    tasks = make_tasks(as_arrays(load_graph("kar")), ANGEL, budget=budget, k=1)
    env = CommunityHidingVecEnv(tasks, envs, ANGEL, observe=False)
    env.reset(seed=seed)
    policy = ODRLPolicy(factored=factored, seed=seed)
    with torch.no_grad():  # often at u's own edges, so that episodes end early
        policy.pair.hidden.weight[:, -1] = 2
        policy.pair.out.weight.fill_(0.2)
    return policy, play(env, policy, torch_generator(seed)), env


def test_advantages_by_hand():
    _, found, _ = episodes_of()
    gamma, lam = 0.9, 0.7
    got = advantages(found, gamma, lam)
    lengths = set()
    for b in range(12):
        at = torch.nonzero(found.which == b)[:, 0]
        assert found.when[at].tolist() == list(range(len(at)))
        assert found.ends[at].tolist() == [False] * (len(at) - 1) + [True]
        r, v = found.rewards[at].tolist(), [*found.values[at].tolist(), 0.0]
        flow, right = 0.0, []
        for t in reversed(range(len(at))):
            flow = r[t] + gamma * v[t + 1] - v[t] + gamma * lam * flow
            right.insert(0, flow)
        close(got[at], torch.tensor(right))
        lengths.add(len(at))
    assert len(lengths) > 1


def test_finished_environments_do_not_count():
    "States after the end are not there, and no reward comes after it."
    _, found, env = episodes_of()
    total = torch.zeros(12).index_add(0, found.which, found.rewards)
    first = torch.tensor([1.0] * 12)  # similarity at the start
    want = 0.1 * (first - torch.from_numpy(found.similarity).float())
    close(total, want + torch.from_numpy(found.hidden).float())
    assert len(found) == env.spent.sum() < 12 * 4
    early = found.which[found.ends & (found.when < 3)]
    assert env.hidden[early.numpy()].all()


def test_who_is_hidden_from_the_start_is_left_out():
    tasks = make_tasks(as_arrays(load_graph("polb")), ANGEL)
    env = CommunityHidingVecEnv(tasks, 64, ANGEL, range(1, 9), observe=False)
    env.reset(seed=0)
    at_start = env.hidden.copy()
    assert 0 < at_start.sum() < 64
    found = play(env, ODRLPolicy(), torch_generator(0))
    assert set(found.which.tolist()) == set(np.flatnonzero(~at_start).tolist())
    assert (found.begun == ~at_start).all() and not found.hidden[at_start].any()


def test_order_of_environments_does_not_matter():
    policy, found, _ = episodes_of()
    perm = torch.randperm(12, generator=torch_generator(0))
    which = perm[found.which]
    order = torch.argsort(found.when * 12 + which)
    pick = lambda x: x[order]
    moved = Episodes(
        found.states.take(order.numpy()), pick(found.when), pick(which),
        *(pick(getattr(found, k)) for k in ("choice", "logp", "values", "rewards")),
        pick(found.ends), found.begun, found.hidden, found.similarity,
    )  # fmt: skip
    after = []
    for part in (found, moved):
        copy = ODRLPolicy()
        copy.load_state_dict(policy.state_dict())
        config = ODRLConfig(tasks=toy(), detector=ANGEL, epochs=2)
        update(copy, torch.optim.SGD(copy.parameters(), 0.5), part, config)
        after.append(copy)
    for a, b in zip(*(p.parameters() for p in after), strict=True):
        close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("room", [1, 100, 300])
def test_groups_give_the_same_step(room):
    policy, found, _ = episodes_of()
    after = []
    for size in (10**9, room):
        copy = ODRLPolicy()
        copy.load_state_dict(policy.state_dict())
        config = ODRLConfig(tasks=toy(), detector=ANGEL, epochs=3, room=size)
        update(copy, torch.optim.SGD(copy.parameters(), 0.5), found, config)
        after.append(copy)
    for a, b in zip(*(p.parameters() for p in after), strict=True):
        close(a, b, rtol=1e-3, atol=1e-5)


def test_first_pass_is_a_policy_gradient():
    "At a ratio of one the surrogate's gradient is that of -mean(A log pi)."
    policy, found, _ = episodes_of()
    config = ODRLConfig(
        tasks=toy(), detector=ANGEL, epochs=1, entropy=0, value=0, grad_norm=1e9
    )
    before = [w.detach().clone() for w in policy.parameters()]
    adv = advantages(found, config.gamma, config.lam)
    adv = (adv - adv.mean()) / (adv.std(correction=0) + 1e-8)
    args = (found.states, found.when, found.which, found.choice)
    loss = -(adv * policy.evaluate(*args)[0]).mean()
    grads = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    update(policy, torch.optim.SGD(policy.parameters(), 1.0), found, config)
    for w, old, g in zip(policy.parameters(), before, grads, strict=True):
        moved = torch.zeros_like(w) if g is None else g
        close(old - w, moved, rtol=1e-3, atol=1e-6)


def test_hider_contract():  # T16
    tasks = make_tasks(as_arrays(load_graph("lesm")), ANGEL, count=12, beta=2)
    policy = ODRLPolicy(seed=3)
    for decode in ("greedy", "sample"):
        for task in tasks[:6]:
            result = ODRLHider(policy, ANGEL, decode).hide(task)
            names = {task.names[j] for j in task.sources}
            assert len(result) <= task.budget
            assert all(set(pair) & names for pair in result.edits)
            again = HidingSession(task, ANGEL)
            for a, b in result.edits:
                again.toggle(task.id(a), task.id(b))
            assert again.hidden() == result.success
            graph = edited(task, result.edits)
            np.testing.assert_array_equal(graph.edges, again.arrays().edges)


def test_hider_sees_what_training_saw():
    "Greedy decoding of a task equals the greedy play of a vector environment."
    tasks = make_tasks(as_arrays(load_graph("kar")), ANGEL, beta=2)
    policy = train_odrl(ODRLConfig(tasks=tasks, detector=ANGEL, iterations=4)).policy
    env = CommunityHidingVecEnv(tasks, len(tasks), ANGEL, redraw=False, observe=False)
    at = np.arange(len(tasks))
    env.begin(at, at, 0 * at, at)
    found = play(env, policy)
    for b, task in enumerate(tasks):
        steps = found.choice[found.which == b].tolist()
        edits = [(task.names[task.sources[j]], task.names[v]) for j, v in steps]
        assert list(ODRLHider(policy, ANGEL).hide(task).edits) == edits


def test_more_edits_than_toggles():
    graph, who = guests()
    closed = [(who[0], v) for v in graph if v not in (who[0], 0)]
    task = toy(k=0, budget=9, forbidden=closed)[0]
    assert isinstance(task, HidingTask) and task.legal_mask.sum() == 1
    result = ODRLHider(ODRLPolicy(), ANGEL).hide(task)
    assert set(result.edits) == {(who[0], 0)} and not result.success
    stuck = task.replace(forbidden=[*closed, (who[0], 0)])
    assert ODRLHider(ODRLPolicy(), ANGEL).hide(stuck).edits == ()
    config = ODRLConfig(tasks=[stuck], detector=ANGEL, iterations=2, envs=3)
    curves = train_odrl(config).curves
    assert math.isnan(curves[0]["policy_loss"]) and curves[0]["edits"] == 0


def test_any_detector_and_any_k():
    tasks = toy(k=0)
    cliques = lambda g: [c for c in nx.find_cliques(g) if len(c) > 2]
    config = ODRLConfig(tasks=tasks, detector=cliques, iterations=2, envs=4)
    result = train_odrl(config)
    assert result.queries >= 8 and len(result.frame()) == 2
    assert result.hider(detector=ANGEL).hide(tasks[0].replace(k=4)).injected_edges >= 4


def test_config_refusals():
    for bad, what in (
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"envs": 0}, "envs must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"entropy": -1.0}, "entropy must be at least 0"),
        ({"shaping": math.nan}, "shaping must be at least 0"),
        ({"tasks": ()}, "tasks and a detector are needed"),
        ({"detector": None}, "tasks and a detector are needed"),
    ):
        with pytest.raises(ValueError, match=what):
            ODRLConfig(**({"tasks": toy(), "detector": ANGEL} | bad))
    with pytest.raises(ValueError, match="device must be"):
        ODRLConfig(tasks=toy(), detector=ANGEL, device="tpu")
    with pytest.raises(ValueError, match="decode must be"):
        ODRLHider(ODRLPolicy(), ANGEL, decode="best")


def test_states_keep_their_order():
    _, found, _ = episodes_of()
    parts = [found.states.take([s]) for s in range(len(found))]
    whole = HidingStates.cat(parts)
    close(whole.features, found.states.features)
    close(whole.spread, found.states.spread)
