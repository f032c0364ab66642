"""Aligning three networks and more in one common frame, and the loss barriers between all pairs of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmccheck.align.api import METHODS, verified_spec
from lmccheck.align.api import align as align_pair
from lmccheck.align.norms import rows_alone
from lmccheck.align.similarity import inner
from lmccheck.align.weights import counted, match
from lmccheck.errors import CheckpointError, LmcError, SourceError, SymmetryError, nearest
from lmccheck.evaluate.curve import Evaluator, Measured, function_deviation, interpolate, working_dtype
from lmccheck.pair import ModelPair, StateDict, load_pair
from lmccheck.paths.linear import Point, barrier, sample
from lmccheck.symmetry.compose import compose, inverse
from lmccheck.symmetry.spec import Permutation, PermutationSpec
from lmccheck.symmetry.verify import TOLERANCE

MANY_METHODS = ("merge-many", "reference")
MOST_ROUNDS = 50
Given = str | os.PathLike[str] | StateDict
Matrix = list[list[float]]


@dataclass(frozen=True)
class ManyAlignment:
    """Networks permuted into one common frame: that of the reference, whose own numbers stay where they are.

    ``weights[k]`` are model k's own numbers in its own dtypes, permuted by ``permutations[k]``; ``objective`` is
    Σ_{i<j}⟨θ_i, θ_j⟩ of the aligned weights, over the tensors that weight matching counts;
    ``function_deviations[k]`` is max |f(π·θ_k) − f(θ_k)| / (1 + max |f|) on evaluation data in float64, at most 1e-9.
    ``originals`` are the models as given, ``pair`` the network and the data to measure them with.
    """

    weights: tuple[dict[str, Tensor], ...] = field(repr=False)
    permutations: tuple[Permutation, ...] = field(repr=False)
    spec: PermutationSpec = field(repr=False)
    method: str
    objective: float
    facts: dict[str, Any] = field(repr=False)
    function_deviations: tuple[float, ...]
    names: tuple[str, ...]
    originals: tuple[dict[str, Tensor], ...] = field(repr=False)
    pair: ModelPair = field(repr=False)

    @property
    def is_identity(self) -> bool:
        """True when no unit of any model moved."""
        still = self.spec.identity()
        return all(torch.equal(p[name], still[name]) for p in self.permutations for name in still)

    def pairwise(self, i: int, j: int) -> Permutation:
        """Return the permutation of model j towards model i as it was given: into the common frame, and back out."""
        return compose(self.spec, self.permutations[j], inverse(self.spec, self.permutations[i]))

    def cycle_error(self) -> float:
        """Return the largest share of one group's units that two ways from a model to another place differently.

        Over all triples, k to j to i against k to i at once, and all pairs, there and back: 0 where the maps between
        the models are consistent, as maps through one common frame are.
        """
        return _cycle_error(self.spec, self.permutations)


def align_many(
    models: Sequence[Given],
    *,
    model: Any,
    data: Any,
    calibration: Any = None,
    loss: Any = "cross_entropy",
    device: str | torch.device = "auto",
    method: str = "merge-many",
    align: str = "weight-matching",
    reference: int = 0,
    seed: int = 0,
    base: str | os.PathLike[str] | None = None,
    symmetry: str | os.PathLike[str] | PermutationSpec | None = None,
) -> ManyAlignment:
    """Permute the hidden units of two or more networks into one common frame and return the ManyAlignment.

    ``models``: .safetensors files or state dicts of one network; all else as in ``load_pair``. ``method``:
    ``reference`` aligns each model to ``models[reference]`` with the method ``align`` of ``lmccheck.align``;
    ``merge-many`` goes on from there, matching one model at a time to the mean of the others until none improves, so
    that no model is favoured and Σ_{i<j}⟨θ_i, θ_j⟩ never falls. Every aligned model is compared with the original on
    the data before it is returned. Raises LmcError (CheckpointError, SourceError, SymmetryError,
    UnsupportedArchitecture). Source: Git Re-Basin, Algorithm 3 (Ainsworth et al. 2023).
    """
    _check_options(models, method, align, reference, seed)
    names = model_names(models)
    pairs = _pairs(
        models, names, reference,
        model=model, data=data, calibration=calibration, loss=loss, device=device, base=base, symmetry=symmetry,
    )  # fmt: skip
    first = next(iter(pairs.values()))
    spec, spec_deviation = verified_spec(first)
    for pair in pairs.values():  # the spec is the network's, not the checkpoints': derived and verified once
        pair.cache.update({key: first.cache[key] for key in ("spec", "derived") if key in first.cache})
    originals = tuple(first.theta_a if k == reference else pairs[k].theta_b for k in range(len(models)))
    derived = first.cache.get("derived")
    layers = derived.layers if derived is not None else ()
    dtype = working_dtype(*originals)  # of one kind, so that means can be taken
    tensors = [
        {name: tensor.to(dtype) for name, tensor in rows_alone(counted(spec, theta), layers).items()}
        for theta in originals
    ]

    alignments = {k: align_pair(pair, align, seed=seed) for k, pair in pairs.items()}
    start = [spec.identity() if k == reference else alignments[k].permutation for k in range(len(models))]
    facts: dict[str, Any] = {
        "method": method,
        "align": align,
        "seed": seed,
        "names": list(names),
        "reference": names[reference],
        "symmetry": first.description["symmetry"]["origin"],
        "spec_deviation": spec_deviation,
        "objective_before": _Grams(spec, tensors, [spec.identity()] * len(models)).objective(),
        "alignments": {names[k]: {"objective": found.objective, **found.facts} for k, found in alignments.items()},
    }
    merged = Merged(tuple(start), (_Grams(spec, tensors, start).objective(),), 0, True)
    facts["objective_reference"] = merged.objectives[0]
    if method == "merge-many":
        merged = merge_many(spec, tensors, start, seed)
        facts |= {"objectives": list(merged.objectives), "rounds": merged.rounds, "converged": merged.converged}
    home = inverse(spec, merged.permutations[reference])
    found = tuple(compose(spec, permutation, home) for permutation in merged.permutations)
    weights = tuple(spec.apply(theta, p) for theta, p in zip(originals, found, strict=True))
    deviations = tuple(
        _verified(first, name, theta, aligned) for name, theta, aligned in zip(names, originals, weights, strict=True)
    )
    facts |= {"objective": merged.objectives[-1], "cycle_error": _cycle_error(spec, found)}
    if facts["cycle_error"]:
        raise AssertionError(f"align_many: maps between models differ by the way taken, {facts['cycle_error']:.3g}")
    return ManyAlignment(
        weights, found, spec, method, merged.objectives[-1], facts, deviations, names, originals, first
    )


def _check_options(models: Any, method: Any, align: Any, reference: Any, seed: Any) -> None:
    if not isinstance(models, Sequence) or isinstance(models, (str, bytes)):
        raise LmcError(
            f"align_many: got models as {type(models).__name__}, expected a list of .safetensors paths or state dicts"
        )
    if len(models) < 2:
        raise LmcError(f"align_many: got {len(models)} model(s), expected at least two; mend: give the others, too")
    for what, given, valid in (("method", method, MANY_METHODS), ("align", align, METHODS)):
        if given not in valid:
            hint = nearest(given, valid) if isinstance(given, str) else ""
            raise LmcError(f"align_many: {what} = {given!r}{hint}; expected one of {sorted(valid)}")
    if isinstance(reference, bool) or not isinstance(reference, int) or not 0 <= reference < len(models):
        raise LmcError(f"align_many: reference = {reference!r}; expected an integer from 0 to {len(models) - 1}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise LmcError(f"align_many: seed = {seed!r}; expected an integer")


def model_names(models: Sequence[Given]) -> tuple[str, ...]:
    """Return a name for each model: its file's stem, the path where stems meet, ``model k`` for a state dict."""
    paths = {k: Path(os.fspath(m)) for k, m in enumerate(models) if isinstance(m, (str, os.PathLike))}
    stems = [path.stem for path in paths.values()]
    short = [
        (paths[k].stem if stems.count(paths[k].stem) == 1 else str(paths[k])) if k in paths else f"model {k}"
        for k in range(len(models))
    ]
    return tuple(name if short.count(name) == 1 else f"{name} ({k})" for k, name in enumerate(short))


def _pairs(models: Sequence[Given], names: Sequence[str], reference: int, **given: Any) -> dict[int, ModelPair]:
    """Return each model but the reference as a pair with it; the module and the data are loaded once.

    Raises as load_pair does, naming the model.
    """
    pairs: dict[int, ModelPair] = {}
    for k, other in enumerate(models):
        if k == reference:
            continue
        try:
            pairs[k] = load_pair(models[reference], other, name=f"{names[reference]}-{names[k]}", **given)
        except CheckpointError as error:
            raise CheckpointError(f"align_many: {names[reference]} (a) and {names[k]} (b): {error}") from None
        given |= {"model": pairs[k].module, "data": pairs[k].data, "calibration": pairs[k].calibration}
    return pairs


def _verified(pair: ModelPair, name: str, original: StateDict, aligned: StateDict) -> float:
    """Return how far alignment changes a model's function. Raises SymmetryError when that is more than rounding."""
    deviation = function_deviation(pair, original, aligned)
    if not deviation <= TOLERANCE:
        origin = pair.description["symmetry"]["origin"]
        raise SymmetryError(
            f"align_many: the aligned weights change the output of {name} by {deviation:.2e} (relative, float64) on "
            f"the data, expected at most {TOLERANCE:.0e}; mend: "
            + ("report the model, this is a defect of lmccheck" if origin == "traced" else f"correct symmetry {origin}")
        )
    return deviation


def _cycle_error(spec: PermutationSpec, maps: Sequence[Permutation]) -> float:
    count = range(len(maps))
    back = [inverse(spec, p) for p in maps]
    towards = {(i, j): compose(spec, maps[j], back[i]) for i in count for j in count}
    worst = 0.0
    for i, j, k in (*permutations(count, 3), *((i, j, i) for i, j in permutations(count, 2))):
        around = compose(spec, towards[j, k], towards[i, j])
        for name, direct in towards[i, k].items():
            worst = max(worst, float((around[name] != direct).double().mean()) if direct.numel() else 0.0)
    return worst


@dataclass(frozen=True)
class Merged:
    """Where merge_many ended: a permutation per model, Σ_{i<j}⟨θ_i, θ_j⟩ at the start and after every step taken."""

    permutations: tuple[Permutation, ...]
    objectives: tuple[float, ...]
    rounds: int
    converged: bool


class _Grams:
    """⟨θ_i, θ_j⟩ of models under permutations that can be changed; products are accumulated in float64."""

    def __init__(
        self, spec: PermutationSpec, tensors: Sequence[Mapping[str, Tensor]], start: Sequence[Permutation]
    ) -> None:
        self.spec, self.tensors = spec, tensors
        self.placed = [spec.apply(theta, p) for theta, p in zip(tensors, start, strict=True)]
        self.sizes = [_dot(theta, theta) ** 0.5 for theta in tensors]
        count = len(tensors)
        self.products = torch.zeros(count, count, dtype=torch.float64)
        for i, j in combinations(range(count), 2):
            self.products[i, j] = self.products[j, i] = _dot(self.placed[i], self.placed[j])

    def objective(self) -> float:
        """Return Σ_{i<j}⟨θ_i, θ_j⟩."""
        return float(self.products.sum()) / 2

    def others(self, k: int) -> dict[str, Tensor]:
        """Return the mean of all models but one, as they now lie."""
        return mean_of(theta for j, theta in enumerate(self.placed) if j != k)

    def take(self, k: int, permutation: Permutation) -> bool:
        """Permute model k anew if that raises the objective by more than rounding; say whether it did."""
        proposal = self.spec.apply(self.tensors[k], permutation)
        row = torch.tensor(
            [0.0 if j == k else _dot(theta, proposal) for j, theta in enumerate(self.placed)], dtype=torch.float64
        )
        if not float((row - self.products[k]).sum()) > 1e-12 * (1 + self.sizes[k] * sum(self.sizes)):
            return False
        self.placed[k] = proposal
        self.products[k] = self.products[:, k] = row
        return True


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(inner(tensor, b[name]) for name, tensor in a.items())


def merge_many(
    spec: PermutationSpec, tensors: Sequence[Mapping[str, Tensor]], start: Sequence[Permutation], seed: int = 0
) -> Merged:
    """Match one model at a time to the mean of the others, in seeded random order, until none improves.

    ``tensors``: what counts of each model, by name, as given; ``start``: a permutation each. ⟨θ_k, mean of the
    others⟩ is model k's share of Σ_{i<j}⟨θ_i, θ_j⟩, so that a step that raises one raises the other; others are not
    taken. Each match descends from where the model lies and from an anchored start.
    Source: Git Re-Basin, Algorithm 3 (Ainsworth et al. 2023).
    """
    state, found = _Grams(spec, tensors, start), list(start)
    generator = torch.Generator().manual_seed(seed)
    objectives = [state.objective()]
    waiting = set(range(len(tensors)))
    rounds = 0
    while waiting and rounds < MOST_ROUNDS:
        for k in torch.randperm(len(tensors), generator=generator).tolist():
            if k not in waiting:
                continue
            waiting.discard(k)  # until another one moves, the mean of the others stays as it is
            best = match(
                spec, state.others(k), tensors[k], seed=seed + rounds, starts=2, more={"current": found[k]}
            ).permutation
            if not state.take(k, best):
                continue
            found[k] = best
            waiting |= set(range(len(tensors))) - {k}
            objectives.append(state.objective())
            if not objectives[-1] > objectives[-2]:
                raise AssertionError(f"merge-many: the objective fell from {objectives[-2]} to {objectives[-1]}")
        rounds += 1
    return Merged(tuple(found), tuple(objectives), rounds, not waiting)


def mean_of(states: Iterator[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the uniform mean of weights, exact where all agree; tensors of integers are the first one's."""
    mean = dict(next(states))
    for k, state in enumerate(states, start=2):
        for name, tensor in mean.items():
            if tensor.is_floating_point():
                mean[name] = torch.lerp(tensor, state[name], 1 / k)
    return mean


@dataclass(frozen=True)
class Barriers:
    """Loss barriers between all pairs of a set, (n, n) nested lists, symmetric with a zero diagonal; ``points`` a pair.

    ``aligned`` and ``naive`` stand over the chord between the losses of the originals, ``losses`` (n,), as
    linear_connectivity's; ``reestimated`` over that between the ends with BatchNorm re-estimated (None without one).
    ``mean_loss`` and ``mean_loss_naive`` are the losses of the uniform mean of all models, aligned and as given.
    """

    aligned: Matrix
    naive: Matrix
    reestimated: Matrix | None
    worst_t: dict[tuple[int, int], float]  # by (i, j) with i < j
    losses: list[float]
    errors: list[float] | None
    mean_loss: float
    mean_loss_naive: float
    mean_error: float | None
    points: int
    evaluations: int


def barrier_matrix(many: ManyAlignment, *, points: int = 5, naive: bool = False) -> Matrix:
    """Return the loss barriers between all pairs of aligned models, an (n, n) nested list, in the loss's unit.

    Entry i, j is what ``linear_connectivity`` measures between models i and j on a grid of ``points``, with the
    alignment of ``many``, or with none (``naive``). Raises SourceError where BatchNorm needs calibration data.
    """
    found = measure_barriers(many, points=points)
    return found.naive if naive else found.aligned


def measure_barriers(many: ManyAlignment, *, points: int = 5) -> Barriers:
    """Measure every segment between two models of a set, and the mean of all; every end is measured once.

    BatchNorm is re-estimated at every point, as linear_connectivity does. Raises SourceError when it cannot be, or
    when the loss of a model is not finite; LmcError for a grid of fewer than 3 points.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 3:
        raise LmcError(f"barrier_matrix: points = {points!r}; expected an integer of at least 3")
    widest = max(many.originals, key=lambda weights: working_dtype(weights) == torch.float64)
    evaluator = Evaluator(replace(many.pair, theta_b=widest))  # which takes its precision from the pair's two
    if evaluator.batchnorms:
        evaluator.require_calibration()
    ends = [_endpoint(evaluator, weights, name) for weights, name in zip(many.originals, many.names, strict=True)]
    losses = [end.loss for end in ends]
    aligned = _segments(evaluator, many.weights, losses, points)
    naive = aligned if many.is_identity else _segments(evaluator, many.originals, losses, points)
    over_ends = {key: barrier(curve, curve[0][1], curve[-1][1])[0] for key, curve in aligned.items()}
    heights = {key: barrier(curve, losses[key[0]], losses[key[1]]) for key, curve in aligned.items()}
    heights_naive = {key: barrier(curve, losses[key[0]], losses[key[1]])[0] for key, curve in naive.items()}
    count = len(losses)
    mean, mean_naive = (
        evaluator.measure(mean_of(map(evaluator.weights, states)), reestimate=True, label="the mean of all models")
        for states in (many.weights, many.originals)
    )
    errors = [end.error for end in ends if end.error is not None]
    return Barriers(
        aligned=_matrix({key: height for key, (height, _) in heights.items()}, count),
        naive=_matrix(heights_naive, count),
        reestimated=_matrix(over_ends, count) if evaluator.batchnorms else None,
        worst_t={key: t for key, (_, t) in heights.items()},
        losses=losses,
        errors=errors if len(errors) == count else None,
        mean_loss=mean.loss,
        mean_loss_naive=mean_naive.loss,
        mean_error=mean.error,
        points=points,
        evaluations=evaluator.evaluations,
    )


def _endpoint(evaluator: Evaluator, weights: StateDict, name: str) -> Measured:
    """Measure an original model with its own statistics."""
    found = evaluator.measure(evaluator.weights(weights), reestimate=False, label=name)
    bad = (~found.losses.isfinite()).nonzero()
    if len(bad):
        k, pair = int(bad[0]), evaluator.pair
        raise SourceError(
            f"{name}: its {pair.loss.name} on {pair.data.origin} is {float(found.losses[k])} at sample {k} "
            f"({len(bad)} of {len(found.losses)} samples), expected finite losses; mend: check the checkpoint and the "
            "loss"
        )
    return found


def _segments(
    evaluator: Evaluator, states: Sequence[StateDict], losses: Sequence[float], points: int
) -> dict[tuple[int, int], list[tuple[float, float]]]:
    """Return (t, loss) along the segment between every two models i < j; the ends of all segments are shared."""
    tips: dict[int, float] = {}

    def loss(weights: StateDict, label: str) -> float:
        return evaluator.measure(weights, reestimate=True, label=label).loss

    def curve(i: int, j: int, first: StateDict, second: StateDict) -> list[tuple[float, float]]:
        def at(t: float) -> Point:
            if t not in (0.0, 1.0):
                return Point(t, loss(interpolate(first, second, t), f"models {i} and {j} at t = {t:.4g}"), None)
            end, weights = (i, first) if t == 0.0 else (j, second)
            if end not in tips:
                tips[end] = loss(weights, f"model {end}")
            return Point(t, tips[end], None)

        return [(point.t, point.loss) for point in sample(at, points, 0, losses[i], losses[j])]

    found = {}
    for i in range(len(states)):
        first = evaluator.weights(states[i])  # at most two models are on the device at a time
        for j in range(i + 1, len(states)):
            found[i, j] = curve(i, j, first, evaluator.weights(states[j]))
    return found


def _matrix(values: Mapping[tuple[int, int], float], count: int) -> Matrix:
    return [[0.0 if i == j else values[min(i, j), max(i, j)] for j in range(count)] for i in range(count)]
