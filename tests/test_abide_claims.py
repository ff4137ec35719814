"AbideGym's claim functions on made-up evidence: they go where the numbers go."

import json
import re

import numpy as np
import pandas as pd
import pytest

from rlpapers.abidegym import claims
from rlpapers.core.checkpoint import to_csv
from rlpapers.core.claims import load_claims
from rlpapers.core.paths import Stored, home


@pytest.fixture
def evidence(tmp_path):
    "Makes a stored run from tables and parameters."

    def make(params=None, **tables):
        (tmp_path / "params.yaml").write_text(json.dumps(params or {}))
        for name, rows in tables.items():
            data = to_csv(pd.DataFrame(rows), False)
            (tmp_path / f"{name}.csv").write_bytes(data)
        return [Stored(tmp_path, "small")]

    return make


def around(mean, seeds=5, spread=0.01):
    "Numbers of so many seeds around a mean."
    draw = np.random.default_rng([seeds, int(1e6 * abs(mean))])
    return np.clip(mean + spread * draw.uniform(-1, 1, seeds), None, 1.0)


NUMBERS = {
    ("static", "switch"): dict(success=1.0, success_perturbed=0.1),
    ("static", "plate"): dict(success=1.0, success_perturbed=0.4),
    ("adaptive", "switch"): dict(success=1.0, success_perturbed=1.0),
    ("adaptive", "plate"): dict(success=1.0, success_perturbed=0.6),
    ("always", "switch"): dict(success=0.1, success_perturbed=1.0, all_key_clean=0.1),
    ("plate", "switch"): dict(success=1.0, success_perturbed=0.3),
    ("plate", "plate"): dict(success=1.0, success_perturbed=1.0),
}
WAYS = dict(key_clean=1.0, switch_perturbed=0.97, all_key_clean=1.0, events=0.97)


def finals(changed=None, seeds=5):
    "Rows of the main experiment; changed: (regime, trigger, number) -> mean."
    rows = []
    for (regime, trigger), numbers in NUMBERS.items():
        mean = WAYS | numbers
        for (r, t, k), v in (changed or {}).items():
            mean |= {k: v} if (r, t) == (regime, trigger) else {}
        n = min(seeds, 3) if regime in ("always", "plate") else seeds
        columns = {k: around(v, n) for k, v in mean.items()}
        for s in range(n):
            row = dict(size=6, regime=regime, trigger=trigger, seed=s)
            rows.append(row | {k: v[s] for k, v in columns.items()})
    return rows


MAIN = (
    "c1_brittle c1_gap c2_key c2_switch collapse collapse_cost plate_easier "
    "plate_taught"
).split()


def test_every_claim_of_the_file_has_its_function():
    assert [c.id for c in load_claims("abidegym")] == list(claims.CLAIMS)


def test_every_claim_says_whose_it_is():
    for c in load_claims("abidegym"):
        ours = c.source.startswith(("ours", "specification"))
        assert ours != c.source.startswith("[P]"), c.id
        assert c.paper_value == (None if ours else "no number reported"), c.id


@pytest.mark.parametrize("name", MAIN)
def test_what_the_numbers_say_is_reproduced(evidence, name):
    found = getattr(claims, name)(evidence(result=finals()))
    assert found.status == "reproduced" and found.n in (3, 5), found


@pytest.mark.parametrize(
    ("name", "changed", "status"),
    [
        ("c1_brittle", {("static", "switch", "success_perturbed"): 1.0}, "undecided"),
        ("c1_brittle", {("static", "switch", "success"): 0.05}, "contradicted"),
        ("c1_gap", {("static", "switch", "success_perturbed"): 1.0}, "undecided"),
        ("c1_gap", {("adaptive", "switch", "success_perturbed"): 0.0}, "contradicted"),
        ("c2_key", {("adaptive", "switch", "key_clean"): 0.5}, "contradicted"),
        ("c2_key", {("adaptive", "switch", "key_clean"): 0.95}, "undecided"),
        (
            "c2_switch",
            {("adaptive", "switch", "switch_perturbed"): 0.5},
            "contradicted",
        ),
        ("collapse", {("always", "switch", "all_key_clean"): 0.9}, "not reproduced"),
        ("collapse_cost", {("always", "switch", "success"): 1.0}, "undecided"),
        (
            "plate_easier",
            {("static", "plate", "success_perturbed"): 0.0},
            "contradicted",
        ),
        ("plate_taught", {("plate", "switch", "success_perturbed"): 1.0}, "undecided"),
    ],
)
def test_what_they_do_not_say_is_not(evidence, name, changed, status):
    found = getattr(claims, name)(evidence(result=finals(changed)))
    assert found.status == status, found


@pytest.mark.parametrize(
    ("value", "status"),
    [(1.0, "reproduced"), (0.4, "not reproduced"), (0.05, "contradicted")],
)
def test_plate(evidence, value, status):
    rows = finals({("static", "plate", "success_perturbed"): value})
    assert claims.plate(evidence(result=rows)).status == status


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_claim_nothing(evidence, name, seeds):
    found = getattr(claims, name)(evidence(result=finals(seeds=seeds)))
    assert found.status == "undecided", found
    assert "needed" in found.note


def test_four_seeds_are_not_five(evidence):
    found = claims.c2_key(evidence(result=finals(seeds=4)))
    assert found.status == "undecided" and found.n == 4


@pytest.mark.parametrize(
    ("end", "status"), [(0.2, "reproduced"), (0.6, "undecided"), (0.9, "contradicted")]
)
def test_unlearned(evidence, end, status):
    rows = [
        dict(size=6, regime="static", seed=s, frames=f, success_perturbed=v + s / 200)
        for s in range(5)
        for f, v in ((100, 0.6), (200, end))
    ]
    assert claims.c1_unlearned(evidence(curves=rows)).status == status


def recovered(changed=None, episodes=100):
    means = dict(oracle=1.0, adaptive=0.98, static=0.05, frozen=-0.1, stale=0.0)
    means |= dict(notify=0.98, recurrent=0.97, plr=0.98, always=0.99) | (changed or {})
    return [
        dict(agent=a, seed=s, resilience=v, events=0.9, success_after_event=1.0)
        | dict(recovered_by_1=1.0)
        for a, m in means.items()
        for s, v in enumerate(around(m))
    ]


def test_recovery_order(evidence):
    rows = recovered()
    assert claims.recovery_order(evidence(result=rows)).status == "reproduced"
    rows = recovered({"stale": 0.99, "frozen": 0.99, "static": 0.99})
    assert claims.recovery_order(evidence(result=rows)).status == "contradicted"
    rows = recovered({"stale": 0.99})
    assert claims.recovery_order(evidence(result=rows)).status == "partly"


def test_extras(evidence):
    assert claims.extras(evidence(result=recovered())).status == "reproduced"
    rows = recovered({"adaptive": 0.7})
    assert claims.extras(evidence(result=rows)).status == "contradicted"


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ({}, "reproduced"),
        ({"success_after_event": 0.99}, "not reproduced"),
        ({"recovered_by_1": 0.99}, "not reproduced"),
    ],
)
def test_solvable(evidence, row, status):
    rows = [r | row for r in recovered()]
    found = claims.solvable(evidence({"episodes": 100}, result=rows))
    assert found.status == status and found.n == 450


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({}, "reproduced"),
        ({"steps": 12.5}, "not reproduced"),
        ({"exact": False}, "not reproduced"),
        ({"layouts": 100}, "not reproduced"),
    ],
)
def test_oracle_numbers(evidence, changed, status):
    rows = [
        dict(size=n, layouts=300, steps=mean, most=2 * mean, door=mean / 2, exact=True)
        for n, mean in claims.EXPECTED.items()
    ]
    rows[1] |= changed
    assert claims.oracle_numbers(evidence(oracle=rows)).status == status


def growth(cost=20.0, lost=0.2, gain=0.2):
    grown, rooms = [], []
    for regime in ("static", "growing", "curriculum"):
        for s, e in enumerate(around(0.0)):
            row = dict(regime=regime, seed=s, delta=2, success=1.0, excess_clean=3 + e)
            row |= dict(success_perturbed=1 - lost + e, excess_perturbed=3 + cost + e)
            grown.append(row)
            more = 0.0 if regime == "static" else gain
            rooms += [
                dict(regime=regime, seed=s, size=n, success=0.5 + more + e)
                for n in (5, 8, 10)
            ]
    return dict(params={"size": 6}, result=grown, rooms=rooms)


@pytest.mark.parametrize("name", ["c3_cost", "c3_success", "c3_general", "curriculum"])
def test_growth(evidence, name):
    judge = getattr(claims, name)
    assert judge(evidence(**growth())).status == "reproduced"
    assert judge(evidence(**growth(-20.0, -0.2, -0.2))).status == "contradicted"
    assert judge(evidence(**growth(0.0, 0.0, 0.0))).status in (
        "undecided",
        "contradicted",
    )


def test_growth_in_one_room_only_is_partly(evidence):
    made = growth()
    for row in made["rooms"]:
        if row["size"] == 10 and row["regime"] == "growing":
            row["success"] -= 0.4
    assert claims.c3_general(evidence(**made)).status == "partly"


@pytest.mark.parametrize(
    ("static", "random", "statuses"),
    [
        (0.01, 0.97, ("reproduced", "reproduced")),
        (0.3, 0.5, ("contradicted", "contradicted")),
        (0.1, 0.9, ("undecided", "undecided")),
    ],
)
def test_stalling(evidence, static, random, statuses):
    rows = [
        dict(agent=a, seed=s, timeout=12, events=v, success=1.0)
        for a, m in (("static", static), ("random", random))
        for s, v in enumerate(around(m))
    ]
    stored = evidence(result=rows)
    found = claims.c4_competent(stored), claims.c4_random(stored)
    assert tuple(f.status for f in found) == statuses


@pytest.mark.parametrize(
    ("gain", "status"),
    [(0.3, "reproduced"), (-0.3, "contradicted"), (0.0, "undecided")],
)
def test_memory_and_pressure(evidence, gain, status):
    memory = [
        dict(family=f, regime=r, seed=s, resilience=v, events=0.5)
        for f in ("remap", "blackout")
        for r, m in (("adaptive", 0.5), ("recurrent", 0.5 + gain))
        for s, v in enumerate(around(m, 3, 0.05))
    ]
    found = evidence(result=memory)
    assert claims.memory_remap(found).status == status
    assert claims.memory_blackout(found).status == status
    pressure = [
        dict(agent=a, family=f, rho=r, seed=s, resilience=v, events=0.5)
        for f in ("rekey", "lava")
        for a, m in (("static", 0.5), ("adaptive", 0.5 + gain))
        for r, more in ((0.5, 0.0), (2.0, gain))
        for s, v in enumerate(around(m + more, 3, 0.05))
    ]
    found = evidence(result=pressure)
    assert claims.pressure_time(found).status == status
    assert claims.pressure_transfer(found).status == status


def test_every_page_says_what_it_is():
    "The body was not read, and the numbers are ours."
    for page in sorted((home() / "abidegym").glob("[0-9]*.ipynb")):
        cells = json.loads(page.read_text())["cells"]
        text = " ".join("".join("".join(c["source"]) for c in cells[:6]).split())
        assert "2509.21234" in text, page.name
        assert re.search(r"(could not|only .*? could) be read", text), page.name
