"""Transport both ways: the permutation of ``transport``, improved with what the units are read by."""

from __future__ import annotations

from lmccheck.alignment.contract import Found, Problem
from lmccheck.alignment.methods import method
from lmccheck.alignment.methods.transport import NEEDS, transported


@method("transport-both", needs=NEEDS, source="Ferbach et al. 2024", start=5)
def match_transport_both(problem: Problem) -> Found:
    """Return the permutation of ``transport`` improved with outgoing weights, in the same norm.

    Groups are reassigned in turn, outgoing weights taken into account, until none improves; ``facts`` as there.
    """
    return transported(problem, "transport-both", outgoing=True)
