"""Dyadic rationals of [0, 1]: points that floats hold exactly, ordered by simplicity, 1/2 first."""

from __future__ import annotations

BITS = 10  # the finest are multiples of 2⁻¹⁰
FIRST = (0.5, 1.0, 0.25, 0.75)  # the simplest above 0


def beside_half(distance: int, bits: int, level: int, *, away: bool, below: bool) -> float:
    """Return the multiple of 2^−level at a distance from 1/2, given in 2^−bits, or the next one farther away.

    >>> [beside_half(3, 4, level, away=False, below=False) for level in (1, 2, 3, 4)]  # 11/16
    [0.5, 0.5, 0.625, 0.6875]
    >>> [beside_half(3, 4, level, away=True, below=True) for level in (1, 2, 3, 4)]  # 5/16
    [0.0, 0.25, 0.25, 0.3125]
    """
    step = 1 << bits - level
    steps = -(-distance // step) if away else distance // step
    return 0.5 + (-1 if below else 1) * steps / (1 << level)


def simplicity(value: float) -> tuple[int, float]:
    """Return what orders dyadic rationals: 1/2 first, then whole numbers, then by the denominator, then by size.

    >>> sorted([0.25, 1.0, 0.5, 0.125, 0.75], key=simplicity)
    [0.5, 1.0, 0.25, 0.75, 0.125]
    """
    denominator = float(value).as_integer_ratio()[1]
    return (0 if denominator == 2 else denominator, value)
