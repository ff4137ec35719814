"""Two processes on a CPU, started by torchrun, make the update of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlpapers.core.checkpoint import load_state

HERE = Path(__file__).parent


def start(script, *args, ranks=2):
    "Run a script, by torchrun on several ranks."
    command = [sys.executable, "-W", "ignore"]
    if ranks > 1:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [*command, str(HERE / script), *map(str, args)],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def run(kind, micro, folder):
    "One update, of a process or of two; what rank 0 wrote."
    start(
        "llm_ranks.py", kind, micro, folder, ranks=1 + (not kind.startswith("single"))
    )
    return load_state(folder / kind)


@pytest.mark.slow
@pytest.mark.parametrize("micro", [0, 22])
@pytest.mark.parametrize("kind", ["sum", "fsdp"])
def test_two_ranks_make_the_update_of_one(kind, micro, tmp_path):
    one, two = (run(k, micro, tmp_path) for k in ("single", kind))
    assert two["tokens"] == [4.0, 20.0] and one["tokens"] == 24.0
    for step in ("once", "twice", "third"):
        for k, v in one[step].items():
            torch.testing.assert_close(two[step][k], v, atol=1e-6, rtol=0)
    moved = max(
        float((one["twice"][k] - one["once"][k]).abs().max()) for k in one["once"]
    )
    assert moved > 1e-3
    for k, v in one["metrics"].items():
        if not k.endswith("ratio_max"):  # of a rank
            assert two["metrics"][k] == pytest.approx(v, rel=1e-4, abs=1e-6), k
    torch.testing.assert_close(two["sampled"], one["sampled"], atol=1e-5, rtol=0)
    a, b = (x["learner"]["optimizer"]["state"] for x in (one, two))
    assert set(a) == set(b)
    for i in a:
        torch.testing.assert_close(
            a[i]["exp_avg"], b[i]["exp_avg"], atol=1e-6, rtol=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sum0", "fsdp0"])
def test_a_rank_without_decisions_that_count(kind, tmp_path):
    one, two = run("single0", 22, tmp_path), run(kind, 22, tmp_path)
    assert two["tokens"] == [0.0, 20.0] and one["tokens"] == 20.0
    for step in ("once", "twice", "third"):
        for k, v in one[step].items():
            torch.testing.assert_close(two[step][k], v, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sum16", "fsdp16"])
def test_two_ranks_in_sixteen_bits(kind, tmp_path):
    "The float32 copies move as those of one process."
    one, two = run("single16", 22, tmp_path), run(kind, 22, tmp_path)
    assert len(one["masters"]) == len(two["masters"]) > 0
    gap = torch.cat(
        [
            (a - b).abs().flatten()
            for a, b in zip(one["masters"], two["masters"], strict=True)
        ]
    )
    assert float(gap.mean()) < 2e-6  # of two steps of 1e-5
    for k, v in one["third"].items():
        assert v.dtype == torch.bfloat16
        assert float((two["third"][k] != v).float().mean()) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("group", ["root", "own"])
def test_the_clamped_head_of_a_sharded_model(group):
    "In the group of the whole model, or in one of its own."
    pytest.importorskip("transformers")
    start("aent_head_ranks.py", group)
