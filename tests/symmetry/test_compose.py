"""Permutations of a spec form a group, and act on weights as one: products, inverses, also of units within units."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS
from networks.registry import discovered
from torch import Tensor

import lmccheck
from lmccheck.modules.random_weights import randomised
from lmccheck.symmetry.compose import compose, inverse
from lmccheck.symmetry.spec import Permutation

NESTED = ["channel_shuffle", "grouped_convolution", "encoder_chunk", "attention_grouped_queries_with_batched_heads"]


@cache
def case(name: str) -> tuple[lmccheck.PermutationSpec, dict[str, Tensor]]:
    """Return a network's spec, and weights no two of which are equal."""
    module, _, spec = discovered(name)
    return spec, randomised(module, 0)


def same(first: Permutation, second: Permutation) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def equal_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(NETWORKS)), first=st.integers(0, 10_000), then=st.integers(0, 10_000))
def test_a_product_acts_as_its_factors_do(name: str, first: int, then: int) -> None:
    """Applying first and then equals applying their product, bit for bit, and the order of the two is kept."""
    spec, weights = case(name)
    p, q = spec.random(first), spec.random(then)
    assert equal_bits(spec.apply(spec.apply(weights, p), q), spec.apply(weights, compose(spec, p, q)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(NETWORKS)), seed=st.integers(0, 10_000))
def test_an_inverse_undoes_a_permutation_on_both_sides(name: str, seed: int) -> None:
    """p·p⁻¹ = p⁻¹·p = 1, and weights come back bit for bit."""
    spec, weights = case(name)
    p = spec.random(seed)
    back = inverse(spec, p)
    spec.check(back)
    assert same(compose(spec, p, back), spec.identity())
    assert same(compose(spec, back, p), spec.identity())
    assert equal_bits(spec.apply(spec.apply(weights, p), back), dict(weights))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_is_covered(name: str) -> None:
    """One product and one inverse of every network, whatever Hypothesis draws."""
    spec, weights = case(name)
    p, q = spec.moving(1), spec.moving(2)
    assert equal_bits(spec.apply(spec.apply(weights, p), q), spec.apply(weights, compose(spec, p, q)))
    assert same(compose(spec, inverse(spec, p), p), spec.identity())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(name=st.sampled_from(NESTED), seed=st.integers(0, 10_000))
def test_the_group_laws_hold_where_units_lie_within_units(name: str, seed: int) -> None:
    """Associative, the identity is neutral, and the inverse of a product is the product of inverses, reversed."""
    spec, _ = case(name)
    p, q, r = (spec.random(seed + k) for k in range(3))
    assert same(compose(spec, compose(spec, p, q), r), compose(spec, p, compose(spec, q, r)))
    assert same(compose(spec, p, spec.identity()), p)
    assert same(compose(spec, spec.identity(), p), p)
    assert same(inverse(spec, compose(spec, p, q)), compose(spec, inverse(spec, q), inverse(spec, p)))


def test_rows_of_an_inner_group_follow_the_units_that_contain_them() -> None:
    """Reading every group alone, as if nothing contained it, gives another element: the case above is no accident."""
    spec, weights = case("encoder_chunk")
    p, q = spec.moving(1), spec.moving(2)
    alone = {g.name: p[g.name].gather(-1, q[g.name]) for g in spec.groups}
    assert not same(compose(spec, p, q), alone)
    assert not equal_bits(spec.apply(spec.apply(weights, p), q), spec.apply(weights, alone))


def test_a_permutation_of_another_spec_is_refused() -> None:
    """With the spec's own message."""
    spec, _ = case("mlp")
    other, _ = case("vgg")
    with pytest.raises(lmccheck.SymmetryError, match="permutation: missing groups"):
        compose(spec, spec.identity(), other.identity())
    with pytest.raises(lmccheck.SymmetryError, match="permutation: missing groups"):
        inverse(spec, other.identity())
