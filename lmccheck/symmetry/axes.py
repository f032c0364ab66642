"""What an axis is made of: sums of products of factors, joined by union-find.

A *factor* is a set of positions that may be permuted together. It is a leaf, or it has been refined into a product
(outer × inner, row-major) or into a sum (segments one after the other). An *axis* of a tensor is a tuple of factors,
outermost first, whose sizes multiply to the axis' length; an axis of length 1 is the empty tuple.

Ops unify factors (two axes are indexed by the same positions) or freeze them (positions are told apart). Everything
here errs to one side only: when two descriptions cannot be reconciled, both are frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod

_ids = count()


@dataclass(frozen=True)
class Reason:
    """Why positions are told apart: the op, what it does to them, and the source line when the trace has it."""

    op: str
    why: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.why} ({self.op}{', ' + self.source if self.source else ''})"


class Factor:
    """A node of the union-find forest; always reach it through ``find``."""

    __slots__ = ("_link", "frozen", "id", "kind", "parts", "size")

    def __init__(self, size: int, frozen: Reason | None = None) -> None:
        self.id = next(_ids)
        self.size = size
        self.frozen = frozen
        self.kind = "leaf"  # leaf | product | sum
        self.parts: tuple[Factor, ...] = ()
        self._link: Factor | None = None

    def find(self) -> Factor:
        """Return the representative of this factor's class."""
        node = self
        while node._link is not None:
            node = node._link
        walker = self
        while walker._link is not None:
            walker._link, walker = node, walker._link
        return node

    def __repr__(self) -> str:
        root = self.find()
        inner = "" if root.kind == "leaf" else f" {root.kind}{root.parts}"
        return f"<{root.id}:{root.size}{'!' if root.frozen else ''}{inner}>"


Axis = tuple[Factor, ...]


def axis_size(axis: Iterable[Factor]) -> int:
    """Return the number of positions of an axis."""
    return prod(factor.size for factor in axis)


def fresh(size: int, frozen: Reason | None = None) -> Axis:
    """Return a new axis of one leaf factor (or the empty axis for length 1)."""
    return () if size == 1 else (Factor(size, frozen),)


def as_factor(axis: Sequence[Factor]) -> Factor:
    """Return one factor standing for a whole axis (a product node when it has several factors)."""
    axis = [factor.find() for factor in axis if factor.size > 1]
    if len(axis) == 1:
        return axis[0]
    node = Factor(axis_size(axis))
    if axis:
        node.kind, node.parts = "product", tuple(axis)
    return node


def expand(axis: Iterable[Factor]) -> list[Factor]:
    """Return the axis with every product replaced by its parts: leaves and sums only, outermost first."""
    flat: list[Factor] = []
    for factor in axis:
        root = factor.find()
        if root.kind == "product":
            flat.extend(expand(root.parts))
        elif root.size > 1:
            flat.append(root)
    return flat


def segments(factor: Factor) -> list[Factor]:
    """Return the segments of a sum, nested sums flattened; a single-element list for anything else."""
    root = factor.find()
    if root.kind != "sum":
        return [root]
    return [piece for part in root.parts for piece in segments(part)]


def freeze(axis: Iterable[Factor], reason: Reason) -> None:
    """Forbid moving any position of the axis; the first reason given to a factor is kept."""
    for factor in axis:
        root = factor.find()
        if root.frozen is None:
            root.frozen = reason
        freeze(root.parts, root.frozen)


def refine_product(factor: Factor, outer: int) -> tuple[Factor, Factor]:
    """Refine a leaf of size outer·inner into a product and return its two factors."""
    root = factor.find()
    parts = (Factor(outer, root.frozen), Factor(root.size // outer, root.frozen))
    root.kind, root.parts = "product", parts
    return parts


def split_at(factor: Factor, position: int, reason: Reason) -> tuple[Factor, Factor] | None:
    """Cut a factor in two segments at ``position`` (0 < position < size); None when no refinement allows the cut."""
    root = factor.find()
    if root.kind == "leaf":
        parts = (Factor(position, root.frozen), Factor(root.size - position, root.frozen))
        root.kind, root.parts = "sum", parts
        return parts
    if root.kind == "sum":
        pieces = segments(root)
        left: list[Factor] = []
        offset = 0
        while pieces and offset + pieces[0].size <= position:
            offset += pieces[0].size
            left.append(pieces.pop(0))
        if offset < position:
            cut = split_at(pieces.pop(0), position - offset, reason)
            if cut is None:
                return None
            left.append(cut[0])
            pieces.insert(0, cut[1])
        return _sum(left), _sum(pieces)
    flat = expand([root])
    inner = flat[1:]
    block = axis_size(inner)
    if position % block:
        return None
    cut = split_at(flat[0], position // block, reason)
    if cut is None:
        return None
    return as_factor([cut[0], *inner]), as_factor([cut[1], *inner])


def concatenate(axes: Sequence[Axis]) -> Axis:
    """Return the axis made of the given axes one after the other."""
    parts = [as_factor(axis) for axis in axes if axis_size(axis) > 0]
    return (_sum(parts),) if axis_size(parts) != 1 or len(parts) > 1 else ()


def _sum(parts: Sequence[Factor]) -> Factor:
    if len(parts) == 1:
        return parts[0]
    node = Factor(sum(part.size for part in parts))
    node.kind, node.parts = "sum", tuple(parts)
    return node


def unify(first: Sequence[Factor], second: Sequence[Factor], reason: Reason) -> None:
    """Declare that two axes are indexed by the same positions, refining either side where that is needed.

    Walks both products from the outermost factor; where one factor is larger it is split. Blocks that share no
    refinement (4·3 against 3·4) are frozen on both sides with ``reason``.
    """
    left, right = expand(first), expand(second)
    if axis_size(left) != axis_size(right):
        raise ValueError(f"axes of different length: {left} and {right}")
    while True:
        left, right = expand(left), expand(right)
        if not left or not right:
            return
        a, b = left[0], right[0]
        if a.size == b.size:
            del left[0], right[0]
            _unify_factors(a, b, reason)
            continue
        larger, smaller, queue = (a, b, left) if a.size > b.size else (b, a, right)
        if larger.kind == "leaf" and larger.size % smaller.size == 0:
            queue[0:1] = refine_product(larger, smaller.size)
            continue
        if larger.kind == "sum":
            other = right if queue is left else left
            block, rest = _take(other, larger.size)
            if block is not None:
                queue.pop(0)
                _unify_factors(larger, as_factor(block), reason)
                other[:] = rest
                continue
        _freeze_block(left, right, reason)


def _take(queue: list[Factor], size: int) -> tuple[list[Factor] | None, list[Factor]]:
    """Take factors from the front whose product is exactly ``size``; None when there are none."""
    total = 1
    for k, factor in enumerate(queue):
        total *= factor.size
        if total == size:
            return queue[: k + 1], queue[k + 1 :]
    return None, queue


def _freeze_block(left: list[Factor], right: list[Factor], reason: Reason) -> None:
    """Freeze both queues up to their next common boundary and drop what was frozen."""
    i = j = 0
    a = b = 1
    while True:
        if a <= b and i < len(left):
            a, i = a * left[i].size, i + 1
        elif j < len(right):
            b, j = b * right[j].size, j + 1
        else:
            a, i = a * left[i].size, i + 1
        if a == b:
            break
    freeze(left[:i], reason)
    freeze(right[:j], reason)
    del left[:i], right[:j]


def _unify_factors(a: Factor, b: Factor, reason: Reason) -> None:
    a, b = a.find(), b.find()
    if a is b:
        return
    if a.kind != "leaf" and b.kind == "leaf":
        a, b = b, a
    if a.kind != "leaf":
        if a.kind == b.kind == "product":
            unify(a.parts, b.parts, reason)
        elif not _unify_sums(a, b, reason):
            freeze([a, b], reason)
        a, b = a.find(), b.find()
        if a is b:
            return
    why = a.frozen or b.frozen
    a._link = b
    if why is not None:
        freeze([b], why)


def _unify_sums(a: Factor, b: Factor, reason: Reason) -> bool:
    """Match two factors of which at least one is a sum, segment by segment; False when a cut is impossible."""
    if a.kind != "sum":
        a, b = b, a
    first, second = segments(a), [b]
    if b.kind == "sum":
        second = segments(b)
    while first and second:
        x, y = first[0].find(), second[0].find()
        if x.size != y.size:
            larger, queue, size = (x, first, y.size) if x.size > y.size else (y, second, x.size)
            cut = split_at(larger, size, reason)
            if cut is None:
                return False
            queue[0:1] = cut
            continue
        del first[0], second[0]
        _unify_factors(x, y, reason)
    return True
