"""Triage tells initialisations by units that are nearest to themselves, and names who stands out, by weights alone."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from networks.sets import DIGITS, FIXTURES, noisy, shipped
from safetensors.torch import load_file, save_file
from torch import Tensor

import lmccheck
from lmccheck.alignment.triage import kinship, pair_line, triage_set
from lmccheck.cli.main import main
from lmccheck.finding import Finding
from lmccheck.properties.triaged import triaged


def fixture(name: str) -> dict[str, Tensor]:
    return load_file(FIXTURES / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("one", "other", "kind", "advice"),
    [
        ("mlp-seed0", "mlp-seed1", "independent", "align first"),
        ("cnn-seed0", "cnn-seed1", "independent", "align first"),
        ("transformer-seed0", "transformer-seed1", "independent", "align first"),
        ("transformer-half0", "transformer-half1", "shared", "merge as they are"),
    ],
)
def test_the_initialisation_of_shipped_pairs_is_told(one: str, other: str, kind: str, advice: str) -> None:
    """As they were trained: seeds apart from one another, halves of one run's data from one start."""
    found = kinship(fixture(one), fixture(other))
    assert (found.kind, found.advice) == (kind, advice)


def test_the_distance_is_in_units_of_norms_and_scales_are_ratios() -> None:
    """By hand: ‖a − b‖ over the mean norm; a tensor that is twenty times as large is named."""
    torch.manual_seed(0)
    a = {"w": torch.randn(8, 5), "v": torch.randn(6, 8)}
    b = {"w": a["w"].clone(), "v": -a["v"]}
    size = math.sqrt(float(a["w"].square().sum() + a["v"].square().sum()))
    assert kinship(a, b).distance == pytest.approx(2 * float(a["v"].norm()) / size, rel=1e-6)
    large = kinship(a, {"w": 20 * a["w"], "v": a["v"]})
    assert large.scales == pytest.approx(20, rel=1e-5)
    assert large.advice == "expect little: w is 20 times as large in one as in the other"
    broken = kinship(a, {"w": a["w"], "v": a["v"] * math.nan})
    assert (broken.kind, broken.advice) == ("broken", "expect nothing: one of them is not finite")


def test_units_in_another_order_are_each_others() -> None:
    """A permuted noisy copy is told apart from a stranger; dead units count for neither, twins for themselves."""
    first = fixture("mlp-seed0")
    spec = shipped("mlp").network.spec
    copy = noisy(spec.apply(first, spec.random(1)), 0)
    assert kinship(first, copy).kind == "independent"
    torch.manual_seed(0)
    small = {"w": torch.randn(12, 30)}
    assert kinship(small, {"w": small["w"].flip(0)}).advice == (
        "align first: their units are each other's in another order"
    )
    dead = {"w": torch.cat([small["w"], torch.zeros(40, 30)])}
    assert (kinship(dead, dead).share, kinship(dead, dead).units) == (1.0, 12)
    twins = {"w": small["w"][[0] * 12]}
    assert kinship(twins, twins).share == 1.0
    assert kinship({"b": torch.ones(3)}, {"b": torch.zeros(3)}).kind == "unclear"


def test_a_diverged_fine_tune_is_named_before_anything_is_aligned(capsys, tmp_path: Path) -> None:
    """Of six, one far off; of six alike, none; one that is not finite is named with its tensor."""
    first = fixture("transformer-half0")
    models = {f"m{k}": noisy(first, k) for k in range(6)}
    assert triage_set(models.items).outliers == {}
    torch.manual_seed(0)
    models["m4"] = {n: t + 3 * t.std() * torch.randn(t.shape) if t.ndim > 1 else t for n, t in models["m4"].items()}
    found = triage_set(models.items)
    assert list(found.outliers) == ["m4"]
    assert found.kind == "shared"
    assert found.advice == "leave out m4, then merge as they are"
    models["m1"] = {**models["m1"], "embed.weight": models["m1"]["embed.weight"] * math.nan}
    for name, state in models.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    assert main(["triage", str(tmp_path / "*.safetensors")]) == 0
    told = capsys.readouterr().out
    assert "m1 stands out: embed.weight is not finite" in told
    assert "m4 stands out" in told
    assert "leave out m1, m4, then merge as they are" in told


def test_the_command_compares_what_can_be_compared(capsys, tmp_path: Path) -> None:
    """Of another shape: said; nothing in common: one line; facts as JSON."""
    a = {"w": torch.randn(6, 4), "v": torch.randn(3, 6)}
    save_file(a, tmp_path / "a.safetensors")
    save_file({**a, "v": torch.randn(4, 6), "z": torch.ones(1)}, tmp_path / "b.safetensors")
    save_file({"q": torch.ones(2)}, tmp_path / "c.safetensors")
    paths = [str(tmp_path / f"{name}.safetensors") for name in "abc"]
    assert main(["triage", *paths[:2]]) == 0
    assert "not compared, of another name or shape somewhere: v, z" in capsys.readouterr().out
    assert main(["triage", *paths[:2], "--json"]) == 0
    assert '"initialisation": "shared"' in capsys.readouterr().out
    assert main(["triage", paths[0], paths[2]]) == 2
    assert "no tensor has one name and shape" in capsys.readouterr().err
    assert main(["triage", paths[0]]) == 2
    assert "got 1 model, expected two or more" in capsys.readouterr().err


def test_every_report_of_a_line_or_a_set_has_a_line_of_triage() -> None:
    """In the notes, its facts in the details; a property of single endpoints has none."""
    pair = shipped("mlp")
    result = lmccheck.linear_connectivity(pair, align="none", points=3, profile="dev")
    line = pair_line(kinship(pair.theta_a, pair.theta_b))
    assert line in result.details["notes"]
    assert result.details["triage"]["initialisation"] == "independent"
    plain = Finding(0.0, 1.0)
    assert triaged(pair, plain) is plain
    models = ["mlp-seed0.safetensors", "mlp-seed1.safetensors"]
    found = lmccheck.set_connectivity(models, **DIGITS, align="none", over="mean")
    assert any(note.startswith("triage: independent initialisations") for note in found.details["notes"])


def layers(seed: int, *widths: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{k}.weight": torch.randn(out, into, generator=generator)
        for k, (into, out) in enumerate(itertools.pairwise(widths))
    }


def test_infinities_that_are_equal_in_both_are_no_fault() -> None:
    """A stored mask is 0 apart from itself, in a pair and in a set; an infinity of one alone is named."""
    mask = torch.full((8, 8), -math.inf).triu(1)
    a = layers(0, 40, 20, 10)
    b = {name: 1.5 * tensor for name, tensor in a.items()}
    found = kinship({**a, "mask": mask}, {**b, "mask": mask.clone()})
    assert (found.kind, found.advice) == ("shared", "merge as they are")
    assert found.distance == pytest.approx(0.5 / 1.25, rel=1e-5)
    assert kinship({**a, "mask": mask}, {**a, "mask": mask}).kind == "shared"
    assert kinship({**a, "mask": mask}, {**layers(1, 40, 20, 10), "mask": mask}).kind == "independent"
    models = {f"m{k}": {"mask": mask, **noisy(a, k)} for k in range(3)}
    assert triage_set(models.items).line().startswith("triage: a shared initialisation, up to 0.")
    broken = kinship({**a, "mask": mask}, {**a, "mask": mask.T})
    assert (broken.kind, broken.scale_at) == ("broken", "mask")


def test_a_stored_table_is_no_shared_unit() -> None:
    """256 rows of sinusoids that both have do not make strangers of 30 units relatives; a frozen backbone does."""
    table = torch.sin(torch.arange(256.0)[:, None] / 10000 ** (torch.arange(16.0) / 16))
    a, b = layers(0, 16, 20, 10), layers(1, 16, 20, 10)
    found = kinship({**a, "positions": table}, {**b, "positions": table.clone()})
    assert (found.kind, found.units) == ("independent", 30)
    tuned = {**layers(0, 16, 16, 16, 16, 10), "3.weight": layers(1, 16, 16, 16, 16, 10)["3.weight"]}
    assert kinship(layers(0, 16, 16, 16, 16, 10), tuned).kind == "shared"


@pytest.mark.parametrize("widths", [(2, 64, 2), (3, 64, 3), (4, 9, 2)])
def test_rows_of_few_columns_tell_no_unit(widths: tuple[int, ...]) -> None:
    """Neither of noisy copies nor of strangers; a wider layer beside them tells."""
    a = layers(0, *widths)
    for other in (noisy(a, 1), layers(1, *widths)):
        found = kinship(a, other)
        assert (found.share, found.kind) == (None, "unclear")
        assert found.found.startswith("initialisation not told (no matrix whose rows tell)")
    wide = layers(0, 2, 64, 64, 2)
    assert kinship(wide, {name: t + 0.5 * layers(1, 2, 64, 64, 2)[name] for name, t in wide.items()}).kind == "shared"
    assert kinship(a, dict(a)).kind == "shared"


def test_few_units_are_not_called_shared_by_chance() -> None:
    """Of 8 units among 4, 5 or more are nearest to themselves in 2.7 % of strangers; 8 in 0.0015 %."""
    kinds = [kinship(layers(2 * k, 4, 4, 4), layers(2 * k + 1, 4, 4, 4)).kind for k in range(200)]
    assert "shared" not in kinds
    small = layers(0, 4, 4, 4)
    assert kinship(small, {name: 1.1 * tensor for name, tensor in small.items()}).kind == "shared"


def test_units_in_part_in_another_order_are_to_be_aligned_first() -> None:
    """24 of 64 units permuted, of one network or of a noisy copy; of trained strangers none count as moved."""
    a = layers(0, 64, 64, 10)
    order = torch.arange(64)
    order[:24] = order[:24].roll(5)
    moved = {"0.weight": a["0.weight"][order], "1.weight": a["1.weight"][:, order]}
    said = "align first: some of their units are each other's in another order"
    assert [kinship(a, other).advice for other in (moved, noisy(moved, 0))] == [said, said]
    assert kinship(a, moved).moved == 24
    assert triage_set({"a": a, "b": moved}.items).advice == said
    every = torch.arange(64).roll(1)
    whole = {"0.weight": a["0.weight"][every], "1.weight": a["1.weight"][:, every]}
    assert kinship(a, whole).advice == "align first: their units are each other's in another order"
    assert kinship(a, noisy(a, 1)).advice == "merge as they are"
    assert kinship(a, whole).found.startswith("units in another order, 64 of 74 (1% of 74 units")
    assert triage_set({"a": a, "b": whole}.items).line().startswith("triage: units in another order, up to ")
