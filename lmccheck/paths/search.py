"""Finding θ_i: which units to keep, with which weights, so that the losses stay those of θ.

Definition 1 of Kuditipudi et al. (2019) asks only that some subset exists; every entry of this menu is one more try.
All of it looks at calibration data alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from lmccheck.errors import LmcError
from lmccheck.evaluate import batchnorm
from lmccheck.evaluate.curve import working_dtype
from lmccheck.evaluate.masked import MaskedRuns
from lmccheck.evaluate.restated import restated
from lmccheck.evaluate.split import split, work
from lmccheck.pair import ModelPair
from lmccheck.paths.dropped import Dropped
from lmccheck.paths.edit import changed, lines, multiplied
from lmccheck.paths.keep import Keep, counts, factors, important_keep, merged_twins, random_keep, scales, spanning_keep
from lmccheck.paths.refit import Refit
from lmccheck.paths.structure import Structure, Units

RANDOM = {"dev": 10, "ci": 20, "thorough": 200}  # random subsets per level
SAMPLES = 4096  # of calibration data, by which candidates are compared
FITTED = 8192  # of calibration data, to which refits are fitted; a third as many more are held out
SCALES = (0.6, 4.5)
SEARCHED = 5e10  # multiplications that the random subsets of one level may cost, and a pass over what is fitted
FINALISTS = 2  # plain candidates whose scale is searched for


@dataclass(frozen=True)
class Search:
    """What was found for every level: the ``best`` of the whole menu and of the entries without refit, ``plain``."""

    best: dict[int, Dropped]
    plain: dict[int, Dropped]
    facts: dict[str, Any] = field(repr=False)


def find_dropped(
    pair: ModelPair,
    structure: Structure,
    side: str,
    levels: Sequence[int],
    *,
    keep: Keep = 0.5,
    refit: bool = True,
    seed: int = 0,
    profile: str = "ci",
    common: bool = False,
) -> Search:
    """Return, per level, the network nearest to θ in its losses that reads ⌊keep·h⌋ units of each group.

    Candidates are compared by mean |ℓ_i − ℓ|, their per-sample losses against those of θ: an upper bound of
    |L(θ_i) − L(θ)| that a network does not lower by being more certain on data θ was trained on.

    ``side``: ``"a"`` or ``"b"``. ``levels``: from which hidden level on units are dropped; 0 is θ_1 of the paper.
    ``keep``: a share of units, or one per group (all units of groups that are not named). Without ``refit`` only
    subsets and scales are searched. ``common``: the subsets found for level 0 are those of all levels, as in the
    paper's Lemma 1. ``profile``: ``dev``, ``ci`` or ``thorough``: 10, 20 or 200 random subsets per level.

    The result does not depend on which levels are asked for together. ``Dropped.loss`` is the mean on held out
    calibration data. Raises SourceError without calibration data, LmcError for options that make no sense.
    Source: Kuditipudi et al. 2019 (random subsets, scale 1/keep), Nguyen et al. 2021 (one scale by Brent; refits).
    """
    if side not in ("a", "b"):
        raise LmcError(f"find_dropped: side = {side!r}; expected 'a' or 'b'")
    if profile not in RANDOM:
        raise LmcError(f"find_dropped: profile = {profile!r}; expected one of {sorted(RANDOM)}")
    wrong = [level for level in levels if level not in range(len(structure.levels))]
    if wrong:
        raise LmcError(f"find_dropped: level {wrong[0]}; the network has levels 0 to {len(structure.levels) - 1}")
    shares = tuple(sorted(keep.items())) if isinstance(keep, Mapping) else keep
    key = ("dropped", side, shares, refit, seed, profile, common)
    known: dict[int, tuple[Dropped, Dropped, dict[str, Any]]] = pair.cache.setdefault(key, {})
    missing = [level for level in levels if level not in known]
    if missing:
        menu = _Menu(pair, structure, side, counts(structure, keep), refit, seed, RANDOM[profile])
        if common and 0 not in known:
            known[0] = menu.search(0, None)
        for level in missing:
            if level not in known:
                known[level] = menu.search(level, known[0][0].keep if common else None)
    facts = {
        "side": side,
        "seed": seed,
        "profile": profile,
        "random_subsets": RANDOM[profile],
        "common": common,
        "levels": {level: known[level][2] for level in levels},
    }
    return Search({k: known[k][0] for k in levels}, {k: known[k][1] for k in levels}, facts)


@dataclass(frozen=True)
class _Plain:
    """A choice of units with a factor for their outgoing weights, one per group or one for all."""

    name: str
    keep: dict[str, Tensor]
    scale: Any
    losses: Tensor


class _Menu:
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
        self.parts = split(pair, "which units to keep", 4 * fitted // 3, seed)
        samples = max(512, min(SAMPLES, int(SEARCHED / each / (subsets + 10))))
        data, self.held = self.parts.first(samples)
        dtype = working_dtype(pair.theta_a, pair.theta_b)
        self.runs = MaskedRuns(pair, structure.layers, data, dtype)
        self.refits = Refit(pair, structure, self.theta, self.parts, dtype)
        self.statistics = len(batchnorm.tracked(self.runs.graph.runner.module)) > 0
        everything = {group: torch.ones(1, structure.sizes[group]) for group in structure.groups}
        self.ones = lines(structure, everything)
        self.own = self._of(self.theta)

    def search(self, level: int, keep: Units | None) -> tuple[Dropped, Dropped, dict[str, Any]]:
        """Return the best of all and of the plain candidates of one level, and what there was."""
        groups = [group for groups in self.structure.levels[level:] for group in groups]
        kept = {group: self.kept[group] for group in groups}
        self._random_losses: list[float] = []
        before = self.runs.evaluations, self.refits.observed.passes
        fixed = None if keep is None else {group: keep[group] for group in groups}
        found = self._exact(level, kept, fixed)
        if found:
            best = plain = found[0]
        else:
            several = self._plain(level, kept, fixed)
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
            "evaluations": self.runs.evaluations - before[0],
            "passes": self.refits.observed.passes - before[1],
        }  # fmt: skip
        return best, plain, facts

    def _exact(self, level: int, kept: Mapping[str, int], fixed: Units | None) -> list[Dropped]:
        """Return θ_i that computes what θ does, where units have twins; nothing else is then to be found."""
        merged = merged_twins(self.structure, self.theta, kept) if fixed is None else None
        if merged is None:
            return []
        losses = self._of(merged[1])
        if not float((losses - self.own).abs().max()) <= 1e-3 * (1 + float(self.own.abs().max())):
            return []
        return [self._dropped(level, merged[0], merged[1], losses, "twins merged", {})]

    def _plain(self, level: int, kept: Mapping[str, int], fixed: Units | None) -> list[_Plain]:
        """Return every choice of units with scale 1/(kept share), and the best ones with one scale by Brent."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + level)
        if fixed is not None:
            named = [("given", dict(fixed))]
        else:
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

        minimize_scalar(loss, bounds=SCALES, method="bounded", options={"xatol": 0.05, "maxiter": 10})
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
