"""Is a path one of this network, and does it join these two checkpoints? Asked of the numbers alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmccheck.errors import CheckpointError
from lmccheck.network.pair import ModelPair
from lmccheck.paths.path import Path
from lmccheck.store.tensors import equal, same_kind, shape_of
from lmccheck.symmetry.structure import State

OTHER = "mend: give a path made for this network"


def require_network(pair: ModelPair, path: Path, like: State, tied: Mapping[str, str], *, floats: bool = False) -> None:
    """Raise CheckpointError unless every breakpoint holds the tensors of ``like``, and no others, under its names.

    ``tied`` maps every name of the network to its canonical one. ``floats``: a floating tensor may be of any dtype.
    """
    for number, state in enumerate(path.points):
        strange = next((name for name in (*state, *like) if name not in like or name not in state), None)
        if strange is None:
            alike = {n for n, t in state.items() if t.shape == like[n].shape and same_kind(t, like[n], floats=floats)}
            strange = next((name for name in state if name not in alike), None)
        if strange is not None:
            got = shape_of(state[strange]) if strange in state else "nothing"
            expected = shape_of(like[strange]) if strange in like else "no such tensor"
            raise CheckpointError(
                f"path of pair {pair.name}: breakpoint {number}: tensor {strange!r}: got {got}, expected {expected}; "
                f"{OTHER}"
            )
    if (name := next((n for n in (*tied, *path.tied) if tied.get(n) != path.tied.get(n)), None)) is not None:
        raise CheckpointError(
            f"path of pair {pair.name}: 'tied' says that {name!r} is {_named(path.tied.get(name))}, in the network it "
            f"is {_named(tied.get(name))}; {OTHER}"
        )


def _named(own: str | None) -> str:
    return "no tensor" if own is None else repr(own)


def require_ends(pair: ModelPair, path: Path, **thetas: State) -> None:
    """Raise CheckpointError unless a path begins at ``a`` and ends at ``b``, every number the same.

    Of the two those are looked at that are given, by canonical names.
    """
    for key, theta in thetas.items():
        if (name := differing(path.points[0 if key == "a" else -1], theta)) is not None:
            raise CheckpointError(
                f"path of pair {pair.name}: it does not {'begin' if key == 'a' else 'end'} at {key}: tensor {name!r} "
                "differs; mend: give the checkpoints it was made for"
            )


def differing(state: State, theta: State) -> str | None:
    """Return the first tensor in which a breakpoint is not these weights, whatever their dtypes; None where it is."""
    return next((name for name, tensor in theta.items() if not _same(state[name], tensor)), None)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype:
        one, other = one.to(torch.float64), other.to(torch.float64)
    return equal(one, other)
