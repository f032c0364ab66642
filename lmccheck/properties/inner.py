"""What a verdict about dropped units says of those that are left whole: in its row, its notes and its details."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmccheck.symmetry.structure import Structure

MOST = 2  # things left whole that a note gives the reason of
NO_PATH = "no path between networks follows from it"


def known_of(structure: Structure, known: str) -> str:
    """Return how a value about dropped units is known: ``known``, and what of the network it leaves out."""
    if not structure.inner:
        return known
    inner = f"{structure.inner}, {shown_share(structure.share)} of the numbers droppable"
    return inner if known == "exact" else f"{inner}; {known}"


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


def inner_facts(structure: Structure) -> dict[str, Any]:
    """Return what details say of what is left whole; JSON-able."""
    return {"whole": dict(structure.whole), "reread": dict(structure.reread), "dropped_share": structure.share}
