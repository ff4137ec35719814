"AEnt's claims: stored ones are recomputed, made-up evidence gives every status."

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rlpapers.aent import claims
from rlpapers.core.claims import check, load_claims
from rlpapers.core.paths import Stored
from rlpapers.core.stats import bootstrap

SEEDS = 10
RESULTS = Path(__file__).parents[1] / "nbs/aent/results"


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


def test_the_clamp_to_1000_is_compared(evidence):
    reward = {"full": 0.5, "top_k 1000": 0.95}
    rows = finals(lambda s, n, c: reward.get(s, 0.1), 0.001)
    rows += [r | {"set": "top_k 100"} for r in rows if r["set"] == "top_k 10000"]
    e = evidence(result=rows)
    assert claims.clamped_better(e).ours == pytest.approx(0.45, abs=1e-3)
    assert claims.wider_range(e).ours == pytest.approx(0.1)  # the whole grid
    few = [r for r in rows if r["set"] != "top_k 1000"]
    with pytest.raises(ValueError, match="no set 'top_k 1000' at N = 10"):
        claims.clamped_better(evidence(result=few))


def test_only_n_of_at_least_five_is_judged(evidence):
    at = lambda s, n, c: 0.5 + 0.2 * (s == "top_k 1000") * (-1) ** (n == 2)
    assert claims.clamped_better(evidence(result=finals(at))).status == "reproduced"


def test_cases_of_a_family_are_corrected(evidence):
    "Five seeds: p = 1/32 in each case, and 1/16 after Holm."
    found = claims.clamped_better(evidence(result=finals(theory, seeds=5)))
    assert found.status == "undecided" and found.interval[0] > 0.1
    assert "p = 6.2e-02" in found.note


@pytest.mark.parametrize("name", ["clamped_better", "wider_range", "own_best"])
def test_a_few_seeds_decide_nothing(evidence, name):
    for reward in (theory, swapped, lambda *a: 0.95):
        found = getattr(claims, name)(evidence(result=finals(reward, seeds=4)))
        assert found.status == "undecided" and found.n == 4, found


def test_the_difference_at_a_lower_coefficient_is_told(evidence):
    rows = finals(lambda s, n, c: 0.5 + 0.1 * (s == "top_k 1000"), spread=0.0)
    lower = finals(lambda s, n, c: 0.5 - 0.2 * (s == "top_k 1000"), spread=0.0)
    assert "0.07" not in claims.clamped_better(evidence(result=rows)).note
    rows += [r | {"coef": 0.07} for r in lower if r["coef"] == 0.05]
    found = claims.clamped_better(evidence(result=rows))
    assert (
        found.ours == pytest.approx(0.1) and "at lambda 0.07 N = 10 -0.2" in found.note
    )
    assert "N = 5 -0.2" in found.note and "N = 2 -0.2" in found.note


def test_the_width_is_a_length_of_lambda(evidence):
    "Nearest point of the grid, for a million values of lambda between its ends."
    rng, grid = np.random.default_rng(3), [0.04, 0.05, 0.07, 0.1, 0.17, 0.25]
    names = "full", "top_k 1000"
    drawn = {s: rng.choice([0.88, 0.9, 0.91, 0.99], (6, SEEDS)) for s in names}
    rows = [
        dict(best=5, set=s, coef=c, seed=k, reward=drawn[s][i, k])
        for s in drawn
        for i, c in enumerate(grid)
        for k in range(SEEDS)
    ]
    fine = np.linspace(grid[0], grid[-1], 1_000_001)
    near = np.abs(fine[:, None] - np.array(grid)).argmin(1)
    width = {s: (drawn[s] > 0.9)[near].mean(0) * 0.21 for s in drawn}
    found = claims.wider_range(evidence(result=rows[::-1]))
    gain = width["top_k 1000"] - width["full"]
    assert found.ours == pytest.approx(gain.mean(), abs=1e-4)
    p = stats.wilcoxon(gain.round(4), alternative="greater").pvalue
    assert f"p = {p:.1e}" in found.note
    for s, name in (("full", "full"), ("top_k 1000", "clamped")):
        good = [np.array(grid)[c > 0.9] for c in drawn[s].T]
        ratio = np.exp(np.mean([np.log(g.max() / g.min()) for g in good if len(g)]))
        words = f"{name} {width[s].mean():.3f} (largest/smallest {ratio:.2f})"
        assert words in found.note
    assert "five" in found.note and "undecided" in found.note


def test_each_set_is_taken_at_its_own_best(evidence):
    best = {"full": 0.05, "top_k 1000": 0.15}
    rows = finals(lambda s, n, c: 0.95 - 5 * abs(c - best.get(s, 0.1)))
    found = claims.own_best(evidence(result=rows))
    assert found.status == "reproduced" and abs(found.ours) < 0.02
    assert found.note == "N = 10, full at 0.05, clamped at 0.15"


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
    for name in ("gradient-bound", "bias-bound", "clamp-third"):
        [claim] = [c for c in load_claims("aent") if c.id == name]
        assert "omputed" in claim.statement
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
            "lambda": 0.005,
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


def test_the_band_is_that_of_the_clamped_entropy(evidence):
    flat = steps(lambda t: 0.1, lambda t: 0.14)
    e = evidence(params=BAND, result=[r | {"entropy": 9.0} for r in flat])
    assert claims.band(e).status == "reproduced"
    e = evidence(params=BAND, result=[r | {"clamped_entropy": 9.0} for r in flat])
    assert claims.band(e).status == "not reproduced"


def test_the_band_names_the_others_and_how_often_lambda_moved(evidence):
    rows = steps(lambda t: 0.1 if t < 0.5 else 0.01, lambda t: 0.14)
    moves = lambda t: 0.005 + 0.001 * min(max(t - 29, 0), 10)  # from step 30 to 39
    for r in rows:
        r["lambda"] = moves(r["step"])
    rows += [
        r | {"method": "clamped", "clamped_entropy": 0.1 if r["seed"] else 9.0}
        for r in rows
        if r["method"] == "grpo"
    ]
    note = claims.band(evidence(params=BAND, result=rows)).note
    assert "GRPO 0.43" in note  # 30 of 70 steps
    assert "clamped with a fixed lambda 0.80" in note
    assert "lambda moved in 0.14 of the steps" in note  # 10 of 69
    rows = [r for r in rows if r["method"] == "aent"]
    assert "GRPO" not in claims.band(evidence(params=BAND, result=rows)).note


def test_the_entropy_falls_in_every_seed(evidence):
    rows = steps(lambda t: 0.13 - 0.1 * t, lambda t: 0.14, seeds=8)
    for r in rows:
        if r["seed"] == 7:
            r["entropy"] = 0.13 + 0.001 * r["step"]
    found = claims.entropy_falls(evidence(params=BAND, result=rows))
    assert found.status == "undecided" and found.interval[1] < 1


@pytest.mark.parametrize(
    ("seeds", "late", "status"),
    [(5, 0.15, "reproduced"), (5, 0.05, "contradicted"), (4, 0.15, "undecided")],
)
def test_the_entropy_is_held_at_the_end(evidence, seeds, late, status):
    "Only the last tenth counts."
    aent = lambda t: late if t >= 0.9 else 0.1 if late > 0.1 else 9.0
    found = claims.entropy_held(
        evidence(params=BAND, result=steps(lambda t: 0.1, aent, seeds))
    )
    assert found.status == status
    assert found.ours == pytest.approx(late - 0.1)


@pytest.mark.parametrize(
    ("gain", "spread", "status"),
    [(0.1, 0.01, "reproduced"), (-0.1, 0.01, "contradicted"), (0, 0.1, "undecided")],
)
def test_accuracy_gain(evidence, gain, spread, status):
    rng = np.random.default_rng(0)
    score = {"grpo": 0.5, "aent": 0.5 + gain, "start": 0.4}
    rows = [
        dict(seed=k, method=m, greedy=1 - v, sampled=v + spread * rng.normal())
        for k in range(8)
        for m, v in score.items()
    ]
    found = claims.accuracy_gain(evidence({"finals": rows}))
    assert (found.status, found.n) == (status, 8)
    few = [r for r in rows if r["seed"] < 4]
    assert claims.accuracy_gain(evidence({"finals": few})).status == "undecided"


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
    rows += [dict(seed=k, method="grpo", coef=0.0, off=0.1 * k) for k in range(3)]
    lam = lambda t: 0.001 if t < 25 else 0.002
    path = [
        {
            "seed": k,
            "method": m,
            "coef": 0.0,
            "step": t,
            "lambda": lam(t) * (m == "aent"),
        }
        for k in range(6)
        for m in ("aent", "grpo")
        for t in range(30)
    ]
    q = {"warmup": 10, "box_low": 0.001}
    e = evidence(params=q, result=rows, steps=path)
    assert claims.off_support_gap(e).status == gap
    found = claims.off_support_aent(e)
    assert found.status == below
    assert "lower bound in 0.75 of steps; GRPO 0.100, largest 0.200" in found.note
    few = evidence(params=q, result=[r for r in rows if r["seed"] < 4], steps=path)
    assert claims.off_support_gap(few).status == "undecided"


def test_the_gap_needs_wilcoxon_beside_its_interval(evidence):
    gaps = (-0.3, 0.1, 0.2, 2.0, 2.1, 2.2)  # the third rank is negative: p = 5/64
    rows = [
        dict(seed=k, method=m, coef=0.1, off=3.0 + g * (m == "entreg"))
        for k, g in enumerate(gaps)
        for m in ("entreg", "clamped")
    ]
    found = claims.off_support_gap(evidence(result=rows))
    assert found.interval[0] > 0 and found.status == "undecided"


# Real models


@pytest.mark.parametrize(
    ("gain", "seeds", "status"),
    [
        (0.05, 5, "reproduced"),
        (-0.05, 5, "contradicted"),
        (0.0, 8, "undecided"),
        (0.05, 2, "undecided"),
        (-0.05, 2, "undecided"),
    ],
)
def test_smollm_is_judged_by_its_first_answer_over_five_seeds(
    evidence, gain, seeds, status
):
    rate = lambda v: [v, v - 0.01, v + 0.01]
    rows = [
        {
            "seed": k, "method": m,
            "pass": {"1": rate(0.3 + g + 0.01 * (-1) ** k * j), "8": rate(0.6 - g)},
        }
        for k in range(seeds)
        for j, (m, g) in enumerate((("grpo", 0.0), ("aent", gain)))
    ]  # fmt: skip
    found = claims.smollm_gain(evidence({"finals": rows}))
    assert (found.status, found.n) == (status, seeds)
    noise = 0.01 * (seeds % 2) / seeds
    assert found.ours == pytest.approx(gain + noise, abs=1e-4)


def test_smollm_tells_the_difference_over_problems(evidence):
    "Two trainings decide nothing, however sure their problems are."
    rng = np.random.default_rng(0)
    drawn = {m: rng.binomial(8, q, (2, 64)) for m, q in (("grpo", 0.3), ("aent", 0.5))}
    rows = [
        {
            "seed": k, "method": m, "right": drawn[m][k].tolist(),
            "pass": {"1": [drawn[m][k].mean() / 8, 0, 1]},
        }
        for k in range(2)
        for m in drawn
    ]  # fmt: skip
    found = claims.smollm_gain(evidence({"finals": rows}))
    gap = (drawn["aent"] - drawn["grpo"]).ravel() / 8
    assert found.ours == pytest.approx(gap.mean(), rel=1e-3)
    assert f"over 128 problems {bootstrap(gap, 'mean')}" in found.note
    assert found.status == "undecided"


SCORES = {
    "math-hard-a": ("Qwen/Qwen2.5-Math-1.5B", "math-lighteval"),
    "aime-a": ("Qwen/Qwen2.5-Math-1.5B", "math-lighteval"),
    "math-hard-b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "openr1-40k"),
    "table-3": ("Qwen/Qwen2.5-Math-7B", "deepmath-6k"),
}


def trained(folder, model, dataset, method, numbers):
    "A stored run of `full`."
    folder.mkdir()
    p = {"model": model, "dataset": dataset, "method": method}
    (folder / "params.yaml").write_text(json.dumps(p))
    (folder / "result.json").write_text(json.dumps({"trained": numbers}))
    return Stored(folder, "full")


@pytest.mark.parametrize("name", SCORES)
def test_a_score_needs_both_runs_of_its_model_and_data(tmp_path, name):
    judge, (model, data) = claims.CLAIMS[name], SCORES[name]
    made = {
        k: trained(tmp_path / k, *v)
        for k, v in {
            "grpo": (model, data, "grpo", {"loss": 0.1}),
            "aent": (model, data, "aent", {"loss": 0.1}),
            "dry": (model, data, "grpo", {}),
            "model": (model + "-Instruct", data, "grpo", {"loss": 0.1}),
            "data": (model, "other.parquet", "grpo", {"loss": 0.1}),
        }.items()
    }
    assert judge([made["grpo"], made["aent"]]).status == "undecided"
    for other in ("aent", "dry", "model", "data"):
        found = judge([made[other], made["aent"]])
        want = f"not run (needs several GPUs: {model} on {data} with grpo)"
        assert (found.status, found.ours) == (want, None)
    assert "with aent" in judge([made["grpo"]]).status
