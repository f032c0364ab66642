"""Candidates for θ_i of one endpoint: subsets, scales, refits, and which of them is nearest to θ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lmccheck.dropping.choose_units import (
    SearchSettings,
    Spanning,
    factors,
    important_units,
    merged_twins,
    random_units,
    scales,
    unit_counts,
)
from lmccheck.dropping.dropped import Dropped
from lmccheck.dropping.edit import Multiplied, changed, instead, keep_factors, lines
from lmccheck.dropping.freedom import groups_from, statistics_behind
from lmccheck.dropping.refit import Refit
from lmccheck.evaluate.batchnorm import fresh_statistics, tracked
from lmccheck.evaluate.masked import MaskedRuns
from lmccheck.evaluate.points import working_dtype
from lmccheck.evaluate.split import split, work
from lmccheck.modules.runner import Runner
from lmccheck.network.endpoint import Endpoint, kept_weights
from lmccheck.symmetry.structure import Canonical, Structure, Units

SAMPLES = 4096  # of calibration data, by which candidates are compared
FITTED = 8192  # of calibration data, to which refits are fitted; a third as many more are held out
LEAST = 384  # of them at least, however long a sample takes
GRID = [0.6 * 7.5 ** (k / 5) for k in range(6)]  # scales, from 0.6 to 4.5
RATIO, FINER = GRID[1] / GRID[0], (1 / 2, 1 / 4)  # of neighbours; by which part of it finer ones lie beside the best
SEARCHED = 5e10  # multiplications that the random subsets of one level may cost, and a pass over what is fitted
FINALISTS = 2  # plain candidates whose scale is searched for


@dataclass(frozen=True)
class _Choice:
    """A choice of units with a factor for their outgoing weights, one per group or one for all."""

    name: str
    keep: dict[str, Tensor]
    scale: Any
    losses: Tensor


class Candidates:
    """The candidates for one endpoint: data, runs and refits that all levels share."""

    def __init__(self, end: Endpoint, structure: Structure, settings: SearchSettings) -> None:
        self.structure, self.settings = structure, settings
        self.kept = unit_counts(structure, settings.keep)
        self.theta = Canonical(structure, end.once(kept_weights))
        each = work(structure.trace, structure.layers, structure.shapes)
        fitted = max(1024, min(FITTED, int(SEARCHED / each)))
        samples = max(LEAST, min(SAMPLES, int(SEARCHED / each / (settings.subsets + 10))))
        self.parts = split(
            end.network, "which units to keep", 4 * fitted // 3, settings.seed, most=min(512, samples // 2)
        )
        data, self.held = self.parts.first(samples)
        dtype = working_dtype(end.theta)
        self.runs = MaskedRuns(end.network, structure, data, dtype)
        self.refits = Refit(end.network, structure, self.theta, self.parts, dtype)
        self.spanning = Spanning(structure, self.theta, self.refits.seen, end.network.torch_device)
        self.full = self.runs.graph.weights(end.theta)
        self.own = self._of(self.full)
        self._random_losses: list[float] = []

    @cached_property
    def important(self) -> dict[str, Tensor]:
        """The most important units of every group."""
        return important_units(self.structure, self.theta, self.kept, self.refits.seen)

    @cached_property
    def _runner(self) -> Runner | None:
        """What takes statistics; None for a network without them."""
        return self.runs.graph.loaded(self.full) if tracked(self.runs.network.module) else None

    def search(self, level: int) -> tuple[Dropped, Dropped, dict[str, Any]]:
        """Return the best of all and of the plain candidates of one level, and what there was."""
        kept = {group: self.kept[group] for group in groups_from(self.structure, level)}
        self._random_losses = []
        before = self.runs.evaluations
        found = self._exact(level, kept)
        if found:
            best = plain = found[0]
        else:
            several = self._choices(level, kept)
            finished = self._finished(level, several)
            plain = min(finished, key=_score)
            refits = self._refits(level, several) if self.settings.refit else []
            best = min([*refits, plain], key=_score)
            found = [*finished, *refits]
        facts = {
            "kept": kept,
            "groups": {group: self.structure.sizes[group] for group in kept},
            "loss_full": float(self.own[self.held].mean()),
            "candidates": [{"name": d.how, "loss": d.loss, "refitted": d.refitted, **d.facts} for d in found],
            "random_losses": self._random_losses,
            "best": best.how,
            "plain": plain.how,
            "samples": len(self.held),
            "held_out": int(self.held.sum()),
            "fitted": sum(batch.samples for batch in self.parts.fit),
            "evaluations": self.runs.evaluations - before,
        }  # fmt: skip
        return best, plain, facts

    def _exact(self, level: int, kept: Mapping[str, int]) -> list[Dropped]:
        """Return θ_i that computes what θ does, where units have twins; nothing else is then to be found."""
        merged = merged_twins(self.structure, self.theta, kept)
        if merged is None:
            return []
        losses = self._of(self.runs.graph.stored(merged[1]))
        if not float((losses - self.own).abs().max()) <= 1e-3 * (1 + float(self.own.abs().max())):
            return []
        nothing = all(count == self.structure.sizes[group] for group, count in kept.items())
        how = "all kept" if nothing else "twins merged"
        return [self._scored(Dropped(level, *merged, math.nan, how, False), losses)]

    def _choices(self, level: int, kept: Mapping[str, int]) -> list[_Choice]:
        """Return every choice of units with scale 1/(kept share), and the best ones with one scale for all."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + level)
        named = [(f"random {k}", random_units(self.structure, kept, generator)) for k in range(self.settings.subsets)]
        spanning = self.spanning(kept)
        named.append(("important", {group: self.important[group] for group in kept}))
        named.append(("spanning", spanning))
        self.refits.seen.let_go()  # both remember what they chose
        losses = self._scaled([(keep, scales(self.structure, keep)) for _, keep in named])
        found = [_Choice(n, k, scales(self.structure, k), x) for (n, k), x in zip(named, losses, strict=True)]
        drawn, chosen = found[:-2], found[-2:]
        self._random_losses = [float(item.losses.mean()) for item in drawn]
        chosen = [min(drawn, key=self._near), *chosen]
        finalists = sorted(chosen, key=self._near)[:FINALISTS]
        scaled = self._with_one_scale([replace(item, name=f"{item.name}, one scale") for item in finalists])
        return [*chosen, *scaled]

    def _with_one_scale(self, several: Sequence[_Choice]) -> list[_Choice]:
        """Return choices of units, each with the scale for all groups that is nearest to θ, on a grid and then beside.

        Many scales share a pass over what is before the level, which a search that waits for every loss would repeat.
        """
        best = [min(tried, key=self._near) for tried in self._at([(item, GRID) for item in several])]
        for part in FINER:
            beside = self._at([(item, [item.scale * RATIO**-part, item.scale * RATIO**part]) for item in best])
            best = [min([item, *tried], key=self._near) for item, tried in zip(best, beside, strict=True)]
        return best

    def _at(self, several: Sequence[tuple[_Choice, Sequence[float]]]) -> list[list[_Choice]]:
        """Return each choice of units at each of its scales."""
        losses = iter(self._scaled([(item.keep, r) for item, grid in several for r in grid]))
        return [[replace(item, scale=r, losses=next(losses)) for r in grid] for item, grid in several]

    def _scaled(self, several: Sequence[tuple[Units, Any]]) -> Tensor:
        """Return per-sample losses, (k, n), of choices of units with their factors; nothing is refitted."""
        return self._losses(self.full, several)

    def _losses(self, weights: Mapping[str, Tensor], several: Sequence[tuple[Units, Any]]) -> Tensor:
        self.runs.load(weights)
        return self.runs.losses(lines(self.structure, factors(self.structure, several)))

    def _of(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return per-sample losses, (n,), of weights by every name that they are stored by."""
        return self._losses(weights, [(self.structure.keep_all(), 1.0)])[0]

    def _finished(self, level: int, several: Sequence[_Choice]) -> list[Dropped]:
        """Return plain candidates as networks; where BatchNorms follow, with statistics of their own as well."""
        found = []
        for item in several:
            state = Multiplied(self.structure, self.theta, keep_factors(self.structure, item.keep, item.scale))
            dropped = Dropped(level, item.keep, state, math.nan, item.name, False, {"scale": item.scale})
            found.append(self._scored(dropped, item.losses))
        return [*found, *self._with_fresh_statistics(found)]

    def _with_fresh_statistics(self, several: Sequence[Dropped]) -> list[Dropped]:
        """Return networks with the BatchNorm statistics of later levels taken on the data refits are fitted to."""
        return [fresh for dropped in several if (fresh := self._fresh(dropped)) is not None]

    def _fresh(self, dropped: Dropped) -> Dropped | None:
        if self._runner is None:
            return None
        stored = self.runs.graph.stored(dropped.weights)
        fresh = fresh_statistics(self._runner, stored, self.parts.fit, self.parts.origin)
        behind = statistics_behind(self.structure, dropped.keep)
        named = {name: self.structure.trace.tied.get(name, name) for name in fresh}
        owns = {name: own for name, own in named.items() if own in behind}
        taken = {own: fresh[name].to("cpu", torch.float64) for name, own in owns.items()}
        if not changed(taken, taken, dropped.weights):
            return None
        state = instead(dropped.weights, taken)
        how = f"{dropped.how}, statistics re-estimated"
        facts = {**dropped.facts, "statistics": "re-estimated"}
        losses = self._of({**stored, **{name: fresh[name] for name in owns}})
        return self._scored(replace(dropped, weights=state, how=how, facts=facts), losses)

    def _refits(self, level: int, several: Sequence[_Choice]) -> list[Dropped]:
        """Return refits of the best random subset and of those that were chosen for a reason; weights of the best."""
        found: list[Dropped] = []
        best = 0
        for item in several:
            if item.name.endswith("one scale"):
                continue  # the same units as another entry
            state, facts = self.refits(level, item.keep)
            dropped = Dropped(level, item.keep, state, math.nan, f"{item.name}, refitted", True, facts)
            found.append(self._scored(dropped, self._of(self.runs.graph.stored(state))))
            worse = len(found) - 1
            if _score(found[worse]) < _score(found[best]):
                best, worse = worse, best
            if worse != best:
                found[worse] = replace(found[worse], weights={})
        return [*found, *self._with_fresh_statistics([found[best]])]

    def _near(self, item: _Choice) -> float:
        return _distance(item.losses, self.own)

    def _scored(self, dropped: Dropped, losses: Tensor) -> Dropped:
        """Return a candidate with its loss and its score, both on held out samples."""
        distance = _distance(losses[self.held], self.own[self.held])
        facts = {**dropped.facts, "distance": distance, "loss_all": float(losses.mean())}
        return replace(dropped, loss=float(losses[self.held].mean()), facts=facts)


def _score(dropped: Dropped) -> float:
    score: float = dropped.facts["distance"]
    return score


def _distance(losses: Tensor, own: Tensor) -> float:
    """Return the mean of |losses − own|, infinite where it is no number, so that it is never the smallest."""
    value = float((losses - own).abs().mean())
    return value if value == value else float("inf")
