"""greedy_soup: parents from best to worst on validation data, each kept in the mean if it does not make it worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError, SourceError
from lmccheck.merging.contract import Made, Making, recipe
from lmccheck.merging.settings import dtype
from lmccheck.shown import some

if TYPE_CHECKING:
    from torch import Tensor

EXPECTED = "the name of validation data, which nothing else is measured on"


def _read(value: Any, parents: tuple[str, ...], options: Mapping[str, Any]) -> Mapping[str, Any]:
    if value is None or isinstance(value, (bool, int, float)) or value in ("", {}):
        raise LmcError(f".greedy_soup: got {value!r}, expected {EXPECTED}")
    return {"validation": value, "dtype": dtype(options)}


@recipe("greedy_soup", read=_read, expects=EXPECTED, options=("dtype",), linear=True, once=True, drawn="")
def greedy_soup(making: Making) -> Made:
    """Return the greedy soup of Wortsman et al. 2022, Recipe 1, by the mean loss on validation data.

    Differs in that the loss decides, not the accuracy, and equal parents are in the order of their names. A parent
    is kept where the mean with it has a loss no higher than without. One sum is in memory, and one parent. The facts
    hold ``order``, ``losses``, ``taken`` (the ingredients) and ``steps``, by which the choice can be checked again.
    """
    from lmccheck.merging.average import Sum, common_headers, write_tensors

    if making.measure is None:
        raise SourceError(f"greedy_soup: nothing to measure with, expected {EXPECTED}; mend: make it of a Merge")
    loss_of = making.measure(making.settings["validation"])
    headers = common_headers(making.parents, making.settings["dtype"])
    losses = {name: loss_of(_state(making, name)) for name in making.parents}
    order = sorted(losses, key=lambda name: (losses[name] != losses[name], losses[name], name))
    soup = Sum(headers).plus(making.parents[order[0]])
    taken, best = [order[0]], losses[order[0]]
    steps: list[dict[str, Any]] = [{"parent": order[0], "loss": best, "taken": True}]
    for name in order[1:]:
        trial = soup.plus(making.parents[name])
        loss = loss_of(trial.mean())
        if loss <= best:
            soup, best, taken = trial, loss, [*taken, name]
        steps.append({"parent": name, "loss": loss, "taken": name == taken[-1]})
    facts = {"taken": taken, "order": order, "losses": losses, "steps": steps, "validation_loss": best}
    said = f"the greedy soup took {len(taken)} of {len(order)} parents, {some(taken)}: validation loss {best:.4g}, of "
    said += f"its best parent {losses[order[0]]:.4g}"
    return Made(write_tensors(making, soup.mean()), facts, (said,))


def _state(making: Making, name: str) -> dict[str, Tensor]:
    parent = making.parents[name]
    return {tensor: parent.get(tensor) for tensor in parent.tensors}
