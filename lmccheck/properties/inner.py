"""What a verdict about dropped units says of those that are left whole: in its row, its notes and its details."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmccheck.explain import of_endpoint
from lmccheck.shown import some

if TYPE_CHECKING:
    from lmccheck.network.view import View
    from lmccheck.symmetry.structure import Structure

MOST = 2  # things left whole that a note gives the reason of
NO_PATH = "no path between networks follows from it"


Idle = Mapping[str, Sequence[str]]  # per endpoint, the groups that have no effect (``dropping.idle``)


def known_of(structure: Structure, known: str, idle: Idle) -> str:
    """Return how a value about dropped units is known: ``known``, what it leaves out, what cannot but be stable."""
    if structure.inner:
        inner = f"{structure.inner}, {shown_share(structure.share)} of the numbers droppable"
        known = inner if known == "exact" else f"{inner}; {known}"
    groups = len({group for of_end in idle.values() for group in of_end})
    return f"{known}; {groups} of {len(structure.groups)} groups without effect" if groups else known


def idle_notes(idle: Idle) -> list[str]:
    """Say which units pass whatever is dropped of them, since nothing depends on them."""
    return [
        f"{of_endpoint(end, '', ': ')}dropping all of {some(map(repr, groups))} changes no loss (what they give is "
        "multiplied by 0, or they are never active): that they can be dropped says nothing"
        for end, groups in idle.items()
        if groups
    ]


def shown_share(share: float) -> str:
    """Return a share in percent, rounded towards the middle: neither none nor all unless it is.

    >>> shown_share(0.0), shown_share(0.001), shown_share(0.194), shown_share(0.9979), shown_share(1.0)
    ('0%', '<1%', '19%', '>99%', '100%')
    """
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def inner_notes(structure: Structure) -> list[str]:
    """Say what is left whole and why, how much of the network is not, and that no path follows from it."""
    again = [
        f"units of {group!r} are dropped wherever tensor {tensor!r} is read, as often as it is; {NO_PATH}"
        for group, tensor in list(structure.reread.items())[:1]
    ]
    if structure.whole:
        why = [f"{name!r} ({reason})" for name, reason in structure.whole.items()]
        more = f" and {len(why) - MOST} more" if len(why) > MOST else ""
        said = (
            f"left whole: {', '.join(why[:MOST])}{more}; the units that can be dropped hold "
            f"{shown_share(structure.share)} of the numbers, and {NO_PATH}: that takes every hidden unit"
        )
        return [said, *again]
    return again or [f"{NO_PATH} here: {structure.obstacles[0]}"] if structure.obstacles else []


def inner_facts(view: View, structure: Structure) -> dict[str, Any]:
    """Return what details say of what is left whole, and of what has no effect; JSON-able."""
    from lmccheck.dropping.idle import idle_groups

    whole, reread, without = dict(structure.whole), dict(structure.reread), idle_groups(view, structure)
    return {"whole": whole, "reread": reread, "dropped_share": structure.share, "without_effect": without}
