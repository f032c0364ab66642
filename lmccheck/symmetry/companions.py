"""Which factors are found together: one that never occurs without another may depend on where in that one it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lmccheck.symmetry.axes import Axis, Factor, expand, segments

Families = dict[Factor, dict[Factor, dict[int, Factor]]]  # factor -> picked axis -> index -> what it becomes there


def companions(records: Sequence[Sequence[Axis]], families: Families) -> dict[Factor, set[Factor]]:
    """Return, for every leaf, the leaves that are present (once, and whole) in every record it occurs in.

    A record is a value's axes. What a leaf becomes where a position of a companion is picked has companions too.
    """
    together: dict[Factor, set[Factor]] = {}

    def meet(leaf: Factor, others: set[Factor]) -> None:
        together[leaf] = together[leaf] & others if leaf in together else set(others)
        for picked, by_index in families.get(leaf, {}).items():
            if picked in others:
                for index, node in by_index.items():
                    inside = {families.get(c, {}).get(picked, {}).get(index, c).find() for c in others} - {picked}
                    for inner in expand([node]):
                        meet(inner, inside | set(expand([node])) - {inner})

    def visit(axis: Sequence[Factor], around: Counter[Factor]) -> None:
        flat = expand(axis)
        here = [factor for factor in flat if factor.kind == "leaf"]
        seen = around + Counter(here)
        once = {leaf for leaf, times in seen.items() if times == 1}
        for leaf in here:
            meet(leaf, once - {leaf})
        for factor in flat:
            if factor.kind == "sum":
                for segment in segments(factor):
                    visit([segment], seen)

    for record in records:
        tops = [Counter(factor for factor in expand(axis) if factor.kind == "leaf") for axis in record]
        everything = sum(tops, Counter())
        for axis, own in zip(record, tops, strict=True):
            visit(axis, everything - own)
    return together


def leaves(axis: Sequence[Factor]) -> list[Factor]:
    """Return the leaves an axis is made of, those in the segments of sums included."""
    found: list[Factor] = []
    for part in expand(axis):
        if part.kind == "sum":
            found.extend(leaf for segment in segments(part) for leaf in leaves([segment]))
        else:
            found.append(part)
    return found
