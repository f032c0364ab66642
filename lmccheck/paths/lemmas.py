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

    def path(self) -> Path:
        """Return what was walked."""
        return Path(tuple(self.points), tuple(self.segments), self.structure.trace.tied)


def fall(structure: Structure, theta: State, dropped: Mapping[int, Dropped], form: str) -> tuple[Path, Slots]:
    """Lemma 1: from θ to its dropped version θ_1, and the slots in which that lives; only a, b and c moves.

    ``dropped`` holds θ_i for every level. ``form``: ``paper`` (4d − 6 segments) or ``short`` (2d − 3). After the m-th a
    move the network computes θ_{d−m}; every other segment is constant.
    """
    walk = Walk(structure, [dict(theta)])
    last = len(structure.levels) - 1
    names = [level[0] for level in structure.levels]
    slots = {names[last]: dropped[last].keep[names[last]]}
    walk.go("a", f"drop units of {names[last]}", _head_of(structure, walk.here, dropped[last].weights, {}))
    for level in range(last - 1, -1, -1):
        (_fall_short if form == "short" else _fall_paper)(walk, names, level, dropped[level], slots)
        slots[names[level]] = dropped[level].keep[names[level]]
    if form != "short":
        walk.go("b", "clear dropped units", cleared(structure, walk.here, _dead(structure, slots)))
    return walk.path(), slots


def _fall_short(walk: Walk, names: list[str], level: int, goal: Dropped, slots: Slots) -> None:
    """Drop one more level by writing its network into free slots and moving the head there (math: 2d − 3)."""
    structure, above = walk.structure, names[level + 1 :]
    places = {g: (goal.keep[g], _free(structure, g, slots[g], len(goal.keep[g]))) for g in above}
    columns = {**places, names[level]: (goal.keep[names[level]], goal.keep[names[level]])}
    free = f"write the network without half of {names[level]} into free units"
    walk.go("b", free, written(structure, walk.here, goal.weights, places, columns))
    walk.go("a", f"drop units of {names[level]}", _head_of(structure, walk.here, goal.weights, columns))
    slots.update({g: places[g][1] for g in above})


def _fall_paper(walk: Walk, names: list[str], level: int, goal: Dropped, slots: Slots) -> None:
    """Drop one more level as in Figure 1: a copy below, the head to it, a copy above, the head back."""
    structure, above = walk.structure, names[level + 1 :]
    for g in above:
        if len(goal.keep[g]) != len(slots[g]):
            raise LmcError(
                f"dropout_path: {len(goal.keep[g])} units of {g} are kept at one level and {len(slots[g])} at another; "
                "the paper's form needs as many at each; mend: form = 'short'"
            )
    same = {names[level]: (goal.keep[names[level]], goal.keep[names[level]])}
    below = {g: (goal.keep[g], _free(structure, g, slots[g], len(slots[g]))) for g in above}
    top = {g: (goal.keep[g], slots[g]) for g in above}
    empty = cleared(structure, walk.here, {g: structure.others(g, slots[g]) for g in above})
    copy = written(structure, empty, goal.weights, below, {**below, **same})
    walk.go("b", f"write the network without half of {names[level]} into free units", copy)
    head = _head_of(structure, walk.here, goal.weights, {**below, **same})
    walk.go("a", f"drop units of {names[level]}", head)
    walk.go("b", "write it into the kept units too", written(structure, walk.here, goal.weights, top, {**top, **same}))
    twins = {g: torch.stack([top[g][1], below[g][1]], 1) for g in above}
    walk.go("c", "read the kept units again", _head_of(structure, walk.here, goal.weights, {**top, **same}), twins)


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
    pick = _near if form == "short" else _lowest
    first = {g: (target[g], pick(structure, g, alive[g], target[g])) for g in structure.groups}
    walk.go("b", f"write {whose}'s kept units into free ones", written(structure, walk.here, end, first, first))
    walk.go("a", f"go over to {over}", _head_of(structure, walk.here, end, first))
    held = {g: units for g, (_, units) in first.items()}
    goals = {g: units for g, (units, _) in first.items()}
    if form == "short":
        moves = {g: _differing(held[g], goals[g]) for g in structure.groups}
        if any(len(here) for here, _ in moves.values()):
            empty = cleared(structure, walk.here, _dead(structure, held))
            walk.go("b", "copy units to where they belong", copied(structure, empty, moves))
            _switch(walk, moves)
    else:
        walk.go("b", "clear the old units", cleared(structure, walk.here, _dead(structure, held)))
        between = {g: _stopover(structure, g, held[g], goals[g]) for g in structure.groups}
        for here, there in ((held, between), (between, goals)):
            moves = {g: _differing(here[g], there[g]) for g in structure.groups}
            walk.go("b", "copy units towards where they belong", copied(structure, walk.here, moves))
            _switch(walk, moves)
    walk.go("b", f"give the other units {whose}'s incoming weights", end)


def _switch(walk: Walk, moves: Places) -> None:
    twins = {g: torch.stack([here, there], 1) for g, (here, there) in moves.items() if len(here)}
    walk.go("c", "read the copies", switched(walk.structure, walk.here, moves), twins)


def _head_of(structure: Structure, state: State, source: State, columns: Places) -> dict[str, Tensor]:
    return written(structure, state, source, {}, columns, head=True)


def _dead(structure: Structure, alive: Slots) -> Slots:
    return {group: structure.others(group, units) for group, units in alive.items()}


def _free(structure: Structure, group: str, taken: Tensor, count: int) -> Tensor:
    """Return the first ``count`` units that are not taken."""
    free = structure.others(group, taken)
    if len(free) < count:
        raise LmcError(
            f"path: {len(taken)} of {structure.sizes[group]} units of {group} are kept and {count} more needed; mend: "
            "keep at most half"
        )
    return free[:count]


def _lowest(structure: Structure, group: str, taken: Tensor, target: Tensor) -> Tensor:
    return _free(structure, group, taken, len(target))


def _near(structure: Structure, group: str, taken: Tensor, target: Tensor) -> Tensor:
    """Return free units for ``target``, each in its own place where that is free."""
    at_home = ~torch.isin(target, taken)
    units = target.clone()
    units[~at_home] = _free(structure, group, torch.cat([taken, target[at_home]]), int((~at_home).sum()))
    return units


def _stopover(structure: Structure, group: str, held: Tensor, goal: Tensor) -> Tensor:
    """Return where units go first: to their goal where it is free, else to a unit that is neither held nor a goal."""
    waits = torch.isin(goal, held) & (goal != held)
    units = goal.clone()
    units[waits] = _free(structure, group, torch.unique(torch.cat([held, goal])), int(waits.sum()))
    return units


def _differing(here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    moved = here != there
    return here[moved], there[moved]
