"""What every property measures of a pair's endpoints, and remarks about data, endpoints and limits, worded once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmccheck.explain import called
from lmccheck.finding import End, Finding

if TYPE_CHECKING:
    from lmccheck.data.load import Data
    from lmccheck.evaluate.evaluator import Evaluator, Measured
    from lmccheck.network.constant import ConstantAnswer
    from lmccheck.network.endpoint import Endpoint, StateDict
    from lmccheck.network.network import Network
    from lmccheck.network.view import View

NOTHING = 1000.0  # times a loss (plus one), or this share of it in percent: a limit where no constant answer is known
TOGETHER = "a sample's outputs depend on the others of its batch, by {:.1e} of their size"
MOST_SHOWN = 4  # models in one line
BY_HEART = 0.01  # the share of a loss by which learned maps may do worse on calibration data that was held out
REPEATS = 1e-5  # of a loss that is computed in float32: sums in another order differ by so much, generously


def data_remarks(network: Network) -> list[str]:
    """Return what is to be said of the data: what was left out, what was also fitted to, what the outputs showed.

    What differs beside the weights, and was accepted, is said first of the network.
    """
    data, said = network.data, list(network.data.notes)
    if data.uncounted:
        of = data.samples + data.uncounted
        said.append(f"{data.uncounted} of {of} evaluation samples are left out: nothing in them is counted")
    if fitted := network.fitted_samples:
        said.append(
            f"{fitted} of {data.samples} evaluation samples are calibration data, too: what is measured was also "
            "fitted to"
        )
    if network.mixing:
        said.append(f"{TOGETHER.format(network.mixing)}: losses are those of the batches that were run")
    return [*said, *network.accepted, *network.remarks]


def origin_remarks(measured: Any) -> list[str]:
    """Return what is to be said of the checkpoints that something came from: how their names were changed, say."""
    found = getattr(measured, "checkpoints", None)
    if found is None:
        found = {name: end.checkpoint for name, end in measured.named_endpoints.items()}
    return [f"{name}: {said}" for name, checkpoint in found.items() for said in checkpoint.remarks]


def twin_remarks(endpoints: Mapping[str, Endpoint]) -> list[str]:
    """Say which endpoints hold the same weights, each with the first that it is equal to."""
    from lmccheck.network.endpoint import same_weights, twin_key

    said: list[str] = []
    keys = {name: twin_key(end) for name, end in endpoints.items()}  # each endpoint is read once
    one_dtype = len({dtypes for dtypes, _ in keys.values()}) == 1
    different: dict[str, list[str]] = {}  # names of endpoints that differ, by what twins have in common
    for name, (_, numbers) in keys.items():
        alike = different.setdefault(numbers if one_dtype else "", [])
        first = next((other for other in alike if same_weights(endpoints[other], endpoints[name])), None)
        if first is None:
            alike.append(name)
        else:
            said.append(f"{first} and {name} are identical")
    return said


def limit_remarks(finding: Finding, ends: Sequence[End], constant: ConstantAnswer | None) -> list[str]:
    """Say that a limit excludes nothing, or asks for more than the measurement repeats."""
    losses = [end.loss for end in ends]
    if not losses or not all(map(math.isfinite, losses)):
        return []
    limit, shown = (
        finding.bound,
        f"limit {finding.limit}" + ("" if isinstance(finding.limit, str) else f" {finding.unit}"),
    )
    rounding = REPEATS * max(map(abs, losses))
    if limit < rounding and finding.facts.get("precision") == "float32":
        return [f"{shown} is below what float32 repeats here, about {rounding:.1g} {finding.unit}"]
    lacking = excludes_nothing(finding, ends, constant)
    return [f"{shown} {lacking}; mend: lower it"] if lacking else []


def excludes_nothing(finding: Finding, ends: Sequence[End], constant: ConstantAnswer | None) -> str:
    """Say that a limit excludes nothing, or next to nothing; no words where it excludes something."""
    losses, limit = [end.loss for end in ends], finding.bound
    if constant is not None:
        room = constant.loss - min(losses)
        if limit >= room > 0:
            above = called(ends[0].name) if len(ends) == 1 else "the better endpoint"
            return f"excludes nothing: a constant answer is only {room:.3g} {finding.unit} above {above}"
    elif limit >= NOTHING * (1 + max(map(abs, losses))) or (
        isinstance(finding.limit, str) and float(finding.limit[:-1]) >= NOTHING
    ):
        beside = "a loss of" if len(losses) == 1 else "endpoint losses up to"
        return f"excludes next to nothing beside {beside} {max(losses):.3g}"
    return ""


def calibration_remarks(what: str, facts: Mapping[str, Any]) -> list[str]:
    """Say where a search looked at some of the calibration samples only, or learned nothing.

    ``facts`` are those of an alignment.

    >>> calibration_remarks("best", {"calibration_samples": {"of": 3000, "barriers": 2048, "activations": 3000}})
    ['best looked at some of the 3000 calibration samples only: 2048 for barriers']
    """
    maps = facts.get("maps", {})
    fewer: dict[tuple[int, int], dict[str, None]] = {}
    parts = (facts, facts.get("chosen_facts", {}), maps, maps.get("permutation", {}))
    for part in parts:
        seen = part.get("calibration_samples", {})
        for purpose, count in seen.items():
            if isinstance(count, int) and count < seen["of"]:
                fewer.setdefault((seen["of"], count), {})[purpose] = None
    counts = "; ".join(f"{count} for {', '.join(purposes)}" for (_, count), purposes in fewer.items())
    said = [f"{what} looked at some of the {max(fewer)[0]} calibration samples only: {counts}"] if fewer else []
    reasons = dict.fromkeys(part["not_learned"] for part in parts if "not_learned" in part)
    return [*said, *(f"nothing was learned by gradients: {reason}" for reason in reasons), *_by_heart(maps)]


def _by_heart(maps: Mapping[str, Any]) -> list[str]:
    """Say that learned maps fit the calibration data they were learned on better than other calibration data."""
    if maps.get("kept") != "learned" or "half_way_excess" not in maps:
        return []
    held, fitted, ends = (maps["half_way_excess"][key] for key in ("held_out", "fitted_to", "ends"))
    if not held - fitted > BY_HEART * abs(ends):
        return []
    return [
        f"half-way, held-out calibration data loses {held:.3g} more than the ends, that the maps were learned on "
        f"{fitted:.3g}: more calibration data would help"
    ]


def batchnorm_remark(network: Network) -> str:
    """Say that BatchNorm was re-estimated, since it has to be done to what is shipped, too."""
    samples = network.calibration.samples if network.calibration else 0
    return f"BatchNorm re-estimated at every point on {samples} calibration samples (do so in the merged model)"


def measured_on(data: Data) -> str:
    """Return what a failure's text calls the data."""
    return f"{data.origin} ({data.samples} samples)"


def thetas_of(pair: View) -> list[StateDict]:
    """Return the weights of all endpoints, in order."""
    return [end.theta for end in pair.named_endpoints.values()]


def measured_endpoints(pair: View, evaluator: Evaluator) -> tuple[End, ...]:
    """Measure the original endpoints with their own statistics. Raises SourceError where a loss is not finite."""
    found = endpoint_measurements(pair, evaluator)
    return tuple(end_of(name, one) for name, one in zip(pair.named_endpoints, found, strict=True))


def endpoint_measurements(pair: View, evaluator: Evaluator) -> list[Measured]:
    """Return what ``measured_endpoints`` measures, sample by sample."""
    return [
        evaluator.endpoint(end.theta, called(name, "endpoint "), end.checkpoint.label)
        for name, end in pair.named_endpoints.items()
    ]


def own_measurements(pair: View, evaluator: Evaluator) -> dict[str, Measured]:
    """Return what is measured of every endpoint, by name; the evaluator rests: what comes next takes memory too."""
    found = dict(zip(pair.named_endpoints, endpoint_measurements(pair, evaluator), strict=True))
    evaluator.rest()
    return found


def end_of(name: str, found: Measured) -> End:
    """Return what was measured of a model as what a report says of it."""
    return End(name, found.loss, found.error, found.token_loss)


def token_facts(ends: Sequence[End]) -> dict[str, dict[str, float]]:
    """Return the loss over all tokens that count and its exponential by name, of what is measured on tokens."""
    told = {end.name: end.token_loss for end in ends if end.token_loss is not None}
    return {name: {"loss": loss, "perplexity": perplexity(loss)} for name, loss in told.items()}


def perplexity(loss: float) -> float:
    """Return e to the loss over tokens, infinite where that is more than a float holds."""
    return math.exp(loss) if loss < 709 else math.inf


def token_remarks(facts: Mapping[str, Mapping[str, float]], unit: str) -> list[str]:
    """Say in one line what the losses are where every token weighs the same: long samples weigh more than short ones.

    >>> token_remarks({"a": {"loss": 2.0, "perplexity": 7.389}}, "nats")
    ['where each token weighs the same, not each sample: a 2 nats (perplexity 7.389)']
    """
    shown = [
        f"{name} {one['loss']:.4g} {unit} (perplexity {one['perplexity']:.4g})"
        for name, one in list(facts.items())[:MOST_SHOWN]
    ]
    return [f"where each token weighs the same, not each sample: {', '.join(shown)}"] if shown else []


ENOUGH = 0.01  # the share of a loss by which re-estimated statistics must mend it to be worth a line


def reestimated(end: Endpoint) -> float | None:
    """Return an endpoint's loss with its BatchNorm statistics re-estimated; None where there is nothing to do it by."""
    from lmccheck.evaluate.batchnorm import tracked
    from lmccheck.evaluate.evaluator import Evaluator

    if not tracked(end.network.module) or end.network.calibration is None:
        return None
    evaluator = Evaluator(end.network, end.theta)
    return evaluator.measure(evaluator.weights(end.theta), reestimate=True, label=end.checkpoint.label).loss


def stale_statistics(network: Network, loss: float, mended: float) -> list[str]:
    """Say that BatchNorm statistics are not those of the weights, where re-estimation mends a loss; else nothing."""
    if network.calibration is None or mended >= loss - ENOUGH * abs(loss):
        return []
    return [
        f"its BatchNorm statistics are not those of its weights: re-estimated on {network.calibration.samples} "
        f"calibration samples its loss is {mended:.4g}"
    ]


def precision_of(evaluator: Evaluator) -> str:
    """Return the dtype that an evaluator computes in, by its name."""
    return str(evaluator.dtype).removeprefix("torch.")
