"""Verdicts about new data: what samples say of the population that they are from, for every property of losses.

X_i = ℓ_i − what it is compared with − the limit, paired sample by sample, a limit in percent inside of the mean; all
means have to be at most 0. The samples have to be drawn independently of one another, and of all that was fitted.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from lmccheck.errors import LmcError, SourceError, one_line
from lmccheck.explain import endpoint_losses, number
from lmccheck.finding import Compared, Failure, Finding
from lmccheck.properties.remarks import TOGETHER
from lmccheck.shown import rounded_up

if TYPE_CHECKING:
    from lmccheck.stats.means import Claim, Judgement, Sample

Decide = Literal["data", "population"]
CONFIDENT = 0.95
BINARY = 2  # values that losses have which are errors, or the like
GLANCE = 64  # samples, among which most losses that are no errors have more
LONGEST_NAME = 300  # characters of what data are called
LEAST = 2  # samples, without which there is no spread
MEND = "mend: certify = 'auto', which passes by points alone, profile = 'thorough', or more samples"
UNFITTED = "mend: give evaluation data of which nothing was fitted to"
SETTINGS = 'decide = "population"'


def require_all_samples(name: str, common: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise LmcError where a property is asked to stop before it has measured what new data are judged by."""
    if _asked(common) and settings.get("early_fail"):
        raise LmcError(
            f"{name}: early_fail with {SETTINGS}: it stops once these data decide; mend: leave one of both out"
        )


def misplaced(stated: Mapping[str, Any], own: Container[str]) -> Iterator[str]:
    """Yield what a manifest's check says of new data to no effect, each beginning with the key.

    ``own``: settings of the property itself, whose meaning is its own.
    """
    if "decide" in own:
        if "confidence" in stated and "confidence" not in own:
            yield ".confidence: it decides nothing here, expected none"
        return
    if not _asked(stated) and "confidence" in stated and "confidence" not in own:
        yield f".confidence: it decides nothing without {SETTINGS}, expected both or neither"
    if _asked(stated) and stated.get("early_fail"):
        yield f".early_fail: it stops once these data decide, expected none beside {SETTINGS}"


def _asked(common: Mapping[str, Any]) -> bool:
    return bool(common.get("decide") == "population")


def decided(
    name: str, measured: Any, finding: Finding, common: Mapping[str, Any], settings: Mapping[str, Any]
) -> Finding:
    """Return a finding with what it says of new data; judged by that where ``decide`` is ``"population"``.

    ``common``: ``decide`` and ``confidence``; ``settings`` are those of the property ``name``. Raises LmcError where
    the finding says nothing about a population, SourceError where samples are fitted to.
    """
    asked, confidence = _asked(common), common.get("confidence", CONFIDENT)
    if not finding.compared:
        if asked:
            raise LmcError(f"{name}: {SETTINGS}: {finding.not_compared}; mend: leave decide out")
        return finding
    why = _not_drawn(measured, finding)
    if why and asked:
        raise SourceError(f"{name}: {SETTINGS}: {why}")
    samples = _samples(measured, finding)
    facts: dict[str, Any] = {"decides": asked, "confidence": confidence, "samples": samples, "asymptotic": True}
    if why:
        facts["why"] = why.partition("; mend:")[0]
        return replace(finding, compared=(), everywhere=None, facts={**finding.facts, "population": facts})
    repeated = _repeated(measured, finding) if asked else []
    fresh = min((distinct / every for distinct, every in repeated), default=1.0)
    found = _judged(finding, finding.compared, confidence, fresh)
    facts |= _facts(finding, found, samples)
    always = settings.get("certify") == "always"
    if asked and found.verdict == "pass" and (always or finding.everywhere is not None):
        facts["all_t"] = _everywhere(finding, confidence, fresh)
        if always and not facts["all_t"]["holds"]:
            found = replace(found, verdict="inconclusive")
            facts["verdict"] = found.verdict
    finding = replace(finding, compared=(), everywhere=None, facts={**finding.facts, "population": facts})
    if asked:
        finding = replace(finding, notes=[*finding.notes, *map(_not_new, repeated)])
        return _by_population(measured.name, finding, found, facts)
    if found.verdict == "inconclusive" and finding.judged in ("pass", "fail"):
        return replace(finding, notes=[*finding.notes, _undecided(finding, facts)])
    return finding


def _samples(measured: Any, finding: Finding) -> int:
    """Return how many samples there are in the data of the finding; documents of a task are other ones."""
    network = finding.examined[0].network if finding.examined else measured.network
    most = max(len(each.losses) for each in finding.compared)
    return max(most, network.data.samples) if sum(len(each.losses) for each in finding.compared) > most else most


def _repeated(measured: Any, finding: Finding) -> list[tuple[int, int]]:
    """Return how many samples of data differ, of how many, where some are repeated: those are no draws of their own."""
    from lmccheck.data.samples import distinct_samples

    data = [look.network.data for look in finding.examined] or [measured.network.data]
    counts = [(distinct_samples(each), each.samples) for each in data]
    return [(distinct, samples) for distinct, samples in counts if distinct < samples]


def _not_new(counts: tuple[int, int]) -> str:
    distinct, samples = counts
    return (
        f"{samples - distinct:,} of {samples:,} samples repeat another one, input and target: they are no new draws, "
        f"and the data count as {distinct:,}"
    )


def _not_drawn(measured: Any, finding: Finding) -> str:
    """Say why samples are no draws, with the mend, "" where they are: those fitted to speak about themselves."""
    networks = [look.network for look in finding.examined] or [measured.network]
    for network in networks:
        if network.mixing:
            return f"{TOGETHER.format(network.mixing)}, and samples are no draws; mend: give batches of one sample"
        if fitted := network.fitted_samples:
            return f"{fitted} of {network.data.samples} evaluation samples are calibration data, too; {UNFITTED}"
    if hasattr(measured, "recipe"):
        from lmccheck.data.samples import common_samples

        for name, data in (measured.origin or measured).chosen_by.items():
            if common := sum(common_samples(network.data, data) for network in networks):
                called = one_line(name, LONGEST_NAME)
                chose = f"are among those of {called}, by which the recipe chose"
                return f"{common} of the evaluation samples {chose}; {UNFITTED}"
    return ""


def _judged(finding: Finding, compared: Sequence[Compared], confidence: float, fresh: float) -> Judgement:
    """``fresh``: the share of the samples that are draws of their own."""
    from lmccheck.stats.drawn import judged_share
    from lmccheck.stats.means import crossing, judged

    def at(shift: float) -> Judgement:
        claims = [_claim(each, finding.limit, fresh, shift) for each in compared]
        if finding.share is None or compared[0].draw is None:
            return judged(claims, confidence)
        draws: dict[str, dict[int, list[Claim]]] = {}
        for claim, (end, draw) in zip(claims, (each.draw or ("", 0) for each in compared), strict=True):
            draws.setdefault(end, {}).setdefault(draw, []).append(claim)
        return judged_share([list(of_end.values()) for of_end in draws.values()], finding.share, confidence)

    found = at(0.0)
    if all(each.weights is None for each in compared):
        return found
    low, high = crossing(lambda shift: at(shift).low), crossing(lambda shift: at(shift).high)
    student = crossing(lambda shift: at(shift).student[0]), crossing(lambda shift: at(shift).student[1])
    return replace(found, low=low, high=high, student=student)


def _everywhere(finding: Finding, confidence: float, fresh: float) -> dict[str, Any]:
    """Return whether new data stay within the limit between the points, too, and at most where; JSON-able."""
    compared, why = finding.everywhere() if finding.everywhere is not None else ((), "")
    if not compared:
        return {"holds": False, "bound": None, "edges": 0, "why": why or None}
    found = _judged(finding, compared, confidence, fresh)
    bound, holds = finding.bound + found.high, found.verdict == "pass"
    return {"holds": holds, "bound": bound, "edges": len(compared), "why": None if holds else f"at most {bound:.4g}"}


def _claim(compared: Compared, limit: float | str, fresh: float, shift: float = 0.0) -> Claim:
    from lmccheck.stats.means import Claim

    values = _excesses(compared, limit, shift)
    samples = tuple(replace(each, count=max(1, int(each.count * fresh))) for each in values)
    return Claim(compared.place, samples, compared.fixed)


def _excesses(compared: Compared, limit: float | str, shift: float) -> Iterator[Sample]:
    """Yield X, (n,), for each alternative, of a limit that is higher by ``shift``.

    What is weighted is divided by the mean weight, which keeps its mean; as weights are drawn with their samples, its
    spread depends on the limit.
    """
    import numpy as np

    from lmccheck.stats.means import Sample

    limit = limit if compared.limit is None else compared.limit
    losses = np.asarray(compared.losses, dtype=np.float64)
    weights = 1.0 if compared.weights is None else np.asarray(compared.weights, dtype=np.float64)
    against = [np.asarray(each, dtype=np.float64) for each in compared.against]
    reach = _reach(losses, against) if compared.reach is None else compared.reach
    if isinstance(limit, str):
        share = float(limit[:-1]) / 100
        shares = [np.asarray(each, dtype=np.float64) for each in compared.shares] or against
        pairs = zip(against * len(shares) if len(against) == 1 else against, shares, strict=True)
        beyond = [share * own + other for other, own in pairs]
    else:
        beyond = [other + limit for other in against]
    if reach is not None and compared.weights is not None:  # as far as a sample of the largest weight is moved
        reach *= float(np.max(weights) / np.mean(weights))
    with np.errstate(invalid="ignore", over="ignore"):  # infinite losses
        for each in beyond:
            yield Sample.of((losses - each - shift) * weights / np.mean(weights), reach)


def _reach(losses: Any, against: list[Any]) -> float | None:
    """Return by how much losses of two values can differ, such as errors; None for others."""
    import numpy as np

    every = [losses, *against]
    for values in (np.concatenate([each[:GLANCE] for each in every]), np.concatenate(every)):
        values = np.unique(values)
        if len(values) > BINARY:
            return None
    return float(values[-1] - values[0]) if len(values) == BINARY else None


def _facts(finding: Finding, found: Judgement, samples: int) -> dict[str, Any]:
    """Return what a report says; both ends of intervals in the finding's unit, each with the confidence by itself."""
    bound = finding.bound
    needed = math.ceil(found.more * samples) if math.isfinite(found.more) else None
    return {
        "verdict": found.verdict,
        "interval": [bound + found.low, bound + found.high],
        "student_t": [bound + end for end in found.student],
        "where": found.place,
        "chosen": any(each.place == found.place and not each.fixed for each in finding.compared),
        "comparisons": len(finding.compared),
        "draws": len({each.draw[1] for each in finding.compared if each.draw is not None}),
        "multiplicity": found.questions,
        "left_out": sum(not each.fixed for each in finding.compared),
        "needed": needed,
    }


def _by_population(name: str, finding: Finding, found: Judgement, facts: Mapping[str, Any]) -> Finding:
    """Return the finding as judged by the population."""
    confidence = _percent(facts)
    settled = "not decided" if found.verdict == "inconclusive" else f"{confidence}, asymptotic"
    known, everywhere = f"new data: {settled}", facts.get("all_t", {"holds": False})
    if everywhere["holds"]:
        known = f"new data: ≤ {rounded_up(everywhere['bound'])} over all t at {confidence}, asymptotic"
    elif finding.known not in (None, "exact"):
        known = f"{finding.known} on these; {known}"
    finding = replace(finding, interval=(facts["interval"][0], facts["interval"][1]), known=known)
    open_draws = facts["draws"] and facts["needed"] is None and found.verdict == "inconclusive"
    if finding.verdict in ("inconclusive", "error") and (finding.share is None or open_draws):
        return finding  # of draws that these data leave open, new data may still be settled
    said = f"{_shown(finding, facts)} of new data"
    if found.verdict == "inconclusive" and "all_t" in facts:
        why = facts["all_t"]["why"] or "nothing is known between the points"
        lines = [f"{name}: new data are within the limit at the points, and not certified between them: {why}", MEND]
        return replace(finding, verdict="inconclusive", failure=lines, notes=[*finding.notes, said])
    if found.verdict == "inconclusive":
        lines = [
            f"{name}: {_undecided(finding, facts)}",
            f"measured {finding.value:.4g}{_unit(finding)}; {said}; {_settles(facts)}",
            *([endpoint_losses(finding)] if finding.endpoints else []),
        ]
        more = [] if facts["needed"] is None else [f"about {facts['needed']:,} evaluation samples"]
        return replace(finding, verdict="inconclusive", failure=lines, advice=more, notes=[*finding.notes, said])
    failure = finding.failure
    if isinstance(failure, Failure):
        failure = replace(failure, remarks=[*failure.remarks, said])
    return replace(finding, verdict=found.verdict, failure=failure, notes=[*finding.notes, said])


def _undecided(finding: Finding, facts: Mapping[str, Any]) -> str:
    asks = "" if facts["decides"] else f'; {SETTINGS} judges that, now "inconclusive"'
    count = f"{facts['samples']:,} samples do" if facts["samples"] > 1 else "one sample does"
    of = f"{facts['draws']:,} draws and " if facts["draws"] else ""
    limit = number(finding.bound)
    return f"{of}{count} not decide about new data: {_shown(finding, facts)}, limit {limit}{asks}"


def _shown(finding: Finding, facts: Mapping[str, Any]) -> str:
    from lmccheck.stats.means import FEWEST

    low, high = facts["interval"]
    if low == -high == -math.inf:
        return f"{_percent(facts)} bounds need {FEWEST} samples in all that is judged"
    of = f" of the {finding.share:.0%} quantile over draws" if facts["draws"] and finding.share is not None else ""
    inside = f"; {finding.limit} is taken of each sample's own loss" if isinstance(finding.limit, str) else ""
    return f"{_percent(facts)} bounds{of} {low:.4g} and {high:.4g}{_unit(finding)} (each, asymptotic{inside})"


def _percent(facts: Mapping[str, Any]) -> str:
    return f"{100 * facts['confidence']:.12g} %"


def _settles(facts: Mapping[str, Any]) -> str:
    if facts["needed"] is None and facts["chosen"]:
        return f"{facts['where']} was chosen by these samples: only other ones can refute it"
    if facts["samples"] < LEAST:
        return "one sample has no spread: give more"
    if facts["needed"] is None and facts["draws"]:
        return "no number of samples like these would settle it: more draws may"
    if facts["needed"] is None:
        return "no number of samples like these would settle it"
    return f"about {facts['needed']:,} samples like these would settle it"


def _unit(finding: Finding) -> str:
    return f" {finding.unit}" if finding.unit else ""
