"""Rotating a residual stream that is read by linear layers, behind norms or not (Theus et al. 2025).

LayerNorm and RMSNorm of x commute with a rotation R of the stream once their gains are moved into what reads them:
γ ⊙ n(Rx) + β = D·(γ' ⊙ n(x)) + β with D = diag(γ)·R·diag(1/γ'). So producers of the stream are multiplied by R, readers
behind norm k by D_k⁻ᵀ, its gain becomes any γ_k wanted, and its shift D_k·β'; one behind no norm is multiplied by R.
LayerNorm subtracts the mean over the units: there R must keep the direction of all ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from lmccheck.alignment.beyond.freedoms import Trial
from lmccheck.alignment.beyond.mix import mixed
from lmccheck.symmetry.discover import Traced
from lmccheck.symmetry.facts import facts_of
from lmccheck.symmetry.sites import stored_name
from lmccheck.symmetry.slots import Slot, UnitGroup
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.trace import Trace
from lmccheck.symmetry.verify import TOLERANCE

SMALLEST = 1e-4  # a gain below this share of the largest cannot be divided by


@dataclass(frozen=True)
class Reader:
    """The norm in front of some consumers of the stream: its gain and shift (None where it has none)."""

    gain: str | None
    shift: str | None
    node: str  # the value the consumers read
    slots: tuple[Slot, ...] = field(repr=False)


@dataclass(frozen=True)
class Stream:
    """A residual stream that may be rotated: what writes into it, and who reads it behind which norm.

    ``centred`` is True where a rotation has to keep the direction of all ones, since a norm subtracts the mean.
    """

    group: UnitGroup
    producers: tuple[Slot, ...] = field(repr=False)
    readers: tuple[Reader, ...] = field(repr=False)
    centred: bool

    @property
    def width(self) -> int:
        return self.group.size

    def free_basis(self) -> Tensor:
        """Return an orthonormal basis, (width, free), of the directions that may be rotated; float64."""
        eye = torch.eye(self.width, dtype=torch.float64)
        if not self.centred:
            return eye
        ones = torch.full((self.width, 1), self.width**-0.5, dtype=torch.float64)
        basis: Tensor = torch.linalg.qr(torch.cat([ones, eye[:, 1:]], 1)).Q
        return basis[:, 1:]

    def embed(self, rotation: Tensor) -> Tensor:
        """Return the (width, width) rotation of the stream that acts as ``rotation`` on the free directions."""
        basis = self.free_basis().to(rotation)
        rest = torch.eye(self.width).to(rotation) - basis @ basis.T
        return basis @ rotation @ basis.T + rest

    def rotated(
        self, spec: PermutationSpec, weights: Mapping[str, Tensor], like: Mapping[str, Tensor], rotation: Tensor
    ) -> dict[str, Tensor]:
        """Return ``weights`` (float64) with the stream rotated, (width, width), and with the gains of ``like``."""
        result = dict(weights)
        outer = self.group.within
        rotation = rotation.to(weights[self.producers[0].tensor])

        def put(name: str, value: Tensor) -> None:
            for other, known in spec.tied.items():
                if known == spec.tied.get(name, name) and other in result:
                    result[other] = value

        for slot in self.producers:
            put(slot.tensor, mixed(slot, result[slot.tensor], rotation[None], outer))
        for reader in self.readers:
            ones = torch.ones(self.width).to(rotation)
            own = weights[reader.gain].to(rotation) if reader.gain else ones
            new = like[reader.gain].to(rotation) if reader.gain else ones
            back = (1 / new)[:, None] * rotation * own[None, :]  # D⁻ᵀ
            for slot in reader.slots:
                put(slot.tensor, mixed(slot, result[slot.tensor], back[None], outer))
            if reader.gain:
                put(reader.gain, new)
            if reader.shift:
                put(reader.shift, new * (rotation @ (weights[reader.shift].to(rotation) / own)))
        return result


def find_streams(derived: Traced, trial: Trial) -> tuple[list[Stream], dict[str, str]]:
    """Return the streams whose rotation is verified, and for other groups behind a norm why theirs is not."""
    found, refused = [], {}
    for group in derived.spec.groups:
        if group.within or not group.bound or group.size < 2:
            continue
        stream = _stream(derived, group)
        if isinstance(stream, str):
            refused[group.name] = stream
            continue
        for centred in (False, True):
            candidate = Stream(group, *stream, centred)
            basis = candidate.free_basis()
            generator = torch.Generator().manual_seed(group.size)
            noise = torch.randn(basis.shape[1], basis.shape[1], generator=generator, dtype=torch.float64)
            rotation = candidate.embed(torch.linalg.qr(noise).Q)
            others = [*trial.draws[1:], trial.draws[0]]
            changed = [
                candidate.rotated(derived.spec, w, like, rotation) for w, like in zip(trial.draws, others, strict=True)
            ]
            if trial.deviation(changed) <= TOLERANCE:
                found.append(candidate)
                break
        else:
            refused[group.name] = "a rotation changes the outputs: something treats the units of the stream one by one"
    return found, refused


def _stream(derived: Traced, group: UnitGroup) -> tuple[tuple[Slot, ...], tuple[Reader, ...]] | str:
    """Return the producers and readers of a group, or why it is no stream that can be rotated."""
    trace = derived.trace
    nodes = {node.name: node for node in trace.graph.nodes}
    consumers = {slot.tensor: slot for slot in group.slots if slot.role == "consumer"}
    by_norm: dict[tuple[str | None, str | None, str], list[Slot]] = {}
    seen: set[str] = set()
    norms: set[str] = set()
    for layer in derived.layers:
        if layer.weight in consumers:
            gain, shift = _affine(nodes[layer.source], trace)
            by_norm.setdefault((gain, shift, layer.source), []).append(consumers[layer.weight])
            seen.add(layer.weight)
            norms |= {name for name in (gain, shift) if name}
    if not by_norm:
        return "no linear layer reads it"
    if set(consumers) - seen:
        return f"{min(set(consumers) - seen)} reads it other than as a linear layer"
    producers = tuple(
        slot for slot in group.slots if slot.role == "producer" and slot.learned and slot.tensor not in norms
    )
    shared = list(derived.spec.tied.values())
    twice = {name for name in consumers if shared.count(name) > 1 or name in {slot.tensor for slot in producers}}
    if twice:
        return f"{min(twice)} is tied: it both makes the stream and reads it"
    if not norms <= {slot.tensor for slot in group.slots}:
        return "a norm acts on something else"
    readers = tuple(Reader(gain, shift, node, tuple(slots)) for (gain, shift, node), slots in by_norm.items())
    return producers, readers


def _affine(node: fx.Node, trace: Trace) -> tuple[str | None, str | None]:
    """Return the gain and shift of the norm that a value comes from, past ops that treat all units alike."""
    while True:
        facts = facts_of(node.target)
        if facts.affine:
            names = [stored_name(a, trace) for place, a in enumerate(node.args) if place in facts.affine]
            gain, shift, *_ = (*names, None, None)
            return gain, shift
        if facts.scales:
            names = [stored_name(argument, trace) for argument in node.args]
            return next((found for found in names if found), None), None
        if not facts.linear or not isinstance(node.args[0], fx.Node):
            return None, None
        node = node.args[0]


def smallest_gain(stream: Stream, weights: Mapping[str, Tensor]) -> float:
    """Return the smallest |γ| of the stream's norms as a share of that norm's largest (1 where none has a gain)."""
    gains = [weights[reader.gain].abs() for reader in stream.readers if reader.gain]
    return min((float(g.min() / g.max().clamp(min=1e-30)) for g in gains), default=1.0)
