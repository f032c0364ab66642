"""Weights with the BatchNorm statistics that they really have on some data."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lmccheck.evaluate import batchnorm
from lmccheck.modules.runner import Runner
from lmccheck.modules.stored import stored_tensors
from lmccheck.store.data import Batch
from lmccheck.store.tensors import identity


def restated(
    runner: Runner, weights: Mapping[str, Tensor], batches: tuple[Batch, ...], origin: str
) -> dict[str, Tensor]:
    """Return the running means and variances, by every name they are stored under, of ``weights`` on ``batches``."""
    runner.load(weights)
    batchnorm.reestimate(runner, batches, origin)
    replaced = {
        identity(buffer)
        for layer in batchnorm.tracked(runner.module)
        for buffer in layer.buffers(recurse=False)
        if buffer.is_floating_point()
    }
    tensors = stored_tensors(runner.module)
    return {name: tensor.detach().clone() for name, tensor in tensors.items() if identity(tensor) in replaced}
