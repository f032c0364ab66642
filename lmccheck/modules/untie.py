"""Heads that are tied to an embedding, written apart: each gets a parameter of its own, equal to begin with.

While the two are one tensor a residual stream can neither be rotated nor its final norm's gain folded into the head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmccheck.errors import UnsupportedArchitecture
from lmccheck.modules.copies import private_copy
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of
from lmccheck.modules.stored import tied_names

NEAR = 1e-9  # of an output's size, in float64


def tied_heads(module: nn.Module) -> dict[str, str]:
    """Map every name that is one tensor with an embedding's weight, and is no embedding's, to a name of that.

    >>> net = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    >>> net["head"].weight = net["embed"].weight
    >>> tied_heads(net)
    {'head.weight': 'embed.weight'}
    """
    tied = tied_names(module)
    embeddings = {name for name in tied if _is_embedding(module, name)}
    source = {tied[name]: name for name in sorted(embeddings, reverse=True)}
    return {name: source[one] for name, one in tied.items() if one in source and name not in embeddings}


def _is_embedding(module: nn.Module, name: str) -> bool:
    """Whether a parameter is the table of an embedding."""
    path, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(module.get_submodule(path), nn.Embedding)


def write_apart(module: nn.Module, heads: Mapping[str, str]) -> nn.Module:
    """Give a private module's heads parameters of their own; return it."""
    for name in heads:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        setattr(owner, leaf, nn.Parameter(getattr(owner, leaf).detach().clone()))
    return module


def heads_apart(
    module: nn.Module, inputs: tuple[Any, ...], build: Callable[[], nn.Module] | None = None
) -> tuple[nn.Module, dict[str, str]]:
    """Return a copy of a module with its heads written apart, and these, each with the embedding that it was tied to.

    ``build`` makes it untied where the network's own library can. The copy is verified in float64 on random weights:
    with equal tensors it computes what the module computes, and with others something else. Raises
    UnsupportedArchitecture where no head is tied, or where forward does not read the head's own tensor.
    """
    what, heads = f"model {type(module).__name__}", tied_heads(module)
    if not heads:
        raise UnsupportedArchitecture(
            f"untie = true: {what} has no head that is one tensor with an embedding, expected one; mend: leave "
            "untie out"
        )
    apart = write_apart(private_copy(module, evaluate=False), heads) if build is None else build()
    weights = randomised(module, 0)
    equal = {**weights, **{head: weights[source].clone() for head, source in heads.items()}}
    before, after = (_outputs(net, given, inputs) for net, given in ((module, weights), (apart, equal)))
    if tied_heads(apart) or not _near(before, after):
        raise UnsupportedArchitecture(
            f"untie = true: {what} computes something else once {', '.join(heads)} is a tensor of its own, with equal "
            "numbers in it; mend: build the model untied, and name that"
        )
    for head in heads:
        moved = {**equal, head: equal[head].flip(-1)}
        if _near(before, _outputs(apart, moved, inputs)):
            raise UnsupportedArchitecture(
                f"untie = true: {what} does not read {head!r} as a tensor of its own: its forward reads the "
                "embedding's; mend: let it call the head"
            )
    return apart, heads


def _outputs(module: nn.Module, weights: dict[str, Tensor], inputs: tuple[Any, ...]) -> list[Tensor]:
    return [tensor.clone() for tensor in outputs_of(module, weights, inputs, torch.float64)]


def _near(first: list[Tensor], second: list[Tensor]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(bool(((x - y).abs() <= NEAR * (1 + x.abs().max())).all()) for x, y in pairs if x.is_floating_point())
