"""Losses of a network at points of weight space: points × batches -> per-sample losses, accumulated in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lmccheck.data.batches import rebatched
from lmccheck.data.load import Batch
from lmccheck.data.trees import tensors_in
from lmccheck.errors import SourceError, UnsupportedArchitecture
from lmccheck.evaluate import batchnorm
from lmccheck.evaluate.points import Line, upcast, working_dtype
from lmccheck.modules.memory import give_back
from lmccheck.modules.runner import TWO_OUTPUTS, Runner
from lmccheck.network.loss import LOSSES, counts, measured, returns_probabilities
from lmccheck.network.network import Network
from lmccheck.store.tensors import equal

PROBABILITIES = (
    "the model's outputs are probabilities (none below 0, sum 1) and {loss} takes logits: it applies softmax once "
    "more; mend: return logits, or the logarithms of these"
)
TOKEN_LOSSES = ("next_token", "token_cross_entropy")
ZERO = (
    "{} of {} samples lose exactly 0 at every endpoint by {}: where nothing is counted in them they dilute what is "
    "measured; mend: let its attribute counted say which samples count"
)
FAR = 8.0, 64.0  # strengths of draws ever farther from a model's own weights


@dataclass(frozen=True)
class Measured:
    """One point's outcome on the evaluation data: per-sample losses and 0-1 errors, float64 (n,)."""

    losses: Tensor
    errors: Tensor | None
    counted: Tensor | None = None  # how many tokens count in each sample, where they are tokens

    @property
    def token_loss(self) -> float | None:
        """Mean loss over all tokens that count; None where they are none."""
        return None if self.counted is None else float((self.losses * self.counted).sum() / self.counted.sum())

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(self.losses.mean())

    @property
    def error(self) -> float | None:
        """Mean 0-1 error (0 to 1), None where the loss has none."""
        return None if self.errors is None else float(self.errors.mean())


class Evaluator:
    """Evaluates weight points of a network on its data; counts full passes over the evaluation data.

    ``thetas`` are the weights it is about: they decide the dtype it works in, and the first is what it is tried on.
    """

    def __init__(self, network: Network, *thetas: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
        self.network = network
        self.dtype = dtype or working_dtype(*thetas)
        self._runner: Runner | None = None
        self.batches = rebatched(network.data)
        self.calibration = rebatched(network.calibration) if network.calibration is not None else ()
        self.batchnorms = len(batchnorm.tracked(self.runner.module))
        self.buffers = batchnorm.other_statistics(self.runner.module)
        self.evaluations = 0
        self._tried = network.loss.name in LOSSES  # whether it gives the same for the same, as ours do
        self._zero: Tensor | None = None  # samples whose loss was 0 at every endpoint so far
        self._probe(thetas[0])

    @property
    def runner(self) -> Runner:
        """What runs the network; made anew after a rest."""
        if self._runner is None:
            self._runner = Runner(self.network.module, self.network.torch_device, self.dtype)
        return self._runner

    def rest(self) -> None:
        """Let go of memory until the next measurement."""
        self._runner = None
        give_back()

    def _probe(self, theta: Mapping[str, Tensor]) -> None:
        """Refuse a network whose output is random, or does not follow the weights it is given (a cached fusion)."""
        inputs = self.batches[0].take(slice(2)).inputs
        where = f"{self.network.data.origin}, first samples"

        def outputs(weights: Mapping[str, Tensor] | None = None) -> list[Tensor]:
            if weights is not None:
                self.runner.load(weights)
            given = self.runner(inputs, where)
            if weights is theta and returns_probabilities(self.network.loss, given):
                self.network.remarks[PROBABILITIES.format(loss=self.network.loss.name)] = None
            return [tensor.clone() for tensor in tensors_in(given)]

        def near(seed: int) -> list[Tensor]:
            self.runner.draw(self.runner.pristine, seed, reference=theta)
            return outputs()

        def far(seed: int) -> list[Tensor]:
            """Signs of weights may change, without which all units of a tiny network may be dead on two samples."""
            self.runner.draw(self.network.module, seed, FAR[seed % len(FAR)])
            return outputs()

        first = outputs(theta)
        others = chain(map(near, range(64)), map(far, range(64)))
        responds = not first or any(not _equal(first, other) for other in others)
        again = outputs(theta)
        what = f"model {type(self.network.module).__name__}"
        if not _close(first, again):
            raise UnsupportedArchitecture(f"{what}: {TWO_OUTPUTS}")
        if not responds:
            raise UnsupportedArchitecture(
                f"{what}: its output does not change with its weights; mend: do not keep weights computed in an "
                "earlier call"
            )

    @cached_property
    def counted(self) -> Tensor:
        """How many targets count in each sample, (n,) float64; 1 where the loss does not say."""
        return torch.cat([counts(self.network.loss, batch, self.network.data.origin) for batch in self.batches])

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``state`` ready for interpolation: on the device, in the working dtype."""
        return upcast(state, self.dtype, self.network.torch_device)

    def line(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Line:
        """Return the line between two state dicts, on the device, in the working dtype."""
        return Line(first, second, self.dtype, self.network.torch_device)

    def measure(
        self,
        weights: Mapping[str, Tensor],
        *,
        reestimate: bool,
        label: str,
        watch: Callable[[Any], None] | None = None,
        drawn: Sequence[Batch] | None = None,
    ) -> Measured:
        """Return per-sample losses at ``weights``; with ``reestimate`` BatchNorm statistics are taken afresh.

        ``watch`` is called with the network's output for every batch. ``drawn``: some samples, on which it is measured
        in place of all; that is no full pass and is not counted as one.
        """
        self.runner.load(weights)
        if reestimate and self.batchnorms:
            self.reestimate()
        self.evaluations += drawn is None
        losses, errors = [], []
        for batch in self.batches if drawn is None else drawn:
            outputs = self.runner(batch.inputs, f"{self.network.data.origin}, {label}")
            if watch is not None:
                watch(outputs)
            values, wrong = measured(
                self.network.loss, outputs, self.runner.cast(batch.targets), self.network.data.origin
            )
            if not self._tried:
                self._try_loss(outputs, self.runner.cast(batch.targets), values)
            losses.append(values.cpu())
            if wrong is not None:
                errors.append(wrong.cpu())
        counted = self.counted if drawn is None and self.network.loss.name in TOKEN_LOSSES else None
        return Measured(torch.cat(losses), torch.cat(errors) if errors else None, counted)

    def endpoint(self, weights: Mapping[str, Tensor], label: str, shown: str) -> Measured:
        """Measure an original model with its own statistics.

        Raises SourceError, beginning with ``shown``, where a loss is not finite.
        """
        found = self.measure(self.weights(weights), reestimate=False, label=label)
        bad = (~found.losses.isfinite()).nonzero()
        if len(bad):
            k = int(bad[0])
            raise SourceError(
                f"{shown}: its {self.network.loss.name} on {self.network.data.origin} is {float(found.losses[k])} at "
                f"sample {k} ({len(bad)} of {len(found.losses)} samples), expected finite losses; mend: check the "
                "checkpoint and the loss"
            )
        self._remark_zeros(found.losses)
        return found

    def _try_loss(self, outputs: Any, targets: Tensor, values: Tensor) -> None:
        """Refuse a loss of the user's own that is no function of what it is given."""
        loss, self._tried = self.network.loss, True
        again, _ = measured(loss, outputs, targets, self.network.data.origin)
        if not equal(values, again):
            k = int((values != again).nonzero()[0])
            raise SourceError(
                f"loss {loss.name!r} on {self.network.data.origin}: gives {float(values[k]):.4g} and then "
                f"{float(again[k]):.4g} for the same output and target (sample {k}), expected one value; mend: compute "
                "it from its arguments alone, without random numbers and without state"
            )

    def _remark_zeros(self, losses: Tensor) -> None:
        """Note how many samples lose nothing at any endpoint, of which a loss of the user's own may count nothing."""
        loss, before = self.network.loss, self._zero
        if loss.counted is not None or loss.name in LOSSES:
            return
        self._zero = losses == 0 if before is None else before & (losses == 0)
        if before is not None:
            remarks = self.network.remarks
            remarks.pop(ZERO.format(int(before.sum()), len(losses), loss.name), None)
            if bool(self._zero.any()):
                remarks[ZERO.format(int(self._zero.sum()), len(losses), loss.name)] = None

    def reestimate(self) -> None:
        """Take BatchNorm statistics of the loaded weights from the calibration data."""
        self.require_calibration()
        origin = self.network.calibration.origin if self.network.calibration else ""
        batchnorm.reestimate(self.runner, self.calibration, origin)

    def require_calibration(self) -> None:
        """Raise SourceError when BatchNorm statistics have to be re-estimated and there is nothing to do it on."""
        if self.batchnorms and not self.calibration:
            raise SourceError(
                f"{self.network.name}: the model has {self.batchnorms} BatchNorm layer(s) and no calibration data "
                "is given; interpolated statistics are wrong and must be re-estimated; mend: give `calibration`, for "
                "example the training data"
            )

    def batchnorm_summary(self) -> dict[str, Any] | None:
        """Return what the report says about BatchNorm; None for networks without it."""
        if not self.batchnorms:
            return None
        return {
            "layers": self.batchnorms,
            "samples": sum(batch.samples for batch in self.calibration),
            "batches": len(self.calibration),
            "method": "running mean and unbiased variance of calibration data, batches averaged by sample",
        }


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(equal(x, y) for x, y in zip(first, second, strict=True))


def _close(first: list[Tensor], second: list[Tensor]) -> bool:
    """Equal up to the rounding that a GPU's order of summation may change."""
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True) for x, y in zip(first, second, strict=True))
