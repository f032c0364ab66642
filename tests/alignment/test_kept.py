"""No alignment worse than leaving everything where it is is ever kept: in pairs and in sets, and the report says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from networks.quick import slowly
from networks.sets import DIGITS, FIXTURES
from safetensors.torch import load_file
from torch import Tensor

import lmccheck
from lmccheck.alignment.contract import Found, Problem
from lmccheck.alignment.kept import no_pair_worse, not_worse
from lmccheck.alignment.methods import METHODS, Declared


@pytest.fixture
def scrambles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight matching returns a random permutation, and says an objective that fell."""

    def scramble(problem: Problem) -> Found:
        return Found(problem.spec.random(problem.seed + 5), 0.25, {"objective_before": 1.0})

    found = Declared("weight-matching", scramble)
    monkeypatch.setattr(METHODS, "get", lambda name, *where: found)


@pytest.fixture(scope="module")
def first() -> dict[str, Tensor]:
    return load_file(FIXTURES / "mlp-seed0.safetensors")


def near(first: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return a copy with a little noise, as a fine-tune is."""
    generator = torch.Generator().manual_seed(seed)
    return {n: t + 0.02 * t.std() * torch.randn(t.shape, generator=generator) for n, t in first.items()}


@pytest.mark.usefixtures("scrambles")
@pytest.mark.parametrize("calibrated", [True, False])
def test_a_pair_is_left_where_its_alignment_is_worse(first: dict[str, Tensor], calibrated: bool) -> None:
    """By the barrier on calibration data, or the method's own objective; ``align`` returns what was asked for."""
    given = {k: v for k, v in DIGITS.items() if calibrated or k != "calibration"}
    pair = lmccheck.load_pair(first, near(first, 1), **given)
    asked = lmccheck.align(pair)
    assert not asked.is_identity
    kept = not_worse(pair, asked)
    assert kept.is_identity
    assert all(torch.equal(kept.weights[n], t) for n, t in pair.theta_b.items())
    result = lmccheck.linear_connectivity(pair, points=3, profile="dev", limit=0.01)
    assert result.passed
    assert result.value == result.details["barrier_naive"]
    assert result.details["alignment"]["compared"]["kept"] == "identity"
    assert any("weight-matching was worse than moving nothing" in note for note in result.details["notes"])
    assert result.witness.is_identity


def test_an_alignment_that_helps_is_kept() -> None:
    """Seeds apart: what is measured is what was found, and both figures are among the facts."""
    pair = lmccheck.load_pair("mlp-seed0.safetensors", "mlp-seed1.safetensors", **DIGITS)
    found = lmccheck.align(pair)
    kept = not_worse(pair, found)
    assert kept.permutation is found.permutation
    compared = kept.facts["compared"]
    assert compared["kept"] == "aligned"
    assert compared["aligned"] < compared["identity"]


@pytest.mark.parametrize("calibrated", [True, slowly(False)])
def test_members_that_a_frame_drives_apart_lie_as_they_did(first: dict[str, Tensor], calibrated: bool) -> None:
    """Of four near copies, one of which was moved away, and a permuted one that was rightly moved back."""
    given = {k: v for k, v in DIGITS.items() if calibrated or k != "calibration"}
    copies = [near(first, k) for k in range(4)]
    spec = lmccheck.align(lmccheck.load_pair(first, copies[0], **given)).spec
    shuffled = spec.random(3)
    copies.append(spec.apply(copies[3], shuffled))
    many = lmccheck.align_many(copies, **given)
    assert [
        bool(many.permutations[k][g.name].equal(torch.arange(g.size))) for k in (1, 4) for g in spec.groups[:1]
    ] == [
        True,
        False,
    ]
    wrong = spec.random(9)
    broken = replace(
        many,
        permutations=(*many.permutations[:1], wrong, *many.permutations[2:]),
        weights=(many.weights[0], spec.apply(copies[1], wrong), *many.weights[2:]),
    ).made_of(())
    mended = no_pair_worse(broken)
    assert all(torch.equal(mended.weights[1][n], t) for n, t in copies[1].items())
    assert all(torch.equal(mended.weights[4][n], t) for n, t in many.weights[4].items()), "what helps is kept"
    assert mended.facts["compared"]["unmoved"] == [f"model {k}" for k in range(4)]
    assert mended.facts["compared"]["worse_pairs"] >= 3
    assert max(mended.function_deviations) <= 1e-9
    assert no_pair_worse(many) is many


def test_a_diverged_member_harms_no_healthy_pair(first: dict[str, Tensor]) -> None:
    """Six fine-tunes, one diverged: healthy pairs are at most as high as unaligned, and the outlier is named."""
    models: list[Any] = [near(first, k) for k in range(6)]
    torch.manual_seed(0)
    models[4] = {n: t + 3 * t.std() * torch.randn(t.shape) if t.ndim > 1 else t for n, t in models[4].items()}
    result = lmccheck.set_connectivity(models, **DIGITS, points=3, limit=0.01)
    details = result.details
    for i in range(6):
        for j in range(i):
            assert details["matrix"][i][j] <= details["matrix_naive"][i][j] + 1e-4, (i, j)
    assert any("model 4 stands out" in note for note in details["notes"])


@pytest.mark.usefixtures("scrambles")
def test_a_mean_is_taken_as_it_is_where_alignment_is_worse(first: dict[str, Tensor]) -> None:
    """Decided on calibration data; the note has both figures."""
    models = [near(first, k) for k in range(3)]
    found = lmccheck.set_connectivity(models, **DIGITS, method="reference", over="mean")
    plain = lmccheck.set_connectivity(models, **DIGITS, align="none", over="mean")
    assert found.value == pytest.approx(plain.value, abs=1e-9)
    assert any("was worse than moving nothing (loss of the mean on calib" in note for note in found.details["notes"])


def test_best_stays_where_there_is_no_barrier(first: dict[str, Tensor]) -> None:
    """Networks of one initialisation without a barrier: the identity, and no method is run; strangers are aligned."""
    facts = lmccheck.align(lmccheck.load_pair(first, near(first, 1), **DIGITS), "best").facts
    assert facts["triage"]["initialisation"] == "shared"
    assert facts["chosen"] == "identity"
    assert facts["calibration_barrier"] == 0 or len(facts["candidates"]) > 1
