"""The largest loss on a path, on y = a·w·x with two units alike, where every loss has a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import LmcError
from lmccheck.network.pair import ModelPair
from lmccheck.paths.certify import Certificate, Known, certify
from lmccheck.paths.path import Path, Segment

X = (1.0, 2.0, 0.3)
SQUARE = sum(x * x for x in X) / len(X)  # E[x²]


def product() -> nn.Module:
    """1-2-1, linear and without biases: y = (a₀·w₀ + a₁·w₁)·x."""
    return nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))


def weights(w: float, a: float, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return both units with weight w and half of the outgoing weight a each: y = a·w·x."""
    return {"0.weight": torch.full((2, 1), w, dtype=dtype), "1.weight": torch.full((1, 2), a / 2, dtype=dtype)}


def pair_of(a: dict[str, Tensor], b: dict[str, Tensor]) -> ModelPair:
    """Return a pair with targets y = x: the loss is (a·w − 1)²·E[x²]."""
    x = torch.tensor(X, dtype=torch.float64)[:, None]
    return lmccheck.load_pair(a, b, model=product, data=(x, x), loss="mse", device="cpu")


def certified(kind: str, *states: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> Certificate:
    """Return what is known of the path through some states by segments of one kind; ``dtype`` is that of the pair."""
    ends = ({name: tensor.to(dtype) for name, tensor in state.items()} for state in (states[0], states[-1]))
    pair = pair_of(*ends)
    structure = pair.network.structure("tests")
    points = tuple({name: tensor.to(dtype).double() for name, tensor in state.items()} for state in states)
    return certify(pair, structure, Path(points, tuple(Segment(kind, "") for _ in points[1:]), structure.trace.tied))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_largest_loss_may_lie_inside_a_segment(dtype: torch.dtype) -> None:
    """From w = a = 1 to w = a = −1 both ends are perfect; half-way y = 0, and the loss is E[x²]."""
    found = certified("d", weights(1, 1), weights(-1, -1), dtype=dtype)
    assert (found.loss_a, found.loss_b) == (0.0, 0.0)
    assert found.largest == found.excess == pytest.approx(SQUARE, abs=1e-14)
    assert (found.worst.worst, found.worst.how, found.exact) == (0.5, "sampled", False)


@pytest.mark.parametrize("kind", ["a", "d"])
def test_the_largest_loss_may_lie_at_either_end(kind: str) -> None:
    """From a = 1 to a = 3 the loss is 4·t²·E[x²]: largest at the end, and on the way back at the beginning."""
    there, back = (certified(kind, *ends) for ends in ((weights(1, 1), weights(1, 3)), (weights(1, 3), weights(1, 1))))
    for found, at in ((there, 1.0), (back, 0.0)):
        assert found.largest == pytest.approx(4 * SQUARE, abs=1e-13)
        assert found.worst.worst == at
        assert found.excess == 0.0
        assert found.exact == (kind == "a")


def test_one_sampled_segment_makes_a_path_sampled() -> None:
    """Of two segments the first is affine in the head, the second is not."""
    pair = pair_of(weights(1, 1), weights(2, 2))
    structure = pair.network.structure("tests")
    points = tuple(structure.canonical(state) for state in (weights(1, 1), weights(1, 2), weights(2, 2)))
    found = certify(pair, structure, Path(points, (Segment("a", ""), Segment("d", "")), structure.trace.tied))
    assert [segment.how for segment in found.segments] == ["convex", "sampled"]
    assert not found.exact


def test_losses_of_float32_checkpoints_are_those_of_their_numbers_in_float64() -> None:
    """(a·w − 1)²·E[x²] of the stored numbers, to the last bits of float64."""
    found = certified("d", weights(0.1, 0.7), weights(0.3, 0.9), dtype=torch.float32)
    for loss, (w, a) in ((found.loss_a, (0.1, 0.7)), (found.loss_b, (0.3, 0.9))):
        stored = [float(torch.tensor(number, dtype=torch.float32)) for number in (w, a / 2)]
        assert loss == pytest.approx((2 * stored[0] * stored[1] - 1) ** 2 * SQUARE, rel=1e-13)


def test_a_loss_that_is_no_number_is_above_all() -> None:
    """A breakpoint whose loss is NaN is the largest on the path, wherever it comes, and the path does not pass."""

    def broken_above_two(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = ((outputs - targets) ** 2).mean(1)
        return torch.where(outputs[:, 0] > 2.5 * targets[:, 0], math.nan, losses)

    ends, x = (weights(1, 1), weights(1, 1.5)), torch.tensor(X, dtype=torch.float64)[:, None]
    pair = lmccheck.load_pair(*ends, model=product, data=(x, x), loss=broken_above_two, device="cpu")
    structure = pair.network.structure("tests")
    points = tuple(structure.canonical(state) for state in (ends[0], weights(1, 3), ends[1]))
    path = Path(points, (Segment("d", ""), Segment("d", "")), structure.trace.tied)
    assert math.isnan(certify(pair, structure, path).largest)
    assert not lmccheck.verify_path(pair, path, epsilon=1e6).passed


def test_a_path_has_the_ends_and_the_tensors_of_its_pair() -> None:
    """It begins at θ_A and ends at θ_B to the last bit, and holds float64 on the way."""
    a, b, off = weights(1, 1), weights(1, 3), weights(1, 3.0000001)
    pair = pair_of(a, b)
    structure = pair.network.structure("tests")

    def refused(*points: dict[str, Tensor]) -> str:
        path = Path(points, tuple(Segment("d", "") for _ in points[1:]), structure.trace.tied)
        with pytest.raises(LmcError) as caught:
            certify(pair, structure, path)
        return str(caught.value)

    assert "it does not end at b: tensor '1.weight' differs" in refused(a, off)
    assert "it does not begin at a: tensor '1.weight' differs" in refused(off, b)
    half = {name: tensor.float() for name, tensor in b.items()}
    assert "breakpoint 1: tensor '0.weight': got (2, 1) float32, expected" in refused(a, half, b)


def test_the_worst_segment_is_one_that_moves_the_loss() -> None:
    """Of several as high as the largest, the first that is not constant."""
    rows = [(1, "b", "constant", 2.0), (2, "a", "convex", 1.0), (3, "d", "sampled", 2.0), (4, "a", "convex", 2.0)]
    segments = tuple(Known(k, kind, "", 1.0, 1.0, top, 0.0, how, (None, None)) for k, kind, how, top in rows)
    assert Certificate(segments, 2.0, 1.0, 1.0, 0, 0.0).worst.number == 3
    assert Certificate(segments[:2], 2.0, 1.0, 1.0, 0, 0.0).worst.number == 1
