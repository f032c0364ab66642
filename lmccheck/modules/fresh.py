"""What a freshly built module computes after it has loaded weights by itself, and where a runner differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmccheck.data.trees import tensors_in
from lmccheck.modules.caches import clear_caches, tensor_caches
from lmccheck.modules.copies import private_copy, uncompiled
from lmccheck.modules.held import held_tensors
from lmccheck.modules.runner import load_into, run_module
from lmccheck.modules.stored import stored_tensors
from lmccheck.store.tensors import equal

ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative; one device runs the same kernels in the same order
ON_GPU = 10.0  # times as much: sums are taken in no fixed order there


def freshly_loaded(
    module: nn.Module, weights: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """Return a module just built, which is changed, with weights as its user would load them: by ``load_state_dict``,
    then switched to evaluation mode."""
    clear_caches(tensor_caches(module))
    module.requires_grad_(False)
    stored = stored_tensors(module).values()
    if any(t.device != device or (t.is_floating_point() and t.dtype != dtype) for t in stored):
        module = private_copy(module, device, dtype, evaluate=False)
    load_into(uncompiled(module), weights)
    return module.eval()


def apart(first: list[Tensor], second: list[Tensor]) -> float:
    """Return max |first − second| / max |first|, the largest over all outputs; infinite where only one is a number."""
    worst = 0.0
    for x, y in zip(first, second, strict=True):
        if x.shape != y.shape:
            return float("inf")
        if equal(x, y):
            continue
        numbers = x.isfinite()
        if not equal(x[~numbers], y[~numbers]) or not y[numbers].isfinite().all():
            return float("inf")
        size = float(x[numbers].abs().max())
        worst = max(worst, float((x - y)[numbers].abs().max()) / size if size else float("inf"))
    return worst


def difference(
    fresh: nn.Module, other: nn.Module, inputs: Any, where: str, device: torch.device, dtype: torch.dtype
) -> str:
    """Say by which tensor, attribute or submodule another module differs from a freshly loaded one.

    Both hold the same weights; both are run, and are of no use for measuring afterwards.
    """
    ours = stored_tensors(other)
    for name, tensor in stored_tensors(fresh).items():
        if name not in ours or not _same(tensor, ours[name]):
            return f"tensor {name!r} is changed when it is loaded"
    shown = [_submodules(module, inputs, where, device, dtype) for module in (fresh, other)]
    for reached in (_buffers, _plain):
        mine, theirs = reached(fresh), reached(other)
        for name in mine:
            if name in theirs and not _same(mine[name], theirs[name]):
                return f"{name} holds other numbers"
    name = next((name for name in shown[0] if name in shown[1] and apart(shown[0][name], shown[1][name]) > 1e-6), "")
    kind = type(fresh.get_submodule(name)).__name__
    return f"submodule {name!r} ({kind}) gives something else: it reads what is kept outside of it" if name else kind


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return torch.allclose(one.detach().cpu().double(), other.detach().cpu().double(), 1e-5, 1e-8, equal_nan=True)


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return {f"buffer {name!r}": tensor for name, tensor in module.named_buffers() if not tensor.is_complex()}


def _plain(module: nn.Module) -> dict[str, Tensor]:
    return {f"attribute {item.path}": item.tensor for item in held_tensors(module) if not item.tensor.is_complex()}


def _submodules(
    module: nn.Module, inputs: Any, where: str, device: torch.device, dtype: torch.dtype
) -> dict[str, list[Tensor]]:
    """Return what each submodule gives in its first call, in the order in which they are done."""
    found: dict[str, list[Tensor]] = {}

    def look(name: str) -> Any:
        def hook(part: nn.Module, given: Any, output: Any) -> None:
            found.setdefault(name, [tensor.clone() for tensor in tensors_in(output)])

        return hook

    handles = [part.register_forward_hook(look(name)) for name, part in module.named_modules()]
    try:
        run_module(module, inputs, where, device, dtype)
    finally:
        for handle in handles:
            handle.remove()
    return found
