"""Losses of a network at points of weight space: points × batches -> per-sample losses, accumulated in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmccheck.errors import SourceError, UnsupportedArchitecture
from lmccheck.evaluate import batchnorm
from lmccheck.evaluate.forward import Runner, randomised, tensors_in
from lmccheck.evaluate.loss import measured
from lmccheck.sources import Batch, Data

if TYPE_CHECKING:
    from lmccheck.pair import ModelPair

FAR = 8.0, 64.0  # strengths of draws ever farther from a model's own weights
ELEMENTS = 2**21  # numbers of input per batch that lmccheck chooses itself: 8 MB in float32
MOST_SAMPLES = 4096


@dataclass(frozen=True)
class Measured:
    """One point's outcome on the evaluation data: per-sample losses and 0-1 errors, float64 (n,)."""

    losses: Tensor
    errors: Tensor | None

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(self.losses.mean())

    @property
    def error(self) -> float | None:
        """Mean 0-1 error (0 to 1), None where the loss has none."""
        return None if self.errors is None else float(self.errors.mean())


def interpolate(theta_a: Mapping[str, Tensor], theta_b: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    """Return (1−t)·θ_A + t·θ_B; exact at both ends and where both agree, integer tensors from the nearer end."""
    if t == 0.0 or t == 1.0:
        return dict(theta_a if t == 0.0 else theta_b)
    out = {}
    for name, a in theta_a.items():
        b = theta_b[name]
        out[name] = torch.lerp(a, b, t) if a.is_floating_point() else (a if t < 0.5 else b)
    return out


def working_dtype(*weights: Mapping[str, Tensor]) -> torch.dtype:
    """Return float64 when any tensor is, else float32 (half precision is upcast)."""
    wide = any(tensor.dtype == torch.float64 for state in weights for tensor in state.values())
    return torch.float64 if wide else torch.float32


def upcast(weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Return weights on the device, floating tensors in ``dtype``; tied tensors stay one tensor."""
    done: dict[int, Tensor] = {}
    for tensor in weights.values():
        if id(tensor) not in done:
            done[id(tensor)] = tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
    return {name: done[id(tensor)] for name, tensor in weights.items()}


class Evaluator:
    """Evaluates weight points of one pair's network on its data; counts full passes over the evaluation data."""

    def __init__(self, pair: ModelPair, dtype: torch.dtype | None = None) -> None:
        self.pair = pair
        self.dtype = dtype or working_dtype(pair.theta_a, pair.theta_b)
        self.runner = Runner(pair.module, pair.torch_device, self.dtype)
        self.batches = rebatched(pair.data)
        self.calibration = rebatched(pair.calibration) if pair.calibration is not None else ()
        self.batchnorms = len(batchnorm.tracked(self.runner.module))
        self.buffers = batchnorm.other_statistics(self.runner.module)
        self.evaluations = 0
        self._probe()

    def _probe(self) -> None:
        """Refuse a network whose output is random, or does not follow the weights it is given (a cached fusion)."""
        inputs = cut(self.batches[0].inputs, 0, 2)
        where = f"{self.pair.data.origin}, first samples"

        def outputs(weights: Mapping[str, Tensor] | None = None) -> list[Tensor]:
            if weights is not None:
                self.runner.load(weights)
            return [tensor.clone() for tensor in tensors_in(self.runner(inputs, where))]

        def far(seed: int) -> list[Tensor]:
            """Signs of weights may change, without which all units of a tiny network may be dead on two samples."""
            self.runner.draw(self.pair.module, seed, FAR[seed % len(FAR)])
            return outputs()

        first = outputs(self.pair.theta_a)
        shaken = (outputs(randomised(self.runner.module, seed, self.pair.theta_a)) for seed in range(64))
        drawn = chain(shaken, map(far, range(64)))
        responds = not first or any(not _equal(first, other) for other in drawn)
        again = outputs(self.pair.theta_a)
        what = f"model {type(self.pair.module).__name__}"
        if not _close(first, again):
            raise UnsupportedArchitecture(
                f"{what}: gives two outputs for the same weights and inputs; mend: make forward deterministic in "
                "evaluation mode"
            )
        if not responds:
            raise UnsupportedArchitecture(
                f"{what}: its output does not change with its weights; mend: do not keep weights computed in an "
                "earlier call"
            )

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``state`` ready for interpolation: on the device, in the working dtype."""
        return upcast(state, self.dtype, self.pair.torch_device)

    def measure(self, weights: Mapping[str, Tensor], *, reestimate: bool, label: str) -> Measured:
        """Return per-sample losses at ``weights``; with ``reestimate`` BatchNorm statistics are taken afresh."""
        self.runner.load(weights)
        if reestimate and self.batchnorms:
            self.reestimate()
        self.evaluations += 1
        losses, errors = [], []
        for batch in self.batches:
            outputs = self.runner(batch.inputs, f"{self.pair.data.origin}, {label}")
            values, wrong = measured(self.pair.loss, outputs, _to(batch.targets, self.runner), self.pair.data.origin)
            losses.append(values.cpu())
            if wrong is not None:
                errors.append(wrong.cpu())
        return Measured(torch.cat(losses), torch.cat(errors) if errors else None)

    def endpoint(self, weights: Mapping[str, Tensor], label: str, shown: str) -> Measured:
        """Measure an original model with its own statistics.

        Raises SourceError, beginning with ``shown``, where a loss is not finite.
        """
        found = self.measure(self.weights(weights), reestimate=False, label=label)
        bad = (~found.losses.isfinite()).nonzero()
        if len(bad):
            k = int(bad[0])
            raise SourceError(
                f"{shown}: its {self.pair.loss.name} on {self.pair.data.origin} is {float(found.losses[k])} at sample "
                f"{k} ({len(bad)} of {len(found.losses)} samples), expected finite losses; mend: check the checkpoint "
                "and the loss"
            )
        return found

    def reestimate(self) -> None:
        """Take BatchNorm statistics of the loaded weights from the calibration data."""
        self.require_calibration()
        origin = self.pair.calibration.origin if self.pair.calibration else ""
        batchnorm.reestimate(self.runner, self.calibration, origin)

    def require_calibration(self) -> None:
        """Raise SourceError when BatchNorm statistics have to be re-estimated and there is nothing to do it on."""
        if self.batchnorms and not self.calibration:
            raise SourceError(
                f"pair {self.pair.name}: the model has {self.batchnorms} BatchNorm layer(s) and no calibration data is "
                "given; interpolated statistics are wrong and must be re-estimated; mend: give `calibration`, for "
                "example the training data"
            )

    def batchnorm_summary(self) -> dict[str, Any] | None:
        """Return what the report says about BatchNorm; None for networks without it."""
        return batchnorm.summary(self.batchnorms, self.calibration) if self.batchnorms else None


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(first, second, strict=True))


def _close(first: list[Tensor], second: list[Tensor]) -> bool:
    """Equal up to the rounding that a GPU's order of summation may change."""
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True) for x, y in zip(first, second, strict=True))


def function_deviation(
    pair: ModelPair, first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, samples: int = 64
) -> float:
    """Return max |f(second) − f(first)| / (1 + max |f(first)|) on evaluation data, in float64.

    Uses the first ``samples`` samples and the weights' own BatchNorm statistics.
    """
    where = f"{pair.data.origin}, comparing b before and after alignment"
    before, after = (first_outputs(pair, weights, where, samples) for weights in (first, second))
    if not any(x.numel() for x in before):
        raise UnsupportedArchitecture(f"{where}: the model returns no floating tensor, so nothing can be compared")
    return relative_deviation(before, after)


def first_outputs(pair: ModelPair, weights: Mapping[str, Tensor], where: str, samples: int = 64) -> list[Tensor]:
    """Return what a pair's network gives with ``weights`` on the first evaluation samples, in float64."""
    return FirstOutputs(pair, where, samples)(weights)


class FirstOutputs:
    """What a pair's network gives with any weights on the first evaluation samples, in float64."""

    def __init__(self, pair: ModelPair, where: str, samples: int = 64) -> None:
        self._runner = Runner(pair.module, pair.torch_device, torch.float64)
        self._where = where
        self._batches: list[Batch] = []
        left = samples
        for batch in rebatched(pair.data, samples):
            if left <= 0:
                break
            self._batches.append(batch)
            left -= batch.samples

    def __call__(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the floating tensors of every batch's output, one after the other."""
        self._runner.load(weights)
        return [tensor for batch in self._batches for tensor in tensors_in(self._runner(batch.inputs, self._where))]


def relative_deviation(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return max |after − before| / (1 + max |before|) over pairs of tensors, infinite where it is no number."""
    worst = 0.0
    for x, y in zip(before, after, strict=True):
        if x.numel():
            difference = (x - y).abs().max() / (1 + x.abs().max())
            worst = max(worst, float(difference)) if torch.isfinite(difference) else float("inf")
    return worst


def rebatched(data: Data, most: int | None = None) -> tuple[Batch, ...]:
    """Return batches of near-equal size: at most 4096 samples and about two million input numbers each.

    Data that came in batches of its own is returned as it came.
    """
    if not data.rebatch:
        return data.batches
    whole = data.batches[0]
    tensors = [v for v in _flat(whole.inputs) if isinstance(v, Tensor)]
    per_sample = max(1, sum(t[0].numel() for t in tensors))
    limit = min(MOST_SAMPLES, max(1, ELEMENTS // per_sample), most or MOST_SAMPLES)
    count = -(-whole.samples // limit)
    if count == 1:
        return data.batches
    edges = [round(k * whole.samples / count) for k in range(count + 1)]
    return tuple(Batch(cut(whole.inputs, start, stop), whole.targets[start:stop]) for start, stop in pairwise(edges))


def _flat(inputs: Any) -> list[Any]:
    if isinstance(inputs, dict):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]


def cut(inputs: Any, start: int, stop: int) -> Any:
    """Return samples ``start`` to ``stop`` of a batch's inputs."""
    if isinstance(inputs, Tensor):
        return inputs[start:stop]
    if isinstance(inputs, dict):
        return {key: cut(value, start, stop) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(cut(value, start, stop) for value in inputs)
    return inputs


def first_samples(data: Data, samples: int) -> Data:
    """Return at most ``samples`` samples; batches of a user's own as they came."""
    if not data.rebatch or data.samples <= samples:
        return data
    whole = data.batches[0]
    return Data((Batch(cut(whole.inputs, 0, samples), whole.targets[:samples]),), data.origin, True)


def _to(targets: Tensor, runner: Runner) -> Tensor:
    return targets.to(runner.device, runner.dtype) if targets.is_floating_point() else targets.to(runner.device)
