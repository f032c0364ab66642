"""Do targets fit a model's outputs: kinds of numbers, shapes, and classes that there are outputs for."""

from __future__ import annotations

import torch
from torch import Tensor

from lmccheck.data.collate import UNCOUNTED
from lmccheck.errors import SourceError

OF_TOKENS = ("next_token", "token_cross_entropy")  # logits (n, T, V), targets (n, T)


def require_targets(loss: str, logits: Tensor, targets: Tensor, origin: str) -> None:
    """Raise SourceError, beginning with ``origin``, unless targets are what one of lmccheck's losses takes there."""
    integer = loss != "mse"
    kind = str(targets.dtype).removeprefix("torch.")
    if integer and targets.shape == logits.shape and logits.ndim > 1:
        _refuse_shares(loss, targets, origin)
    if integer and (targets.is_floating_point() or targets.dtype == torch.bool):
        whole = targets.dtype == torch.bool or bool((targets == targets.round()).all())
        mend = "targets.long()" if whole else 'loss = "mse" for a regression, or class indices'
        raise SourceError(f"{origin}: tensor 'targets' is {kind}, {loss} expects int64 class indices; mend: {mend}")
    if loss == "mse" and targets.shape != logits.shape:
        raise SourceError(
            f"{origin}: tensor 'targets' has shape {tuple(targets.shape)}, the model's output {tuple(logits.shape)}; "
            f"mse expects equal shapes; mend: {_mend_numbers(targets, logits)}"
        )
    if loss == "cross_entropy":
        expected = (logits.shape[0], *logits.shape[2:])
        if logits.ndim < 2 or tuple(targets.shape) != expected:
            raise SourceError(
                f"{origin}: tensor 'targets' has shape {tuple(targets.shape)}, expected {expected} for outputs "
                f"{tuple(logits.shape)}; mend: {_mend_shape(targets, logits, expected)}"
            )
        _check_classes(targets, logits.shape[1], "classes", origin)
    if loss in OF_TOKENS and (logits.ndim != 3 or targets.shape != logits.shape[:2]):
        raise SourceError(
            f"{origin}: tensor 'targets' has shape {tuple(targets.shape)}, expected (n, T) for outputs "
            f"{tuple(logits.shape)}"
        )
    if loss in OF_TOKENS:
        _check_classes(targets[:, 1:] if loss == "next_token" else targets, logits.shape[2], "tokens", origin)


def _check_classes(targets: Tensor, outputs: int, what: str, origin: str) -> None:
    """Raise SourceError for a class that the model has no output for; UNCOUNTED is none."""
    held = targets[targets != UNCOUNTED]
    if held.numel() and (int(held.min()) < 0 or int(held.max()) >= outputs):
        mend = f"class indices from 0, or {UNCOUNTED} for what is not counted"
        raise SourceError(
            f"{origin}: tensor 'targets' holds {what} {int(held.min())}..{int(held.max())}, the model has {outputs} "
            f"outputs; mend: {mend if what == 'classes' else 'the tokenizer that the model was trained with'}"
        )


def _refuse_shares(loss: str, targets: Tensor, origin: str) -> None:
    """Raise SourceError where targets hold a share of every class: all of one, or some of several."""
    axis = 1 if loss == "cross_entropy" else -1
    shares = targets.double()
    if shares.shape[axis] < 2 or not bool((shares >= 0).all()):
        return
    if not bool(((shares.sum(axis) - 1).abs() < 1e-3).all()):
        return
    hot = bool(((shares == 0) | (shares == 1)).all())
    mend = f"targets.argmax({axis})" + ("" if hot else ", or a loss of your own, 'module:function'")
    raise SourceError(
        f"{origin}: tensor 'targets' has shape {tuple(targets.shape)} and is {'one-hot' if hot else 'probabilities'}, "
        f"{loss} expects int64 class indices; mend: {mend}"
    )


def _mend_shape(targets: Tensor, logits: Tensor, expected: tuple[int, ...]) -> str:
    """Return what makes targets of the expected shape: an axis of one element is one too many."""
    if logits.ndim == 3 and targets.shape == logits.shape[:2]:
        return (
            'loss = "next_token" for a language model, "token_cross_entropy" where outputs stand at their targets, '
            "else outputs of shape (n, classes, T)"
        )
    for axis, size in enumerate(targets.shape):
        if size == 1 and (*targets.shape[:axis], *targets.shape[axis + 1 :]) == expected:
            return f"targets.squeeze({axis})"
    return "one class index a sample"


def _mend_numbers(targets: Tensor, logits: Tensor) -> str:
    """Return what makes numbers of the outputs' shape: a last axis of one element is missing, or is one too many."""
    if (*targets.shape, 1) == logits.shape:
        return "targets.unsqueeze(-1)"
    return "targets.squeeze(-1)" if targets.shape == (*logits.shape, 1) else "reshape the targets"
