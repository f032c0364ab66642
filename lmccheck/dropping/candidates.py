"""The menu of tries at θ_i for one endpoint: subsets, scales, refits, and which of them is nearest to θ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from lmccheck.dropping.choose_units import factors, important_keep, merged_twins, random_keep, scales, spanning_keep
from lmccheck.dropping.dropped import Dropped
from lmccheck.dropping.edit import changed, lines, multiplied
from lmccheck.dropping.refit import Refit
from lmccheck.evaluate import batchnorm
from lmccheck.evaluate.fresh_statistics import restated
from lmccheck.evaluate.masked import MaskedRuns
from lmccheck.evaluate.points import working_dtype
from lmccheck.evaluate.split import split, work
from lmccheck.network.pair import ModelPair
from lmccheck.symmetry.structure import Structure, Units

SAMPLES = 4096  # of calibration data, by which candidates are compared
FITTED = 8192  # of calibration data, to which refits are fitted; a third as many more are held out
LEAST = 384  # of them at least, however long a sample takes
SCALES = (0.6, 4.5)
SEARCHED = 5e10  # multiplications that the random subsets of one level may cost, and a pass over what is fitted
FINALISTS = 2  # plain candidates whose scale is searched for


@dataclass(frozen=True)
class _Plain:
    """A choice of units with a factor for their outgoing weights, one per group or one for all."""

    name: str
    keep: dict[str, Tensor]
    scale: Any
    losses: Tensor


class Menu:
    """The menu for one endpoint: data, runs and refits that all levels share."""

    def __init__(
        self,
        pair: ModelPair,
        structure: Structure,
        side: str,
        kept: Mapping[str, int],
        refit: bool,
        seed: int,
        subsets: int,
    ) -> None:
        self.pair, self.structure, self.kept = pair, structure, kept
        self.theta = structure.canonical(pair.theta_a if side == "a" else pair.theta_b)
        self.seed, self.subsets, self.refit = seed, subsets, refit
        each = work(structure.trace, structure.layers, structure.shapes)
        fitted = max(1024, min(FITTED, int(SEARCHED / each)))
        samples = max(LEAST, min(SAMPLES, int(SEARCHED / each / (subsets + 10))))
        self.parts = split(pair, "which units to keep", 4 * fitted // 3, seed, most=min(512, samples // 2))
        data, self.held = self.parts.first(samples)
        dtype = working_dtype(pair.theta_a, pair.theta_b)
        self.runs = MaskedRuns(pair, structure.layers, data, dtype)
        self.refits = Refit(pair, structure, self.theta, self.parts, dtype)
        self.statistics = len(batchnorm.tracked(self.runs.graph.runner.module)) > 0
        everything = {group: torch.ones(1, structure.sizes[group]) for group in structure.groups}
        self.ones = lines(structure, everything)
        self.own = self._of(self.theta)
        self._random_losses: list[float] = []

    def search(self, level: int) -> tuple[Dropped, Dropped, dict[str, Any]]:
        """Return the best of all and of the plain candidates of one level, and what there was."""
        groups = [group for groups in self.structure.levels[level:] for group in groups]
        kept = {group: self.kept[group] for group in groups}
        self._random_losses = []
        before = self.runs.evaluations
        found = self._exact(level, kept)
        if found:
            best = plain = found[0]
        else:
            several = self._plain(level, kept)
            finished = self._finished(level, several)
            plain = min(finished, key=_score)
            refits = self._refits(level, several) if self.refit else []
            best = min([*refits, plain], key=_score)
            found = [*finished, *refits]
        facts = {
            "kept": kept,
            "groups": {group: self.structure.sizes[group] for group in groups},
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
        losses = self._of(merged[1])
        if not float((losses - self.own).abs().max()) <= 1e-3 * (1 + float(self.own.abs().max())):
            return []
        nothing = all(count == self.structure.sizes[group] for group, count in kept.items())
        return [self._dropped(level, *merged, losses, "all kept" if nothing else "twins merged", {})]

    def _plain(self, level: int, kept: Mapping[str, int]) -> list[_Plain]:
        """Return every choice of units with scale 1/(kept share), and the best ones with one scale by Brent."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + level)
        named = [(f"random {k}", random_keep(self.structure, kept, generator)) for k in range(self.subsets)]
        named.append(("important", important_keep(self.structure, self.theta, kept, self.refits.seen)))
        named.append(("spanning", spanning_keep(self.structure, self.theta, kept, self.refits.seen)))
        losses = self._scaled([(keep, scales(self.structure, keep)) for _, keep in named])
        found = [_Plain(n, k, scales(self.structure, k), x) for (n, k), x in zip(named, losses, strict=True)]
        self._random_losses = [float(item.losses.mean()) for item in found if item.name.startswith("random")]
        chosen = sorted((item for item in found if item.name.startswith("random")), key=self._near)[:1]
        chosen += [item for item in found if not item.name.startswith("random")]
        for item in sorted(chosen, key=self._near)[:FINALISTS]:
            chosen.append(self._brent(item))
        return chosen

    def _brent(self, item: _Plain) -> _Plain:
        """Return a choice of units with the common scale that gives the smallest loss."""
        known: dict[float, Tensor] = {}

        def loss(r: float) -> float:
            known[r] = self._scaled([(item.keep, r)])[0]
            return _distance(known[r], self.own)

        minimize_scalar(loss, bounds=SCALES, method="bounded", options={"xatol": 0.1, "maxiter": 8})
        best = min(known, key=lambda r: _distance(known[r], self.own))
        return _Plain(f"{item.name}, one scale", item.keep, best, known[best])

    def _scaled(self, several: Sequence[tuple[Units, Any]]) -> Tensor:
        """Return per-sample losses, (k, n), of choices of units with their factors; nothing is refitted."""
        self.runs.load(self.structure.stored(self.theta))
        return self.runs.losses(lines(self.structure, factors(self.structure, several)))

    def _of(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return per-sample losses, (n,), of a state."""
        self.runs.load(self.structure.stored(state))
        return self.runs.losses(self.ones)[0]

    def _finished(self, level: int, several: Sequence[_Plain]) -> list[Dropped]:
        """Return plain candidates as networks; where BatchNorms follow, with statistics of their own as well."""
        found = []
        for item in several:
            multipliers = factors(self.structure, [(item.keep, item.scale)])
            state = multiplied(self.structure, self.theta, {group: line[0] for group, line in multipliers.items()})
            found.append(self._dropped(level, item.keep, state, item.losses, item.name, {"scale": item.scale}))
        return [*found, *self._restated(found)]

    def _restated(self, several: Sequence[Dropped]) -> list[Dropped]:
        """Return networks with the BatchNorm statistics of later levels taken on the data refits are fitted to."""
        return [fresh for dropped in several if (fresh := self._fresh(dropped)) is not None]

    def _fresh(self, dropped: Dropped) -> Dropped | None:
        if not self.statistics:
            return None
        runner = self.runs.graph.runner
        stored = self.structure.stored(dropped.weights)
        fresh = restated(runner, stored, self.parts.fit, self.parts.origin)
        last = dropped.level + 1 if self.structure.sequential else dropped.level
        kept = {group for groups in self.structure.levels[:last] for group in groups}
        state = dict(dropped.weights)
        for name, tensor in fresh.items():
            own = self.structure.trace.tied.get(name, name)
            blocks = self.structure.rows.get(own, ())
            if blocks and not any(block.group in kept for block in blocks):
                state[own] = tensor.to("cpu", torch.float64)
        if not changed(self.structure.rows, state, dropped.weights):
            return None
        name = f"{dropped.how}, statistics re-estimated"
        facts = {**dropped.facts, "statistics": "re-estimated"}
        return self._dropped(dropped.level, dropped.keep, state, self._of(state), name, facts, dropped.refitted)

    def _refits(self, level: int, several: Sequence[_Plain]) -> list[Dropped]:
        """Return refits of the best random subset and of those that were chosen for a reason."""
        found = []
        for item in several:
            if item.name.endswith("one scale"):
                continue  # the same units as another entry
            state, facts = self.refits(level, item.keep)
            found.append(self._dropped(level, item.keep, state, self._of(state), f"{item.name}, refitted", facts, True))
        return [*found, *self._restated([min(found, key=_score)])]

    def _near(self, item: _Plain) -> float:
        return _distance(item.losses, self.own)

    def _dropped(
        self,
        level: int,
        keep: Units,
        state: dict[str, Tensor],
        losses: Tensor,
        how: str,
        facts: Mapping[str, Any],
        refitted: bool = False,
    ) -> Dropped:
        """Return a candidate with its loss and its score, both on held out samples."""
        distance = _distance(losses[self.held], self.own[self.held])
        told = {**facts, "distance": distance, "loss_all": float(losses.mean())}
        return Dropped(level, keep, state, float(losses[self.held].mean()), how, refitted, told)


def _score(dropped: Dropped) -> float:
    score: float = dropped.facts["distance"]
    return score


def _distance(losses: Tensor, own: Tensor) -> float:
    """Return the mean of |losses − own|, infinite where it is no number, so that it is never the smallest."""
    value = float((losses - own).abs().mean())
    return value if value == value else float("inf")
