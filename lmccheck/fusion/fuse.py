"""Soft transport between widths: θ_B brought into the coordinates of a θ_A that has other hidden widths.

Layer by layer the units of B are assigned to those of A by optimal transport between equal masses, B's inputs already
in A's coordinates (Singh & Jaggi 2020, OT fusion), by default in the norm of the activations that A's layers read
(Ferbach et al. 2024). What makes a unit is averaged over the plan, what reads it is summed, so that the mass of every
unit's outgoing weights is kept. Where the plan splits units, or permutes them, the function stays exactly as it was;
where it merges them it does not. Differs from Singh & Jaggi in that biases count, BatchNorm is taken with its layer,
and outgoing weights are summed instead of averaged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lmccheck.alignment.matching.activation_norm import second_moments
from lmccheck.errors import LmcError, SourceError, UnsupportedArchitecture, nearest
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.outputs import FirstOutputs, relative_deviation
from lmccheck.fusion.carrier import Carrier
from lmccheck.fusion.recursion import Recursion
from lmccheck.fusion.widths import MEND, require_same_use, twofold_tensors
from lmccheck.network.pair import Given, WidthPair, load_widths
from lmccheck.network.running import at_home
from lmccheck.shown import one_line, some
from lmccheck.store.writing import LaidOut, write_like
from lmccheck.symmetry.spec import Permutation
from lmccheck.symmetry.verify import TOLERANCE

NORMS = ("activations", "weights")


@one_line(lambda found: f"{found.norm}, {some(found.plans)}; function deviation {found.function_deviation:.2g}")
@dataclass(frozen=True)
class Fusion(LaidOut):
    """θ_B at θ_A's widths.

    ``weights`` have θ_A's shapes and θ_B's dtypes. ``plans``: per group the transport plan, (n_A, n_B) float64, rows
    summing to 1/n_A and columns to 1/n_B; ``costs``: W₂² between the units' incoming weights under it.
    ``permutations``: of attention heads and groups inside them, which are permuted, int64 (copies, n) or (n,).
    ``function_deviation`` is max |f_fused − f_B| / (1 + max |f_B|) in float64 on evaluation data, f_B by B's own
    network; ``function_preserving`` is True only where it is at most 1e-9. ``loss_b`` and ``loss_fused`` are mean
    losses on evaluation data, BatchNorm statistics as they are (those of the fused network are means over the plan).
    """

    weights: dict[str, Tensor] = field(repr=False)
    plans: dict[str, Tensor] = field(repr=False)
    permutations: Permutation = field(repr=False)
    costs: dict[str, float]
    function_preserving: bool
    function_deviation: float
    loss_b: float
    loss_fused: float
    norm: str
    seed: int
    facts: dict[str, Any] = field(repr=False)
    metadata: dict[str, str] = field(repr=False)
    losses_b: Tensor | None = field(default=None, repr=False)  # those of samples, (n,) float64

    @property
    def statement(self) -> str:
        """What may be said of the function, in words."""
        measured = f"deviation {self.function_deviation:.2e} (relative, float64)"
        if self.function_preserving:
            return f"θ_B was transported softly to θ_A's widths; its function was kept: {measured}"
        return (
            f"θ_B was transported softly to θ_A's widths and is not the same function any more (the map is not "
            f"function-preserving): {measured}; loss {self.loss_b:.4g} before, {self.loss_fused:.4g} after"
        )

    def ship(self, target: Path, names: Sequence[str]) -> None:
        """Write θ_B at θ_A's widths to ``target``."""
        said = json.dumps({"method": "soft transport", "norm": self.norm, "seed": self.seed})
        write_like(self.origin, self.weights, target, {**self.metadata, "lmccheck": said}, inputs=self.inputs)

    def summary(self) -> dict[str, Any]:
        """Return what a report says about this fusion; JSON-able."""
        return {
            "method": "soft transport",
            "statement": self.statement,
            "function_preserving": self.function_preserving,
            "function_deviation": self.function_deviation,
            "loss_b": self.loss_b,
            "loss_fused": self.loss_fused,
            "norm": self.norm,
            "seed": self.seed,
            "costs": dict(self.costs),
            **self.facts,
        }


def fuse(a: Given, b: Given, *, norm: str = "activations", seed: int = 0, **sources: Any) -> Fusion:
    """Bring θ_B to the hidden widths of θ_A by soft optimal transport, layer by layer, and return the Fusion.

    ``a``, ``b``: .safetensors file or state dict, of ``model_a`` and ``model_b``, two networks that differ in nothing
    but hidden widths; these, ``data``, ``calibration``, ``loss``, ``device`` and ``base`` are ``load_widths``'s.
    ``norm``: ``activations`` compares incoming weights in the norm of the second moments of what A's layers read on
    calibration data, ``weights`` in the plain one. ``seed``: of the verification of both permutation specs.

    Unless B's width divides A's in every group (units are then split), or the widths are equal (permuted), the result
    is not the same function as θ_B; how far it is from it is measured and said. Heads and groups inside units are
    permuted and must be of equal size. Raises LmcError: CheckpointError and SourceError for what cannot be used,
    UnsupportedArchitecture where the networks differ in more than widths, SymmetryError where a spec is wrong.
    Source: Singh & Jaggi 2020, Ferbach et al. 2024.
    """
    return fuse_pair(load_widths(a, b, **sources), norm=norm, seed=seed)


@at_home
def fuse_pair(pair: WidthPair, *, norm: str = "activations", seed: int = 0) -> Fusion:
    """Return ``fuse`` of two loaded endpoints."""
    if norm not in NORMS:
        near = nearest(norm, NORMS) if isinstance(norm, str) else ""
        raise LmcError(f"fuse: norm = {norm!r}{near}; expected one of {list(NORMS)}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise LmcError(f"fuse: seed = {seed!r}; expected an integer")
    calibration = pair.network.calibration
    if norm == "activations" and calibration is None:
        raise SourceError(
            "fuse: norm = 'activations' needs calibration data and none is given; mend: give `calibration`, for "
            "example the training data, or use norm = 'weights'"
        )
    derived_a, derived_b = (end.network.trace_for("fuse: needs", "leave out `symmetry`") for end in (pair.a, pair.b))
    carrier = Carrier(pair.a.network.spec, pair.b.network.spec)
    twofold = twofold_tensors(derived_b)
    require_same_use(carrier.a, carrier.b, twofold)
    seen = second_moments(pair.a, derived_a, calibration) if norm == "activations" and calibration is not None else None
    recursion = Recursion(
        carrier, derived_a, pair.a.theta, pair.b.theta, seen.moments if seen is not None else {}, twofold
    )
    recursion.run()
    weights = carrier.carry(pair.b.theta)
    deviation = _deviation(pair, weights)
    evaluator = Evaluator(pair.a.network, pair.a.theta, weights)
    own = Evaluator(pair.b.network, pair.b.theta)
    of_b = own.endpoint(pair.b.theta, "b", "fuse: b")
    of_fused = evaluator.endpoint(weights, "b at a's widths", "fuse: b at a's widths")
    facts: dict[str, Any] = {
        "groups": {
            group.name: {"size_a": group.size, "size_b": carrier.b.by_name[group.name].size}
            for group in carrier.a.groups
        },
        "order": recursion.placed,
        "left_in_order": recursion.left,
        "plain_norm": recursion.plain(),
        "errors": {"b": of_b.error, "fused": of_fused.error},
        "spec_deviation": {"a": pair.a.network.spec_deviation, "b": pair.b.network.spec_deviation},
        "batchnorm": None,
        "calibration_samples": {"of": seen.total, **seen.facts()} if seen is not None else {},
    }
    if evaluator.batchnorms:
        facts["batchnorm"] = _batchnorm_facts(evaluator, weights)
    facts["evaluations"] = own.evaluations + evaluator.evaluations
    return Fusion(
        weights,
        {name: carrier.plan(name) for name in carrier.masses},
        {name: carrier.permutation[name] for name in carrier.a.by_name if name in carrier.nested},
        recursion.costs,
        deviation <= TOLERANCE,
        deviation,
        of_b.loss,
        of_fused.loss,
        norm,
        seed,
        facts,
        {key: text for key, text in pair.b.checkpoint.metadata.items() if key != "lmccheck"},  # of other weights
        of_b.losses,
    ).made_like(pair.a.checkpoint, pair.inputs)


def _batchnorm_facts(evaluator: Evaluator, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a report says of the fused network's BatchNorm; JSON-able."""
    known = bool(evaluator.calibration)
    again = evaluator.measure(evaluator.weights(weights), reestimate=True, label="b at a's widths") if known else None
    return {
        "layers": evaluator.batchnorms,
        "note": "running statistics are means over the plan, wrong where units are merged: re-estimate them",
        "loss_fused_reestimated": again.loss if again is not None else None,
    }


def _deviation(pair: WidthPair, weights: Mapping[str, Tensor]) -> float:
    """Return max |f_A(weights) − f_B(θ_B)| / (1 + max |f_B|) on the first evaluation samples, in float64."""
    where = f"{pair.network.data.origin}, comparing b before and after fusion"
    before, after = (
        FirstOutputs(end.network, where)(state) for end, state in ((pair.b, pair.b.theta), (pair.a, weights))
    )
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (before, after)]
    if shapes[0] != shapes[1] or not any(tensor.numel() for tensor in before):
        raise UnsupportedArchitecture(
            f"fuse: on {where} a's network returns {shapes[1][:3]} and b's {shapes[0][:3]}, expected floating tensors "
            f"of one shape; {MEND}, which return no hidden states"
        )
    return relative_deviation(before, after)
