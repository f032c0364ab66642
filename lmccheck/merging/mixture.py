"""Which sum of parents and base a checkpoint is: a known recipe by its name, or the weights that fit it best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lmccheck.shown import some

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.store.checkpoint import Checkpoint

BASE = "the base"
MOST = 8  # tensors that a recipe is tried on
Weights = Mapping[str, float]  # by parent; ``the base`` too


def mixture(
    got: Checkpoint,
    parents: Mapping[str, Checkpoint],
    base: Checkpoint | None,
    weights: Weights | None,
    names: Sequence[str],
) -> str | None:
    """Return in words what sum of the parents (and the base) the tensors ``names`` of a checkpoint are.

    ``weights`` are those of the recipe that was expected. A known recipe is named where it gives every tensor to the
    rounding of its dtype; else the weights of the sum that fits as well; None where no sum does.
    """
    sources = {**parents, **({} if base is None else {BASE: base})}
    chosen = _usable(got, sources, names)
    if not chosen:
        return None
    for said, candidate in _known(tuple(parents), base is not None, weights):
        if all(_fits(got, sources, candidate, name) for name in chosen):
            return said
    exact = _fitted(got, sources, chosen) or {}
    rounded = ({name: round(weight, digits) for name, weight in exact.items()} for digits in (1, 2, 3))
    fitted = next((one for one in rounded if exact and all(_fits(got, sources, one, name) for name in chosen)), None)
    if fitted is None:
        return None
    return " + ".join(f"{weight:.3g}·{name}" for name, weight in fitted.items() if weight).replace("+ -", "− ")


def _usable(got: Checkpoint, sources: Mapping[str, Checkpoint], names: Sequence[str]) -> list[str]:
    """Return the names of floating tensors that all sources have in one shape."""
    return [
        name
        for name in names
        if name in got.tensors
        and got.tensors[name].is_floating_point
        and all(
            name in source.tensors and source.tensors[name].shape == got.tensors[name].shape
            for source in sources.values()
        )
    ][:MOST]


def _known(parents: tuple[str, ...], base: bool, weights: Weights | None) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield recipes that are often taken for one another, in words and as the weights of a sum."""
    for name in parents:
        yield f"parent {name} itself", {name: 1.0}
    if base:
        yield "the base itself", {BASE: 1.0}
    n = len(parents)
    if weights is not None:
        given = {name: float(weights[name]) for name in parents if name in weights}
        total = sum(given.values())
        one = abs(total - 1) <= 1e-9
        undivided = f"the weighted sum ({_sum(given)}), not divided by the weights' sum"
        yield (
            (
                "the recipe's own sum, rounded otherwise (a tolerance that is a number accepts that)"
                if one
                else undivided
            ),
            given,
        )
        if total and abs(total - 1) > 1e-9:
            yield "the sum divided by the weights' sum (a normalised sum)", {k: w / total for k, w in given.items()}
        if base:
            yield f"the base plus the weighted differences from it ({_sum(given)})", {**given, BASE: 1 - total}
        yield (
            "the same weights given to other parents (in reversed order)",
            dict(zip(given, reversed(given.values()), strict=True)),
        )
    yield "the plain mean of the parents", dict.fromkeys(parents, 1 / n)
    yield "the plain sum of the parents, never divided by their number", dict.fromkeys(parents, 1.0)
    if base:
        yield "the plain mean of the parents and the base", dict.fromkeys((*parents, BASE), 1 / (n + 1))
        yield "the base plus the sum of all differences from it", {**dict.fromkeys(parents, 1.0), BASE: 1.0 - n}


def _sum(weights: Weights) -> str:
    return some((f"{weight:.4g}·{name}" for name, weight in weights.items()), 6)


def _fits(got: Checkpoint, sources: Mapping[str, Checkpoint], weights: Weights, name: str) -> bool:
    """Whether a tensor is a sum, entry by entry, to the rounding of what was added and of what is stored."""
    import torch

    here = got.get(name)
    total, size = torch.zeros(here.shape, dtype=torch.float64), torch.zeros(here.shape, dtype=torch.float64)
    eps = torch.finfo(here.dtype).eps
    for source, weight in weights.items():
        if weight:
            tensor = sources[source].get(name)
            eps = max(eps, torch.finfo(tensor.dtype).eps)
            total += weight * tensor.double()
            size += abs(weight) * tensor.double().abs()
    return bool(((here.double() - total).abs() <= (len(weights) + 2) * eps * size).all())


def _fitted(got: Checkpoint, sources: Mapping[str, Checkpoint], names: Iterable[str]) -> dict[str, float] | None:
    """Return the weights of the sum that is nearest in the least squares.

    Fitted to differences from one source, so that what all have in common does not hide them.
    """
    import torch

    reference = BASE if BASE in sources else next(iter(sources))
    others = [name for name in sources if name != reference]
    columns: list[Tensor] = []
    rows: list[Tensor] = []
    for name in names:
        at = sources[reference].get(name).double().reshape(-1)
        columns.append(torch.stack([*(sources[o].get(name).double().reshape(-1) - at for o in others), at], 1))
        rows.append(got.get(name).double().reshape(-1) - at)
    matrix, target = torch.cat(columns), torch.cat(rows)
    if matrix.shape[0] <= matrix.shape[1] or not bool(matrix.isfinite().all() and target.isfinite().all()):
        return None
    sizes = matrix.norm(dim=0)
    if not bool((sizes > 0).all()):
        return None
    found = torch.linalg.lstsq(matrix / sizes, target[:, None]).solution[:, 0] / sizes
    weights = dict(zip(others, found.tolist(), strict=False))
    weights[reference] = 1 + float(found[-1]) - sum(weights.values())
    order = [name for name in sources if name != BASE] + [BASE] * (BASE in sources)
    return {name: weights[name] for name in order}
