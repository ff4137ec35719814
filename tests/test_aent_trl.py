"""AEnt as a trainer of TRL; needs a python that has it: pytest -m peer …"""

import inspect
import math
import warnings
from pathlib import Path

import pytest
import torch

from rlpapers.aent import trl as ours
from rlpapers.aent.params import PARAMS
from rlpapers.core.params import resolve
from rlpapers.core.paths import UserError
from rlpapers.llm.entropy import TokenSet, entropy_from_logits

pytestmark = pytest.mark.peer
FULL = {
    "warmup": 0, "beta": 1e-4, "init": 0.05, "box_low": 0.0, "box_high": 1.0,
    "lr": 1e-3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def trl():
    warnings.simplefilter("ignore")
    return pytest.importorskip("trl")


def settings(**more):
    return (
        resolve(PARAMS["full"], "aent", "full", "full").params.model_dump()
        | FULL
        | more
    )


def peer_trainer(trl, folder, p, sizes=None, **more):
    "TRL's own trainer on the same model, documents and settings."
    import datasets

    model, tok, asked = ours.tiny_parts()
    small = p | {"prompts": 4, "minibatch": 2, "group": 2, "new_tokens": 12}
    small |= sizes or {}
    fixed = dict(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=False, disable_tqdm=True, save_strategy="no",
        logging_steps=1, dataloader_pin_memory=False, num_train_epochs=1,
    )  # fmt: skip
    config = trl.GRPOConfig(**ours.grpo_arguments(small, 1, 2, **(fixed | more)))
    data = datasets.Dataset.from_list(asked)
    return trl.GRPOTrainer(model, ours._spread, config, data, processing_class=tok)


def gap(a, b):
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)


def moved(a):
    start = ours.tiny_parts()[0].parameters()
    return max(
        float((x - y).abs().max())
        for x, y in zip(a.model.parameters(), start, strict=True)
    )


@pytest.mark.parametrize("chunk", [7, 10_000])
def test_peer_entropies_are_the_same(trl, chunk):  # golden 14
    from trl.trainer.utils import entropy_from_logits as theirs

    def verl(z):  # verl.utils.torch_functional.entropy_from_logits
        pd = torch.nn.functional.softmax(z, dim=-1)
        return torch.logsumexp(z, dim=-1) - torch.sum(pd * z, dim=-1)

    def author(z, removed):  # masked logits, as in recipe/aent
        low = z.topk(removed, largest=False).indices
        masked = z.scatter(-1, low, -torch.inf)
        return masked.logsumexp(-1) - (masked.softmax(-1) * z).sum(-1)

    z = 3 * torch.randn(3, 17, 501, generator=torch.Generator().manual_seed(0))
    own = entropy_from_logits(z, chunk=chunk)
    torch.testing.assert_close(own, theirs(z, chunk), atol=2e-6, rtol=0)
    torch.testing.assert_close(own, verl(z), atol=5e-6, rtol=0)
    for p in (0.1, 0.33, 0.9):
        own = entropy_from_logits(z, token_set=TokenSet("fraction", p), chunk=chunk)
        torch.testing.assert_close(own, author(z, int(p * 501)), atol=5e-6, rtol=0)
    grads = []
    for f in (entropy_from_logits, theirs, verl):
        x = z.clone().requires_grad_()
        f(x).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(grads[0], grads[2], atol=5e-6, rtol=0)


def test_hooks_are_checked_at_the_start(trl, monkeypatch):
    ours.check_hook(trl.GRPOTrainer)
    own = ours.trainer_class()
    assert issubclass(own, trl.GRPOTrainer)
    ours.trainer_class.cache_clear()
    with monkeypatch.context() as m:
        m.delattr(trl.GRPOTrainer, ours.HOOK)
        with pytest.raises(ours.HookError, match="has no _get_per_token"):
            ours.AEntGRPOTrainer(coefficient=ours.coefficient(settings()))

        def other(self, model, input_ids, mask, keep):
            return None

        m.setattr(trl.GRPOTrainer, ours.HOOK, other, raising=False)
        with pytest.raises(ours.HookError, match="has the parameters"):
            ours.AEntGRPOTrainer(coefficient=ours.coefficient(settings()))
    ours.trainer_class.cache_clear()
    ours.trainer_class()


@pytest.mark.parametrize("autocast", [False, True])
def test_loss_and_gradient_are_those_of_the_formula(trl, tmp_path, autocast):
    "The loss of each piece, by plain torch: clipped ratio minus lambda times H~."
    p, seen = settings(fraction=0.5), []
    trainer = ours.tiny_trainer(p, tmp_path, bf16=autocast)
    compute = trainer._compute_loss

    def checked(model, inputs):
        loss = compute(model, inputs)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask, n = inputs["completion_mask"], inputs["completion_ids"].shape[1]
        whole = torch.cat([inputs["prompt_mask"], mask], 1)
        with trainer.accelerator.autocast():
            hidden = model.base_model(input_ids=ids, attention_mask=whole)[0]
        z = hidden[:, -n - 1 : -1].float() @ model.lm_head.weight.T
        lp = z.log_softmax(-1).gather(-1, ids[:, -n:, None])[..., 0]
        q = z.topk(45 - int(0.5 * 45), -1).values.log_softmax(-1)
        entropy = -(q.exp() * q).sum(-1)
        A = inputs["advantages"][:, None]
        old = inputs.get("old_per_token_logps")
        r = (lp - (lp.detach() if old is None else old)).exp()
        gain = torch.min(r.clamp(max=3.0) * A, r.clamp(0.8, 1.2) * A)
        tokens = inputs["num_items_in_batch"] / 2  # of a minibatch, on average
        lam = trainer.aent.value
        wanted = -((gain + lam * entropy) * mask).sum() / tokens
        torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-4)
        weights = [model.lm_head.weight, model.model.embed_tokens.weight]
        a, b = (
            torch.autograd.grad(x, weights, retain_graph=True) for x in (loss, wanted)
        )
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=2e-3 if autocast else 1e-6, rtol=1e-2)
        only = torch.autograd.grad(lam * (entropy * mask).sum() / tokens, weights[0])[0]
        seen.append((float(only.norm()), mask.sum().item()))
        return torch.zeros_like(loss) + loss

    trainer._compute_loss = checked
    trainer.train()
    assert len(seen) == 8 and min(s[0] for s in seen) > 1e-6
    assert len({s[1] for s in seen}) > 1  # pieces of different length


def test_lambda_moves_with_the_mean_of_a_global_step(trl, tmp_path):
    p = settings()
    trainer = ours.tiny_trainer(p, tmp_path)
    measured = []
    compute = trainer._compute_loss

    def watched(model, inputs):
        loss = compute(model, inputs)
        measured.append(trainer.meter.sums.clone())
        return loss

    trainer._compute_loss = watched
    trainer.train()
    minibatch = [(s[0] / s[1]).item() for s in measured[1::2]]  # after both pieces
    steps = [(minibatch[0] + minibatch[1]) / 2, (minibatch[2] + minibatch[3]) / 2]
    value = p["init"]
    for e in steps:
        assert p["high"] < e < math.log(45)
        value -= p["beta"] * (e - p["high"])
    assert trainer.aent.value == pytest.approx(value, rel=1e-9)
    assert trainer.entropy_coef == trainer.aent.value and trainer.aent.steps == 2
    logged = [
        r["entropy_coef"] for r in trainer.state.log_history if "entropy_coef" in r
    ]
    assert logged[:2] == [p["init"]] * 2 and logged[2] == logged[3] < p["init"]


@pytest.mark.parametrize("at", [2, 3])
def test_a_checkpoint_holds_lambda(trl, tmp_path, at):
    "Stopped after a global step, or amid one, and resumed."
    p = settings()
    more = dict(save_strategy="steps", save_steps=at)
    whole = ours.tiny_trainer(p, tmp_path / "a", **more)
    whole.train()
    where = tmp_path / "a" / f"checkpoint-{at}"
    second = ours.tiny_trainer(p, tmp_path / "b", **more)
    states = []
    load = second._load_optimizer_and_scheduler

    def loaded(checkpoint):
        load(checkpoint)
        states.append((second.aent.state_dict(), list(second.meter.means)))

    second._load_optimizer_and_scheduler = loaded
    second.train(resume_from_checkpoint=str(where))
    state, means = states[0]
    assert state["steps"] == 1 and state["value"] < p["init"]
    assert len(means) == at - 2
    assert second.aent.steps == 2 and second.state.global_step == 4
    if at == 2:  # amid a step TRL samples again
        assert second.aent.value == pytest.approx(whole.aent.value, rel=1e-9)
        assert gap(whole, second) < 1e-6
    plain = tmp_path / "plain"
    peer_trainer(trl, plain, p, **more).train()
    third = ours.tiny_trainer(p, tmp_path / "c")
    with pytest.raises(UserError, match="holds no lambda"):
        third.train(resume_from_checkpoint=str(plain / f"checkpoint-{at}"))


def test_lambda_zero_is_trls_own_grpo(trl, tmp_path):
    p = settings(method="grpo")
    a = ours.tiny_trainer(p, tmp_path / "a")
    a.train()
    b = peer_trainer(trl, tmp_path / "b", p)
    b.train()
    assert moved(a) > 1e-4 and gap(a, b) < 2e-5
    assert a.aent.value == 0.0


def test_a_resting_full_entropy_is_trls_own_bonus(trl, tmp_path):
    "One piece in a minibatch and one minibatch in a step: both divide by the same."
    p = settings(method="clamped", fraction=0.0, init=0.3)
    one = {"prompts": 2, "minibatch": 2, "group": 2}
    sizes = dict(per_device_train_batch_size=4, gradient_accumulation_steps=1)
    sizes["steps_per_generation"] = 1
    a = ours.tiny_trainer(p, tmp_path / "a", **sizes)
    a.train()
    b = peer_trainer(trl, tmp_path / "b", p, one, entropy_coef=0.3, **sizes)
    b.train()
    c = peer_trainer(trl, tmp_path / "c", p, one, **sizes)
    c.train()
    assert gap(a, b) < 5e-5 < 1e-4 < gap(b, c)


def test_the_dry_run_builds_the_trainer(trl):
    found = ours.checked_objects(settings())
    assert found["trl"].startswith(f"TRL {trl.__version__}")
    assert found["trainer"] == "2 minibatches a step, 8 documents"


def test_only_documented_hooks_are_used(trl):
    "Names of TRL that the subclass overrides or calls must exist there."
    for name in ("_compute_loss", "_save_checkpoint", "_load_optimizer_and_scheduler"):
        theirs = inspect.signature(getattr(trl.GRPOTrainer, name))
        own = inspect.signature(getattr(ours.Steered, name))
        assert list(own.parameters) == list(theirs.parameters), name
    assert Path(inspect.getsourcefile(trl.GRPOTrainer)).name == "grpo_trainer.py"
