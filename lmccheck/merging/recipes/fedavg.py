"""fedavg: the mean of clients, each weighted by how many samples it saw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmccheck.errors import LmcError
from lmccheck.merging.contract import Made, Making, recipe
from lmccheck.merging.settings import by_parent, dtype
from lmccheck.store.documents import read_document

EXPECTED = "a table of sample counts by parent, or a .json file of one"


def _read(value: Any, parents: tuple[str, ...], options: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(value, str) and value.endswith(".json"):
        return {"counts": value, "dtype": dtype(options)}
    if not isinstance(value, Mapping):
        raise LmcError(f".fedavg: got {value!r}, expected {EXPECTED}")
    return {"counts": _counts(value, parents, ""), "dtype": dtype(options)}


def _counts(value: Any, parents: tuple[str, ...], file: str) -> dict[str, int]:
    """Return how many samples each parent saw; ``file`` is where that was said, if not in the recipe."""
    try:
        found = by_parent(value, parents, "fedavg", "sample counts")
        for parent, count in found.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise LmcError(f".fedavg.{parent}: got {count!r}, expected how many samples it saw, a whole number ≥ 0")
        if not any(found.values()):
            raise LmcError(".fedavg: every count is 0, expected samples; mend: give the counts")
    except LmcError as error:
        raise LmcError(f".fedavg: {file}: {str(error).lstrip('.')}" if file else str(error)) from None
    return found


def _in_file(settings: Mapping[str, Any], parents: tuple[str, ...], folder: Path) -> dict[str, int]:
    counts = settings["counts"]
    if not isinstance(counts, str):
        return dict(counts)
    try:
        document = read_document(folder / counts)[2]
    except ValueError as error:
        raise LmcError(f".fedavg: {error}") from None
    return _counts(document, parents, counts)


@recipe(
    "fedavg", read=_read, expects=EXPECTED, options=("dtype",), linear=True, once=True,
    claims=lambda settings: frozenset({"unit", "equal", "order", "scale", "equivariant", "linear"}),
    look=lambda settings, parents, folder: _in_file(settings, parents, folder) and None,
)  # fmt: skip
def fedavg(making: Making) -> Made:
    """Return Σ_k (n_k/n)·θ_k, n = Σ_k n_k (McMahan et al. 2017, Algorithm 1): buffers too, as frameworks average them.

    Means and variances of BatchNorm are averaged like weights, which is not what the clients' data have.
    """
    from lmccheck.merging.average import write_average

    counts = _in_file(making.settings, tuple(making.parents), making.folder)
    total = sum(counts.values())
    weights = {name: float(count) for name, count in counts.items()}
    facts = {"counts": counts, "weights": {name: count / total for name, count in counts.items()}}
    return Made(write_average(making, weights, making.settings["dtype"], divisor=float(total)), facts)
