"""Theorems 1 to 3: paths through dropped versions of two networks, one through a narrow network of the user's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmccheck.dropping.dropped import Dropped
from lmccheck.dropping.edit import cleared, written
from lmccheck.errors import LmcError
from lmccheck.paths.lemmas import Slots, Walk, cross, fall
from lmccheck.paths.path import Path
from lmccheck.symmetry.capabilities import refusal
from lmccheck.symmetry.structure import State, Structure

Falls = Mapping[int, Dropped]  # θ_i of one endpoint, for every level


def require_sequence(structure: Structure) -> None:
    """Raise UnsupportedArchitecture unless the levels can be dropped one after the other."""
    if not structure.sequential:
        circle = next((level for level in structure.levels if len(level) > 1), structure.levels[0])
        units = f"the units of {', '.join(circle)}"
        raise refusal(
            "dropout_path",
            f"{units} feed one another (as in a residual stream or a gate), so they cannot be dropped layer by layer",
        )


def dropout_path_between(
    structure: Structure, theta_a: State, theta_b: State, a: Falls, b: Falls, form: str = "paper"
) -> Path:
    """Return the path of Theorem 1: a fall to A_1, a crossing to B_1, a rise to θ_B.

    8d − 4 segments in the paper's form, at most 4d − 1 in the short one, of kinds a, b and c only: the maximum loss is
    that of one of the networks θ_A, A_i, B_i, θ_B. Source: Kuditipudi et al. 2019, Theorem 1.
    """
    require_sequence(structure)
    down, alive = fall(structure, theta_a, a, form)
    up, target = fall(structure, theta_b, b, form)
    walk = Walk(structure, list(down.points), list(down.segments))
    cross(walk, alive, up.points[-1], target, form)
    return walk.path().then(up.reversed())


def ten_segments(
    structure: Structure, theta_a: State, theta_b: State, a: Dropped, b: Dropped, form: str = "paper"
) -> Path:
    """Return the path θ_A → A_1 → B_1 → θ_B: kinds d babbcbcb d, or dbabcbd (dbabd) with ``form = "short"``.

    ``a`` and ``b`` are the networks with units dropped from the first level on. Only the two d segments, between each
    network and its dropped version, are not known in advance. Source: Kuditipudi et al. 2019, Theorem 2.
    """
    walk = Walk(structure, [dict(theta_a)])
    walk.go("d", "drop units of a", a.weights)
    cross(walk, dict(a.keep), b.weights, dict(b.keep), form)
    walk.go("d", "take up b's dropped units again", theta_b)
    return walk.path()


def path_through(
    structure: Structure, theta_a: State, theta_b: State, a: Dropped, b: Dropped, star: State, narrow: Structure
) -> Path:
    """Return the path of Theorem 3 through a narrow network θ*: 13 segments, kinds d babbcbcb bab d.

    ``a`` and ``b`` may keep as many units as leave room for those of θ*. Source: Kuditipudi et al. 2019, Theorem 3.
    """
    walk = Walk(structure, [dict(theta_a)])
    walk.go("d", "drop units of a", a.weights)
    slots = {g: _room(structure, g, b.keep[g], _width(structure, narrow, g)) for g in structure.groups}
    embedded = _embedded(structure, b.weights, star, narrow, slots)
    cross(walk, dict(a.keep), embedded, slots, "paper", whose="θ*")
    kept = {g: (units, units) for g, units in b.keep.items()}
    walk.write("write b's kept units beside θ*", b.weights, kept, kept)
    walk.head("go over to b's dropped network", b.weights, kept)
    walk.go("b", "give the other units b's incoming weights", b.weights)
    walk.go("d", "take up b's dropped units again", theta_b)
    return walk.path()


def require_alike(structure: Structure, narrow: Structure) -> None:
    """Raise LmcError unless a narrow network has the same tensors, which differ in the numbers of units alone."""
    for name in sorted({*structure.trace.tied.values(), *narrow.trace.tied.values()} - structure.inert - narrow.inert):
        wide, small = structure.shapes.get(name), narrow.shapes.get(name)
        why = None
        if wide is None or small is None:
            why = f"tensor {name!r} is only in {'θ*' if wide is None else 'the pair'}"
        elif (name in structure.head) != (name in narrow.head):
            why = f"tensor {name!r} belongs to the last layer of one of the two"
        else:
            blocks = [(*s.rows.get(name, ()), *s.columns.get(name, ())) for s in (structure, narrow)]
            dims = {block.dim for block in blocks[0]}
            inside = [[block.positions.shape[1] for block in several] for several in blocks]
            same = [n for d, n in enumerate(wide) if d not in dims] == [n for d, n in enumerate(small) if d not in dims]
            if dims != {block.dim for block in blocks[1]} or inside[0] != inside[1] or not same:
                why = f"tensor {name!r} has shape {small}, in the pair {wide}"
        if why is not None:
            raise LmcError(
                f"dropout_path: through: {why}; expected the same network with fewer units; mend: give a narrower "
                "network of the same layers"
            )


def _width(structure: Structure, narrow: Structure, group: str) -> int:
    """Return how many units θ* has in what is a group of the wide network."""
    for name, blocks in structure.rows.items():
        for k, block in enumerate(blocks):
            if block.group == group and name in narrow.rows and k < len(narrow.rows[name]):
                return len(narrow.rows[name][k].positions)
    raise LmcError(
        f"dropout_path: θ* has no units of group {group!r}; mend: give a narrower network of the same layers"
    )


def _room(structure: Structure, group: str, taken: Tensor, count: int) -> Tensor:
    free = structure.others(group, taken)
    if count > len(free):
        raise LmcError(
            f"dropout_path: θ* has {count} units of {group}, only {len(free)} are free; mend: a narrower θ*, or a "
            "smaller keep"
        )
    return free[:count]


def _embedded(structure: Structure, like: State, star: State, narrow: Structure, slots: Slots) -> dict[str, Tensor]:
    """Return a wide network that computes θ*: its units in ``slots``, all other rows and columns zero."""
    base = cleared(structure, like, structure.keep_all())
    places = {g: (torch.arange(len(units)), units) for g, units in slots.items()}
    return written(structure, base, star, places, places, head=True, origin=narrow)
