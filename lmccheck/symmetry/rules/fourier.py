"""Fourier transforms and complex numbers: transformed positions are told apart, parts of a number are not mixed up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmccheck.symmetry.op import Op, Symbol
from lmccheck.symmetry.rules._table import broadcast, replaced, rule

_WHY = "positions are transformed to frequencies"


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def transform(op: Op, x: Symbol, dims: Sequence[int], *_: Any) -> Symbol:
    for d in dims:
        op.freeze(x.axes[d], _WHY)
        x = replaced(x, d, op.frozen(op.out.shape[d], _WHY))
    return x


@rule("view_as_complex")
def view_as_complex(op: Op, x: Symbol) -> Symbol:
    op.freeze(x.axes[-1], "real and imaginary part are told apart")
    return Symbol(x.axes[:-1])


@rule("view_as_real", "view_as_real_copy")
def view_as_real(op: Op, x: Symbol) -> Symbol:
    return Symbol((*x.axes, op.frozen(2, "real and imaginary part are told apart")))


@rule("real", "imag", "conj", "_conj", "conj_physical", "_conj_physical", "resolve_conj", "resolve_neg", "angle")
def part(op: Op, x: Symbol) -> Symbol:
    return Symbol(x.axes)


@rule("complex", "polar")
def join(op: Op, real: Symbol, imaginary: Symbol) -> Symbol:
    return Symbol(broadcast(op, real, imaginary))
