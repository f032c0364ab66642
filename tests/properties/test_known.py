"""How every property says that its value is known."""

from __future__ import annotations

from networks.dropping import case

import lmccheck


def test_a_line_says_at_how_many_points_it_was_sampled() -> None:
    """As many as its curve has, refinements included."""
    pair, _ = case("relu")
    found = lmccheck.linear_connectivity(pair, points=5, profile="dev").details
    assert found["known"] == f"sampled at {len(found['t'])} points"


def test_what_was_measured_and_not_sampled_is_exact_and_masks_are_a_sample() -> None:
    """Dropped networks have one loss each on the data; masks are drawn, and their number is said."""
    pair, _ = case("relu")
    assert lmccheck.dropout_stability(pair, profile="dev").details["known"] == "exact"
    assert lmccheck.noise_stability(pair, masks=9, profile="dev").details["known"] == "9 masks sampled at p = 0.2, 95 %"


def test_a_path_says_which_of_its_segments_are_exact() -> None:
    """The two of ten between a network and its dropped version are sampled, and none of Theorem 1's."""
    pair, _ = case("relu")
    assert lmccheck.ten_segment_path(pair, profile="dev").details["known"] == "8 of 10 segments exact, 2 sampled"
    assert lmccheck.dropout_path(pair, profile="dev").details["known"] == "certified"
