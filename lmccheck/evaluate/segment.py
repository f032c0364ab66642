"""The networks on a line between two endpoints, mended: BatchNorm statistics taken afresh, or REPAIR as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lmccheck.errors import LmcError, nearest
from lmccheck.evaluate.batchnorm import fresh_statistics
from lmccheck.evaluate.evaluator import Evaluator, Measured
from lmccheck.evaluate.repair import Repair
from lmccheck.symmetry.discover import Traced

REPAIRS = ("none", "bn", "repair")


def require_repair(method: Any, what: str) -> None:
    """Raise LmcError, beginning with ``what``, unless ``method`` is one of REPAIRS."""
    if method not in REPAIRS:
        near = nearest(method, REPAIRS) if isinstance(method, str) else ""
        raise LmcError(f"{what}: repair = {method!r}{near}; expected one of {list(REPAIRS)}")


class Segment:
    """The networks between θ_A and a θ_B, mended one way: what is measured at a t is what is handed out at it.

    ``repair``: ``none`` (interpolated BatchNorm statistics stay), ``bn`` (they are re-estimated at every t, both ends
    included) or ``repair`` (REPAIR of every other layer where 0 < t < 1, then ``bn``), which needs the traced network.
    ``beside``, a segment from the same θ_A, lends what it knows of it.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        theta_a: Mapping[str, Tensor],
        theta_b: Mapping[str, Tensor],
        repair: str,
        derived: Traced | None = None,
        beside: Segment | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.method = repair
        self.first, self.second = evaluator.weights(theta_a), evaluator.weights(theta_b)
        self._line = evaluator.line(self.first, self.second)
        self.reestimates = repair != "none" and evaluator.batchnorms > 0
        if self.reestimates:
            evaluator.require_calibration()
        self._repair: Repair | None = None
        if repair == "repair":
            if derived is None:
                raise LmcError("repair = 'repair' needs the traced network")
            shared = beside._repair if beside is not None else None
            self._repair = Repair(evaluator.network, derived, self.first, self.second, shared)

    def weights(self, t: float) -> Mapping[str, Tensor]:
        """Return θ_t on the device, in the working dtype; BatchNorm statistics are still the interpolated ones."""
        between = self._line.at(t)
        return between if self._repair is None else self._repair(dict(between), t)

    def measure(self, t: float) -> Measured:
        """Return the losses at t on the evaluation data."""
        label = f"the network at t = {t:.4g}"
        return self.evaluator.measure(self.weights(t), reestimate=self.reestimates, label=label)

    def merged(self, t: float) -> dict[str, Tensor]:
        """Return what ``measure(t)`` evaluates: θ_t with its BatchNorm statistics, in the working dtype.

        The count of batches that a BatchNorm has seen is left as it was interpolated.
        """
        weights = dict(self.weights(t))
        data = self.evaluator.network.calibration
        if self.reestimates and data is not None:
            weights.update(fresh_statistics(self.evaluator.runner, weights, self.evaluator.calibration, data.origin))
        return weights

    def facts(self) -> dict[str, Any]:
        """Return what a report says of the mending; JSON-able."""
        return {"method": self.method, **(self._repair.facts() if self._repair is not None else {})}
