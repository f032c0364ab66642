"""Three networks and more in one frame: planted copies coincide, maps are consistent, barriers are those of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
import torch
from networks.planted import Weights
from networks.quick import slowly
from networks.sets import SMALL, equal_bits, objective, planted
from networks.small import seeded, small_mlp

import lmccheck
from lmccheck.alignment.barriers import measure_barriers
from lmccheck.alignment.many import ManyAlignment, merge_many
from lmccheck.alignment.matching.norms import counted
from lmccheck.symmetry.compose import compose, inverse
from lmccheck.symmetry.spec import Permutation, PermutationSpec


@pytest.mark.parametrize(
    ("method", "name"),
    [
        *(("merge-many", name) for name in ("mlp", "resnet", "encoder_chunk")),
        ("reference", "mlp"),
        *(slowly("reference", name) for name in ("resnet", "encoder_chunk")),
    ],
)
def test_permuted_copies_coincide_in_one_frame(name: str, method: str) -> None:
    """Four copies become equal bit for bit, in the reference's own frame, and no barrier is left between them."""
    copies, given = planted(name, 4)
    many = lmccheck.align_many(copies, **given, method=method, reference=2)
    assert all(equal_bits(weights, copies[2]) for weights in many.weights)
    assert all(deviation <= 1e-9 for deviation in many.function_deviations)
    assert many.cycle_error() == 0
    found = measure_barriers(many, points=5)
    over_ends = found.aligned if found.reestimated is None else found.reestimated  # BatchNorm is estimated from little
    assert max(map(max, over_ends)) <= 1e-9
    assert min(found.naive[i][j] for i, j in combinations(range(4), 2)) > 1e-3
    if found.reestimated is None:
        assert found.mean_loss <= 1e-9
        assert found.mean_loss_naive > 1e-3


@pytest.mark.parametrize("name", ["mlp", "encoder_chunk"])
def test_maps_between_models_do_not_depend_on_the_way(name: str) -> None:
    """π_ik = π_jk then π_ij, exactly, and π_ij takes model j as given to where model i as given lies."""
    copies, given = planted(name, 3, seed=5)
    many = lmccheck.align_many(copies, **given)
    for i, j in [(0, 1), (1, 0), (2, 1), (1, 1)]:
        assert equal_bits(many.spec.apply(copies[j], many.pairwise(i, j)), copies[i])
    direct = many.pairwise(0, 2)
    around = compose(many.spec, many.pairwise(1, 2), many.pairwise(0, 1))
    assert all(torch.equal(around[group], direct[group]) for group in direct)
    assert many.facts["cycle_error"] == many.cycle_error() == 0


def test_a_permutation_is_in_the_frame_of_the_reference(digit_set: ManyAlignment) -> None:
    """Weights are the originals permuted, and the reference's own stay where they are."""
    for original, permutation, weights in zip(
        digit_set.originals, digit_set.permutations, digit_set.weights, strict=True
    ):
        assert equal_bits(digit_set.spec.apply(original, permutation), weights)
    assert equal_bits(digit_set.weights[0], digit_set.originals[0])
    assert digit_set.names == ("mlp-seed0", "mlp-seed1", "model 2")


def test_a_noisy_copy_returns_to_its_original(digit_set: ManyAlignment) -> None:
    """Among networks trained apart, too: its permutation undoes the planted one."""
    planted = inverse(digit_set.spec, digit_set.spec.random(1))
    assert all(torch.equal(permutation, planted[name]) for name, permutation in digit_set.permutations[2].items())


@pytest.mark.parametrize(("seed", "count"), [(17, 2), (300, 4)])
def test_merging_never_lowers_its_objective(seed: int, count: int) -> None:
    """It rises with every step, ends at or above the reference's, comes to rest, and is the one reported."""
    states = [seeded(small_mlp, seed + k) for k in range(count)]
    many = lmccheck.align_many(states, **SMALL, seed=seed)
    aligned = lmccheck.align_many(states, **SMALL, seed=seed, method="reference")
    rising = many.facts["objectives"]
    assert all(later > earlier for earlier, later in pairwise(rising))
    assert rising[0] == aligned.objective == many.facts["objective_reference"]
    assert many.objective == rising[-1] >= aligned.objective >= aligned.facts["objective_before"]
    assert many.facts["converged"]
    assert many.objective == pytest.approx(objective(many), rel=1e-9)
    assert aligned.objective == pytest.approx(objective(aligned), rel=1e-9)
    assert many.cycle_error() == aligned.cycle_error() == 0


def test_merging_improves_on_a_reference() -> None:
    """Alignment to one model leaves the others unaligned with one another; with no start at all it is found as well."""
    states = [seeded(small_mlp, seed) for seed in range(5)]
    many = lmccheck.align_many(states, **SMALL)
    assert many.objective > 1.02 * many.facts["objective_reference"]
    states = [{name: tensor.double() for name, tensor in state.items()} for state in states]
    from_nothing = merge_many(many.spec, [counted(many.spec, state) for state in states], [many.spec.identity()] * 5)
    assert from_nothing.objectives[0] == pytest.approx(many.facts["objective_before"])
    assert from_nothing.objectives[-1] > many.facts["objective_reference"]
    assert gain_of_a_swap(many.spec, states, from_nothing.permutations) <= 1e-9


def gain_of_a_swap(spec: PermutationSpec, states: list[Weights], permutations: Sequence[Permutation]) -> float:
    """The most that Σ_{i<j}⟨θ_i, θ_j⟩ gains where two units of one model change places: each exchange is tried."""
    learned = {s.tensor for g in spec.groups for s in g.slots if s.learned}
    placed = [spec.apply(state, p) for state, p in zip(states, permutations, strict=True)]
    gains = []
    for state, permutation, own in zip(states, permutations, placed, strict=True):
        others = {name: sum(w[name] for w in placed) - own[name] for name in learned}
        for name, order in permutation.items():
            for i, j in combinations(range(len(order)), 2):
                swapped = order.clone()
                swapped[[i, j]] = order[[j, i]]
                moved = spec.apply(state, {**permutation, name: swapped})
                gains.append(sum(float(((moved[n] - own[n]) * others[n]).sum()) for n in learned))
    return max(gains)


def test_the_same_seed_gives_the_same_alignment() -> None:
    """Permutations are equal; only the order of visits is random."""
    states = [seeded(small_mlp, seed) for seed in range(3)]
    first, second = (lmccheck.align_many(states, **SMALL, seed=7) for _ in range(2))
    for p, q in zip(first.permutations, second.permutations, strict=True):
        assert all(torch.equal(p[name], q[name]) for name in p)
