"""One update of a tiny policy; started by torchrun in test_llm_ranks.py."""

import copy
import sys
from pathlib import Path

import torch

from rlpapers.core.checkpoint import save_state
from rlpapers.llm.decisions import Decisions
from rlpapers.llm.distributed import as_whole, gathered, load_weights, shard
from rlpapers.llm.entropy import TokenSet
from rlpapers.llm.learner import Learner, LearnerConfig, Regularizer
from rlpapers.llm.models import CausalPolicy
from rlpapers.llm.native import NativeEngine
from rlpapers.llm.sampling import SamplingParams
from rlpapers.llm.tokenization import WordTokenizer
from rlpapers.llm.transformer import TinyTransformer, TransformerConfig

V, ROWS, L, R = 45, 6, 11, 7


class Bonus(Regularizer):
    token_set = TokenSet("fraction", 0.33)

    def coefficient(self):
        return 0.05


def policy():
    torch.manual_seed(0)
    return CausalPolicy(TinyTransformer(TransformerConfig(V, d_model=32, heads=2)))


def batch():
    "Six rows of 1 to 7 decisions; the first three have far fewer than the others."
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(V, (ROWS, L), generator=g)
    counts = torch.arange(R) < torch.tensor([1, 2, 1, 7, 6, 7])[:, None]
    at = (torch.arange(R) + L - R - 1).expand(ROWS, R)
    labels = torch.randint(V, (ROWS, R), generator=g)
    old, A = torch.randn(2, ROWS, R, generator=g).unbind()
    one = torch.ones(ROWS, R)
    mask = torch.ones(ROWS, L, dtype=torch.bool)
    return Decisions(ids, mask, at, labels, old - 4, A, one, counts)


def weights(net):
    return {k: v.clone() for k, v in as_whole(net.state_dict()).items()}


def main(kind: str, micro: int, folder: Path) -> None:
    if not kind.startswith("single"):
        torch.distributed.init_process_group("gloo")
    net, d = policy(), batch()
    if kind.endswith("16"):
        net.bfloat16()
    if kind.endswith("0"):  # the rows of rank 0 do not count
        d.counts[:3] = False
    if kind.startswith("fsdp"):
        shard(net)
    lr = 1e-5 if kind.endswith("16") else 1e-2
    config = LearnerConfig(lr=lr, micro_tokens=micro)
    learner = Learner(net, regularizers=[Bonus()], config=config)
    ranks = learner.ranks
    if ranks.on:
        half = slice(0, 3) if ranks.rank == 0 else slice(3, 6)
        d = d.rows(torch.arange(ROWS)[half])
    metrics = learner.update(d)
    once = weights(net)
    metrics |= {f"again/{k}": v for k, v in learner.update(d).items()}
    state = {"once": once, "twice": weights(net), "metrics": metrics}
    state |= {
        "learner": copy.deepcopy(learner.state_dict()),
        "tokens": float(d.counts.sum()),
    }
    words = WordTokenizer(["<pad>", "<eos>", *(f"w{i}" for i in range(V - 2))])
    asked = [[2 + i, 3, 4] for i in range(2 + ranks.rank)]  # not as many on each
    with gathered(net):
        out = NativeEngine(net, words).generate(asked, SamplingParams(9, seed=1))
    state["sampled"] = out.logprobs[:2]
    # back to the first update, by whole tensors
    load_weights(net, state["once"])
    back = weights(net)
    assert all(torch.equal(back[k], v) for k, v in once.items())
    fresh = Learner(net, regularizers=[Bonus()], config=config)
    fresh.load_state_dict(state["learner"])
    fresh.update(d)
    state["third"] = weights(net)
    state["masters"] = fresh.masters.state_dict()
    if ranks.on:
        every = [None, None]
        torch.distributed.all_gather_object(every, state["tokens"])
        state["tokens"] = every
    if ranks.rank == 0:
        save_state(folder / kind, state)
    if ranks.on:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
