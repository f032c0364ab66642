"""What sets a dropped network's tensors apart from those of the network."""

from __future__ import annotations

import pytest
import torch

from lmccheck.dropping.freedom import unlike

THETA = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"weight": torch.zeros(2, 3)}, "bias"),
        ({**THETA, "scale": torch.ones(1)}, "scale"),
        ({**THETA, "bias": torch.zeros(3)}, "bias"),
        ({**THETA, "bias": torch.zeros(2, dtype=torch.float64)}, "bias"),
        ({**THETA, "weight": torch.full((2, 3), torch.nan)}, "weight"),
    ],
    ids=["missing", "unknown", "shape", "dtype", "not finite"],
)
def test_tensors_are_those_of_the_network(weights: dict[str, torch.Tensor], said: str) -> None:
    """One is missing, unknown, of another shape or dtype, or holds what is no number: it is named."""
    assert f"'{said}'" in str(unlike(THETA, weights))


def test_other_numbers_are_like_it() -> None:
    """Only names, shapes and dtypes have to agree."""
    assert unlike(THETA, {"weight": torch.zeros(2, 3), "bias": torch.ones(2)}) is None
