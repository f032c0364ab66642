"""The weighted mean of a set, measured once with every model and once without each: a verdict in O(n)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

from lmccheck.curves import Bars
from lmccheck.errors import LmcError, nearest
from lmccheck.finding import Compared, End, Failure, Finding, Seen, Where
from lmccheck.properties.advice import APART, other_alignment
from lmccheck.properties.remarks import batchnorm_remark, measured_on
from lmccheck.shown import some

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.alignment.many import ManyAlignment
    from lmccheck.evaluate.means import MeanLosses
    from lmccheck.network.model_set import ModelSet

DEFINITION = "L(Σ w_k·π_k(θ_k)) − Σ w_k·L(θ_k), L of the original models, Σ w_k = 1"


def shares(given: Mapping[str, float] | Sequence[float] | None, names: Sequence[str]) -> list[float]:
    """Return a weight for each model, in the order of ``names``; uniform where none are given.

    Raises LmcError where a weight is missing, unknown, or nothing but zeros are given.
    """
    if given is None:
        return [1.0] * len(names)
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                near = nearest(str(name), names)
                raise LmcError(f"weights: {name!r} is no model{near}; expected {', '.join(names)}")
        if lacking := [name for name in names if name not in given]:
            raise LmcError(f"weights: none for {lacking[0]!r}; mend: say one for each model, 0 leaves one out")
        found = [float(given[name]) for name in names]
    else:
        found = [float(weight) for weight in given]
    if len(found) != len(names):
        raise LmcError(f"weights: got {len(found)}, expected one for each of the {len(names)} models, in their order")
    if not sum(found) > 0:
        raise LmcError("weights: got nothing but zeros, expected one above 0 at least")
    return found


def mean_finding(
    models: ModelSet, many: ManyAlignment | None, weights: list[float], limit: float | str, repair: str
) -> Finding:
    """Measure the mean of a set, aligned or (``many`` None) as it is, and the means that leave one model out."""
    from lmccheck.alignment.kept import set_note
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.means import mean_losses

    if repair == "repair":
        raise LmcError(
            "set_connectivity: repair = 'repair' with over = 'mean'; REPAIR is about two ends; mend: repair = 'bn'"
        )
    network = models.network
    evaluator = Evaluator(network, models.endpoints[0].theta, dtype=models.endpoints.dtype)
    reestimates = evaluator.batchnorms > 0 and repair != "none"
    if reestimates:
        evaluator.require_calibration()

    def given() -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        return ((name, end.theta) for name, end in models.named_endpoints.items())

    moved = None if many is None or many.is_identity else list(zip(many.names, many.weights, strict=True))
    naive = mean_losses(evaluator, given, weights, reestimate=reestimates, each=moved is None)
    found = naive
    if moved is not None:
        found = mean_losses(evaluator, lambda: moved, weights, reestimate=reestimates, known=naive)
    names = models.names
    result = Finding(
        found.height,
        limit,
        network.loss.unit,
        reference=max(loss for loss, weight in zip(found.losses, weights, strict=True) if weight > 0),
        endpoints=tuple(map(End, names, found.losses, found.errors or repeat(None))),
        worst_loss=found.loss,
        above="chord",
        merge=End(f"of the mean of all {len(names)}", found.loss, found.error),
        where=Where(side="the mean"),
        curve=_bars(models, found),
        naive=naive.height,
        barrier_definition=DEFINITION,
        alignment=many.facts if many is not None else {"method": "none", "align": "none"},
        notes=[*_notes(models, found, naive, reestimates), *(set_note(many) if many is not None else [])],
        witness=many,
        evaluations=evaluator.evaluations,
        known="exact",
        facts=_facts(models, found, naive, repair),
        compared=[_compared(found)],
    )
    return result.explained(lambda: _failure(models, many, found, naive, result.bound))


def _compared(found: MeanLosses) -> Compared:
    """Return the mean beside its models, sample by sample."""
    weighted = [(weight, own) for weight, own in zip(found.weights, found.own, strict=True) if weight > 0]
    chord = sum(weight * own for weight, own in weighted)
    return Compared("of the mean of all", found.each, (chord,), tuple(own for _, own in weighted))


def _bars(models: ModelSet, found: MeanLosses) -> Bars:
    """Return by how much every mean lies above its own models, as a report draws it."""
    names = ["all models", *(f"without {name}" for name in models.names)]
    heights = [found.height, *(found.height_without(k) for k in range(len(models.names)))]
    return Bars(names, {"the mean": heights}, of="mean", what="loss above that of its models")


def _helps_most(found: MeanLosses) -> int | None:
    """Return the model without which the mean of the others has the lowest loss, where that is below that of all."""
    lower = {k: loss for k, loss in enumerate(found.without) if loss is not None and loss < found.loss}
    return min(lower, key=lambda k: lower[k], default=None)


def _facts(models: ModelSet, found: MeanLosses, naive: MeanLosses, repair: str) -> dict[str, Any]:
    helps = _helps_most(found)
    return {
        "names": list(models.names),
        "over": "mean",
        "weights": found.weights,
        "losses": found.losses,
        "errors": found.errors,
        "mean_loss": found.loss,
        "mean_loss_naive": naive.loss,
        "mean_error": found.error,
        "mean_of_losses": found.chord,
        "leave_one_out": dict(zip(models.names, found.without, strict=True)),
        "helps_most": None if helps is None else models.names[helps],
        "samples": models.network.data.samples,
        "repair": repair,
    }


def _notes(models: ModelSet, found: MeanLosses, naive: MeanLosses, reestimates: bool) -> list[str]:
    """Say what leaving a model out does, and what was done to the means."""
    helps, unit = _helps_most(found), models.network.loss.unit
    losses = [loss for loss in found.without if loss is not None]
    notes = [
        f"the mean of all {len(found.losses)} has loss {found.loss:.4g} {unit}, the best model "
        f"{min(found.losses):.4g}; leaving one out gives {min(losses):.4g} to {max(losses):.4g}"
        + ("" if helps is None else f", least without {models.names[helps]}")
    ]
    if len(set(found.weights)) > 1:
        named = zip(models.names, found.weights, strict=True)
        notes.append(f"weights: {some([f'{name} {weight:.4g}' for name, weight in named])}")
    if found is not naive:
        notes.append(f"unaligned the mean has loss {naive.loss:.4g} {unit}")
    return [*notes, batchnorm_remark(models.network)] if reestimates else notes


def _failure(
    models: ModelSet, many: ManyAlignment | None, found: MeanLosses, naive: MeanLosses, bound: float
) -> Failure:
    helps, network = _helps_most(found), models.network
    heights = {k: height for k in range(len(models.names)) if (height := found.height_without(k)) is not None}
    advice = other_alignment(network, "none" if many is None else many.facts["align"])
    for k in sorted(heights, key=lambda k: heights[k])[:1]:
        if heights[k] <= bound:
            advice.insert(0, f"the mean without {models.names[k]}, which is within the limit ({heights[k]:.4g})")
    return Failure(
        f"the mean of {some(models.names)}",
        f"is worse than its models are on average{'' if many is None else f', after {many.method}'}",
        "loss above theirs",
        f"the mean has loss {found.loss:.4g}"
        + ("" if helps is None else f", without {models.names[helps]} {found.without[helps]:.4g}"),
        measured_on(network.data),
        [
            Seen(found.height, "of the mean of all"),
            *(Seen(height, f"without {models.names[k]}") for k, height in heights.items()),
        ],
        "means",
        [] if found is naive else [f"unaligned it is {naive.height:.4g}"],
        next=advice or [APART],
    )
