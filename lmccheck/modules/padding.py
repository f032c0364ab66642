"""Whether a module says the same of tokens with and without padding behind them, seen under weights at random."""

from __future__ import annotations

from torch import Tensor, nn

from lmccheck.data.trees import tensors_in
from lmccheck.errors import LmcError
from lmccheck.modules.runner import Runner

NEAR = 1e-4  # of an output's size: what is told apart from rounding
DRAWS = 4


def ignores_padding(module: nn.Module, row: Tensor, length: int, origin: str) -> bool:
    """Whether a module says the same of the first tokens with and without what follows, under weights at random."""
    runner = Runner(module)
    for seed in range(DRAWS):
        runner.draw(module, seed)
        try:
            padded, alone = (tensors_in(runner((each,), origin)) for each in (row, row[:, :length]))
        except LmcError:
            return True  # running it says what is wrong
        if not padded or padded[0].ndim < 3:
            return False  # nothing is said of each token
        first = padded[0][:, :length]
        if first.shape != alone[0].shape or float((first - alone[0]).abs().max()) > NEAR * (
            1 + float(first.abs().max())
        ):
            return False
    return True
