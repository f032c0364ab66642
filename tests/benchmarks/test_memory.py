"""What a question takes of memory, as multiples of one model's own size: a process for each question.

Run by hand: ``pytest tests/benchmarks/test_memory.py -s``. Nothing here asserts a size.
"""

from __future__ import annotations

import multiprocessing
import resource
from typing import Any

import pytest
import torch
from tabulate import tabulate
from torch import Tensor, nn

import lmccheck

WIDTH, BLOCKS, CLASSES = 768, 10, 10
ROWS: list[list[str]] = []


class Stream(nn.Module):
    """Feed-forward blocks of four times the width on a normalised stream: 47 million numbers, most of any ViT's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(32, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(BLOCKS))
        wide = [(nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)) for _ in range(BLOCKS)]
        self.up, self.down = (nn.ModuleList(several) for several in zip(*wide, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(up(norm(x)).relu())
        return self.head(x)


def _ask(question: str, settings: dict[str, Any], told: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = [(torch.randn(64, 32), torch.randint(0, CLASSES, (64,)))]
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    model = Stream()
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e9
    states: list[Any] = [model.state_dict()]
    if question == "linear_connectivity":
        states.append(Stream().state_dict())
    load: Any = lmccheck.load_pair if len(states) > 1 else lmccheck.load_model
    base += (len(states) - 1) * size  # what the caller holds: of a file there is one copy
    asked = load(*states, model=model, data=data, calibration=data, loss="cross_entropy")
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    given = {"limit": 10.0} if len(states) > 1 else {"epsilon": 1.0, "profile": "dev"}
    result = getattr(lmccheck, question)(asked, **given, **settings)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    told.send((size, loaded - base, most - base, float(result.value)))


@pytest.fixture(scope="module", autouse=True)
def table() -> object:
    """Print the table after the last question."""
    yield
    heads = ["question", "model, GB", "loaded, × model", "most, × model", "value"]
    print("\n" + tabulate(ROWS, heads, disable_numparse=True))


@pytest.mark.parametrize(
    ("question", "settings"),
    [
        ("noise_stability", {"noise": "gaussian", "masks": 2}),
        ("noise_stability", {"masks": 2}),
        ("dropout_stability", {"refit": False}),
        ("dropout_stability", {}),
        ("linear_connectivity", {"align": "none"}),
        ("linear_connectivity", {"align": "weight-matching"}),
        ("linear_connectivity", {"align": "activation-matching"}),
    ],
)
def test_memory_of_a_question(question: str, settings: dict[str, Any]) -> None:
    """The largest resident size of a process that asks it, less that of torch alone."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_ask, args=(question, settings, there))
    process.start()
    there.close()
    size, loaded, most, value = here.recv()
    process.join()
    said = ", ".join(f"{key} = {given}" for key, given in settings.items())
    ROWS.append([f"{question} {said}", f"{size:.2f}", f"{loaded / size:.1f}", f"{most / size:.1f}", f"{value:.4g}"])
