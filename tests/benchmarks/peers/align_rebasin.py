"""Align a pair with PyPI's ``rebasin`` (weight matching), run by a Python that has it: see ``run.py``."""

from __future__ import annotations

import torch
from common import SHAPE, main
from rebasin import PermutationCoordinateDescent  # type: ignore[import-not-found]
from torch import Tensor, nn


def align(a: nn.Module, b: nn.Module) -> tuple[dict[str, Tensor], str]:
    """Call it as its README does; it permutes b in place."""
    descent = PermutationCoordinateDescent(model_a=a, model_b=b, input_data_b=torch.randn(SHAPE))
    descent.rebasin()
    return b.state_dict(), f"{len(descent.pinit.model_graph.permutation_to_info)} permutations"


if __name__ == "__main__":
    main("rebasin", align)
