"""Two checkpoints compared tensor by tensor: names, shapes, dtypes, bits, and where their numbers are furthest apart.

One tensor of each is in memory at a time, and a slice of it as float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmccheck.store.header import TensorHeader

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.store.checkpoint import Checkpoint

SLICE = 1 << 22  # numbers compared at a time
SMALL = {"float64": -1074, "float32": -149, "float16": -24, "bfloat16": -133}  # exponents of the smallest numbers
DIGITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}  # bits of the significand, the hidden one too


@dataclass(frozen=True)
class Difference:
    """How one tensor differs: ``entries`` of ``of`` in their bits, the numbers by at most ``largest``, at ``index``.

    ``largest`` is infinite where one is NaN or ±inf and the other is not, and 0 where only the bits differ (−0 and 0,
    two NaN). ``got`` and ``expected`` stand at ``index``. ``ulps`` is ``largest`` in units of the last place of the
    expected number, in the coarser dtype of the two. ``rounded``: the tensor is the expected one, rounded to its dtype.
    """

    name: str
    entries: int
    of: int
    largest: float
    index: tuple[int, ...]
    got: float
    expected: float
    ulps: float
    rounded: bool = False

    @property
    def words(self) -> str:
        """What differs most, in a few words.

        >>> Difference("w", 1, 4, 0.5, (1, 0), 1.5, 1.0, 4194304.0).words
        "tensor 'w' (1, 0): got 1.5, expected 1, apart 0.5 (4.194e+06 units in the last place); 1 of 4 entries differ"
        """
        share = f"{self.entries} of {self.of} entries differ"
        where = f"tensor {self.name!r} {self.index}"
        if not self.largest:
            return f"{where}: {share} in their bits only (−0 and 0, or kinds of NaN)"
        ulps = f" ({self.ulps:.4g} units in the last place)" if math.isfinite(self.ulps) else ""
        got, expected = shown_apart(self.got, self.expected)
        return f"{where}: got {got}, expected {expected}, apart {self.largest:.4g}{ulps}; {share}"


@dataclass(frozen=True)
class Comparison:
    """What differs between a checkpoint and the expected one. ``missing`` and ``unknown`` are names, each in one only.

    ``shapes`` and ``dtypes``: (got, expected) by name. ``differences``: the tensors whose numbers or bits differ, the
    one furthest apart first. ``compared``: how many tensors have the same name and shape.
    """

    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes: Mapping[str, tuple[str, str]]
    differences: tuple[Difference, ...] = ()
    compared: int = 0
    tensors: int = 0

    @property
    def same_layout(self) -> bool:
        """Whether names and shapes are the same."""
        return not (self.missing or self.unknown or self.shapes)

    @property
    def identical(self) -> bool:
        """Whether names, shapes, dtypes and all bits are the same."""
        return self.same_layout and not self.dtypes and not self.differences

    @property
    def rounded(self) -> bool:
        """Whether all that differs is that numbers were rounded to another dtype."""
        return self.same_layout and bool(self.dtypes) and all(found.rounded for found in self.differences)

    @property
    def largest(self) -> float:
        """The largest difference of two numbers; 0 where there is none."""
        return max((found.largest for found in self.differences), default=0.0)


def compare(got: Checkpoint, expected: Checkpoint, names: Mapping[str, str] | None = None) -> Comparison:
    """Compare a checkpoint with the expected one; dtypes are compared as they are stored.

    ``names`` gives what a name of ``expected`` is called in ``got``, where that is another. Raises CheckpointError
    where a file cannot be read.
    """
    return compare_tensors(got.tensors, got.get, expected.tensors, expected.get, names)


def compare_tensors(
    got: Mapping[str, TensorHeader],
    get: Callable[[str], Tensor],
    expected: Mapping[str, TensorHeader],
    get_expected: Callable[[str], Tensor],
    names: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare tensors that are described by their headers, and read one at a time."""
    called = {name: (names or {}).get(name, name) for name in expected}
    known = set(called.values())
    both = [name for name in expected if called[name] in got]
    shapes = {n: (got[called[n]].shape, expected[n].shape) for n in both if got[called[n]].shape != expected[n].shape}
    dtypes = {
        n: (got[called[n]].torch_dtype, expected[n].torch_dtype)
        for n in both
        if got[called[n]].dtype != expected[n].dtype
    }
    comparable = [name for name in both if name not in shapes]
    found = (difference(name, get(called[name]), get_expected(name)) for name in comparable)
    differences = sorted(
        (one for one in found if one is not None), key=lambda one: (-one.largest, -one.entries / one.of, one.name)
    )
    return Comparison(
        tuple(name for name in expected if called[name] not in got),
        tuple(name for name in got if name not in known),
        shapes,
        dtypes,
        tuple(differences),
        len(comparable),
        len(expected),
    )


def same_bits(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints hold the same tensors, bit for bit; reading ends at the first that differ."""
    if dict(one.tensors) != dict(other.tensors):
        return False
    return all(_bits_equal(one.get(name), other.get(name)) for name in one.tensors)


def difference(name: str, got: Tensor, expected: Tensor) -> Difference | None:
    """Return how a tensor differs from the expected one of its shape; None where they hold the same numbers alike.

    Two of one dtype must have the same bits; two of different dtypes the same numbers.
    """
    if not expected.numel() or (got.dtype == expected.dtype and _bits_equal(got, expected)):
        return None
    entries, largest, place = 0, -1.0, 0
    for start, first, second in _slices(got, expected):
        other = _unlike(first, second)
        entries += int(other.sum())
        apart = _apart(first, second, other)
        value, at = apart.max(0)
        if float(value) > largest:
            largest, place = float(value), start + int(at)
    if not entries:
        return None
    index = _unravel(place, expected.shape)
    there, here = float(got.reshape(-1)[place]), float(expected.reshape(-1)[place])
    largest = max(largest, 0.0)
    coarse = max((got, expected), key=lambda tensor: _epsilon(tensor))
    unit = last_place(here if math.isfinite(here) else there, str(coarse.dtype).removeprefix("torch."))
    rounded = got.dtype != expected.dtype and got.is_floating_point() and expected.is_floating_point()
    rounded = rounded and _numbers_equal(got, expected.to(got.dtype))
    return Difference(name, entries, expected.numel(), largest, index, there, here, largest / unit, rounded)


def last_place(number: float, dtype: str) -> float:
    """Return the distance of a number to the next larger one of its size in a dtype; of integers 1.

    >>> last_place(1.0, "bfloat16"), last_place(0.75, "float32") == 2.0**-24, last_place(0.0, "float16") == 2.0**-24
    (0.0078125, True, True)
    """
    if dtype not in DIGITS:
        return 1.0
    exponent = math.frexp(number)[1] if math.isfinite(number) and number else -10_000
    return math.ldexp(1.0, max(exponent - DIGITS[dtype], SMALL[dtype]))


def shown_apart(one: float, other: float) -> tuple[str, str]:
    """Return two numbers with as few digits as tell them apart.

    >>> shown_apart(1.0, 1.0000001), shown_apart(0.5, 0.25)
    (('1', '1.0000001'), ('0.5', '0.25'))
    """
    texts = next(
        (pair for n in (4, 6, 8, 10, 17) if (pair := (f"{one:.{n}g}", f"{other:.{n}g}"))[0] != pair[1]),
        (f"{one:.4g}", f"{other:.4g}"),
    )
    return texts


def _bits_equal(one: Tensor, other: Tensor) -> bool:
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(_as_bits(one), _as_bits(other))


def _as_bits(value: Tensor) -> Tensor:
    import torch

    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = value.detach().contiguous().reshape(-1)
    return flat.view(kinds[flat.element_size()]) if flat.numel() else flat.to(torch.uint8)


def _slices(got: Tensor, expected: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    first, second = got.contiguous().reshape(-1), expected.contiguous().reshape(-1)
    for start in range(0, first.numel(), SLICE):
        yield start, first[start : start + SLICE], second[start : start + SLICE]


def _unlike(first: Tensor, second: Tensor) -> Tensor:
    """Return where two slices are not the same: in their bits if of one dtype, in their numbers otherwise."""
    if first.dtype == second.dtype:
        return _as_bits(first) != _as_bits(second)
    one, other = _wide(first), _wide(second)
    return ~((one == other) | (one.isnan() & other.isnan()))


def _apart(first: Tensor, second: Tensor, where: Tensor) -> Tensor:
    """Return |first − second| in float64, ∞ where one is no finite number and the other another, −1 where alike."""
    import torch

    if not (first.is_floating_point() or second.is_floating_point() or first.is_complex() or second.is_complex()):
        return (first.long() - second.long()).abs().double().masked_fill(~where, -1.0)  # also beyond 2⁵³
    one, other = _wide(first), _wide(second)
    same = (one == other) | (one.isnan() & other.isnan())
    apart = (one - other).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return apart.masked_fill(same, 0.0).masked_fill(~where, -1.0)


def _wide(value: Tensor) -> Tensor:
    return value.abs().double() if value.is_complex() else value.double()


def _numbers_equal(one: Tensor, other: Tensor) -> bool:
    return not any(bool(_unlike(_wide(first), _wide(second)).any()) for _, first, second in _slices(one, other))


def _epsilon(value: Tensor) -> float:
    import torch

    return torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0


def _unravel(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        place, at = divmod(place, size)
        index.append(at)
    return tuple(reversed(index))
