"""Problems and rewards inside TRL, verl and OpenRLHF."""

import json
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch

from rlpapers.core.paths import UserError
from rlpapers.llm import frameworks as f
from rlpapers.llm.rewards import RewardBatch, RewardError, TaskReward
from rlpapers.llm.tasks import GymTask, Problem


class Words:
    "1 where the answer is among the words."

    name = "words"

    def __call__(self, batch):
        pairs = zip(batch.texts, batch.problems, strict=True)
        return torch.tensor([float(p.answer in t.split()) for t, p in pairs])


ASKED = [Problem(f"say {i}", str(i), {"n": i, "pair": (i, [i])}) for i in range(4)]
TEXTS = ["0", "it is 1", "12", ""]
WANT = [1.0, 1.0, 0.0, 0.0]


def column(rows, name):
    return [r[name] for r in rows]


@pytest.mark.parametrize("chat", [True, False])
def test_trl(chat):
    rows = f.trl_rows(ASKED, chat)
    assert json.loads(json.dumps(rows)) == rows
    score = f.trl_reward(Words())
    asked, known = column(rows, "prompt"), column(rows, "problem")
    assert score(prompts=asked, completions=TEXTS, problem=known, step=1) == WANT
    chats = [[{"role": "assistant", "content": t}] for t in TEXTS]
    assert score(prompts=asked, completions=chats, problem=known) == WANT
    assert score.__name__ == "words"


def test_verl(tmp_path):
    table, score = f.verl_table(ASKED, "mine", "test"), f.verl_reward(Words())
    assert list(table) == [
        "data_source", "prompt", "ability", "reward_model", "extra_info",
    ]  # fmt: skip
    if find_spec("pyarrow"):
        table.to_parquet(tmp_path / "t.parquet")
        table = pd.read_parquet(tmp_path / "t.parquet")
    for (_, r), text, want in zip(table.iterrows(), TEXTS, WANT, strict=True):
        truth = r.reward_model["ground_truth"]
        assert score(r.data_source, text, truth, r.extra_info) == want
        assert score("other", text, truth) == want
        assert r.extra_info["split"] == "test" and r.prompt[0]["role"] == "user"


def test_openrlhf():
    rows, score = f.openrlhf_rows(ASKED), f.openrlhf_reward(Words())
    asked, labels = column(rows, "input"), column(rows, "label")
    queries = [a + " " + t for a, t in zip(asked, TEXTS, strict=True)]
    out = score(queries, asked, labels, more=1)
    assert out["rewards"].tolist() == out["scores"].tolist() == WANT
    assert score(["say 0"], asked[:1], labels[:1])["rewards"].tolist() == [0.0]
    with pytest.raises(UserError, match="does not begin with its prompt"):
        score(["other 0"], asked[:1], labels[:1])


@pytest.mark.parametrize("name", ["chain_sum", "countdown", "knights_knaves"])
def test_data_sets_are_scored_as_before(name):
    pytest.importorskip("reasoning_gym")
    task, rng = GymTask(name), np.random.default_rng(1)
    asked = [task.sample(rng) for _ in range(3)]
    texts = [f"<answer>{p.answer}</answer>" for p in asked[:2]] + ["<answer>-</answer>"]
    want = TaskReward(task)(RewardBatch(texts, asked)).tolist()
    rows = f.trl_rows(asked)
    score = f.trl_reward(TaskReward(task))
    assert want[0] == 1.0
    assert score(column(rows, "prompt"), texts, problem=column(rows, "problem")) == want


@pytest.mark.parametrize("meta", [{1: 2}, {"a": {1}}, {"a": object()}, {"a": b"x"}])
def test_what_cannot_travel_is_refused(meta):
    for make in (f.trl_rows, f.openrlhf_rows, lambda p: f.verl_table(p, "s")):
        with pytest.raises(UserError, match="meta of the problem 'q' is not JSON"):
            make([Problem("q", "1", meta)])


@pytest.mark.parametrize("text", ["42", "[]", "{", '{"answer": "1"}', None])
def test_rows_of_others_are_refused(text):
    with pytest.raises(UserError, match="not made by this module"):
        f.trl_reward(Words())(["q"], ["1"], problem=[text])


def test_empty_and_short():
    for make in (f.trl_rows, f.openrlhf_rows, lambda p: f.verl_table(p, "s")):
        with pytest.raises(ValueError, match="data set is empty"):
            make([])
    short = f.trl_reward(lambda batch: torch.zeros(1))
    rows = f.trl_rows(ASKED)
    with pytest.raises(RewardError, match="1 values for 4 texts"):
        short(column(rows, "prompt"), TEXTS, problem=column(rows, "problem"))


@pytest.mark.peer
def test_trl_trains_on_our_rewards(tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    from rlpapers.aent.trl import tiny_parts

    model, tok, _ = tiny_parts()
    asked = [Problem(f"ann has {i} . how many ?", str(i), {"n": i}) for i in range(8)]
    seen = []

    class Watched(Words):
        def __call__(self, batch):
            seen.extend((p.prompt, p.answer, p.meta["n"]) for p in batch.problems)
            return super().__call__(batch)

    config = trl.GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=2,
        max_completion_length=6, max_steps=2, use_cpu=True, bf16=False,
        report_to="none",
        save_strategy="no", logging_steps=1, disable_tqdm=True,
        gradient_checkpointing=False, dataloader_pin_memory=False,
    )  # fmt: skip
    rows = datasets.Dataset.from_list(f.trl_rows(asked, chat=False))
    trainer = trl.GRPOTrainer(
        model, f.trl_reward(Watched()), config, rows, processing_class=tok
    )
    trainer.train()
    logged = [m for m in trainer.state.log_history if "rewards/words/mean" in m]
    assert len(logged) == 2 and len(seen) == 8
    assert all(q == f"ann has {a} . how many ?" and a == str(n) for q, a, n in seen)
