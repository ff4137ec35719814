"VRAIL's claim functions on made-up evidence: one case for each status they can give."

import json

import numpy as np
import pytest

from rlpapers.core.checkpoint import to_npz
from rlpapers.core.paths import Stored
from rlpapers.vrail import claims
from rlpapers.vrail.features import TaxiFeatures
from rlpapers.vrail.report import contrast


@pytest.fixture
def study(tmp_path):
    "Makes a stored study from arrays by configuration."

    def make(configs, theta=None):
        for cell in configs.values():
            reach = cell.pop("times", None)
            if reach is not None:
                cell["reach"] = {"0": [None if x is None else float(x) for x in reach]}
            cell.setdefault("reach", {})
        text = json.dumps({"seeds": [], "configs": configs})
        (tmp_path / "result.json").write_text(text)
        (tmp_path / "params.yaml").write_text("cycles: 20\nepisodes: 100\ntrim: 2\n")
        (tmp_path / "final.npz").write_bytes(to_npz(theta or {}))
        return Stored(tmp_path, "small")

    return make


def rate(k, n):
    return {"converged": [True] * k + [False] * (n - k)}


@pytest.mark.parametrize(
    ("ours", "dqn", "n", "status"),
    [
        (10, 8, 10, "undecided"),
        (5, 10, 10, "contradicted"),
        (100, 75, 100, "reproduced"),
        (79, 80, 100, "not reproduced"),
    ],
)
def test_stability(study, ours, dqn, n, status):
    s = study({"linear": rate(ours, n), "quadratic": rate(dqn, n), "dqn": rate(dqn, n)})
    found = claims.stability_linear([s])
    assert found.status == status
    assert found.ours == pytest.approx((ours - dqn) / n) and found.n == n


@pytest.mark.parametrize(
    ("shift", "status"),
    [(0, "undecided"), (-200, "reproduced"), (200, "contradicted")],
)
def test_speed(study, shift, status):
    base = np.array([520, 560, 600, 640, 680, 720, 760, 800, 840, 880])
    cell = lambda d: {"times": list(base + d)}
    wobble = np.array([-150, 150] * 5)
    s = study(
        {
            "dqn": cell(0),
            "quadratic": cell(shift + wobble * (shift == 0)),
            "code_quadratic": cell(shift),
            "linear": cell(shift),
        }
    )
    assert claims.speed_quadratic([s]).status == status


@pytest.mark.parametrize(
    ("shift", "status"), [(5, "reproduced"), (300, "not reproduced")]
)
def test_linear_is_as_fast(study, shift, status):
    base = np.arange(500, 900, 40)
    cells = {k: {"times": list(base)} for k in ("dqn", "quadratic", "code_quadratic")}
    s = study(cells | {"linear": {"times": list(base + shift)}})
    assert claims.speed_linear([s]).status == status


def test_a_run_that_never_arrives_counts_as_the_last_episode(study):
    cells = {k: {"times": [600] * 9 + [None]} for k in ("dqn", *claims.SPEED)}
    found = claims.speed_quadratic([study(cells)])
    assert found.ours == 0


@pytest.mark.parametrize(("sign", "status"), [(1, "reproduced"), (-1, "contradicted")])
def test_subgoal(study, sign, status):
    rng = np.random.default_rng(0)
    theta = rng.normal(0, 0.1, (10, 19))
    theta[:, 14] += 4 * sign
    theta[3] = np.nan  # a diverged run is left out, and said so by n
    t = contrast(theta, TaxiFeatures("onehot19"))
    cell = {"contrast": [None if np.isnan(x) else float(x) for x in t]}
    s = study({"linear": cell}, {"linear.theta": theta})
    found = claims.subgoal_linear([s])
    assert (found.status, found.n) == (status, 9)


def test_contrast_wants_the_kind_of_its_weights():
    "Nineteen seeds of nineteen weights are not one matrix."
    f = TaxiFeatures("onehot19")
    assert contrast(np.zeros((19, 19)), f).shape == (19,)
    assert contrast(np.zeros((19, 19)), f, kind="quadratic").shape == ()
    with pytest.raises(ValueError, match="must end in"):
        contrast(np.zeros(19), f, kind="quadratic")


@pytest.mark.parametrize(
    ("with_", "without", "n", "status"),
    [
        (5, 5, 5, "undecided"),
        (60, 60, 60, "reproduced"),
        (10, 60, 60, "not reproduced"),
        (0, 0, 60, "undecided"),
    ],
)
def test_agnostic(study, with_, without, n, status):
    cells = {}
    for agent in ("double_dqn", "q_learning", "sarsa"):
        cells |= {f"{agent}:linear": rate(with_, n), f"{agent}:dqn": rate(without, n)}
    assert claims.agnostic([study(cells)]).status == status


def test_a_diverged_run_is_the_worst_of_a_collapse(study):
    cell = lambda *x: {"final": list(x)}
    s = study(
        {
            "unshaped_adam": cell(None, None, -190.0),
            "unshaped_ridge": cell(-150.0, -180.0, None),
        }
    )
    assert claims.unshaped_collapse([s]).status == "reproduced"
