"""Dropout masks are those of Algorithm 1, and a witness keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from networks.noise import cnn, pair_of
from safetensors import safe_open

from lmccheck.dropping.masks import dropout_mask, mask_seed, stacked, toward
from lmccheck.errors import LmcError
from lmccheck.properties.noise_stability import noise_stability


def test_the_witness_is_saved_with_its_masks(tmp_path: Path) -> None:
    """The file holds every q_k, the worst and best masks as multipliers, and the facts that remake all of them."""
    result = noise_stability(pair_of(cnn, (2, 8, 8)), masks=5, seed=11)
    json.dumps(result.details)
    witness = result.witness
    path = witness.save(tmp_path / "noise.safetensors")
    with safe_open(str(path), framework="pt") as file:
        facts = json.loads(file.metadata()["lmccheck"])
        assert file.get_tensor("q.b").tolist() == result.details["b"]["q"]
        assert file.get_tensor("losses.a").shape == (5, 4)
        for group in facts["sizes"]:
            stored = file.get_tensor(f"worst.b.{group}")
            assert torch.equal(stored, witness.multipliers(witness.worst["b"])[group])
    remade = dropout_mask(facts["sizes"], facts["p"], facts["mask_seeds"][2])
    assert all(torch.equal(remade[g], m) for g, m in witness.multipliers(2).items())
    assert witness.q["a"][witness.worst["a"]] == max(result.details["a"]["q"])
    with pytest.raises(LmcError, match="mask 5; expected 0 to 4"):
        witness.multipliers(5)


def test_masks_are_those_of_algorithm_1() -> None:
    """Multipliers are 0 or 1/(1−p), of mean one, and lie on a line between one and themselves."""
    mask = dropout_mask({"x": 20_000, "y": 3}, 0.2, 5)
    assert set(mask["x"].tolist()) == {0.0, 1.25}
    assert float((mask["x"] == 0).double().mean()) == pytest.approx(0.2, abs=0.01)
    assert torch.equal(toward(mask["x"], 0.0), torch.ones(20_000).double())
    assert torch.equal(toward(mask["x"], 1.0), mask["x"])


def test_each_mask_is_known_by_its_number() -> None:
    """The seed of a mask depends on the run's and its own number alone; the groups are drawn one after the other."""
    seeds = {mask_seed(seed, number) for seed in range(3) for number in range(1000)}
    assert len(seeds) == 3000
    generator = torch.Generator().manual_seed(mask_seed(2, 7))
    drawn = [torch.rand(size, generator=generator, dtype=torch.float64) for size in (5, 3)]
    mask = dropout_mask({"x": 5, "y": 3}, 0.4, mask_seed(2, 7))
    assert mask["x"].tolist() == [0.0 if u < 0.4 else 1 / 0.6 for u in drawn[0].tolist()]
    assert mask["y"].tolist() == [0.0 if u < 0.4 else 1 / 0.6 for u in drawn[1].tolist()]


def test_masks_are_stacked_with_t_running_fastest() -> None:
    """One line per mask and t: 1 + t·(m − 1)."""
    masks = [{"x": torch.tensor([0.0, 2.0])}, {"x": torch.tensor([2.0, 0.0])}]
    found = stacked(masks, (0.25, 1.0))["x"]
    assert found.tolist() == [[0.75, 1.25], [0.0, 2.0], [1.25, 0.75], [2.0, 0.0]]
    assert stacked([], (0.5,)) == {}
