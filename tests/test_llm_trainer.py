"""The learner and the trainer: faults, stops, resumes, pieces and ranks."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from llm_run import WORLD, made
from torch import nn

from rlpapers.aent import (
    METHODS,
    AdaptiveCoefficient,
    AEnt,
    ClipCov,
    EntropyBonus,
    KLCov,
    TokenSet,
    method,
)
from rlpapers.core.checkpoint import load_state, save_state
from rlpapers.llm.decisions import Decisions, decision_states, micro_batches
from rlpapers.llm.fused import fused_policy_loss
from rlpapers.llm.learner import (
    KLPenalty,
    Learner,
    LearnerConfig,
    Regularizer,
    TrainingError,
)
from rlpapers.llm.logprob import token_stats
from rlpapers.llm.losses import PolicyLossConfig, policy_loss
from rlpapers.llm.sampling import SamplingParams
from rlpapers.llm.trainer import JsonlLog, RLTrainer, Stopped, TrainerConfig

HERE = Path(__file__).parent


class Toy(nn.Module):
    "Two matrices; enough for everything that does not sample."

    def __init__(self, V=30, D=8):
        super().__init__()
        self.seen = 0  # rows that went through it
        g = torch.Generator().manual_seed(0)
        draw = lambda *s: nn.Parameter(torch.randn(*s, generator=g))
        self.embed, self.out = draw(V, D), draw(V, D)

    def hidden(self, ids, mask):
        self.seen += len(ids)
        return torch.tanh(self.embed[ids])

    @property
    def head(self):
        return self.out, None


def decisions(n=8, R=5, V=30, seed=1):
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(n, R, generator=g)
    counts = torch.arange(R) < torch.randint(1, R + 1, (n, 1), generator=g)
    ids, labels = (torch.randint(V, (n, R), generator=g) for _ in range(2))
    return Decisions(
        ids, counts, torch.arange(R).expand(n, R), labels, draw() - 3, draw(),
        torch.ones(n, R), counts,
    )  # fmt: skip


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)


def weights_of(policy):
    return {k: v.clone() for k, v in policy.state_dict().items()}


# Stops and resumes


@pytest.mark.parametrize("name", METHODS)
def test_next_three_steps_after_resuming(name, tmp_path):  # rlpt 15
    def run(folder=None):
        steer = AdaptiveCoefficient(
            0.02, 0.5, 1.0, 0.01, (0.0, 0.3), warmup=1, pull=0.1
        )
        loss, reg = method(
            name, token_set=TokenSet("top_k", 20), coef=0.02, adaptive=steer
        )
        if name.endswith("cov"):
            reg = KLCov(0.2) if name == "kl_cov" else ClipCov(0.1, 0.0, 9.0)
        return made(folder, [reg], loss)

    whole = run()
    log = whole.train(5)
    part = run(tmp_path)
    part.train(2)
    part.save()
    again = run(tmp_path)
    assert again.resume()
    assert again.train(5) == log[2:] and same(again.policy, whole.policy)
    assert len(log) == 5 and all(m["grad_norm"] > 0 for m in log)
    assert (
        again.learner.state_dict()["regularizers"]
        == whole.learner.state_dict()["regularizers"]
    )


def launched(folder, name, at):
    call = [sys.executable, str(HERE / "llm_run.py"), str(folder), "6", name, str(at)]
    return subprocess.run(call, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def unbroken():
    trainer = made()
    return trainer.train(6), trainer


def test_killed_and_resumed(tmp_path, unbroken):
    log, whole = unbroken
    end = launched(tmp_path, "SIGKILL", 5)
    assert end.returncode == -signal.SIGKILL, end.stderr
    again = made(tmp_path, save_every=2)
    assert again.resume() and again.step_count == 4
    assert again.train(6) == log[4:] and same(again.policy, whole.policy)


def test_sigterm_ends_the_step_and_saves(tmp_path, unbroken):
    log, whole = unbroken
    end = launched(tmp_path, "SIGTERM", 2)
    assert end.returncode != 0 and "stopped by SIGTERM after step 3" in end.stderr
    assert str(tmp_path) in end.stderr
    again = made(tmp_path)
    assert again.resume() and again.step_count == 3
    assert again.train(6) == log[3:] and same(again.policy, whole.policy)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_given_back(tmp_path, number):
    before, seen = signal.getsignal(number), []
    t = made(tmp_path)
    t.callbacks.append(lambda *_: seen.append(signal.getsignal(number)))
    t.train(1)
    assert seen[0] is not before and signal.getsignal(number) is before
    t.callbacks.append(lambda *_: signal.raise_signal(number))
    with pytest.raises(Stopped, match=signal.Signals(number).name):
        t.train(9)
    assert signal.getsignal(number) is before and t.step_count == 2
    assert load_state(tmp_path / "checkpoint")["step"] == 2


def test_the_second_signal_acts_at_once(tmp_path):
    t, got = made(tmp_path), []
    before = signal.signal(signal.SIGTERM, lambda *_: got.append("old handler"))
    try:
        for _ in range(2):
            t.callbacks.append(lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped):
            t.train(3)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == ["old handler"]


def test_other_threads_and_runs_without_a_folder_leave_signals_alone(tmp_path):
    seen = []
    for folder in (None, tmp_path):
        t = made(folder)
        t.callbacks.append(lambda *_: seen.append(signal.getsignal(signal.SIGTERM)))
        if folder is None:
            t.train(1)
        else:
            thread = threading.Thread(target=t.train, args=(1,))
            thread.start()
            thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)] * 2
    t = made()
    t.callbacks.append(lambda t, _: t.request_stop("the test"))
    with pytest.raises(Stopped, match="by the test after step 1; without a folder"):
        t.train(3)


def test_saved_every_so_many_steps_and_at_the_end(tmp_path):
    t, seen = made(tmp_path, save_every=2), []
    path = tmp_path / "checkpoint.json"
    look = lambda *_: seen.append(
        load_state(tmp_path / "checkpoint")["step"] if path.exists() else 0
    )
    t.callbacks.append(look)
    t.train(5)
    look()
    assert seen == [0, 0, 2, 2, 4, 5]
    assert (
        not list(tmp_path.glob("*.tmp"))
        and len(list(tmp_path.glob("*.safetensors"))) == 1
    )


def test_a_state_does_not_change_after_it_was_taken():
    t = made()
    t.train(2)
    state = t.state_dict()
    log = t.train(4)
    again = made()
    again.load_state_dict(state)
    assert again.train(4) == log and same(again.policy, t.policy)
    assert (
        state["learner"]["optimizer"]["state"][0]["step"] == 4
    )  # two minibatches a step


@pytest.mark.parametrize(
    "change, key",
    [
        (dict(seed=2), "seed"),
        (dict(learner=LearnerConfig(lr=1e-3, minibatches=2)), "learner.lr"),
        (dict(loss=PolicyLossConfig(eps_high=0.28)), "loss.eps_high"),
        (dict(regularizers=[EntropyBonus(0.1)]), "regularizers"),
        (dict(stop_ids=(5,)), "stop_ids"),
    ],
)
def test_other_settings_are_refused(tmp_path, change, key):
    t = made(tmp_path)
    t.train(1)
    t.save()
    with pytest.raises(ValueError, match=f"other settings: {key}$"):
        made(tmp_path, **change).resume()
    free = LearnerConfig(lr=3e-3, minibatches=2, micro_tokens=64, chunk=7)
    assert made(tmp_path, learner=free, save_every=1).resume()


# Rewards


class Given:
    "Rewards of each step, written down."

    def __init__(self, *steps):
        self.steps, self.k = steps, 0

    def __call__(self, batch):
        self.k += 1
        r = torch.tensor(
            self.steps[min(self.k, len(self.steps)) - 1], dtype=torch.float32
        )
        return r.repeat(len(batch) // len(r))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_equal_rewards_leave_the_entropy_at_work(value):
    ends = {}
    for coef in (0.0, 0.3):
        t = made(regularizers=[EntropyBonus(coef)])
        t.reward, start = Given([value]), weights_of(t.policy)
        log = t.train(4)
        assert {m["frac_zero_variance"] for m in log} == {1.0}
        assert all(abs(m["policy_loss"]) < 1e-12 for m in log)
        moved = max(
            float((start[k] - v).abs().max()) for k, v in t.policy.state_dict().items()
        )
        ends[coef] = moved, log[-1]["entropy"] - log[0]["entropy"], log[-1]["grad_norm"]
    assert ends[0.0][0] == 0 and ends[0.0][2] == 0
    assert ends[0.3][0] > 0 and ends[0.3][1] > 0 and ends[0.3][2] > 0


def test_rewards_that_say_nothing_warn_once():
    t = made(regularizers=[])
    mixed = [1.0, 0.0, 0.0, 0.0]
    t.reward = Given(*[[1.0]] * 19, mixed, *[[0.0]] * 25)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        t.train(19)
        t.train(39)
        assert not said
        t.train(44)
    assert [
        ("95 %" in str(w.message), "too strict" in str(w.message)) for w in said
    ] == [(True, True)]


def test_rewards_that_say_nothing_are_counted_over_a_resume():
    t, again = made(regularizers=[]), made(regularizers=[])
    t.reward = again.reward = Given([1.0])
    t.train(12)
    again.load_state_dict(t.state_dict())
    again.train(19)
    with pytest.warns(UserWarning, match="since 20 steps"):
        again.train(20)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.5])
def test_bad_rewards_name_the_sample(bad):
    t = made()
    t.reward = Given([0.0, 1.0], [*[0.5] * 6, bad, 0.5])
    t.train(1)
    start = weights_of(t.policy)
    with pytest.raises(
        TrainingError,
        match=rf"reward {str(bad)[:4]}.*row 6 in step 1 .*prompt '.*answer",
    ):
        t.train(2)
    assert all(torch.equal(start[k], v) for k, v in t.policy.state_dict().items())
    t.reward = lambda batch: torch.zeros(3)
    with pytest.raises(ValueError, match=r"shape \(3,\) for 16 rows"):
        t.train(2)
    wide = made(reward_range=None)
    wide.reward = Given([7.0, -3.0])
    assert math.isfinite(wide.train(1)[0]["grad_norm"])


def test_dropping_equal_groups_keeps_the_middle_of_mixed_ones():
    t = made(drop_equal=True)
    t.reward = Given(
        [*[1.0] * 4, *[0.0, 0.5, 0.5, 1.0], *[0.0] * 4, *[0.0, 0.0, 0.0, 1.0]]
    )
    d, m = t.collect()
    used = d.counts.any(1).reshape(4, 4)
    assert used.all(1).tolist() == [False, True, False, True]
    assert (
        used.any(1).tolist() == [False, True, False, True]
        and m["frac_zero_variance"] == 0.5
    )


def test_nothing_left_changes_nothing():
    t = made(drop_equal=True)
    t.reward, start = Given([1.0]), weights_of(t.policy)
    coefficient = t.learner.regularizers[0].adaptive
    log = t.train(3)
    assert all(torch.equal(start[k], v) for k, v in t.policy.state_dict().items())
    assert coefficient.state_dict()["value"] == 0.02 and coefficient.steps == 0
    assert not t.learner.optimizer.state_dict()["state"] and "policy_loss" not in log[0]


# Numbers that are not finite


@pytest.mark.parametrize("fused", [True, False])
def test_nan_entropy_names_step_coefficient_and_rows(fused):
    policy, d = Toy(), decisions(12)
    d.ids.copy_(d.ids.clamp(min=1))
    d.ids[[3, 9], 0] = 0
    with torch.no_grad():
        policy.embed[0] = torch.nan
    config = LearnerConfig(minibatches=3, micro_tokens=7, fused=fused)
    reg = EntropyBonus(0.125, TokenSet("top_k", 5))
    learner, start = (
        Learner(policy, regularizers=[reg], config=config),
        weights_of(policy),
    )
    named = set()
    with pytest.raises(
        TrainingError, match=r"step 4, .*'entropy': 0.125.*rows \[\d+"
    ) as e:
        learner.update(d, 4)
    named |= set(map(int, str(e.value).split("rows [")[1].split("]")[0].split(",")))
    assert named and named <= {3, 9}
    one = Learner(policy, regularizers=[reg], config=LearnerConfig(fused=fused))
    with pytest.raises(TrainingError, match=r"rows \[3, 9\]"):
        one.update(d)
    assert start.keys() == policy.state_dict().keys()


def test_nan_entropy_does_not_reach_lambda():
    c = AdaptiveCoefficient(0.002, 0.15, 0.24, 0.002, (6e-4, 9e-3))
    c.step(0.1)
    before = c.state_dict()
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="after step 1, lambda 0.0021"):
            c.step(bad)
    assert c.state_dict() == before


def poisoned(folder, steps):
    "A trainer whose advantages are not finite in some steps."
    t = made(folder, learner=LearnerConfig(lr=3e-3))
    collect = t.collect

    def bad():
        d, metrics = collect()
        if t.step_count in steps:
            d = dataclasses.replace(d, advantage=d.advantage * torch.nan)
        return d, metrics

    t.collect = bad
    return t


def test_skipped_once_then_stopped_with_a_dump(tmp_path):
    t = poisoned(tmp_path, (1, 3))
    t.train(1)
    start, moments = weights_of(t.policy), t.learner.optimizer.state_dict()["state"][0]
    moment = moments["exp_avg"].clone()
    with pytest.warns(UserWarning, match="update 2 of step 1 skipped"):
        t.train(2)
    assert all(torch.equal(start[k], v) for k, v in t.policy.state_dict().items())
    assert torch.equal(moments["exp_avg"], moment)
    save_state(tmp_path / "kept", t.state_dict())
    t.train(3)
    assert not same(t.policy, made().policy)
    with pytest.raises(TrainingError, match="second time, in step 3, .*dump-0.json"):
        t.train(9)
    held = load_state(tmp_path / "dump-0")
    assert held["decisions"]["advantage"].isnan().any() and held["metrics"]["step"] == 3
    assert Decisions(**held["decisions"]).labels.shape[0] == 16
    again = poisoned(None, (2,))
    again.load_state_dict(load_state(tmp_path / "kept"))
    with pytest.raises(TrainingError, match="second time, in step 2.*give a folder"):
        again.train(9)


def test_stuck_lambda_warns_once():
    c = AdaptiveCoefficient(0.002, 0.15, 0.24, 0.002, (6e-4, 9e-3))
    c.value = 9e-3
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(50):
            c.step(0.0)
        assert not said
        c.step(0.2)  # inside the band: it is not pushed against the bound
        for _ in range(50):
            c.step(0.0)
        assert not said
        again = AdaptiveCoefficient(0.002, 0.15, 0.24, 0.002, (6e-4, 9e-3))
        again.load_state_dict(c.state_dict())
        for _ in range(120):
            again.step(0.0)
    assert len(said) == 1 and all(
        w in str(said[0].message) for w in ("H_low=0.15", "H_high=0.24")
    )
    low = AdaptiveCoefficient(0.002, 0.15, 0.24, 0.002, (6e-4, 9e-3))
    with pytest.warns(UserWarning, match="bound 0.0006"):
        for _ in range(60):
            low.step(9.0)


# Edges of the head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_has_no_entropy_and_no_gradient(dtype):
    g = torch.Generator().manual_seed(0)
    h, w = (torch.randn(n, 6, generator=g).to(dtype).requires_grad_() for n in (7, 40))
    labels = torch.randint(40, (7,), generator=g)
    for s in (
        TokenSet("top_k", 1),
        TokenSet("fraction", 0.99),
        TokenSet("top_p", 1e-9),
    ):
        stats = token_stats(h, w, labels, token_set=s)
        assert (stats.clamped_entropy == 0).all()
        for x in torch.autograd.grad(stats.clamped_entropy.sum(), (h, w)):
            assert (x == 0).all()
        args = h, w, labels, stats.logprob.detach(), torch.ones(7), torch.ones(7).bool()
        a, b = (
            torch.autograd.grad(
                fused_policy_loss(*args, token_set=s, ent_coef=c).loss, (h, w)
            )
            for c in (0.0, 5.0)
        )
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y)
            assert x.isfinite().all()


def test_empty_masks():
    policy, d = Toy(), decisions()
    none = dataclasses.replace(d, counts=torch.zeros_like(d.counts))
    for c in (PolicyLossConfig(), PolicyLossConfig(agg="sequence")):
        x = d.logprob_old.clone().requires_grad_()
        loss, m = policy_loss(x, d.logprob_old, d.advantage, none.counts, c)
        assert loss.item() == 0 and (torch.autograd.grad(loss, x)[0] == 0).all()
        assert all(map(math.isfinite, m.values()))
    h, w = torch.randn(4, 8), torch.randn(30, 8).requires_grad_()
    zero = torch.zeros(4)
    out = fused_policy_loss(
        h.requires_grad_(), w, torch.full((4,), -100), zero, zero, zero.bool(),
        token_set=TokenSet(), ent_coef=0.1,
    )  # fmt: skip
    assert out.loss.item() == 0 and out.metrics["tokens"] == 0
    assert all((x == 0).all() for x in torch.autograd.grad(out.loss, (h, w)))
    for fused in (True, False):
        reg = AEnt(AdaptiveCoefficient(0.1, 1.0, 2.0, 0.1, (0.0, 1.0)))
        config = LearnerConfig(lr=0.1, weight_decay=0.1, fused=fused)
        learner, start = (
            Learner(policy, regularizers=[reg], config=config),
            weights_of(policy),
        )
        assert learner.update(none) == {"entropy/lambda": 0.1}
        assert all(torch.equal(start[k], v) for k, v in policy.state_dict().items())
        assert reg.adaptive.steps == 0


def test_labels():
    g = torch.Generator().manual_seed(0)
    h, w = (torch.randn(n, 6, generator=g, requires_grad=True) for n in (7, 40))
    labels = torch.tensor([3, -100, 39, 0, -100, 5, 6])
    keep = labels >= 0
    a = token_stats(
        h, w, labels, token_set=TokenSet("top_k", 9), temperature=torch.arange(1.0, 8)
    )
    b = token_stats(
        h[keep], w, labels[keep], token_set=TokenSet("top_k", 9),
        temperature=torch.arange(1.0, 8)[keep],
    )  # fmt: skip
    for x, y in zip(a, b, strict=True):
        assert (x[~keep] == 0).all() and torch.equal(x[keep], y)
    c = torch.randn(3, 7, generator=g)
    total = lambda t, c: sum((v * u).sum() for v, u in zip(t[:3], c, strict=True))
    for x, y in zip(
        torch.autograd.grad(total(a, c), (h, w)),
        torch.autograd.grad(total(b, c[:, keep]), (h, w)),
        strict=True,
    ):
        torch.testing.assert_close(x, y)
    zero = torch.zeros(7)
    for bad in (40, -1, -99):
        wrong = labels.clone()
        wrong[2] = bad
        with pytest.raises(
            ValueError, match=rf"label {bad} of token 2 is not in \[0, 40\)"
        ):
            token_stats(h, w, wrong)
        with pytest.raises(ValueError, match=f"label {bad}"):
            fused_policy_loss(h, w, wrong, zero, zero, zero == 0)
        fused_policy_loss(h, w, wrong, zero, zero, keep & (labels != 39))
    with torch.no_grad():
        h[5, 1] = torch.inf
    with pytest.raises(ValueError, match="token 5 is not finite"):
        token_stats(h, w, labels, check_finite=True)


# Pieces and ranks


@pytest.mark.parametrize("agg", ["token", "sequence", "constant"])
@pytest.mark.parametrize("fused", [True, False])
def test_pieces_give_the_gradient_of_the_whole(agg, fused):  # rlpt 15
    t = made(prompts=8)
    d, _ = t.collect()
    assert len(d) == 32
    out = []
    for budget in (0, 60, 25, 1):
        reg = EntropyBonus(0.05, TokenSet("top_k", 20))
        learner = Learner(
            t.policy, PolicyLossConfig(agg=agg, length=8), [reg],
            LearnerConfig(micro_tokens=budget, fused=fused),
        )  # fmt: skip
        t.policy.zero_grad()
        metrics = learner._pieces(d)
        out.append(([p.grad.clone() for p in t.policy.parameters()], metrics))
    for grads, metrics in out[1:]:
        for a, b in zip(grads, out[0][0], strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        for k, v in metrics.items():
            assert v == pytest.approx(out[0][1][k], abs=1e-5), k


@pytest.mark.parametrize("agg", ["token", "sequence", "constant"])
def test_both_ways_to_compute_a_piece_agree(agg):
    d, out = made(prompts=8).collect()[0], []
    for fused in (True, False):
        policy = made().policy
        learner = Learner(
            policy, PolicyLossConfig(agg=agg, length=8),
            [EntropyBonus(0.5, TokenSet("top_k", 20))], LearnerConfig(fused=fused),
        )  # fmt: skip
        metrics = learner._pieces(d)
        out.append((metrics, [p.grad for p in policy.parameters()]))
    for a, b in zip(out[0][1], out[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert out[0][0] == pytest.approx(out[1][0], abs=1e-5)


def test_terms_add_up():
    d, grads = decisions(), []
    start = Toy()
    with torch.no_grad():
        start.embed.mul_(0.5)
    bonus, kl = EntropyBonus(0.5, TokenSet("top_k", 9)), KLPenalty(start, 0.3)
    for regs in ([], [bonus], [kl], [bonus, kl]):
        learner = Learner(Toy(), regularizers=regs)
        learner._pieces(d)
        grads.append(learner.policy.out.grad)
        assert learner.fused == (kl not in regs)
    both = grads[1] + grads[2] - grads[0]
    torch.testing.assert_close(grads[3], both, atol=1e-6, rtol=1e-4)
    z, ref = (decision_states(m, d) @ m.out.T for m in (Toy(), start))
    pick = lambda x: x.log_softmax(-1).gather(1, d.flat(d.labels)[:, None])[:, 0]
    policy = Toy()
    z = decision_states(policy, d) @ policy.out.T
    gap = pick(ref).detach() - pick(z)
    (0.3 * (gap.exp() - 1 - gap).mean()).backward()
    torch.testing.assert_close(
        policy.out.grad, grads[2] - grads[0], atol=1e-5, rtol=1e-4
    )


def test_pieces_keep_their_budget():
    g = torch.Generator().manual_seed(0)
    left, right = (torch.randint(1, 20, (64, 1), generator=g) for _ in range(2))
    at = torch.arange(40)
    mask = (at >= 20 - left) & (at < 20 + right)
    zero = torch.zeros(64, 20)
    d = Decisions(
        torch.zeros(64, 40).long(), mask, (torch.arange(20) + 19).expand(64, 20),
        *[zero.long()], *[zero] * 3, torch.arange(20) < right,
    )  # fmt: skip
    pieces = micro_batches(d, 100)
    assert sorted(torch.cat(pieces).tolist()) == list(range(64))
    assert all(d.rows(p).trimmed().mask.numel() <= 100 for p in pieces)
    assert len(pieces) < 64 * 40 / 100


RANKS = """
import sys, torch
sys.path.insert(0, sys.argv[3])
from test_llm_trainer import Toy, decisions
from rlpapers.aent import AEnt, AdaptiveCoefficient, TokenSet
from rlpapers.llm.learner import Learner, LearnerConfig
rank = int(sys.argv[1])
where = "file://" + sys.argv[2]
torch.distributed.init_process_group("gloo", where, rank=rank, world_size=2)
def run(d, alone):
    steer = AdaptiveCoefficient(0.1, 5.0, 6.0, 0.1, (0.0, 9.0))
    reg = AEnt(steer, TokenSet("top_k", 9))
    learner = Learner(Toy(), regularizers=[reg], config=LearnerConfig(lr=0.01))
    if alone:
        learner.ranks.on, learner.ranks.world, learner.ranks.rank = False, 1, 0
    out = [learner.update(d, k) for k in range(2)]
    return learner, out, steer.value
d = decisions(9)
part = torch.tensor([0, 1] if rank == 0 else [2, 3, 4, 5, 6, 7, 8])
a, m, lam = run(d.rows(part), False)
b, n, nu = run(d, True)
for p, q in zip(a.parameters, b.parameters, strict=True):
    torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)
assert abs(lam - nu) < 1e-6 and lam != 0.1, (lam, nu)
for k in n[1]:
    assert k == "ratio_max" or abs(m[1][k] - n[1][k]) < 1e-4, (k, m[1][k], n[1][k])
print("equal")
"""


def test_two_ranks_learn_as_one(tmp_path):  # golden 13, the whole learner
    call = [sys.executable, "-c", RANKS]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pair = [
        subprocess.Popen(
            [*call, str(r), str(tmp_path / "meet"), str(HERE)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for r in range(2)
    ]  # fmt: skip
    for p in pair:
        out, err = p.communicate(timeout=120)
        assert out.strip() == "equal", err[-800:]


# Covariance methods


def test_clip_cov_written_out():
    d = decisions(16, seed=4)
    lp, A = d.logprob_old[d.counts].numpy(), d.advantage[d.counts].numpy()
    c = (lp - lp.mean()) * (A - A.mean())
    r = ClipCov(0.1, 0.2, 2.0)
    new = r.prepare(d)
    out = (new.weight[d.counts] == 0).numpy()
    assert out.sum() == min(int(0.1 * len(c)), ((c > 0.2) & (c < 2)).sum()) > 1
    assert ((c > 0.2) & (c < 2))[out].all() and (new.weight[~d.counts] == 1).all()
    others = [ClipCov(0.1, 0.2, 2.0, seed=s).prepare(d).weight for s in range(30)]
    hit = (torch.stack(others) == 0).any(0)[d.counts].numpy()
    assert hit.sum() > out.sum() and ((c > 0.2) & (c < 2))[hit].all()
    draws = [r.prepare(d).weight for _ in range(6)]
    assert any(not torch.equal(draws[0], w) for w in draws)
    again = ClipCov(0.1, 0.2, 2.0)
    again.load_state_dict({"calls": 1})
    assert torch.equal(again.prepare(d).weight, draws[0])
    policy = Toy()
    learner = Learner(policy, regularizers=[ClipCov(0.1, 0.2, 2.0)])
    assert learner.fused
    part = learner.regularizers[0].prepare(d)
    learner._pieces(part)
    w, lp_now = policy.out.detach().clone().requires_grad_(), None
    z = decision_states(policy, d).detach() @ w.T
    lp_now = z.log_softmax(-1).gather(1, d.flat(d.labels)[:, None])[:, 0]
    ratio = (lp_now - d.flat(d.logprob_old)).exp()
    a = d.flat(d.advantage)
    gain = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
    gain = torch.where(a < 0, torch.maximum(gain, 3 * a), gain)
    loss = -(gain * torch.tensor(~out)).sum() / len(c)
    torch.testing.assert_close(policy.out.grad, torch.autograd.grad(loss, w)[0])


@pytest.mark.parametrize("micro", [0, 9])
def test_kl_cov_written_out(micro):
    d = decisions(16, seed=4)
    lp, A = (d.flat(x).double().numpy() for x in (d.logprob_old, d.advantage))
    c = (lp - lp.mean()) * (A - A.mean())
    grads = []
    for coef in (0.0, 0.7):
        policy = Toy()
        reg = KLCov(0.15, coef)
        learner = Learner(
            policy, regularizers=[reg], config=LearnerConfig(micro_tokens=micro)
        )
        learner._pieces(reg.prepare(d))
        grads.append(policy.out.grad)
    w = Toy().out.detach().clone().requires_grad_()
    z = decision_states(Toy(), d).detach() @ w.T
    now = z.log_softmax(-1).gather(1, d.flat(d.labels)[:, None])[:, 0]
    held = torch.tensor(
        np.isin(np.arange(len(c)), np.argsort(-c)[: int(0.15 * len(c))])
    )
    extra = 0.7 * (now - d.flat(d.logprob_old)).abs()[held].sum() / len(c)
    torch.testing.assert_close(
        grads[1] - grads[0], torch.autograd.grad(extra, w)[0], atol=1e-6, rtol=1e-4
    )


# Lambda zero


@pytest.mark.parametrize(
    "settings", [{}, dict(micro_tokens=60), dict(minibatches=2, epochs=2)]
)
def test_zero_lambda_is_grpo_bit_for_bit(settings):  # golden 12
    config, ends = LearnerConfig(lr=3e-3, **settings), []
    still = AdaptiveCoefficient(0.0, 9.0, 10.0, 1.0, (0.0, 0.0))
    for regs in (
        [], [EntropyBonus(0.0)], [EntropyBonus(0.0, TokenSet("fraction", 0.33))],
        [AEnt(still, TokenSet("top_k", 7))], [Regularizer()],
    ):  # fmt: skip
        t = made(regularizers=regs, learner=config)
        log = t.train(4)
        ends.append((t, [m["policy_loss"] for m in log], [m["reward"] for m in log]))
    for t, losses, rewards in ends[1:]:
        assert same(t.policy, ends[0][0].policy)
        assert losses == ends[0][1] and rewards == ends[0][2]
    start = made().policy
    assert not same(start, ends[0][0].policy)


def test_grpo_on_policy_is_reinforce():  # rlpt 4
    t = made(regularizers=[])
    d, _ = t.collect()
    grads = []
    for kind in ("ppo_clip", "reinforce", "cispo"):
        t.policy.zero_grad()
        Learner(t.policy, PolicyLossConfig(kind))._pieces(d)
        grads.append(torch.cat([p.grad.flatten() for p in t.policy.parameters()]))
    for g in grads[1:]:
        torch.testing.assert_close(g, grads[0], atol=1e-6, rtol=1e-4)
    h = decision_states(t.policy, d)
    lp = (
        (h @ t.policy.head[0].T)
        .log_softmax(-1)
        .gather(1, d.flat(d.labels)[:, None])[:, 0]
    )
    t.policy.zero_grad()
    (-(lp * d.flat(d.advantage)).mean()).backward()
    plain = torch.cat([p.grad.flatten() for p in t.policy.parameters()])
    torch.testing.assert_close(plain, grads[0], atol=1e-6, rtol=1e-4)


# Weights in 16 bits


def rounded(dtype):
    "A policy whose weights are numbers of bfloat16."
    policy = Toy()
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(0.02).copy_(p.bfloat16())
    return policy.to(dtype)


@pytest.mark.parametrize("micro", [0, 11])
@pytest.mark.parametrize("fused", [True, False])
def test_sixteen_bits_learn_as_thirty_two(fused, micro):  # 50 steps of 1e-6
    ends = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        policy, start = rounded(dtype), rounded(torch.float32)
        config = LearnerConfig(lr=1e-6, fused=fused, micro_tokens=micro)
        learner = Learner(policy, config=config)
        for k in range(50):
            learner.update(decisions(), k)
        pairs = zip(learner.masters.weights, start.parameters(), strict=True)
        ends[dtype] = torch.cat([(w - p).detach().flatten() for w, p in pairs])
        for p, w in zip(policy.parameters(), learner.masters.weights, strict=True):
            assert p.dtype == dtype and torch.equal(p, w.to(dtype))
            assert w.dtype == torch.float32 and w.grad is None and p.grad is None
        assert (w is p) == (dtype == torch.float32)
    far = float(ends[torch.float32].abs().mean())
    assert 3e-5 < far < 6e-5
    for x in (ends[torch.bfloat16], ends[torch.float16]):
        assert float(x.abs().mean()) == pytest.approx(far, rel=0.02)
        assert float((x - ends[torch.float32]).abs().mean()) < 0.1 * far


def test_masters_are_resumed_and_follow_the_policy():
    config = LearnerConfig(lr=1e-5)
    a = Learner(rounded(torch.bfloat16), config=config)
    for k in range(5):
        a.update(decisions(), k)
    b = Learner(rounded(torch.bfloat16), config=config)
    b.policy.load_state_dict(a.policy.state_dict())
    b.load_state_dict(a.state_dict())
    for k in range(5, 8):
        assert a.update(decisions(), k) == b.update(decisions(), k)
    assert same(a.policy, b.policy)
    assert all(map(torch.equal, a.masters.weights, b.masters.weights))
    with torch.no_grad():
        a.policy.out.fill_(0.25)  # weights from elsewhere are kept
    a.update(decisions(), 9)
    assert (a.policy.out.float() - 0.25).abs().max() < 1e-2
    state = Learner(Toy()).state_dict()
    assert state["masters"] == []
    b.load_state_dict(state | {"optimizer": b.optimizer.state_dict()})
    pairs = zip(b.policy.parameters(), b.masters.weights, strict=True)
    assert all(torch.equal(p.float(), w) for p, w in pairs)
    wide = Learner(Toy(), config=config)
    with pytest.raises(ValueError, match="2 float32 copies, the learner 0"):
        wide.load_state_dict(a.state_dict())
    off = Learner(rounded(torch.bfloat16), config=LearnerConfig(masters=False))
    assert not off.masters.copies and off.update(decisions())["grad_norm"] > 0


def test_a_run_in_sixteen_bits_resumes_bit_for_bit(tmp_path):
    def run(folder=None):
        t = made(folder, learner=LearnerConfig(lr=1e-4, minibatches=2))
        t.policy.bfloat16()
        t.learner = Learner(
            t.policy, t.learner.loss, t.learner.regularizers, t.learner.config, 1
        )
        return t

    whole, part = run(), run(tmp_path)
    log = whole.train(5)
    part.train(2)
    part.save()
    again = run(tmp_path)
    assert again.resume() and again.train(5) == log[2:]
    assert same(again.policy, whole.policy)
    assert all(
        map(torch.equal, again.learner.masters.weights, whole.learner.masters.weights)
    )


# Dropout


def test_dropout_is_off_in_an_update():
    hf = pytest.importorskip("transformers")
    from rlpapers.llm.decisions import causal_decisions
    from rlpapers.llm.models import CausalPolicy
    from rlpapers.llm.native import NativeEngine

    torch.manual_seed(0)
    config = hf.GPT2Config(
        vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=64,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    assert config.resid_pdrop == 0.1
    for checkpointing in (False, True):
        model = hf.GPT2LMHeadModel(config)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim > 1:
                    p.mul_(4)
        if checkpointing:
            model.gradient_checkpointing_enable()
        policy = CausalPolicy(model.train())
        engine = NativeEngine(policy, WORLD.tokenizer)
        batch = engine.generate([[5, 6, 7], [8, 9, 10]], SamplingParams(16, seed=3), 8)
        d = causal_decisions(batch, torch.randn(16))
        m = Learner(policy, config=LearnerConfig(lr=1e-9)).update(d)
        assert m["clip_frac"] == 0 and m["ratio_max"] == pytest.approx(1, abs=1e-3)
        assert all(x.training for x in policy.modules())  # as it was
        kl = KLPenalty(CausalPolicy(hf.GPT2LMHeadModel(config).train()))
        assert not any(x.training for x in kl.reference.modules())


# Rows, ranks


def test_rows_that_do_not_count_cost_nothing():
    d = decisions(9)
    some = torch.tensor([1, 4, 5])
    counts = torch.zeros_like(d.counts)
    counts[some] = d.counts[some]
    less = dataclasses.replace(d, counts=counts)
    for agg in ("token", "sequence", "constant"):
        grads = []
        for batch in (less, d.rows(some)):
            policy = Toy()
            Learner(policy, PolicyLossConfig(agg=agg, length=5))._pieces(batch)
            assert policy.seen == 3
            grads.append(policy.out.grad)
        torch.testing.assert_close(*grads, atol=1e-7, rtol=1e-6)
    names = torch.arange(9) + 20
    bad = less.rows(torch.arange(9))
    with torch.no_grad():
        broken = Toy()
        broken.embed[bad.ids[4, 0]] = torch.nan
    with pytest.raises(TrainingError, match=r"rows \[.*24"):
        Learner(broken)._pieces(bad, names)


EDGES = """
import datetime, sys, torch
sys.path.insert(0, sys.argv[3])
import dataclasses
from test_llm_trainer import Toy, decisions
from rlpapers.llm.distributed import RankError
from rlpapers.llm.learner import Learner, LearnerConfig, TrainingError
rank = int(sys.argv[1])
torch.distributed.init_process_group(
    "gloo", "file://" + sys.argv[2], rank=rank, world_size=2,
    timeout=datetime.timedelta(seconds=20),
)
def ends(f):
    try:
        return f()
    except Exception as e:
        return type(e).__name__
# no row of rank 1 counts
d = decisions(6)
part = d.rows(torch.arange(3) + 3 * rank)
if rank:
    part = dataclasses.replace(part, counts=part.counts & False)
a = Learner(Toy(), config=LearnerConfig(lr=0.01, minibatches=3))
m = a.update(part)
assert m["grad_norm"] > 0 and m["policy_loss"] != 0, m
if rank == 0:
    b = Learner(Toy(), config=LearnerConfig(lr=0.01, minibatches=3))
    b.ranks.on = False
    n = b.update(part)
    assert all(abs(m[k] - n[k]) < 1e-5 for k in n), (m, n)
    for p, q in zip(a.parameters, b.parameters, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)
# more minibatches than rank 1 has rows
few = Learner(Toy(), config=LearnerConfig(minibatches=3))
out = [ends(lambda: few.update(decisions(6 - 4 * rank)))]
# a row of rank 1 without finite states, or log-probabilities
net = Toy()
if rank:
    with torch.no_grad():
        net.embed[3] = torch.nan
out.append(ends(lambda: Learner(net).update(decisions(20))))
bad = decisions(6)
if rank:
    bad.logprob_old[2] = float("nan")
out.append(ends(lambda: Learner(Toy()).update(bad)))
# a reward that fails on rank 1
from llm_run import made
t = made()
given = t.reward
def reward(batch):
    if rank:
        raise OSError("the judge is gone")
    return given(batch)
t.reward = reward
out.append(ends(lambda: t.train(1)))
assert t.learner.ranks.sum(1.0) == 2
print(*out)
"""


def test_two_ranks_stop_together(tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", EDGES, str(r), str(tmp_path / "meet"), str(HERE)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for r in range(2)
    ]  # fmt: skip
    want = [
        "ValueError RankError RankError RankError",
        "ValueError TrainingError TrainingError OSError",
    ]
    for p, line in zip(pair, want, strict=True):
        out, err = p.communicate(timeout=120)
        assert out.strip() == line, err[-1500:]


# The trainer's edges


def test_encode_and_stop_ids_reach_the_sampler():
    t = made()
    seen, inner = [], t.engine.generate

    def generate(prompts, params, n):
        seen.append((prompts, params))
        return inner(prompts, params, n)

    t.engine.generate = generate
    t.encode = lambda text: [7, *WORLD.tokenizer.encode(text)]
    t.config = dataclasses.replace(t.config, stop_ids=(5, 6))
    problems = t.problems(0)
    t.train(1)
    prompts, params = seen[0]
    assert prompts == [[7, *WORLD.tokenizer.encode(p.prompt)] for p in problems]
    assert params.stop_ids == (5, 6)
    assert (
        RLTrainer(t.policy, t.engine, t.tokenizer, t.task, t.reward, encode=list).encode
        is list
    )


def test_parts_made_for_others_are_refused():
    t = made()
    parts = t.policy, t.engine, t.tokenizer
    with pytest.raises(TypeError, match="called with one RewardBatch.*b.problems"):
        RLTrainer(*parts, t.task, lambda prompts, completions, **kw: [1.0])
    with pytest.raises(TypeError, match="must hold Problem.*got a dict"):
        RLTrainer(*parts, [dict(prompt="x")], t.reward)
    t.reward = Given([-1.0, 0.0])
    with pytest.raises(TrainingError, match=r"reward -1.*TrainerConfig\(reward_range="):
        t.train(1)


def test_other_penalties_are_refused(tmp_path):
    def run(*args):
        return made(tmp_path, [KLPenalty(made().policy, *args)])

    t = run(0.1)
    t.train(1)
    t.save()
    assert run(0.1).resume()
    for args in ((50.0,), (0.1, "k2")):
        with pytest.raises(ValueError, match="other settings: regularizers$"):
            run(*args).resume()
    with pytest.raises(ValueError, match="'k1', whose gradient is zero"):
        run(0.1, "k1")
    for args in ((0.1, "k4"), (-1.0,), (math.nan,)):
        with pytest.raises(ValueError, match="got"):
            run(*args)


def test_a_log_has_each_step_once(tmp_path):
    def run(log):
        t = made(tmp_path, save_every=2)
        t.callbacks.append(JsonlLog(log))
        return t

    a = tmp_path / "deep" / "a.jsonl"
    whole = run(a).train(6)
    read = lambda p: [json.loads(x) for x in p.read_text().splitlines()]
    assert read(a) == whole

    (tmp_path / "checkpoint.json").unlink()
    b = tmp_path / "b.jsonl"
    t = run(b)
    t.callbacks.append(lambda t, m: 1 / (m["step"] < 3))  # dies before saving step 4
    with pytest.raises(ZeroDivisionError):
        t.train(6)
    assert len(read(b)) == 4
    b.write_text(b.read_text() + '{"step": 4, "re')
    t = run(b)
    assert t.resume() and t.step_count == 2
    t.train(6)
    assert read(b) == whole
    t.callbacks[-1](t, {"step": 6, "reward": math.nan})
    assert read(b)[-1] == {"step": 6, "reward": None}


@pytest.mark.parametrize(
    "bad",
    [
        dict(temperature=0.0), dict(temperature=math.inf), dict(max_new_tokens=0),
        dict(advantage="foo"), dict(ddof=8), dict(ddof=-1), dict(save_every=-1),
        dict(eps=-1.0), dict(reward_range=(1.0, 0.0)), dict(seed=-1),
    ],
)  # fmt: skip
def test_settings_of_a_trainer_that_cannot_be(bad):
    with pytest.raises(ValueError, match="got"):
        TrainerConfig(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        dict(micro_tokens=-1), dict(chunk=0), dict(lr_warmup=-1), dict(epochs=0),
        dict(weight_decay=-0.1), dict(betas=(0.9, 1.0)), dict(betas=(2, 3)),
        dict(minibatches=0),
    ],
)  # fmt: skip
def test_settings_of_a_learner_that_cannot_be(bad):
    with pytest.raises(ValueError, match="got"):
        LearnerConfig(**bad)


def test_minibatches_need_rows():
    learner = Learner(Toy(), config=LearnerConfig(minibatches=9))
    with pytest.raises(ValueError, match="9 minibatches need .* got 8 on one"):
        learner.update(decisions(8))
    assert learner.update(decisions(9))["grad_norm"] > 0


def test_settings_that_cannot_be():
    for bad in (dict(prompts=0), dict(group=1)):
        with pytest.raises(ValueError, match="prompts >= 1 and group >= 2"):
            TrainerConfig(**bad)
    with pytest.raises(ValueError, match="save_every needs a folder"):
        made(save_every=2)
    assert WORLD.tokenizer.vocab_size == 90
