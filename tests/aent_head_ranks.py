"""The clamped head of a sharded model; started by torchrun in test_llm_ranks.py."""

import sys

import torch
import transformers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rlpapers.aent.trl import add_clamped_head
from rlpapers.llm.entropy import TokenSet


def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    net = transformers.LlamaForCausalLM(config)
    add_clamped_head(net, TokenSet("fraction", 0.33))
    return net


def loss(net, rank):
    "Different tokens on each rank."
    ids = torch.randint(97, (2, 7), generator=torch.Generator().manual_seed(rank))
    labels = ids.clone()
    labels[:, : 2 + 3 * rank] = -100
    out = net(input_ids=ids, labels=labels, fused_lm_head=True)
    return -(out.log_probs.sum() + out.entropy.sum())


def main(own_group: bool) -> None:
    torch.distributed.init_process_group("gloo")
    net, plain = model(), model()
    mesh = init_device_mesh("cpu", (2,))
    for layer in net.model.layers:
        fully_shard(layer, mesh=mesh)
    if own_group:  # gathered by the head itself
        fully_shard(net.lm_head, mesh=mesh)
    fully_shard(net, mesh=mesh)
    loss(net, torch.distributed.get_rank()).backward()
    for rank in range(2):
        (loss(plain, rank) / 2).backward()
    for p, (k, q) in zip(net.parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(
            p.grad.full_tensor(), q.grad, atol=1e-5, rtol=1e-4, msg=lambda m, k=k: k + m
        )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1] == "own")
