"""What the path properties share: the traced network in units, both endpoints, and a Result from a certificate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError, SourceError, UnsupportedArchitecture
from lmccheck.properties.limits import read_limit
from lmccheck.properties.remarks import data_remarks, require_finite
from lmccheck.result import Result, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.network.pair import ModelPair
    from lmccheck.paths.certify import Certificate
    from lmccheck.paths.path import Path
    from lmccheck.symmetry.structure import Structure

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

    structure = structure_for(pair, purpose)
    if structure.headless:
        raise UnsupportedArchitecture(f"{purpose}: {structure.headless}")
    theta_a, theta_b = structure.canonical(pair.theta_a), structure.canonical(pair.theta_b)
    stuck = immovable(structure, theta_a, theta_b)
    if stuck is not None:
        spec = pair.network.spec
        why = next((f" ({f.reason})" for f in spec.frozen if f.tensor == stuck[0]), "")
        raise UnsupportedArchitecture(
            f"{purpose}: tensor {stuck[0]!r} differs between a and b and no move of the theory changes it: "
            f"{stuck[1]}{why}"
        )
    return Prepared(structure, theta_a, theta_b)


def structure_for(pair: ModelPair, purpose: str) -> Structure:
    """Return the structure of a pair's traced network, made once. Raises UnsupportedArchitecture."""
    return pair.once(_structure, purpose)


def _structure(pair: ModelPair, purpose: str) -> Structure:
    from lmccheck.symmetry.discover import structure_of

    assert pair.network.spec  # verified before anyone may use it
    derived = pair.network.trace_for(
        f"{purpose}: a permutation spec that is handed in says too little; it needs", "leave out `symmetry`"
    )
    return structure_of(derived, purpose, head=False)


def require_covered(structure: Structure, purpose: str) -> None:
    """Raise UnsupportedArchitecture where a hidden layer's outputs are no units that could be dropped."""
    for name, why in structure.uncovered.items():
        raise UnsupportedArchitecture(
            f"{purpose}: outputs of tensor {name!r} belong to no unit group ({why}); the definition speaks of every "
            "hidden layer, and units of this one cannot be dropped"
        )


def require_number(value: Any, name: str, low: float, high: float, purpose: str) -> None:
    """Raise LmcError unless ``value`` is a number in (low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= high:
        raise LmcError(f"{purpose}: {name} = {value!r}; expected a number above {low:g} and at most {high:g}")


def require_choice(value: Any, name: str, valid: tuple[str, ...], purpose: str) -> None:
    """Raise LmcError unless ``value`` is one of ``valid``."""
    if value not in valid:
        raise LmcError(f"{purpose}: {name} = {value!r}; expected one of {list(valid)}")


def require_common(epsilon: float | str, seed: Any, profile: Any, purpose: str, refit: Any = True) -> None:
    """Raise LmcError unless the settings that every path property takes are valid."""
    from lmccheck.paths.certify import SAMPLED

    read_limit(epsilon, 1.0, purpose)
    require_choice(profile, "profile", tuple(name for name in SAMPLED if name != "glance"), purpose)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise LmcError(f"{purpose}: seed = {seed!r}; expected an integer")
    if not isinstance(refit, bool):
        raise LmcError(f"{purpose}: refit = {refit!r}; expected True or False")


def require_calibration(pair: ModelPair, purpose: str) -> None:
    """Raise SourceError where there is nothing to search on."""
    if pair.calibration is None:
        raise SourceError(
            f"{purpose}: pair {pair.name} has no calibration data, on which units to keep are searched for; mend: give "
            "`calibration`, for example the training data"
        )


def concluded(
    pair: ModelPair,
    name: str,
    path: Path,
    certificate: Certificate,
    epsilon: float | str,
    started: float,
    details: Mapping[str, Any],
    *,
    remark: str,
    costs: Callable[[], Mapping[str, float]],
) -> Result:
    """Return the Result of a certified path; ``costs`` gives, per layer, what dropping it costs, asked for on failure.

    Raises SourceError when an endpoint's loss is not finite.
    """
    for key, loss in (("a", certificate.loss_a), ("b", certificate.loss_b)):
        require_finite(pair, key, loss)
    bound = read_limit(epsilon, max(certificate.loss_a, certificate.loss_b), name)
    excess = certificate.excess if certificate.largest == certificate.largest else math.inf
    worst = certificate.worst
    verdict: Verdict = "pass" if excess <= bound else "fail"
    per_layer = dict(costs()) if verdict == "fail" else {}
    costly = max(per_layer, key=lambda layer: per_layer[layer]) if per_layer else None
    found: dict[str, Any] = {
        "excess_definition": EXCESS,
        "kinds": path.kinds,
        "segments": [segment.facts() for segment in certificate.segments],
        "certified_max": certificate.largest,
        "excess": excess,
        "exact": certificate.exact,
        "loss_a": certificate.loss_a,
        "loss_b": certificate.loss_b,
        "error_a": certificate.segments[0].errors[0],
        "error_b": certificate.segments[-1].errors[1],
        "worst_segment": f"{worst.number}{worst.kind}",
        "worst_layer": costly,
        "layer_costs": per_layer,
        "numerical_deviation": certificate.deviation,
        "limit_given": epsilon,
        "samples": pair.data.samples,
        "precision": "float64",
        **details,
    }
    found["notes"] = [*_notes(pair, certificate), *found.get("notes", ())]
    if verdict == "fail":
        found["failure"] = _failure(pair, certificate, excess, bound, costly, per_layer, path.kinds, remark)
    return Result(
        property=name,
        verdict=verdict,
        value=excess,
        limit=bound,
        unit=pair.loss.unit,
        witness=path,
        evaluations=certificate.evaluations,
        seconds=time.perf_counter() - started,
        details=found,
    )


def _notes(pair: ModelPair, certificate: Certificate) -> list[str]:
    sampled = [str(segment.number) for segment in certificate.segments if segment.how == "sampled"]
    total = len(certificate.segments)
    if sampled:
        known = f"{total} segments: {', '.join(sampled)} sampled, the others convex or constant"
        if not pair.loss.convex:
            known += f" (the loss {pair.loss.name!r} is not known to be convex: head segments are sampled too)"
    else:
        known = f"{total} segments, all convex or constant: the maximum is known, not sampled"
    notes = [known]
    if certificate.loss_a != certificate.loss_b:
        notes.append("the excess is over the worse of the two endpoints' losses")
    notes += data_remarks(pair)
    return notes


def _failure(
    pair: ModelPair,
    certificate: Certificate,
    excess: float,
    bound: float,
    costly: str | None,
    per_layer: Mapping[str, float],
    kinds: str,
    remark: str,
) -> list[str]:
    """Return the first five lines of a failure: what, measured, where, worst and smallest, endpoints."""
    unit, worst = pair.loss.unit, certificate.worst
    top = max(certificate.loss_a, certificate.loss_b)
    over = [s for s in certificate.segments if not s.largest - top <= bound]
    smallest = min(over, key=lambda s: s.largest if s.largest == s.largest else math.inf)
    layer = f"; layer {costly} costs most when dropped: {per_layer[costly]:.4g} {unit}" if costly else ""
    known = "is known" if certificate.exact else "is known but for segments of kind d, which are sampled"
    return [
        f"{pair.name}: no path of low loss found: {remark}" if remark else f"{pair.name}: this path is too high",
        f"excess {excess:.4g} {unit}, limit {bound:.4g} {unit}; the maximum on the path, {certificate.largest:.4g}, "
        f"{known}",
        f"where: segment {worst.number} of {len(kinds)} ({kinds}), kind {worst.kind}, {worst.does}, on "
        f"{pair.data.origin} ({pair.data.samples} samples){layer}",
        f"worst {worst.largest - top:.4g} on segment {worst.number}; smallest counterexample "
        f"{smallest.largest - top:.4g} on segment {smallest.number} ({smallest.how}); {len(over)} of {len(kinds)} "
        "segments above the limit",
        f"endpoint losses: a {certificate.loss_a:.4g}, b {certificate.loss_b:.4g} {unit}",
    ]
