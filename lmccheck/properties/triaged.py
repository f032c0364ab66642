"""A line of triage in every report of a line, a set or a merge: what the weights alone say of what is compared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmccheck.alignment.triage import Kinship
    from lmccheck.finding import Finding
    from lmccheck.network.pair import ModelPair


def triaged(measured: Any, finding: Finding) -> Finding:
    """Return a finding with the line among its notes, and its facts; as it is where no line and no merge is measured.

    What was found of a pair is kept with it.
    """
    from lmccheck.alignment.triage import pair_line, triage_set
    from lmccheck.network.pair import ModelPair

    named = measured.named_endpoints
    if not finding.barrier_definition and not hasattr(measured, "parents"):
        return finding
    if isinstance(measured, ModelPair):
        kin = measured.once(_kinship)
        return _with(finding, pair_line(kin), kin.facts())
    if len(named) < 2 or hasattr(measured, "a"):  # one parent, or two widths
        return finding
    found = triage_set(lambda: ((name, end.theta) for name, end in named.items()))
    return _with(finding, found.line(), found.facts())


def _with(finding: Finding, line: str, facts: dict[str, Any]) -> Finding:
    return replace(finding, notes=[*finding.notes, line], facts={**finding.facts, "triage": facts})


def _kinship(pair: ModelPair) -> Kinship:
    from lmccheck.alignment.triage import kinship

    return kinship(pair.theta_a, pair.theta_b)
