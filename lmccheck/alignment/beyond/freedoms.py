"""Which groups of a network may be mixed how: proposed from the slots of the spec, kept only where it is verified.

A proposal says which slots of a group are multiplied by a matrix M and which by its inverse transpose. It is tried in
float64 on random weights with a random M of its kind; it is kept if the outputs change by no more than 1e-9 relative.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lmccheck.alignment.beyond.mix import mix_group
from lmccheck.alignment.beyond.rotary import Planes, Proposal, rotary_proposals, site_of
from lmccheck.data.trees import tensors_in
from lmccheck.evaluate.outputs import relative_deviation
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import Runner
from lmccheck.store.tensors import equal
from lmccheck.symmetry.discover import Traced
from lmccheck.symmetry.sites import Site
from lmccheck.symmetry.slots import Slot, UnitGroup
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.verify import TOLERANCE

KINDS = ("rescaling", "sign-flips", "head-maps", "rotary-planes", "stream-rotation")
LITTLE, MORE = 1e-6, 16  # a relative change that outputs are asked of, and weights that are drawn where they give none
OF_HEADS = ("head-maps", "rotary-planes")  # kinds that mix the coordinates of heads


@dataclass(frozen=True)
class Freedom:
    """A verified way to mix the ``units`` of a group: ``forward`` slots by M, ``backward`` slots by M⁻ᵀ.

    ``kind`` says which M: ``rescaling`` positive diagonal, ``sign-flips`` ±1 diagonal, ``head-maps`` invertible,
    ``rotary-planes`` a complex number per plane of ``planes``. Of these ``group`` are the heads that the units, the
    coordinates of their queries and keys, lie in, and ``sites`` show a run's forward and backward ones, where any does.
    """

    kind: str
    group: str
    forward: tuple[Slot, ...] = field(repr=False)
    backward: tuple[Slot, ...] = field(repr=False)
    units: UnitGroup = field(repr=False)
    planes: Planes | None = field(default=None, repr=False)
    sites: tuple[Site, ...] = field(default=(), repr=False)

    def start(self) -> Tensor:
        """Return the values of the map that changes nothing, in the form that is learned."""
        if self.planes is not None:
            return torch.ones(self.units.copies, self.planes.count, dtype=torch.complex128)
        ones = torch.ones(self.units.copies, self.units.size, dtype=torch.float64)
        return torch.diag_embed(ones) if self.kind == "head-maps" else ones

    def matrix(self, values: Tensor) -> Tensor:
        """Return M of its values: (copies, size, size), or (copies, size) of a diagonal."""
        return values if self.planes is None else self.planes.matrix(values)

    def drawn(self) -> Tensor:
        """Return values of a random M."""
        return random_matrix(self.units, self.kind) if self.planes is None else self.planes.drawn(self.units.copies)

    def mix(self, spec: PermutationSpec, weights: Mapping[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        """Return ``weights`` mixed by the M of ``values``."""
        return mix_group(spec, self.units, weights, self.forward, self.backward, self.matrix(values))


class Trial:
    """Says whether a change of weights keeps the outputs of a network, on random weights in float64.

    Outputs that a little change of all weights does not change, classes, say, tell little: then more weights are drawn.
    """

    def __init__(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self._runner = Runner(module, dtype=torch.float64)
        self._inputs = inputs
        self.draws = [randomised(module, seed) for seed in range(2)]
        self._before = [self._outputs(weights) for weights in self.draws]
        if all(map(equal, self._before[0], self._outputs(_near(self.draws[0])))):
            self.draws += [randomised(module, seed) for seed in range(2, MORE)]
            self._before += [self._outputs(weights) for weights in self.draws[2:]]

    def _outputs(self, weights: dict[str, Tensor]) -> list[Tensor]:
        self._runner.load(weights)
        return [t.clone() for t in tensors_in(self._runner(self._inputs, "verifying a map beyond permutations"))]

    def deviation(self, changed: list[dict[str, Tensor]]) -> float:
        """Return the largest relative output deviation of the changed draws, infinite where it is no number."""
        pairs = zip(self._before, changed, strict=True)
        return max(relative_deviation(before, self._outputs(weights)) for before, weights in pairs)


def _near(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor * (1 + LITTLE * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }


def find_freedoms(derived: Traced, trial: Trial, kinds: tuple[str, ...]) -> list[Freedom]:
    """Return the verified freedoms of the given kinds, at most one of each kind per group.

    A group with head maps is not rescaled or flipped as well, nor are the heads it lies in: its maps include both.
    """
    found: list[Freedom] = []
    ordered = sorted(derived.spec.groups, key=lambda group: not group.within)
    for group in ordered:
        if any(f.kind == "head-maps" and group.name in derived.spec.by_name[f.group].within for f in found):
            continue
        for kind in ("head-maps", "sign-flips", "rescaling"):
            if kind not in kinds or (kind == "head-maps" and not _of_heads(group)):
                continue
            freedom = _first_that_holds(derived, _proposals(derived, group, kind), trial)
            if freedom is not None:
                found.append(freedom)
                if kind == "head-maps":
                    break
    for name, proposals in rotary_proposals(derived) if "rotary-planes" in kinds else ():
        freedom = _first_that_holds(derived, _turned(derived, name, proposals), trial)
        found += [freedom] if freedom is not None else []
    return found


def _of_heads(group: UnitGroup) -> bool:
    """Whether the units are coordinates of heads: one order in each, or one for all heads, which then share them."""
    several = any(part.group for slot in group.slots for part in slot.piece.parts[: slot.at] if slot.role == "consumer")
    return bool(group.within) or several


def _first_that_holds(derived: Traced, proposals: Iterable[Freedom], trial: Trial) -> Freedom | None:
    for freedom in proposals:
        if trial.deviation([freedom.mix(derived.spec, w, freedom.drawn()) for w in trial.draws]) <= TOLERANCE:
            return freedom
    return None


def _turned(derived: Traced, name: str, proposals: Iterable[Proposal]) -> Iterator[Freedom]:
    """Yield the planes that queries and keys of heads may have."""
    for units, forward, backward, planes in proposals:
        sites = tuple(site for slots in (forward, backward) if (site := site_of(slots, derived)) is not None)
        seen = sites if len(sites) == 2 else ()
        yield Freedom("rotary-planes", name, forward, backward, units, planes, seen)


def random_matrix(group: UnitGroup, kind: str) -> Tensor:
    """Return a random M of a kind, float64: (copies, size) for diagonal kinds, (copies, size, size) otherwise."""
    generator = torch.Generator().manual_seed(group.size)
    shape = (group.copies, group.size)
    noise = torch.rand(*shape, generator=generator, dtype=torch.float64)
    if kind == "rescaling":
        return 0.5 + noise
    if kind == "sign-flips":
        signs = torch.where(noise < 0.5, -1.0, 1.0).double()
        signs[:, 0] = -1.0
        return signs
    eye = torch.eye(group.size, dtype=torch.float64)
    return eye + 0.3 * torch.randn(*shape, group.size, generator=generator, dtype=torch.float64)


def _proposals(derived: Traced, group: UnitGroup, kind: str) -> Iterator[Freedom]:
    """Yield the ways a group may be mixed, the likeliest first."""
    for forward, backward in _sides(derived, group):
        yield Freedom(kind, group.name, forward, backward, group)


def _sides(derived: Traced, group: UnitGroup) -> Iterator[tuple[tuple[Slot, ...], tuple[Slot, ...]]]:
    """Yield which slots to multiply by M and which by M⁻ᵀ, the likeliest first."""
    producers = [slot for slot in group.slots if slot.role == "producer" and slot.learned]
    consumers = tuple(slot for slot in group.slots if slot.role == "consumer")
    makers: dict[Any, list[Slot]] = {}
    for slot in producers:
        makers.setdefault((slot.tensor.rpartition(".")[0], slot.piece), []).append(slot)
    classes = [tuple(slots) for slots in makers.values()]
    if not consumers:  # queries against keys: what scales one side is undone by the other
        for k in range(1, 2 ** (min(len(classes), 5) - 1)):
            first = [c for i, c in enumerate(classes) if not k >> i & 1]
            rest = [c for i, c in enumerate(classes) if k >> i & 1]
            yield tuple(s for c in first for s in c), tuple(s for c in rest for s in c)
        return
    yield tuple(producers), consumers
    vectors = {name for layer in derived.layers if layer.norm for name in (layer.norm.weight, layer.norm.bias)}
    norms = tuple(slot for slot in producers if slot.tensor in vectors)
    if norms:
        yield norms, consumers
    if len(classes) > 1:
        for slots in classes:
            yield slots, consumers


def describe(freedoms: list[Freedom]) -> dict[str, list[str]]:
    """Return, per kind, the groups that have it."""
    return {kind: [f.group for f in freedoms if f.kind == kind] for kind in KINDS if kind != "stream-rotation"}
