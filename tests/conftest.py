"The surroundings of a test run, also when pytest is called by itself."

import os
import signal

import pytest

# started in the background a shell hands down an ignored Ctrl-C; the tests send it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


os.environ.setdefault("RLPAPERS_PRESET", "smoke")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def evidence(tmp_path):
    "Makes a stored run from tables and numbers."
    import json

    import pandas as pd

    from rlpapers.core.checkpoint import to_csv
    from rlpapers.core.paths import Stored

    def make(numbers=None, params=None, **tables):
        (tmp_path / "result.json").write_text(json.dumps(numbers or {}))
        (tmp_path / "params.yaml").write_text(json.dumps(params or {}))
        for name, rows in tables.items():
            data = to_csv(pd.DataFrame(rows), False)
            (tmp_path / f"{name}.csv").write_bytes(data)
        return [Stored(tmp_path, "small")]

    return make
