"""uniform: the mean of all parents, each alike (a uniform soup; averages of one run's checkpoints)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmccheck.errors import LmcError
from lmccheck.merging.contract import Made, Making, recipe
from lmccheck.merging.settings import dtype


def _read(value: Any, parents: tuple[str, ...], options: Mapping[str, Any]) -> Mapping[str, Any]:
    if value is not True:
        raise LmcError(f".uniform: got {value!r}, expected true")
    return {"dtype": dtype(options)}


@recipe(
    "uniform", read=_read, expects="true", options=("dtype",), linear=True, once=True,
    claims=lambda settings: frozenset({"unit", "equal", "order", "equivariant", "linear"}),
)  # fmt: skip
def uniform(making: Making) -> Made:
    """Return (1/n)·Σ_k θ_k (Izmailov et al. 2018; the uniform soup of Wortsman et al. 2022)."""
    from lmccheck.merging.average import write_average

    weights = dict.fromkeys(making.parents, 1.0)
    facts = {"weights": dict.fromkeys(weights, 1 / len(weights))}
    return Made(write_average(making, weights, making.settings["dtype"], divisor=float(len(weights))), facts)
