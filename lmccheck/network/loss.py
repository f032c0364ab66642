"""Per-sample losses and 0-1 errors by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmccheck.errors import SourceError, nearest
from lmccheck.shown import one_line
from lmccheck.store.imports import load_object, say

PerSample = Callable[[Any, Tensor], Tensor]


@one_line(lambda loss: f"{loss.name}, in {loss.unit}")
@dataclass(frozen=True)
class Loss:
    """A per-sample loss: ``function(outputs, targets)`` -> (n,), its ``unit``, 0-1 errors where they exist.

    ``convex``: whether it is known to be convex in the network's output, on which certified segments rest.
    """

    name: str
    unit: str
    function: PerSample
    errors: PerSample | None
    integer_targets: bool
    convex: bool = False


def logits_of(outputs: Any) -> Tensor:
    """Return the tensor the loss is taken of: the output itself, its ``logits``, or its first element."""
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(outputs, (tuple, list)) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    raise SourceError(
        f"model output: got {type(outputs).__name__}, expected a tensor, or an object with a tensor 'logits'"
    )


def _per_sample(values: Tensor) -> Tensor:
    """Mean over everything but the first dimension, in float64."""
    return values.double().flatten(1).mean(1) if values.ndim > 1 else values.double()


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """−log softmax(logits)[target] in nats; logits (n, classes, …), targets (n, …) int64 -> (n,) float64."""
    return _per_sample(F.cross_entropy(logits_of(outputs).double(), targets.long(), reduction="none"))


def classification_errors(outputs: Any, targets: Tensor) -> Tensor:
    """1 where the largest logit is not the target's (mean over further positions) -> (n,) float64."""
    return _per_sample((logits_of(outputs).argmax(1) != targets).double())


def mse(outputs: Any, targets: Tensor) -> Tensor:
    """Squared difference, mean over a sample's outputs; both (n, …) of one shape -> (n,) float64."""
    return _per_sample((logits_of(outputs).double() - targets) ** 2)


def _next(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits, following = logits_of(outputs)[:, :-1], targets[:, 1:].long()
    return logits, following, (following != -100).double()


def next_token(outputs: Any, targets: Tensor) -> Tensor:
    """Mean nats per predicted token: logits (n, T, V) at t against token t+1 of targets (n, T); −100 is ignored."""
    logits, following, counted = _next(outputs, targets)
    losses = F.cross_entropy(logits.transpose(1, 2), following, reduction="none", ignore_index=-100).double()
    return (losses * counted).sum(1) / counted.sum(1).clamp(min=1)


def next_token_errors(outputs: Any, targets: Tensor) -> Tensor:
    """Share of a sample's tokens that are not predicted -> (n,) float64."""
    logits, following, counted = _next(outputs, targets)
    return ((logits.argmax(-1) != following).double() * counted).sum(1) / counted.sum(1).clamp(min=1)


LOSSES = {
    "cross_entropy": Loss("cross_entropy", "nats", cross_entropy, classification_errors, True, True),
    "mse": Loss("mse", "squared error", mse, None, False, True),
    "next_token": Loss("next_token", "nats", next_token, next_token_errors, True, True),
}


def load_loss(loss: str | PerSample | Loss, folder: Path | None = None) -> Loss:
    """Return the loss of a name, of ``"module:function"`` or of a callable (outputs, targets) -> (n,) tensor.

    A function that is convex in the outputs may say so with an attribute ``convex = True``.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss in LOSSES:
            return LOSSES[loss]
        if ":" not in loss:
            raise SourceError(
                f"loss {loss!r}: unknown{nearest(loss, LOSSES)}; expected one of {sorted(LOSSES)} or 'module:function'"
            )
        function = load_object(loss, folder, "loss")
        name = loss
    else:
        function, name = loss, getattr(loss, "__qualname__", type(loss).__name__)
    if not callable(function):
        raise SourceError(
            f"loss {name!r}: got {type(function).__name__}, expected a function (outputs, targets) -> (n,) tensor"
        )
    return Loss(name, "loss", function, None, False, getattr(function, "convex", False) is True)


def measured(loss: Loss, outputs: Any, targets: Tensor, origin: str) -> tuple[Tensor, Tensor | None]:
    """Return per-sample losses and 0-1 errors of one batch, float64 (n,); raise SourceError when they do not fit."""
    logits = logits_of(outputs) if loss.name in LOSSES else None
    if logits is not None:
        _check_targets(loss, logits, targets, origin)
        if not targets.is_floating_point() and loss.name == "mse":
            targets = targets.to(logits.dtype)
    try:
        values = loss.function(outputs, targets)
        wrong = loss.errors(outputs, targets) if loss.errors else None
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(
            f"loss {loss.name!r} on {origin}: raised {say(error)}; mend: check that targets fit the model's output"
        ) from error
    if not isinstance(values, Tensor) or tuple(values.shape) != (len(targets),):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise SourceError(
            f"loss {loss.name!r}: returned {got}, expected one loss per sample, shape ({len(targets)},); mend: "
            "reduction='none'"
        )
    return values.detach().to(torch.float64), wrong


def _check_targets(loss: Loss, logits: Tensor, targets: Tensor, origin: str) -> None:
    kind = str(targets.dtype).removeprefix("torch.")
    if loss.integer_targets and targets.shape == logits.shape and logits.ndim > 1:
        _refuse_shares(loss, targets, origin)
    if loss.integer_targets and (targets.is_floating_point() or targets.dtype == torch.bool):
        raise SourceError(
            f"{origin}: tensor 'targets' is {kind}, {loss.name} expects int64 class indices; mend: targets.long()"
        )
    if loss.name == "mse" and targets.shape != logits.shape:
        raise SourceError(
            f"{origin}: tensor 'targets' has shape {tuple(targets.shape)}, the model's output {tuple(logits.shape)}; "
            "mse expects equal shapes; mend: reshape the targets"
        )
    if loss.name == "cross_entropy":
        expected = (logits.shape[0], *logits.shape[2:])
        if logits.ndim < 2 or tuple(targets.shape) != expected:
            raise SourceError(
                f"{origin}: tensor 'targets' has shape {tuple(targets.shape)}, expected {expected} for outputs "
                f"{tuple(logits.shape)}; mend: {_mend_shape(targets, expected)}"
            )
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= logits.shape[1]:
            raise SourceError(
                f"{origin}: tensor 'targets' holds classes {low}..{high}, the model has {logits.shape[1]} outputs; "
                "mend: class indices from 0"
            )
    if loss.name == "next_token" and (logits.ndim != 3 or targets.shape != logits.shape[:2]):
        raise SourceError(
            f"{origin}: tensor 'targets' has shape {tuple(targets.shape)}, expected (n, T) for outputs "
            f"{tuple(logits.shape)}"
        )


def _refuse_shares(loss: Loss, targets: Tensor, origin: str) -> None:
    """Raise SourceError where targets hold a share of every class: all of one, or some of several."""
    axis = 1 if loss.name == "cross_entropy" else -1
    shares = targets.double()
    if shares.shape[axis] < 2 or not bool((shares >= 0).all()):
        return
    if not bool(((shares.sum(axis) - 1).abs() < 1e-3).all()):
        return
    hot = bool(((shares == 0) | (shares == 1)).all())
    mend = f"targets.argmax({axis})" + ("" if hot else ", or a loss of your own, 'module:function'")
    raise SourceError(
        f"{origin}: tensor 'targets' has shape {tuple(targets.shape)} and is {'one-hot' if hot else 'probabilities'}, "
        f"{loss.name} expects int64 class indices; mend: {mend}"
    )


def _mend_shape(targets: Tensor, expected: tuple[int, ...]) -> str:
    """Return what makes targets of the expected shape: an axis of one element is one too many."""
    for axis, size in enumerate(targets.shape):
        if size == 1 and (*targets.shape[:axis], *targets.shape[axis + 1 :]) == expected:
            return f"targets.squeeze({axis})"
    return "one class index a sample"
