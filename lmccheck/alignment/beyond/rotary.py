"""The planes that rotary positions turn in queries and keys (Su et al. 2021), and the maps that commute with them.

With the two coordinates of a plane as one complex number, positions multiply query and key j by e^(iθ), and their
product is Re(Σ_j q̄_j·k_j). Keys times any c_j and queries times 1/c̄_j therefore compute the same; all queries that
share a key share its c. Which coordinates make a plane is proposed from where the heads' units lie, and verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, combinations, pairwise
from math import pi

import torch
from torch import Tensor

from lmccheck.symmetry.discover import Traced
from lmccheck.symmetry.sites import Site
from lmccheck.symmetry.slots import Part, Piece, Slot, UnitGroup

COORDINATES = "coordinates"  # of a head, as the part of a piece
NEAR = 4  # layers between queries and keys
MOST_ALONE = 512  # coordinates of a head that is alone


@dataclass(frozen=True)
class Planes:
    """Which coordinates of a head make a plane, ``first[j]`` and ``second[j]``, and what may be done with planes.

    They are turned and ``scaled``; a norm of queries and keys leaves their turns alone, and one with gains, which are
    not ``turned`` along, half turns: factors of -1.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    scaled: bool = True
    turned: bool = True

    @property
    def count(self) -> int:
        """How many planes a head has."""
        return len(self.first)

    def matrix(self, factors: Tensor) -> Tensor:
        """Return the maps (copies, size, size) that multiply plane j by ``factors[:, j]``, (copies, count) complex."""
        x, y = list(self.first), list(self.second)
        result = torch.zeros(len(factors), 2 * self.count, 2 * self.count, dtype=factors.real.dtype)
        result[:, x, x] = result[:, y, y] = factors.real
        result[:, y, x] = factors.imag
        result[:, x, y] = -factors.imag
        return result

    def drawn(self, copies: int) -> Tensor:
        """Return random factors, (copies, count) complex128, the same every time."""
        generator = torch.Generator().manual_seed(self.count)
        noise = torch.rand(2, copies, self.count, generator=generator, dtype=torch.float64)
        noise[1, :, :2] = torch.tensor([0.9, 0.3])[: self.count]  # signs that are all alike would fit any planes
        factors = torch.polar(0.5 + noise[0] if self.scaled else torch.ones_like(noise[0]), 2 * pi * noise[1])
        return factors if self.turned else -torch.where(noise[1] < 0.5, -1.0, 1.0).to(factors)

    def nearest(self, scale: Tensor, direction: Tensor) -> Tensor:
        """Return the factors, (…, planes), of so much ``scale`` that turn nearest to a complex ``direction``."""
        if self.turned:
            return torch.polar(scale, direction.angle())
        return torch.where(direction.real < 0, -1.0, 1.0).to(direction)

    def products(self, cross: Tensor) -> Tensor:
        """Return Σ a_j·b̄_j per plane, (..., count) complex, of Σ a·bᵀ over coordinates, (..., size, size)."""
        x, y = list(self.first), list(self.second)
        real = cross[..., x, x] + cross[..., y, y]
        return torch.complex(real, cross[..., y, x] - cross[..., x, y])

    def lengths(self, squares: Tensor) -> Tensor:
        """Return Σ |a_j|² per plane of Σ a² per coordinate, (..., size)."""
        return squares[..., list(self.first)] + squares[..., list(self.second)]


@dataclass(frozen=True)
class _Side:
    """Queries or keys: the (tensor, dimension) they lie in, the parts of heads before them, and their coordinates.

    ``places`` are those of the first head, ascending; ``ends`` how many there are up to the end of each piece.
    """

    tensors: tuple[tuple[str, int], ...]
    heads: tuple[Part, ...]
    places: tuple[int, ...]
    ends: tuple[int, ...]

    def slots(self, low: int, high: int) -> tuple[Slot, ...]:
        """Return the slots of some of the coordinates; none where they are not equally far apart."""
        chosen = self.places[low:high]
        steps = {after - before for before, after in pairwise(chosen)}
        if len(steps) != 1:
            return ()
        piece = Piece(chosen[0], (*self.heads, Part(COORDINATES, len(chosen), steps.pop())))
        at = len(self.heads)
        return tuple(Slot(name, dim, "producer", True, False, piece, at) for name, dim in self.tensors)


Proposal = tuple[UnitGroup, tuple[Slot, ...], tuple[Slot, ...], Planes]


def rotary_proposals(derived: Traced) -> Iterator[tuple[str, Iterator[Proposal]]]:
    """Yield, by the name of the heads, how their queries and keys may be cut into planes, the likeliest first.

    Queries and keys are what heads own of two tensors, or of two parts of one, and is told apart. A key that all heads
    share is what a layer close by makes and nothing moves; so are both where there is one head.
    """
    lone = _lone_sides(derived)
    for group in derived.spec.groups:
        if group.within:
            continue
        sides = _sides(group)
        if len(sides) == 1:
            near = _near([(sides[0], side) for side, _ in lone], derived)
            shared = _of_sides(group.name, None, near)
            yield group.name, chain(shared, _of_sides(group.name, group, _halves(sides)))
        elif sides:
            yield group.name, _of_sides(group.name, group, _near(combinations(sides, 2), derived))
    for (one, source), (two, other) in combinations(lone, 2):
        if source == other and len(one.places) == len(two.places) <= MOST_ALONE:
            name = one.tensors[0][0].rpartition(".")[0]
            yield name, _of_sides(name, None, [(one, two)])


def _of_sides(name: str, group: UnitGroup | None, pairs: Iterable[tuple[_Side, _Side]]) -> Iterator[Proposal]:
    """Yield how pairs of queries and keys may be cut into planes; those of a ``group`` differ from head to head.

    Coordinate j goes with j + h/2 (Llama) or 2j with 2j + 1, of all there are or of the first or last ones.
    """
    within, copies = ((group.name,), group.size) if group is not None else ((), 1)
    for one, two in pairs:
        size = len(one.places)
        cuts = sorted({0, *one.ends, *two.ends})
        spans = sorted(((a, b) for a, b in combinations(cuts, 2) if 0 in (a, size - b)), key=lambda s: s[0] - s[1])
        for low, high in spans:
            forward, backward, half = one.slots(low, high), two.slots(low, high), (high - low) // 2
            if not forward or not backward or (high - low) % 2:
                continue
            units = UnitGroup(f"{name} planes", 2 * half, (*forward, *backward), within, copies)
            for free in ((True, True), (False, True), (False, False)):
                yield units, forward, backward, Planes((*range(half),), (*range(half, 2 * half),), *free)
                yield units, forward, backward, Planes((*range(0, 2 * half, 2),), (*range(1, 2 * half, 2),), *free)


def _lone_sides(derived: Traced) -> list[tuple[_Side, str]]:
    """Return what layers make that nothing moves, with what they read: keys that heads share, or those of one head."""
    found = []
    for layer in derived.layers:
        shapes, layouts = derived.spec.shapes, derived.spec.layouts
        tensors = [(layer.weight, layer.out), *([(layer.bias, 0)] if layer.bias else [])]
        free = []
        for name, dim in tensors:
            moved = {int(p) for piece in layouts.get(name, {}).get(dim, ()) for p in piece.positions().reshape(-1)}
            free.append(tuple(place for place in range(shapes[name][dim]) if place not in moved))
        if layer.window is None and free[0] and len(set(free)) == 1:
            found.append((_Side(tuple(tensors), (), free[0], (len(free[0]),)), layer.source))
    return found


def _near(pairs: Iterable[tuple[_Side, _Side]], derived: Traced) -> list[tuple[_Side, _Side]]:
    """Return the pairs of as many coordinates that are made less than NEAR layers apart, the nearest first."""
    at = {layer.weight: k for k, layer in reversed([*enumerate(derived.layers)])}
    far = float(len(at) + NEAR)

    def apart(pair: tuple[_Side, _Side]) -> float:
        one, two = (min((at.get(name, far) for name, _ in side.tensors), default=far) for side in pair)
        return abs(one - two)

    alike = [pair for pair in pairs if len(pair[0].places) == len(pair[1].places) and apart(pair) < NEAR]
    return sorted(alike, key=apart)


def _sides(group: UnitGroup) -> list[_Side]:
    """Return what units of a group own of learned tensors and is told apart, per module and parts before it."""
    found: dict[tuple[str, tuple[Part, ...]], dict[tuple[str, int], list[list[int]]]] = {}
    for slot in group.slots:
        parts = slot.piece.parts
        depth = next((k for k, part in enumerate(parts) if part.group is None), len(parts))
        if slot.role != "producer" or not slot.learned or depth == len(parts) or any(p.group for p in parts[depth:]):
            continue
        first = slot.piece.positions()[(0,) * depth].reshape(-1).sort().values
        where = slot.tensor.rpartition(".")[0], parts[:depth]
        found.setdefault(where, {}).setdefault((slot.tensor, slot.dim), []).append(first.tolist())
    sides = []
    for (_, heads), tensors in found.items():
        alike = [sorted(pieces) for pieces in tensors.values()]
        if all(pieces == alike[0] for pieces in alike):
            places = sorted(place for piece in alike[0] for place in piece)
            lasts = [max(piece) for piece in alike[0]]
            ends = [k for k, place in enumerate(places, 1) if place in lasts]
            sides.append(_Side(tuple(tensors), heads, tuple(places), tuple(ends)))
    return sides


def _halves(sides: list[_Side]) -> Iterator[tuple[_Side, _Side]]:
    """Yield queries and keys of one tensor: the first and the second half of what is told apart."""
    for side in sides:
        half = len(side.places) // 2
        if half in side.ends:
            first = tuple(end for end in side.ends if end <= half)
            second = tuple(end - half for end in side.ends if end > half)
            yield (
                _Side(side.tensors, side.heads, side.places[:half], first),
                _Side(side.tensors, side.heads, side.places[half:], second),
            )


def site_of(slots: tuple[Slot, ...], derived: Traced) -> Site | None:
    """Return where a run shows the coordinates that some slots hold; None where no layer makes them."""
    for layer in derived.layers:
        for slot in slots:
            if (slot.tensor, slot.dim) == (layer.weight, layer.out):
                return Site(layer.node, layer.units, slot.piece, False)
    return None
