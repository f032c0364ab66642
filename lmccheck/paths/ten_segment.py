"""Theorem 2: two networks joined by ten segments through their dropped versions, for any depth."""

from __future__ import annotations

from lmccheck.dropping.dropped import Dropped
from lmccheck.paths.lemmas import Walk, cross
from lmccheck.paths.path import Path
from lmccheck.symmetry.structure import State, Structure


def ten_segments(
    structure: Structure, theta_a: State, theta_b: State, a: Dropped, b: Dropped, form: str = "paper"
) -> Path:
    """Return the path θ_A → A_1 → B_1 → θ_B: kinds d babbcbcb d, or dbabcbd (dbabd) with ``form = "short"``.

    ``a`` and ``b`` are the networks with units dropped from the first level on. Only the two d segments, between each
    network and its dropped version, are not known in advance. Source: Kuditipudi et al. 2019, Theorem 2.
    """
    walk = Walk(structure, [dict(theta_a)])
    walk.go("d", "drop units of a", a.weights)
    cross(walk, dict(a.keep), b.weights, dict(b.keep), form)
    walk.go("d", "take up b's dropped units again", theta_b)
    return walk.path()
