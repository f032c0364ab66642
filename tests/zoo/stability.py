"""What may be asked of a network of the zoo beside its symmetries: stability, and how the answer is known."""

from __future__ import annotations

import time
from collections.abc import Iterable
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


SAMPLES = 6  # half of them fit, half compare: not one alone, of which a graph may be another one


def _several(given: Tensor) -> Tensor:
    """Repeat two samples, numbers a little changed."""
    repeated = given.repeat(SAMPLES // len(given), *[1] * (given.ndim - 1))
    return repeated * (1 + 0.1 * torch.rand_like(repeated)) if given.is_floating_point() else repeated


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


def answers(module: nn.Module, inputs: tuple[Any, ...], questions: Iterable[str] = QUESTIONS) -> list[Answer]:
    """Ask everything of a network with its own weights, and with others a little off them."""
    torch.manual_seed(1)
    theta = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    other = {
        name: t + 0.01 * t.std(correction=0) * torch.randn_like(t) if t.is_floating_point() and t.ndim > 1 else t
        for name, t in theta.items()
    }
    for name, t in module.state_dict(keep_vars=True).items():  # tied tensors stay tied
        first = next(n for n, s in module.state_dict(keep_vars=True).items() if s is t)
        other[name] = other[first]
    several = tuple(_several(t) if isinstance(t, Tensor) else t for t in inputs)
    data = [(several if len(several) > 1 else several[0], torch.zeros(SAMPLES))]
    pair = lmccheck.load_pair(theta, other, model=module, data=data, calibration=data, loss=mean_square)
    return [_answer(pair, question, dict(QUESTIONS[question])) for question in questions]


def _answer(pair: lmccheck.ModelPair, question: str, settings: dict[str, Any]) -> Answer:
    found, started = Answer(question), time.process_time()
    try:
        result = getattr(lmccheck, settings.pop("property"))(pair, epsilon=1.0, profile="dev", **settings)
        found.known, found.value = str(result.details["known"]), float(result.value)
        found.beside = str(result.details.get("layers", len(result.details.get("levels", []))))
    except LmcError as error:
        found.refusal = str(error)
    found.seconds = time.process_time() - started
    return found
