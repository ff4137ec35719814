"LQR's claim functions on made-up evidence: one case for each status they can give."

import json

import numpy as np
import pytest

from rlpapers.core.claims import load_claims
from rlpapers.core.paths import home
from rlpapers.lqr import claims

SEEDS, SIZES = 20, (8, 32, 128, 512, 2048)


def episodes(models, stable=True):
    "Rows of the study: estimator -> error as a function of M, spread over seeds."
    rng, rows = np.random.default_rng(0), []
    for kind in claims.NOISE:
        for s in range(SEEDS):
            for M in SIZES:
                for name, f in models.items():
                    error = f(M) * np.exp(0.1 * rng.normal())
                    row = dict(kind=kind, seed=s, M=M, estimator=name, stable=stable)
                    rows.append(row | {"error": error})
    return rows


RULES = {
    "averaged": lambda M: np.sqrt(0.03**2 + 0.1 / M),
    "averaged+intercept": lambda M: 0.3 / np.sqrt(M),
    "stacked": lambda M: 0.2,
    "certainty_equivalent": lambda M: 0.1 / np.sqrt(M),
    "operator": lambda M: 0.5 / np.sqrt(M),
}
FLOORS = {"floors": {k: {"averaged": 0.03} for k in claims.NOISE}}


def test_every_claim_of_the_file_has_its_function():
    assert [c.id for c in load_claims("lqr")] == list(claims.CLAIMS)


@pytest.mark.parametrize(
    "name",
    [
        "averaged_stacked",
        "stacked_bias",
        "intercept_slope",
        "intercept_floor",
        "certainty_equivalence",
        "operator_noisy",
        "episodic_stabilising",
        "episodic_neighbourhood",
    ],
)
def test_what_the_theory_says_is_reproduced(evidence, name):
    found = getattr(claims, name)(evidence(FLOORS, result=episodes(RULES)))
    assert found.status == "reproduced" and found.n == SEEDS, found


@pytest.mark.parametrize(
    ("name", "changed", "status"),
    [
        ("averaged_stacked", {"stacked": lambda M: 0.001}, "contradicted"),
        ("averaged_stacked", {"stacked": RULES["averaged"]}, "undecided"),
        ("stacked_bias", {"stacked": lambda M: 1 / np.sqrt(M)}, "contradicted"),
        ("intercept_slope", {"averaged+intercept": lambda M: 1 / M}, "not reproduced"),
        ("intercept_slope", {"averaged+intercept": lambda M: M}, "contradicted"),
        ("episodic_neighbourhood", {"averaged": lambda M: 0.06}, "not reproduced"),
        ("operator_noisy", {"operator": lambda M: 0.1 / M}, "contradicted"),
    ],
)
def test_what_it_does_not_say_is_not(evidence, name, changed, status):
    found = getattr(claims, name)(evidence(FLOORS, result=episodes(RULES | changed)))
    assert found.status == status, found


def test_one_kind_of_noise_is_partly(evidence):
    rows = episodes(RULES)
    for r in rows:
        if r["kind"] == "wiener" and r["estimator"] == "stacked":
            r["error"] = 0.001
    assert claims.averaged_stacked(evidence(result=rows)).status == "partly"


def test_a_failure_cannot_improve_an_estimator(evidence):
    rows = episodes(RULES)
    for r in rows:
        if r["estimator"] == "averaged" and r["seed"] < 12:
            r["error"] = np.inf
    assert claims.averaged_stacked(evidence(result=rows)).status != "reproduced"


def test_unstable_gains_are_counted(evidence):
    rows = episodes(RULES, stable=False)
    found = claims.episodic_stabilising(evidence(result=rows))
    assert found.status == "not reproduced" and found.ours == 0


def measured(error, kleinman=1e-12):
    finals = [
        dict(case=case, seed=s, rank=39, needed=39, stable=True, error=e)
        for s in range(10)
        for case, e in (("with e", error), ("without e", 5.0))
    ]
    rows = [
        dict(case="with e", seed=s, k=k, kleinman=kleinman, decrease=0.1, abscissa=-1)
        for s in range(10)
        for k in range(5)
    ]
    return dict(finals=finals), rows


@pytest.mark.parametrize(
    ("error", "status"),
    [(1e-12, "reproduced"), (1e-6, "not reproduced"), (None, "not reproduced")],
)
def test_measured_exact(evidence, error, status):
    result, rows = measured(error)
    found = claims.measured_exact(evidence(result, result=rows))
    assert found.status == status


def test_iterates_and_what_ignores_e(evidence):
    result, rows = measured(1e-12)
    stored = evidence(result, result=rows)
    for f in (claims.kleinman_iterates, claims.lyapunov, claims.ignoring_e):
        assert f(stored).status == "reproduced", f
    stored = evidence(result, result=measured(1e-12, kleinman=1e-3)[1])
    assert claims.kleinman_iterates(stored).status == "not reproduced"


@pytest.mark.parametrize(
    ("offset", "status"), [(0, "reproduced"), (0.2, "not reproduced")]
)
def test_kappa(evidence, offset, status):
    rows = [
        dict(kind="wiener", M=M, seed=s, k=k, true=1.0)
        | {"kappa": 1 + offset + 0.05 * (-1) ** s}
        for M in (8, 32)
        for s in range(SEEDS)
        for k in range(3)
    ]
    assert claims.kappa(evidence(kappa=rows)).status == status


@pytest.mark.parametrize(
    ("wrong", "status"), [(0, "reproduced"), (1, "not reproduced")]
)
def test_certificate(evidence, wrong, status):
    rows = [
        dict(kind=kind, seed=s, M=M, gain=gain, stable=gain == "learned")
        | {"certified": gain == "learned" or s < wrong}
        for kind in claims.NOISE
        for s in range(SEEDS)
        for M in (8, 32)
        for gain in ("learned", "destabilising")
    ]
    assert claims.certificate(evidence(certificate=rows)).status == status


@pytest.mark.parametrize(
    ("k", "status"),
    [(300, "reproduced"), (290, "undecided"), (200, "contradicted")],
)
def test_population(evidence, k, status):
    rates = {"ou": {"averaged": {"k": k, "n": 300}}}
    assert claims.population(evidence({"rates": rates})).status == status


@pytest.mark.parametrize(
    ("slope", "status"), [(1.0, "reproduced"), (2.0, "not reproduced")]
)
def test_robust(evidence, slope, status):
    cell = dict(slope=[slope, slope - 0.02, slope + 0.02], safe=0.1)
    rows = [dict(plant="p", size=10.0, draw=j, stable=False) for j in range(20)]
    stored = evidence({"plants": {"p": cell}}, {"draws": 20}, result=rows)
    assert claims.robust_slope(stored).status == status
    assert claims.robust_threshold(stored).status == "reproduced"


def test_conditioning(evidence):
    rng = np.random.default_rng(0)
    rows = [
        dict(setting="grid", T=0.1, seed=s, cond=c, error=1e-16 * c * np.exp(x))
        for c in np.geomspace(1e3, 1e9, 8)
        for s, x in enumerate(rng.normal(size=3))
    ]
    for setting, error in (("ours", 1e-13), ("literature", 1e-5)):
        rows += [
            dict(setting=setting, T=0.1, seed=s, cond=1, error=error) for s in range(3)
        ]
    stored = evidence(result=rows)
    assert claims.intricacies(stored).status == "reproduced"
    assert claims.literature_setting(stored).status == "reproduced"


def test_noise_and_size(evidence):
    stored = evidence({"slopes": {"0.5": 2.0, "2": 1.0}})
    assert claims.noise_power(stored).status == "reproduced"
    rows = [dict(solver="direct", n=6, unknowns=39, error=e) for e in (1e-12, 1e-3)]
    assert claims.scaling_exact(evidence(result=rows)).status == "not reproduced"


def test_every_page_says_what_it_is():
    "A reconstruction, and not the best estimator under unmeasured noise."
    for page in sorted((home() / "lqr").glob("[0-9]*.ipynb")):
        cells = json.loads(page.read_text())["cells"]
        text = "".join("".join(c["source"]) for c in cells[:4])
        assert "econstruction" in text, page.name
        prose = "".join("".join(c["source"]) for c in cells)
        assert "Riccati" in prose, page.name
