"""A loss bounded on all of a line: cells, split where the bound is too high, for the samples that make it so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmccheck.data.load import Batch
from lmccheck.evaluate.enclosure.enclosed import NoEnclosure
from lmccheck.evaluate.enclosure.losses import PARTS, Bounds
from lmccheck.evaluate.enclosure.run import Enclosing
from lmccheck.evaluate.points import Line

Numbers = NDArray[np.float64]
PILOT = 32  # samples on which it is tried how wide cells may be
FINEST = 2.0**-20  # of a line, the narrowest cell
OVERHEAD = 1.3  # what a cell costs beside its layers' multiplications, measured on perceptrons and conv nets
SAME = 1e-9  # relative, of losses in float64
GAIN = 0.7  # of its slack that a sample's cell loses, at least, when it is halved
FIRST = (4, 8, 16, 32, 64, 128, 256)  # numbers of cells to begin with


@dataclass(frozen=True)
class Sought:
    """What is to be shown of a line: in every part p the mean loss at t is at most (1−t)·a_p + t·b_p + limit.

    ``index``, (n,) int64, says to which part each sample belongs; ``a`` and ``b`` are (parts,). ``likely``: the t at
    which the mean is thought to be highest, ``height`` what it is known to be above the chord there. ``budget``: how
    many passes over the data that may cost. ``room``: slack that cells may have at least, to begin with.
    """

    index: Tensor
    a: Numbers
    b: Numbers
    limit: float
    likely: float
    height: float
    budget: float
    room: float

    @classmethod
    def of_all(
        cls, samples: int, a: float, b: float, limit: float, highest: tuple[float, float], budget: float
    ) -> Sought:
        """Return it for the mean over all samples; ``highest`` is the height and where it is."""
        index = torch.zeros(samples, dtype=torch.int64)
        return cls(index, np.array([a]), np.array([b]), limit, highest[1], highest[0], budget, limit / 8)

    def heights(self, losses: Tensor, t: float) -> Numbers:
        """Return by how much samples' losses at t are above the chord, in the mean of every part."""
        counts = torch.bincount(self.index, minlength=len(self.a)).double()
        sums = torch.zeros(len(self.a), dtype=torch.float64).index_add_(0, self.index, losses.double())
        return (sums / counts).numpy() - (1 - t) * self.a - t * self.b


@dataclass(frozen=True)
class Shown:
    """What was shown: over all t the height above the chord is at most ``bound``, infinite where nothing is known.

    ``highest``: losses that the parts' means nowhere exceed; ``tops``, (m, parts): those between two neighbours of
    ``edges``, (m+1,). ``cells``: into how many cells the line was cut, those of
    some samples only counted as well. ``passes``: what it cost, in forward passes over the data. ``above``: a t at
    which the height itself is above the limit. ``why``: why the bound is not within the limit.
    """

    bound: float = math.inf
    highest: tuple[float, ...] = ()
    cells: int = 0
    passes: float = 0.0
    above: float | None = None
    why: str = ""
    edges: Numbers = field(default_factory=lambda: np.array([0.0, 1.0]), repr=False, compare=False)
    tops: Numbers = field(default_factory=lambda: np.full((1, 1), math.inf), repr=False, compare=False)

    def top(self, lo: float, hi: float, part: int = 0) -> float:
        """Return a loss that a part's mean exceeds nowhere on [lo, hi] of the line."""
        begin = min(max(0, int(np.searchsorted(self.edges, lo, side="right")) - 1), len(self.tops) - 1)
        end = max(begin + 1, int(np.searchsorted(self.edges, hi, side="left")))
        return float(self.tops[begin:end, part].max())

    @classmethod
    def nothing(cls, why: str) -> Shown:
        """Return that nothing is known."""
        return cls(why=why)


@dataclass
class _Cell:
    """Some samples, by their numbers in the data, on [lo, hi] of the line."""

    lo: float
    hi: float
    which: Tensor
    bounds: Bounds

    def edges(self) -> Numbers:
        return self.lo + (self.hi - self.lo) * np.arange(PARTS + 1) / PARTS


@dataclass
class Search:
    """The search for a bound on a line, in float64, on batches of samples."""

    enclosing: Enclosing
    line: Line
    batches: Sequence[Batch]
    sought: Sought
    losses: Callable[[float], Tensor]  # of the network itself at t, (n,)
    work: float = 0.0
    plain: float = 0.0
    cells: list[_Cell] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._edges = torch.tensor([0, *(batch.samples for batch in self.batches)]).cumsum(0)
        counts = torch.bincount(self.sought.index, minlength=len(self.sought.a))
        self._shares = (1.0 / counts.double())[self.sought.index]
        self._known: Numbers = np.array([0.0, 1.0])
        self._tops: Numbers = np.full((1, len(self.sought.a)), math.inf)
        self._ratio = 1.0  # work of one cell, in forward passes

    def run(self) -> Shown:
        """Return what can be shown within the budget. Raises NoEnclosure, naming what has none."""
        count = self._pilot()
        if count is None:
            return self._stopped(f"cells narrow enough would take more than {self.sought.budget:.4g} forward passes")
        for k in range(count):
            self._add(k / count, (k + 1) / count, torch.arange(self._samples))
        self._require_same(self.cells[0].bounds.ends[:, 0], 0.0)
        self._require_same(self.cells[-1].bounds.ends[:, 1], 1.0)
        inside = min(max(1, round(self.sought.likely * count)), count - 1)
        self._require_same(self.cells[inside].bounds.ends[:, 0], inside / count)
        tried: set[float] = set()
        while True:
            edges, left, right, self._tops = self._totals()
            self._known = edges
            over = np.maximum(left.max(1), right.max(1)) - self.sought.limit  # (intervals,)
            worst = int(over.argmax())
            bound = float(over[worst]) + self.sought.limit
            if bound <= self.sought.limit:
                return self._stopped("", bound)
            t = float(edges[worst] if left[worst].max() >= right[worst].max() else edges[worst + 1])
            if t not in tried and over[worst] > self._slack_at(edges[worst], edges[worst + 1]) / 2:
                tried.add(t)
                self.work += self.plain
                if self.sought.heights(self.losses(t), t).max() > self.sought.limit:
                    return replace(self._stopped("", bound), above=t)
            chosen = self._chosen(edges, left, right)
            more = sum(int(which.sum()) for which in chosen.values()) * 2 * self._ratio / self._samples
            if not chosen or self.passes + OVERHEAD * more > self.sought.budget:
                said = f"at most {bound:.4g} is shown within {self.sought.budget:.4g} forward passes"
                return self._stopped(said, bound)
            self._split(chosen)

    def evenly(self, pilot: Sequence[Batch]) -> Iterator[tuple[float, Tensor]]:
        """Yield points t and, (n,), losses at them: between those of one cell no sample's loss is above their chord.

        Cells are equal and as many as the budget has room for; fewer where on other samples, ``pilot``, fewer would do:
        nothing here is chosen by the losses that are bounded. Raises NoEnclosure where there is no room.
        """
        every = torch.arange(self._samples)
        self._bounds(0.0, 1.0, every[:1])  # what a cell costs
        counts = [count for count in FIRST if count * self._ratio * OVERHEAD <= self.sought.budget]
        if not counts:
            raise NoEnclosure(f"a line in cells at {self.sought.budget:.4g} forward passes")
        if pilot:
            narrow = (n for n in counts if self._slack_of(pilot, n) <= self.sought.room)
            counts = [next(narrow, counts[-1])]
        count = counts[-1]
        for k in range(count):
            cell = _Cell(k / count, (k + 1) / count, every, self._bounds(k / count, (k + 1) / count, every))
            for end, t in ((0, 0.0), (-1, 1.0)):
                if k == end % count:
                    self._require_same(cell.bounds.ends[:, end], t)
            yield from zip(cell.edges().tolist(), cell.bounds.most.unbind(1), strict=True)

    def _slack_of(self, batches: Sequence[Batch], count: int) -> float:
        """Return the mean slack of samples in the middle one of so many cells."""
        lo = count // 2 / count
        found, _ = self.enclosing(self.line, batches, lo, lo + 1 / count)
        return float(Bounds.joined(found).slack.mean())

    def _require_same(self, found: Tensor, t: float) -> None:
        """Raise NoEnclosure where the graph gives another loss at t than the network itself."""
        self.work += self.plain
        expected = self.losses(t)
        if not bool(((found - expected).abs() <= SAME * (1 + expected.abs())).all()):
            raise NoEnclosure(f"the traced graph, which gives other losses than the network at t = {t:g}")

    @property
    def passes(self) -> float:
        """What was done so far, in forward passes over the data."""
        return OVERHEAD * self.work / self.plain if self.plain else 0.0

    @property
    def _samples(self) -> int:
        return int(self._edges[-1])

    def _stopped(self, why: str, bound: float = math.inf) -> Shown:
        highest = tuple(self._tops.max(0))
        return Shown(bound, highest, len(self.cells), self.passes, why=why, edges=self._known, tops=self._tops)

    def _bounds(self, lo: float, hi: float, which: Tensor) -> Bounds:
        batch_of = torch.bucketize(which, self._edges[1:], right=True)
        parts = []
        for k, batch in enumerate(self.batches):
            here = which[batch_of == k] - self._edges[k]
            if len(here):
                parts.append(batch if len(here) == batch.samples else batch.take(here))
        found, cell = self.enclosing(self.line, parts, lo, hi)
        self._ratio = cell.work / max(1, cell.plain)
        self.plain = cell.plain / len(which) * self._samples
        self.work += cell.work
        return Bounds.joined(found)

    def _pilot(self) -> int | None:
        """Return how many cells to begin with, by what a few samples have as slack; None where too many."""
        few = torch.arange(0, self._samples, max(1, self._samples // PILOT))[:PILOT]
        room = max(self.sought.limit - self.sought.height, self.sought.room)
        for count in FIRST:
            lo = min(int(self.sought.likely * count), count - 1) / count
            slack = float(self._bounds(lo, lo + 1 / count, few).slack.mean())
            if slack <= 2 * room:
                break
            if 2 * count * self._ratio * OVERHEAD > self.sought.budget:
                return None
        return count if count * self._ratio * OVERHEAD <= self.sought.budget else None

    def _add(self, lo: float, hi: float, which: Tensor) -> None:
        self.cells.append(_Cell(lo, hi, which, self._bounds(lo, hi, which)))

    def _totals(self) -> tuple[Numbers, Numbers, Numbers, Numbers]:
        """Return the edges of all parts of cells, (m+1,), and heights above the chord at both sides of each interval.

        They are (m, parts). Between edges the bound is a straight line in every part. Last the highest loss of each
        interval, (m, parts).
        """
        edges = np.unique(np.concatenate([cell.edges() for cell in self.cells]))
        parts = len(self.sought.a)
        left, right = np.zeros((len(edges) - 1, parts)), np.zeros((len(edges) - 1, parts))
        for cell in self.cells:
            where = cell.which
            weighted = cell.bounds.most * self._shares[where].unsqueeze(1)
            sums = torch.zeros(parts, PARTS + 1, dtype=torch.float64)
            sums.index_add_(0, self.sought.index[where], weighted)
            begin, end = np.searchsorted(edges, (cell.lo, cell.hi))
            at = edges[begin : end + 1]
            for p in range(parts):
                values = np.interp(at, cell.edges(), sums[p].numpy())
                left[begin:end, p] += values[:-1]
                right[begin:end, p] += values[1:]
        chord = np.outer(1 - edges, self.sought.a) + np.outer(edges, self.sought.b)
        return edges, left - chord[:-1], right - chord[1:], np.maximum(left, right)

    def _overlapping(self, lo: float, hi: float) -> list[_Cell]:
        return [cell for cell in self.cells if cell.lo <= lo and hi <= cell.hi]

    def _slack_at(self, lo: float, hi: float) -> float:
        """Return the slack of all samples between two edges, at most."""
        return max(
            float(sum((c.bounds.slack * self._shares[w] * (self.sought.index[w] == p)).sum() for c, w in found))
            for found in [[(c, c.which) for c in self._overlapping(lo, hi)]]
            for p in range(len(self.sought.a))
        )

    def _chosen(self, edges: Numbers, left: Numbers, right: Numbers) -> dict[int, Tensor]:
        """Return which samples of which cells to halve, by the cells' numbers: those of most slack, as few as may do.

        Wherever the bound is above the limit, what they lose should bring it below.
        """
        chosen: dict[int, Tensor] = {}
        numbers = {id(cell): k for k, cell in enumerate(self.cells)}
        excess = np.maximum(left, right) - self.sought.limit
        for interval in np.flatnonzero(excess.max(1) > 0):
            lo, hi = edges[interval], edges[interval + 1]
            cells = [c for c in self._overlapping(lo, hi) if c.hi - c.lo > FINEST]
            if not cells:
                continue
            for p in np.flatnonzero(excess[interval] > 0):
                slacks = [self._weighted(cell, int(p)) for cell in cells]
                least = _threshold(torch.cat(slacks), float(excess[interval, p]) / GAIN)
                for cell, slack in zip(cells, slacks, strict=True):
                    which = slack >= least
                    if bool(which.any()):
                        k = numbers[id(cell)]
                        chosen[k] = chosen[k] | which if k in chosen else which
        return chosen

    def _weighted(self, cell: _Cell, part: int) -> Tensor:
        where = cell.which
        return cell.bounds.slack * self._shares[where] * (self.sought.index[where] == part)

    def _split(self, chosen: Mapping[int, Tensor]) -> None:
        before, self.cells = self.cells, [cell for k, cell in enumerate(self.cells) if k not in chosen]
        for k, which in chosen.items():
            cell = before[k]
            if not bool(which.all()):
                rest = ~which
                self.cells.append(_Cell(cell.lo, cell.hi, cell.which[rest], cell.bounds.of(rest)))
            middle = (cell.lo + cell.hi) / 2
            for lo, hi in ((cell.lo, middle), (middle, cell.hi)):
                self._add(lo, hi, cell.which[which])


def _threshold(slacks: Tensor, wanted: float) -> float:
    """Return the slack from which on samples have to be taken so that together they have ``wanted``; a little > 0."""
    ordered = slacks.sort(descending=True).values
    sums = ordered.cumsum(0)
    k = int(torch.searchsorted(sums, torch.tensor(wanted, dtype=sums.dtype)))
    return max(float(ordered[min(k, len(ordered) - 1)]), torch.finfo(torch.float64).tiny)
