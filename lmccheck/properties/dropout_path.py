"""Theorem 1: two dropout-stable networks are joined by a path whose largest loss is known exactly."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lmccheck.errors import LmcError
from lmccheck.finding import Finding
from lmccheck.properties.advice import wider_search
from lmccheck.properties.low_loss_path import (
    Certified,
    Prepared,
    not_found,
    prepare,
    require_calibration,
    search_each,
)
from lmccheck.properties.registry import check
from lmccheck.properties.settings import Limit, Model, Profile, Seed, Share, Weights

if TYPE_CHECKING:
    from lmccheck.dropping.dropped import Dropped
    from lmccheck.network.endpoint import Endpoint
    from lmccheck.network.pair import ModelPair
    from lmccheck.paths.certify import Certificate
    from lmccheck.paths.path import Path
    from lmccheck.symmetry.structure import Structure

NAME = "dropout_path"


@check(
    of="pair",
    claim="max L ≤ max(L(θ_A), L(θ_B)) + ε, by 8d − 4 segments or fewer (Theorems 1, 3)",
    quantifier="there is a path",
    certifies="the exact maximum over the path: nothing is sampled",
)
def dropout_path(
    pair: ModelPair,
    *,
    epsilon: Limit = 0.05,
    keep: Share = 0.5,
    refit: bool = True,
    form: Literal["paper", "short"] = "paper",
    through: Weights = None,
    through_model: Model = None,
    seed: Seed = 0,
    profile: Profile = "ci",
) -> Finding:
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
    from lmccheck.paths.theorems import require_sequence

    if through is None and keep > 0.5:
        raise LmcError(f"{NAME}: keep = {keep!r}; expected a number above 0 and at most 0.5")
    if (through is None) != (through_model is None):
        raise LmcError(f"{NAME}: through and through_model go together; mend: give both or neither")
    settings = {"keep": keep, "refit": refit, "seed": seed, "profile": profile}
    ready = prepare(pair, NAME)
    require_calibration(pair, NAME)
    if through is not None:
        return _through(pair, ready, through, through_model, epsilon, settings)
    require_sequence(ready.structure)
    searches = search_each(pair, ready.structure, range(len(ready.structure.levels)), **settings)
    best, plain = ({s: getattr(x, kind) for s, x in searches.items()} for kind in ("best", "plain"))
    found = _certified(pair, ready, best, form, profile)
    losses = _losses(ready, found.certificate)
    facts: dict[str, Any] = {
        "theorem": "Kuditipudi et al. 2019, Theorem 1",
        "form": form,
        "keep": keep,
        "refit": refit,
        "losses": losses,
        "dropped": {side: {str(k): d.how for k, d in levels.items()} for side, levels in best.items()},
        "search": {side: search.facts for side, search in searches.items()},
        "without_refit": None,
    }
    notes: list[str] = []
    if refit:
        plainer = _certified(pair, ready, plain, form, profile)
        without, notes = plainer.without_refit()
        facts["without_refit"] = {**without, "losses": _losses(ready, plainer.certificate)}
    costs = partial(_jumps, losses, found.certificate)
    advice = wider_search(pair.network, ready.structure, settings)
    return found.explained(found.finding(epsilon, facts, notes), not_found(settings), advice, costs)


def _certified(
    pair: ModelPair, ready: Prepared, dropped: Mapping[str, Mapping[int, Dropped]], form: str, profile: str
) -> Certified:
    from lmccheck.paths.certify import certify
    from lmccheck.paths.theorems import dropout_path_between

    path = dropout_path_between(ready.structure, ready.theta_a, ready.theta_b, dropped["a"], dropped["b"], form)
    return Certified(pair, path, certify(pair, ready.structure, path, profile=profile))


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
    pair: ModelPair, ready: Prepared, through: Any, model: Any, epsilon: float | str, settings: Mapping[str, Any]
) -> Finding:
    """Theorem 3: by way of a narrow network of the user's."""
    from lmccheck.dropping.costs import level_costs
    from lmccheck.paths.certify import certify
    from lmccheck.paths.theorems import path_through, require_alike

    star, narrow = _narrow(pair, through, model)
    require_alike(ready.structure, narrow)
    searches = search_each(pair, ready.structure, [0], **settings)
    a, b = searches["a"].best[0], searches["b"].best[0]
    path = path_through(ready.structure, ready.theta_a, ready.theta_b, a, b, narrow.canonical(star.theta), narrow)
    _require_embedded(pair, ready, path, star)
    found = Certified(pair, path, certify(pair, ready.structure, path, profile=settings["profile"]))
    facts = {
        "theorem": "Kuditipudi et al. 2019, Theorem 3",
        "form": "through",
        "keep": settings["keep"],
        "refit": settings["refit"],
        "loss_through": found.certificate.segments[2].end,
        "widths_through": dict(narrow.sizes),
        "search": {side: search.facts for side, search in searches.items()},
    }
    return found.explained(
        found.finding(epsilon, facts),
        "no path of low loss found: neither a better way through this θ* nor better dropped networks were found "
        f"({settings['profile']}, seed {settings['seed']})",
        [
            "another θ*, or none: leave out through and through_model",
            *wider_search(pair.network, ready.structure, settings),
        ],
        lambda: level_costs(pair.a, ready.structure, a),
    )


def _narrow(pair: ModelPair, through: Any, model: Any) -> tuple[Endpoint, Structure]:
    """Return θ* and its structure. Raises as loading does, saying that it is θ*."""
    from lmccheck.network.single import load_model

    try:
        star = load_model(
            through, name="through", model=model, data=pair.data, loss=pair.loss, device=pair.device, base=pair.base
        )
        return star.end, star.network.structure("θ*")
    except LmcError as error:
        raise type(error)(f"{NAME}: through: {error}") from None


def _require_embedded(pair: ModelPair, ready: Prepared, path: Path, star: Endpoint) -> None:
    """Raise LmcError unless θ* computes in the pair's network what it computes in its own."""
    from lmccheck.evaluate.outputs import FirstOutputs, relative_deviation
    from lmccheck.paths.certify import EXACT

    embedded = FirstOutputs(pair.network, f"{NAME}, through")(ready.structure.stored(path.points[3]))
    apart = relative_deviation(FirstOutputs(star.network, f"{NAME}, through")(star.theta), embedded)
    if not apart <= EXACT:
        raise LmcError(
            f"{NAME}: through: θ* inside the pair's network gives other outputs than in its own, by {apart:.2e} "
            "(relative, float64); mend: give a narrower network of the same layers and activations"
        )
