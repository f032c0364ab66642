"""A fail that is settled before everything is measured: who may ask for it, and what is said of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lmccheck.errors import SourceError
from lmccheck.finding import Failure, Finding, Seen
from lmccheck.properties.remarks import TOGETHER, measured_on

if TYPE_CHECKING:
    from lmccheck.data.load import Data
    from lmccheck.evaluate.early import Settled, Tried
    from lmccheck.evaluate.evaluator import Measured
    from lmccheck.network.network import Network

NAMED = {1e-3: "thousand", 1e-6: "million", 1e-9: "billion"}


def odds(error: float) -> str:
    """Return a small probability in words.

    >>> odds(1e-6), odds(0.01), odds(2e-6)
    ('1 in a million', '1 in 100', '1 in 500,000')
    """
    return f"1 in a {NAMED[error]}" if error in NAMED else f"1 in {1 / error:,.0f}"


def require_bounded(network: Network, *ends: Measured) -> None:
    """Raise SourceError for a loss that may be negative for all that is known: no bet on its mean is exact.

    Nor is one on losses of samples that depend on what they are run with. ``ends``: what endpoints were measured to
    lose, which may show that it is not what it says.
    """
    from lmccheck.evaluate.early import require_none_negative

    loss = network.loss
    if network.mixing and network.data.rebatch:
        raise SourceError(
            f"early_fail: {TOGETHER.format(network.mixing)}, expected losses that do not; mend: give batches of your "
            "own, which are drawn whole, or leave early_fail out"
        )
    if loss.lower == 0:
        for found in ends:
            require_none_negative(loss.name, network.data, found.losses.numpy(), "an endpoint")
        return
    got = "does not say that it is never negative" if loss.lower is None else f"says lower = {loss.lower:g}"
    raise SourceError(
        f"early_fail: the loss {loss.name!r} {got}, expected its attribute lower = 0; mend: give the function "
        "`lower = 0` if it has no negative values, or leave early_fail out"
    )


@dataclass(frozen=True)
class Wanted:
    """The ``error`` at which a check may fail early, and the seed of the order in which samples are drawn."""

    error: float
    seed: int


@dataclass(frozen=True)
class Early:
    """A settled fail: what came of drawing, at which ``error``; ``value`` and ``figure_of`` are of an estimated mean.

    The figure is what the limit is about, such as a loss, the value how far it is above a chord or a reference.
    """

    tried: Tried
    settled: Settled
    error: float
    value_of: Callable[[float], float]
    figure_of: Callable[[float], float] = float

    @property
    def figure(self) -> float:
        """The figure at the place, an estimate."""
        return self.figure_of(self.settled.mean)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the value; its upper end is infinite where values have no bound."""
        low, high = self.settled.interval
        return self.value_of(low), self.value_of(high)

    @property
    def known(self) -> str:
        """How the value is known, in a clause."""
        found = self.settled
        unlikely = f"a wrong fail is less likely than {odds(self.error)}"
        return f"settled after {found.after:,} of {found.of:,} samples ({unlikely})"

    @property
    def remark(self) -> str:
        """What belongs beside the value."""
        found, (low, high) = self.settled, self.interval
        sure = f"at least {low:.4g}" if math.isinf(high) else f"from {low:.4g} to {high:.4g}"
        first = "which" if found.after == found.drawn else f"of which the first {found.after:,}"
        return f"an estimate from the {found.drawn:,} samples drawn, {first} settled it; with 95 % confidence {sure}"

    def finding(self, found: Finding, data: Data, lacking: str) -> Finding:
        """Return a finding that holds the value, as the fail that it is; ``lacking`` was not measured."""
        spent = self.tried.samples
        facts = {
            "error": self.error,
            "after": self.settled.after,
            "drawn": self.settled.drawn,
            "of": self.settled.of,
            "tried": self.tried.places,
            "samples_drawn": spent,
            "not_measured": lacking,
        }
        return replace(
            found,
            value=self.value_of(self.settled.mean),
            interval=self.interval,
            verdict="fail",
            known=self.known,
            worst_loss=self.figure,
            evaluations=found.evaluations + math.ceil(spent / data.samples),
            facts={**found.facts, "samples": data.samples, "early": facts},
        )

    def failure(self, found: Finding, subject: str, what: str, measured: str, data: Data, **more: Any) -> Failure:
        """Return why it fails, saying that the value is an estimate and what was not measured."""
        place = self.settled.place.label
        remarks: Sequence[str] = more.pop("remarks", ())
        lacking = found.facts["early"]["not_measured"]
        return Failure(
            subject,
            what,
            measured,
            place,
            measured_on(data),
            [Seen(found.value, f"at {place}")],
            "places judged",
            [self.remark, *remarks],
            diagnosis=[
                f"{self.known}; not measured: {lacking}; mend, to see them: early_fail = false",
                *more.pop("diagnosis", ()),
            ],
            **more,
        )
