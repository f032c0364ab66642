"""A path that fails early: which of its points are tried, and what is found of the one that is too high."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lmccheck.finding import Finding, Where, bound_of
from lmccheck.properties.early import Early, Wanted, require_bounded
from lmccheck.properties.low_loss_path import EXCESS
from lmccheck.properties.remarks import end_of

if TYPE_CHECKING:
    from lmccheck.evaluate.evaluator import Measured
    from lmccheck.finding import End
    from lmccheck.network.pair import ModelPair
    from lmccheck.paths.along import Along
    from lmccheck.paths.path import Path
    from lmccheck.symmetry.structure import Structure

LACKING = "the rest of the path, its segments, which layer costs most"
REPEATED = 2  # passes that are made again where nothing is settled: of the endpoints
Spot = tuple[int, float]  # a segment, counted from 0, and where on it


def early_of(pair: ModelPair, early_fail: float, seed: int) -> Wanted | None:
    """Return what was asked of paths of a pair; None for nothing. Raises SourceError where losses may be negative."""
    if not early_fail:
        return None
    require_bounded(pair.network)
    return Wanted(early_fail, seed)


@dataclass(frozen=True)
class High:
    """A path that is too high at a spot."""

    pair: ModelPair
    path: Path
    epsilon: float | str
    early: Early
    ends: tuple[End, End]
    spot: Spot
    evaluations: int

    def finding(self, what: str, advice: Sequence[str], facts: Mapping[str, Any], notes: Sequence[str] = ()) -> Finding:
        """Return the finding; ``what`` fails, and what may help."""
        pair, path, segment = self.pair, self.path, self.path.segments[self.spot[0]]
        found = Finding(
            0.0,
            self.epsilon,
            pair.loss.unit,
            endpoints=self.ends,
            above="worse",
            where=Where(segment=f"{self.spot[0] + 1}{segment.kind}"),
            notes=notes,
            witness=replace(path, facts={**path.facts, "epsilon": self.epsilon}),
            evaluations=self.evaluations,
            facts={"excess_definition": EXCESS, "kinds": path.kinds, "precision": "float64", **facts},
        )
        found = self.early.finding(found, pair.data, LACKING)
        return replace(found, failure=self.early.failure(found, pair.name, what, "excess", pair.data, next=advice))


def settled_path(
    pair: ModelPair,
    path: Path,
    epsilon: float | str,
    wanted: Wanted,
    profile: str,
    structure: Structure | None = None,
) -> High | None:
    """Return that a path is above the limit at one of its spots; None where that is not settled early.

    ``structure``: the units of a path by construction, whose claims are checked first; a chain has none, and its
    BatchNorm statistics are taken afresh at every point. Raises CheckpointError where it is no path of the pair.
    """
    import torch

    from lmccheck.evaluate.early import Asked, Gate, Place, settle

    along, measured = _begun(pair, path, structure)
    exact, ends = along.exact, (end_of("a", measured[0]), end_of("b", measured[1]))
    require_bounded(pair.network, *measured)
    worse = max(end.loss for end in ends)
    allowed = [worse + bound_of(epsilon, worse)]
    spots = {f"segment {number + 1} at {s:g}": (number, s) for number, s in _spots(path)}
    places = [
        Place(label, partial(lambda spot: exact.weights(path.between(*spot)), spot), allowed)
        for label, spot in spots.items()
    ]
    gate = Gate(torch.ones(pair.data.samples, dtype=torch.float64))
    setup = sum(batch.samples for batch in exact.calibration) if path.is_chain and exact.batchnorms else 0
    asked = Asked(lambda found: found.losses, [gate], wanted.error, reestimate=path.is_chain, setup=setup)
    tried = settle(exact, places, asked, wanted.seed, _passes(path, profile))
    if (settled := tried.settled) is None:
        return None
    early = Early(tried, settled, wanted.error, lambda mean: mean - worse)
    return High(pair, path, epsilon, early, ends, spots[settled.place.label], along.evaluations)


def _begun(pair: ModelPair, path: Path, structure: Structure | None) -> tuple[Along, Sequence[Measured]]:
    """Check what can be without losses along a path; return what measures it, and both endpoints measured."""
    from lmccheck.paths.along import Along
    from lmccheck.paths.certify import claimed
    from lmccheck.paths.chain import Outputs, along_chain

    if structure is None:
        along, (a, b, _) = along_chain(pair, path, Outputs(strict=True))
        return along, (a, b)
    claimed(pair, structure, path)
    along = Along(pair, path)
    ends = zip((pair.a, pair.b), ("endpoint a", "endpoint b"), strict=True)
    return along, [along.exact.endpoint(end.theta, label, end.checkpoint.label) for end, label in ends]


def _spots(path: Path) -> Iterator[Spot]:
    """Yield where a path is likely to be high: where functions change, at breakpoints between its ends, and half way.

    From the middle of a chain to its ends; of a path by construction the breakpoints that no constant segment leads
    to, and the middles of segments of kind d.
    """
    inner = range(len(path.segments) - 1)
    if path.is_chain:
        yield from ((k, 1.0) for k in sorted(inner, key=lambda k: abs(k + 1 - len(path.segments) / 2)))
        return
    yield from ((k, 1.0) for k in inner if path.segments[k].kind not in "bc")
    yield from ((k, 0.5) for k, segment in enumerate(path.segments) if segment.kind == "d")


def _passes(path: Path, profile: str) -> float:
    """Return how many passes over the data certifying a path takes at least, without those that are made again."""
    from lmccheck.evaluate.early import SHARE
    from lmccheck.paths.certify import SAMPLED
    from lmccheck.paths.chain import SAMPLED as OF_CHAINS

    points, rounds = (OF_CHAINS if path.is_chain else SAMPLED)[profile]
    sampled = sum(segment.kind in "dl" for segment in path.segments)
    return max(0.0, len(path.points) + sampled * (points - 2 + 2 * rounds) - REPEATED / SHARE)
