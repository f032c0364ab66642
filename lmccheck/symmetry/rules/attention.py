"""Scaled dot-product attention: batch and head axes are aligned, query·key and value axes are separate factors."""

from __future__ import annotations

from typing import Any

from lmccheck.symmetry.axes import Factor, axis_size
from lmccheck.symmetry.op import Op, Symbol, Uncovered
from lmccheck.symmetry.rules._table import broadcast, rule


@rule("scaled_dot_product_attention")
def attention(
    op: Op, q: Symbol, k: Symbol, v: Symbol, mask: Symbol | None, dropout: float, causal: bool, scale: Any, gqa: bool
) -> Symbol:
    """softmax(q·kᵀ + mask)·v with q (…, L, E), k (…, S, E), v (…, S, Eᵥ)."""
    if dropout:
        raise Uncovered("drops attention weights at random")
    batch_q, batch_k, batch_v = q.axes[:-2], k.axes[:-2], v.axes[:-2]
    if gqa and q.ndim >= 3:
        ratio = axis_size(q.axes[-3]) // axis_size(k.axes[-3])
        if ratio > 1:
            op.unify(k.axes[-3], v.axes[-3])
            grouped = (*k.axes[-3], Factor(ratio))
            op.unify(q.axes[-3], grouped)
            batch_k, batch_v = (*k.axes[:-3], grouped), (*v.axes[:-3], grouped)
    op.unify(q.axes[-1], k.axes[-1])
    op.unify(k.axes[-2], v.axes[-2])
    batch = broadcast(op, Symbol(batch_q), Symbol(batch_k), Symbol(batch_v))
    if causal:
        for axis in (q.axes[-2], k.axes[-2]):
            op.freeze(axis, "causal attention orders its positions")
    if mask is not None:
        broadcast(op, Symbol((*batch, q.axes[-2], k.axes[-2])), mask)
    op.binds(q.axes[-1], "queries and keys are multiplied along it")
    op.binds(k.axes[-2], "attention compares its positions")
    op.contracts([q.axes[-2]], q.axes[-1], [k.axes[-2]], batch)  # the product q·kᵀ
    op.contracts(
        [q.axes[-2]], k.axes[-2], [v.axes[-1]], batch
    )  # the softmax over k's positions, and the product with v
    return Symbol((*batch, q.axes[-2], v.axes[-1]))
