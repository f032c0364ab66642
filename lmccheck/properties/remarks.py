"""What every property has to remark about a pair, worded once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lmccheck.errors import SourceError, shown_path

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.evaluate.evaluator import Evaluator, Measured
    from lmccheck.network.pair import ModelPair

FITTED = "calibration and evaluation data are the same: what is measured was also fitted to"


def data_remarks(pair: ModelPair) -> list[str]:
    """Return what is to be said of a pair's data: nothing, or that a verdict is measured on what was fitted to."""
    calibration, data = pair.calibration, pair.data
    if calibration is None or calibration.samples != data.samples or len(calibration.batches) != len(data.batches):
        return []
    from lmccheck.store.trees import equal

    pairs = zip(calibration.batches, data.batches, strict=True)
    return [FITTED] if all(equal(one.inputs, other.inputs) for one, other in pairs) else []


def measured_endpoint(evaluator: Evaluator, theta: Mapping[str, Tensor], side: str) -> Measured:
    """Measure endpoint ``side`` (a or b) with its own statistics. Raises SourceError when its loss is not finite."""
    return evaluator.endpoint(theta, f"endpoint {side}", _shown(evaluator.pair, side))


def require_finite(pair: ModelPair, side: str, loss: float) -> None:
    """Raise SourceError unless an endpoint's loss is a finite number."""
    if not math.isfinite(loss):
        raise SourceError(
            f"{_shown(pair, side)}: its {pair.loss.name} on {pair.data.origin} is "
            f"{loss}, expected a finite loss; mend: check the checkpoint and the loss"
        )


def _shown(pair: ModelPair, side: str) -> str:
    """Return what messages call an endpoint: its file, or the state dict of that side."""
    path = pair.description["files"][side]["path"]
    return shown_path(path) if path else f"state dict {side}"
