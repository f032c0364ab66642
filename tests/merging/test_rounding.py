"""What rounding explains: no more than it does for sums rounded once, nor, over whole tensors, for those in steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmccheck.merging.laws import LAWS
from lmccheck.merging.rounding import Rounding, strays
from lmccheck.merging.trial import Made, Setting, Trial, astray, unlike
from lmccheck.store.checkpoint import look_at

KINDS = [torch.bfloat16, torch.float16, torch.float32]


def tuned(count: int, dtype: torch.dtype, away: float = 0.0) -> list[Tensor]:
    """Fine-tunes that differ by a fortieth of their size, each entry at least ``away`` from zero."""
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(64, 64, generator=generator)
    base = base + away * base.sign()
    return [(base + 0.0005 * torch.randn(64, 64, generator=generator)).to(dtype) for _ in range(count)]


def seen(got: Tensor, parents: list[Tensor], once: bool) -> bool:
    """Whether a merge is told from the mean."""
    mean = torch.stack([one.double() for one in parents]).mean(0)
    terms = [(1 / len(parents), one) for one in parents]
    allowed = Rounding(once).of_sum(got, mean, terms)
    if unlike("linear", "", "w", got, mean, allowed):
        return True
    return not once and astray("linear", "", "w", got, mean, terms, allowed) is not None


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("count", [2, 8, 40])
def test_sums_as_programs_make_them_are_rounding(dtype: torch.dtype, count: int) -> None:
    """In the stored dtype step by step, by weights that are rounded to it, or in float32: none is an error."""
    parents = tuned(count, dtype)
    weights = torch.full((count,), 1 / count, dtype=dtype)
    stacked, steps, scaled = torch.stack(parents), parents[0].clone(), parents[0] * weights[0]
    for one in parents[1:]:
        steps, scaled = steps + one, scaled + one * weights[0]
    normalised = (stacked * weights[:, None, None]).sum(0) / weights.sum()
    for got in (steps / count, scaled, normalised, stacked.float().mean(0).to(dtype)):
        assert not seen(got, parents, once=False)


@pytest.mark.parametrize("count", [2, 8, 40, 72])
def test_one_parent_in_place_of_the_mean_is_seen(count: int) -> None:
    """With 72 in bfloat16 every entry of it may be the rounding of a sum in steps; all together cannot."""
    parents = tuned(count, torch.bfloat16)
    assert seen(parents[0], parents, once=False)
    assert seen(parents[0], parents, once=True)


def test_what_no_single_entry_tells_the_tensor_does() -> None:
    """One of 72 parents in place of the mean: every entry is within what rounding explains in it."""
    parents = tuned(72, torch.bfloat16, away=0.01)
    mean = torch.stack([one.double() for one in parents]).mean(0)
    got = parents[0]
    terms = [(1 / 72, one) for one in parents]
    allowed = Rounding().of_sum(got, mean, terms)
    assert unlike("linear", "", "w", got, mean, allowed) is None
    assert strays(got, mean, terms, allowed) is not None
    found = astray("linear", "M ≠ mean", "w", got, mean, terms, allowed)
    assert found is not None
    assert "over all entries of a tensor" in found.words


def test_a_sum_rounded_once_is_the_nearest_number() -> None:
    """(1 + 1.0078125)/2 = 1.00390625 lies in the middle of two numbers of bfloat16: both are right, no third one is."""
    parents = [torch.tensor([1.0]).bfloat16(), torch.tensor([1.0078125]).bfloat16()]
    for value, wrong in ((0.99609375, True), (1.0, False), (1.0078125, False), (1.015625, True)):
        assert seen(torch.tensor([value]).bfloat16(), parents, once=True) is wrong
    thirds = [*parents, parents[0]]  # 1.0026…, next to 1
    assert not seen(torch.tensor([1.0]).bfloat16(), thirds, once=True)
    assert seen(torch.tensor([1.0078125]).bfloat16(), thirds, once=True)


def test_what_is_rounded_once_twice_may_round_apart() -> None:
    """Of one sum two makers may take either of two numbers beside its middle, not the next but one."""
    one = torch.tensor([1.0]).bfloat16()
    allowed = Rounding(once=True).again(one, one, [one])
    for apart, broken in ((1.0078125, False), (1.015625, True)):
        found = unlike("order", "", "w", torch.tensor([apart]).bfloat16(), one, allowed)
        assert (found is not None) is broken
    double = one.double()
    assert 0 < float(Rounding(once=True).between(double, double, [double])) < 1e-14


def test_the_coarsest_dtype_rounds() -> None:
    """1.003 of float32 is 1 in bfloat16: of a sum in steps that is rounding."""
    parent, got = torch.tensor([1.003]), torch.tensor([1.003]).bfloat16()
    allowed = Rounding().of_sum(got, parent.double(), [(1.0, parent)])
    assert unlike("linear", "", "w", got, parent, allowed) is None


def test_equal_infinities_are_not_apart() -> None:
    """Nor is one NaN from another; a number beside them is held to what rounding explains."""
    odd = [torch.inf, -torch.inf, torch.nan]
    expected, allowed = torch.tensor([*odd, 1.0]), torch.full((4,), 1e-6)
    assert unlike("unit", "", "w", torch.tensor([*odd, 1.0 + 2e-7]), expected, allowed) is None
    found = unlike("unit", "", "w", torch.tensor([*odd, 1.1]), expected, allowed)
    assert found is not None
    assert found.index == (3,)


def test_a_law_looks_at_tensors_as_wholes() -> None:
    """One of 72 parents in the place of their mean breaks linearity over all entries of a sum in steps."""
    parents = tuned(72, torch.bfloat16, away=0.01)
    opened = {f"p{k}": look_at({"w": one}, Path(), f"p{k}") for k, one in enumerate(parents)}
    made = Made(opened["p0"], {"weights": dict.fromkeys(opened, 1 / 72)})
    found = LAWS["linear"](Trial(lambda setting: made, Setting(opened)))
    assert found is not None
    assert "over all entries of a tensor" in found.said


def test_small_entries_are_held_to_their_own_size() -> None:
    """Beside an entry of a thousand that parents differ in, one of a thousandth that is 1% off is an error."""
    parents = [torch.tensor([1e3, 1e-3]), torch.tensor([-1e3, 1e-3])]
    assert seen(torch.tensor([0.0, 1.01e-3]), parents, once=False)
    assert not seen(torch.tensor([0.0, 1e-3]), parents, once=False)
    products = Rounding(products=True).of_sum(parents[0], parents[0], [(0.5, one) for one in parents])
    assert float(products[1]) > 1e-5  # of factors' products, whose large terms cancel
