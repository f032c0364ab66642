"""What is said of every finding, whatever property found it: are its endpoints of any use, its data, its limit?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from lmccheck.explain import called, endpoint_losses
from lmccheck.finding import ALONE, End, Examined, Finding
from lmccheck.properties.remarks import (
    data_remarks,
    end_of,
    excludes_nothing,
    limit_remarks,
    origin_remarks,
    reestimated,
    stale_statistics,
    token_facts,
    token_remarks,
    twin_remarks,
)
from lmccheck.properties.triaged import triaged
from lmccheck.shown import some

if TYPE_CHECKING:
    from lmccheck.network.constant import ConstantAnswer
    from lmccheck.network.endpoint import Endpoint
    from lmccheck.network.network import Network

Endpoints = Literal["useful", "any"]
MEND = "wrong data, preprocessing, tokenizer, or an untrained model; mend: correct what is wrong"
DAMAGED = "damaged, untrained, or made for other data or preprocessing; mend: name or make a checkpoint that answers"
ANY = ', or say endpoints = "any" in the check'  # said where it would change the verdict
SHOWN = 3  # endpoints that are named


def looked_at(measured: Any, finding: Finding, endpoints: Endpoints, defaults: Mapping[str, Any]) -> Finding:
    """Return a finding with what must be said of its endpoints, its data and its limit.

    With ``endpoints = "useful"`` it is inconclusive where an endpoint answers no better than a constant: neither in
    loss nor, for classes, in error; with ``"any"`` that is a note. Of several data sets an endpoint must be useful on
    one, and on those where the finding refers to it. ``defaults``: limits that nobody gave. Endpoints that the property
    did not measure are measured, if a verdict depends on them.
    """
    if not hasattr(measured, "named_endpoints") or not isinstance(finding.value, (int, float)):
        return finding
    if not finding.of_losses:  # what files hold is not less true of networks that are of no use
        return finding
    finding = triaged(measured, finding)
    looks, passes = _looks(measured, finding, endpoints)
    finding = replace(finding, evaluations=finding.evaluations + passes)
    first, network = looks[0], looks[0].network
    constant = network.constant if first.ends else None
    _require_a_loss(measured, network, first.ends)
    named = measured.named_endpoints
    said = list(dict.fromkeys(_on(look, looks, text) for look in looks for text in data_remarks(look.network)))
    said += [*origin_remarks(measured), *twin_remarks(named)]
    faults = [(look, bad) for look in looks if (bad := _at_fault(look, looks))]
    mild = [text for look in looks if (text := _elsewhere(look, looks))]
    useless = [end for _, bad in faults for end in bad]
    told = None if constant is None else constant.facts()
    beside = {"required": endpoints, "constant": told, "no_better": [end.name for end in useless]}
    facts = {**finding.facts, "endpoints": beside, "limits_by_default": dict(defaults)}
    if tokens := token_facts([*first.ends, *([finding.merge] if finding.merge is not None else [])]):
        facts["tokens"] = tokens
        said += token_remarks(tokens, network.loss.unit)
    if first.ends and finding.unit == network.loss.unit:
        said += [] if useless else limit_remarks(finding, first.ends, constant)
        facts["limit_excludes"] = not excludes_nothing(finding, first.ends, None if useless else constant)
    found = replace(finding, facts=facts, notes=[*finding.notes, *said, *mild])
    if faults:
        texts = [_on(look, looks, useless_text(bad, look, network.loss.unit)) for look, bad in faults]
        stale, passes = _stale(named, useless) if len(looks) == 1 else ([], 0)
        found = replace(found, evaluations=found.evaluations + passes)
        if endpoints != "useful":
            return _noted(found, *texts, *stale)
        # of networks of which one is damaged it is no mend to say that any will do
        return _inconclusive(measured.name, found, texts[0] + ("" if _answering(*faults[0]) else ANY), stale)
    if not mild and (unsure := _worse_in_loss(first.ends, constant, network.loss.unit)):
        found = _noted(found, unsure)
    if endpoints == "useful" and (unjudged := _unjudged(network.loss.name, network.constant, first.ends)):
        return _noted(found, unjudged)
    return found


def _looks(measured: Any, finding: Finding, endpoints: Endpoints) -> tuple[list[Examined], int]:
    """Return what endpoints were measured on, the data of the finding first, and how many passes this took."""
    if finding.examined:
        return list(finding.examined), 0
    ends, passes = _ends(measured, finding), 0
    if ends is None and endpoints == "useful" and measured.network.constant is not None:
        ends, passes = _measure(measured)
    return [Examined(measured.network, tuple(ends or ()))], passes


def _on(look: Examined, looks: Sequence[Examined], text: str) -> str:
    return f"on {look.label}: {text}" if len(looks) > 1 else text


def _at_fault(look: Examined, looks: Sequence[Examined]) -> list[End]:
    """Return the useless endpoints that are needed here, or are useless on all data."""
    nowhere = set.intersection(*({end.name for end in _useless_in(each)} for each in looks))
    return [end for end in _useless_in(look) if end.name in look.required or end.name in nowhere]


def _useless_in(look: Examined) -> list[End]:
    """Return the endpoints that are known to do no more than a constant; none where a loss is no number."""
    constant = look.network.constant if look.ends else None
    if constant is None or not all(math.isfinite(end.loss) for end in look.ends):
        return []
    return [end for end in look.ends if constant.beaten(end.loss, end.error) is False]


def _elsewhere(look: Examined, looks: Sequence[Examined]) -> str:
    """Say which endpoints are useless on these data and not on others; empty where none is."""
    bad = _at_fault(look, looks)
    others = [end for end in _useless_in(look) if end not in bad]
    if not others or look.network.constant is None:
        return ""
    figures = _listed(others, look.network.constant, look.network.loss.unit)
    return _on(look, looks, f"{figures}, and on other data it does")


def _noted(finding: Finding, *texts: str) -> Finding:
    return replace(finding, notes=[*finding.notes, *texts])


def _ends(measured: Any, finding: Finding) -> Sequence[End] | None:
    """Return the losses of all that is compared, as the property measured them; None where it did not."""
    names = [end.name for end in finding.endpoints]
    known = finding.unit == measured.network.loss.unit and set(names) == set(measured.named_endpoints)
    return finding.endpoints if known else None


def _measure(measured: Any) -> tuple[list[End], int]:
    """Return the losses of all that is compared, and how many passes over the data they took."""
    from lmccheck.evaluate.evaluator import Evaluator

    ends, passes = [], 0
    for name, end in measured.named_endpoints.items():
        evaluator = Evaluator(end.network, end.theta)
        found = evaluator.endpoint(end.theta, called(name, "endpoint "), end.checkpoint.label)
        ends.append(end_of(name, found))
        passes += evaluator.evaluations
    return ends, passes


def _require_a_loss(measured: Any, network: Network, ends: Sequence[End]) -> None:
    """Raise SourceError where a loss of the user's own is the same whatever the network says."""
    if network.constant is not None or len({end.loss for end in ends}) != 1:
        return
    from lmccheck.evaluate.outputs import require_a_loss

    require_a_loss(network, next(iter(measured.named_endpoints.values())).theta)


def _worse_in_loss(ends: Sequence[End], constant: ConstantAnswer | None, unit: str) -> str:
    """Say which endpoints have a higher loss than a constant answer, though they err less: empty where none has."""
    if constant is None or constant.few:
        return ""
    worse = [end for end in ends if math.isfinite(end.loss) and end.loss > constant.loss + constant.luck]
    if not worse:
        return ""
    listed = ", ".join(f"{end.name} {end.loss:.3g}" for end in worse[:SHOWN])
    return (
        f"above the loss of a constant answer, {constant.loss:.3g} {unit}, though with fewer errors: {listed}; is the "
        "preprocessing (scale, normalisation) that of training?"
    )


def _answering(look: Examined, useless: Sequence[End]) -> list[End]:
    """Return the endpoints that do answer better than a constant on the data on which these do not."""
    constant = look.network.constant
    if constant is None or constant.perfect:
        return []
    return [end for end in look.ends if end not in useless and constant.beaten(end.loss, end.error)]


def _stale(named: Mapping[str, Endpoint], useless: Sequence[End]) -> tuple[list[str], int]:
    """Return which endpoints are useless by their BatchNorm statistics, and how many passes over the data this took."""
    said, passes = [], 0
    for end in useless[:SHOWN]:
        one = named.get(end.name)
        if one is not None and (found := reestimated(one)) is not None:
            passes += 1
            said += [f"{end.name}: {text}" for text in stale_statistics(one.network, end.loss, found)]
    return said, passes


def _unjudged(loss: str, constant: ConstantAnswer | None, ends: Sequence[End]) -> str:
    if constant is None:
        return f"{_subject(ends)} not judged: no constant answer is known for the loss {loss!r}"
    if constant.few and (constant.held_out is None or any(constant.beaten(e.loss, e.error) is None for e in ends)):
        return (
            f"{_subject(ends)} not judged: {constant.counted} counted targets of {constant.classes} class(es), "
            f"{constant.needed} are needed"
        )
    return ""


def useless_text(useless: Sequence[End], look: Examined, unit: str) -> str:
    """Say which endpoints answer no better than a constant, with the figures of both, and what to do.

    >>> from types import SimpleNamespace
    >>> from lmccheck.network.constant import ConstantAnswer
    >>> constant = ConstantAnswer("class frequencies", 1.03, 0.66, 1.02, 100, 3, 100, 0.02)
    >>> ends = End("a", 0.2, 0.1), End("b", 5.19, 0.77)
    >>> said = useless_text(ends[1:], Examined(SimpleNamespace(constant=constant), ends), "nats").partition(", while ")
    >>> print(said[0])
    b answers no better than the class frequencies (5.19 ≥ 1.03 nats, 77 % errors, majority 66 %)
    >>> print(said[2].partition(";")[0])
    a does on the same data: b is damaged, untrained, or made for other data or preprocessing
    """
    constant = look.network.constant
    if constant.perfect:
        same = f"all {constant.counted} counted targets are the same"
        if constant.classes > 1:
            same = f"all {constant.samples} samples have the same targets"
        return (
            f"{same}, a constant answer is never wrong: nothing can be said of the {_subject(useless)}; mend: give "
            "data of more than one class or value"
        )
    listed = _listed(useless, constant, unit)
    others = [end.name for end in _answering(look, useless)]
    if not others:
        return f"{listed}: {MEND}"
    does, those = "does" if len(others) == 1 else "do", f"{useless[0].name} is" if len(useless) == 1 else "they are"
    return f"{listed}, while {some(others, SHOWN)} {does} on the same data: {those} {DAMAGED}"


def _subject(ends: Sequence[End]) -> str:
    return "model" if [end.name for end in ends] == [ALONE] else "endpoints"


def _listed(useless: Sequence[End], constant: ConstantAnswer, unit: str) -> str:
    """Name endpoints that answer no better than a constant, with the figures of both."""
    first, *others = (f"{called(end.name)} {{}}({_figures(end, constant, unit)})" for end in useless[:SHOWN])
    parts = [
        first.format(f"answers no better than the {constant.name} "),
        *(f"nor does {o.format('')}" for o in others),
    ]
    more = [f"nor {len(useless) - SHOWN} more"] if len(useless) > SHOWN else []
    return ", ".join([*parts, *more])


def _figures(end: End, constant: ConstantAnswer, unit: str) -> str:
    sign = "≥" if end.loss >= constant.told else "≈"
    figures = f"{end.loss:.3g} {sign} {constant.told:.3g} {unit}"
    if end.error is None or constant.error is None:
        return figures
    return f"{figures}, {100 * end.error:.3g} % errors, majority {100 * constant.error:.3g} %"


def _inconclusive(name: str, finding: Finding, text: str, why: Sequence[str]) -> Finding:
    """Return the finding as one from which nothing follows; an error stays an error."""
    if finding.verdict == "error":
        return _noted(finding, text, *why)
    without = {"pass": "it would pass", "fail": "it would fail"}.get(finding.judged, "it is not settled either")
    unit = f" {finding.unit}" if finding.unit else ""
    about = called(ALONE) if _subject(finding.endpoints) == ALONE else "merging them"
    lines = [
        f"{name}: {text}",
        *why,
        f"measured {finding.value:.4g}{unit}, limit {finding.bound:.4g}{unit}, by which {without}: that says nothing "
        f"about {about}",
        *([endpoint_losses(finding)] if finding.endpoints else []),
    ]
    return replace(finding, verdict="inconclusive", failure=lines)
