"""Barriers of a set are those of its pairs, mended or not."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from networks.quick import slowly
from networks.sets import DIGITS, SMALL
from networks.small import seeded, small_batchnorm, small_mlp

import lmccheck
from lmccheck.alignment.barriers import measure_barriers
from lmccheck.alignment.many import ManyAlignment


def test_the_matrix_of_barriers_is_that_of_pairs(digit_set: ManyAlignment) -> None:
    """Symmetric, zero on the diagonal, and each entry what linear_connectivity measures on the same grid."""
    found = measure_barriers(digit_set, points=5)
    for matrix in (found.aligned, found.naive):
        assert matrix == [list(column) for column in zip(*matrix, strict=True)]
        assert all(matrix[k][k] == 0 for k in range(3))
    for i, j in combinations(range(3), 2):
        for states, matrix in ((digit_set.weights, found.aligned), (digit_set.originals, found.naive)):
            pair = lmccheck.load_pair(states[i], states[j], **DIGITS)
            one = lmccheck.linear_connectivity(pair, align="none", points=5, profile="dev")
            assert matrix[i][j] == pytest.approx(one.value, abs=1e-6)
    assert found.aligned[0][1] < 0.07 < found.naive[0][1]
    assert found.mean_loss < found.mean_loss_naive / 2
    assert found.evaluations == 3 + 2 * (3 + 3 * 3) + 2  # endpoints; ends and inner points, twice; both means
    assert lmccheck.barrier_matrix(digit_set) == found.aligned
    assert lmccheck.barrier_matrix(digit_set, naive=True) == found.naive


def test_the_matrix_with_batchnorm_is_that_of_pairs() -> None:
    """Statistics are re-estimated at every point, over the chord between the models' own losses."""
    samples = torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    given = {"model": small_batchnorm, "data": (samples, torch.arange(30) % 3)}
    states = [seeded(small_batchnorm, seed) for seed in range(3)]
    with pytest.raises(lmccheck.SourceError, match="no calibration data is given"):
        lmccheck.barrier_matrix(lmccheck.align_many(states, **given))
    given["calibration"] = given["data"]
    many = lmccheck.align_many(states, **given)
    found = measure_barriers(many, points=4)
    for i, j in combinations(range(3), 2):
        pair = lmccheck.load_pair(many.weights[i], many.weights[j], **given)
        one = lmccheck.linear_connectivity(pair, align="none", points=4, profile="dev")
        assert found.aligned[i][j] == pytest.approx(one.value, abs=1e-6)
        assert found.reestimated is not None
        assert found.reestimated[i][j] == pytest.approx(one.details["barrier_reestimated"], abs=1e-6)


@pytest.mark.parametrize("build", [small_mlp, small_batchnorm])
@pytest.mark.parametrize("repair", [slowly("none"), "repair"])
def test_networks_between_are_mended_as_those_of_pairs(build: Any, repair: str) -> None:
    """Each entry is what linear_connectivity measures, for every way of mending and not only re-estimation."""
    shape = (30, 1, 4, 4) if build is small_batchnorm else (30, *SMALL["data"][0].shape[1:])
    samples = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    given = {"model": build, "data": (samples, torch.arange(30) % 3)}
    given["calibration"] = given["data"]
    size = 1 if build is small_batchnorm else 5  # large enough for a barrier
    states = [{name: size * tensor for name, tensor in seeded(build, seed).items()} for seed in range(3)]
    many = lmccheck.align_many(states, **given)
    found = measure_barriers(many, points=4, repair=repair)
    assert (found.reestimated is None) == (repair == "none" or build is small_mlp)
    if repair == "repair" or build is small_batchnorm:
        assert found.naive != measure_barriers(many, points=4, repair="none" if repair == "repair" else "bn").naive
    for i, j in combinations(range(3), 2):
        for weights, matrix in ((many.weights, found.aligned), (many.originals, found.naive)):
            pair = lmccheck.load_pair(weights[i], weights[j], **given)
            one = lmccheck.linear_connectivity(pair, align="none", points=4, profile="dev", repair=repair)
            assert matrix[i][j] == pytest.approx(one.value, abs=1e-6)


def test_mending_that_cannot_be_done_is_said() -> None:
    """An unknown way at once; REPAIR without calibration data, or without a traced network; a grid of ends alone."""
    states = [seeded(small_mlp, seed) for seed in range(3)]
    with pytest.raises(lmccheck.LmcError, match=r"repair = 'repiar' \(did you mean 'repair'\?\)"):
        lmccheck.set_connectivity([], **SMALL, repair="repiar")
    with pytest.raises(lmccheck.SourceError, match="needs calibration data and none is given"):
        lmccheck.set_connectivity(states, **SMALL, repair="repair")
    many = lmccheck.align_many(states, **SMALL)
    with pytest.raises(lmccheck.LmcError, match="points = 2; expected an integer of at least 3"):
        lmccheck.barrier_matrix(many, points=2)
    with pytest.raises(lmccheck.UnsupportedArchitecture, match="is given, not traced; mend: use repair = 'bn'"):
        lmccheck.set_connectivity(states, **SMALL, calibration=SMALL["data"], symmetry=many.spec, repair="repair")
