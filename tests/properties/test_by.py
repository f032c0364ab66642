"""The worst part of the samples: a barrier of one class that the mean over all hides, against a slow loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lmccheck import SourceError, linear_connectivity, load_pair
from lmccheck.data.load import Batch, Data

CLASSES, EACH = 4, (30, 30, 30, 6)


class Table(nn.Module):
    """Logits of a sample's group; in the last group both ends are sure of the class and the half way is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(CLASSES, CLASSES), nn.Embedding(CLASSES, CLASSES)

    def forward(self, groups):
        return self.first(groups) * self.second(groups)


@pytest.fixture(scope="module")
def ends():
    """θ and −θ in the last group, whose product is the same at both ends and 0 half way; elsewhere one network."""
    sure = 3 * torch.eye(CLASSES)
    flipped = sure.clone()
    flipped[-1] *= -1
    return [{"first.weight": x.clone(), "second.weight": x.clone()} for x in (sure, flipped)]


@pytest.fixture(scope="module")
def data():
    """Four classes, the last one rare; a column says the site."""
    groups = torch.cat([torch.full((n,), k) for k, n in enumerate(EACH)])
    shuffled = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))]
    sites = tuple("north" if k == CLASSES - 1 else "south" for k in shuffled.tolist())
    return Data((Batch(shuffled, shuffled),), "data", True, columns={"site": sites})


def losses(ends, t, samples):
    """Per-sample losses at t, in float64, one at a time."""
    weights = {name: (1 - t) * ends[0][name].double() + t * ends[1][name].double() for name in ends[0]}
    logits = weights["first.weight"] * weights["second.weight"]
    return torch.stack([logits[k].logsumexp(0) - logits[k, k] for k in samples.tolist()])


@pytest.mark.parametrize(("by", "worst"), [("class", "3"), ("site", "north")])
def test_the_worst_part_is_judged(ends, data, by, worst):
    """Its own line over its own chord; the mean over all samples says little of it, and passes."""
    pair = load_pair(*ends, model=Table, data=data, device="cpu")
    whole = linear_connectivity(pair, align="none", points=5, limit=0.5)
    parts = linear_connectivity(pair, align="none", points=5, limit=0.5, by=by)
    assert (whole.verdict, parts.verdict) == ("pass", "fail")
    samples = data.batches[0].inputs
    rare = samples[samples == CLASSES - 1]
    at = {t: losses(ends, t, rare).mean() for t in (0.0, 0.5, 1.0)}
    assert parts.value == pytest.approx(float(at[0.5] - (at[0.0] + at[1.0]) / 2), rel=1e-5)
    found = parts.details["by"]
    assert found["parts"][worst]["samples"] == EACH[-1]
    assert found["parts"][worst]["barrier"] == parts.value
    assert found["barrier_of_all"] == pytest.approx(whole.value)
    assert (parts.details["worst_t"], parts.details["worst_data"]) == (0.5, f"{by} {worst}")
    count = {"class": 4, "site": 2}[by]
    assert any(f"judged by the worst of {count} parts by {by}: {worst}, 6 samples" in note for note in parts.notes)
    assert f"on {by} {worst}, of {count} parts the worst; over all samples it is {whole.value:.4g}" in "\n".join(
        parts.lines
    )
    own = f"at the worst point, on {by} {worst}, {at[0.5]:.4g}; on it a {at[0.0]:.4g}, b {at[1.0]:.4g}"
    assert own in "\n".join(parts.lines)
    assert parts.details["loss_a"] == whole.details["loss_a"]


def test_a_percentage_is_of_the_worst_parts_own_loss(ends, data):
    """A share of what its endpoints lose there."""
    pair = load_pair(*ends, model=Table, data=data, device="cpu")
    samples = data.batches[0].inputs
    own = float(losses(ends, 0.0, samples[samples == CLASSES - 1]).mean())
    result = linear_connectivity(pair, align="none", points=5, limit="50%", by="class")
    assert result.limit == pytest.approx(own / 2, rel=1e-5)


def test_refinement_goes_to_the_worst_part(data):
    """Whose worst t lies off the grid: a rare class is worst at ⅓, all others together half way."""

    class Bump(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t = nn.Parameter(torch.zeros(()))

        def forward(self, groups):
            rare = groups == CLASSES - 1
            peak = torch.where(rare, 0.3, 0.5)
            height = torch.where(rare, 8.0, 0.4) * (1 - (4 * (self.t - peak)).abs()).clamp(min=0)
            return nn.functional.one_hot(groups, CLASSES) * (6 - height).unsqueeze(-1)

    pair = load_pair({"t": torch.tensor(0.0)}, {"t": torch.tensor(1.0)}, model=Bump, data=data, device="cpu")
    result = linear_connectivity(pair, align="none", points=5, by="class", profile="thorough", endpoints="any")
    assert abs(result.details["worst_t"] - 0.3) < 0.02


def test_what_tells_no_parts_is_refused(ends, data):
    """With the columns that there are."""
    pair = load_pair(*ends, model=Table, data=data, device="cpu")
    with pytest.raises(SourceError, match=r"by = 'sites': no such column \(did you mean 'site'\?\)"):
        linear_connectivity(pair, align="none", by="sites")
