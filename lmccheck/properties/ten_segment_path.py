"""Theorem 2, or training: are two networks joined by a path of ten segments along which the loss stays low?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from lmccheck.errors import UnsupportedArchitecture
from lmccheck.finding import Finding
from lmccheck.properties.advice import wider_search
from lmccheck.properties.certified_line import Certify
from lmccheck.properties.early import Wanted
from lmccheck.properties.early_path import early_of, settled_path
from lmccheck.properties.learned_path import learned_path
from lmccheck.properties.low_loss_path import (
    PASSES,
    Certified,
    Prepared,
    not_found,
    prepare,
    require_calibration,
    search_each,
)
from lmccheck.properties.registry import check
from lmccheck.properties.settings import Align, Beyond, EarlyFail, Half, Limit, Profile, Seed

if TYPE_CHECKING:
    from lmccheck.dropping.dropped import Dropped
    from lmccheck.network.pair import ModelPair

FORMS = {"ten": "paper", "short": "short"}
LEARNED = "form = 'learned', which trains a path and samples it, without a theorem"


@check(
    of="pair",
    claim="max L ≤ max(L(θ_A), L(θ_B)) + ε (Theorem 2, or a trained chain)",
    quantifier="there is a path",
    certifies="eight of ten segments exactly, two by bounds or samples; by samples where the bends are trained",
)
def ten_segment_path(
    pair: ModelPair,
    *,
    epsilon: Limit = 0.05,
    keep: Half = 0.5,
    refit: bool = True,
    form: Literal["auto", "ten", "short", "learned"] = "auto",
    align: Align = "weight-matching",
    beyond: Beyond = (),
    certify: Certify = "auto",
    early_fail: EarlyFail = False,
    seed: Seed = 0,
    profile: Profile = "ci",
) -> Finding:
    """Assert that θ_A and θ_B are joined by ten segments with max L ≤ max(L(θ_A), L(θ_B)) + ε.

    ``form = "ten"`` is the construction of Theorem 2: it drops all but a share ``keep`` (at most ½) of every layer's
    units of each network, and crosses between the two half-empty networks by moves along which the loss is convex or
    constant; only the first and the last segment, between a network and its dropped version, are sampled, and bounded
    everywhere where the network has an enclosure (``certify``, as ``early_fail`` that of ``linear_connectivity``).
    ``short`` has seven segments, or five where the kept units are disjoint. ``refit``: fit what the kept units feed to
    what all of them fed, on calibration data; both ways are measured, ``value`` is of the one asked for. BatchNorm
    statistics are weights of the path.

    ``form = "learned"`` is a chain of ten straight segments from θ_A to π(θ_B), whose nine bends are trained on
    calibration data, from the line to θ_B aligned by ``align`` and ``beyond`` as in ``linear_connectivity``. A pass
    says that the loss is low wherever the chain was looked at (a refined grid of every segment, BatchNorm re-estimated
    at each point), on this data, and nothing else: no theorem stands behind it, the loss between two samples is
    unknown, and training hard enough may join networks that no merge could average. A fail says that training found no
    such chain within its budget, steps by ``profile`` (``details.search``). ``form = "auto"`` takes ``ten`` wherever
    that applies, and else ``learned``, saying why.

    ``epsilon``: in the loss's unit (nats for cross entropy), or ``"5%"`` of the worse endpoint's loss. ``details`` hold
    ``segments`` (kind, loss at both ends, max, how it is known: constant, convex or sampled), ``certified_max``,
    ``excess``, ``kinds``, ``form``, ``search``, of a construction ``without_refit`` and ``keep``, of a learned path
    ``why_learned`` and ``aligned_line`` (the excess it began with). The witness is the Path: ``lmccheck.save_path``
    writes it, bends and all, ``lmccheck.verify_path`` measures it anew without searching or training.
    Raises LmcError, SourceError (no calibration data), UnsupportedArchitecture where the form that was asked for does
    not apply (``ten``: LayerNorm and the like across dropped units, tied tensors).
    Source: Kuditipudi et al. 2019, Theorem 2; Garipov et al. 2018 and Draxler et al. 2018 (learned).
    """
    settings = {"seed": seed, "profile": profile}
    early, why = early_of(pair, early_fail, seed), None
    if form != "learned":
        try:
            return _constructed(pair, epsilon, form, {"keep": keep, "refit": refit, **settings}, certify, early)
        except UnsupportedArchitecture as refused:
            if form != "auto":
                raise
            why = str(refused).partition("; mend:")[0]
    return learned_path(pair, epsilon, align, beyond, why, settings, early)


def _constructed(
    pair: ModelPair, epsilon: float | str, form: str, settings: Mapping[str, Any], certify: str, early: Wanted | None
) -> Finding:
    """Return the finding about the path of Theorem 2. Raises UnsupportedArchitecture where it does not apply."""
    from lmccheck.dropping.costs import level_costs
    from lmccheck.paths.theorems import ten_segments

    refit, profile, form = settings["refit"], settings["profile"], "short" if form == "short" else "ten"
    ready = prepare(pair, "ten_segment_path")
    require_calibration(pair, "ten_segment_path")
    searches = search_each(pair, ready.structure, [0], **settings)
    best, plain = ({s: getattr(x, kind)[0] for s, x in searches.items()} for kind in ("best", "plain"))
    if early is not None:
        path = ten_segments(ready.structure, ready.theta_a, ready.theta_b, best["a"], best["b"], FORMS[form])
        advice = [*wider_search(pair.network, ready.structure, settings), LEARNED]
        if high := settled_path(pair, path, epsilon, early, profile, ready.structure):
            return high.finding(not_found(settings), advice, {"form": form, "keep": settings["keep"], "refit": refit})
    found = _certified(pair, ready, best, form, profile, PASSES.get(certify, {}).get(profile, 0.0))
    facts: dict[str, Any] = {
        "theorem": "Kuditipudi et al. 2019, Theorem 2",
        "form": form,
        "keep": settings["keep"],
        "refit": refit,
        "kept": {side: {g: len(u) for g, u in dropped.keep.items()} for side, dropped in best.items()},
        "dropped": {side: dropped.how for side, dropped in best.items()},
        "search": {side: search.facts for side, search in searches.items()},
        "without_refit": None,
    }
    notes: list[str] = []
    if refit:
        without, notes = _certified(pair, ready, plain, form, "glance").without_refit()
        facts["without_refit"] = {**without, "dropped": {side: dropped.how for side, dropped in plain.items()}}
    known = found.certificate
    rises = {"a": known.segments[0].largest - known.loss_a, "b": known.segments[-1].largest - known.loss_b}
    side = "a" if rises["a"] > rises["b"] else "b"
    return found.explained(
        found.settled(found.finding(epsilon, facts, notes), certify),
        not_found(settings),
        [*wider_search(pair.network, ready.structure, settings), LEARNED],
        lambda: level_costs(pair.named_endpoints[side], ready.structure, best[side]),
    )


def _certified(
    pair: ModelPair, ready: Prepared, dropped: dict[str, Dropped], form: str, profile: str, passes: float = 0.0
) -> Certified:
    """Return the path through two dropped networks and what is known of it."""
    from lmccheck.paths.certify import certify
    from lmccheck.paths.theorems import ten_segments

    path = ten_segments(ready.structure, ready.theta_a, ready.theta_b, dropped["a"], dropped["b"], FORMS[form])
    return Certified(pair, path, certify(pair, ready.structure, path, profile=profile, passes=passes))
