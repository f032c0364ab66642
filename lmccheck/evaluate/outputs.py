"""What a network gives under given weights, in float64, and how far two sets of weights are apart in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lmccheck.data.batches import rebatched
from lmccheck.data.load import Batch
from lmccheck.data.trees import input_tensors, mapped, tensors_in
from lmccheck.errors import SourceError, UnsupportedArchitecture
from lmccheck.evaluate.points import working_dtype
from lmccheck.modules.runner import Runner
from lmccheck.network.loss import measured
from lmccheck.network.network import Network
from lmccheck.symmetry.verify import relative_change


def function_deviation(
    network: Network, first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, samples: int = 64
) -> float:
    """Return max |f(second) − f(first)| / (1 + max |f(first)|) on evaluation data, in float64.

    Uses the first ``samples`` samples and the weights' own BatchNorm statistics.
    """
    where = f"{network.data.origin}, comparing b before and after alignment"
    outputs = FirstOutputs(network, where, samples)
    before, after = outputs(first), outputs(second)
    if not any(x.numel() for x in before):
        raise UnsupportedArchitecture(f"{where}: the model returns no floating tensor, so nothing can be compared")
    return relative_deviation(before, after)


class FirstOutputs:
    """What a pair's network gives with any weights on the first evaluation samples, in float64."""

    def __init__(self, network: Network, where: str, samples: int = 64) -> None:
        self._runner = Runner(network.module, network.torch_device, torch.float64)
        self._where = where
        self._batches: list[Batch] = []
        left = samples
        for batch in rebatched(network.data, samples):
            if left <= 0:
                break
            self._batches.append(batch)
            left -= batch.samples

    def __call__(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the floating tensors of every batch's output, one after the other, as copies: weights may change."""
        self._runner.load(weights)
        outputs = (self._runner(batch.inputs, self._where) for batch in self._batches)
        return [tensor.clone() for output in outputs for tensor in tensors_in(output)]


def relative_deviation(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return max |after − before| / (1 + max |before|) over pairs of tensors, infinite where it is no number.

    What is −∞ in both, as a logit of a class that is ruled out, is the same, and gives no size.
    """
    return relative_change(before, after, 1.0)


def require_a_loss(network: Network, theta: Mapping[str, Tensor], draws: int = 4) -> None:
    """Raise SourceError where the loss of the first batch is the same whatever the network's outputs are."""
    runner = Runner(network.module, network.torch_device, working_dtype(theta))
    runner.load(theta)
    batch = rebatched(network.data)[0]
    outputs = runner(batch.inputs, network.data.origin)
    targets = runner.cast(batch.targets)
    generator = torch.Generator().manual_seed(0)

    def other(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        return (3.0 * noise).to(tensor) if tensor.is_floating_point() else tensor

    first, _ = measured(network.loss, outputs, targets, network.data.origin)
    if not any(tensor.is_floating_point() for tensor in input_tensors(outputs)):
        return  # of a kind that cannot be changed
    for _ in range(draws):
        try:
            drawn, _ = measured(network.loss, mapped(other, outputs), targets, network.data.origin)
        except SourceError:
            return  # it looks at them closely enough to refuse them
        if not torch.equal(first, drawn):
            return
    raise SourceError(
        f"loss {network.loss.name!r} on {network.data.origin}: is {float(first[0]):.4g} whatever the model's outputs "
        "are, expected one that depends on them; mend: count some of the targets"
    )
