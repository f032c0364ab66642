"""Per-sample losses and 0-1 errors by name, and which targets they count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmccheck.data.collate import UNCOUNTED
from lmccheck.data.imports import load_object, say
from lmccheck.data.load import Batch, Data
from lmccheck.errors import SourceError, nearest
from lmccheck.network.targets import OF_TOKENS, require_targets
from lmccheck.shown import one_line

PerSample = Callable[[Any, Tensor], Tensor]
IGNORED = UNCOUNTED


@one_line(lambda loss: f"{loss.name}, in {loss.unit}")
@dataclass(frozen=True)
class Loss:
    """A per-sample loss: ``function(outputs, targets)`` -> (n,), its ``unit``, 0-1 errors where they exist.

    ``convex``: whether it is known to be convex in the network's output, on which certified segments rest.
    ``counted``: targets (n, …) -> (n,) how many of each sample's are counted; None where all are. ``lower``: what no
    sample's loss is below, None where that is not said.
    """

    name: str
    unit: str
    function: PerSample
    errors: PerSample | None
    integer_targets: bool
    convex: bool = False
    counted: Callable[[Tensor], Tensor] | None = None
    lower: float | None = None


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


def returns_probabilities(loss: Loss, outputs: Any) -> bool:
    """Whether a loss that takes logits is given what softmax has made of them, at every place."""
    if loss.name not in ("cross_entropy", *OF_TOKENS):
        return False
    logits = logits_of(outputs)
    if logits.ndim < 2 or not logits.is_floating_point() or not bool((logits >= 0).all()):
        return False
    sums = logits.double().sum(1 if loss.name == "cross_entropy" else -1)
    return bool(((sums - 1).abs() < 1e-4).all())


def _per_sample(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean over everything but the first dimension, of what is counted, in float64; 0 where nothing is."""
    values = values.double().flatten(1) if values.ndim > 1 else values.double().unsqueeze(1)
    if counted is None:
        return values.mean(1)
    which = counted.reshape(values.shape)
    return values.where(which, 0.0).sum(1) / which.sum(1).clamp(min=1)


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """−log softmax(logits)[target] in nats; logits (n, classes, …), targets (n, …) int64 -> (n,) float64.

    Targets of −100 are left out of a sample's mean. Equivalent to ``torch.nn.functional.cross_entropy``; differs in
    that every sample weighs the same, however many of its targets are counted.
    """
    losses = F.cross_entropy(logits_of(outputs).double(), targets.long(), reduction="none", ignore_index=IGNORED)
    return _per_sample(losses, targets != IGNORED)


def classification_errors(outputs: Any, targets: Tensor) -> Tensor:
    """1 where the largest logit is not the target's (mean over further counted positions) -> (n,) float64."""
    return _per_sample((logits_of(outputs).argmax(1) != targets).double(), targets != IGNORED)


def mse(outputs: Any, targets: Tensor) -> Tensor:
    """Squared difference, mean over a sample's outputs; both (n, …) of one shape -> (n,) float64."""
    return _per_sample((logits_of(outputs).double() - targets) ** 2)


def token_cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Mean nats per token: logits (n, T, V) at t against targets (n, T) at t; −100 is ignored -> (n,) float64.

    That of masked language models, of encoder-decoder models and of classes of tokens.
    """
    losses = F.cross_entropy(logits_of(outputs).transpose(1, 2), targets.long(), reduction="none", ignore_index=IGNORED)
    return _per_sample(losses, targets != IGNORED)


def token_errors(outputs: Any, targets: Tensor) -> Tensor:
    """Share of a sample's counted tokens that do not have the largest logit -> (n,) float64."""
    return _per_sample((logits_of(outputs).argmax(-1) != targets).double(), targets != IGNORED)


def next_token(outputs: Any, targets: Tensor) -> Tensor:
    """Mean nats per predicted token: logits (n, T, V) at t against token t+1 of targets (n, T); −100 is ignored."""
    return token_cross_entropy(logits_of(outputs)[:, :-1], targets[:, 1:])


def next_token_errors(outputs: Any, targets: Tensor) -> Tensor:
    """Share of a sample's counted tokens that are not predicted -> (n,) float64."""
    return token_errors(logits_of(outputs)[:, :-1], targets[:, 1:])


def counted_classes(targets: Tensor) -> Tensor:
    """How many of a sample's targets are classes -> (n,)."""
    return (targets != IGNORED).reshape(len(targets), -1).sum(1)


def counted_tokens(targets: Tensor) -> Tensor:
    """How many of a sample's tokens are to be predicted: all but the first -> (n,)."""
    return counted_classes(targets[:, 1:] if targets.ndim > 1 else targets)


LOSSES = {
    "cross_entropy": Loss(
        "cross_entropy", "nats", cross_entropy, classification_errors, True, True, counted_classes, 0.0
    ),
    "mse": Loss("mse", "squared error", mse, None, False, True, lower=0.0),
    "next_token": Loss("next_token", "nats", next_token, next_token_errors, True, True, counted_tokens, 0.0),
    "token_cross_entropy": Loss(
        "token_cross_entropy", "nats", token_cross_entropy, token_errors, True, True, counted_classes, 0.0
    ),
}


def load_loss(loss: str | PerSample | Loss, folder: Path | None = None) -> Loss:
    """Return the loss of a name, of ``"module:function"`` or of a callable (outputs, targets) -> (n,) tensor.

    A function that is convex in the outputs may say so with an attribute ``convex = True``, one that is never negative
    with ``lower = 0``; one that leaves samples out says which with an attribute ``counted``, targets -> (n,), 0 or
    False for a sample in which nothing is counted.
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
        name = f"{getattr(loss, '__module__', 'a callable')}:{name}" if name in LOSSES else name  # it is not ours
    if not callable(function):
        raise SourceError(
            f"loss {name!r}: got {type(function).__name__}, expected a function (outputs, targets) -> (n,) tensor"
        )
    convex, counted = getattr(function, "convex", False) is True, getattr(function, "counted", None)
    lower = getattr(function, "lower", None)
    bound = float(lower) if isinstance(lower, (int, float)) and not isinstance(lower, bool) else None
    return Loss(name, "loss", function, None, False, convex, counted, bound)


def default_loss(data: Data) -> str:
    """Return the name of the loss that samples of their kind have by default."""
    return "next_token" if getattr(data, "kind", None) == "text" else "cross_entropy"


def counted_only(data: Data, loss: Loss) -> Data | None:
    """Return data without the samples in which nothing is counted, with their number; None where nothing is at all.

    Data in which every sample counts are returned as they are.
    """
    kept = [counts(loss, batch, data.origin) > 0 for batch in data.batches]
    total = int(sum(which.sum() for which in kept))
    if total in (0, data.samples):
        return data if total else None
    return replace(data.only(kept), uncounted=data.uncounted + data.samples - total)


def require_counted(data: Data, loss: Loss) -> Data:
    """Return ``counted_only(…)``; raise SourceError where nothing is counted."""
    found = counted_only(data, loss)
    if found is None:
        raise SourceError(
            f"{data.origin}: nothing is counted: none of {data.samples} sample(s) has a target that {loss.name} looks "
            f"at; mend: give targets that are counted, not only {IGNORED} or masks of zeros"
        )
    return found


def counts(loss: Loss, batch: Batch, origin: str) -> Tensor:
    """Return how many targets of each sample count, (n,) float64 on the CPU; 1 where the loss does not say."""
    if loss.counted is None:
        return torch.ones(batch.samples, dtype=torch.float64)
    try:
        found = loss.counted(batch.targets)
        found = torch.as_tensor(found).detach().cpu().to(torch.float64)
    except Exception as error:
        raise SourceError(
            f"loss {loss.name!r} on {origin}: its attribute counted raised {type(error).__name__}: {error}; mend: "
            "targets -> (n,) numbers or booleans"
        ) from error
    if tuple(found.shape) != (batch.samples,):
        raise SourceError(
            f"loss {loss.name!r} on {origin}: its attribute counted returned shape {tuple(found.shape)}, expected "
            f"({batch.samples},), one a sample"
        )
    return found


def measured(loss: Loss, outputs: Any, targets: Tensor, origin: str) -> tuple[Tensor, Tensor | None]:
    """Return per-sample losses and 0-1 errors of one batch, float64 (n,); raise SourceError when they do not fit."""
    values, wrong = differentiable(loss, outputs, targets, origin)
    return values.detach().to(torch.float64), wrong


def differentiable(loss: Loss, outputs: Any, targets: Tensor, origin: str) -> tuple[Tensor, Tensor | None]:
    """Return the same as ``measured`` in the loss's own dtype, float64 for whole numbers, as autograd follows it."""
    logits = logits_of(outputs) if loss.name in LOSSES else None
    if logits is not None:
        require_targets(loss.name, logits, targets, origin)
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
    return values if values.is_floating_point() else values.double(), wrong
