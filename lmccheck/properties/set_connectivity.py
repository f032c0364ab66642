"""Connectivity of a set: may these networks, three or more, be averaged with one another, in one common frame?"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError
from lmccheck.evaluate.line import BARRIER
from lmccheck.properties.limits import read_limit
from lmccheck.properties.remarks import data_remarks
from lmccheck.result import Result

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lmccheck.alignment.barriers import Barriers, Matrix
    from lmccheck.alignment.many import ManyAlignment
    from lmccheck.network.model_set import ModelSet
    from lmccheck.symmetry.spec import PermutationSpec


def set_connectivity(
    models: Sequence[str | os.PathLike[str] | Mapping[str, Tensor]],
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
    limit: float | str = 0.05,
    points: int = 5,
    repair: str = "bn",
) -> Result:
    """Assert that the loss on the segments between all pairs of aligned networks stays within ``limit`` of the chord.

    Networks and alignment are given as to ``align_many``, which brings all of them into one frame; every segment is
    measured as ``linear_connectivity`` does, on a grid of ``points``. ``limit``: in the loss's unit (nats for cross
    entropy), or ``"5%"`` of the loss of a pair's worse model. ``value`` is the barrier of the worst pair, ``limit``
    that pair's: the largest barrier where the limit is a number. ``repair`` mends the networks between as in
    ``linear_connectivity``; the mean of all has its BatchNorm re-estimated (unless ``none``), and nothing else.

    ``details`` hold ``names``, the (n, n) ``matrix`` of barriers, ``matrix_naive`` (nothing moved) and, with BatchNorm,
    ``matrix_reestimated``; ``above_limit`` (the pairs of names), ``table`` (the matrix as text), ``worst_pair``,
    ``worst_t``, ``barrier_naive`` (of that pair), ``losses``, ``mean_loss`` and ``mean_loss_naive`` (of the uniform
    mean of all models, not part of the verdict), ``cycle_error``, ``notes`` and more; the
    witness is the ManyAlignment. A pass is about this data and these points; a fail about this alignment.
    Raises LmcError (CheckpointError, SourceError, SymmetryError, UnsupportedArchitecture) when nothing sound can be
    said. Source: Entezari et al. 2022 (barrier), Ainsworth et al. 2023, Algorithm 3 (alignment of many).
    """
    from lmccheck.alignment.many import align_many

    started = time.perf_counter()
    _check_options(limit, points, repair)
    many = align_many(
        models, model=model, data=data, calibration=calibration, loss=loss, device=device, method=method, align=align,
        reference=reference, seed=seed, base=base, symmetry=symmetry,
    )  # fmt: skip
    return _judged(many, limit, points, repair, started)


def of_set(
    models: ModelSet,
    *,
    method: str = "merge-many",
    align: str = "weight-matching",
    reference: int = 0,
    seed: int = 0,
    profile: str = "ci",
    limit: float | str = 0.05,
    points: int = 5,
    repair: str = "bn",
) -> Result:
    """Return ``set_connectivity`` of models that are loaded; no ``profile`` refines its grids."""
    from lmccheck.alignment.many import align_set

    started = time.perf_counter()
    _check_options(limit, points, repair)
    many = align_set(models, method=method, align=align, reference=reference, seed=seed)
    return _judged(many, limit, points, repair, started)


def _check_options(limit: float | str, points: int, repair: str) -> None:
    from lmccheck.evaluate.segment import require_repair

    read_limit(limit, 1.0, "set_connectivity")
    if isinstance(points, bool) or not isinstance(points, int) or points < 3:
        raise LmcError(f"set_connectivity: points = {points!r}; expected an integer of at least 3")
    require_repair(repair, "set_connectivity")


def _judged(many: ManyAlignment, limit: float | str, points: int, repair: str, started: float) -> Result:
    """Measure all segments of an aligned set, and compare the worst with its limit."""
    from lmccheck.alignment.barriers import measure_barriers

    found = measure_barriers(many, points=points, repair=repair)
    bounds = {
        (i, j): read_limit(limit, max(found.losses[i], found.losses[j]), "set_connectivity") for i, j in found.worst_t
    }
    worst = max(bounds, key=lambda pair: _excess(found.aligned[pair[0]][pair[1]], bounds[pair]))
    above = [(i, j) for i, j in bounds if not found.aligned[i][j] <= bounds[i, j]]
    value, bound = found.aligned[worst[0]][worst[1]], bounds[worst]
    unit = many.pair.loss.unit
    details: dict[str, Any] = {
        "barrier_definition": BARRIER,
        "names": list(many.names),
        "matrix": found.aligned,
        "matrix_naive": found.naive,
        "matrix_reestimated": found.reestimated,
        "above_limit": [[many.names[i], many.names[j]] for i, j in above],
        "table": table(many.names, found.aligned),
        "worst_pair": [many.names[k] for k in worst],
        "worst_t": found.worst_t[worst],
        "barrier_naive": found.naive[worst[0]][worst[1]],
        "points": points,
        "losses": found.losses,
        "errors": found.errors,
        "mean_loss": found.mean_loss,
        "mean_loss_naive": found.mean_loss_naive,
        "mean_error": found.mean_error,
        "cycle_error": many.facts["cycle_error"],
        "limit_given": limit,
        "samples": many.pair.data.samples,
        "alignment": many.facts,
        "function_deviations": list(many.function_deviations),
        "repair": repair,
        "notes": _notes(many, found, repair),
    }
    if not value <= bound:
        details["failure"] = _failure(many, found, worst, bound, f"{len(above)} of {len(bounds)} pairs above the limit")
    return Result(
        property="set_connectivity",
        verdict="pass" if value <= bound else "fail",
        value=value,
        limit=bound,
        unit=unit,
        witness=many,
        evaluations=found.evaluations,
        seconds=time.perf_counter() - started,
        details=details,
    )


def _excess(value: float, bound: float) -> float:
    """Return by how much a barrier exceeds its limit; what is no number is worst."""
    return value - bound if value == value else math.inf


def _notes(many: ManyAlignment, found: Barriers, repair: str) -> list[str]:
    """Say what the mean of all comes to, and what was done to the networks between."""
    pair, unit = many.pair, many.pair.loss.unit
    notes = [
        f"the mean of all {len(many.names)} models has loss {found.mean_loss:.4g} {unit}, unaligned "
        f"{found.mean_loss_naive:.4g}, the models {min(found.losses):.4g} to {max(found.losses):.4g} (not part of the "
        "verdict)"
    ]
    samples = pair.calibration.samples if pair.calibration else 0
    if found.reestimated is not None:
        notes.append(
            f"BatchNorm re-estimated at every point on {samples} calibration samples (do so in the merged model)"
        )
    if repair == "repair":
        notes.append(f"REPAIR of the networks between two models, on {samples} calibration samples; not of the mean")
    notes += data_remarks(pair)
    if not many.spec.groups:
        notes.append("no unit group may be permuted; aligned equals unaligned")
    if many.spec.unruled:
        notes.append(f"ops without a symmetry rule froze what they touch: {', '.join(sorted(many.spec.unruled))}")
    return notes


def table(names: Sequence[str], matrix: Matrix) -> str:
    """Return a matrix of barriers as text, one row and column a model.

    >>> print(table(["a", "b"], [[0.0, 0.25], [0.25, 0.0]]))
           a     b
    --  ----  ----
    a   0     0.25
    b   0.25  0
    """
    from tabulate import tabulate

    return tabulate([[name, *row] for name, row in zip(names, matrix, strict=True)], ["", *names], floatfmt=".4g")


def _failure(many: ManyAlignment, found: Barriers, worst: tuple[int, int], bound: float, over: str) -> list[str]:
    """Return the first lines of a failure: what, measured, where, how many, the models' own losses and the mean's."""
    i, j = worst
    unit, data = many.pair.loss.unit, many.pair.data
    ends = ", ".join(f"{name} {loss:.4g}" for name, loss in zip(many.names, found.losses, strict=True))
    return [
        f"{many.names[i]} and {many.names[j]}: not linearly connected after {many.method} (no better alignment was "
        "found, which does not prove that there is none)",
        f"barrier {found.aligned[i][j]:.4g} {unit}, limit {bound:.4g} {unit}; unaligned it is {found.naive[i][j]:.4g}",
        f"where: t = {found.worst_t[worst]:.4g} of θ_t = (1-t)·{many.names[i]} + t·{many.names[j]}, on {data.origin} "
        f"({data.samples} samples)",
        over,
        f"losses: {ends} {unit}; of the mean of all {found.mean_loss:.4g}, unaligned {found.mean_loss_naive:.4g}",
    ]
