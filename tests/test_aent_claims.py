"""The claims of AEnt's page are those that its stored runs give."""

from rlpapers.core.claims import check, load_claims


def test_claims_are_recomputed():
    assert check("aent") == []


def test_nothing_is_called_reproduced_without_evidence():
    for c in load_claims("aent"):
        assert c.status.startswith("not run") or (c.evidence and c.n is not None or c.note)
