"The policy of community hiding: probabilities, symmetry, three products, memory."

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from rlpapers.communityhiding import encoder as encoders
from rlpapers.communityhiding.convolution import (
    MODES,
    GraphRows,
    convolve,
    product,
)
from rlpapers.communityhiding.encoder import GraphEncoder
from rlpapers.communityhiding.policy import (
    HidingStates,
    ODRLPolicy,
    joint_probabilities,
)
from rlpapers.core.checkpoint import CheckpointError, save_state
from rlpapers.core.seeding import torch_generator

close = torch.testing.assert_close
KINDS = [(f, r) for f in (True, False) for r in (True, False)]


def edited(n, m, copies, toggles, seed):
    "Edges of copies of one random graph, each with some random toggles."
    rng, base = np.random.default_rng(seed), nx.gnm_random_graph(n, m, seed=seed)
    out = []
    for s in range(copies):
        graph = base.copy()
        for a, b in rng.integers(n, size=(s * toggles, 2)).tolist():
            if a != b:
                there = graph.has_edge(a, b)
                graph.remove_edge(a, b) if there else graph.add_edge(a, b)
        out.append(np.array(graph.edges, dtype=np.int64).reshape(-1, 2))
    return out


def states_of(count=5, n=18, k=2, seed=0, order=None, closed=0.2):
    "Random states on `edited` graphs; `order` renames the nodes."
    order, rng = np.arange(n) if order is None else order, np.random.default_rng(seed)
    edges = [order[e] for e in edited(n, 2 * n, count, 2, seed)]
    features = np.zeros((count, n, 9), np.float32)
    features[:, order] = rng.random((count, n, 9))
    sources = np.array([[s % (n - k), *range(n - k, n)] for s in range(count)])
    legal = rng.random((count, k + 1, n)) > closed
    legal[:, :, 0] |= ~legal.any(2)
    legal[np.arange(count)[:, None], np.arange(k + 1), sources] = False
    moved = np.zeros_like(legal)
    moved[:, :, order] = legal
    return HidingStates(
        GraphRows.of(n, edges),
        torch.from_numpy(features),
        order[sources],
        torch.from_numpy(moved),
    )


def loud(policy, gain=300.0):
    "Larger last layers, so that probabilities are far from even."
    with torch.no_grad():
        policy.pair.out.weight.mul_(gain)
        if policy.factored:
            policy.source[-1].weight.mul_(gain)
    return policy


@pytest.mark.parametrize("factored, recurrent", KINDS)
@pytest.mark.parametrize("k", [0, 2])
def test_probabilities(factored, recurrent, k):  # T11
    states = states_of(k=k, closed=0.4)
    policy = loud(ODRLPolicy(factored=factored, recurrent=recurrent))
    joint = joint_probabilities(policy, states, torch.randn(5, 32))
    close(joint.sum((1, 2)), torch.ones(5))
    assert joint[~states.legal].eq(0).all() and joint[states.legal].gt(0).all()
    assert joint.amax((1, 2)).max() > 1.5 * joint[states.legal].mean()


@pytest.mark.parametrize("factored, recurrent", KINDS)
def test_draws_follow_the_probabilities(factored, recurrent):
    one = states_of(count=1, n=8, k=1)
    policy = loud(ODRLPolicy(factored=factored, recurrent=recurrent), 100)
    joint = joint_probabilities(policy, one)[0]
    many, gen = HidingStates.cat([one] * 4000), torch_generator(0)
    choice = policy.act(many, policy.initial(4000), gen)[0]
    share = (
        torch.zeros_like(joint)
        .flatten()
        .index_add(0, choice[:, 0] * 8 + choice[:, 1], torch.full((4000,), 1 / 4000))
    )
    assert (share.view_as(joint) - joint).abs().max() < 0.04
    assert share.view_as(joint)[~one.legal[0]].sum() == 0
    best = policy.act(one, policy.initial(1))[0][0].tolist()
    if not factored:
        assert joint[tuple(best)] == joint.max()
    else:
        assert best[0] == joint.sum(1).argmax() and best[1] == joint[best[0]].argmax()


@pytest.mark.parametrize("factored, recurrent", KINDS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_nodes_have_no_numbers(factored, recurrent, seed):  # T11
    order = np.random.default_rng(seed).permutation(18)
    policy = loud(ODRLPolicy(factored=factored, recurrent=recurrent))
    plain, moved = states_of(seed=seed), states_of(seed=seed, order=order)
    a, b = joint_probabilities(policy, plain), joint_probabilities(policy, moved)
    close(b[:, :, order], a, rtol=1e-4, atol=1e-6)


@given(
    n=st.integers(2, 60),
    density=st.floats(0, 3),
    copies=st.integers(1, 6),
    toggles=st.integers(0, 9),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_products_agree(n, density, copies, toggles, seed):  # T11
    m = min(int(density * n), n * (n - 1) // 2)
    rows = GraphRows.of(n, edited(n, m, copies, toggles, seed))
    x = torch.randn(copies, n, 7, generator=torch_generator(seed))
    right = rows.dense @ x
    weight = torch.randn(right.shape, generator=torch_generator(seed + 1))
    for mode in MODES:
        close(product(rows, x, mode), right, rtol=1e-5, atol=1e-5)
        leaf = x.clone().requires_grad_()
        out = convolve(rows, leaf, mode)
        close(out, right.relu(), rtol=1e-5, atol=1e-5)
        (grad,) = torch.autograd.grad((out * weight).sum(), leaf)
        close(grad, rows.dense @ (weight * (out > 0)), rtol=1e-4, atol=1e-5)


def test_dense_is_written_out():
    edges = edited(12, 20, 1, 0, 3)
    A = nx.to_numpy_array(nx.Graph(edges[0].tolist()), nodelist=range(12))
    A = A + np.eye(12)
    D = np.diag(1 / np.sqrt(A.sum(1)))
    close(GraphRows.of(12, edges).dense[0], torch.from_numpy(D @ A @ D).float())


@pytest.mark.parametrize("n, m", [(37, 78), (115, 425), (300, 900)])
@pytest.mark.parametrize("layers", [1, 4])
def test_encoders_agree(n, m, layers):
    rows = GraphRows.of(n, edited(n, m, 5, 3, 1))
    x = torch.rand(5, n, 9, generator=torch_generator(0))
    net = GraphEncoder(layers=layers, generator=torch_generator(1))
    found = {}
    for mode in MODES:
        z = net(rows, x, mode=mode)
        grads = torch.autograd.grad(z.square().mean(), list(net.parameters()))
        found[mode] = [z, *grads]
    for mode in MODES[1:]:
        for a, b in zip(found[mode], found["dense"], strict=True):
            close(a, b, rtol=1e-3, atol=1e-5)


def test_without_the_fast_product(monkeypatch):
    rows = GraphRows.of(20, edited(20, 40, 4, 2, 0))
    x, net = torch.rand(4, 20, 9), GraphEncoder()
    fast = net(rows, x)
    want = torch.autograd.grad(fast.square().mean(), list(net.parameters()))
    monkeypatch.setattr(encoders, "onednn", lambda: None)
    slow = net(rows, x)
    close(slow, fast)
    ours = torch.autograd.grad(slow.square().mean(), list(net.parameters()))
    for a, b in zip(ours, want, strict=True):
        close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.peer
def test_torch_geometric():  # T11
    GCNConv = pytest.importorskip("torch_geometric.nn").GCNConv
    edges = edited(50, 120, 6, 4, 5)
    both = [np.concatenate([e, e[:, ::-1]]) + 50 * s for s, e in enumerate(edges)]
    index = torch.from_numpy(np.concatenate(both).T.copy())
    layer = GCNConv(9, 32, bias=False)
    x = torch.randn(6, 50, 9, generator=torch_generator(0))
    right = layer(x.flatten(0, 1), index).view(6, 50, 32)
    rows = GraphRows.of(50, edges)
    for mode in MODES:
        close(product(rows, x @ layer.lin.weight.T.detach(), mode), right, atol=1e-5,
              rtol=1e-5)  # fmt: skip


@pytest.mark.parametrize("factored, recurrent", KINDS)
def test_ratio_starts_at_one(factored, recurrent):  # T11
    policy = loud(ODRLPolicy(factored=factored, recurrent=recurrent))
    whole, gen = states_of(count=12), torch_generator(3)
    when = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    which = torch.tensor([0, 1, 2, 3, 4, 0, 2, 3, 4, 0, 3, 4])
    memory, acted = policy.initial(5), []
    for t in range(3):
        part = whole.take((when == t).numpy())
        at = which[when == t]
        *step, memory[at] = policy.act(part, memory[at], gen)
        acted.append(step)
    choice, logp, value = (torch.cat(x) for x in zip(*acted, strict=True))
    again, entropy, values = policy.evaluate(whole, when, which, choice)
    close((again - logp).exp(), torch.ones(12), rtol=0, atol=1e-5)
    close(values, value)
    assert entropy.gt(0).all()


@pytest.mark.parametrize("factored, recurrent", KINDS)
def test_modes_agree(factored, recurrent):  # T11
    states, found = states_of(count=6, k=3), {}
    choice = ODRLPolicy(factored=factored).act(states, torch.zeros(6, 32))[0]
    when, which = torch.arange(6) // 3, torch.arange(6) % 3
    for mode in MODES:
        kind = {"factored": factored, "recurrent": recurrent, "mode": mode}
        policy = loud(ODRLPolicy(**kind))
        out = policy.evaluate(states, when, which, choice)
        loss = sum(x.sum() for x in out)
        grads = torch.autograd.grad(loss, list(policy.parameters()))
        found[mode] = [*out, *grads]
    for mode in MODES[1:]:
        for a, b in zip(found[mode], found["auto"], strict=True):
            close(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("factored", [True, False])
def test_balanced_start(factored):
    states = states_of(count=8, n=40, k=1, closed=0.1)
    for balanced, low, high in ((True, 0.45, 0.55), (False, 0.0, 0.35)):
        policy = ODRLPolicy(factored=factored, balanced=balanced)
        joint = joint_probabilities(policy, states)
        near = states.rows.links(states.sources)
        rows = joint.sum(-1) > 0
        has = (near * states.legal).sum(-1) > 0
        share = (joint * near).sum(-1)[rows & has] / joint.sum(-1)[rows & has]
        if factored:
            assert share.min() > low and share.max() < high, share
        else:
            assert low < (joint * near).sum((1, 2)).mean() < high


def test_memory_is_of_the_past_only():
    policy, states = ODRLPolicy(), states_of(count=3, seed=2)
    when, which = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    choice = policy.act(states, policy.initial(3))[0]
    base = policy.evaluate(states, when, which, choice)[2]
    for t in range(3):  # change what is seen at step t
        features = states.features.clone()
        features[t] += 1
        other = HidingStates(states.rows, features, states.sources, states.legal)
        value = policy.evaluate(other, when, which, choice)[2]
        moved = (value - base).abs() > 1e-7
        assert moved.tolist() == [s >= t for s in range(3)]
    plain = ODRLPolicy(recurrent=False)
    base = plain.evaluate(states, when, which, choice)[2]
    value = plain.evaluate(other, when, which, choice)[2]
    assert ((value - base).abs() > 1e-7).tolist() == [False, False, True]


@pytest.mark.parametrize("factored", [True, False])
def test_gradients_reach_everything(factored):
    policy, states = loud(ODRLPolicy(factored=factored)), states_of()
    choice = policy.act(states, policy.initial(5), torch_generator(0))[0]
    when, which = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 0, 1, 0])
    logp, entropy, value = policy.evaluate(states, when, which, choice)
    (logp.sum() + entropy.sum() + value.sum()).backward()
    dead = [k for k, w in policy.named_parameters() if w.grad is None or not
            w.grad.abs().sum() > 0]  # fmt: skip
    assert dead == []


def test_edge_matters():
    "The destination head sees whether v is a neighbour of the source."
    policy, states = loud(ODRLPolicy()), states_of(count=1, closed=0)
    with torch.no_grad():
        policy.pair.hidden.weight[:, -1] += 5
    a = joint_probabilities(policy, states)[0, 0]
    with torch.no_grad():
        policy.pair.hidden.weight[:, -1] -= 10
    b = joint_probabilities(policy, states)[0, 0]
    near = states.rows.links(states.sources[:, :1])[0, 0].bool()
    ratio = (a / b).log()[states.legal[0, 0]]
    near = near[states.legal[0, 0]]
    assert (ratio[near].mean() - ratio[~near].mean()).abs() > 0.1


def test_files(tmp_path):
    policy = ODRLPolicy(d_hidden=16, n_layers=2, factored=False, seed=4)
    policy.save(tmp_path / "p")
    back = ODRLPolicy.load(tmp_path / "p")
    assert back.settings == policy.settings
    for a, b in zip(back.parameters(), policy.parameters(), strict=True):
        assert torch.equal(a, b)
    save_state(tmp_path / "q", [1])
    with pytest.raises(CheckpointError, match="holds no policy"):
        ODRLPolicy.load(tmp_path / "q")
    with pytest.raises(ValueError, match="mode must be one of"):
        ODRLPolicy(mode="sparse")
    with pytest.raises(ValueError, match="different lengths"):
        HidingStates.cat([states_of(), states_of(seed=1)])
