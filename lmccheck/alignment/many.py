"""Aligning three networks and more in one common frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from itertools import chain, pairwise, permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmccheck.alignment.api import METHODS, Alignment, save_aligned
from lmccheck.alignment.api import align as align_pair
from lmccheck.alignment.matching.norms import counted, rows_alone
from lmccheck.alignment.matching.similarity import inner
from lmccheck.alignment.methods.weight_matching import match
from lmccheck.errors import LmcError, SymmetryError, nearest
from lmccheck.evaluate.outputs import function_deviation
from lmccheck.evaluate.points import working_dtype
from lmccheck.network.endpoint import StateDict
from lmccheck.network.model_set import ModelSet, load_set
from lmccheck.network.pair import Given, ModelPair
from lmccheck.network.running import at_home
from lmccheck.shown import one_line, some
from lmccheck.store.checkpoint import Checkpoint
from lmccheck.store.tensors import between
from lmccheck.store.writing import LaidOut
from lmccheck.symmetry.compose import compose, inverse
from lmccheck.symmetry.spec import Permutation, PermutationSpec
from lmccheck.symmetry.verify import TOLERANCE

MANY_METHODS = ("merge-many", "reference")
MOST_ROUNDS = 50
ALL_TRIPLES = 8  # models up to which all triples of maps are compared


@one_line(lambda found: f"{found.method}, {len(found.names)} models: {some(found.names)}; {found.spec.shown}")
@dataclass(frozen=True)
class ManyAlignment(LaidOut):
    """Networks permuted into one common frame: that of the reference, whose own numbers stay where they are.

    ``weights[k]`` are model k's own numbers in its own dtypes, permuted by ``permutations[k]``; ``objective`` is
    Σ_{i<j}⟨θ_i, θ_j⟩ of the aligned weights, over the tensors that weight matching counts;
    ``function_deviations[k]`` is max |f(π·θ_k) − f(θ_k)| / (1 + max |f|) on evaluation data in float64, at most 1e-9.
    ``originals`` are the models as given, ``metadata`` their files', ``pair`` the network and the data to measure with.
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
    metadata: tuple[dict[str, str], ...] = field(default=(), repr=False)
    origins: tuple[Checkpoint, ...] = field(default=(), repr=False)  # which they are laid out like

    @property
    def is_identity(self) -> bool:
        """True when no unit of any model moved."""
        still = self.spec.identity()
        return all(torch.equal(p[name], still[name]) for p in self.permutations for name in still)

    def pairwise(self, i: int, j: int) -> Permutation:
        """Return the permutation of model j towards model i as it was given: into the common frame, and back out."""
        return compose(self.spec, self.permutations[j], inverse(self.spec, self.permutations[i]))

    def member(self, k: int) -> Alignment:
        """Return model k on its way into the common frame, as ``save_aligned`` writes it."""
        return Alignment(
            self.permutations[k],
            self.weights[k],
            self.objective,
            f"{self.method} of {len(self.names)}",
            self.spec,
            self.facts["seed"],
            self.function_deviations[k],
            self.facts["spec_deviation"],
            {"names": list(self.names), "reference": self.facts["reference"]},
            dict(self.metadata[k]) if self.metadata else {},
            (),
            {name: tensor.dtype for name, tensor in self.originals[k].items()},
        ).made_like(self.origins[k] if self.origins else None, self.inputs)

    def ship(self, target: Path, files: Sequence[str]) -> None:
        """Write each model to the folder ``target``, under the names ``files``."""
        target.mkdir(exist_ok=True)
        for k, name in enumerate(files):
            save_aligned(self.member(k), target / name)

    def cycle_error(self) -> float:
        """Return the largest share of one group's units that two ways from a model to another place differently.

        Over all triples, k to j to i against k to i at once, and all pairs, there and back, of many models over
        neighbours: 0 where the maps between the models are consistent, as maps through one common frame are.
        """
        return _cycle_error(self.spec, self.permutations)


def align_many(
    models: Sequence[Given],
    *,
    method: str = "merge-many",
    align: str = "weight-matching",
    reference: int = 0,
    seed: int = 0,
    **sources: Any,
) -> ManyAlignment:
    """Permute the hidden units of two or more networks into one common frame and return the ManyAlignment.

    ``models``: .safetensors files or state dicts of one network; ``sources``: ``model``, ``data`` and what else
    ``load_set`` takes. ``method``: ``reference`` aligns each model to ``models[reference]`` with the method ``align``
    of ``lmccheck.align``; ``merge-many`` goes on from there, matching one model at a time to the mean of the others
    until none improves, so that no model is favoured and Σ_{i<j}⟨θ_i, θ_j⟩ never falls. Every aligned model is
    compared with the original on
    the data before it is returned. Raises LmcError (CheckpointError, SourceError, SymmetryError,
    UnsupportedArchitecture). Source: Git Re-Basin, Algorithm 3 (Ainsworth et al. 2023).
    """
    _check_options(method, align, seed)
    return align_set(load_set(models, **sources), method=method, align=align, reference=reference, seed=seed)


@at_home
def align_set(
    models: ModelSet,
    *,
    method: str = "merge-many",
    align: str = "weight-matching",
    reference: int = 0,
    seed: int = 0,
) -> ManyAlignment:
    """Return ``align_many`` of models that are loaded."""
    _check_options(method, align, seed)
    if isinstance(reference, bool) or not isinstance(reference, int) or not 0 <= reference < len(models.names):
        last = len(models.names) - 1
        raise LmcError(f"align_many: reference = {reference!r}; expected an integer from 0 to {last}")
    names, originals = models.names, models.thetas
    network, spec = models.network, models.network.whole_spec
    layers = network.traced.layers if network.traced is not None else ()
    dtype = working_dtype(*originals)  # of one kind, so that means can be taken
    tensors = [
        {name: tensor.to(dtype) for name, tensor in rows_alone(counted(spec, theta), layers).items()}
        for theta in originals
    ]

    pairs = {k: models.pair(reference, k) for k in range(len(names)) if k != reference}
    pair = pairs[1 if reference == 0 else 0]
    alignments = {k: align_pair(pair, align, seed=seed) for k, pair in pairs.items()}
    start = [spec.identity() if k == reference else alignments[k].permutation for k in range(len(names))]
    facts: dict[str, Any] = {
        "method": method,
        "align": align,
        "seed": seed,
        "names": list(names),
        "reference": names[reference],
        "symmetry": network.origin["origin"],
        "spec_deviation": network.whole_deviation,
        "objective_before": _Sum(spec, tensors, [spec.identity()] * len(names)).objective(),
        "alignments": {names[k]: {"objective": found.objective, **found.facts} for k, found in alignments.items()},
    }
    merged = Merged(tuple(start), (_Sum(spec, tensors, start).objective(),), 0, True)
    facts["objective_reference"] = merged.objectives[0]
    if method == "merge-many":
        merged = merge_many(spec, tensors, start, seed)
        facts |= {"objectives": list(merged.objectives), "rounds": merged.rounds, "converged": merged.converged}
    home = inverse(spec, merged.permutations[reference])
    found = tuple(compose(spec, permutation, home) for permutation in merged.permutations)
    weights = tuple(spec.apply(theta, p) for theta, p in zip(originals, found, strict=True))
    deviations = tuple(
        _verified(pair, name, theta, aligned) for name, theta, aligned in zip(names, originals, weights, strict=True)
    )
    facts |= {"objective": merged.objectives[-1], "cycle_error": _cycle_error(spec, found)}
    if facts["cycle_error"]:
        raise AssertionError(f"align_many: maps between models differ by the way taken, {facts['cycle_error']:.3g}")
    metadata = tuple(dict(origin.metadata) for origin in models.origins)
    return ManyAlignment(
        weights, found, spec, method, merged.objectives[-1], facts, deviations, names, originals, pair, metadata,
        tuple(models.origins),
    ).made_of(models.inputs)  # fmt: skip


def _check_options(method: Any, align: Any, seed: Any) -> None:
    for what, given, valid in (("method", method, MANY_METHODS), ("align", align, METHODS.names())):
        if given not in valid:
            hint = nearest(given, valid) if isinstance(given, str) else ""
            raise LmcError(f"align_many: {what} = {given!r}{hint}; expected one of {sorted(valid)}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise LmcError(f"align_many: seed = {seed!r}; expected an integer")


def _verified(pair: ModelPair, name: str, original: StateDict, aligned: StateDict) -> float:
    """Return how far alignment changes a model's function. Raises SymmetryError when that is more than rounding."""
    deviation = function_deviation(pair.network, original, aligned)
    if not deviation <= TOLERANCE:
        origin = pair.network.origin["origin"]
        raise SymmetryError(
            f"align_many: the aligned weights change the output of {name} by {deviation:.2e} (relative, float64) on "
            f"the data, expected at most {TOLERANCE:.0e}; mend: "
            + ("report the model, this is a defect of lmccheck" if origin == "traced" else f"correct symmetry {origin}")
        )
    return deviation


def _cycle_error(spec: PermutationSpec, maps: Sequence[Permutation]) -> float:
    count = range(len(maps))
    back = [inverse(spec, p) for p in maps]
    towards = cache(lambda i, j: compose(spec, maps[j], back[i]))
    worst = 0.0
    near = [(i, j, k % len(maps)) for i, j in pairwise(count) for k in (i, j + 1)]
    every = chain(permutations(count, 3), ((i, j, i) for i, j in permutations(count, 2)))
    triples = near if len(maps) > ALL_TRIPLES else every
    for i, j, k in triples:
        around = compose(spec, towards(j, k), towards(i, j))
        for name, direct in towards(i, k).items():
            worst = max(worst, float((around[name] != direct).double().mean()) if direct.numel() else 0.0)
    return worst


@dataclass(frozen=True)
class Merged:
    """Where merge_many ended: a permutation per model, Σ_{i<j}⟨θ_i, θ_j⟩ at the start and after every step taken."""

    permutations: tuple[Permutation, ...]
    objectives: tuple[float, ...]
    rounds: int
    converged: bool


class _Sum:
    """Models under permutations that can be changed, and S = Σ θ_k of them, float64: all that a step looks at.

    Σ_{i<j}⟨θ_i, θ_j⟩ = (‖S‖² − Σ‖θ_k‖²)/2, the mean of all but one is (S − θ_k)/(n − 1), and θ_k moved to θ_k′ raises
    the objective by ⟨θ_k′ − θ_k, S − θ_k⟩: each is one pass over one model, however many there are.
    """

    def __init__(
        self, spec: PermutationSpec, tensors: Sequence[Mapping[str, Tensor]], start: Sequence[Permutation]
    ) -> None:
        self.spec, self.tensors = spec, tensors
        self.placed = [spec.apply(theta, p) for theta, p in zip(tensors, start, strict=True)]
        self.squares = [_dot(theta, theta) for theta in tensors]
        self.sum_anew()

    def sum_anew(self) -> None:
        """Sum the models as they now lie, without the rounding of steps taken."""
        self.total = {n: reduce(torch.add, (theta[n].double() for theta in self.placed)) for n in self.placed[0]}

    def objective(self) -> float:
        """Return Σ_{i<j}⟨θ_i, θ_j⟩."""
        return (_dot(self.total, self.total) - sum(self.squares)) / 2

    def others(self, k: int) -> dict[str, Tensor]:
        """Return the mean of all models but one, as they now lie, in the dtype of the models."""
        count = len(self.tensors) - 1
        return {name: ((self.total[name] - t) / count).to(t.dtype) for name, t in self.placed[k].items()}

    def take(self, k: int, permutation: Permutation) -> float:
        """Permute model k anew if that raises the objective by more than rounding; return by how much it did."""
        lies, proposal = self.placed[k], self.spec.apply(self.tensors[k], permutation)
        moved = {name: tensor.double() - lies[name] for name, tensor in proposal.items()}
        gain = sum(inner(change, self.total[name] - lies[name]) for name, change in moved.items())
        if not gain > 1e-12 * (1 + self.squares[k] ** 0.5 * sum(square**0.5 for square in self.squares)):
            return 0.0
        self.placed[k] = proposal
        for name, change in moved.items():
            self.total[name] += change
        return gain


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(inner(tensor, b[name]) for name, tensor in a.items())


def merge_many(
    spec: PermutationSpec, tensors: Sequence[Mapping[str, Tensor]], start: Sequence[Permutation], seed: int = 0
) -> Merged:
    """Match one model at a time to the mean of the others, in seeded random order, until none improves.

    ``tensors``: what counts of each model, by name, as given; ``start``: a permutation each. A step is taken if it
    raises Σ_{i<j}⟨θ_i, θ_j⟩. Each match descends from where the model lies and from an anchored start.
    Source: Git Re-Basin, Algorithm 3 (Ainsworth et al. 2023).
    """
    state, found = _Sum(spec, tensors, start), list(start)
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
            if not (gain := state.take(k, best)):
                continue
            found[k] = best
            waiting |= set(range(len(tensors))) - {k}
            objectives.append(objectives[-1] + gain)
        state.sum_anew()
        rounds += 1
    return Merged(tuple(found), tuple(objectives), rounds, not waiting)


def mean_of(states: Iterator[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the uniform mean of weights, exact where all agree; tensors of integers are the first one's."""
    mean = dict(next(states))
    for k, state in enumerate(states, start=2):
        for name, tensor in mean.items():
            if tensor.is_floating_point():
                mean[name] = between(tensor, state[name], 1 / k)
    return mean
