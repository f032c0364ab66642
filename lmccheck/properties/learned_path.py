"""The ten segments where the theory has none: a chain whose bends are trained, and what samples show of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError, UnsupportedArchitecture
from lmccheck.finding import End, Finding
from lmccheck.properties.advice import THOROUGH, maps_beyond, more_data, other_alignment
from lmccheck.properties.early import Wanted
from lmccheck.properties.early_path import settled_path
from lmccheck.properties.low_loss_path import Certified
from lmccheck.properties.measured_line import measure_line
from lmccheck.properties.remarks import batchnorm_remark, calibration_remarks

if TYPE_CHECKING:
    from lmccheck.alignment.api import Alignment
    from lmccheck.network.pair import ModelPair

SOURCE = "Garipov et al. 2018; Draxler et al. 2018"
APART = "checkpoints that share more of their training"


def learned_path(
    pair: ModelPair,
    epsilon: float | str,
    align: str,
    beyond: Any,
    why: str | None,
    settings: Mapping[str, Any],
    early: Wanted | None,
) -> Finding:
    """Return the finding about a chain whose bends are trained from the aligned line.

    ``why``: why no construction applies, None where it was not asked for. ``settings``: seed and profile.
    """
    from lmccheck.evaluate.batchnorm import tracked
    from lmccheck.paths.chain import require_continuous, sampled_chain
    from lmccheck.paths.learned import learn

    pair.network.require_labelled("form = 'learned', whose bends are trained,")
    require_continuous(pair)
    alignment, left = _aligned(pair, align, beyond, settings["seed"])
    theta_b = pair.theta_b if alignment is None else alignment.weights
    learned = learn(pair, theta_b, **settings)
    moved = {"method": align, "seed": settings["seed"], "beyond": []}
    if alignment is not None:
        moved = {"method": align, "seed": alignment.seed, "beyond": list(alignment.beyond)}
    path = replace(learned.path, facts={"form": "learned", "alignment": moved})
    if early is not None and (high := settled_path(pair, path, epsilon, early, settings["profile"])):
        advice = _advice(pair, align, beyond, settings)
        return high.finding(_not_found(learned.facts), advice, {"form": "learned", "search": learned.facts})
    found = Certified(pair, path, sampled_chain(pair, path, profile=settings["profile"]))
    line = _line(pair, alignment, found)
    search = learned.facts
    facts = {
        "theorem": None,
        "source": SOURCE,
        "form": "learned",
        "why_learned": why,
        "search": search,
        "aligned_line": line,
    }
    notes = [
        *([f"form = 'learned', since no construction applies: {why}"] if why else []),
        f"the aligned line it was trained from has excess {line['excess']:.4g} at {line['points']} points",
        _trained(search),
        *left,
        *([] if alignment is None else calibration_remarks(alignment.method, alignment.facts)),
        *([batchnorm_remark(pair.network)] if tracked(pair.module) else []),
    ]
    summary = {"method": "none"} if alignment is None else alignment.summary()
    finding = replace(found.finding(epsilon, facts, notes), alignment=summary)
    return found.explained(finding, _not_found(search), _advice(pair, align, beyond, settings))


def _aligned(pair: ModelPair, align: str, beyond: Any, seed: int) -> tuple[Alignment | None, list[str]]:
    """Return the alignment that the line begins with, None where nothing moves, and what is to be said of that.

    A path needs none: of a network whose symmetries cannot be derived nothing is moved.
    """
    from lmccheck.alignment.api import align as align_pair
    from lmccheck.alignment.kept import kept_note, not_worse

    if align == "none":
        if beyond:
            raise LmcError(f"ten_segment_path: beyond = {beyond!r} with align = 'none'; mend: name an align method")
        return None, []
    try:
        alignment = not_worse(pair, align_pair(pair, align, seed=seed, beyond=beyond))
    except UnsupportedArchitecture as error:
        return None, [f"nothing is moved before training, since no symmetry could be derived: {error}"]
    return alignment, kept_note(alignment.facts, alignment.method)


def _line(pair: ModelPair, alignment: Alignment | None, found: Certified) -> dict[str, Any]:
    """Return by how much the straight line that training began with is above the worse endpoint, and where."""
    from lmccheck.alignment.merge import segment
    from lmccheck.evaluate.evaluator import Evaluator

    evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
    ends = End("a", found.certificate.loss_a), End("b", found.certificate.loss_b)
    line = measure_line(segment(pair, evaluator, alignment), len(found.path.points), "dev", *ends)
    worst = max(line.points, key=lambda point: point.loss)
    return {"excess": line.excess, "max": worst.loss, "worst_t": worst.t, "points": len(line.points)}


def _trained(search: Mapping[str, Any]) -> str:
    """Say what was trained on what, and by what bends were chosen."""
    if not search["steps"]:
        return f"the line was left straight: on held-out calibration data it is {search['stopped']}"
    return (
        f"bends trained for {search['steps']} of at most {search['budget']} steps on {search['fitted_samples']} "
        f"calibration samples ({search['stopped']}), those after step {search['best_step']} kept by "
        f"{search['held_out_samples']} held-out ones"
    )


def _not_found(search: Mapping[str, Any]) -> str:
    return (
        f"no path of low loss found within this budget ({search['profile']}: {search['steps']} of {search['budget']} "
        f"steps, seed {search['seed']}), which does not prove that there is none"
    )


def _advice(pair: ModelPair, align: str, beyond: Any, settings: Mapping[str, Any]) -> list[str]:
    """Return what may lead to a lower chain and was not tried."""
    from lmccheck.alignment.beyond.api import chosen_kinds

    network = pair.network
    found = [
        *([THOROUGH] if settings["profile"] != "thorough" else []),
        *maps_beyond(network, align, chosen_kinds(beyond)),
        *other_alignment(network, align),
        *more_data(network, "training the bends"),
    ]
    return found or [f"{APART}; no setting of this check is left to try"]
