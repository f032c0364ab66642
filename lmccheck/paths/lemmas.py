"""The building blocks of every path: falling to a half-empty network, and crossing from one to another.

Source: Kuditipudi et al. 2019, Lemma 1 (Figure 1), Lemma 2 and Lemma 4; the short forms are this project's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmccheck.dropping.dropped import Dropped
from lmccheck.dropping.edit import Places, cleared, copied, switched, written
from lmccheck.errors import LmcError
from lmccheck.paths.path import Path, Segment
from lmccheck.symmetry.structure import State, Structure

Slots = dict[str, Tensor]  # per group: the units that are alive, int64


@dataclass
class Walk:
    """A path under construction: where it stands, and how it came there."""

    structure: Structure
    points: list[dict[str, Tensor]]
    segments: list[Segment] = field(default_factory=list)

    @property
    def here(self) -> dict[str, Tensor]:
        """The last breakpoint."""
        return self.points[-1]

    def go(self, kind: str, does: str, state: State, twins: Mapping[str, Tensor] | None = None) -> None:
        """Add one segment."""
        self.points.append(dict(state))
        self.segments.append(Segment(kind, does, dict(twins or {})))

    def write(self, does: str, source: State, rows: Places, columns: Places) -> None:
        """Add a segment that writes rows of ``source`` into units that nothing reads; see ``edit.written``."""
        self.go("b", does, written(self.structure, self.here, source, rows, columns))

    def head(self, does: str, source: State, columns: Places, twins: Mapping[str, Tensor] | None = None) -> None:
        """Add a segment that moves the head to that of ``source``; constant where it goes from ``twins`` to twins."""
        state = written(self.structure, self.here, source, {}, columns, head=True)
        self.go("a" if twins is None else "c", does, state, twins)

    def cleared(self, alive: Slots) -> dict[str, Tensor]:
        """Return the last breakpoint with the rows of all units but those in ``alive`` set to zero, in their groups."""
        dead = {group: self.structure.others(group, units) for group, units in alive.items()}
        return cleared(self.structure, self.here, dead)

    def move(self, does: str, state: State, here: Slots, there: Slots) -> None:
        """Add two segments: units are copied to other places in ``state``, then the copies are read in their stead."""
        moved = {group: here[group] != there[group] for group in here}
        places = {group: (here[group][which], there[group][which]) for group, which in moved.items()}
        self.go("b", does, copied(self.structure, state, places))
        twins = {group: torch.stack(pair, 1) for group, pair in places.items() if len(pair[0])}
        self.go("c", "read the copies", switched(self.structure, self.here, places), twins)

    def path(self) -> Path:
        """Return what was walked."""
        return Path(tuple(self.points), tuple(self.segments), self.structure.trace.tied)


def fall(structure: Structure, theta: State, dropped: Mapping[int, Dropped], form: str) -> tuple[Path, Slots]:
    """Lemma 1: from θ to its dropped version θ_1, and the slots in which that lives; only a, b and c moves.

    ``dropped`` holds θ_i for every level. ``form``: ``paper`` (4d − 6 segments) or ``short`` (2d − 3). After the m-th a
    move the network computes θ_{d−m}; every other segment is constant.
    """
    walk = Walk(structure, [dict(theta)])
    names = [level[0] for level in structure.levels]
    slots = {names[-1]: dropped[len(names) - 1].keep[names[-1]]}
    walk.head(f"drop units of {names[-1]}", dropped[len(names) - 1].weights, {})
    for level in range(len(names) - 2, -1, -1):
        _fall_once(walk, names[level], dropped[level], slots, form)
    if form != "short":
        walk.go("b", "clear dropped units", walk.cleared(slots))
    return walk.path(), slots


def _fall_once(walk: Walk, name: str, goal: Dropped, slots: Slots, form: str) -> None:
    """Drop one more level, ``name``, by writing its network into free units and moving the head there.

    In the paper's form (Figure 1) that network is then written into the kept units too, and the head moved back.
    """
    structure, above = walk.structure, list(slots)
    for g in above if form != "short" else ():
        if len(goal.keep[g]) != len(slots[g]):
            raise LmcError(
                f"dropout_path: {len(goal.keep[g])} units of {g} are kept at one level and {len(slots[g])} at another; "
                "the paper's form needs as many at each; mend: form = 'short'"
            )
    same = {name: (goal.keep[name], goal.keep[name])}
    below = {g: (goal.keep[g], _free(structure, g, slots[g], len(goal.keep[g]))) for g in above}
    start = walk.here if form == "short" else walk.cleared(slots)
    copy = written(structure, start, goal.weights, below, {**below, **same})
    walk.go("b", f"write the network without half of {name} into free units", copy)
    walk.head(f"drop units of {name}", goal.weights, {**below, **same})
    if form == "short":
        slots.update({g: units for g, (_, units) in below.items()})
    else:
        top = {g: (goal.keep[g], slots[g]) for g in above}
        walk.write("write it into the kept units too", goal.weights, top, {**top, **same})
        twins = {g: torch.stack([top[g][1], below[g][1]], 1) for g in above}
        walk.head("read the kept units again", goal.weights, {**top, **same}, twins)
    slots[name] = goal.keep[name]


def cross(walk: Walk, alive: Slots, end: State, target: Slots, form: str, whose: str = "b") -> None:
    """Lemma 2: go from a network alive in some slots to ``end``, alive in ``target``; the loss at most that of either.

    ``form``: ``paper`` (8 segments, b a b b c b c b) or ``short`` (5, or 3 where the slots are disjoint). Needs
    |alive| + |target| ≤ units in every group.
    """
    structure = walk.structure
    over = whose if whose == "θ*" else f"{whose}'s dropped network"
    for group in structure.groups:
        if len(alive[group]) + len(target[group]) > structure.sizes[group]:
            raise LmcError(
                f"path: {len(alive[group])} and {len(target[group])} units of {group} are kept, together more than its "
                f"{structure.sizes[group]}; mend: keep at most half"
            )
    held = {g: _first_places(structure, g, alive[g], target[g], form) for g in structure.groups}
    first = {g: (target[g], held[g]) for g in structure.groups}
    walk.write(f"write {whose}'s kept units into free ones", end, first, first)
    walk.head(f"go over to {over}", end, first)
    empty = walk.cleared(held)
    if form == "short":
        if any(not held[g].equal(target[g]) for g in structure.groups):
            walk.move("copy units to where they belong", empty, held, target)
    else:
        walk.go("b", "clear the old units", empty)
        between = {g: _stopover(structure, g, held[g], target[g]) for g in structure.groups}
        walk.move("copy units towards where they belong", walk.here, held, between)
        walk.move("copy units towards where they belong", walk.here, between, target)
    walk.go("b", f"give the other units {whose}'s incoming weights", end)


def _free(structure: Structure, group: str, taken: Tensor, count: int) -> Tensor:
    """Return the first ``count`` units that are not taken."""
    free = structure.others(group, taken)
    if len(free) < count:
        raise LmcError(
            f"path: {len(taken)} of {structure.sizes[group]} units of {group} are kept and {count} more needed; mend: "
            "keep at most half"
        )
    return free[:count]


def _first_places(structure: Structure, group: str, taken: Tensor, target: Tensor, form: str) -> Tensor:
    """Return free units for ``target``, the first ones; in the short form each in its own place where that is free."""
    at_home = ~torch.isin(target, taken) if form == "short" else torch.zeros(len(target), dtype=torch.bool)
    units = target.clone()
    units[~at_home] = _free(structure, group, torch.cat([taken, target[at_home]]), int((~at_home).sum()))
    return units


def _stopover(structure: Structure, group: str, held: Tensor, goal: Tensor) -> Tensor:
    """Return where units go first: to their goal where it is free, else to a unit that is neither held nor a goal."""
    waits = torch.isin(goal, held) & (goal != held)
    units = goal.clone()
    units[waits] = _free(structure, group, torch.unique(torch.cat([held, goal])), int(waits.sum()))
    return units
