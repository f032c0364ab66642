"""Going beyond the permutation that a method found: maps fitted in closed form, then learned, the best of them kept."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from lmccheck.alignment.beyond.fit import fit
from lmccheck.alignment.beyond.freedoms import KINDS, Trial, describe, find_freedoms
from lmccheck.alignment.beyond.heads import order_heads
from lmccheck.alignment.beyond.learn import learn_maps
from lmccheck.alignment.beyond.maps import Maps
from lmccheck.alignment.beyond.signs import balanced, flipped
from lmccheck.alignment.beyond.stream import SMALLEST, find_streams, smallest_gain
from lmccheck.alignment.beyond.turns import fit_in_turn
from lmccheck.alignment.contract import Method, Problem
from lmccheck.alignment.matching.activations import ActivationSimilarity, observe
from lmccheck.alignment.matching.norms import float64
from lmccheck.alignment.methods.learned import Training, train
from lmccheck.data.batches import count_first
from lmccheck.errors import LmcError, nearest
from lmccheck.evaluate.calibration import CalibrationBarrier, barrier_samples, most_samples
from lmccheck.evaluate.gradient import unless_obstructed
from lmccheck.network.pair import ModelPair
from lmccheck.symmetry.compose import compose
from lmccheck.symmetry.spec import Permutation


@dataclass(frozen=True)
class Beyond:
    """θ_B under a permutation and maps beyond it: weights in float64, the permutation's share, facts for the report."""

    weights: dict[str, Tensor] = field(repr=False)
    permutation: Permutation = field(repr=False)
    objective: float
    facts: dict[str, Any]


def chosen_kinds(beyond: str | Collection[str]) -> tuple[str, ...]:
    """Return the kinds of maps named: ``"all"``, one, or several of them. Raises LmcError for an unknown one."""
    names = KINDS if beyond == "all" else (beyond,) if isinstance(beyond, str) else tuple(beyond)
    wrong = next((name for name in names if name not in KINDS), None)
    if wrong is not None:
        raise LmcError(
            f"align: beyond = {wrong!r}{nearest(str(wrong), KINDS)}; expected 'all' or some of {list(KINDS)}"
        )
    return tuple(kind for kind in KINDS if kind in names)


def go_beyond(problem: Problem, kinds: tuple[str, ...], solve: Method) -> Beyond:
    """Return θ_B taken towards θ_A by a permutation, found by ``solve``, and maps of the given kinds beyond it.

    The maps are those verified for this network. Odd units are flipped, and rescalable ones of both networks balanced,
    before ``solve`` looks at them. With calibration data the other maps are fitted to activations, then learned with
    the permutation of the remaining groups, and whichever has the lower calibration barrier is kept, the permutation
    alone included; without, they are fitted to weights. Of a loss that autograd cannot follow nothing is learned:
    ``facts["not_learned"]`` says why. Where nothing was learned, what ``solve`` finds for the pair as it is given is
    compared as well.
    """
    spec = problem.spec
    derived = problem.traced("beyond permutations")
    trial = Trial(problem.pair.module, problem.pair.network.example_inputs())
    freedoms = find_freedoms(derived, trial, kinds)
    streams, refused = find_streams(derived, trial) if "stream-rotation" in kinds else ([], {})
    for stream in list(streams):
        if min(smallest_gain(stream, problem.pair.theta_a), smallest_gain(stream, problem.pair.theta_b)) < SMALLEST:
            streams.remove(stream)
            refused[stream.group.name] = "a gain of its norms is almost zero, and is divided by"
    named = {**describe(freedoms), "stream-rotation": [stream.group.name for stream in streams]}
    facts: dict[str, Any] = {"kinds": list(kinds), "groups": named, "not_rotated": refused}
    given = problem
    problem = replace(problem, pair=problem.pair.with_weights(problem.pair.theta_a, flipped(problem, freedoms)))
    found = solve(balanced(problem, freedoms))
    facts["permutation"] = found.facts
    start, pair = found.permutation, problem.pair
    if not freedoms and not streams:
        return Beyond(
            float64(spec.apply(pair.theta_b, start)), start, found.objective, {**facts, "kept": "permutation"}
        )
    a = float64(pair.theta_a)
    maps = Maps(spec, freedoms, streams)
    if pair.calibration is None:
        b = float64(spec.apply(pair.theta_b, start))
        fit(maps, a, b, None, None)
        return Beyond(_detached(maps.apply(b, a)), start, found.objective, {**facts, "kept": "fitted to weights"})

    judge = CalibrationBarrier(pair)
    tried = [("permutation", float64(spec.apply(pair.theta_b, start)), start)]
    maps, begun = _fitted(problem, maps, start, judge)
    b = float64(spec.apply(pair.theta_b, begun))
    tried.append(("fitted", _detached(maps.apply(b, a)), begun))
    learn = learn_maps if maps.mixed_groups else train
    trained = unless_obstructed(pair.network, pair.theta_a, partial(learn, problem, begun, maps))
    if isinstance(trained, str):
        facts["not_learned"], trained = trained, Training(spec.identity(), (), 0, 0)
    else:
        learned = spec.apply(_detached(maps.apply(b, a)), trained.permutation)
        tried.append(("learned", learned, compose(spec, begun, trained.permutation)))
    if not trained.best_step:
        alone = solve(given).permutation
        tried.append(("permutation alone", float64(spec.apply(given.pair.theta_b, alone)), alone))
    barriers = [judge(weights) for _, weights, _ in tried]
    name, weights, permutation = tried[barriers.index(min(barriers))]
    facts["calibration_barriers"] = {name: barrier for (name, _, _), barrier in zip(tried, barriers, strict=True)}
    return Beyond(weights, permutation, found.objective, {**facts, **_told(pair, trained), "kept": name})


def _told(pair: ModelPair, trained: Training) -> dict[str, Any]:
    """Return what is said of the steps and the samples that they saw."""
    assert pair.calibration is not None
    fitted = count_first(pair.calibration, most_samples(pair.calibration))
    counts = {"maps": fitted, "steps compared": trained.judged}
    return {
        "losses_half_way": list(trained.losses),
        "best_step": trained.best_step,
        **({"half_way_excess": trained.apart} if trained.apart else {}),
        "calibration_samples": {**barrier_samples(pair.calibration), **counts},
    }


def _fitted(problem: Problem, maps: Maps, start: Permutation, judge: CalibrationBarrier) -> tuple[Maps, Permutation]:
    """Return maps fitted to activations, or in turn with the order of other units, and the permutation they follow.

    Of the two the one of the lower calibration barrier.
    """
    spec, a = problem.spec, float64(problem.pair.theta_a)
    moments, alike = _seen(problem, maps, start)
    begun = compose(spec, start, order_heads(spec, maps.freedoms, alike, moments, spec.identity()))
    moments, alike = _seen(problem, maps, begun)
    b = float64(spec.apply(problem.pair.theta_b, begun))
    fit(maps, a, b, moments, alike)
    if not maps.mixed_groups:
        return maps, begun
    again = maps.alone()
    order = fit_in_turn(again, a, b, problem.traced("beyond permutations").sites, moments)
    second = _detached(again.apply(spec.apply(b, order), a))
    if judge(second) < judge(_detached(maps.apply(b, a))):
        return again, compose(spec, begun, order)
    return maps, begun


def _seen(problem: Problem, maps: Maps, permutation: Permutation) -> tuple[Any, ActivationSimilarity]:
    """Return joint moments of A's and the permuted θ_B's activations, and the cross-moments they give."""
    turned = [site for freedom in maps.freedoms for site in freedom.sites]
    pair = problem.pair.with_weights(problem.pair.theta_a, problem.spec.apply(problem.pair.theta_b, permutation))
    samples, sites = most_samples(problem.calibration("maps")), problem.traced("beyond permutations").sites
    moments = observe(replace(problem, pair=pair), "beyond permutations", samples, turned)
    return moments, ActivationSimilarity.of(problem.spec, sites, moments, "cross-moment")


def _detached(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in weights.items()}
