"""Re-estimation of BatchNorm statistics: the mean and variance the interpolated network really has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lmccheck.data.load import Batch
from lmccheck.modules.runner import Runner
from lmccheck.modules.stored import stored_tensors
from lmccheck.store.tensors import identity


def tracked(module: nn.Module) -> list[_NormBase]:
    """Return the BatchNorm (and InstanceNorm) layers of ``module`` that keep running statistics."""
    return [
        part
        for part in module.modules()
        if isinstance(part, _NormBase) and part.track_running_stats and part.running_mean is not None
    ]


def other_statistics(module: nn.Module) -> list[str]:
    """Return the stored float buffers that no re-estimation replaces; between two networks they are interpolated."""
    replaced = {id(buffer) for layer in tracked(module) for buffer in layer.buffers(recurse=False)}
    stored = module.state_dict(keep_vars=True)
    return [
        name
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point() and id(buffer) not in replaced and name in stored
    ]


def fresh_statistics(
    runner: Runner, weights: Mapping[str, Tensor], batches: tuple[Batch, ...], origin: str
) -> dict[str, Tensor]:
    """Return the running means and variances, by every name they are stored under, of ``weights`` on ``batches``.

    The count of batches that a BatchNorm has seen is none of them. Raises as ``reestimate`` does.
    """
    runner.load(weights)
    reestimate(runner, batches, origin)
    names = reestimated_names(runner.module)
    return {n: tensor.detach().clone() for n, tensor in stored_tensors(runner.module).items() if n in names}


def reestimated_names(module: nn.Module) -> set[str]:
    """Return every name under which a running mean or variance is stored that ``reestimate`` replaces."""
    replaced = {
        identity(buffer)
        for layer in tracked(module)
        for buffer in layer.buffers(recurse=False)
        if buffer.is_floating_point()
    }
    return {name for name, tensor in stored_tensors(module).items() if identity(tensor) in replaced}


def reestimate(runner: Runner, batches: tuple[Batch, ...], origin: str = "calibration") -> None:
    """Replace running statistics by those of ``batches``: the batch means and variances, averaged by sample.

    Only BatchNorm layers are in training mode; everything else (dropout) stays as in evaluation. With one batch this
    is the exact statistic of the data. Equivalent to ``torch.optim.swa_utils.update_bn``; differs in that dropout
    stays off and batches are weighted by their size. Raises SourceError when the network cannot run on the data.
    """
    layers = tracked(runner.module)
    momenta = [layer.momentum for layer in layers]
    seen = 0
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        for batch in batches:
            seen += batch.samples
            for layer in layers:
                layer.momentum = batch.samples / seen
            runner(batch.inputs, f"{origin}, re-estimating BatchNorm statistics")
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
