"""What an alignment method is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lmccheck.data.load import Data
from lmccheck.errors import SourceError
from lmccheck.network.pair import ModelPair
from lmccheck.symmetry.discover import Traced
from lmccheck.symmetry.spec import Permutation, PermutationSpec


@dataclass(frozen=True)
class Problem:
    """A pair to align, with its network's verified permutation spec, and a seed."""

    pair: ModelPair = field(repr=False)
    seed: int = 0

    @property
    def spec(self) -> PermutationSpec:
        """The permutation spec, verified before use."""
        return self.pair.network.spec

    @property
    def derived(self) -> Traced | None:
        """The traced network; None where the spec was handed in."""
        return self.pair.network.traced

    def calibration(self, method: str) -> Data:
        """Return the calibration data; raise SourceError where there is none."""
        if self.pair.calibration is None:
            raise SourceError(
                f"pair {self.pair.name}: align = {method!r} needs calibration data and none is given; mend: give "
                "`calibration`, for example the training data, or use align = 'weight-matching'"
            )
        return self.pair.calibration

    def traced(self, method: str) -> Traced:
        """Return the traced network; raise UnsupportedArchitecture where the spec was handed in instead."""
        return self.pair.network.trace_for(
            f"pair {self.pair.name}: align = {method!r} looks at activations in", "use align = 'weight-matching'"
        )


@dataclass(frozen=True)
class Found:
    """A method's answer: the permutation of θ_B, the objective it maximised, and JSON-able facts for the report."""

    permutation: Permutation = field(repr=False)
    objective: float
    facts: dict[str, Any]


Method = Callable[[Problem], Found]
