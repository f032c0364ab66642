"""The merged network of a pair: exactly the weights whose loss the curve gives at t, and a file of them."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from lmccheck.alignment.api import Alignment
from lmccheck.errors import LmcError, SymmetryError
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.segment import Segment, require_repair
from lmccheck.modules.stored import tied_names
from lmccheck.network.pair import ModelPair
from lmccheck.network.running import at_home
from lmccheck.store.writing import write_like
from lmccheck.symmetry.discover import Traced


def segment(
    pair: ModelPair,
    evaluator: Evaluator,
    alignment: Alignment | None,
    repair: str = "bn",
    beside: Segment | None = None,
) -> Segment:
    """Return the segment of a pair from θ_A to θ_B, aligned (None: as it is), mended as ``repair`` says.

    ``beside``, a segment from the same θ_A, saves observing it again. Raises UnsupportedArchitecture where
    ``repair`` is ``repair`` and the network was not traced because its symmetry was handed in.
    """
    require_repair(repair, f"pair {pair.name}")
    derived = traced_for_repair(pair) if repair == "repair" else None
    target = pair.theta_b if alignment is None else alignment.weights
    return Segment(evaluator, pair.theta_a, target, repair, derived, beside)


def traced_for_repair(pair: ModelPair) -> Traced:
    """Return the traced network, in which REPAIR looks at activations; raise UnsupportedArchitecture without one."""
    return pair.network.trace_for(f"pair {pair.name}: repair = 'repair' looks at activations in", "use repair = 'bn'")


@at_home
def merged(pair: ModelPair, alignment: Alignment | None, t: float = 0.5, repair: str = "bn") -> dict[str, Tensor]:
    """Return (1−t)·θ_A + t·π(θ_B), mended: the weights that linear_connectivity measures at ``t``.

    ``alignment`` None leaves θ_B as it is. ``repair``: see linear_connectivity; re-estimated BatchNorm statistics are
    part of the weights. Every name of the module's state dict, on the CPU, in θ_A's dtypes; tied names share one
    tensor, integer tensors are those of the nearer end. Raises LmcError (SourceError without the calibration data that
    ``repair`` needs, SymmetryError for an alignment of another network).
    """
    if isinstance(t, bool) or not isinstance(t, (int, float)) or not 0 <= t <= 1:
        raise LmcError(f"pair {pair.name}: t = {t!r}; expected a number from 0 to 1")
    if alignment is not None and not isinstance(alignment, Alignment):
        raise LmcError(f"pair {pair.name}: got {type(alignment).__name__}, expected an Alignment or None")
    require_own(pair, alignment)
    require_repair(repair, f"pair {pair.name}")
    found = segment(pair, Evaluator(pair.network, pair.theta_a, pair.theta_b), alignment, repair).merged(float(t))
    tied = tied_names(pair.module)
    stored = {name: found[name].to("cpu", pair.theta_a[name].dtype) for name in set(tied.values())}
    return {name: stored[tied[name]] for name in pair.theta_a}


def save_merged(
    pair: ModelPair,
    alignment: Alignment | None,
    path: str | os.PathLike[str],
    *,
    t: float = 0.5,
    repair: str = "bn",
) -> Path:
    """Write ``merged(pair, alignment, t, repair)`` to ``path``: the names, dtypes and metadata of θ_A's file.

    Where θ_A was a folder and ``path`` names no ``.safetensors`` file, a folder like it is written, see
    ``save_aligned``.

    The metadata's key ``lmccheck`` says in JSON how it was made: ``t``, ``method``, ``beyond``, ``repair``, ``seed``,
    ``sha256`` of both files, ``version``. Returns ``path``. Raises as ``merged``, and CheckpointError when it cannot be
    written.
    """
    return write(merged(pair, alignment, t, repair), path, pair, facts(pair, alignment, t, repair))


def write(weights: dict[str, Tensor], path: str | os.PathLike[str], pair: ModelPair, said: dict[str, Any]) -> Path:
    """Write merged weights as θ_A's file names them, with its metadata and what is to be said of them."""
    origin = pair.origins[0]
    metadata = {**origin.metadata, "lmccheck": json.dumps(said)}
    return write_like(origin, weights, Path(path), metadata, inputs=pair.inputs)


def facts(pair: ModelPair, alignment: Alignment | None, t: float, repair: str) -> dict[str, Any]:
    """Return how a merged network was made; JSON-able."""
    return {
        "t": float(t),
        "method": "none" if alignment is None else alignment.method,
        "beyond": [] if alignment is None else list(alignment.beyond),
        "repair": repair,
        "seed": None if alignment is None else alignment.seed,
        "sha256": {key: origin.sha256 for key, origin in zip("ab", pair.origins, strict=True)},
        "version": version("lmccheck"),
    }


def require_own(pair: ModelPair, alignment: Alignment | None) -> None:
    """Raise SymmetryError for an alignment of another network."""
    if alignment is not None and _shapes(alignment.weights) != _shapes(pair.theta_b):
        raise SymmetryError(
            f"pair {pair.name}: the alignment is of another network, expected one of this pair; mend: align it"
        )


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
