"""Theorem 1: two dropout-stable networks are joined by a path whose largest loss is known exactly."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError
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
    from torch import Tensor

    from lmccheck.network.pair import ModelPair
    from lmccheck.paths.certify import Certificate
    from lmccheck.paths.path import Path

NAME = "dropout_path"
FORMS = ("paper", "short")


def dropout_path(
    pair: ModelPair,
    *,
    epsilon: float | str = 0.05,
    keep: float = 0.5,
    refit: bool = True,
    form: str = "paper",
    through: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    through_model: Any = None,
    seed: int = 0,
    profile: str = "ci",
) -> Result:
    """Assert that θ_A and θ_B are joined by a path with max L ≤ max(L(θ_A), L(θ_B)) + ε, nothing on it sampled.

    Layer after layer, from the last hidden one, all but a share ``keep`` (at most ½) of the units are dropped, by moves
    along which the loss is convex or constant: the maximum over the path is the largest of at most 2d losses. With
    ``form = "paper"`` it has 8d − 4 segments, with ``short`` at most 4d − 1. ``refit`` as for ``ten_segment_path``.
    ``through``: a checkpoint of a narrow network θ* and its ``through_model``, for the 13 segments of Theorem 3, whose
    first and last are sampled; ``keep`` may then be larger, as long as every layer has room for θ*'s units.

    ``details`` as of ``ten_segment_path``, with ``losses`` of the dropped networks θ_i; the witness is the Path.
    Raises LmcError, SourceError, UnsupportedArchitecture: also for residual networks, whose stream cannot be dropped
    layer by layer. Source: Kuditipudi et al. 2019, Theorems 1 and 3.
    """
    started = time.perf_counter()
    require_common(epsilon, seed, profile, NAME, refit)
    require_choice(form, "form", FORMS, NAME)
    require_number(keep, "keep", 0.0, 0.5 if through is None else 1.0, NAME)
    if (through is None) != (through_model is None):
        raise LmcError(f"{NAME}: through and through_model go together; mend: give both or neither")
    ready = prepare(pair, NAME)
    require_calibration(pair, NAME)
    if through is not None:
        return _through(pair, ready, through, through_model, epsilon, keep, refit, seed, profile, started)

    from lmccheck.dropping.choose_units import SearchSettings
    from lmccheck.dropping.search import find_dropped
    from lmccheck.paths.theorems import require_sequence

    require_sequence(ready.structure)
    levels = range(len(ready.structure.levels))
    found = {
        side: find_dropped(pair, ready.structure, side, levels, SearchSettings(keep, refit, seed, profile))
        for side in ("a", "b")
    }
    path, certificate = _certified(pair, ready, found["a"].best, found["b"].best, form, profile)
    losses = _losses(ready, certificate)
    details: dict[str, Any] = {
        "theorem": "Kuditipudi et al. 2019, Theorem 1",
        "form": form,
        "keep": keep,
        "refit": refit,
        "losses": losses,
        "dropped": {side: {str(k): d.how for k, d in search.best.items()} for side, search in found.items()},
        "search": {side: search.facts for side, search in found.items()},
        "without_refit": None,
    }
    if refit:
        _, plain = _certified(pair, ready, found["a"].plain, found["b"].plain, form, profile)
        details["without_refit"] = {
            "excess": plain.excess,
            "certified_max": plain.largest,
            "losses": _losses(ready, plain),
            "evaluations": plain.evaluations,
        }
        details["notes"] = [f"without refitting the dropped networks the excess is {plain.excess:.4g}"]
    return concluded(
        pair, NAME, path, certificate, epsilon, started, details,
        remark=f"no better dropped networks were found within this budget ({profile}, seed {seed}), which does not "
        "prove that there are none",
        costs=lambda: _jumps(losses, certificate),
    )  # fmt: skip


def _certified(pair: ModelPair, ready: Prepared, a: Any, b: Any, form: str, profile: str) -> tuple[Path, Certificate]:
    from lmccheck.paths.certify import certify
    from lmccheck.paths.theorems import dropout_path_between

    path = dropout_path_between(ready.structure, ready.theta_a, ready.theta_b, a, b, form)
    return path, certify(pair, ready.structure, path, profile=profile)


def _losses(ready: Prepared, certificate: Certificate) -> dict[str, dict[str, float]]:
    """Return, per side and first dropped layer, the loss of θ_i: what the head moves of the path lead to."""
    names = [level[0] for level in ready.structure.levels]
    ends = [segment for segment in certificate.segments if segment.kind == "a"]
    fallen = dict(zip(reversed(names), (segment.end for segment in ends[: len(names)]), strict=True))
    risen = dict(zip(names, (segment.start for segment in ends[len(names) + 1 :]), strict=True))
    return {"a": fallen, "b": risen}


def _jumps(losses: Mapping[str, Mapping[str, float]], certificate: Certificate) -> dict[str, float]:
    """Return, per layer, how much dropping it adds once the later ones are dropped, on the worse side."""
    ends = {"a": certificate.loss_a, "b": certificate.loss_b}
    side = max(losses, key=lambda key: max(losses[key].values()))
    jumps, before = {}, ends[side]
    names = list(losses[side])[:: 1 if side == "a" else -1]
    for name in names:
        jumps[name] = losses[side][name] - before
        before = losses[side][name]
    return jumps


def _through(
    pair: ModelPair,
    ready: Prepared,
    through: Any,
    through_model: Any,
    epsilon: float | str,
    keep: float,
    refit: bool,
    seed: int,
    profile: str,
    started: float,
) -> Result:
    """Theorem 3: by way of a narrow network of the user's."""
    from lmccheck.dropping.choose_units import SearchSettings
    from lmccheck.dropping.costs import level_costs
    from lmccheck.dropping.search import find_dropped
    from lmccheck.evaluate.outputs import FirstOutputs, relative_deviation
    from lmccheck.network.pair import load_pair
    from lmccheck.paths.certify import EXACT, certify
    from lmccheck.paths.theorems import path_through, require_alike
    from lmccheck.properties.low_loss_path import structure_for

    try:
        star = load_pair(
            through, through, model=through_model, data=pair.data, loss=pair.loss, device=pair.device, base=pair.base,
            name=f"{pair.name}, through",
        )  # fmt: skip
        narrow = structure_for(star, "θ*")
    except LmcError as error:
        raise type(error)(f"{NAME}: through: {error}") from None
    require_alike(ready.structure, narrow)
    found = {
        side: find_dropped(pair, ready.structure, side, [0], SearchSettings(keep, refit, seed, profile))
        for side in ("a", "b")
    }
    a, b = found["a"].best[0], found["b"].best[0]
    path = path_through(ready.structure, ready.theta_a, ready.theta_b, a, b, narrow.canonical(star.theta_a), narrow)
    embedded = FirstOutputs(pair, f"{NAME}, through")(ready.structure.stored(path.points[3]))
    apart = relative_deviation(FirstOutputs(star, f"{NAME}, through")(star.theta_a), embedded)
    if not apart <= EXACT:
        raise LmcError(
            f"{NAME}: through: θ* inside the pair's network gives other outputs than in its own, by {apart:.2e} "
            "(relative, float64); mend: give a narrower network of the same layers and activations"
        )
    certificate = certify(pair, ready.structure, path, profile=profile)
    details: dict[str, Any] = {
        "theorem": "Kuditipudi et al. 2019, Theorem 3",
        "form": "through",
        "keep": keep,
        "refit": refit,
        "loss_through": certificate.segments[2].end,
        "widths_through": dict(narrow.sizes),
        "search": {side: search.facts for side, search in found.items()},
    }
    return concluded(
        pair, NAME, path, certificate, epsilon, started, details,
        remark=f"neither a better way through this θ* nor better dropped networks were found ({profile}, seed {seed})",
        costs=lambda: level_costs(pair, ready.structure, "a", a),
    )  # fmt: skip
