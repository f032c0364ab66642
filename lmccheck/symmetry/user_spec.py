"""A permutation spec that a user hands in: held to the same test as a derived one, and told where it fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from math import ceil, factorial, log
from typing import Any

import torch
from torch import Tensor, nn

from lmccheck.errors import SymmetryError
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.stacks import stacked
from lmccheck.symmetry.verify import TOLERANCE, Verification, deviation, too_much

MOST_GROUPS = 50  # looked at one by one to find the wrong one
ALIKE = 1e-3  # probability with which two groups of a user's spec may move alike in all of verification
SHOWN_GROUPS = 3
SHOWN_TENSORS = 6


def require_given(
    spec: PermutationSpec, module: nn.Module, example_inputs: tuple[Any, ...], origin: str, *, seed: int = 0
) -> float:
    """Return the deviation of a user's spec; raise SymmetryError, naming ``origin`` and the group, above 1e-9."""
    try:
        worst = deviation(spec, module, example_inputs, trials=enough_trials(spec), seed=seed)
    except SymmetryError as error:
        raise SymmetryError(f"{origin}: {error}") from None
    if not worst <= TOLERANCE:
        raise SymmetryError(f"{origin}: {refusal(spec, module, example_inputs, worst, seed=seed)}")
    return worst


def require_fixed(spec: PermutationSpec, constants: Mapping[str, Tensor], origin: str) -> None:
    """Raise SymmetryError where a user's spec moves a constant: what is averaged would be another mask or table."""
    member = {name: pattern for pattern, members in spec.stacks.items() for name in members}
    apart = [name for name in constants if name in member and not set(spec.stacks[member[name]]) <= constants.keys()]
    if apart:
        raise SymmetryError(
            f"{origin}: {apart[0]!r} is equal in all checkpoints and no running statistic, others of "
            f"{member[apart[0]]!r} are not, so that these cannot change places; mend: leave out the groups that move it"
        )
    for name, value in (*constants.items(), *stacked(spec.stacks, constants)):
        for element in _generators(spec, name):
            moved = value.clone()
            spec.move_(name, moved, element)
            if not torch.equal(moved, value):
                raise SymmetryError(
                    f"{origin}: it permutes {name!r}, which is equal in all checkpoints and no running statistic, so "
                    "that a merge would average it with itself in another order; mend: leave out the groups that move "
                    "it"
                )


def _generators(spec: PermutationSpec, tensor: str) -> Iterator[dict[str, Tensor]]:
    """Yield elements of which products make up all that a spec does to a tensor.

    Of each group, and each of its copies, the first two units change places, and all move by one.
    """
    pieces = chain.from_iterable(spec.layouts.get(tensor, {}).values())
    still = spec.identity()
    for name in sorted({part.group for piece in pieces for part in piece.parts if part.group}):
        for copy in range(spec.by_name[name].copies):
            for moved in (lambda row: row.roll(1), lambda row: torch.cat([row[:2].flip(0), row[2:]])):
                rows = still[name].clone()
                row = rows[copy] if rows.ndim > 1 else rows
                row.copy_(moved(row.clone()))
                yield {**still, name: rows}


def enough_trials(spec: PermutationSpec) -> int:
    """Return how many random elements it takes, at least 3, for groups to move differently with 99.9 % probability.

    Two groups of two units move alike in half of all elements, and it does not show that they should be one.
    """
    alike = max(
        (1 / factorial(min(group.size, 9)) ** group.copies for group in spec.groups if group.size > 1), default=0
    )
    return max(3, ceil(log(ALIKE) / log(alike))) if alike else 3


def refusal(
    spec: PermutationSpec, module: nn.Module, example_inputs: tuple[Any, ...], worst: float, *, seed: int = 0
) -> str:
    """Say that a spec changes the function, and by which groups: each is tried with all others left in place."""
    changes = f"this permutation spec changes the output of model {type(module).__name__} {too_much(worst)}"
    tried = spec.groups[:MOST_GROUPS]
    measured = Verification(spec, module, example_inputs)
    still, moving = spec.identity(), spec.moving(seed)
    alone = {g.name: measured.change({**still, g.name: moving[g.name]}, seed) for g in tried}
    wrong = sorted((name for name in alone if not alone[name] <= TOLERANCE), key=lambda name: -alone[name])
    if not wrong:
        tally = f"{len(tried)} groups tried alone, of {len(spec.groups)}"
        return f"{changes}; none of {tally}, does so; mend: check the others"
    named = ", ".join(f"{name!r} ({alone[name]:.2e})" for name in wrong[:SHOWN_GROUPS])
    more = f" and {len(wrong) - SHOWN_GROUPS} more" if len(wrong) > SHOWN_GROUPS else ""
    first = spec.by_name[wrong[0]]
    slots = [f"{slot.tensor} dim {slot.dim}" for slot in first.slots]
    listed = ", ".join(slots[:SHOWN_TENSORS]) + (" …" if len(slots) > SHOWN_TENSORS else "")
    return (
        f"{changes}; moved alone, these groups do so: {named}{more}; {first.name!r} has {listed}; mend: give it a slot "
        "in every tensor that makes or reads its units, in the right place, or leave the group out"
    )
