"""Random weights for a module, in which no two positions are alike: what a claim about a network is tested on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lmccheck.modules.stored import stored_tensors
from lmccheck.store.tensors import identity


def randomised(module: nn.Module, seed: int = 0, reference: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return float64 weights for ``module`` in which no two positions are alike.

    Tensors of ``reference`` (the module's own by default) are mixed half and half with noise of their own scale, at
    least 0.1, so that a deep network's activations neither explode nor die out more than they did; those that are
    nowhere negative (running variances) stay positive; integer tensors are kept.
    """
    drawn: dict[object, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, own, generator in draws(module, seed):
        if identity(own) not in drawn:
            source = (own if reference is None else reference[name]).detach()
            drawn[identity(own)] = target = torch.empty(
                source.shape, dtype=torch.float64 if source.is_floating_point() else source.dtype
            )
            shake(target, source, generator)
        weights[name] = drawn[identity(own)]
    return weights


def shaken(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return the weights of a module after mixing them with noise, in place, as ``randomised`` does."""
    done: set[object] = set()
    for _, own, generator in draws(module, seed):
        if identity(own) not in done:
            done.add(identity(own))
            shake(own.detach(), own.detach(), generator)
    return stored_tensors(module)


def draws(module: nn.Module, seed: int) -> Iterator[tuple[str, Tensor, torch.Generator]]:
    """Yield the name, the tensor and the generator of every tensor of a module; tied names are drawn alike."""
    generator = torch.Generator()
    first: dict[object, int] = {}
    for number, (name, own) in enumerate(stored_tensors(module).items()):
        generator.manual_seed(seed * 1_000_003 + first.setdefault(identity(own), number))
        yield name, own, generator


_AT_ONCE = 1 << 20  # numbers


def shake(
    target: Tensor, source: Tensor, generator: torch.Generator, strength: float = 1.0, signed: bool = False
) -> None:
    """Fill ``target`` with ``source`` and noise, a little at a time; not ``signed``, what is positive stays so."""
    target.copy_(source)
    if not source.is_floating_point() or not source.numel():
        return
    spread = float(source.float().std().nan_to_num(0.0)) if source.numel() > 1 else 0.0
    reads = source[0].numel() if source.ndim else 1
    least = min(0.1, max(reads, 1) ** -0.5)  # a layer that was initialised to zero gets weights of a usual size
    positive = not signed and bool((source >= 0).all()) and bool((source > 0).any())
    contiguous = target if target.is_contiguous() else target.contiguous()
    for part in contiguous.view(-1).split(_AT_ONCE):  # type: ignore[no-untyped-call]  # torch leaves it without types
        noise = torch.randn(part.shape, generator=generator).to(part.device)  # float32: as random, and twice as fast
        part.add_(noise, alpha=strength * max(spread, least))
        if spread >= least and strength == 1.0:
            part.mul_(0.5**0.5)
        if positive:
            part.abs_().add_(0.05)
    if contiguous is not target:
        target.copy_(contiguous)
