"""AEnt as a trainer of TRL; needs a python that has it: pytest -m peer …"""

import inspect
import json
import math
import os
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


TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}so {% endif %}"
)


@pytest.fixture
def small(trl, tmp_path):
    "A random model in a folder, a file of ten problems, and settings that fit them."
    import datasets
    import transformers

    from rlpapers.aent.real import random_folder

    random_folder(tmp_path / "model")
    tok = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    tok.chat_template = TEMPLATE
    tok.save_pretrained(tmp_path / "model")
    rows = [{"problem": f"what is {i} plus 1 ?", "answer": f"{i},1"} for i in range(10)]
    rows[2]["answer"], rows[5]["answer"], rows[7]["answer"] = "", "\\boxed{}", "$ $"
    rows[8]["problem"] = "long " * 200
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    sizes = {"prompts": 4, "minibatch": 2, "group": 2, "new_tokens": 8, "epochs": 2}
    return settings(
        **sizes, model=str(tmp_path / "model"), dataset=str(tmp_path / "rows.parquet"),
        prompt_tokens=64, vllm="off", save_every=1, dry_run=False,
    )  # fmt: skip


CPU = dict(
    use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
    disable_tqdm=True, logging_steps=1, dataloader_pin_memory=False,
)  # fmt: skip


def test_rows_that_cannot_be_used_are_left_out(trl, small):
    import transformers

    tok = transformers.AutoTokenizer.from_pretrained(small["model"])
    data = ours.training_data(small | {"instruction": "box it"}, tok)
    assert sorted(data["answer"]) == [f"\\boxed{{{i},1}}" for i in (0, 1, 3, 4, 6, 9)]
    assert all(r[0]["content"].endswith("?\nbox it") for r in data["prompt"])
    with pytest.raises(UserError, match="6 of 10 rows can be used, a step needs 8"):
        ours.training_data(small | {"prompts": 8}, tok)
    with pytest.raises(UserError, match="is none of math-lighteval"):
        ours.open_data("math")


def test_the_same_command_goes_on(trl, small, tmp_path, capsys):
    "One global step, then the rest; and what a folder of other settings says."
    folder = tmp_path / "training"
    ours.train_full(small, folder, max_steps=2, **CPU)
    assert [c.name for c in ours.checkpoints(folder)] == ["checkpoint-2"]
    started = []
    own = ours.Steered._load_optimizer_and_scheduler

    def watched(self, checkpoint):
        started.append(checkpoint)
        own(self, checkpoint)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(ours.Steered, "_load_optimizer_and_scheduler", watched)
        ours.train_full(small, folder, max_steps=4, **CPU)
    assert [Path(c).name for c in started] == ["checkpoint-2"]
    names = [c.name for c in ours.checkpoints(folder)]
    assert names == ["checkpoint-2", "checkpoint-4"]
    rows = ours.history(folder)
    assert [r["step"] for r in rows if "entropy_coef" in r] == [1, 2, 3, 4]
    with pytest.raises(UserError, match="another method"):
        ours.train_full(small | {"method": "entreg"}, folder, **CPU)


@pytest.mark.parametrize("vllm", ["colocate", "server"])
def test_trl_takes_the_settings_of_vllm(trl, tmp_path, vllm):
    "And corrects nothing the paper does not correct."
    p = settings(vllm=vllm, vllm_parallel=2)
    more = {"output_dir": str(tmp_path), "bf16": False, "use_cpu": True}
    config = trl.GRPOConfig(
        **ours.grpo_arguments(p, 1, **(ours.vllm_arguments(p) | more))
    )
    assert config.use_vllm and config.vllm_mode == vllm
    assert config.vllm_importance_sampling_correction is False
    assert trl.GRPOConfig.__dataclass_fields__[
        "vllm_importance_sampling_correction"
    ].default  # TRL's own choice is another


def test_entreg_is_trls_own_bonus(trl, tmp_path):
    p = settings(method="entreg", init=0.3)
    one = {"prompts": 2, "minibatch": 2, "group": 2}
    sizes = dict(per_device_train_batch_size=4, gradient_accumulation_steps=1)
    sizes["steps_per_generation"] = 1
    a = ours.tiny_trainer(p, tmp_path / "a", **sizes)
    a.train()
    b = peer_trainer(trl, tmp_path / "b", p, one, entropy_coef=0.3, **sizes)
    b.train()
    assert gap(a, b) < 5e-5 and a.aent.value == 0.3


def test_the_module_is_what_accelerate_launches(trl, small, tmp_path):
    "The command of the page, one process, in a process of its own."
    import subprocess
    import sys

    folder = tmp_path / "training"
    wanted = {k: v for k, v in small.items() if k in SMALL} | {"device": "cpu"}
    pairs = [f"{k}={json.dumps(v)}" for k, v in wanted.items()]
    command = [sys.executable, "-m", "rlpapers.aent.trl", "--folder", str(folder)]
    command += [x for pair in pairs for x in ("-p", pair)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    got = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert got.returncode == 0, got.stderr[-3000:]
    assert ours.checkpoints(folder) and "clamped_entropy" in got.stdout


SMALL = {
    "prompts", "minibatch", "group", "new_tokens", "epochs", "model", "dataset",
    "prompt_tokens", "vllm", "save_every", "dry_run",
}  # fmt: skip


def page(folder, values, **env):
    "Run the page of the training through the command line."
    import subprocess
    import sys

    call = "from rlpapers.cli.app import main; raise SystemExit(main())"
    command = [sys.executable, "-c", call, "run", "aent", "full", "--preset", "full"]
    command += ["--out", str(folder), "--name", "r"]
    command += [x for k, v in values.items() for x in ("-p", f"{k}={json.dumps(v)}")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", **env}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def test_the_page_evaluates_a_training(trl, small, tmp_path):
    "What the launched module trained, the page draws and judges."
    folder = tmp_path / "training"
    ours.train_full(small, folder, max_steps=4, **CPU)
    values = {k: v for k, v in small.items() if k in SMALL}
    values |= {"trained": str(folder), "benchmarks": [small["dataset"]]}
    values |= {"device": "cpu"}
    got = page(tmp_path / "run", values)
    assert got.returncode == 0, (got.stdout + got.stderr)[-3000:]
    [file] = (tmp_path / "run").rglob("result.json")
    result = json.loads(file.read_text())
    assert result["trained"]["clamped_entropy"] > 0
    assert set(result["scores"]) == {"last", "last five", "peak", "peak at"}
    kept = json.loads((folder / "evaluation" / "checkpoint-4.json").read_text())
    assert kept["how"]["eval_temperature"] == 0.6 and kept["how"]["eval_top_k"] == 20
    assert [len(v) for v in kept["scores"].values()] == [7]  # of ten rows


def test_the_page_is_not_launched_on_several_gpus(trl, small, tmp_path):
    got = page(tmp_path / "run", {"device": "cpu"}, WORLD_SIZE="4")
    assert got.returncode and "launch the module instead" in got.stdout + got.stderr
    assert not list((tmp_path / "run").rglob("training"))
