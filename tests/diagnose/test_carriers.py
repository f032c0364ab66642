"""Which samples carry half of what is lost, and which parent is hurt more."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import lmccheck
from lmccheck.data.load import load_data
from lmccheck.diagnose.samples import carriers, hurt, hurt_most, sample_facts

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("seed", range(8))
def test_no_fewer_samples_carry_half(seed: int) -> None:
    """Beside all subsets of ten samples: so many carry half of the sum, and no fewer do."""
    heights = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.3
    total = float(heights.sum())
    enough = [
        len(some)
        for count in range(11)
        for some in itertools.combinations(heights.tolist(), count)
        if total > 0 and sum(some) >= total / 2
    ]
    found = carriers(heights)
    assert len(found) == min(enough, default=0)
    assert heights[found].tolist() == sorted(heights.tolist(), reverse=True)[: len(found)]


def test_what_is_no_number_carries_all() -> None:
    """One sample without a loss makes the mean none: it is named alone; nothing lost, nothing carried."""
    assert carriers(torch.tensor([1.0, NAN, 5.0, INF], dtype=torch.float64)).tolist() == [1, 3]
    assert carriers(torch.tensor([-1.0, 0.5], dtype=torch.float64)).tolist() == []
    assert carriers(torch.zeros(3, dtype=torch.float64)).tolist() == []


def test_samples_are_told_by_their_place_and_class() -> None:
    """Indices are those of the data, also where only some samples are judged; classes are counted."""
    data = load_data((torch.zeros(6, 1), torch.tensor([0, 1, 1, 2, 1, 0])))
    heights = torch.tensor([9.0, 1.0, 3.0, 0.0, 3.0, 1.0], dtype=torch.float64)
    which = torch.tensor([False, True, True, True, True, True])
    found = sample_facts(heights, data, which)
    assert found == {"half": 2, "of": 5, "share": 0.4, "indices": [2, 4], "indices_left_out": 0, "classes": {"1": 2}}
    assert sample_facts(heights, data)["indices"] == [0]
    unlabelled = load_data((torch.zeros(6, 1), torch.zeros(6, 1)))
    assert sample_facts(heights, unlabelled)["classes"] == {}
    rows = replace(data, places=tuple(f"rows.jsonl:{k}" for k in range(1, 7)))
    assert sample_facts(heights, rows, which)["places"] == ["rows.jsonl:3", "rows.jsonl:5"]


def test_indices_that_are_left_out_are_counted() -> None:
    """Of 300 equal losses 150 carry half; 100 are told, 50 are not."""
    data = load_data((torch.zeros(300, 1), torch.zeros(300, 1)))
    found = sample_facts(torch.ones(300, dtype=torch.float64), data)
    assert (found["half"], len(found["indices"]), found["indices_left_out"]) == (150, 100, 50)


def test_a_parent_is_hurt_on_the_samples_that_it_answers_best() -> None:
    """a answers the first best and loses 4 there, b the second and loses 1; the third is nobody's: 4/3 and 1/3."""
    worse = {"a": torch.tensor([4.0, -1.0, 2.0]), "b": torch.tensor([1.0, 1.0, 2.0])}
    assert hurt(worse) == pytest.approx({"a": 4 / 3, "b": 1 / 3})
    assert hurt(worse, torch.tensor([False, True, True])) == {"a": 0.0, "b": 0.5}
    assert hurt_most(hurt(worse)) == "a"
    assert hurt_most({"a": -1.0, "b": -2.0}) is None


class Table(nn.Module):
    """A logit of class 1 for each of four inputs, squared: halfway between w and −w every sample is undecided."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), self.w[x[:, 0].long()] ** 2], 1)


def test_a_failing_line_names_the_samples_that_carry_it() -> None:
    """Only the weight of input 2 turns its sign: of 8 samples the two of input 2 carry all, one of them half."""
    a, b = torch.tensor([3.0, 3.0, 3.0, 3.0]), torch.tensor([3.0, 3.0, -3.0, 3.0])
    x = torch.tensor([0.0, 1.0, 2.0, 3.0] * 2)[:, None]
    data = (x, torch.ones(8, dtype=torch.int64))
    pair = lmccheck.load_pair({"w": a}, {"w": b}, model=Table, data=data, device="cpu")
    found = lmccheck.linear_connectivity(pair, align="none", limit=0.05)
    samples = found.details["explanation"]["samples"]
    assert (samples["half"], samples["of"], samples["indices"]) == (1, 8, [2])
    assert found.finding is not None
    assert found.finding.explanation == found.details["explanation"]
    assert any("samples: 1 of 8 carries half of it" in line for line in found.lines)
    assert "explanation" not in lmccheck.linear_connectivity(pair, align="none", limit=0.05, profile="dev").details
    assert "explanation" not in lmccheck.linear_connectivity(pair, align="none", limit=0.05, explain=False).details
    assert "explanation" not in lmccheck.linear_connectivity(pair, align="none", limit=9).details
    assert (
        lmccheck.linear_connectivity(pair, align="none", limit=9, explain=True).details["explanation"]["samples"]
        == samples
    )
