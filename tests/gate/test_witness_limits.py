"""What a witness may say of a check, and what a manifest has to say itself."""

from __future__ import annotations

from typing import Any

import pytest

from lmccheck.gate.witnesses import unsaid_by

OWN = {"limit_from": "witness", "limit_given": 0.5, "limit_excludes": True, "keep": 0.5}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"limit_from": "default"}, "epsilon: given neither here nor by the witness"),
        ({"limit_excludes": False}, "epsilon = 0.5 is the witness's own and excludes nothing; mend: say epsilon"),
        ({"limit_from": "given", "limit_excludes": False}, None),
    ],
)
def test_a_witness_that_asks_for_nothing_sets_no_limit(changed: dict[str, Any], said: str | None) -> None:
    """Its own limit and share serve where they could fail; a manifest that says them itself means them."""
    found = unsaid_by({**OWN, **changed})
    assert (found is None) if said is None else (found or "").startswith(said)
