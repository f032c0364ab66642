"""No alignment worse than leaving everything where it is: compared on calibration data, else by what was maximised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from lmccheck.alignment.api import Alignment
from lmccheck.alignment.many import ManyAlignment
from lmccheck.alignment.matching.norms import counted
from lmccheck.alignment.matching.similarity import inner
from lmccheck.data.batches import first_samples
from lmccheck.errors import SymmetryError
from lmccheck.evaluate.calibration import SAMPLES, CalibrationBarrier
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.means import RunningMean
from lmccheck.evaluate.outputs import function_deviation
from lmccheck.evaluate.points import interpolate
from lmccheck.network.network import Network
from lmccheck.network.pair import ModelPair
from lmccheck.symmetry.verify import TOLERANCE

ROUNDING = 1e-6  # by which losses on calibration data, or shares of an objective, may differ without being worse


def not_worse(pair: ModelPair, alignment: Alignment) -> Alignment:
    """Return an alignment of a pair, or the identity in its place where that has the lower barrier.

    The barrier is that on calibration data; without any, the objective decides, where the method says what it was
    before. ``facts`` hold ``compared``: by what, both figures, and which was ``kept``. What is aligned onto θ_A itself
    is kept, whatever re-estimated statistics make of one network.
    """
    if settled(alignment, pair.theta_a):
        return alignment
    if pair.network.labelled is not None and pair.calibration is not None:
        barrier = pair.once(CalibrationBarrier)
        by, moved, still = "barrier on calibration data", barrier(alignment.weights), barrier(pair.theta_b)
        barrier.rest()
        worse = moved > still + ROUNDING
    elif (before := alignment.facts.get("objective_before")) is not None:
        by, moved, still = "objective", alignment.objective, float(before)
        worse = moved < still
    else:
        return alignment
    compared = {"by": by, "aligned": moved, "identity": still, "kept": "identity" if worse else "aligned"}
    return as_compared(alignment, pair.theta_b, compared)


def settled(alignment: Alignment, theta_a: Mapping[str, Tensor]) -> bool:
    """Whether there is nothing to compare: nothing is moved, or what is lies on θ_A itself."""
    return alignment.is_identity or all(torch.equal(theta_a[n], w) for n, w in alignment.weights.items())


def as_compared(alignment: Alignment, given: Mapping[str, Tensor], compared: Mapping[str, Any]) -> Alignment:
    """Return an alignment with what it was compared by; with nothing moved from ``given`` where that was better."""
    facts = {**alignment.facts, "compared": dict(compared)}
    if compared["kept"] == "aligned":
        return replace(alignment, facts=facts).made_like(alignment.origin, alignment.inputs)
    return replace(
        alignment,
        permutation=alignment.spec.identity(),
        weights=dict(given),
        beyond=(),
        function_deviation=0.0,
        facts=facts,
    ).made_like(alignment.origin, alignment.inputs)


def kept_note(facts: Mapping[str, Any], method: str) -> list[str]:
    """Say that an alignment was found worse than none, with both figures; nothing where it was not."""
    compared = facts.get("compared", {})
    if compared.get("kept") != "identity":
        return []
    return [
        f"{method} was worse than moving nothing ({compared['by']} {compared['aligned']:.4g}, unaligned "
        f"{compared['identity']:.4g}): nothing is moved"
    ]


Height = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], float]


def no_pair_worse(many: ManyAlignment) -> ManyAlignment:
    """Return a set in a frame in which no pair is worse off than it is given.

    Two models that the frame drives apart lie to one another as they did: they, and whatever is so bound to them, are
    moved alike, with the reference not at all. What is worse is the loss half-way on calibration data; without any, a
    lower inner product. That is all pairs, twice.
    """
    if many.is_identity:
        return many
    height, by = _height(many)
    names, count = many.names, len(many.names)
    naive = {pair: height(*(many.originals[k] for k in pair)) for pair in combinations(range(count), 2)}
    block, worse = list(range(count)), 0
    first = names.index(many.facts["reference"])
    moved = many
    while True:
        apart = [pair for pair in naive if block[pair[0]] != block[pair[1]]]
        bad = [(i, j) for i, j in apart if height(moved.weights[i], moved.weights[j]) > naive[i, j] + ROUNDING]
        if not bad:
            break
        worse = worse or len(bad)
        for i, j in bad:
            one, other = sorted((block[i], block[j]), key=lambda k: (k != block[first], k))
            block = [one if each == other else each for each in block]
        leaders = [first if each == block[first] else each for each in block]
        moved = _moved(many, {k: many.permutations[leader] for k, leader in enumerate(leaders)})
    if not worse:
        return many
    still = [name for name, each in zip(names, block, strict=True) if each == block[first]]
    return replace(moved, facts={**many.facts, "compared": {"by": by, "worse_pairs": worse, "unmoved": still}}).made_of(
        many.inputs
    )


def no_worse_mean(many: ManyAlignment, weights: list[float]) -> ManyAlignment:
    """Return a set as it is aligned, or as it is given where the mean of that has the lower loss on calibration data.

    Without calibration data it is the frame's objective that decides.
    """
    if many.is_identity:
        return many
    network = calibrated(many.pair.network)
    if network is None:
        by, aligned, still = "objective", -many.objective, -float(many.facts["objective_before"])
    else:
        evaluator, found = Evaluator(network, *many.originals), []
        for states in (many.weights, many.originals):
            mean = RunningMean()
            for state, weight in zip(states, weights, strict=True):
                mean.add(state, weight)
            at = evaluator.weights(mean.at(evaluator.dtype))
            found.append(evaluator.measure(at, reestimate=True, label="the mean of all").loss)
        by, (aligned, still) = "loss of the mean on calibration data", found
    if not aligned > still + ROUNDING:
        return many
    unmoved = _moved(many, dict.fromkeys(range(len(many.names)), many.spec.identity()))
    compared = {"by": by, "aligned": abs(aligned), "identity": abs(still), "kept": "identity"}
    return replace(unmoved, facts={**many.facts, "compared": compared}).made_of(many.inputs)


def set_note(many: ManyAlignment) -> list[str]:
    """Say which models a frame would have driven apart; nothing where there are none."""
    compared = many.facts.get("compared", {})
    if "worse_pairs" not in compared:
        return kept_note(many.facts, many.method)
    unmoved = compared["unmoved"]
    which = "no model is moved" if len(unmoved) == len(many.names) else f"unmoved are {', '.join(unmoved)}"
    return [
        f"{many.method} made {compared['worse_pairs']} pairs worse than they are unaligned ({compared['by']}): these "
        f"lie to one another as they were given, {which}"
    ]


def calibrated(network: Network) -> Network | None:
    """Return a network that is measured on the first of its calibration samples; None without labelled ones."""
    data = network.labelled
    if data is None:
        return None
    first = first_samples(data, SAMPLES)
    return replace(network, data=first, calibration=first)


def _height(many: ManyAlignment) -> tuple[Height, str]:
    """Return what of two models is the lower the better they go together, and its name."""
    network = calibrated(many.pair.network)
    if network is None:
        spec = many.spec

        def unlike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
            first, second = (counted(spec, dict(theta)) for theta in (one, other))
            size = (sum(inner(t, t) for t in first.values()) * sum(inner(t, t) for t in second.values())) ** 0.5
            return -sum(inner(tensor, second[name]) for name, tensor in first.items()) / (size or 1.0)

        return unlike, "inner product of weights"
    evaluator = Evaluator(network, *many.originals)

    def half_way(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
        between = interpolate(evaluator.weights(one), evaluator.weights(other), 0.5)
        loss = evaluator.measure(between, reestimate=True, label="the network half-way").loss
        return loss if loss == loss else float("inf")

    return half_way, "loss half-way on calibration data"


def _moved(many: ManyAlignment, permutations: Mapping[int, Any]) -> ManyAlignment:
    """Return the set with every model permuted as is said, its function compared with the original's again."""
    found = tuple(permutations[k] for k in range(len(many.names)))
    weights = tuple(many.spec.apply(theta, p) for theta, p in zip(many.originals, found, strict=True))
    network = many.pair.network
    deviations = tuple(
        function_deviation(network, theta, moved) for theta, moved in zip(many.originals, weights, strict=True)
    )
    if not max(deviations) <= TOLERANCE:
        raise SymmetryError(
            f"set {network.name}: moving models alike changes an output by {max(deviations):.2e}, expected at most "
            f"{TOLERANCE:.0e}; mend: report the model, this is a defect of lmccheck"
        )
    return replace(many, permutations=found, weights=weights, function_deviations=deviations)
