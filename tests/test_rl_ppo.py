"Networks and PPO of rlpapers.rl against plain references (goldens 15 and 16)."

import math

import numpy as np
import pytest
import torch
from torch import nn

from rlpapers.rl.networks import (
    ActorCritic,
    Categorical,
    IndexLinear,
    Memory,
    index_sum,
    mlp,
    orthogonal,
)  # fmt: skip
from rlpapers.rl.ppo import PPOConfig, policy_loss, value_loss


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("masked", [False, True])
def test_categorical_is_torchs(masked):
    logits = torch.randn(40, 5, generator=gen(), dtype=torch.float64) * 3
    mask = torch.rand(40, 5, generator=gen(1)) < 0.6 if masked else None
    if masked:
        mask[:, 0] = True
    ours = Categorical(logits, mask)
    theirs = torch.distributions.Categorical(
        logits=logits if mask is None else logits.masked_fill(~mask, -math.inf),
        validate_args=False,
    )
    a = ours.sample(gen(2))
    assert mask is None or mask[torch.arange(40), a].all()
    torch.testing.assert_close(ours.probs, theirs.probs)
    torch.testing.assert_close(ours.log_prob(a), theirs.log_prob(a))
    p = theirs.probs
    entropy = -(p * torch.log(p.clamp_min(1e-300))).sum(-1)
    torch.testing.assert_close(ours.entropy(), entropy)
    assert torch.equal(ours.mode(), p.argmax(-1))


def test_samples_have_their_frequencies():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    a = Categorical(p.log().expand(20_000, 4)).sample(gen())
    count = torch.bincount(a, minlength=4)
    assert float(((count - 20_000 * p) ** 2 / (20_000 * p)).sum()) < 16.3
    again = Categorical(p.log().expand(20_000, 4)).sample(gen())
    assert torch.equal(a, again)


def test_index_layer_is_a_dense_layer_on_one_hots():
    feats = torch.rand(6, 3, generator=gen(), dtype=torch.float32)
    other = torch.eye(4)
    layer = IndexLinear([(feats, 5), (other, 2)], 8, generator=gen(1))
    codes = torch.cat([torch.randint(0, 6, (30, 5), generator=gen(2)),
                       torch.randint(0, 4, (30, 2), generator=gen(3))], 1)  # fmt: skip
    dense = torch.cat([feats[codes[:, k]] for k in range(5)]
                      + [other[codes[:, k]] for k in (5, 6)], 1)  # fmt: skip
    weight = [p for p in layer.parameters() if p.ndim == 2][0]
    bias = [p for p in layer.parameters() if p.ndim == 1][0]
    w = weight if weight.shape[1] == 8 else weight.T
    out = layer(codes)
    torch.testing.assert_close(out, dense @ w + bias, atol=1e-5, rtol=1e-5)
    goal = torch.randn(30, 8, generator=gen(4))
    (out * goal).sum().backward()
    want = dense.T @ goal
    got = weight.grad if weight.shape[1] == 8 else weight.grad.T
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    table, index = (
        torch.randn(9, 4, generator=gen()),
        torch.randint(0, 9, (7, 3), generator=gen()),
    )
    torch.testing.assert_close(index_sum(table, index), table[index].sum(1))


def test_orthogonal_start():
    layer = orthogonal(nn.Linear(20, 8), 0.5, gen())
    gram = layer.weight @ layer.weight.T
    torch.testing.assert_close(gram, 0.25 * torch.eye(8), atol=1e-5, rtol=0)
    assert (layer.bias == 0).all()
    one, two, other = (mlp([5, 7, 3], generator=gen(s)) for s in (1, 1, 2))
    assert torch.equal(one[0].weight, two[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    net = ActorCritic(mlp([4, 16], generator=gen()), 16, 6, generator=gen(1))
    dist, value, _ = net(torch.randn(50, 4, generator=gen(2)))
    assert (dist.probs - 1 / 6).abs().max() < 0.02 and value.shape == (50,)


def test_memory_forgets_at_the_start_of_an_episode():
    mem = Memory(3, 5, gen())
    x = torch.randn(9, 4, 3, generator=gen(1))
    starts = torch.rand(9, 4, generator=gen(2)) < 0.3
    h0 = torch.randn(4, 5, generator=gen(3))
    out, last = mem(x, h0, starts)
    for i in range(4):
        for t in range(9):
            if starts[t, i]:  # from here on, whatever was before
                later = starts[t:, i : i + 1] & (torch.arange(9 - t)[:, None] > 0)
                alone, _ = mem(x[t:, i : i + 1], torch.zeros(1, 5), later)
                torch.testing.assert_close(out[t:, i], alone[:, 0])
    torch.testing.assert_close(out[-1], last)
    cell = next(m for m in mem.modules() if isinstance(m, nn.GRUCell))
    torch.testing.assert_close(out[0], cell(x[0], h0 * ~starts[0, :, None]))
    first, mid = mem(x[:4], h0, starts[:4])
    rest, end = mem(x[4:], mid, starts[4:])
    torch.testing.assert_close(torch.cat([first, rest]), out)
    torch.testing.assert_close(end, last)


def test_policy_loss_by_hand():
    "min(r A, clip(r) A), step by step; only valid steps count."
    rng = np.random.default_rng(0)
    new, old, adv = rng.normal(size=(3, 40)) * 0.5
    keep = rng.random(40) < 0.7
    want = []
    for n, o, a in zip(new[keep], old[keep], adv[keep], strict=True):
        r = math.exp(n - o)
        want.append(-min(r * a, min(max(r, 0.8), 1.2) * a))
    t = torch.tensor
    got = policy_loss(t(new), t(old), t(adv), 0.2, t(keep))
    assert float(got) == pytest.approx(np.mean(want))
    x = t(new).requires_grad_()
    policy_loss(x, t(old), t(adv), 0.2).backward()
    ratio = np.exp(new - old)
    stuck = ((ratio > 1.2) & (adv > 0)) | ((ratio < 0.8) & (adv < 0))
    assert stuck.any() and (x.grad.numpy()[stuck] == 0).all()
    assert (x.grad.numpy()[~stuck] != 0).all()


def test_value_loss_by_hand():
    v, r, o = (
        torch.tensor([1.0, 3, 5]),
        torch.tensor([2.0, 2, 2]),
        torch.tensor([1.0, 1, 4]),
    )
    assert float(value_loss(v, r)) in (pytest.approx(11 / 3), pytest.approx(11 / 6))
    half = float(value_loss(v, r)) / (11 / 3)
    # clipped to old +- .5: 1, 1.5, 4.5 -> errors 1, .25, 6.25; the larger of the two
    assert float(value_loss(v, r, o, 0.5)) == pytest.approx(half * (1 + 1 + 9) / 3)
    keep = torch.tensor([True, False, True])
    assert float(value_loss(v, r, valid=keep)) == pytest.approx(half * 5)


@pytest.mark.parametrize("bad", [
    dict(steps=0), dict(minibatch=0), dict(epochs=0), dict(gamma=1.5), dict(lam=-0.1),
    dict(clip=-0.1), dict(lr=0), dict(lr=float("nan")), dict(grad_norm=0),
    dict(entropy=-1),
])  # fmt: skip
def test_settings_out_of_range_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        PPOConfig(**bad)


numba = pytest.importorskip("numba")
minigrid = pytest.importorskip("minigrid")

from rlpapers.abidegym import AbideVecEnv, TrainConfig, train  # noqa: E402
from rlpapers.abidegym.policy import cell_table, encode_view, grid_model  # noqa: E402
from rlpapers.abidegym.training import make_learner  # noqa: E402
from rlpapers.rl.ppo import NonFiniteLoss  # noqa: E402

EMPTY, FIVE = "MiniGrid-Empty-5x5-v0", "AbideGym-DoorKey-5x5-v0"
TINY = PPOConfig(steps=16, minibatch=128)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_an_empty_room_is_learned():
    "Golden 15: a return of at least .9 within 30,000 frames."
    small = PPOConfig(steps=64, minibatch=256)
    config = TrainConfig(
        "MiniGrid-Empty-5x5-v0", "static", 30_000, 16, eval_episodes=0, ppo=small
    )
    got = train(config)
    returns = [row["return"] for row in got.log]
    assert got.log[-1]["frames"] <= 31_000
    assert np.mean(returns[-3:]) > 0.9 > np.mean(returns[:3])


class Stop(Exception):
    pass


@pytest.mark.parametrize("regime", ["recurrent", "notify", "plr"])
def test_resumed_is_uninterrupted(tmp_path, regime):
    "Golden 16: bit for bit, on the engine, weights and log."
    config = TrainConfig(FIVE, regime, 1536, 16, 512, 0, ppo=TINY)

    def stop(row):
        if row["frames"] >= 1024:
            raise Stop

    whole = train(config)
    with pytest.raises(Stop):
        train(config, checkpoint=tmp_path / "c", log=stop)
    rest = train(config, checkpoint=tmp_path / "c", resume=True)
    assert torch.equal(weights(whole.model), weights(rest.model))
    strip = lambda log: [{k: v for k, v in r.items() if "second" not in k} for r in log]
    assert str(strip(whole.log)) == str(strip(rest.log))


def test_a_training_is_a_function_of_its_seed():
    one, two, other = (
        weights(
            train(TrainConfig(FIVE, "adaptive", 1024, 16, 512, 0, s, ppo=TINY)).model
        )
        for s in (0, 0, 1)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_a_loss_that_is_not_finite_stops_and_is_kept(tmp_path):
    "Section 7: a checkpoint, and which batch it was."
    config = TrainConfig(
        "MiniGrid-Empty-5x5-v0", "static", 2000, 8, eval_episodes=0, ppo=TINY
    )
    learner = make_learner(config)
    learner.checkpoint = tmp_path / "c"
    learner.iterate()
    data = learner.rollout()
    data["advantages"][3, 2] = float("nan")
    with pytest.raises(NonFiniteLoss) as e:
        learner.update(data)
    assert e.value.failed["batch_seed"] is not None
    assert list(tmp_path.glob(e.value.saved.name + "*"))
    assert torch.isfinite(weights(learner.model)).all()


def test_the_view_is_encoded_without_loss():
    "Types, colours and states are told apart; image and packed codes agree."
    runs = []
    for mode in ("image", "packed"):
        env = AbideVecEnv(16, "MiniGrid-DoorKey-6x6-v0", obs_mode=mode)
        env.reset(seed=0)
        acts = np.random.default_rng(0).integers(0, 7, (40, 16))
        obs = [env.step(a)[0] for a in acts]
        runs.append((obs, [encode_view(o) for o in obs]))
    seen = {}
    for (image, one), two in zip(zip(*runs[0], strict=True), runs[1][1], strict=True):
        assert torch.equal(one, two)
        for n, c in zip(
            one[:, :49].ravel().tolist(), image["image"].reshape(-1, 3), strict=True
        ):
            assert seen.setdefault(n, tuple(c)) == tuple(c)
    assert len(set(seen.values())) == len(seen) >= 5
    numbers, features = cell_table()
    assert len({tuple(f) for f in features.tolist()}) == len(features)
    model = grid_model(seed=3)
    dist, value, _ = model(runs[0][1][0])
    assert dist.probs.shape == (16, 7) and value.shape == (16,)
    assert (dist.probs - 1 / 7).abs().max() < 0.03
