"""The axis algebra: refinements that agree are unified, those that do not are frozen."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmccheck.symmetry.axes import (
    Factor,
    Reason,
    as_factor,
    axis_size,
    concatenate,
    expand,
    freeze,
    fresh,
    segments,
    split_at,
    unify,
)

WHY = Reason("test", "because")


def test_equal_leaves_become_one() -> None:
    """Two axes of one factor share a representative."""
    a, b = fresh(6), fresh(6)
    unify(a, b, WHY)
    assert a[0].find() is b[0].find()


def test_a_leaf_takes_the_others_refinement() -> None:
    """12 against 3·4 refines the leaf, and a further axis of 6·2 refines both."""
    a, b, c = fresh(12), (Factor(3), Factor(4)), (Factor(6), Factor(2))
    unify(a, b, WHY)
    unify(a, c, WHY)
    assert [f.size for f in expand(a)] == [3, 2, 2] == [f.size for f in expand(b)] == [f.size for f in expand(c)]
    assert not any(f.frozen for f in expand(a))


def test_incompatible_products_are_frozen_up_to_the_next_common_boundary() -> None:
    """4·3·5 against 3·4·5 share only the 5."""
    a, b = (Factor(4), Factor(3), Factor(5)), (Factor(3), Factor(4), Factor(5))
    unify(a, b, WHY)
    assert [bool(f.find().frozen) for f in a] == [True, True, False]
    assert [bool(f.find().frozen) for f in b] == [True, True, False]
    assert a[2].find() is b[2].find()


def test_freezing_reaches_what_is_unified_later() -> None:
    """A frozen factor freezes its class, its parts, and whatever joins it; the first reason is kept."""
    a, b = fresh(12), (Factor(3), Factor(4))
    freeze(a, WHY)
    unify(a, b, Reason("other", "later"))
    assert [f.find().frozen for f in b] == [WHY, WHY]


def test_freezing_what_was_refined_freezes_its_parts() -> None:
    """12 that is 3·4 by now: no part of it moves after it is frozen."""
    a, b = fresh(12), (Factor(3), Factor(4))
    unify(a, b, WHY)
    freeze(a, Reason("other", "later"))
    assert [f.find().frozen for f in b] == [Reason("other", "later")] * 2


def test_concatenations_match_segment_by_segment() -> None:
    """[4 | 6] against [6 | 4] is cut into 4, 2, 4."""
    first, second = concatenate([fresh(4), fresh(6)]), concatenate([fresh(6), fresh(4)])
    unify(first, second, WHY)
    assert [s.size for s in segments(first[0])] == [4, 2, 4] or [s.size for s in segments(second[0])] == [4, 2, 4]
    assert not first[0].find().frozen


def test_cutting_a_product_off_its_boundary_is_refused() -> None:
    """Heads·dim can be cut between heads, not inside one."""
    axis = as_factor((Factor(4), Factor(3)))
    assert split_at(axis, 4, WHY) is None
    cut = split_at(axis, 6, WHY)
    assert cut is not None
    assert [part.size for part in cut] == [6, 6]


def test_axes_of_different_length_are_a_programming_error() -> None:
    """No silent truncation."""
    with pytest.raises(ValueError, match="different length"):
        unify(fresh(3), fresh(4), WHY)


FACTORISATION = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(first=FACTORISATION, second=FACTORISATION, third=FACTORISATION)
def test_unify_never_changes_a_size(first: list[int], second: list[int], third: list[int]) -> None:
    """Whatever is unified with whatever, every axis keeps its length and every class one length."""
    size = prod(first) * prod(second) * prod(third)
    axes = [tuple(Factor(n) for n in (*f, size // prod(f)) if n > 1) for f in (first, second, third)]
    unify(axes[0], axes[1], WHY)
    unify(axes[1], axes[2], WHY)
    unify(axes[0], axes[2], WHY)
    for axis in axes:
        assert axis_size(expand(axis)) == size
        assert all(f.find().size == f.size for f in axis)
    kept = [[factor.id for factor in expand(axis) if not factor.frozen] for axis in (axes[0], axes[2])]
    assert kept[0] == kept[1] or any(factor.frozen for axis in axes for factor in expand(axis))
