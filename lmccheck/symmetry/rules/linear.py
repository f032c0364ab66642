"""Linear algebra: the contracted axes are matched, the others pass through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmccheck.symmetry.axes import Axis
from lmccheck.symmetry.op import Op, Symbol, Uncovered
from lmccheck.symmetry.rules._table import broadcast, rule


@rule("linear")
def linear(op: Op, x: Symbol, weight: Symbol, bias: Symbol | None) -> Symbol:
    if weight.ndim != 2:
        raise Uncovered("a weight of one dimension")
    op.unify(x.axes[-1], weight.axes[1])
    op.consumes(weight, weight.axes[1])
    op.contracts(x.axes[:-1], weight.axes[1], [weight.axes[0]])
    if bias is not None:
        op.unify(weight.axes[0], bias.axes[0])
    return Symbol((*x.axes[:-1], weight.axes[0]))


def contract(op: Op, a: Symbol, b: Symbol) -> Symbol:
    """Matrix product over the last axis of ``a`` and the second-last (or only) axis of ``b``, batch axes broadcast."""
    if a.ndim == 0 or b.ndim == 0:
        raise Uncovered("a scalar operand")
    inner_b = b.axes[-2] if b.ndim > 1 else b.axes[-1]
    op.unify(a.axes[-1], inner_b)
    batch = broadcast(op, Symbol(a.axes[:-2]), Symbol(b.axes[:-2]))
    weights = [(symbol, axis) for symbol, axis in ((a, a.axes[-1]), (b, inner_b)) if symbol.param is not None]
    for weight, axis in weights:
        op.consumes(weight, axis)
    if not weights:
        op.binds(inner_b, "two activations are multiplied along it")
    rows: tuple[Axis, ...] = (a.axes[-2],) if a.ndim > 1 else ()
    columns: tuple[Axis, ...] = (b.axes[-1],) if b.ndim > 1 else ()
    op.contracts(rows, inner_b, columns, batch)
    return Symbol((*batch, *rows, *columns))


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(op: Op, a: Symbol, b: Symbol) -> Symbol:
    return contract(op, a, b)


@rule("addmm", "baddbmm", "addmv")
def addmm(op: Op, c: Symbol, a: Symbol, b: Symbol, beta: Any, alpha: Any) -> Symbol:
    return Symbol(broadcast(op, contract(op, a, b), c))


@rule("outer", "ger")
def outer(op: Op, a: Symbol, b: Symbol) -> Symbol:
    return Symbol((*a.axes, *b.axes))


@rule("_trilinear")
def trilinear(
    op: Op,
    a: Symbol,
    b: Symbol,
    c: Symbol,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    summed: Sequence[int],
    *_: Any,
) -> Symbol:
    """The product of three tensors, broadcast where each lacks a dimension, summed over some (nn.Bilinear)."""
    wide = []
    for symbol, missing in ((a, expand_a), (b, expand_b), (c, expand_c)):
        axes = list(symbol.axes)
        for d in sorted(missing):
            axes.insert(d, ())
        wide.append(axes)
    product = broadcast(op, *(Symbol(tuple(axes)) for axes in wide))
    for d in summed:
        readers = [(s, axes[d]) for s, axes in zip((a, b, c), wide, strict=True) if s.param is not None and axes[d]]
        for weight, axis in readers:
            op.consumes(weight, axis)
        if not readers:
            op.binds(product[d], "activations are multiplied along it")
    for axes in wide:
        op.mixes_across([axis for d, axis in enumerate(axes) if d not in set(summed)])
    for d in summed:
        op.mixes_across([product[d]])
    return Symbol(tuple(axis for d, axis in enumerate(product) if d not in set(summed)))


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def distances(op: Op, a: Symbol, b: Symbol, *_: Any) -> Symbol:
    """Distances between all rows of two batches of vectors."""
    op.unify(a.axes[-1], b.axes[-1])
    batch = broadcast(op, Symbol(a.axes[:-2]), Symbol(b.axes[:-2]))
    op.contracts([a.axes[-2]], a.axes[-1], [b.axes[-2]], batch)
    op.binds(a.axes[-1], "distances are taken over it")
    return Symbol((*batch, a.axes[-2], b.axes[-2]))


@rule("_grouped_mm", "transformers.grouped_mm_fallback")
def grouped_product(op: Op, x: Symbol, weights: Symbol, ends: Symbol, *_: Any) -> Symbol:
    """Rows dealt in order to experts, each multiplied by its expert's matrix: (rows, K) by (experts, K, N)."""
    if x.ndim != 2 or weights.ndim != 3:
        raise Uncovered("not rows by experts")
    for axis in (x.axes[0], weights.axes[0], *ends.axes):
        op.freeze(axis, "rows are dealt to experts in order; a symmetry file may say how these move, with their router")
    op.unify(x.axes[1], weights.axes[1])
    op.consumes(weights, weights.axes[1])
    op.contracts([x.axes[0]], weights.axes[1], [weights.axes[2]])
    return Symbol((x.axes[0], weights.axes[2]))
