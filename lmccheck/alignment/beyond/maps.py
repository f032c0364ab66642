"""The maps of one alignment: a matrix for every freedom and stream, as parameters that autograd can move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lmccheck.alignment.beyond.freedoms import OF_HEADS, Freedom
from lmccheck.alignment.beyond.stream import Stream
from lmccheck.symmetry.spec import PermutationSpec


class Maps:
    """Applies the maps to weights in float64: streams rotated, then groups mixed.

    Every matrix is exp(X)·M₀ with a fixed M₀ and a learned X, zero at first: antisymmetric for rotations, any square
    matrix for head maps, a diagonal for rescaling, a complex one for planes, imaginary where these only turn; signs are
    not learned. So each stays invertible, and of its kind.
    """

    def __init__(self, spec: PermutationSpec, freedoms: list[Freedom], streams: list[Stream]) -> None:
        self.spec, self.freedoms, self.streams = spec, freedoms, streams
        self.rotations: list[Tensor] = []
        self.mixes = [freedom.start() for freedom in freedoms]
        for stream in streams:
            self.rotations.append(torch.eye(stream.free_basis().shape[1], dtype=torch.float64))
        self.reset()

    def reset(self) -> None:
        """Start learning from the present matrices."""
        self.moves = [torch.zeros_like(m).requires_grad_() for m in self.mixes]
        self.turns = [torch.zeros_like(r).requires_grad_() for r in self.rotations]

    @property
    def mixed_groups(self) -> set[str]:
        """Groups whose order the maps already cover, or follow."""
        heads = {freedom.group for freedom in self.freedoms if freedom.kind in OF_HEADS}
        return heads | {stream.group.name for stream in self.streams}

    def parameters(self) -> Iterator[Tensor]:
        """Yield what is learned."""
        yield from self.turns
        for freedom, move in zip(self.freedoms, self.moves, strict=True):
            if freedom.kind != "sign-flips":
                yield move

    def matrices(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the mixes and the rotations of the free directions as they now are."""
        mixes = []
        for freedom, start, move in zip(self.freedoms, self.mixes, self.moves, strict=True):
            if freedom.kind == "head-maps":
                mixes.append(torch.matrix_exp(move) @ start)
            elif freedom.planes is not None:
                still = torch.zeros_like(move.real)
                growth = move.real if freedom.planes.scaled else still
                mixes.append(torch.polar(growth.exp(), move.imag if freedom.planes.turned else still) * start)
            else:
                mixes.append(start if freedom.kind == "sign-flips" else torch.exp(move) * start)
        turned = zip(self.rotations, self.turns, strict=True)
        return mixes, [torch.matrix_exp(turn - turn.T) @ start for start, turn in turned]

    def alone(self, *, streams: bool = True, heads: bool = True) -> Maps:
        """Return these maps without rotations of streams, or without head maps: what is left out is the identity."""
        other = Maps(self.spec, self.freedoms, self.streams)
        mixes, rotations = self.matrices()
        for k, freedom in enumerate(self.freedoms):
            if heads or freedom.kind not in OF_HEADS:
                other.mixes[k] = mixes[k].detach()
        if streams:
            other.rotations = [rotation.detach() for rotation in rotations]
        other.reset()
        return other

    def become(self, other: Maps) -> None:
        """Take over the matrices of maps of the same kinds, and start learning from there."""
        mixes, rotations = other.matrices()
        self.mixes, self.rotations = ([x.detach() for x in several] for several in (mixes, rotations))
        self.reset()

    def copy(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return what has been learned so far, to ``restore``."""
        return [m.detach().clone() for m in self.moves], [t.detach().clone() for t in self.turns]

    def restore(self, learned: tuple[list[Tensor], list[Tensor]]) -> None:
        """Go back to what ``copy`` returned."""
        self.moves, self.turns = ([x.clone().requires_grad_() for x in several] for several in learned)

    def apply(self, weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return θ_B mapped; ``like`` is θ_A, whose gains a rotated stream takes over. Both float64."""
        mixes, rotations = self.matrices()
        result = dict(weights)
        for stream, rotation in zip(self.streams, rotations, strict=True):
            result = stream.rotated(self.spec, result, like, stream.embed(rotation))
        for freedom, values in zip(self.freedoms, mixes, strict=True):
            result = freedom.mix(self.spec, result, values)
        return result
