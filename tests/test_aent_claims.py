"AEnt's claims: stored ones are recomputed, made-up evidence gives every status."

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rlpapers.aent import claims
from rlpapers.core.checkpoint import to_csv
from rlpapers.core.claims import check, load_claims
from rlpapers.core.paths import Stored

SEEDS = 10
RESULTS = Path(__file__).parents[1] / "nbs/aent/results"


@pytest.fixture
def evidence(tmp_path):
    "Makes a stored run from tables and numbers."

    def make(numbers=None, params=None, **tables):
        (tmp_path / "result.json").write_text(json.dumps(numbers or {}))
        (tmp_path / "params.yaml").write_text(json.dumps(params or {}))
        for name, rows in tables.items():
            data = to_csv(pd.DataFrame(rows), False)
            (tmp_path / f"{name}.csv").write_bytes(data)
        return [Stored(tmp_path, "small")]

    return make


def test_claims_are_recomputed():
    assert check("aent") == []


def test_every_claim_has_its_function():
    assert {c.id for c in load_claims("aent")} == set(claims.CLAIMS)


def test_nothing_is_called_reproduced_without_evidence():
    for c in load_claims("aent"):
        stated = c.evidence and (c.n is not None or c.note)
        assert c.status.startswith("not run") or stated


# The synthetic problem


def finals(reward, spread=0.01, seeds=SEEDS):
    "Rows of `mdp` from reward(set, N, lambda)."
    settings = [("none", 0.0)]
    noise = lambda s, k: spread * (-1) ** k * (1 + k / 10) * (s != "full")
    names = ("full", "fraction", "top_k 10000", "top_k 1000")
    settings += [(s, c) for s in names for c in (0.05, 0.1, 0.15)]
    return [
        {
            "best": n, "set": s, "coef": c, "seed": k,
            "reward": reward(s, n, c) + noise(s, k),
        }
        for n in (10, 5, 2)
        for s, c in settings
        for k in range(seeds)
    ]  # fmt: skip


def theory(name, n, coef):
    "What the paper says: a clamp loses nothing, the full bonus loses with few best."
    if name == "none":
        return 0.6
    if name == "top_k 1000":
        return 0.98
    return {10: 0.95, 5: 0.75, 2: 0.3}[n] - 2.5 * max(coef - 0.05, 0)


def swapped(name, n, coef):
    "The opposite."
    other = {"full": "top_k 1000", "top_k 1000": "full"}
    return theory(other.get(name, name), n, coef)


MDP = ("clamped_better", "wider_range", "sparse")


@pytest.mark.parametrize("name", MDP)
def test_synthetic_claims_hold_where_the_theory_does(evidence, name):
    found = getattr(claims, name)(evidence(result=finals(theory)))
    assert found.status == "reproduced" and found.n == SEEDS, found


@pytest.mark.parametrize(
    ("name", "reward", "spread", "status"),
    [
        ("clamped_better", swapped, 0.01, "contradicted"),
        ("clamped_better", lambda *a: 0.8, 0.01, "undecided"),
        ("clamped_better", theory, 3.0, "undecided"),
        ("wider_range", swapped, 0.01, "contradicted"),
        ("wider_range", lambda *a: 0.5, 0.01, "undecided"),
        ("sparse", lambda s, n, c: 0.6 + 0.1 * n * (s == "full"), 0.01, "partly"),
        ("sparse", lambda s, n, c: 0.9 - 0.02 * n, 0.01, "undecided"),
        ("own_best", lambda *a: 0.95, 0.01, "reproduced"),
        ("own_best", lambda s, *a: 0.5 + 0.4 * (s != "full"), 0.01, "not reproduced"),
        ("own_best", lambda *a: 0.95, 0.15, "undecided"),
    ],
)
def test_synthetic_claims_fall(evidence, name, reward, spread, status):
    found = getattr(claims, name)(evidence(result=finals(reward, spread)))
    assert found.status == status, found


def test_the_strongest_clamp_is_compared(evidence):
    rows = finals(lambda s, n, c: {"full": 0.5, "top_k 1000": 0.9}.get(s, 0.1), 0.001)
    found = claims.clamped_better(evidence(result=rows))
    assert found.ours == pytest.approx(0.4, abs=1e-3)


@pytest.mark.skipif(not (RESULTS / "small/mdp").exists(), reason="no stored run")
def test_stored_family_by_hand():
    t = pd.read_csv(RESULTS / "small/mdp/result.csv")
    s = Stored(RESULTS / "small/mdp", "small")
    at = lambda name, n, c: t[(t["set"] == name) & (t.best == n) & (t.coef == c)].reward
    d = {
        n: at("top_k 1000", n, 0.1).to_numpy() - at("full", n, 0.1).to_numpy()
        for n in (10, 5)
    }
    found = claims.clamped_better([s])
    assert found.ours == pytest.approx(min(x.mean() for x in d.values()), rel=1e-3)
    p = sorted(stats.wilcoxon(x, alternative="greater").pvalue for x in d.values())
    assert (found.status == "reproduced") == (2 * p[0] < 0.05 and p[1] < 0.05)
    assert all(len(x) == found.n >= 10 for x in d.values())


# The exact bias


def test_exact_claims(evidence):
    row = lambda k, m, b: dict(kept=k, best=5, coef=0.1, mass=m, bound=b)
    good = [row(1000, 0.99, 0.47), row(67_000, 0.62, 0.05), row(100_000, 0.52, 0.0)]
    assert claims.bias_bound(evidence(result=good)).status == "reproduced"
    found = claims.clamp_third(evidence(result=good))
    assert found.status == "reproduced"
    assert found.ours == pytest.approx(1 - 0.38 / 0.48, abs=1e-4)
    bad = [row(1000, 0.6, 0.7), *good[1:]]
    assert claims.bias_bound(evidence(result=bad)).status == "not reproduced"
    assert claims.clamp_third(evidence(result=bad)).status == "not reproduced"
    for top, status in ((0.99, "reproduced"), (1.01, "not reproduced")):
        found = claims.gradient_bound(evidence({"ratios": [0.2, top, 0.5]}))
        assert (found.ours, found.n, found.status) == (top, 3, status)


# The small language model


def steps(grpo, aent, seeds=5, n=80):
    "Entropies of two methods over the steps."
    rng = np.random.default_rng(0)
    return [
        {
            "seed": k, "method": m, "step": t, "entropy": h(t / n),
            "clamped_entropy": h(t / n) * np.exp(0.02 * rng.normal()),
        }
        for m, h in (("grpo", grpo), ("aent", aent))
        for k in range(seeds)
        for t in range(n)
    ]  # fmt: skip


BAND = {"warmup": 10, "low": 0.08, "high": 0.2}


@pytest.mark.parametrize(
    ("grpo", "aent", "falls", "inside"),
    [
        (lambda t: 0.13 - 0.09 * t, lambda t: 0.14, "reproduced", "reproduced"),
        (lambda t: 0.13 + 0.09 * t, lambda t: 0.3, "contradicted", "not reproduced"),
        (lambda t: 0.13, lambda t: 0.1 + 0.14 * t, "undecided", "not reproduced"),
    ],
)
def test_entropy_and_band(evidence, grpo, aent, falls, inside):
    e = evidence(params=BAND, result=steps(grpo, aent))
    assert claims.entropy_falls(e).status == falls
    assert claims.band(e).status == inside


def test_the_band_is_counted_after_the_warm_up(evidence):
    e = evidence(
        params=BAND, result=steps(lambda t: 0.1, lambda t: 0.14 if t >= 0.125 else 9.0)
    )
    assert claims.band(e).ours == 1.0


@pytest.mark.parametrize(
    ("gain", "spread", "status"),
    [(0.1, 0.01, "reproduced"), (-0.1, 0.01, "contradicted"), (0, 0.1, "undecided")],
)
def test_accuracy_gain(evidence, gain, spread, status):
    rng = np.random.default_rng(0)
    score = {"grpo": 0.5, "aent": 0.5 + gain, "start": 0.4}
    rows = [
        dict(seed=k, method=m, greedy=v, sampled=v + spread * rng.normal())
        for k in range(8)
        for m, v in score.items()
    ]
    found = claims.accuracy_gain(evidence({"finals": rows}))
    assert (found.status, found.n) == (status, 8)


@pytest.mark.parametrize(
    ("full", "clamped", "aent", "gap", "below"),
    [
        (2.0, 0.2, 0.03, "reproduced", "reproduced"),
        (0.2, 2.0, 0.3, "contradicted", "not reproduced"),
        (1.0, 1.0, 0.03, "undecided", "reproduced"),
    ],
)
def test_off_support(evidence, full, clamped, aent, gap, below):
    rng = np.random.default_rng(1)
    rows = [
        dict(seed=k, method=m, coef=c, off=w * (c or 1) * np.exp(0.1 * rng.normal()))
        for k in range(6)
        for m, w, coefs in (
            ("entreg", full, (0.01, 0.1)),
            ("clamped", clamped, (0.01, 0.1)),
            ("aent", aent, (0.0,)),
        )
        for c in coefs
    ]
    e = evidence(result=rows)
    assert claims.off_support_gap(e).status == gap
    assert claims.off_support_aent(e).status == below
