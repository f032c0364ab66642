"""Tensors of one shape whose names differ by a number, seen as one: experts in a list, stacked along a new dimension.

``experts.*.w1.weight`` stands for ``experts.0.w1.weight``, ``experts.1.w1.weight`` and so on, in the order of their
numbers: a tensor of one more dimension, the first, whose positions are the experts. A group with slots there moves
whole experts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

STAR = "*"
Stacks = Mapping[str, tuple[str, ...]]  # pattern -> the tensors that it stands for, in order


def members_of(pattern: str, names: Collection[str]) -> tuple[str, ...]:
    """Return the names that a pattern with one ``*`` stands for, by their number.

    >>> members_of("e.*.w", ["e.10.w", "e.2.w", "e.2.b", "f.1.w"])
    ('e.2.w', 'e.10.w')
    """
    fits = re.compile(re.escape(pattern).replace(re.escape(STAR), r"(\d+)"))
    numbered = {name: int(found[1]) for name in names if (found := fits.fullmatch(name))}
    return tuple(sorted(numbered, key=lambda name: (numbered[name], name)))


def usual_role(tensor: str, dim: int) -> str:
    """Return the role that a dimension has where none is said: what comes in is the last, in stacks too.

    >>> usual_role("w1", 1), usual_role("experts.*.w1", 1), usual_role("experts.*.w1", 2)
    ('consumer', 'producer', 'consumer')
    """
    return "consumer" if dim > (STAR in tensor) else "producer"


def stacked(stacks: Stacks, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield each pattern of which all tensors are among ``weights``, with these stacked, (members, …)."""
    for pattern, members in stacks.items():
        if all(name in weights for name in members):
            yield pattern, torch.stack([weights[name].detach() for name in members])
