"""What properties of units share: the traced network in units, networks with units dropped, findings of paths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lmccheck.curves import Profile
from lmccheck.errors import SourceError
from lmccheck.finding import Compared, End, Failure, Finding, Seen, Where
from lmccheck.properties.remarks import measured_on
from lmccheck.shown import rounded_up

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.dropping.search import Search
    from lmccheck.network.pair import ModelPair
    from lmccheck.network.view import View
    from lmccheck.paths.certify import Certificate
    from lmccheck.paths.path import Path
    from lmccheck.symmetry.structure import Structure

USUAL = 0.05  # epsilon, where neither a call nor a witness says one
MEND = "mend: certify = 'auto', which passes by points alone, profile = 'thorough', or fewer samples"
PASSES = {  # over the data that bounding a segment may cost, by what was asked for and by profile
    "auto": {"ci": 40.0, "thorough": 400.0},
    "always": {"dev": 400.0, "ci": 400.0, "thorough": 4000.0},
}
EXCESS = "max L on the path − max(L(θ_A), L(θ_B))"


@dataclass(frozen=True)
class Prepared:
    """A pair in terms of units: its structure and both endpoints as canonical float64 states."""

    structure: Structure
    theta_a: dict[str, Tensor]
    theta_b: dict[str, Tensor]


def prepare(pair: ModelPair, purpose: str) -> Prepared:
    """Return a pair in terms of units.

    Raises UnsupportedArchitecture where the theory does not hold, and where the endpoints differ in a tensor that no
    move of a path can change.
    """
    from lmccheck.paths.moves import immovable
    from lmccheck.symmetry.capabilities import refusal

    structure = pair.network.structure(purpose)
    if structure.headless:
        raise refusal(purpose, structure.headless)
    theta_a, theta_b = structure.canonical(pair.theta_a), structure.canonical(pair.theta_b)
    stuck = immovable(structure, theta_a, theta_b)
    if stuck is not None:
        why = next((f" ({f.reason})" for f in pair.network.spec.frozen if f.tensor == stuck[0]), "")
        says = f"tensor {stuck[0]!r} differs between a and b and no move of the theory changes it: {stuck[1]}{why}"
        raise refusal(purpose, says)
    return Prepared(structure, theta_a, theta_b)


def require_calibration(pair: View, purpose: str) -> None:
    """Raise SourceError where there is nothing to search on."""
    if pair.calibration is None:
        raise SourceError(
            f"{purpose}: {pair.title} has no calibration data, on which units to keep are searched for; mend: give "
            "`calibration`, for example the training data"
        )


def search_each(pair: View, structure: Structure, levels: Sequence[int], **settings: Any) -> dict[str, Search]:
    """Return what ``find_dropped`` finds for each endpoint with the settings keep, refit, seed and profile."""
    from lmccheck.dropping.choose_units import SearchSettings
    from lmccheck.dropping.search import find_dropped

    searches = {}
    for name, end in pair.named_endpoints.items():
        found = find_dropped(end, structure, levels, SearchSettings(**settings))
        searches[name] = replace(found, facts={"side": name, **found.facts})
    return searches


def limit_of(given: float | str | None, stated: float | str | None) -> tuple[float | str, dict[str, str], list[str]]:
    """Return the limit of what verifies a witness: the one given, else the witness's own, else the usual one.

    With it what a report says of where it is from: a fact, and notes.
    """
    if given is not None:
        return given, {"limit_from": "given"}, []
    if stated is not None:
        return stated, {"limit_from": "witness"}, [f"epsilon = {stated} is the one that the witness was made for"]
    note = f"epsilon = {USUAL} is the default: the witness does not say one (an older file); mend: give epsilon"
    return USUAL, {"limit_from": "default"}, [note]


def not_found(settings: Mapping[str, Any]) -> str:
    """Say of a path that is too high what was searched, with which settings."""
    return (
        "no path of low loss found: no better dropped networks were found within this budget "
        f"({settings['profile']}, seed {settings['seed']}), which does not prove that there are none"
    )


@dataclass(frozen=True)
class Certified:
    """A path of a pair and what is known of the losses along it."""

    pair: ModelPair
    path: Path
    certificate: Certificate

    @property
    def excess(self) -> float:
        """By how much the path is above the worse endpoint; infinite where a loss is no number."""
        return math.inf if math.isnan(self.certificate.largest) else self.certificate.excess

    def finding(self, epsilon: float | str, facts: Mapping[str, Any], notes: Sequence[str] = ()) -> Finding:
        """Return the finding. Raises SourceError when an endpoint's loss is not finite."""
        pair, certificate = self.pair, self.certificate
        worst, segments = certificate.worst, [segment.facts() for segment in certificate.segments]
        ends = (
            End("a", certificate.loss_a, certificate.end_errors[0]),
            End("b", certificate.loss_b, certificate.end_errors[1]),
        )
        for end, measured in zip((pair.a, pair.b), ends, strict=True):
            if not math.isfinite(measured.loss):
                raise SourceError(
                    f"{end.checkpoint.label}: its {pair.loss.name} on {pair.data.origin} is {measured.loss}, "
                    "expected a finite loss; mend: check the checkpoint and the loss"
                )
        return Finding(
            self.excess,
            epsilon,
            pair.loss.unit,
            endpoints=ends,
            worst_loss=certificate.largest,
            above="worse",
            where=Where(segment=f"{worst.number}{worst.kind}"),
            curve=Profile(segments),
            notes=[*self._notes(), *notes],
            witness=replace(self.path, facts={**self.path.facts, "epsilon": epsilon}),
            evaluations=certificate.evaluations,
            known=certificate.known,
            facts={
                "excess_definition": EXCESS,
                "kinds": self.path.kinds,
                "segments": segments,
                "certified_max": certificate.largest,
                "excess": self.excess,
                "exact": certificate.exact,
                "certified_bound": certificate.bound,
                "convexity": certificate.convex.says or None,
                "worst_layer": None,
                "layer_costs": {},
                "numerical_deviation": certificate.deviation,
                "samples": pair.data.samples,
                "precision": "float64",
                **facts,
            },
            compared=list(self._compared()),
        )

    def _compared(self) -> Iterator[Compared]:
        """Yield all that was measured on the path beside both endpoints, sample by sample.

        The loss of a sample is convex where its mean is, and constant where that is: there the breakpoints are enough.
        """
        known = self.certificate
        for number, losses in known.breakpoints.items():
            if not any(bool((losses == own).all()) for own in known.own):
                yield Compared(f"at breakpoint {number}", losses, known.own)
        for segment in known.segments:
            for point in segment.seen:
                place = f"at {point.t:.4g} of segment {segment.number}"
                yield Compared(place, point.losses, known.own, fixed=not point.chosen)

    def explained(
        self, found: Finding, what: str, advice: Sequence[str], costs: Callable[[], Mapping[str, float]] = dict
    ) -> Finding:
        """Return a finding that, if it fails, says ``what`` fails and what may help.

        ``costs``: per layer, what dropping it costs.
        """
        if found.judged == "pass" or found.failure is not None:
            return found
        layers = dict(costs())
        costly = max(layers, key=lambda name: layers[name], default=None)
        layer = f"; layer {costly} costs most when dropped: {layers[costly]:.4g} {found.unit}" if costly else ""
        return replace(
            found,
            where=replace(found.where, layer=costly),
            facts={**found.facts, "worst_layer": costly, "layer_costs": layers},
            failure=replace(self._failure(what, layer), next=advice),
        )

    def settled(self, found: Finding, certify: str) -> Finding:
        """Return a finding; one that passes is inconclusive where a proof was asked for and there is none."""
        bound = self.certificate.bound
        if found.judged != "pass" or self.certificate.exact or (bound is not None and bound <= found.bound):
            return found
        said = "some segments are only sampled" if bound is None else f"all that is shown is ≤ {rounded_up(bound)}"
        found = found if bound is None else replace(found, known=f"sampled; {said}")
        if certify != "always":
            return found
        lines = [f"{self.pair.name}: {found.known}, and not certified within the limit: {said}", MEND]
        return replace(found, verdict="inconclusive", failure=lines, notes=[*found.notes, f"not certified: {said}"])

    def without_refit(self) -> tuple[dict[str, Any], list[str]]:
        """Return what a report and its notes say of this path as the one through networks that were not refitted."""
        known = self.certificate
        facts = {"excess": known.excess, "certified_max": known.largest, "evaluations": known.evaluations}
        return facts, [f"without refitting the dropped networks the excess is {known.excess:.4g}"]

    def _notes(self) -> list[str]:
        pair, certificate = self.pair, self.certificate
        sampled = [str(segment.number) for segment in certificate.segments if segment.how == "sampled"]
        total = len(certificate.segments)
        claimed = ", if the loss is convex as it says" if certificate.convex.says else ""
        known = f"{total} segments, all convex or constant: the maximum is known, not sampled{claimed}"
        bounded = [str(segment.number) for segment in certificate.segments if segment.how == "certified"]
        if bounded and not sampled:
            known = f"{total} segments: {', '.join(bounded)} bounded everywhere, the others convex or constant"
        if self.path.is_chain:
            known = f"a path that was only sampled ({certificate.known}): no theorem stands behind it"
        elif sampled:
            known = f"{total} segments: {', '.join(sampled)} sampled, the others convex or constant"
            if not pair.loss.convex:
                known += f" (the loss {pair.loss.name!r} is not known to be convex: head segments are sampled too)"
        notes = [known, *([certificate.convex.says] if certificate.convex.says else [])]
        if certificate.loss_a != certificate.loss_b:
            notes.append("the excess is over the worse of the two endpoints' losses")
        return notes

    def _failure(self, what: str, layer: str) -> Failure:
        certificate, kinds = self.certificate, self.path.kinds
        top, worst = max(certificate.loss_a, certificate.loss_b), certificate.worst
        known = "is known" if certificate.exact else "is known but for segments of kind d, which are sampled"
        known = "is the largest of what was sampled" if self.path.is_chain else known
        others = [segment for segment in certificate.segments if segment is not worst]
        return Failure(
            self.pair.name,
            what,
            "excess",
            f"segment {worst.number} of {len(kinds)} ({kinds}), kind {worst.kind}, {worst.does}",
            f"{measured_on(self.pair.data)}{layer}",
            [Seen(s.largest - top, f"on segment {s.number} ({s.how})") for s in (worst, *others)],
            "segments",
            [f"the maximum on the path, {certificate.largest:.4g}, {known}"],
        )
