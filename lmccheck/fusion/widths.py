"""Two permutation specs that may differ in nothing but the sizes of their groups: compared, and refused otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from lmccheck.errors import UnsupportedArchitecture
from lmccheck.symmetry.discover import Traced
from lmccheck.symmetry.slots import Piece, UnitGroup
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.trace import op_name

MEND = "mend: fuse networks that differ in nothing but hidden widths"


def require_alike(a: PermutationSpec, b: PermutationSpec, nested: set[str]) -> None:
    """Raise UnsupportedArchitecture unless two specs agree in everything but the sizes of groups not nested."""
    for mine, other, whose, others in ((a, b, "a", "b"), (b, a, "b", "a")):
        for name in mine.shapes:
            if name not in other.shapes:
                raise UnsupportedArchitecture(
                    f"fuse: tensor {name!r} is in {whose} and not in {others}, expected the same tensors; {MEND}"
                )
        for group in mine.groups:
            if group.name not in other.by_name:
                raise UnsupportedArchitecture(
                    f"fuse: group {group.name!r} ({group.size} units) of {whose} is none in {others}, expected the "
                    f"same groups (a width of one has none); {MEND}"
                )
    for name in a.tied:
        if a.tied[name] != b.tied.get(name):
            raise UnsupportedArchitecture(
                f"fuse: tensor {name!r} is one with {a.tied[name]!r} in a and with {b.tied.get(name)!r} in b, expected "
                f"the same ties; {MEND}"
            )
    for group in a.groups:
        twin = b.by_name[group.name]
        if group.within != twin.within:
            raise UnsupportedArchitecture(
                f"fuse: group {group.name!r} lies within {list(group.within)} in a and {list(twin.within)} in b, "
                f"expected the same nesting; {MEND}"
            )
        if group.name in nested and (group.size, group.copies) != (twin.size, twin.copies):
            raise UnsupportedArchitecture(
                f"fuse: group {group.name!r} has {group.copies} × {group.size} units in a and {twin.copies} × "
                f"{twin.size} in b; heads and groups inside units are only permuted, expected equal sizes; mend: fuse "
                "networks with equally many heads of equal width"
            )
        if (used := _uses(group)) != (used_b := _uses(twin)):
            tensor, dim, _ = sorted((used - used_b) or (used_b - used))[0]
            raise UnsupportedArchitecture(
                f"fuse: group {group.name!r} uses dimension {dim} of tensor {tensor!r} otherwise in a than in b, "
                f"expected the same slots; {MEND}"
            )
    for name, shape in a.shapes.items():
        _require_same_layout(name, shape, b.shapes[name], a.layouts.get(name, {}), b.layouts.get(name, {}))


def _uses(group: UnitGroup) -> Counter[tuple[str, int, str]]:
    return Counter((slot.tensor, slot.dim, slot.role) for slot in group.slots)


def _require_same_layout(
    name: str,
    shape_a: tuple[int, ...],
    shape_b: tuple[int, ...],
    layout_a: Mapping[int, tuple[Piece, ...]],
    layout_b: Mapping[int, tuple[Piece, ...]],
) -> None:
    """Raise UnsupportedArchitecture unless a tensor differs in nothing but the sizes of the groups in it."""
    if len(shape_a) != len(shape_b):
        raise UnsupportedArchitecture(
            f"fuse: tensor {name!r} has shape {shape_a} in a and {shape_b} in b, expected equally many dimensions; "
            f"{MEND}"
        )
    for dim, sizes in enumerate(zip(shape_a, shape_b, strict=True)):
        pieces_a, pieces_b = layout_a.get(dim, ()), layout_b.get(dim, ())
        if _kinds(pieces_a) != _kinds(pieces_b):
            raise UnsupportedArchitecture(
                f"fuse: dimension {dim} of tensor {name!r} holds other groups, or holds them otherwise, in a "
                f"({sizes[0]}) than in b ({sizes[1]}), expected one layout; {MEND}"
            )
        rest = [len(unheld(pieces, size)) for pieces, size in zip((pieces_a, pieces_b), sizes, strict=True)]
        if rest[0] != rest[1]:
            raise UnsupportedArchitecture(
                f"fuse: dimension {dim} of tensor {name!r} has {rest[0]} positions in a and {rest[1]} in b that belong "
                f"to no group of hidden units, expected equally many; {MEND}, inputs and outputs alike"
            )


def _kinds(pieces: Sequence[Piece]) -> list[list[str | int]]:
    """Return what the pieces of a dimension are made of: names of groups, sizes of what no group moves."""
    return [[part.group or part.size for part in piece.parts] for piece in pieces]


def twofold_tensors(derived: Traced) -> set[str]:
    """Return the stored tensors that the graph reads in two ways, as tied weights are: a table, and a layer."""
    traced = derived.trace
    uses: dict[str, set[tuple[str, int]]] = {}
    for node in traced.graph.nodes:
        for place, argument in enumerate(node.args):
            if isinstance(argument, fx.Node) and argument.op == "placeholder":
                holder = traced.placeholders[argument.name]
                if holder.stored and node.op != "output":
                    name = traced.tied.get(holder.target, holder.target)
                    uses.setdefault(name, set()).add((op_name(node.target), place))
    return {name for name, found in uses.items() if len(found) > 1}


def require_same_use(a: PermutationSpec, b: PermutationSpec, twofold: set[str]) -> None:
    """Raise UnsupportedArchitecture where a tensor would have to be averaged and summed at once."""
    for group in a.groups:
        twin = b.by_name[group.name]
        tied = next((s.tensor for s in group.slots if s.role == "consumer" and s.tensor in twofold), None)
        if tied is not None and group.size != twin.size:
            raise UnsupportedArchitecture(
                f"fuse: group {group.name!r} has {group.size} units in a and {twin.size} in b, and tensor {tied!r} "
                "both makes and reads them (tied weights): it cannot be averaged and summed at once; expected equal "
                "sizes; mend: untie the weights"
            )


def unheld(pieces: Sequence[Piece], size: int) -> Tensor:
    """Return the positions of a dimension that no piece holds, in order."""
    free = torch.ones(size, dtype=torch.bool)
    for piece in pieces:
        free[piece.positions().reshape(-1)] = False
    return free.nonzero()[:, 0]
