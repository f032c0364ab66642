"""Losses that autograd can follow to the weights, on calibration data; BatchNorm takes each batch's statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lmccheck.data.batches import first_samples
from lmccheck.data.load import Batch, Data
from lmccheck.data.trees import positional
from lmccheck.errors import SourceError
from lmccheck.evaluate.batchnorm import tracked
from lmccheck.evaluate.points import upcast, working_dtype
from lmccheck.modules.precision import exact_float32
from lmccheck.modules.runner import Runner, as_source_error
from lmccheck.modules.stored import tied_names
from lmccheck.network.loss import differentiable
from lmccheck.network.network import Network

Made = TypeVar("Made")


class Gradient:
    """The mean loss of a pair's network at given weights on a batch, as a function that autograd can follow."""

    def __init__(self, network: Network, *thetas: Mapping[str, Tensor]) -> None:
        self.network = network
        self.dtype = working_dtype(*thetas)
        self.runner = Runner(network.module, network.torch_device, self.dtype)
        for layer in tracked(self.runner.module):
            layer.train()

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights on the device, in the working dtype."""
        return upcast(state, self.dtype, self.network.torch_device)

    def mean_loss(self, weights: Mapping[str, Tensor], batches: Sequence[Batch]) -> float:
        """Return the mean loss over the samples of batches; nothing is differentiated."""
        with torch.no_grad():
            total = sum(float(self.loss(weights, batch)) * batch.samples for batch in batches)
        return total / sum(batch.samples for batch in batches)

    def loss(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean loss at ``weights``, a scalar.

        Raises SourceError where the network or the loss cannot be differentiated.
        """
        origin = self.network.data.origin if self.network.calibration is None else self.network.calibration.origin
        loss = self.network.loss
        return self.mean(weights, batch, lambda outputs, targets: differentiable(loss, outputs, targets, origin)[0])

    def mean(self, weights: Mapping[str, Tensor], batch: Batch, each: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """Return the mean over samples of ``each(outputs, targets)``, (n,), at ``weights``. Raises as ``loss`` does."""
        doing = f"pair {self.network.name}: differentiating its loss"
        targets = self.runner.cast(batch.targets)
        alone = batch.samples == 1 and bool(tracked(self.runner.module))
        mend = "; mend: batches of two samples or more: BatchNorm takes each batch's own statistics" if alone else ""
        with as_source_error(doing, mend), torch.enable_grad(), exact_float32(), _recurrent(self.runner.module):
            return each(self._run(weights, batch), targets).mean()

    def outputs(self, weights: Mapping[str, Tensor], batch: Batch) -> Any:
        """Return what the network gives for a batch; nothing is differentiated. Raises as ``loss`` does."""
        with as_source_error(f"pair {self.network.name}: running it"), torch.no_grad(), exact_float32():
            return self._run(weights, batch)

    def _run(self, weights: Mapping[str, Tensor], batch: Batch) -> Any:
        """Run the module; buffers are taken as copies, since BatchNorm writes to them."""
        module = self.runner.module
        learned = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        stored = dict.fromkeys(tied_names(module).values())  # a tied tensor is given once
        given = {k: weights[k] if k in learned else weights[k].detach().clone() for k in stored}
        arguments = self.runner.cast(positional(batch.inputs, f"pair {self.network.name}"))
        return functional_call(module, given, arguments)


def obstacle(network: Network, theta: Mapping[str, Tensor]) -> str:
    """Return why autograd cannot follow the loss on calibration data to the weights; "" where it can."""
    data = network.require_labelled("a gradient")
    gradient = Gradient(network, theta)
    weights = {name: value.detach() for name, value in gradient.weights(theta).items()}
    followed = [value.requires_grad_() for value in weights.values() if value.is_floating_point()]
    try:
        with differentiated(network, "learning", "another method"):
            torch.autograd.grad(gradient.loss(weights, first_samples(data, 2).batches[0]), followed, allow_unused=True)
    except SourceError as error:
        return f"{str(error).partition('; mend: ')[0]}; mend: make model and loss differentiable"
    return ""


def unless_obstructed(network: Network, theta: Mapping[str, Tensor], learn: Callable[[], Made]) -> Made | str:
    """Return what ``learn`` gives, or why nothing can be learned: asked of two samples first, then met on the way."""
    if why := obstacle(network, theta):
        return why
    try:
        return learn()
    except SourceError as error:  # of more samples than were asked about
        return str(error)


@contextmanager
def differentiated(network: Network, what: str, instead: str) -> Iterator[None]:
    """Turn what autograd raises of a loss that it cannot follow into a SourceError that names what else to ask for."""
    doing = f"pair {network.name}: {what} differentiates the loss, which"
    with as_source_error(doing, f"; mend: make model and loss differentiable, or ask for {instead}"):
        yield


@contextmanager
def _recurrent(module: nn.Module) -> Iterator[None]:
    """Leave cuDNN out of recurrent layers: it differentiates them in training mode only, in which they drop out."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = before and not any(isinstance(part, nn.RNNBase) for part in module.modules())
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def endless_batches(data: Data, size: int, seed: int) -> Iterator[Batch]:
    """Yield batches of ``size`` samples in a seeded random order, over and over; those of a user's own as they are."""
    generator = torch.Generator().manual_seed(seed)
    whole = data.batches[0]
    while True:
        if not data.rebatch:
            for k in torch.randperm(len(data.batches), generator=generator).tolist():
                yield data.batches[k]
            continue
        order = torch.randperm(whole.samples, generator=generator)
        for start in range(0, max(1, whole.samples - size + 1), size):
            yield whole.take(order[start : start + size])
