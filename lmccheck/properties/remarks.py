"""What every property measures of a pair's endpoints and remarks about its data, worded once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmccheck.finding import End

if TYPE_CHECKING:
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.network.network import Network
    from lmccheck.network.pair import ModelPair
    from lmccheck.store.data import Data

FITTED = "calibration and evaluation data are the same: what is measured was also fitted to"


def data_remarks(network: Network) -> list[str]:
    """Return what is to be said of the data: nothing, or that a verdict is measured on what was fitted to."""
    from lmccheck.store.trees import equal

    calibration, data = network.calibration, network.data
    if calibration is None or calibration.samples != data.samples or len(calibration.batches) != len(data.batches):
        return []
    pairs = zip(calibration.batches, data.batches, strict=True)
    return [FITTED] if all(equal(one.inputs, other.inputs) for one, other in pairs) else []


def calibration_remarks(what: str, facts: Mapping[str, Any]) -> list[str]:
    """Say where a search looked at some of the calibration samples only; ``facts`` are those of an alignment.

    >>> calibration_remarks("best", {"calibration_samples": {"of": 3000, "barriers": 2048, "activations": 3000}})
    ['best looked at some of the 3000 calibration samples only: 2048 for barriers']
    """
    maps = facts.get("maps", {})
    fewer: dict[tuple[int, int], dict[str, None]] = {}
    for part in (facts, facts.get("chosen_facts", {}), maps, maps.get("permutation", {})):
        seen = part.get("calibration_samples", {})
        for purpose, count in seen.items():
            if isinstance(count, int) and count < seen["of"]:
                fewer.setdefault((seen["of"], count), {})[purpose] = None
    counts = "; ".join(f"{count} for {', '.join(purposes)}" for (_, count), purposes in fewer.items())
    return [f"{what} looked at some of the {max(fewer)[0]} calibration samples only: {counts}"] if fewer else []


def batchnorm_remark(network: Network) -> str:
    """Say that BatchNorm was re-estimated, since it has to be done to what is shipped, too."""
    samples = network.calibration.samples if network.calibration else 0
    return f"BatchNorm re-estimated at every point on {samples} calibration samples (do so in the merged model)"


def measured_on(data: Data) -> str:
    """Return what a failure's text calls the data."""
    return f"{data.origin} ({data.samples} samples)"


def measured_endpoints(pair: ModelPair, evaluator: Evaluator) -> tuple[End, End]:
    """Measure a pair's original endpoints with their own statistics. Raises SourceError where a loss is not finite."""
    ends = []
    for side, end in (("a", pair.a), ("b", pair.b)):
        found = evaluator.endpoint(end.theta, f"endpoint {side}", end.checkpoint.label)
        ends.append(End(side, found.loss, found.error))
    return ends[0], ends[1]


def precision_of(evaluator: Evaluator) -> str:
    """Return the dtype that an evaluator computes in, by its name."""
    return str(evaluator.dtype).removeprefix("torch.")
