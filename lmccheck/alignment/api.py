"""Aligning a pair: one registry of methods, one outcome, checked on data before anyone may use it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmccheck.alignment.beyond.api import chosen_kinds, go_beyond
from lmccheck.alignment.contract import Found, Problem
from lmccheck.alignment.dimension import dimension_facts
from lmccheck.alignment.experts import ordered, orders
from lmccheck.alignment.methods import METHODS as METHODS
from lmccheck.alignment.methods.best import solve
from lmccheck.errors import LmcError, SymmetryError, nearest
from lmccheck.evaluate.outputs import function_deviation
from lmccheck.network.pair import ModelPair
from lmccheck.network.running import at_home
from lmccheck.shown import one_line
from lmccheck.store.writing import LaidOut, beside, write_like
from lmccheck.symmetry.spec import Permutation, PermutationSpec
from lmccheck.symmetry.verify import TOLERANCE


@one_line(
    lambda found: (
        f"{found.method}, seed {found.seed}, {found.spec.shown}, function deviation {found.function_deviation:.2g}"
    )
)
@dataclass(frozen=True)
class Alignment(LaidOut):
    """θ_B permuted towards θ_A.

    ``weights`` are θ_B's own numbers in its own dtypes, permuted; with maps ``beyond`` permutations they are computed,
    and float64. ``stored`` are θ_B's own dtypes. ``objective`` is what the method maximised;
    ``function_deviation`` is max |f(π·θ_B) − f(θ_B)| / (1 + max |f|) on evaluation data in float64, at most 1e-9;
    ``spec_deviation`` the same on random weights and random permutations.
    """

    permutation: Permutation = field(repr=False)
    weights: dict[str, Tensor] = field(repr=False)
    objective: float
    method: str
    spec: PermutationSpec = field(repr=False)
    seed: int
    function_deviation: float
    spec_deviation: float
    facts: dict[str, Any] = field(repr=False)
    metadata: dict[str, str] = field(repr=False)
    beyond: tuple[str, ...] = ()
    stored: dict[str, torch.dtype] = field(default_factory=dict, repr=False)

    @property
    def is_identity(self) -> bool:
        """True when no unit moved."""
        return not self.beyond and all(
            torch.equal(p, torch.arange(p.shape[-1]).expand_as(p)) for p in self.permutation.values()
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write θ_B aligned, and the permutation beside it: see ``save_aligned``."""
        return save_aligned(self, path)

    def ship(self, target: Path, files: Sequence[str]) -> None:
        """Write θ_B aligned to ``target``, for the merge that uses what was tested."""
        save_aligned(self, target)

    def summary(self) -> dict[str, Any]:
        """Return what a report says about this alignment; JSON-able."""
        moved = {name: float((p != torch.arange(p.shape[-1])).double().mean()) for name, p in self.permutation.items()}
        return {
            "method": self.method,
            "seed": self.seed,
            "objective": self.objective,
            "beyond": list(self.beyond),
            **self.facts,
            "groups": {
                g.name: {"size": g.size, "copies": g.copies, "share_moved": moved[g.name]} for g in self.spec.groups
            },
            "free_share": self.spec.free_share,
            "function_deviation": self.function_deviation,
            "spec_deviation": self.spec_deviation,
            "unruled_ops": dict(self.spec.unruled),
            "frozen": [
                {"tensor": f.tensor, "dim": f.dim, "size": f.size, "reason": f.reason} for f in self.spec.frozen
            ],
        }


@at_home
def align(
    pair: ModelPair, method: str = "weight-matching", *, seed: int = 0, beyond: str | Collection[str] = ()
) -> Alignment:
    """Permute θ_B's hidden units towards θ_A's and return the Alignment.

    ``method``: one of METHODS. ``beyond``: ``"all"`` or some of ``rescaling`` (positive, per unit), ``sign-flips``,
    ``head-maps`` (invertible, on query/key and value/output dimensions), ``rotary-planes`` (turns and scales of the
    planes of queries and keys that rotary positions turn) and ``stream-rotation`` (of a residual stream read through
    LayerNorm or RMSNorm; Theus et al. 2025); each is used where it is verified to keep the function. With calibration
    data those that mix units are learned: in 300 steps, or in eight rounds over the data where that takes more, at most
    1,200; on a network of some size most of the time goes there.

    The permutation spec is derived from the network, verified in float64 on random weights, and the aligned weights are
    compared with θ_B on the pair's data before they are returned: an alignment that changes the function is never
    handed out. Raises SymmetryError, UnsupportedArchitecture, SourceError where a method needs calibration data and
    there is none, or LmcError for an unknown method or map.
    """
    if method not in METHODS:
        raise LmcError(
            f"align: unknown method {method!r}{nearest(method, METHODS.names())}; expected one of {METHODS.names()}"
        )
    kinds = chosen_kinds(beyond)
    return pair.once(_align, method, seed, kinds)


def _align(pair: ModelPair, method: str, seed: int, kinds: tuple[str, ...]) -> Alignment:
    within = pair.once(ordered, seed)
    problem = Problem(within.pair, seed)
    spec, origin = pair.network.whole_spec, pair.network.origin["origin"]
    if kinds:
        mapped = go_beyond(problem, kinds, partial(solve, method=method))
        found, aligned = Found(mapped.permutation, mapped.objective, {"maps": mapped.facts}), mapped.weights
        permutation = within.in_all(found.permutation)
    else:
        found = solve(problem, method)
        permutation = within.in_all(found.permutation)
        aligned = spec.apply(pair.theta_b, permutation)
    deviation = function_deviation(pair.network, pair.theta_b, aligned)
    if not deviation <= TOLERANCE:
        whose = "this is a defect of lmccheck; mend: report the model, and use align = 'none' meanwhile"
        if pair.symmetry is not None:
            whose = f"mend: correct symmetry {origin}, which two samples did not show to be wrong"
        raise SymmetryError(
            f"pair {pair.name}: the aligned weights change b's output by {deviation:.2e} (relative, float64) on the "
            f"data, expected at most {TOLERANCE:.0e}; {whose}"
        )
    moved = {"experts": orders(spec, permutation)} if within.order is not None else {}
    return Alignment(
        permutation,
        aligned,
        found.objective,
        method,
        spec,
        seed,
        deviation,
        pair.network.whole_deviation,
        {"symmetry": origin, **dimension_facts(pair), **found.facts, **moved},
        dict(pair.origins[1].metadata),
        kinds,
        {name: tensor.dtype for name, tensor in pair.theta_b.items()},
    ).made_like(pair.origins[1], pair.inputs)


def save_aligned(alignment: Alignment, path: str | os.PathLike[str]) -> Path:
    """Write θ_B aligned to ``path``, metadata and dtypes kept, and the permutation beside it.

    Where θ_B was a folder and ``path`` names no ``.safetensors`` file, a folder is written that loads as it is: config,
    tokenizer and preprocessing of θ_B, the weights in shards as θ_B's. Tensors have the names that θ_B's files have.
    What θ_B's metadata says of how it was merged (the key ``lmccheck``) is left out: it is not about permuted weights.

    ``<stem>.permutation.safetensors`` holds one int64 tensor per unit group: position i took what unit ``p[i]`` of θ_B
    was. What maps beyond permutations computed is rounded to θ_B's dtypes. Returns ``path``. Raises CheckpointError
    when it cannot be written.
    """
    if not isinstance(alignment, Alignment):
        raise LmcError(f"save_aligned: got {type(alignment).__name__}, expected an Alignment; mend: set align")
    target = Path(path)
    rounded = {name: tensor.to(alignment.stored.get(name, tensor.dtype)) for name, tensor in alignment.weights.items()}
    facts: Mapping[str, Any] = {
        "method": alignment.method,
        "seed": alignment.seed,
        "beyond": list(alignment.beyond),
        "objective": alignment.objective,
        "function_deviation": alignment.function_deviation,
        "within": {g.name: list(g.within) for g in alignment.spec.groups if g.within},
    }
    metadata = {key: text for key, text in alignment.metadata.items() if key != "lmccheck"}
    more = {beside(target, "permutation"): (alignment.permutation, {"lmccheck": json.dumps(facts)})}
    return write_like(alignment.origin, rounded, target, metadata, inputs=alignment.inputs, more=more)
