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
                raise _refused(f"tensor {name!r} is in {whose} and not in {others}", "the same tensors")
        for group in mine.groups:
            if group.name not in other.by_name:
                what = f"group {group.name!r} ({group.size} units) of {whose} is none in {others}"
                raise _refused(what, "the same groups (a width of one has none)")
    for name, tie in a.tied.items():
        if tie != b.tied.get(name):
            what = f"tensor {name!r} is one with {tie!r} in a and with {b.tied.get(name)!r} in b"
            raise _refused(what, "the same ties")
    for group in a.groups:
        twin = b.by_name[group.name]
        if group.within != twin.within:
            what = f"group {group.name!r} lies within {list(group.within)} in a and {list(twin.within)} in b"
            raise _refused(what, "the same nesting")
        if group.name in nested and (group.size, group.copies) != (twin.size, twin.copies):
            raise _refused(
                f"group {group.name!r} has {group.copies} × {group.size} units in a and {twin.copies} × {twin.size} in "
                "b; heads and groups inside units are only permuted",
                "equal sizes",
                "mend: fuse networks with equally many heads of equal width",
            )
        if (used := _uses(group)) != (used_b := _uses(twin)):
            tensor, dim, _ = sorted((used - used_b) or (used_b - used))[0]
            what = f"group {group.name!r} uses dimension {dim} of tensor {tensor!r} otherwise in a than in b"
            raise _refused(what, "the same slots")
    for name, shape in a.shapes.items():
        _require_same_layout(name, shape, b.shapes[name], a.layouts.get(name, {}), b.layouts.get(name, {}))


def _refused(what: str, expected: str, mend: str = MEND) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(f"fuse: {what}, expected {expected}; {mend}")


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
        what = f"tensor {name!r} has shape {shape_a} in a and {shape_b} in b"
        raise _refused(what, "equally many dimensions")
    for dim, sizes in enumerate(zip(shape_a, shape_b, strict=True)):
        pieces = layout_a.get(dim, ()), layout_b.get(dim, ())
        if _parts(pieces[0]) != _parts(pieces[1]):
            what = f"dimension {dim} of tensor {name!r} holds other groups, or holds them otherwise, in a ({sizes[0]})"
            raise _refused(f"{what} than in b ({sizes[1]})", "one layout")
        rest = [len(unheld(several, size)) for several, size in zip(pieces, sizes, strict=True)]
        if rest[0] != rest[1]:
            what = f"dimension {dim} of tensor {name!r} has {rest[0]} positions in a and {rest[1]} in b that belong to"
            raise _refused(f"{what} no group of hidden units", "equally many", f"{MEND}, inputs and outputs alike")


def _parts(pieces: Sequence[Piece]) -> list[list[str | int]]:
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
            raise _refused(
                f"group {group.name!r} has {group.size} units in a and {twin.size} in b, and tensor {tied!r} both "
                "makes and reads them (tied weights): it cannot be averaged and summed at once",
                "equal sizes",
                "mend: untie the weights",
            )


def unheld(pieces: Sequence[Piece], size: int) -> Tensor:
    """Return the positions of a dimension that no piece holds, in order."""
    free = torch.ones(size, dtype=torch.bool)
    for piece in pieces:
        free[piece.positions().reshape(-1)] = False
    return free.nonzero()[:, 0]
