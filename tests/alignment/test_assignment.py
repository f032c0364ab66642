"""Linear assignment: the optimum of both solvers, and what the large one certifies."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lmccheck.alignment.matching import auction
from lmccheck.alignment.matching.assignment import Assignment, assign
from lmccheck.alignment.matching.auction import Search
from lmccheck.alignment.matching.reassign import by_assignment
from lmccheck.errors import LmcError

SMALL = st.integers(1, 6).flatmap(
    lambda n: st.one_of(
        st.lists(st.integers(-2, 2), min_size=n * n, max_size=n * n),  # ties
        st.lists(st.floats(-1e3, 1e3, width=32), min_size=n * n, max_size=n * n),
        st.floats(-1e3, 1e3, width=32).map(lambda x: [x] * n * n),  # constant
    ).map(lambda cells: torch.tensor(cells, dtype=torch.float32).view(n, n))
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers of one seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlations(n: int, noise: float = 0.8) -> Tensor:
    """Return (n, n) similarities as of two networks' units: a planted permutation and a common part of rank 3."""
    a = normal(n, 64)
    b = math.sqrt(1 - noise**2) * a + noise * normal(n, 64, seed=1)
    common = normal(3, 64, seed=2)
    a, b = a + normal(n, 3, seed=3) @ common, b + normal(n, 3, seed=4) @ common
    b = b[torch.randperm(n, generator=torch.Generator().manual_seed(5))]
    return torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T


def with_dead_units(n: int) -> Tensor:
    """Return (n, n) similarities of networks of which a third of the units is dead: rows and columns of zeros."""
    similarity = correlations(n)
    similarity[normal(n, seed=6) > 0.4] = 0
    similarity[:, normal(n, seed=7) > 0.4] = 0
    return similarity


LARGE = {
    "uniform": torch.rand(300, 300, generator=torch.Generator().manual_seed(0)),
    "dot products": normal(300, 64) @ normal(64, 300, seed=1),
    "correlations": correlations(300),
    "of one network": normal(200, 32) @ normal(200, 32).T,
    "uncentred": normal(256, 200).relu().T @ normal(256, 200, seed=1).relu(),
    "low rank": normal(200, 8) @ normal(8, 200, seed=1),
    "dead units": with_dead_units(200),
    "copies of units": correlations(25).repeat_interleave(8, 0).repeat_interleave(8, 1),
    "few values": (normal(200, 200) * 1.5).round(),
    "offset": normal(150, 150).double() - 1e6,
    "huge": 1e300 * normal(100, 100).double(),
    "tiny": 1e-12 * correlations(150),
    "half precision": correlations(150).bfloat16(),
    "transposed": correlations(150).T,
    "two": torch.tensor([[1.0, 2.0], [4.0, 3.0]]),
}


def optimum(similarity: Tensor) -> float:
    """Return the largest total similarity, by scipy."""
    matrix = similarity.double().numpy()
    return float(matrix[linear_sum_assignment(matrix, maximize=True)].sum())


def by_brute_force(similarity: Tensor) -> float:
    """Return the largest total similarity over all permutations."""
    rows = similarity.double().tolist()
    return max(
        math.fsum(row[v] for row, v in zip(rows, p, strict=True)) for p in itertools.permutations(range(len(rows)))
    )


def total(similarity: Tensor, permutation: Tensor) -> float:
    """Return Σ_u similarity[u, permutation[u]], having looked that it is a permutation."""
    assert permutation.dtype == torch.int64
    assert permutation.sort().values.equal(torch.arange(len(similarity)))
    return float(similarity.double()[torch.arange(len(similarity)), permutation].sum())


def assert_certified(found: Assignment, similarity: Tensor, best: float) -> None:
    """The value is that of the permutation and lies below ``best`` by the gap at most, up to float64 rounding."""
    rounding = 1e-13 * len(similarity) * float(similarity.double().abs().max())
    assert found.value == pytest.approx(total(similarity, found.permutation), abs=rounding)
    assert -rounding <= best - found.value <= found.gap + rounding
    assert found.gap >= 0
    if found.solver == "scipy":
        assert found.gap == 0
        assert best - found.value <= rounding


@given(SMALL)
@settings(deadline=None, derandomize=True)
def test_small_matrices_have_their_best_permutation(similarity: Tensor) -> None:
    """The exact path finds the best of all permutations: ties, negative numbers and constants included."""
    found = assign(similarity)
    assert (found.solver, found.gap) == ("scipy", 0.0)
    assert_certified(found, similarity, by_brute_force(similarity))


@given(SMALL)
@settings(deadline=None, derandomize=True)
def test_the_large_solver_is_right_on_small_matrices(similarity: Tensor) -> None:
    """Candidate lists that hold every column leave nothing to chance either."""
    found = assign(similarity, exact_to=0, tolerance=0.0)
    assert_certified(found, similarity, by_brute_force(similarity))
    assert found.gap <= 1e-9 * len(similarity) * float(similarity.max() - similarity.min() + similarity.abs().max())


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("tolerance", [0.0, 1e-6, 1e-2])
def test_the_auction_reaches_the_optimum_of_scipy(name: str, tolerance: float) -> None:
    """Within the tolerance, without falling back, and the certified gap covers the true one."""
    similarity = LARGE[name]
    before = similarity.clone()
    found = assign(similarity, exact_to=0, tolerance=tolerance)
    assert found.solver == "auction"
    assert_certified(found, similarity, optimum(similarity))
    size, span = len(similarity), float(similarity.max() - similarity.min() + 1e-3 * similarity.abs().max())
    assert found.gap <= max(tolerance * abs(found.value), 2e-11 * size * span)
    assert similarity.equal(before)


@pytest.mark.parametrize("name", ["correlations", "dead units", "few values"])
def test_the_auction_is_reproducible(name: str) -> None:
    """Twice the same assignment, whatever was drawn from the global generator in between."""
    first = assign(LARGE[name], exact_to=0)
    torch.rand(3)
    again = assign(LARGE[name], exact_to=0)
    assert again.permutation.equal(first.permutation)
    assert (again.value, again.gap, again.solver) == (first.value, first.gap, first.solver)


def test_lists_too_short_are_renewed_and_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four columns in a list do not change what is found, only how many passes it takes."""
    monkeypatch.setattr(auction, "LIST", 4)
    monkeypatch.setattr(auction, "PASSES", 100)
    for name in ("uniform", "correlations", "dead units", "low rank", "copies of units"):
        found = assign(LARGE[name], exact_to=0, tolerance=0.0)
        assert found.solver == "auction"
        assert_certified(found, LARGE[name], optimum(LARGE[name]))


@pytest.mark.parametrize(
    "similarity", [normal(150, 1) @ normal(1, 150, seed=1), -(normal(150, 1) - normal(1, 150)).abs()]
)
def test_what_takes_too_long_is_left_to_scipy(similarity: Tensor) -> None:
    """Rank one, and points on a line: whoever solves them, the answer is certified."""
    assert_certified(assign(similarity, exact_to=0), similarity, optimum(similarity))


def test_giving_up_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search out of passes returns nothing, and the assignment then found is scipy's, exact."""
    monkeypatch.setattr(auction, "PASSES", 0)
    similarity = LARGE["correlations"]
    assert Search(similarity, float(similarity.min()), float(similarity.max())).run(1e-6) is None
    found = assign(similarity, exact_to=0)
    assert (found.solver, found.gap) == ("scipy", 0.0)
    assert found.value == pytest.approx(optimum(similarity), rel=1e-14)


def test_the_solver_is_chosen_by_size() -> None:
    """``exact_to`` units are still solved exactly, one more are not."""
    similarity = LARGE["uniform"]
    assert assign(similarity, exact_to=300).solver == "scipy"
    assert assign(similarity, exact_to=299).solver == "auction"
    assert assign(similarity).solver == by_assignment(similarity).solver == "scipy"  # 300 units are few


def test_the_gap_of_the_auction_is_measured() -> None:
    """What its noise leaves open is more than nothing, and less than the noise of all rows and columns."""
    similarity = LARGE["uniform"]
    found = assign(similarity, exact_to=0)
    assert 0 < found.gap <= 2 * auction.NOISE * len(similarity) * float(similarity.max() - similarity.min())


@pytest.mark.parametrize("name", ["correlations", "tiny"])
@pytest.mark.parametrize(("tolerance", "solver"), [(None, "scipy"), (0.0, "scipy"), (1e-4, "auction")])
def test_a_search_ends_where_its_bound_is_within_the_tolerance(
    name: str, tolerance: float | None, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bound that is a hundred-thousandth too high nothing is certified, unless more than that is allowed."""
    similarity, renew = LARGE[name], Search.renew
    above = 1e-5 * optimum(similarity)
    monkeypatch.setattr(auction, "PASSES", 6)
    monkeypatch.setattr(Search, "renew", lambda self, prices: renew(self, prices) + above)
    found = assign(similarity, exact_to=0, **({} if tolerance is None else {"tolerance": tolerance}))
    assert found.solver == solver
    assert found.gap == (0.0 if solver == "scipy" else pytest.approx(above, rel=1e-2))


def test_the_exact_solver_works_in_float64() -> None:
    """Sums that differ by 1e-12, and rows that are no columns."""
    close = torch.tensor([[1.0, 1.0 + 1e-12], [1.0, 1.0]], dtype=torch.float64)
    assert assign(close).permutation.tolist() == [1, 0]
    assert assign(torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])).permutation.tolist() == [1, 2, 0]


@pytest.mark.parametrize("exact_to", [0, 4096])
def test_no_unit_and_one(exact_to: int) -> None:
    """Empty and single matrices have one assignment; gradients are not followed."""
    assert assign(torch.empty(0, 0), exact_to=exact_to).permutation.tolist() == []
    one = assign(torch.tensor([[-2.5]], requires_grad=True), exact_to=exact_to)
    assert (one.permutation.tolist(), one.value, one.gap) == ([0], -2.5, 0.0)


@pytest.mark.parametrize("exact_to", [0, 4096])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float, exact_to: int) -> None:
    """One line says so, before any solver sees them."""
    similarity = torch.zeros(4, 4)
    similarity[1, 2] = bad
    with pytest.raises(LmcError, match=r"^similarity holds NaN or infinite values: .*$"):
        assign(similarity, exact_to=exact_to)


@pytest.mark.parametrize("shape", [(2, 3), (0, 2), (4,), (2, 2, 2)])
def test_matrices_that_are_not_square_are_refused(shape: tuple[int, ...]) -> None:
    """One line names the shape."""
    with pytest.raises(LmcError, match=r"^similarity must be a square matrix .*not \(.*\)$"):
        assign(torch.zeros(shape))
