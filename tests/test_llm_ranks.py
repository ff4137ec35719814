"""Two processes on a CPU, started by torchrun, make the update of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlpapers.core.checkpoint import load_state

SCRIPT = Path(__file__).with_name("llm_ranks.py")


def run(kind, micro, folder):
    "Run the script on one or two processes; what rank 0 wrote."
    start = [sys.executable, "-W", "ignore"]
    if kind != "single":
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        start += ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
        start += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    here = str(SCRIPT.parents[1])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    done = subprocess.run(
        [*start, str(SCRIPT), kind, str(micro), str(folder)],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return load_state(folder / kind)


@pytest.mark.slow
@pytest.mark.parametrize("micro", [0, 22])
@pytest.mark.parametrize("kind", ["sum", "fsdp"])
def test_two_ranks_make_the_update_of_one(kind, micro, tmp_path):
    one, two = (run(k, micro, tmp_path) for k in ("single", kind))
    assert two["tokens"] == [4.0, 20.0] and one["tokens"] == 24.0
    for step in ("once", "twice"):
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
