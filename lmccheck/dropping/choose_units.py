"""Which units to keep: at random, the most important ones, those that others can be written in, one of each kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmccheck.dropping.edit import Scale, instead, keep_factors
from lmccheck.errors import LmcError
from lmccheck.evaluate.regression import Moments
from lmccheck.symmetry.structure import State, Structure, Units

Keep = float | Mapping[str, float]  # the share of units that stays: of every group, or of each that is named
ROUNDING = 2e-15  # of what a unit explained at first: what it explains less of is nothing
RANDOM = {"dev": 10, "ci": 20, "thorough": 200}  # random subsets per level
Seen = Callable[[str, str], Moments]  # second moments of a group's units where a weight's layer reads them


@dataclass(frozen=True)
class SearchSettings:
    """How units are chosen that stay: the share ``keep`` of them, a share per group, or all of groups not named.

    Without ``refit`` only subsets and scales are searched. ``profile``: ``dev``, ``ci`` or ``thorough``: 10, 20 or 200
    random subsets a level, drawn by ``seed``. Raises LmcError for another profile.
    """

    keep: Keep = 0.5
    refit: bool = True
    seed: int = 0
    profile: str = "ci"

    def __post_init__(self) -> None:
        if self.profile not in RANDOM:
            raise LmcError(f"find_dropped: profile = {self.profile!r}; expected one of {sorted(RANDOM)}")

    @property
    def subsets(self) -> int:
        """How many random subsets are tried at each level."""
        return RANDOM[self.profile]

    @property
    def key(self) -> tuple[object, ...]:
        """What settings that search alike have in common, to remember results by."""
        shares = tuple(sorted(self.keep.items())) if isinstance(self.keep, Mapping) else self.keep
        return shares, self.refit, self.seed, self.profile


def kept_units(share: float, size: int) -> int:
    """Return ⌊share·size + 10⁻⁹⌋, so that a share a rounding error below a whole number of units is that number.

    >>> kept_units(0.29, 100), int(0.29 * 100), kept_units(0.5, 7)
    (29, 28, 3)
    """
    return math.floor(share * size + 1e-9)


def shares_of(structure: Structure, keep: Keep) -> dict[str, float]:
    """Return the share of every group, 1 where none is named. Raises LmcError unless all are numbers from 0 to 1."""
    shares = dict(keep) if isinstance(keep, Mapping) else dict.fromkeys(structure.groups, keep)
    unknown = sorted(set(shares) - set(structure.groups))
    if unknown and unknown[0] in structure.whole:
        raise LmcError(f"keep: {unknown[0]!r} is left whole: {structure.whole[unknown[0]]}; mend: leave it out")
    if unknown:
        raise LmcError(f"keep: group {unknown[0]!r} is unknown; expected some of {list(structure.groups)}")
    for group, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise LmcError(f"keep = {share!r} for group {group!r}; expected a share of its units, from 0 to 1")
    return {group: shares.get(group, 1.0) for group in structure.groups}


def unit_counts(structure: Structure, keep: Keep) -> dict[str, int]:
    """Return how many units of each group stay. Raises as ``shares_of``."""
    return {group: kept_units(share, structure.sizes[group]) for group, share in shares_of(structure, keep).items()}


def random_units(structure: Structure, kept: Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """Return exactly ``kept`` units of every group of it, each subset as likely as any other; sorted."""
    found = {}
    for group, count in kept.items():
        found[group] = torch.randperm(structure.sizes[group], generator=generator)[:count].sort().values
    return found


def important_units(
    structure: Structure, state: Mapping[str, Tensor], kept: Mapping[str, int], seen: Seen
) -> dict[str, Tensor]:
    """Return the units with the largest E[φ_u²]·‖out(u)‖², summed over the layers that read them; sorted."""
    found = {}
    for group, count in reversed(tuple(kept.items())):  # as moments are taken
        score = torch.zeros(structure.sizes[group], dtype=torch.float64)
        for weight, dim, positions in _readers(structure, group):
            moments = seen(weight, group)
            out = _outgoing(state[weight], dim, positions)
            score += moments.xx.diagonal().cpu() / max(1, moments.count) * out.square().sum(1)
        found[group] = score.argsort(descending=True, stable=True)[:count].sort().values
    return found


class Spanning:
    """Units whose linear combinations come close to what the layers that read a group get of it.

    Greedy column subset selection, with a constant: the next unit u is the one that takes most off
    ‖H·W − [H_S 1]·V‖² (V fitted), which is ‖W·R[:, u]‖²/R[u, u] for the covariance R of what S does not explain. Groups
    are taken from the output backwards, and outgoing weights to units that are dropped do not count. Positions inside a
    convolution's window are taken as one activation. What was chosen for a group is remembered: of how many units, and
    of the groups that it feeds which, is all that it depends on. ``device``: where it is computed, in float64.
    """

    def __init__(
        self, structure: Structure, state: Mapping[str, Tensor], seen: Seen, device: torch.device | None = None
    ) -> None:
        self._structure, self._state, self._seen, self._device = structure, state, seen, device
        self._known: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, kept: Mapping[str, int]) -> dict[str, Tensor]:
        """Return exactly ``kept`` units of every group of it, sorted."""
        found: dict[str, Tensor] = {}
        for group in reversed([group for group in self._structure.groups if group in kept]):
            key = (group, kept[group], *(id(found[fed]) for fed in self._fed(group) if fed in found))
            if key not in self._known:  # holds the tensors of the groups it feeds too, so their ids stay theirs
                self._known[key] = self._chosen(group, kept[group], found)
            found[group] = self._known[key]
        return {group: found[group] for group in kept}

    def _fed(self, group: str) -> list[str]:
        rows = self._structure.rows
        reading = [block.group for weight, _, _ in _readers(self._structure, group) for block in rows.get(weight, ())]
        return list(dict.fromkeys(reading))

    def _chosen(self, group: str, count: int, found: Mapping[str, Tensor]) -> Tensor:
        size = self._structure.sizes[group]
        covariance = torch.zeros(size, size, dtype=torch.float64, device=self._device)
        readers = _readers(self._structure, group)
        width = sum(self._state[weight].numel() // self._state[weight].shape[dim] for weight, dim, _ in readers)
        whole = torch.zeros_like(covariance) if width >= size else None
        outs = []
        for weight, dim, positions in readers:
            moments = self._seen(weight, group)
            mean = moments.x / max(1, moments.count)
            covariance += (moments.xx / max(1, moments.count) - torch.outer(mean, mean)).to(covariance)
            read = self._state[weight]
            for block in self._structure.rows.get(weight, ()):
                if block.group in found:
                    dropped = self._structure.others(block.group, found[block.group])
                    read = read.index_fill(block.dim, block.of(dropped), 0.0)
            out = _outgoing(read, dim, positions).to(covariance)
            if whole is None:
                outs.append(out)
            else:
                whole.addmm_(out, out.T)
        return _greedy(covariance, _product(whole, outs), count).sort().values


def _product(whole: Tensor | None, outs: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the product with ``whole``, (n, n), or else with out·outᵀ for the columns ``outs``, fewer than n."""
    if whole is not None:
        return whole.__matmul__
    out = torch.cat(list(outs), 1)
    return lambda x: out @ (out.T @ x)


def _greedy(covariance: Tensor, wanted: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """Return ``count`` columns chosen one by one by how much of tr(R·wanted) they explain; the first where none does.

    ``covariance`` (n, n) becomes R in place, what the chosen ones leave of it; ``wanted`` multiplies by a matrix of its
    size. What a column u explains is R[:, u]ᵀ·wanted·R[:, u]/R[u, u], whose numerator follows every step of R by
    products of matrices and vectors alone.
    """
    left = covariance
    explains = (left * wanted(left)).sum(0)
    alive = left.diagonal().clone()
    floor = 1e-10 * alive.clamp(min=1e-300)
    free = torch.ones_like(alive, dtype=torch.bool)
    least = ROUNDING * explains
    chosen: list[int] = []
    while len(chosen) < count:
        gain = torch.where(free & (alive > floor) & (explains > least), explains / alive.clamp(min=1e-300), 0.0)
        unit = int(gain.argmax())
        if not gain[unit] > 0:
            break
        chosen.append(unit)
        free[unit] = False
        column, share = left[unit].clone(), left[unit] / left[unit, unit]
        image = wanted(column)
        explains -= share * (2 * (left @ image) - share * (column @ image))
        left.addr_(column, share, alpha=-1.0)
        alive = left.diagonal().clamp(min=0.0)
    rest = free.nonzero()[:, 0][: count - len(chosen)]
    return torch.cat([torch.tensor(chosen, dtype=torch.int64), rest.cpu()])


def merged_twins(
    structure: Structure, state: Mapping[str, Tensor], kept: Mapping[str, int]
) -> tuple[dict[str, Tensor], State] | None:
    """Return units to keep and a state that computes what ``state`` does, where units have twins; None where not.

    Twins have equal incoming weights, so they do the same; outgoing weights of those that are dropped are added to
    those of a twin that is kept. All groups of ``kept`` need few enough kinds of units.
    """
    found: dict[str, Tensor] = {}
    result: dict[str, Tensor] = {}
    for group, count in kept.items():
        kind = _kinds(structure, state, group)
        first = [int((kind == k).nonzero()[0]) for k in range(int(kind.max()) + 1)]
        if len(first) > count:
            return None
        more = [unit for unit in range(len(kind)) if unit not in set(first)][: count - len(first)]
        found[group] = torch.tensor(first + more, dtype=torch.int64).sort().values
        dropped = structure.others(group, found[group])
        heirs = torch.tensor(first, dtype=torch.int64)[kind[dropped]]
        for weight, dim, positions in _readers(structure, group):
            to, given = positions[heirs].reshape(-1), positions[dropped].reshape(-1)
            before = result.get(weight, state[weight])
            moved = before.index_select(dim, given)
            result[weight] = before.index_add(dim, to, moved).index_fill(dim, given, 0.0)
    return found, instead(state, result)


def _kinds(structure: Structure, state: Mapping[str, Tensor], group: str) -> Tensor:
    """Return the number of each unit's kind: units of one kind have equal rows, (units,) int64."""
    parts = []
    for name, blocks in structure.rows.items():
        for block in blocks:
            if block.group == group and state[name].is_floating_point():
                rows = state[name].movedim(block.dim, 0)[block.positions]
                parts.append(rows.reshape(structure.sizes[group], -1))
    _, kind = torch.unique(torch.cat(parts, 1), dim=0, return_inverse=True)
    found: Tensor = kind
    return found


def _readers(structure: Structure, group: str) -> Sequence[tuple[str, int, Tensor]]:
    """Return (weight, dimension, positions) of the outgoing weights of a group."""
    return [
        (name, block.dim, block.positions)
        for name, blocks in structure.columns.items()
        for block in blocks
        if block.group == group
    ]


def _outgoing(weight: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Return a weight's columns of units as a matrix (units, everything else)."""
    return weight.movedim(dim, 0)[positions].reshape(len(positions), -1)


def scales(structure: Structure, keep: Units) -> dict[str, float]:
    """Return 1/(kept share) per group; 1 where none is kept."""
    return {group: structure.sizes[group] / max(1, len(units)) if len(units) else 1.0 for group, units in keep.items()}


def factors(structure: Structure, several: Sequence[tuple[Units, Scale]]) -> dict[str, Tensor]:
    """Return multipliers, (k, units) per group, of k choices: kept units and their factor (per group, or one)."""
    each = [keep_factors(structure, keep, scale) for keep, scale in several]
    return {group: torch.stack([lines[group] for lines in each]) for group in each[0]}
