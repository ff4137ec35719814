"The lock-step engine against a plain PyTorch loop, and under faults."

import copy
import os
import signal
import threading
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from rlpapers.core.seeding import derive, uniform
from rlpapers.core.stats import trimmed_mean
from rlpapers.vrail.agents import TableEngine
from rlpapers.vrail.config import DQNConfig, variant
from rlpapers.vrail.engine import LANES, Engine
from rlpapers.vrail.features import TaxiFeatures
from rlpapers.vrail.network import init_networks
from rlpapers.vrail.tabular import TabularMDP
from rlpapers.vrail.train import first_reach, make_engine, train
from rlpapers.vrail.values import design, dl_stage

TAXI = TabularMDP.from_gym("Taxi")
FEATURES = TaxiFeatures("onehot19")
TABLES = {"onehot19": FEATURES.table}
X = torch.tensor(FEATURES.table.copy())


def _near():
    "Taxi that starts at the destination with the passenger on board."
    init = np.zeros(500)
    for d, (row, col) in enumerate([(0, 0), (0, 4), (4, 0), (4, 3)]):
        init[((row * 5 + col) * 5 + 4) * 4 + d] = 0.25
    return replace(TAXI, init=init, time_limit=25)


NEAR = _near()


class Plain:
    "One DQN with learned shaping, written the ordinary way: nn.Linear, autograd, Adam."

    def __init__(self, cfg, seed, double=False, mdp=TAXI):
        self.cfg, self.double, self.mdp = cfg, double, mdp
        self.keys = {n: derive(seed, "vrail", n) for n in ("step", "dl")}
        engine = Engine(TAXI, TABLES, [(cfg, seed)], double=double)
        flat = init_networks(engine.layout, [seed], [19], 6)
        w1, b1, w2, b2, w3, b3 = (p[0] for p in engine.layout.split(flat))
        self.net = nn.Sequential(
            nn.Linear(19, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6)
        )
        with torch.no_grad():
            for layer, w, b in (
                (self.net[0], w1[:19], b1),
                (self.net[2], w2, b2),
                (self.net[4], w3[:, :6], b3[:, :6]),
            ):
                layer.weight.copy_(w.T)
                layer.bias.copy_(b[0])
        self.target = copy.deepcopy(self.net)
        self.opt = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        self.phi = torch.zeros(500, dtype=torch.float64)
        self.weight = torch.zeros(19, dtype=torch.float64)
        self.w = None
        self.replay, self.pairs, self.windows = [], [], []
        self.t, self.eps, self.episode, self.length = 0, 1.0, 0, 0
        self.s = self.start(self.draw(-1)[0])

    def draw(self, t, lanes=LANES + 64):
        key = torch.tensor([self.keys["step"]])
        return uniform(key, torch.tensor([t]), lanes)[0]

    def start(self, u):
        return int(np.searchsorted(np.cumsum(self.mdp.init), float(u), side="right"))

    def q(self, net, states):
        return net(X[torch.as_tensor(states)])

    def step(self):
        u = self.draw(self.t)
        with torch.no_grad():
            greedy = int(self.q(self.net, [self.s]).argmax())
        a = int(u[1] * 6) if u[0] < self.eps else greedy
        s2 = int(TAXI.next_state[self.s, a, 0])
        r, term = TAXI.reward[self.s, a, 0], bool(TAXI.done[self.s, a, 0])
        self.length += 1
        cut = self.length >= self.mdp.time_limit and not term
        self.replay.append((self.s, a, r, s2, term, cut))
        if len(self.replay) >= 64:
            self.update([self.replay[int(v * len(self.replay))] for v in u[LANES:]])
        self.s, self.t = s2, self.t + 1
        if term or cut:
            self.end(u[3])

    def update(self, batch):
        c = self.cfg
        s, a, r, s2, term, cut = (np.array(v) for v in zip(*batch, strict=True))
        end = term | (cut & (c.truncation == "terminal"))
        with torch.no_grad():
            nxt = self.q(self.target, s2)
            if self.double:
                best = self.q(self.net, s2).argmax(1)
                nxt = nxt.gather(1, best[:, None])[:, 0]
            else:
                nxt = nxt.max(1).values
        live = torch.as_tensor(~end).double()
        after = self.phi[s2] * (live if c.terminal_potential == "zero" else 1.0)
        bonus = (c.gamma * after - self.phi[s]) * (c.shaping != "none")
        base = torch.as_tensor(r) + c.gamma * live * nxt.double()
        q = self.q(self.net, s).gather(1, torch.as_tensor(a)[:, None])
        if c.shaping == "batch_mean":  # the published broadcast, literally
            y = base[:, None] + bonus
            assert y.shape == (64, 64)
            loss = ((q - y.float()) ** 2).mean()
        else:
            loss = ((q[:, 0] - (base + bonus).float()) ** 2).mean()
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        with torch.no_grad():
            v = self.q(self.net, s).max(1).values.tolist()
        self.pairs += list(zip(s.tolist(), v, strict=True))

    def end(self, u):
        c = self.cfg
        k = self.episode % c.episodes
        self.episode += 1
        self.eps = max(self.eps * 0.995, 0.01)
        self.length, self.s = 0, self.start(u)
        if k == c.episodes - 1 and c.data != "none":
            self.dl()
        if k % 10 == 0 or k == c.episodes - 1:
            self.target = copy.deepcopy(self.net)

    def dl(self):
        "Fifty Adam steps on single rows, by autograd."
        cycle = self.episode // self.cfg.episodes - 1
        if self.cfg.data == "first10k":
            rows = self.pairs[:10_048]
        elif self.cfg.data == "last10k":
            rows = self.pairs[-10_000:]
        else:
            u = uniform(torch.tensor([self.keys["dl"]]), torch.tensor([cycle]), 2000)[0]
            s = [self.replay[int(v * len(self.replay))][0] for v in u]
            with torch.no_grad():
                v = self.q(self.net, s).max(1).values.tolist()
            self.windows = (self.windows + [list(zip(s, v, strict=True))])[-5:]
            rows = [p for w in self.windows for p in w]
        self.pairs = []
        if not rows:
            return
        s, y = (np.array(v) for v in zip(*rows, strict=True))
        x, y = X[s].double(), torch.as_tensor(y).double()
        square = self.cfg.estimator == "quadratic"
        if self.w is None:
            shape = (19, 19) if square else (19,)
            self.w = torch.zeros(shape, dtype=torch.float64)
        w = self.w.clone().requires_grad_()
        f = lambda x: torch.einsum("ni,ij,nj->n", x, w, x) if square else x @ w
        opt = torch.optim.Adam([w], lr=1e-2)
        for _ in range(50):
            opt.zero_grad()
            ((f(x) - y) ** 2).mean().backward()
            opt.step()
        self.w = w.detach()
        if self.cfg.shaping != "none":
            with torch.no_grad():
                self.phi = f(X.double())


CASES = {
    "dqn": (variant("dqn", cycles=5, episodes=12), False),
    "linear": (variant("linear", cycles=9, episodes=1), False),
    "last10k": (variant("linear", dl_data="last10k", cycles=9, episodes=1), False),
    "quadratic": (variant("quadratic", cycles=9, episodes=1), False),
    "code_quadratic": (variant("code_quadratic", cycles=9, episodes=1), False),
    "corrected": (variant("corrected_linear", cycles=9, episodes=1), False),
    "double": (variant("linear", cycles=9, episodes=1), True),
    "near, linear": (variant("linear", cycles=40, episodes=6), False),
    "near, corrected": (variant("corrected_linear", cycles=40, episodes=6), False),
    "near, quadratic": (variant("corrected_quadratic", cycles=40, episodes=2), False),
    "near, code": (variant("code_quadratic", cycles=40, episodes=6), False),
    "near, double": (variant("corrected_linear", cycles=40, episodes=6), True),
}


@pytest.mark.parametrize("name", CASES)
def test_engine_equals_a_plain_loop(name):
    "Golden test 10: same stream, 500 steps, DL stages included."
    cfg, double = CASES[name]
    mdp = NEAR if name.startswith("near") else TAXI
    engine = Engine(mdp, TABLES, [(cfg, 5)], double=double)
    plain = Plain(cfg, 5, double, mdp)
    for _ in range(500):
        engine.advance()
        plain.step()
    z = engine.z
    states = [e[0] * 6 + e[1] for e in plain.replay]
    np.testing.assert_array_equal(z.buf[0, :500].numpy() % 3000, states)
    assert int(z.state[0]) == plain.s
    if mdp is NEAR:  # deliveries are there, and more cycles than the rolling window
        assert sum(e[4] for e in plain.replay) > 5
        assert name != "near, quadratic" or plain.episode // cfg.episodes > 5
    w1, b1, w2, b2, w3, b3 = (p[0] for p in engine.layout.split(z.net))
    net = plain.net
    for ours, theirs in (
        (w1[:19], net[0].weight.T),
        (b2[0], net[2].bias),
        (w2, net[2].weight.T),
        (w3[:, :6], net[4].weight.T),
        (b3[0, :6], net[4].bias),
    ):
        gap, size = (ours - theirs.detach()).abs(), theirs.detach().abs()
        assert gap.square().mean().sqrt() < 1e-3 * size.square().mean().sqrt()
        assert (gap < 1e-5 + 1e-4 * size).float().mean() > 0.95  # float32 and Adam
    if cfg.estimator != "none" and plain.w is not None:
        assert len(engine.hist[0]["phi"]) == plain.episode // cfg.episodes > 0
        torch.testing.assert_close(z.phi[0], plain.phi, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shaping", ["batch_mean", "per_transition"])
def test_batch_mean_is_the_published_broadcast(shaping):
    "Golden test 9: the engine's target against literal (B,) + (B, 1) broadcasting."
    cfg = variant("quadratic", shaping=shaping, cycles=40, episodes=6)
    engine = Engine(NEAR, TABLES, [(cfg, 3)])
    for _ in range(400):
        engine.advance()
    z, out = engine.z, engine.out
    gen = torch.Generator().manual_seed(0)
    batch = z.buf[:, torch.randint(0, 400, (64,), generator=gen)].long()
    s, nxt = out.state[batch[0]], out.next[batch[0] % out.half]
    end = out.done[batch[0] % out.half] | (batch[0] >= out.half)
    bonus = cfg.gamma * z.phi[0, nxt] - z.phi[0, s]
    assert bonus.std() > 0.01  # there is something to tell apart
    base = engine._targets(batch)[0].double()
    reward = out.reward[batch[0] % out.half]
    mine = bonus.mean() if shaping == "batch_mean" else bonus
    future = base - reward - mine  # what is left is the bootstrap
    assert future[end].abs().max() < 1e-4
    q = torch.randn(64, generator=gen).double().requires_grad_()
    ((q - base) ** 2).mean().backward()
    ours, q.grad = q.grad.clone(), None
    literal = (reward + future)[:, None] + bonus  # (B, 1) + (B,)
    assert literal.shape == (64, 64)
    ((q[:, None] - literal) ** 2).mean().backward()
    same = torch.allclose(ours, q.grad, atol=1e-6)
    assert same == (shaping == "batch_mean")


def test_a_run_does_not_depend_on_its_company():
    "Golden test 10, second half: 1 000 steps, to the bit."
    cfgs = [variant(n, cycles=4, episodes=2) for n in ("quadratic", "dqn", "linear")]
    full = Engine(TAXI, TABLES, [(c, s) for c in cfgs for s in (0, 1)])
    alone = Engine(TAXI, TABLES, [(cfgs[2], 1)])
    for _ in range(1000):
        full.advance()
        alone.advance()
    if alone.N:
        row = full.ids.index(5)
        assert torch.equal(full.z.net[row], alone.z.net[0])
        assert torch.equal(full.z.phi[row], alone.z.phi[0])
    else:
        a, b = full.finished[5], alone.finished[0]
        np.testing.assert_array_equal(a["q"], b["q"])


def test_rebased_vrail_is_dqn():
    "Golden test 16: offset by the potential, the shaped run takes the DQN's steps."
    shape = dict(cycles=9, episodes=1)
    rebased = variant("corrected_linear", rebase=True, **shape)
    plain = variant("dqn", estimator="none", truncation="bootstrap", **shape)
    a = Engine(TAXI, TABLES, [(rebased, 7)])
    b = Engine(TAXI, TABLES, [(plain, 7)])
    for _ in range(500):
        a.advance()
        b.advance()
    assert float(a.z.phi.abs().max()) > 0.1  # the potential is there, and does nothing
    assert torch.equal(a.z.buf, b.z.buf)
    torch.testing.assert_close(a.z.net, b.z.net, atol=1e-5, rtol=1e-5)


def test_chunked_steps_change_nothing():
    "Freezing a run that waits for service is exact, for every kind of agent."
    cfgs = [variant(n, cycles=2, episodes=3) for n in ("dqn", "linear", "quadratic")]
    for make in (
        lambda k: Engine(TAXI, TABLES, [(c, 0) for c in cfgs], chunk=k),
        lambda k: Engine(TAXI, TABLES, [(c, 0) for c in cfgs], double=True, chunk=k),
        lambda k: TableEngine(TAXI, TABLES, [(c, 0) for c in cfgs], chunk=k),
        lambda k: TableEngine(
            TAXI, TABLES, [(c, 0) for c in cfgs], chunk=k, rule="sarsa"
        ),
    ):
        done = []
        for k in (1, 13):
            e = make(k)
            while e.N:
                e.advance()
            done.append(e.finished)
        for i in range(3):
            np.testing.assert_array_equal(done[0][i]["returns"], done[1][i]["returns"])
            np.testing.assert_allclose(done[0][i]["q"], done[1][i]["q"], atol=1e-5)


LAKE = TabularMDP.from_gym("FrozenLake", is_slippery=True)  # three outcomes a pair
ONE = {"onehot19": np.eye(16, dtype=np.float32), "other": np.ones((16, 3), np.float32)}
LEAN = {
    "taxi": (TAXI, TABLES, ("linear", "quadratic", "code_quadratic"), {}, False),
    "near": (NEAR, TABLES, ("corrected_linear", "code_quadratic"), {}, False),
    "double": (NEAR, TABLES, ("corrected_linear", "dqn"), {}, True),
    "lake, a full memory": (LAKE, ONE, ("linear", "dqn"), dict(buffer=150), False),
    "odd batch": (LAKE, ONE, ("linear", "dqn"), dict(batch=33, learn_start=5), False),
}


@pytest.mark.parametrize("name", LEAN)
def test_the_lean_step_is_the_masked_step(name, monkeypatch):
    "Every tensor of the batch, to the bit, until the last run has ended."
    mdp, tables, names, settings, double = LEAN[name]
    many = 20 if mdp is LAKE else 3  # its episodes are short
    cfgs = [variant(n, cycles=2 + i, episodes=many) for i, n in enumerate(names)]
    cfgs.append(variant("linear", name="10k", dl_data="last10k", cycles=2, episodes=4))
    rebased = dict(rebase=True, terminal_potential="zero", truncation="bootstrap")
    cfgs.append(variant("linear", name="rebased", cycles=9, episodes=1, **rebased))
    if mdp is LAKE:
        cfgs.append(variant("dqn", name="o", features="other", cycles=3, episodes=9))
    make = lambda: Engine(
        mdp, tables, [(c, 3) for c in cfgs], DQNConfig(**settings), double
    )
    lean, masked = make(), make()
    monkeypatch.setattr(masked, "_lean", lambda: None)
    used = 0
    while masked.N:
        masked.advance()
        lean.advance()
        used += lean.lean is not None
        assert masked.lean is None and lean.ids == masked.ids
        if used % 50 == 0 and lean.N:
            for key, value in vars(masked.z).items():
                mine = getattr(lean.z, key)
                assert torch.equal(mine.nan_to_num(-1), value.nan_to_num(-1)), key
    assert used > 100 and not lean.N
    for i in range(len(cfgs)):
        for key, value in masked.finished[i].items():
            np.testing.assert_array_equal(lean.finished[i][key], value)


def test_runs_that_are_not_alike_take_the_masked_step():
    "Such as those of a checkpoint that was written between two steps of a GPU batch."
    cfgs = [(variant("dqn", cycles=2, episodes=2), s) for s in (0, 1)]
    mixed, engines = Engine(TAXI, TABLES, cfgs), []
    for steps in (90, 70):
        engines.append(Engine(TAXI, TABLES, cfgs))
        for _ in range(steps):
            engines[-1].advance()
    state = engines[0].state_dict()
    for key, value in state["z"].items():
        value[1] = getattr(engines[1].z, key)[1]
    mixed.load_state_dict(state)
    for e in (engines[1], mixed):
        while e.N:
            e.advance()
    left, right = mixed.finished[1], engines[1].finished[1]
    np.testing.assert_array_equal(left["returns"], right["returns"])
    np.testing.assert_array_equal(left["q"], right["q"])


def test_a_diverged_run_stops_alone():
    wild = variant("linear", name="wild", dl_lr=1e9, cycles=3, episodes=2)
    calm = variant("dqn", cycles=3, episodes=2)
    r = train(TAXI, FEATURES, [wild, calm], [0], progress=False)
    assert r.diverged.tolist() == [[True], [False]]
    assert np.isnan(r.returns[0]).any() and np.isfinite(r.returns[1]).all()


def test_nan_in_a_network_is_found():
    e = Engine(
        TAXI, TABLES, [(variant("dqn", cycles=1, episodes=2), s) for s in (0, 1)]
    )
    e.z.net[0] = torch.nan
    while e.N:
        e.advance()
    assert e.finished[0]["diverged"] and not e.finished[1]["diverged"]


def test_resume_is_bit_identical(tmp_path):
    cfgs = [
        variant(n, cycles=3, episodes=3)
        for n in ("linear", "quadratic", "code_quadratic")
    ]

    class Cut(Exception):
        pass

    def late(**line):
        if line["cycle"] == 2 and line["config"] == "quadratic":
            raise Cut

    whole = train(TAXI, FEATURES, cfgs, [3, 4], progress=False)
    kw = dict(checkpoint=tmp_path / "c", every=137, progress=False)
    with pytest.raises(Cut):
        train(TAXI, FEATURES, cfgs, [3, 4], log=late, **kw)
    again = train(TAXI, FEATURES, cfgs, [3, 4], **kw)
    for name in ("returns", "q", "support", "steps"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    for a, b in zip(again.theta, whole.theta, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="belongs to other"):
        train(TAXI, FEATURES, cfgs, [3, 5], **kw)


def test_trimmed_mean_of_runs_that_never_arrive():
    "Golden test 12."
    x = [*range(100, 1000, 100), np.nan]
    assert trimmed_mean(x, 2) == 550
    assert trimmed_mean([*range(100, 800, 100), np.nan, np.nan, np.nan], 2) == np.inf


def test_first_reach_counts_full_windows_only():
    x = np.r_[np.full(50, -200.0), np.full(60, 10.0)]
    assert first_reach(x, 0.0, 50) == 98  # 48 of 10 and 2 of -200: mean 1.6
    assert np.isnan(first_reach(x[:60], 0.0, 50))
    with pytest.raises(ValueError, match="window"):
        first_reach(x, 0.0, 500)


def _adam_bound(steps, lr, b1=0.9, b2=0.999):
    "Farthest that any gradients can move a weight: Cauchy-Schwarz on Adam's averages."
    total = 0.0
    for t in range(1, steps + 1):
        age = np.arange(t)
        w1, w2 = (1 - b1) * b1**age / (1 - b1**t), (1 - b2) * b2**age / (1 - b2**t)
        total += lr * np.sqrt((w1**2 / w2).sum())
    return total


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_fifty_adam_steps_are_bounded(kind, scale):
    "Golden test 8: about a half for steady gradients, never beyond the strict bound."
    model = design(FEATURES.table, kind)
    gen = torch.Generator().manual_seed(1)
    count = torch.randint(0, 50, (3, 500), generator=gen).double()
    noise = torch.randn(3, 500, generator=gen)
    steady, wild = count * (10.0 + noise) * scale, count * noise * scale
    start = torch.zeros(3, len(model.times))
    assert dl_stage(model, count, steady, start)[0].abs().max() <= 0.5 + 1e-6
    far = dl_stage(model, count, wild, start)[0].abs().max()
    assert 0.1 < far <= _adam_bound(50, 1e-2)


def test_capacity_wraps_around():
    "A full buffer forgets the oldest transitions and nothing else."
    e = Engine(TAXI, TABLES, [(variant("dqn"), 0)], DQNConfig(buffer=100))
    seen = []
    for _ in range(250):
        at = int(e.z.pos[0])
        e.advance()
        seen.append(int(e.z.buf[0, at]))
    assert int(e.z.size[0]) == 100 and int(e.z.pos[0]) == 50
    assert sorted(e.z.buf[0].tolist()) == sorted(seen[-100:])


@pytest.mark.parametrize(
    ("features", "match"),
    [
        (np.zeros((7, 3)), "shape"),
        (np.full((500, 2), np.nan), "finite"),
    ],
)
def test_bad_features_are_refused(features, match):
    with pytest.raises(ValueError, match=match):
        make_engine(TAXI, features, [(variant("dqn"), 0)], "dqn", DQNConfig())


def test_unknown_agents_and_empty_studies_are_refused():
    with pytest.raises(ValueError, match="agent must be"):
        make_engine(TAXI, FEATURES, [(variant("dqn"), 0)], "ppo", DQNConfig())
    with pytest.raises(ValueError, match="nothing to train"):
        train(TAXI, FEATURES, [], [0])
    with pytest.raises(ValueError, match="share a name"):
        train(TAXI, FEATURES, [variant("dqn"), variant("dqn")], [0])


@pytest.mark.slow
def test_rebased_vrail_is_dqn_over_many_cycles():
    "The same identity after eight cycles with exploration nearly gone."
    shape = dict(cycles=8, episodes=6)
    a = Engine(
        TAXI, TABLES, [(variant("corrected_quadratic", rebase=True, **shape), 1)]
    )
    b = Engine(
        TAXI,
        TABLES,
        [(variant("dqn", estimator="none", truncation="bootstrap", **shape), 1)],
    )
    for _ in range(3000):
        a.advance()
        b.advance()
    torch.testing.assert_close(a.z.net, b.z.net, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    "change",
    [
        dict(agent="sarsa"),
        dict(dqn=DQNConfig(table_lr=0.2)),
        dict(mdp=NEAR),
        dict(features=FEATURES.table * 2),
    ],
)
def test_a_checkpoint_knows_what_it_belongs_to(tmp_path, change):
    class Cut(Exception):
        pass

    def late(**line):
        if line["cycle"] == 2:
            raise Cut

    base = dict(mdp=TAXI, features=FEATURES, agent="q_learning")
    kw = dict(configs=[variant("linear", cycles=4, episodes=2)], seeds=[0])
    kw |= dict(checkpoint=tmp_path / "c", every=50, progress=False)
    with pytest.raises(Cut):
        train(**base, **kw, log=late)
    with pytest.raises(ValueError, match="belongs to other"):
        train(**(base | change), **kw)


def test_ctrl_c_without_a_checkpoint_keeps_what_was_done():
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.warns(UserWarning, match="interrupted"):
        r = train(TAXI, FEATURES, [variant("linear")], [0, 1], progress=False)
    assert np.isfinite(r.returns[..., 0]).all() and np.isnan(r.returns[..., -1]).all()


def test_ctrl_c_saves_a_checkpoint(tmp_path):
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    kw = dict(checkpoint=tmp_path / "c", every=10**9, progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(TAXI, FEATURES, [variant("linear")], [0], **kw)
    assert (tmp_path / "c.json").exists()


def test_worlds_that_are_no_tables_are_refused():
    with pytest.raises(TypeError, match="compile.*train_generic"):
        TabularMDP.from_gym("CartPole")
    with pytest.raises(TypeError, match="fickle"):
        TabularMDP.from_gym("Taxi", fickle_passenger=True)
    lake = gym.make("FrozenLake-v1", is_slippery=True)
    with pytest.raises(ValueError, match="not deterministic"):
        TabularMDP.compile(lake, key_fn=lambda e: int(e.s))


def test_combinations_without_meaning_are_refused():
    with pytest.raises(ValueError, match="frozen"):
        variant("linear", rebase=True, potential=np.zeros(500))
    with pytest.raises(ValueError, match="minibatches"):
        TableEngine(TAXI, TABLES, [(variant("code_quadratic"), 0)])


@pytest.mark.gpu
def test_cuda_takes_the_same_steps():
    cfgs = [
        (variant(n, cycles=2, episodes=2), s) for n in ("dqn", "linear") for s in (0, 1)
    ]
    done = []
    for device, chunk in (("cpu", 1), ("cuda", 16)):
        e = Engine(TAXI, TABLES, cfgs, device=device, chunk=chunk)
        while e.N:
            e.advance()
        done.append(e.finished)
    for i in range(4):
        for name, tolerance in (("returns", 0), ("q", 1e-3), ("theta", 1e-3)):
            a, b = done[0][i][name], done[1][i][name]
            np.testing.assert_allclose(a, b, atol=tolerance)
