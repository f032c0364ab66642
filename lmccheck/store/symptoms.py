"""What happened to tensors that are not those expected: renamed, transposed, permuted, exchanged, scaled, truncated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from lmccheck.store.prefixes import prefix_problem

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.store.checkpoint import Checkpoint
    from lmccheck.store.compare import Comparison

MOST = 4  # tensors that are looked at closer, those furthest apart first
LARGE = 1 << 24  # numbers above which a tensor's are not sorted


def symptoms(found: Comparison, got: Checkpoint, expected: Checkpoint) -> list[str]:
    """Return what explains a difference, a line each; nothing where nothing that is known does."""
    return [*_names(found, got, expected), *_layouts(found, got, expected), *_numbers(found, got, expected)]


def _names(found: Comparison, got: Checkpoint, expected: Checkpoint) -> Iterator[str]:
    if not (found.missing and found.unknown):
        return
    if problem := prefix_problem(got.tensors, expected.tensors, expected.label):
        yield problem
        return
    for name in found.missing[:MOST]:
        header = expected.tensors[name]
        digest = None
        for other in (n for n in found.unknown if got.tensors[n] == header):
            digest = digest or _digest(expected.get(name))
            if _digest(got.get(other)) == digest:
                yield f"tensor {name!r} is there, bit for bit, under the name {other!r}"
                break


def _layouts(found: Comparison, got: Checkpoint, expected: Checkpoint) -> Iterator[str]:
    import torch

    for name, (here, there) in list(found.shapes.items())[:MOST]:
        if len(here) == 2 and here == there[::-1] and torch.equal(got.get(name).t(), expected.get(name)):
            yield f"tensor {name!r} is the expected one transposed"
        elif here[1:] == there[1:] and here and got.tensors[name].dtype == expected.tensors[name].dtype:
            rows = min(here[0], there[0])
            if torch.equal(got.get(name)[:rows], expected.get(name)[:rows]):
                verb = "lacks" if here[0] < there[0] else "has more than"
                yield f"tensor {name!r} {verb} the last {abs(here[0] - there[0])} rows, the others are as expected"


def _exchanged(found: Comparison, got: Checkpoint, expected: Checkpoint) -> tuple[str, set[str]]:
    """Say which two layers are exchanged, all their tensors of one form bit for bit; and name the tensors of these.

    A layer is what a number in a tensor's name tells: ``blocks.3.fc.weight`` and ``blocks.7.fc.weight``.
    """
    differing = {one.name for one in found.differences}
    layers: dict[tuple[str, str], set[str]] = {}
    for name in differing:
        parts = name.split(".")
        for place in (place for place, part in enumerate(parts) if part.isdecimal()):
            stem, rest = ".".join(parts[:place]), ".".join(parts[place + 1 :])
            layers.setdefault((stem, parts[place]), set()).add(rest)
    for (stem, one), rests in sorted(layers.items(), key=lambda item: (-len(item[1]), item[0])):
        for other in sorted(n for s, n in layers if s == stem and int(n) > int(one) and layers[s, n] == rests):
            pairs = [tuple(".".join(filter(None, (stem, n, rest))) for n in (one, other)) for rest in sorted(rests)]
            if all(_swapped(got, expected, *pair) for pair in pairs):
                names = {name for pair in pairs for name in pair}
                which = f"{stem} {one} and {other}" if stem else f"{one} and {other}"
                return f"the layers {which} are exchanged, in all {len(names)} of their tensors that differ", names
    return "", set()


def _swapped(got: Checkpoint, expected: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors hold, bit for bit, what the other should."""
    if expected.tensors[one] != expected.tensors[other] or got.tensors.get(one) != got.tensors.get(other):
        return False
    crossed = ((one, other), (other, one))
    return all(_digest(got.get(here)) == _digest(expected.get(there)) for here, there in crossed)


def _numbers(found: Comparison, got: Checkpoint, expected: Checkpoint) -> Iterator[str]:
    exchanged, told = _exchanged(found, got, expected)
    if exchanged:
        yield exchanged
    for name in [one.name for one in found.differences if one.name not in told][:MOST]:
        here, there = got.get(name), expected.get(name)
        for explain in (_kept_as_float, _constant, _transposed, _permuted):
            if line := explain(here, there):
                yield f"tensor {name!r} {line}"
                break
        else:
            if other := _of_another(name, here, got.tensors[name], expected):
                yield f"tensor {name!r} holds, bit for bit, what {other!r} should"
    yield from _scaled(found, got.get, expected.get)


def _kept_as_float(here: Tensor, there: Tensor) -> str | None:
    from lmccheck.store.tensors import dtype_name

    if here.is_floating_point() and not there.is_floating_point():
        lost = int((here.double() != there.double()).sum())
        return f"is an integer buffer stored as {dtype_name(here)}: {lost} of {there.numel()} entries differ"
    return None


def _constant(here: Tensor, there: Tensor) -> str | None:
    if here.numel() > 1 and bool((here == here.reshape(-1)[0]).all()):
        return f"holds nothing but {float(here.reshape(-1)[0]):.4g}: it was never filled"
    return None


def _transposed(here: Tensor, there: Tensor) -> str | None:
    import torch

    square = here.ndim == 2 and here.shape[0] == here.shape[1]
    return "is the expected one transposed" if square and torch.equal(here.t(), there) else None


def _permuted(here: Tensor, there: Tensor) -> str | None:
    import torch

    if not 1 < here.numel() <= LARGE or here.dtype != there.dtype or here.is_complex():
        return None
    one, other = (value.reshape(-1).double().sort().values for value in (here, there))
    if not torch.equal(one, other):
        return None
    for dim in range(here.ndim if here.ndim > 1 else 0):
        rows = [value.movedim(dim, 0).reshape(value.shape[dim], -1).double() for value in (here, there)]
        if torch.equal(*(torch.unique(part, dim=0) for part in rows)):
            what = ("rows", "columns")[dim] if here.ndim == 2 else f"slices along axis {dim}"
            return f"holds the expected {what} in another order"
    return "holds the expected numbers in another order"


def _of_another(name: str, here: Tensor, header: object, expected: Checkpoint) -> str | None:
    digest = None
    for other in (n for n, told in expected.tensors.items() if told == header and n != name):
        digest = digest or _digest(here)
        if _digest(expected.get(other)) == digest:
            return other
    return None


def _scaled(found: Comparison, get: Callable[[str], Tensor], get_expected: Callable[[str], Tensor]) -> Iterator[str]:
    """Say by what number all tensors that differ were multiplied, if it is one."""
    import torch

    names = [one.name for one in found.differences if one.of > 1][:MOST]
    factors: dict[str, float] = {}
    for name in names:
        here, there = get(name), get_expected(name)
        if not (here.is_floating_point() and there.is_floating_point()):
            return
        one, other = here.double().reshape(-1), there.double().reshape(-1)
        size = float(other @ other)
        factor = float(one @ other) / size if size else 0.0
        eps = max(torch.finfo(value.dtype).eps for value in (here, there))
        if not factor or float((one - factor * other).norm()) > 2 * eps * abs(factor) * size**0.5:
            return
        factors[name] = factor
    if names and len({f"{factor:.3g}" for factor in factors.values()}) == 1:
        yield f"what differs is the expected tensor times {next(iter(factors.values())):.4g}"


def _digest(value: Tensor) -> bytes:
    import torch

    flat = value.detach().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    return hashlib.sha256(raw).digest()
