"""Theorem 2: are two networks joined by a path of ten segments along which the loss stays low?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lmccheck.properties.low_loss_path import (
    Prepared,
    concluded,
    prepare,
    require_calibration,
    require_choice,
    require_common,
    require_number,
)
from lmccheck.result import Result

if TYPE_CHECKING:
    from lmccheck.dropping.dropped import Dropped
    from lmccheck.network.pair import ModelPair
    from lmccheck.paths.certify import Certificate
    from lmccheck.paths.path import Path

NAME = "ten_segment_path"
FORMS = {"ten": "paper", "short": "short"}


def ten_segment_path(
    pair: ModelPair,
    *,
    epsilon: float | str = 0.05,
    keep: float = 0.5,
    refit: bool = True,
    form: str = "ten",
    seed: int = 0,
    profile: str = "ci",
) -> Result:
    """Assert that θ_A and θ_B are joined by ten segments with max L ≤ max(L(θ_A), L(θ_B)) + ε.

    The path drops all but a share ``keep`` (at most ½) of every layer's units of each network, and crosses between the
    two half-empty networks by moves along which the loss is convex or constant; only the first and the last segment,
    between a network and its dropped version, are sampled. ``epsilon``: in the loss's unit (nats for cross entropy),
    or ``"5%"`` of the worse endpoint's loss. ``refit``: fit what the kept units feed to what all of them fed, on
    calibration data; both ways are measured, ``value`` is of the one asked for. ``form``: ``ten``, or ``short`` (seven
    segments, or five where the kept units are disjoint). BatchNorm statistics are weights of the path.

    ``details`` hold ``segments`` (kind, loss at both ends, max, how it is known: constant, convex or sampled),
    ``certified_max``, ``excess``, ``kinds``, ``without_refit``, ``keep``, ``search`` and more; the witness is the Path:
    ``lmccheck.save_path`` writes it, ``lmccheck.verify_path`` certifies it anew without searching.
    A pass holds for this data, exactly but for the sampled segments; a fail means that no such path was found.
    Raises LmcError, SourceError, UnsupportedArchitecture (LayerNorm and the like across dropped units, tied tensors).
    Source: Kuditipudi et al. 2019, Theorem 2.
    """
    from lmccheck.dropping.choose_units import SearchSettings
    from lmccheck.dropping.search import find_dropped

    started = time.perf_counter()
    require_common(epsilon, seed, profile, NAME, refit)
    require_choice(form, "form", tuple(FORMS), NAME)
    require_number(keep, "keep", 0.0, 0.5, NAME)
    ready = prepare(pair, NAME)
    require_calibration(pair, NAME)
    found = {
        side: find_dropped(pair, ready.structure, side, [0], SearchSettings(keep, refit, seed, profile))
        for side in ("a", "b")
    }
    path, certificate = certified(pair, ready, found["a"].best[0], found["b"].best[0], form, profile)
    details: dict[str, Any] = {
        "theorem": "Kuditipudi et al. 2019, Theorem 2",
        "form": form,
        "keep": keep,
        "refit": refit,
        "kept": {side: {g: len(u) for g, u in search.best[0].keep.items()} for side, search in found.items()},
        "dropped": {side: search.best[0].how for side, search in found.items()},
        "search": {side: search.facts for side, search in found.items()},
        "without_refit": None,
    }
    if refit:
        _, plain = certified(pair, ready, found["a"].plain[0], found["b"].plain[0], form, "glance")
        details["without_refit"] = {
            "excess": plain.excess,
            "certified_max": plain.largest,
            "dropped": {side: search.plain[0].how for side, search in found.items()},
            "evaluations": plain.evaluations,
        }
        details["notes"] = [f"without refitting the dropped networks the excess is {plain.excess:.4g}"]
    side = "a" if certificate.segments[0].largest - certificate.loss_a > (
        certificate.segments[-1].largest - certificate.loss_b
    ) else "b"  # fmt: skip
    return concluded(
        pair, NAME, path, certificate, epsilon, started, details,
        remark=f"no better dropped networks were found within this budget ({profile}, seed {seed}), which does not "
        "prove that there are none",
        costs=lambda: _costs(pair, ready, side, found[side].best[0]),
    )  # fmt: skip


def certified(
    pair: ModelPair, ready: Prepared, a: Dropped, b: Dropped, form: str, profile: str
) -> tuple[Path, Certificate]:
    """Return the path through two dropped networks and what is known of it."""
    from lmccheck.paths.certify import certify
    from lmccheck.paths.theorems import ten_segments

    path = ten_segments(ready.structure, ready.theta_a, ready.theta_b, a, b, FORMS[form])
    return path, certify(pair, ready.structure, path, profile=profile)


def _costs(pair: ModelPair, ready: Prepared, side: str, dropped: Dropped) -> dict[str, float]:
    """Return, per level, what dropping its units alone costs on calibration data (scaled, nothing refitted)."""
    from lmccheck.dropping.costs import level_costs

    return level_costs(pair, ready.structure, side, dropped)
