"""A piecewise linear path through weight space: breakpoints, and the kind of every segment between them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lmccheck.errors import LmcError
from lmccheck.evaluate.points import interpolate
from lmccheck.finding import require_limit
from lmccheck.shown import one_line
from lmccheck.store import files
from lmccheck.store.documents import Strict
from lmccheck.store.files import mask_like
from lmccheck.store.stated import damaged, read_stated, require_all_used, save_stated
from lmccheck.store.tensors import mismatch

KINDS = {
    "a": "only the head changes: logits are affine in t, a convex loss lies under its chord",
    "b": "only incoming weights of units without outgoing ones change: the function is constant",
    "c": "outgoing weights move between units that compute the same: the function is constant",
    "d": "straight line between a network and its dropped version: nothing is known but what is sampled",
    "l": "straight line between bends that were trained: nothing is claimed of it, it is sampled",
}

KEY = "lmccheck.path"  # of the metadata of a file
WHAT = "the stored path"


@dataclass(frozen=True)
class Segment:
    """From one breakpoint to the next: its ``kind`` (a, b, c, d or l), what it does, and for c which units are alike.

    ``twins`` maps groups to (n, 2) int64: pairs of units that compute the same on all of the segment.
    """

    kind: str
    does: str
    twins: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


@one_line(lambda path: f"{len(path.segments)} segments: {path.kinds}")
@dataclass(frozen=True)
class Path(files.Written):
    """A path θ(t), 0 ≤ t ≤ 1, every segment taking an equal share of t.

    ``points``: canonical states, float64, one more than there are segments; tensors that do not change are shared
    between them. Of a chain, whose segments are all of kind l, they may be of any floating dtype.
    ``tied``: every name of the state dict to its canonical name.
    """

    points: tuple[dict[str, Tensor], ...] = field(repr=False)
    segments: tuple[Segment, ...]
    tied: Mapping[str, str] = field(repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.points) != len(self.segments) + 1 or not self.segments:
            raise LmcError(f"path: {len(self.points)} breakpoints for {len(self.segments)} segments; expected one more")
        if self.is_chain and set(self.kinds) != {"l"}:
            raise LmcError(f"path: segments of kinds {self.kinds}; expected no other kind beside l")

    @property
    def is_chain(self) -> bool:
        """Whether it is one of straight segments of which nothing is claimed."""
        return "l" in self.kinds

    @property
    def kinds(self) -> str:
        """The kinds of the segments, in order.

        >>> one = {"w": torch.zeros(1)}
        >>> Path((one, one, one), (Segment("d", ""), Segment("b", "")), {"w": "w"}).kinds
        'db'
        """
        return "".join(segment.kind for segment in self.segments)

    def at(self, t: float) -> dict[str, Tensor]:
        """Return the weights at ``t`` in [0, 1], float64, by every name of the state dict; exact at breakpoints."""
        return self.between(*self.place(t))

    def place(self, t: float) -> tuple[int, float]:
        """Return on which segment ``t`` lies, counted from 0, and where on it, from 0 to 1."""
        if not 0 <= t <= 1:
            raise LmcError(f"path: t = {t!r}; expected a number from 0 to 1")
        k = min(int(t * len(self.segments)), len(self.segments) - 1)
        return k, t * len(self.segments) - k

    def between(self, segment: int, s: float) -> dict[str, Tensor]:
        """Return the weights at ``s`` in [0, 1] of one segment, float64, by every name of the state dict."""
        first, second = self.points[segment], self.points[segment + 1]
        state = {
            name: _wide(tensor)
            if second[name] is tensor
            else interpolate({name: _wide(tensor)}, {name: _wide(second[name])}, s)[name]
            for name, tensor in first.items()
        }
        return {name: state[own] for name, own in self.tied.items()}

    def save(self, file: str | os.PathLike[str]) -> FilePath:
        """Write the path: see ``save_path``."""
        return save_path(self, file)

    def reversed(self) -> Path:
        """Return the path from its end to its beginning."""
        return Path(self.points[::-1], self.segments[::-1], self.tied, self.facts)

    def then(self, other: Path) -> Path:
        """Return this path followed by another, which must begin where this one ends."""
        last, first = self.points[-1], other.points[0]
        apart = [name for name in last if last[name] is not first[name] and not torch.equal(last[name], first[name])]
        if apart:
            raise LmcError(f"path: the second part begins elsewhere (tensor {apart[0]!r} differs)")
        return Path(self.points + other.points[1:], self.segments + other.segments, self.tied, self.facts)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor


Unit = Annotated[int, Field(ge=0, lt=2**63)]


class SegmentFacts(Strict):
    """What a file says of one segment."""

    kind: Literal["a", "b", "c", "d", "l"]
    does: str
    twins: dict[str, list[Annotated[list[Unit], Field(min_length=2, max_length=2)]]]


class PathFacts(Strict):
    """What a file says of a path: per breakpoint and name the tensor of the file, the segments, which names are one."""

    points: list[dict[str, str]] = Field(description="per breakpoint a table of tensors by name")
    segments: list[SegmentFacts] = Field(description="per segment its kind (a, b, c, d or l), what it does, its twins")
    tied: dict[str, str] = Field(description="a table of names")
    facts: dict[str, Any] = Field(description="a table")


def save_path(path: Path, file: str | os.PathLike[str]) -> FilePath:
    """Write a path as one safetensors file: every tensor that occurs, once, and in the metadata where it occurs.

    Float tensors are float64, so that the file proves what was certified; those of a chain are in the dtypes they have.
    Raises CheckpointError when it cannot be written.
    """
    held: dict[str, Tensor] = {}
    known: dict[tuple[str, str], str] = {}  # by name and content
    points: list[dict[str, str]] = []
    for number, state in enumerate(path.points):
        point = {}
        for name, tensor in state.items():
            content = hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
            key = known.setdefault((name, f"{tensor.dtype} {content}"), f"{number}/{name}")
            held.setdefault(key, tensor)
            point[name] = key
        points.append(point)
    segments = [
        {"kind": s.kind, "does": s.does, "twins": {group: pairs.tolist() for group, pairs in s.twins.items()}}
        for s in path.segments
    ]
    facts = {"points": points, "segments": segments, "tied": dict(path.tied), "facts": dict(path.facts)}
    return save_stated(held, file, KEY, facts, path.inputs)


def load_path(file: str | os.PathLike[str]) -> Path:
    """Read a path that ``save_path`` wrote. Raises CheckpointError when the file holds none, or a damaged one."""
    mend = "no path is stored in it; expected a file written by save_path"
    facts, held = read_stated(FilePath(file), KEY, PathFacts, WHAT, mend)
    require_all_used(file, WHAT, held, [key for point in facts.points for key in point.values()])
    points = tuple({name: held[key] for name, key in point.items()} for point in facts.points)
    segments = tuple(_segment(item) for item in facts.segments)
    try:
        path = Path(points, segments, facts.tied, facts.facts)
        require_limit(facts.facts.get("epsilon"))
    except LmcError as error:
        damaged(file, WHAT, str(error))
    if (wrong := _torn(path)) is not None:
        damaged(file, WHAT, wrong)
    return path


def _segment(item: SegmentFacts) -> Segment:
    twins = {group: torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2) for group, pairs in item.twins.items()}
    return Segment(item.kind, item.does, twins)


NOT_FIRST = "not at the first breakpoint, but is there"


def _torn(path: Path) -> str | None:
    """Return where breakpoints are not of one network, or where ``tied`` speaks of others, as one clause."""
    first, tied, masks = path.points[0], path.tied, set[str]()
    if path.is_chain:  # masks stay as they are
        masks = {n for n, t in first.items() if mask_like(t) and all(point.get(n) is t for point in path.points)}
    for number, point in enumerate(path.points):
        own, other = ({n: t for n, t in state.items() if n not in masks} for state in (point, first))
        wrong = mismatch(own, other, NOT_FIRST, "missing", but_equal=False, floats=path.is_chain)
        if wrong is not None:
            return f"{wrong} at breakpoint {number}"
    named = set(tied.values())
    astray = next((name for name in (*named, *first) if name not in first or name not in named), None)
    if astray is None:
        return None
    if astray in first:
        return f"tensor {astray!r} of its breakpoints is that of no name in 'tied'"
    return f"'tied' names {astray!r}, which no breakpoint has"
