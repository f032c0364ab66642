"""Coefficients per layer, searched: heights and simplest violations against formulas and against all points tried."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from networks.small import seeded, small_batchnorm, small_mlp
from networks.switches import hill, switches
from safetensors.torch import load_file, save_file
from torch import Tensor

import lmccheck
from lmccheck.errors import LmcError, SourceError
from lmccheck.strategies.search import search_worst

GRID = (0.5, 1.0, 0.25, 0.75)  # simplest first


def only_together(first: int, second: int) -> lmccheck.ModelPair:
    """Six layers, of which two cost something only where both are half-way."""
    return switches(6, lambda c: 1e-3 + hill(c[first]) * hill(c[second]) + 1e-6 * c.sum())


def test_two_layers_that_fail_together_are_the_simplest_violation() -> None:
    """Four layers that do no harm are left out, and both coefficients are 1/2; the height is the formula's."""
    result = lmccheck.box_connectivity(only_together(1, 4), align="none", limit=0.3)
    assert result.verdict == "fail"
    simplest = result.details["simplest"]
    assert simplest["coefficients"] == {"layers.1": 0.5, "layers.4": 0.5}
    assert simplest["loss"] == pytest.approx(1.001 + 1e-6, abs=1e-9)
    assert result.value == pytest.approx(1.001 + 4e-6 - (1e-3 + 6e-6), abs=1e-2)
    bars = result.finding.curve
    drawn = dict(zip(bars.names, bars.beside["worst point"], strict=True))
    assert drawn == {f"layers.{k}": 0.5 * (k in (1, 4)) for k in range(6)}
    assert bars.values["worst point"][1] == result.details["worst_coefficients"]["layers.1"]
    assert not bars.limited  # the limit is one of losses
    text = "\n".join(result.lines)
    assert "; simplest counterexample 1 at {'layers.1': 0.5, 'layers.4': 0.5}; " in text
    assert "its layers may not be mixed each by itself, as they are, unaligned" in text


def test_value_and_place_are_those_of_the_formula() -> None:
    """What is said of the worst point is its loss, above that of the worse endpoint."""
    result = lmccheck.box_connectivity(only_together(0, 2), align="none", limit=2.0)
    assert result.passed
    point = result.details["worst_coefficients"]
    c = torch.tensor([point.get(f"layers.{k}", 0.0) for k in range(6)], dtype=torch.float64)
    expected = float(1e-3 + hill(c[0]) * hill(c[2]) + 1e-6 * c.sum())
    assert result.details["worst_loss"] == pytest.approx(expected, abs=1e-12)
    assert result.value == pytest.approx(expected - (1e-3 + 6e-6), abs=1e-12)
    assert result.details["known"] == f"searched: {result.details['points']} points"
    assert 50 <= result.details["points"] <= 100
    assert any("a pass does not prove that no other coefficients exceed the limit" in note for note in result.notes)


def rough(layers: int, seed: int) -> lmccheck.ModelPair:
    """Losses that are drawn for each of the points of GRID and 0, and those of the nearest between them."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand((5,) * layers, generator=generator, dtype=torch.float64) ** 4
    table[(0,) * layers] = table[(4,) * layers] = 0.0

    def formula(c: Tensor) -> Tensor:
        places = (c * 4).round().clamp(0, 4).long()
        return table[tuple(places)]

    return switches(layers, formula)


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, 6))])
def test_nothing_simpler_violates(seed: int) -> None:
    """On four layers whose losses have no order at all: every point with fewer layers, or simpler numbers, holds."""
    pair = rough(4, seed)
    result = lmccheck.box_connectivity(pair, align="none", limit=0.6, examples=300)
    found = result.details["simplest"]["coefficients"]
    names = [f"layers.{k}" for k in range(4)]
    box = lmccheck.evaluate.box.Box(pair)  # type: ignore[attr-defined]  # the package's room, imported above it
    for size in range(len(found)):
        for chosen in combinations(names, size):
            for values in product(GRID, repeat=size):
                assert box.loss(dict(zip(chosen, values, strict=True))) <= 0.6
    if found:
        worst = max(GRID.index(value) if value in GRID else len(GRID) for value in found.values())
        for chosen in combinations(names, len(found)):
            for values in product(GRID[:worst], repeat=len(found)):
                assert box.loss(dict(zip(chosen, values, strict=True))) <= 0.6


def test_the_same_seed_searches_the_same_points() -> None:
    """And another seed others."""
    layers = [f"layers.{k}" for k in range(5)]

    def keys(seed: int) -> list[object]:
        return list(search_worst(layers, lambda c: sum(c.values()), seed=seed, examples=60).seen)

    assert keys(3) == keys(3)
    assert keys(3) != keys(4)
    assert len(keys(3)) <= 60


def test_a_search_climbs() -> None:
    """Towards a place that no line and no corner comes near: 200 points that were drawn anywhere are 0.2 from it."""
    tops = {str(k): 0.2 + 0.6 * (k % 2) for k in range(3)}

    def height(c: Mapping[str, float]) -> float:
        return -sum(abs(c.get(layer, 0.0) - top) for layer, top in tops.items())

    assert search_worst(list(tops), height, seed=2, examples=200).worst[1] > -0.1


def small(**changes: object) -> lmccheck.ModelPair:
    torch.manual_seed(5)
    data = torch.randn(30, 4), torch.randint(0, 3, (30,))
    return lmccheck.load_pair(*(seeded(small_mlp, k) for k in (0, 1)), model=small_mlp, data=data, **changes)


def test_a_permuted_copy_is_connected_layer_by_layer_once_aligned() -> None:
    """Aligned, every point of the box is a; unaligned, mixing layers costs, and the naive value says so."""
    torch.manual_seed(5)
    a = {name: 3 * value for name, value in seeded(small_mlp, 0).items()}
    inputs = torch.randn(30, 4)
    plain = small_mlp()
    plain.load_state_dict(a)
    spec = lmccheck.discover_symmetry(small_mlp(), (inputs[:2],))
    data = inputs, plain(inputs).argmax(1)
    pair = lmccheck.load_pair(a, spec.apply(a, spec.moving(1)), model=small_mlp, data=data)
    result = lmccheck.box_connectivity(pair, limit=1e-6, examples=40)
    assert result.passed
    assert result.value == pytest.approx(0.0, abs=1e-7)
    naive = lmccheck.box_connectivity(pair, align="none", limit=1e-6, examples=40)
    assert naive.verdict == "fail"
    assert result.details["barrier_naive"] > 0.01


def test_batchnorm_needs_calibration_data_and_says_that_it_was_used() -> None:
    """As on lines."""
    torch.manual_seed(6)
    data = torch.randn(30, 1, 4, 4), torch.randint(0, 3, (30,))
    states = [seeded(small_batchnorm, k) for k in (0, 1)]
    pair = lmccheck.load_pair(*states, model=small_batchnorm, data=data)
    with pytest.raises(SourceError, match="no calibration data"):
        lmccheck.box_connectivity(pair)
    pair = lmccheck.load_pair(*states, model=small_batchnorm, data=data, calibration=data)
    result = lmccheck.box_connectivity(pair, limit=9.0, examples=20)
    assert any(note.startswith("BatchNorm re-estimated at every point") for note in result.notes)
    assert result.details["layers"] == ["0", "4"]
    assert "1" in lmccheck.box_connectivity(pair, limit=9.0, examples=20, repair="none").details["layers"]


def test_beyond_without_alignment_is_refused() -> None:
    """As on lines: there is nothing for the maps to go beyond."""
    with pytest.raises(
        LmcError, match=r"box_connectivity: beyond = .* with align = 'none'; mend: name an align method"
    ):
        lmccheck.box_connectivity(small(), align="none", beyond="all")


def test_a_loss_that_is_no_number_is_the_worst_there_is() -> None:
    """Where the network overflows the excess is infinite, and the point is shown."""
    pair = switches(3, lambda c: torch.where((c[1] > 0.4) & (c[1] < 0.9), torch.nan, 1e-3))
    result = lmccheck.box_connectivity(pair, align="none", limit=1.0)
    assert result.verdict == "fail"
    assert result.value == float("inf")
    assert result.details["simplest"]["coefficients"] == {"layers.1": 0.5}


MANIFEST = """
schema = 1
[pair.s]
a = "a.safetensors"
b = "b.safetensors"
model = "models:mlp"
data = "data.safetensors"
check.box_connectivity = { limit = 900.0, examples = 20, align = "none", endpoints = "any" }
check.tight = { property = "box_connectivity", limit = 0.0, examples = 20, align = "none", endpoints = "any" }
"""


def test_a_manifest_asks_for_it(folder: Path, pytester: pytest.Pytester) -> None:
    """A row like any other: how it is known, and where the worst is, by layer."""
    for name in ("a", "b"):
        weights = load_file(folder / f"{name}.safetensors")
        save_file({key: 5 * value for key, value in weights.items()}, folder / f"{name}.safetensors")
    (folder / "lmc.toml").write_text(MANIFEST)
    report = folder / "r.json"
    found = pytester.runpytest(str(folder / "lmc.toml"), f"--lmc-report-json={report}", "-p", "no:randomly")
    found.assert_outcomes(passed=2, failed=1)
    found.stdout.fnmatch_lines(["*simplest counterexample * at {*", "*searched: 20 points*"])
    assert '"worst_coefficients"' in report.read_text()
