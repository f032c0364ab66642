"""The folders that a manifest's checkpoints lie in, compared: configs and tokenizers, but for what is accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lmccheck.beside.compare import Compared, Open, Side, compare
from lmccheck.beside.configs import WIDTHS
from lmccheck.beside.required import read_with
from lmccheck.data.described import DataSpec
from lmccheck.errors import one_line
from lmccheck.manifest.plan import Measured, PairPlan, Plan, texts
from lmccheck.store.checkpoint import Checkpoint

OF_ITS_TENSORS = ("dtype", "num_hidden_layers", "layer_types")  # of what is shipped, which its own check compares


def compared(item: Measured, checkpoints: Mapping[str, Checkpoint], plan: Plan, opened: Open) -> Compared:
    """Compare what lies beside an item's checkpoints, given by their keys, and what its data are read with."""
    meant: dict[str, tuple[str, ...]] = {"shipped": OF_ITS_TENSORS}
    if isinstance(item, PairPlan) and item.model_b is not None:
        meant = {"b": WIDTHS}
    sides = [replace(Side.of(key, found), meant=meant.get(key, ())) for key, found in checkpoints.items()]
    return compare(sides, item.accept, opened, read_with(plan.folder, **_data(item, plan)))


def _data(item: Measured, plan: Plan) -> dict[str, DataSpec]:
    """Return the descriptions of the data that an item is measured on, by what messages call them."""
    found = {key: each for key in ("data", "calibration") if isinstance(each := getattr(item, key), DataSpec)}
    named = {name for check in item.checks for name in texts(check.settings.get("data")) if name in plan.data}
    return {
        **{key if each.name is None else f"data.{each.name}": each for key, each in found.items()},
        **{f"data.{name}": plan.data[name] for name in sorted(named)},
    }


def acceptances(items: Sequence[tuple[str, Compared]]) -> tuple[list[str], list[str]]:
    """Return a line for each accepted name that is none, and for each that no item of those that share it needs."""
    name, first = items[0]
    unknown, unmet = [], []
    for accepted in (*first.unmet, *first.unknown):
        if all(accepted in each.unknown for _, each in items):
            unknown.append(one_line(f"{name}.{first.unknown[accepted]}"))
        elif all(accepted in each.unmet or accepted in each.unknown for _, each in items):
            unmet.append(
                one_line(f"{name}.{next(each.unmet[accepted] for _, each in items if accepted in each.unmet)}")
            )
    return unknown, unmet
