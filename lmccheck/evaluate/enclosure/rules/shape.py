"""What moves numbers without changing them: reshapes, permutations, slices, concatenation, copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmccheck.evaluate.enclosure.cell import Cell, encloses
from lmccheck.evaluate.enclosure.enclosed import Enclosed, NoEnclosure, joined, lifted


def _moves(name: str, move: Callable[..., Tensor]) -> None:
    """Give an op the rule that its parts are moved as it moves a tensor."""

    def moved(cell: Cell, x: Enclosed, *settings: Any, **more: Any) -> Enclosed:
        return x.map(lambda part: move(part, *settings, **more))

    encloses(name)(moved)


MOVES = ("permute", "transpose", "t", "movedim", "squeeze", "unsqueeze", "select", "slice", "narrow")
for _name in (*MOVES, "contiguous", "alias", "detach", "flip"):
    _moves(_name, getattr(torch.ops.aten, _name))
for _name in ("flatten", "unflatten"):
    _moves(_name, getattr(torch, _name))


@encloses("clone", "lift_fresh", "lift_fresh_copy")
def same(cell: Cell, x: Enclosed, **_: Any) -> Enclosed:
    return x


@encloses("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(cell: Cell, x: Enclosed, share: float, train: bool = False) -> Enclosed:
    if train:
        raise NoEnclosure("random numbers")
    return x


@encloses("to", "_to_copy", "type_as")
def to(cell: Cell, x: Enclosed, *settings: Any, **more: Any) -> Enclosed:
    wanted = [each for each in (*settings, *more.values()) if isinstance(each, torch.dtype)]
    if any(each != torch.float64 for each in wanted):
        raise NoEnclosure("a cast to another dtype")
    return x


@encloses("view", "reshape", "_unsafe_view")
def reshape(cell: Cell, x: Enclosed, shape: Sequence[int]) -> Enclosed:
    """A reshape that was traced on ``cell.traced`` samples is one of as many as there are."""
    return x.map(lambda part: part.reshape(cell.sized(shape)))


@encloses("expand")
def expand(cell: Cell, x: Enclosed, shape: Sequence[int], **_: Any) -> Enclosed:
    return x.map(lambda part: part.expand(cell.sized(shape)))


@encloses("cat", "concat")
def concatenate(cell: Cell, parts: Sequence[Enclosed | Tensor], dim: int = 0) -> Enclosed:
    return _together(parts, partial(torch.cat, dim=dim), dim)


@encloses("stack")
def stack(cell: Cell, parts: Sequence[Enclosed | Tensor], dim: int = 0) -> Enclosed:
    return _together(parts, partial(torch.stack, dim=dim), dim)


def _together(parts: Sequence[Enclosed | Tensor], join: Callable[[list[Tensor]], Tensor], dim: int) -> Enclosed:
    if dim == 0:
        raise NoEnclosure("values of different samples joined")
    return joined([lifted(part) for part in parts], join)


def _parts(name: str, split: Callable[..., Sequence[Tensor]]) -> None:
    """Give an op that takes a value apart the rule that it does so to all that is known of it."""

    def parts(cell: Cell, x: Enclosed, how: Any = 0, dim: int = 0) -> list[Enclosed]:
        if (how if name == "unbind" else dim) % x.ndim == 0:
            raise NoEnclosure("samples taken apart")
        settings = (how,) if name == "unbind" else (how, dim)
        count = len(split(x.first, *settings))
        return [x.map(lambda part, k=k: split(part, *settings)[k]) for k in range(count)]  # type: ignore[misc]  # k is bound

    encloses(name)(parts)


for _name in ("chunk", "split", "split_with_sizes", "unbind"):
    _parts(_name, getattr(torch.ops.aten, _name))


@encloses("constant_pad_nd", "pad")
def pad(cell: Cell, x: Enclosed, sizes: Sequence[int], *settings: Any) -> Enclosed:
    """Values at the border; the bend and the slack are 0 there."""
    mode = settings[0] if settings and isinstance(settings[0], str) else "constant"
    value = next((each for each in settings if isinstance(each, (int, float))), 0)
    if mode != "constant":
        return x.map(lambda part: torch.nn.functional.pad(part, list(sizes), mode=mode))
    padded = x.map(lambda part: torch.nn.functional.pad(part, list(sizes)))
    if not value:
        return padded
    first, second = (torch.nn.functional.pad(end, list(sizes), value=value) for end in (x.first, x.second))
    return Enclosed(first, first if x.constant else second, padded.bend, padded.slack)
