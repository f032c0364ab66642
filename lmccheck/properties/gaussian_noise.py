"""Noise stability by Gaussian noise: does the loss stay low with noise in what every layer reads?

q_k = L(x + η_k for every x that a layer reads) − L, in all layers together, ‖η‖ = size·‖x‖ exactly, the direction of
η uniform and independent of layer, call, sample, position. x is what a linear, recurrent or attention layer or a norm
reads at one position of one sample, or what a convolution or a norm of maps reads of one sample. An embedding, whose
inputs are integers, gets it in what it gives. A stream of sums gets it where the next norm or layer reads it, and keeps
it. There is none where x = 0, in attention's scores, between steps that one call of an LSTM runs, in what nobody reads.

Of noise in one layer alone: ``loss_change``, ``output_error`` ‖Δf‖²/‖f‖² and the attenuation of Kuditipudi et al. 2019
(talk) ψ = (‖Δf‖²/‖f‖²)/(‖η‖²/‖x‖²), means over samples: 1 where noise passes as it is, 0 where nothing of it does.

What is found does not depend on how samples are batched, but for tokens that experts share out and windows as many as a
batch has samples; another order of units is another draw of the same distribution. It says nothing of paths, and
nothing of units that are dropped.
Source: Arora et al. 2018, section 3, for noise relative to activations. Here its length is exact; x is all of a map in
convolutions, as there, and one token where tokens are read one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmccheck.curves import Draws
from lmccheck.errors import UnsupportedArchitecture
from lmccheck.explain import called, of_endpoint
from lmccheck.finding import Compared, End, Failure, Finding, Seen, Where, bound_of
from lmccheck.properties.draws import (
    CONFIDENCE,
    held_note,
    held_of,
    share_that_holds,
    unsettled,
    verdict_of,
    worse_end,
)
from lmccheck.properties.remarks import measured_endpoints, measured_on, precision_of, thetas_of
from lmccheck.shown import some

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.noisy import NoisyRuns
    from lmccheck.network.view import View

COST = "q_k = L(with noise k in what every layer reads) − L, ‖η‖ = size·‖x‖ at each position (Arora et al. 2018)"
ALONE = "one layer at a time, draw 0; ψ = (‖Δf‖²/‖f‖²)/(‖η‖²/‖x‖²) at the network's output f, mean over samples"
SHOWN = 3  # layers that a failure names
NO_PATH = (
    "noise in what layers read, one network at a time: nothing follows about a path between networks, nor about units "
    "that are dropped"
)


def gaussian_stability(
    pair: View, *, epsilon: float | str, size: float, draws: int, quantile: float, seed: int, samples: int
) -> Finding:
    """Return what ``noise_stability`` finds with ``noise = "gaussian"``; see above."""
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.noisy import Noise, NoisyRuns

    evaluator = Evaluator(pair.network, *thetas_of(pair))
    ends = measured_endpoints(pair, evaluator)
    bound = bound_of(epsilon, max(end.loss for end in ends))
    runs = NoisyRuns(pair.network, evaluator.dtype)
    noises = [Noise(size, seed, k) for k in range(draws)]
    costs: dict[str, dict[str, Any]] = {}
    layers: dict[str, dict[str, dict[str, Any]]] = {}
    own: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}  # over draws
    for end, theta in zip(ends, thetas_of(pair), strict=True):
        runs.load(theta)
        own[end.name], losses, moved = runs.each(noises)
        loss = float(own[end.name].mean())
        _require_the_network(pair, end, loss)
        means[end.name] = losses.mean(0)
        costs[end.name] = _costs(loss, losses.mean(1).tolist(), moved, bound, quantile)
        layers[end.name] = _alone(runs, Noise(size, seed, 0), samples)
    facts = {"size": size, "quantile": quantile, "seed": seed, "noise": "gaussian"}
    facts["gaussian"] = {"size": size, "samples": runs.alone_samples, "definition": ALONE, **layers}
    found = replace(_finding(evaluator, ends, costs, epsilon, facts, runs), compared=compared(means, own))
    return found.explained(lambda: _failure(pair, found, costs))


def compared(means: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[Compared]:
    """Return every endpoint's mean over noise beside its own loss, sample by sample.

    Every sample of every draw has noise of its own. Over all samples there are, all draws cost the same, therefore,
    and it is this mean that the limit bounds.
    """
    shares = tuple(own.values())
    return [Compared(f"with noise{of_endpoint(end)}", mean, (own[end],), shares) for end, mean in means.items()]


def _require_the_network(pair: View, end: End, loss: float) -> None:
    """Refuse a network that computes something else while it is watched than it does by itself."""
    if not abs(loss - end.loss) <= 1e-3 * (1 + abs(end.loss)):
        raise UnsupportedArchitecture(
            f"noise_stability: model {pair.network.model}: its loss is {loss:.6g} while what its layers read is "
            f"watched, and {end.loss:.6g} otherwise; mend: let forward not depend on how it is called"
        )


def _costs(own: float, losses: list[float], moved: Tensor, bound: float, share: float) -> dict[str, Any]:
    """Return what every draw of noise costs one endpoint, and what that says; JSON-able."""
    q = [loss - own if math.isfinite(loss) else math.inf for loss in losses]
    return {
        **share_that_holds(q, bound, share),
        "losses": losses,
        "output_error": [float(row) for row in moved.nanmean(1)],
        "worst_draw": q.index(max(q)),
        "best_draw": q.index(min(q)),
    }


def _alone(runs: NoisyRuns, noise: Any, samples: int) -> dict[str, dict[str, Any]]:
    """Return what noise in each layer alone does to the first samples, by layer; JSON-able."""
    own, losses, moved = runs.alone(noise, samples)
    change, error = (losses.mean(1) - own.mean()).tolist(), moved.nanmean(1).nan_to_num(0.0, math.inf).tolist()
    return {
        layer: {
            "loss_change": change[k],
            "output_error": error[k],
            "output_attenuation": error[k] / noise.size**2,
            "reads": seen.calls,
            "silent": seen.zeros / max(1, seen.positions),
        }
        for k, (layer, seen) in enumerate(runs.seen.items())
    }


def _finding(
    evaluator: Evaluator,
    ends: tuple[End, ...],
    costs: Mapping[str, dict[str, Any]],
    epsilon: float | str,
    facts: Mapping[str, Any],
    runs: NoisyRuns,
) -> Finding:
    from lmccheck.evaluate.noise_witness import GaussianWitness

    worse, share = worse_end(costs), facts["quantile"]
    cost, draws = costs[worse], len(costs[worse]["q"])
    q, losses = ({end: tuple(of_end[key]) for end, of_end in costs.items()} for key in ("q", "losses"))
    worst, best = ({end: of_end[key] for end, of_end in costs.items()} for key in ("worst_draw", "best_draw"))
    reads = {layer: seen.calls for layer, seen in runs.seen.items()}
    attenuation = {
        end: {layer: alone["output_attenuation"] for layer, alone in facts["gaussian"][end].items()} for end in costs
    }
    return Finding(
        cost["quantile"],
        epsilon,
        evaluator.network.loss.unit,
        endpoints=ends,
        worst_loss=max(cost["losses"]),
        above="own",
        where=Where(side=worse, layer=_costliest(facts["gaussian"][worse])[0]),
        curve=Draws(q, share, "draw of noise", attenuation),
        interval=cost["quantile_interval"],
        verdict=verdict_of(costs),
        share=share,
        notes=_notes(evaluator, costs, share, facts["gaussian"], runs),
        witness=GaussianWitness(facts["size"], facts["seed"], reads, q, losses, worst, best),
        evaluations=evaluator.evaluations + runs.evaluations,
        known=f"sampled: {draws} draws of noise {facts['size']:g}, {100 * CONFIDENCE:g} %",
        facts={
            "definition": COST,
            "masks": draws,
            "confidence": CONFIDENCE,
            **costs,
            "worse": worse,
            "layers": len(reads),
            "samples": evaluator.network.data.samples,
            "precision": precision_of(evaluator),
            "diagnostics": {"why": "the constants of section 4 belong to masks"},
            **facts,
        },
    )


def _costliest(layers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the layers, those first in which noise costs most; what is no number costs more than any."""

    def cost(layer: str) -> float:
        change = float(layers[layer]["loss_change"])
        return change if math.isfinite(change) else math.inf

    return sorted(layers, key=cost, reverse=True)


def _notes(
    evaluator: Evaluator,
    costs: Mapping[str, Mapping[str, Any]],
    share: float,
    gaussian: Mapping[str, Any],
    runs: NoisyRuns,
) -> list[str]:
    read = f"{len(runs.seen)} layers read" if len(runs.seen) != 1 else "1 layer reads"
    notes = [held_note(costs, f"draws of noise of size {gaussian['size']:g} in what {read}", share), NO_PATH]
    for end in costs:
        silent = [layer for layer, facts in gaussian[end].items() if facts["silent"] == 1]
        if silent:
            notes.append(
                f"{of_endpoint(end, '', ': ')}no noise in {some(silent)}: what is read there is zero on all samples"
            )
        idle = [layer for layer, facts in gaussian[end].items() if facts["silent"] < 1 and facts["output_error"] == 0]
        if idle:
            notes.append(
                f"{of_endpoint(end, '', ': ')}noise in {some(idle)} alone changes no output (what follows is "
                "multiplied by 0, or never active): that it passes says nothing"
            )
    if runs.fused:
        notes.append(f"states inside {some(runs.fused)} get no noise: one call of torch's runs all its steps")
    if runs.unseen:
        notes.append(
            f"no noise in what {some(map(repr, runs.unseen))} multiply number by number: written so they are no layer; "
            "mend: compute with torch.nn.functional.linear or einsum"
        )
    if evaluator.batchnorms:
        notes.append("BatchNorm keeps each checkpoint's own statistics")
    return notes


def _failure(pair: View, found: Finding, costs: Mapping[str, dict[str, Any]]) -> Failure:
    share, size = found.facts["quantile"], found.facts["size"]
    advice: list[str] = []
    end = next(e for e in (found.facts["worse"], *costs) if costs[e]["verdict"] == found.verdict)
    facts, layers = costs[end], found.facts["gaussian"][end]
    held, worst = held_of(facts, "draws", share), facts["worst_draw"]
    what = (
        f"not noise stable: {called(end, 'endpoint ')} loses too much with noise of {size:g} of what each layer reads"
    )
    if found.verdict == "inconclusive":
        more, advice = unsettled(costs, "draws", share)
        what = f"noise stability of {called(end, 'endpoint ')} is not settled: {held}: {more}"
    most = _costliest(layers)[:SHOWN]
    told = (
        f"{layer} {layers[layer]['loss_change']:+.4g} (ψ {layers[layer]['output_attenuation']:.3g})" for layer in most
    )
    return Failure(
        pair.name,
        what,
        f"{share:.0%} quantile of q = L(with noise) - L:",
        f"{of_endpoint(end, 'endpoint ', ', ')}draw {worst} of seed {found.facts['seed']}, "
        f"loss {facts['losses'][worst]:.4g}",
        measured_on(pair.data),
        [Seen(x, f"with draw {k}") for k, x in enumerate(facts["q"])],
        "draws",
        [held],
        value=facts["quantile"],
        next=advice,
        diagnosis=[f"noise in one layer alone costs most in: {', '.join(told)}"],
    )
