"""linear: Σ_k w_k·θ_k, the sum as it is written; with ``normalize`` it is divided by Σ_k w_k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmccheck.errors import LmcError
from lmccheck.merging.contract import Made, Making, recipe
from lmccheck.merging.settings import dtype, flag, weights


def _read(value: Any, parents: tuple[str, ...], options: Mapping[str, Any]) -> Mapping[str, Any]:
    found, normalize = weights(value, parents, "linear"), flag(options, "normalize", False)
    if normalize and not sum(found.values()):
        raise LmcError(".normalize: the weights sum to 0, expected a sum to divide by; mend: normalize = false")
    return {"weights": found, "normalize": normalize, "dtype": dtype(options)}


def _claims(settings: Mapping[str, Any]) -> frozenset[str]:
    """Weights that do not sum to one, and are not made to, do not give equal parents back."""
    one = settings["normalize"] or abs(sum(settings["weights"].values()) - 1) < 1e-9
    normalised = {"scale"} if settings["normalize"] else set()
    return frozenset({"unit", "order", "equivariant", "linear", *({"equal"} if one else ()), *normalised})


@recipe(
    "linear", read=_read, expects="a table of weights by parent", options=("normalize", "dtype"), claims=_claims,
    linear=True, once=True,
)  # fmt: skip
def linear(making: Making) -> Made:
    """Return the weighted sum of the parents, as ``torch.optim.swa_utils`` and mergekit's ``linear`` make it.

    Differs from mergekit's in that the sum is divided by that of the weights only where ``normalize = true`` says so.
    """
    from lmccheck.merging.average import write_average

    given, total = making.settings["weights"], sum(making.settings["weights"].values())
    divisor = total if making.settings["normalize"] else 1.0
    facts = {"weights": {name: weight / divisor for name, weight in given.items()}, "sum_of_weights": total / divisor}
    said = f"the weights sum to {total:.4g} and are used as written; normalize = true would divide by it"
    notes = () if abs(total / divisor - 1) < 1e-9 else (said,)
    return Made(write_average(making, given, making.settings["dtype"], divisor=divisor), facts, notes)
