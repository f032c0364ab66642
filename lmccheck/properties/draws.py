"""What independent draws (of masks, of noise) say of a share of all draws: held to a limit often enough, or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmccheck.explain import of_endpoint
from lmccheck.finding import Verdict
from lmccheck.stats import MOST_TRIALS, clopper_pearson, quantile_interval, quantile_of, trials_to_settle

CONFIDENCE = 0.95
VERDICTS: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")  # of several endpoints the first counts
DRAWS = {"dev": 8, "ci": 20, "thorough": 100}  # by profile; of 8 all may hold, and then it passes, but none may fail


def share_that_holds(q: Sequence[float], bound: float, share: float) -> dict[str, Any]:
    """Return what draws that cost one endpoint ``q`` say of P(q ≤ bound) ≥ share; JSON-able.

    The verdict is by the exact interval of that probability: pass at or above ``share``, fail below it.
    """
    hits = sum(x <= bound for x in q)
    low, high = clopper_pearson(hits, len(q), CONFIDENCE)
    return {
        "q": list(q),
        "quantile": quantile_of(q, share),
        "quantile_interval": quantile_interval(q, share, CONFIDENCE),
        "share": hits / len(q),
        "hits": hits,
        "interval": [low, high],
        "verdict": "pass" if low >= share else "fail" if high < share else "inconclusive",
    }


def worse_end(costs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the endpoint with which it stands worse: by what draws cost, then by its verdict and how many hold."""
    return max(costs, key=lambda end: _standing(costs[end]))


def _standing(cost: Mapping[str, Any]) -> tuple[float, int, int]:
    return cost["quantile"], -VERDICTS.index(cost["verdict"]), -cost["hits"]


def verdict_of(costs: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Return the verdict on all endpoints: each has to pass."""
    verdicts = {of_end["verdict"] for of_end in costs.values()}
    return next(verdict for verdict in VERDICTS if verdict in verdicts)


def held_note(costs: Mapping[str, Mapping[str, Any]], what: str, share: float) -> str:
    """Say how many draws hold for every endpoint."""
    held = [
        f"{x['hits']} of {len(x['q'])} hold{of_endpoint(end, ' for ')} (95 % interval {shown(x['interval'])})"
        for end, x in costs.items()
    ]
    return f"{len(next(iter(costs.values()))['q'])} {what}: {', '.join(held)}, need ≥ {share:g}"


def held_of(cost: Mapping[str, Any], what: str, share: float) -> str:
    """Say how many draws hold for one endpoint."""
    hits, count = cost["hits"], len(cost["q"])
    return f"{hits} of {count} {what} hold, 95 % interval {shown(cost['interval'])}, need ≥ {share:g}"


def unsettled(costs: Mapping[str, Mapping[str, Any]], what: str, share: float) -> tuple[str, list[str]]:
    """Say how many draws would settle every endpoint that is not settled, shares as seen, and what to ask for."""
    needed = [
        trials_to_settle(of_end["hits"], len(of_end["q"]), share, CONFIDENCE)
        for of_end in costs.values()
        if of_end["verdict"] == "inconclusive"
    ]
    known = [count for count in needed if count is not None]
    if len(known) < len(needed):
        return f"even {MOST_TRIALS} {what} would hardly settle it", []
    count = len(next(iter(costs.values()))["q"])
    return f"about {max(known)} {what} would settle it", [
        f"masks = {max(known)}, if as many hold as did of these {count}"
    ]


def shown(interval: Sequence[float]) -> str:
    """Return an interval in brackets."""
    return f"[{interval[0]:.3g}, {interval[1]:.3g}]"
