"Claims of community hiding: recomputed; made-up evidence gives each status."

import numpy as np
import pytest

from rlpapers.communityhiding import claims
from rlpapers.communityhiding.params import BASELINES
from rlpapers.core.claims import check, load_claims


def test_claims_are_recomputed():
    assert check("communityhiding") == []


def test_every_claim_has_its_function():
    assert {c.id for c in load_claims("communityhiding")} == set(claims.CLAIMS)


def test_nothing_is_called_reproduced_without_evidence():
    for c in load_claims("communityhiding"):
        stated = c.evidence and (c.n is not None or c.note)
        assert c.status.startswith("not run") or stated


def table(rates, graphs=("kar", "words"), detectors=("angel",), n=40, **also):
    "Rows of methods with given success rates, NMI 0.8, two seeds."
    rng, out = np.random.default_rng(0), []
    for g in graphs:
        for d in detectors:
            for m, rate in rates.items():
                hits = np.arange(2 * n) < round(rate * 2 * n)
                for i, hit in enumerate(rng.permutation(hits)):
                    row = {"graph": g, "detector": d, "method": m, "seed": i % 2}
                    row |= {
                        "pair": i // 2,
                        "node": i,
                        "success": float(hit),
                        "nmi": 0.8,
                    }
                    out.append(row | {"edits": 1.5, "kept_ties": 0.8} | also)
    return out


LOW = dict.fromkeys(BASELINES, 0.2)


@pytest.mark.parametrize(
    "odrl, best, status",
    [(0.9, 0.3, "reproduced"), (0.5, 0.5, "undecided"), (0.1, 0.8, "contradicted")],
)
def test_odrl_is_compared_with_the_best_baseline(evidence, odrl, best, status):
    rates = LOW | {"dice": best, "odrl": odrl, "disconnect": 0.99}
    found = claims.odrl_baselines(evidence(rows=table(rates)))
    assert found.status == status
    f1 = lambda sr: 2 * sr * 0.8 / (sr + 0.8)
    assert found.ours == pytest.approx(f1(odrl) - f1(best), abs=1e-4)
    assert "over DICE" in found.note  # not over what the paper leaves out


def test_one_graph_that_fails_is_enough(evidence):
    rows = table(LOW | {"odrl": 0.9}, ["kar"]) + table(LOW | {"odrl": 0.2}, ["words"])
    found = claims.odrl_baselines(evidence(rows=rows))
    assert found.status == "partly"
    assert found.ours == pytest.approx(0, abs=1e-4)


def test_transfer_reads_the_other_detector(evidence):
    rates = LOW | {"odrl": 0.9}
    rows = table(rates) + table(LOW | {"odrl": 0.1}, detectors=["demon"])
    e = evidence(rows=rows)
    assert claims.odrl_baselines(e).status == "reproduced"
    assert claims.odrl_transfer(e).status != "reproduced"
    with pytest.raises(ValueError, match="no rows of kar under demon"):
        claims.odrl_transfer(evidence(rows=table(rates)))


def test_rows_are_paired(evidence):
    "A method that is better by one pair in every four is told from noise by pairing."
    n = 80
    base = np.arange(n) % 4 < 2
    more = np.arange(n) % 4 < 3
    rows = [
        {"graph": "kar", "detector": "angel", "method": m, "seed": 0, "pair": i}
        | {"success": float(h), "nmi": 0.8, "edits": 1, "node": i}
        for m, hits in {"odrl": more, "disconnect": base}.items()
        for i, h in enumerate(hits)
    ]
    move = lambda i: (7 * i + 3) % n  # other partners, the same outcomes
    shuffled = [
        r | {"pair": move(r["pair"]), "node": move(r["node"])}
        for r in rows
        if r["method"] != "odrl"
    ]
    a = claims.odrl_disconnect(evidence(rows=rows)).interval
    b = claims.odrl_disconnect(
        evidence(rows=[r for r in rows if r["method"] == "odrl"] + shuffled)
    ).interval
    assert a[1] - a[0] < b[1] - b[0]


def naive(rate):
    return [
        {"graph": g, "detector": d, "factor": k, "seed": 0, "pair": i, "nmi": 0.8}
        | {"success": float(i < rate(d, k) * 40), "node": i}
        for g in ("kar", "words")
        for d in ("louvain", "greedy", "walktrap", "angel", "demon")
        for k in (0.0, 2.0)
        for i in range(40)
    ]


def test_naive_claims(evidence):
    ego = ("angel", "demon")
    good = evidence(rows=naive(lambda d, k: 0.0 if d in ego or not k else 0.9))
    for f in (claims.naive_partitions, claims.naive_ego, claims.naive_mcnemar):
        assert f(good).status == "reproduced"
    assert claims.naive_ego(good).ours == 0
    leak = evidence(rows=naive(lambda d, k: 0.05 if d == "demon" and k else 0.9))
    assert claims.naive_ego(leak).status == "not reproduced"
    equal = evidence(rows=naive(lambda d, k: 0.2))
    assert claims.naive_partitions(equal).status == "contradicted"
    assert claims.naive_mcnemar(equal).status == "not reproduced"


@pytest.mark.parametrize(
    "top, status", [(0.85, "reproduced"), (0.02, "not reproduced")]
)
def test_the_floor_of_the_package(evidence, top, status):
    rows = [
        {"graph": g, "detector": d, "before": a, "after": 1 - a, "same": 0.0}
        | {"sr": top if (g, d, a) == ("words", "package", 0) else 0.0}
        for g in ("kar", "words") for d in ("angel", "package") for a in (0, 1)
    ]  # fmt: skip
    found = claims.floor_package(evidence(result=rows))
    assert found.status == status
    assert found.ours == pytest.approx(top / 2)
    assert claims.floor_keyed(evidence(result=rows)).status == "reproduced"
    rows[0]["same"] = 0.1
    assert claims.floor_keyed(evidence(result=rows)).status == "not reproduced"


def test_the_optimum_on_karate(evidence):
    rows = table({"odrl": 1.0, "exhaustive": 1.0}, ["kar"])
    for i, r in enumerate(rows):
        r["seed"] = i % 4
    assert claims.odrl_optimum(evidence(rows=rows)).status == "reproduced"
    for change in ({"edits": 1.7}, {"success": 0.0}):
        worse = [r | change if r["method"] == "odrl" else r for r in rows]
        assert claims.odrl_optimum(evidence(rows=worse)).status == "not reproduced"
    few = [r for r in rows if r["seed"] < 2]
    assert claims.odrl_optimum(evidence(rows=few)).status == "undecided"


def test_new_seeds(evidence):
    def rows(new):
        rates = {"angel": 0.9, "angel:new": new, "angel:other": 0.5}
        rates["package:other"] = 0.5
        return [
            r
            for d, sr in rates.items()
            for r in table({"odrl": sr, "noop": 0.1}, ["kar"], [d])
        ]

    assert claims.new_seeds(evidence(rows=rows(0.85))).status == "reproduced"
    found = claims.new_seeds(evidence(rows=rows(0.7)))
    assert found.status == "not reproduced" and "no edit 0.100" in found.note


def test_the_budget_curve(evidence):
    def rows(short):
        out = []
        for b, best in ((1, 0.7), (3, 1.0)):
            rates = {"exhaustive": best, "odrl": best - short}
            out += [
                r | {"seed": r["pair"] % 3} for r in table(rates, ["kar"], budget=b)
            ]
        return out

    assert claims.budget_curve(evidence(rows=rows(0.0375))).status == "reproduced"
    found = claims.budget_curve(evidence(rows=rows(0.1)))
    assert found.status == "not reproduced" and found.ours == pytest.approx(0.1)


ARMS = ["proxies_free", "proxies_protected", "factored", "memory", "shaping"]
PAIRS = {
    "proxies_free": ("odrl", "k=0"), "proxies_protected": ("protect", "protect,k=0"),
    "factored": ("odrl", "flat"), "memory": ("odrl", "no_gru"),
    "shaping": ("odrl", "lambda=0"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARMS)
def test_arms(evidence, name):
    a, b = PAIRS[name]
    for first, second, status in (
        (0.9, 0.4, "reproduced"), (0.5, 0.5, "undecided"), (0.2, 0.9, "contradicted")
    ):  # fmt: skip
        rows = table({a: first, b: second}, ["words"])
        rows = [r | {"arm": r["method"], "method": "odrl"} for r in rows]
        found = getattr(claims, name)(evidence(rows=rows))
        assert found.status == status
        assert found.ours == pytest.approx(first - second, abs=1e-6)


def test_held_out(evidence):
    def rows(rate):
        t = table({"held_out": rate, "trained_half": 0.9}, ["words"])
        return [
            r | {"arm": r["method"], "method": "odrl", "seed": r["pair"] % 3} for r in t
        ]

    assert claims.held_out(evidence(rows=rows(0.85))).status == "reproduced"
    assert claims.held_out(evidence(rows=rows(0.5))).status == "not reproduced"


def large(**rates):
    rates = dict.fromkeys(BASELINES, 0.03) | rates
    rows = table(rates, claims.LARGE, beta=2.0, factor=1.0, tau=0.5)
    other = table(
        dict.fromkeys(rates, 0.99), claims.LARGE, beta=1.0, factor=1.0, tau=0.5
    )
    return rows + other  # smaller budgets are not what is claimed


def test_larger_graphs(evidence):
    e = evidence(rows=large(odrl=0.9, disconnect=0.9))
    for f in ("baselines", "odrl", "gain", "disconnect"):
        assert getattr(claims, f"large_{f}")(e).status == "reproduced"
    e = evidence(rows=large(odrl=0.1, disconnect=0.1, dice=0.77, roam=0.6))
    for f in ("odrl", "gain"):
        assert getattr(claims, f"large_{f}")(e).status == "contradicted"
    assert claims.large_disconnect(e).status == "not reproduced"
    found = claims.large_baselines(e)
    assert found.status == "partly" and found.ours == pytest.approx(0.785, abs=0.01)


def test_reversed_evidence_is_not_reproduced(evidence):
    found = claims.naive_mcnemar(
        evidence(rows=naive(lambda d, k: 1.0 if d == "angel" else 0.0))
    )
    assert found.ours == -1 and found.status == "not reproduced"


def test_copies_of_a_seed_tell_nothing_new(evidence):
    rates = LOW | {"dice": 0.6, "odrl": 0.75}
    once = [r | {"seed": 0} for r in table(rates, ["kar"], n=15) if r["node"] < 30]
    copies = [r | {"seed": s} for r in once for s in range(5)]
    a, b = (claims.odrl_baselines(evidence(rows=r)) for r in (once, copies))
    assert a.n == b.n == 30
    assert a.interval == pytest.approx(b.interval, abs=0.01)
    assert a.status == b.status


def test_new_seeds_compares_the_same_pairs(evidence):
    "Pairs that only one side judges change nothing."
    rows = []
    for d in ("angel", "angel:new", "angel:other", "package:other"):
        for i in range(40):
            for m in ("odrl", "noop"):
                row = {"graph": "kar", "detector": d, "method": m, "seed": 0, "pair": i}
                row |= {"node": i, "draw": 0, "nmi": 0.8, "edits": 1}
                hit = float(i < 20) if d == "angel" else 1.0
                gone = d == "angel:new" and i >= 20
                rows.append(row | {"success": None if gone else hit})
    assert claims.new_seeds(evidence(rows=rows)).ours == 0


def test_each_tau_counts(evidence):
    good = table(LOW | {"odrl": 0.9}, ["words"], tau=0.5, beta=1.0, factor=1.0)
    bad = table(LOW | {"odrl": 0.1}, ["words"], tau=0.8, beta=1.0, factor=1.0)
    assert claims.budgets_proxies(evidence(rows=good)).status == "reproduced"
    for rows in (good + bad, bad + good):
        found = claims.budgets_proxies(evidence(rows=rows))
        assert found.status != "reproduced" and "tau 0.8" in found.note


@pytest.mark.parametrize(
    "alone, helped, status",
    [(3, None, "reproduced"), (1, 1, "reproduced"), (3, 2, "not reproduced"),
     (2, 1, "not reproduced"), (None, 2, "not reproduced")],
)  # fmt: skip
def test_proxies_and_the_optimum(evidence, alone, helped, status):
    rows = [{"seed": 0, "pair": i, "alone": 1, "with_proxies": 1} for i in range(9)]
    rows.append({"seed": 0, "pair": 9, "alone": alone, "with_proxies": helped})
    found = claims.proxies_optimum(evidence(least=rows))
    assert found.status == status
    assert found.ours == pytest.approx(0.1 * (status != "reproduced"))
