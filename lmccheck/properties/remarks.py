"""What every property measures of a pair's endpoints and remarks about its data, worded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmccheck.errors import shown_path
from lmccheck.finding import Endpoint

if TYPE_CHECKING:
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.network.pair import ModelPair
    from lmccheck.store.data import Data

FITTED = "calibration and evaluation data are the same: what is measured was also fitted to"


def data_remarks(pair: ModelPair) -> list[str]:
    """Return what is to be said of a pair's data: nothing, or that a verdict is measured on what was fitted to."""
    calibration, data = pair.calibration, pair.data
    if calibration is None or calibration.samples != data.samples or len(calibration.batches) != len(data.batches):
        return []
    pairs = zip(calibration.batches, data.batches, strict=True)
    return [FITTED] if all(_same(one.inputs, other.inputs) for one, other in pairs) else []


def batchnorm_remark(pair: ModelPair) -> str:
    """Say that BatchNorm was re-estimated, since it has to be done to what is shipped, too."""
    samples = pair.calibration.samples if pair.calibration else 0
    return f"BatchNorm re-estimated at every point on {samples} calibration samples (do so in the merged model)"


def measured_on(data: Data) -> str:
    """Return what a failure's text calls the data."""
    return f"{data.origin} ({data.samples} samples)"


def measured_endpoints(evaluator: Evaluator) -> tuple[Endpoint, Endpoint]:
    """Measure a pair's original endpoints with their own statistics. Raises SourceError where a loss is not finite."""
    pair = evaluator.pair
    ends = []
    for side, theta in (("a", pair.theta_a), ("b", pair.theta_b)):
        found = evaluator.endpoint(theta, f"endpoint {side}", shown_endpoint(pair, side))
        ends.append(Endpoint(side, found.loss, found.error))
    return ends[0], ends[1]


def shown_endpoint(pair: ModelPair, side: str) -> str:
    """Return what messages call an endpoint: its file, or the state dict of that side."""
    path = pair.description["files"][side]["path"]
    return shown_path(path) if path else f"state dict {side}"


def precision_of(evaluator: Evaluator) -> str:
    """Return the dtype that an evaluator computes in, by its name."""
    return str(evaluator.dtype).removeprefix("torch.")


def _same(one: Any, other: Any) -> bool:
    """Whether two batches' inputs are equal, in whatever containers."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(_same(x, y) for x, y in zip(one, other, strict=True))
    if hasattr(one, "equal") and hasattr(other, "shape"):
        return bool(one.shape == other.shape and one.dtype == other.dtype and one.equal(other))
    return bool(one is other)
