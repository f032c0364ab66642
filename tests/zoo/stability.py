"""What may be asked of a network of the zoo beside its symmetries: stability, and how the answer is known."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lmccheck
from lmccheck.data.trees import tensors_in
from lmccheck.errors import LmcError

QUESTIONS: dict[str, dict[str, Any]] = {  # as cheap as they can be asked: whether there is an answer, not which
    "noise_stability, gaussian": {"property": "noise_stability", "noise": "gaussian", "masks": 2},
    "noise_stability, masks": {"property": "noise_stability", "masks": 2},
    "dropout_stability": {"property": "dropout_stability", "refit": False},
}


SAMPLES = 4  # on which losses are measured: not one alone, of which a graph may be another one
CALIBRATION = 2  # one to fit to, one to compare by: what a search costs grows with them


def _several(given: Tensor) -> Tensor:
    """Repeat two samples, numbers a little changed."""
    repeated = given.repeat(SAMPLES // len(given), *[1] * (given.ndim - 1))
    return repeated * (1 + 0.1 * torch.rand_like(repeated)) if given.is_floating_point() else repeated


def _batch(several: tuple[Any, ...], samples: int) -> list[Any]:
    first = tuple(t[:samples] if isinstance(t, Tensor) else t for t in several)
    return [(first if len(first) > 1 else first[0], torch.zeros(samples))]


@dataclass
class Answer:
    """How an answer is known, or why there is none; what it took."""

    question: str
    known: str = ""
    refusal: str = ""
    value: float | None = None
    seconds: float = 0.0
    beside: str = ""  # layers that got noise, levels that were dropped from


def mean_square(outputs: Any, targets: Tensor) -> Tensor:
    """The mean square of all that a network gives for a sample, whatever that is, above its target."""
    values = [t.double().reshape(len(targets), -1) for t in tensors_in(outputs) if t.ndim and len(t) == len(targets)]
    return (torch.cat(values, 1).square().mean(1) - targets.double()).abs()


def answers(
    module: nn.Module, inputs: tuple[Any, ...], questions: Iterable[str] = QUESTIONS, device: str = "cpu"
) -> Iterator[Answer]:
    """Ask everything of one network with its own weights, question by question."""
    torch.manual_seed(1)
    several = tuple(_several(t) if isinstance(t, Tensor) else t for t in inputs)
    data, calibration = (_batch(several, samples) for samples in (SAMPLES, CALIBRATION))
    single = lmccheck.load_model(
        module.state_dict(), model=module, data=data, calibration=calibration, loss=mean_square, device=device
    )
    for question in questions:
        yield _answer(single, question, dict(QUESTIONS[question]))


def _answer(single: lmccheck.SingleModel, question: str, settings: dict[str, Any]) -> Answer:
    found, started = Answer(question), time.perf_counter()
    try:
        result = getattr(lmccheck, settings.pop("property"))(single, epsilon=1.0, profile="dev", **settings)
        found.known, found.value = str(result.details["known"]), float(result.value)
        found.beside = str(result.details.get("layers", len(result.details.get("levels", []))))
    except LmcError as error:
        found.refusal = str(error)
    found.seconds = time.perf_counter() - started
    return found
