"""What a rule sees and may do: a call's tensors as axes, to be related, frozen with a reason, or read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import fx

from lmccheck.symmetry.axes import (
    Axis,
    Factor,
    Reason,
    as_factor,
    axis_size,
    freeze,
    fresh,
    unify,
)
from lmccheck.symmetry.trace import op_name, value_of


@dataclass(frozen=True)
class Symbol:
    """A tensor as the analysis sees it: one axis per dimension; ``param`` names the parameter it is a pure view of."""

    axes: tuple[Axis, ...]
    param: str | None = None

    @property
    def ndim(self) -> int:
        return len(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis_size(axis) for axis in self.axes)


class Uncovered(Exception):
    """Raised by a rule for a call it does not treat; everything the call touches is then frozen."""


@dataclass
class Instance:
    """``node`` is what ``factor`` becomes where ``index`` has been picked on the axis ``picked``."""

    factor: Factor
    picked: Factor
    index: int
    node: Factor


class Records(Protocol):
    """Where an analysis keeps what rules say."""

    readers: set[fx.Node]
    consumed: dict[str, list[Axis]]
    binding: list[tuple[Axis, Reason]]
    records: list[tuple[Axis, ...]]
    instances: list[Instance]

    def instance(self, factor: Factor, picked: Factor, index: int) -> Factor:
        """Return what ``factor`` is where position ``index`` of ``picked`` has been chosen."""
        ...


class Op:
    """What a rule may do: relate axes, freeze them with a reason, and say what the op reads or mixes."""

    def __init__(self, analysis: Records, node: fx.Node) -> None:
        self.analysis = analysis
        self.node = node
        self.name = op_name(node.target)

    def reason(self, why: str) -> Reason:
        return Reason(self.name, why, source_of(self.node))

    @property
    def out(self) -> Any:
        """The op's output, or a tuple of them: shapes and dtypes only."""
        return value_of(self.node)

    def unify(self, first: Axis, second: Axis, why: str = "two axes are matched that are split differently") -> None:
        unify(first, second, self.reason(why))

    def freeze(self, axis: Axis, why: str) -> None:
        freeze(axis, self.reason(why))

    def frozen(self, size: int, why: str) -> Axis:
        return fresh(size, self.reason(why))

    def consumes(self, symbol: Symbol, axis: Axis) -> None:
        """Note that ``axis`` is the incoming side of the parameter behind ``symbol``."""
        if symbol.param is not None:
            self.analysis.readers.add(self.node)
            self.analysis.consumed.setdefault(symbol.param, []).append(axis)
        else:
            self.binds(axis, "the outgoing weights are computed from others")

    def binds(self, axis: Axis, why: str) -> None:
        """Note that the op combines positions of ``axis`` other than by weights, so that none can be dropped alone."""
        if axis:
            self.analysis.binding.append((axis, self.reason(why)))

    def mixes_across(self, kept: Sequence[Axis]) -> None:
        """Note that the op combines all positions outside ``kept``: factors there need one common permutation."""
        self.analysis.records.append(tuple(kept))

    def contracts(self, first: Sequence[Axis], inner: Axis, second: Sequence[Axis], batch: Sequence[Axis] = ()) -> None:
        """Note a product summed over ``inner``: nothing beside it may move differently from one position to another."""
        for kept in ([inner], first, second):
            self.mixes_across([*batch, *kept])

    def orders(self, x: Symbol, dims: Sequence[int], why: str) -> None:
        """Freeze dimensions whose positions the op shifts, ranks or accumulates; what is beside them moves as one."""
        dims = [d % x.ndim for d in dims]
        for d in dims:
            self.freeze(x.axes[d], why)
        self.mixes_across([axis for d, axis in enumerate(x.axes) if d not in dims])

    def stacked(self, axes: Sequence[Axis], place: Axis = ()) -> tuple[Factor, Axis]:
        """Return an axis for the places of the given axes of one length, and one that stands for any of them."""
        picked = as_factor(place or self.frozen(len(axes), "stacked tensors are told apart"))
        any_of_them = fresh(axis_size(axes[0]))
        for index, axis in enumerate(axes if any_of_them else ()):
            self.analysis.instances.append(Instance(any_of_them[0], picked, index, as_factor(axis)))
        return picked, any_of_them

    def instance(self, axis: Axis, picked: Factor, index: int) -> Axis:
        return tuple(self.analysis.instance(factor, picked, index) for factor in axis)


def source_of(node: fx.Node) -> str:
    """Return ``file.py:12`` of the innermost frame of the trace that is not PyTorch's or ours, or an empty string."""
    trace = node.meta.get("stack_trace") or ""
    frames = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    for frame in reversed(frames):
        path, _, rest = frame.removeprefix('File "').partition('", line ')
        if "/torch/" not in path and "/lmccheck/symmetry/" not in path:
            return f"{path.rsplit('/', 1)[-1]}:{rest.split(',')[0]}"
    return ""
