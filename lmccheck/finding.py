"""What a property found, as typed data: the measurement, where and how it was made, and why it fails if it does."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from lmccheck.curves import Curve as Curve
from lmccheck.curves import Drawn
from lmccheck.errors import LmcError
from lmccheck.shown import one_line

Verdict = Literal["pass", "fail", "inconclusive", "error"]
Above = Literal["chord", "worse", "own"]
LIMIT = "a number ≥ 0 in the loss's unit, or a percentage of the worse endpoint's loss such as \"5%\""
LIMIT_OF_MERGE = "a number ≥ 0 in the metric's unit, or a percentage of the reference's figure such as \"5%\""
ALONE = "model"  # what the only endpoint of a single model is called
PERCENTAGE = re.compile(r"\d+(\.\d+)?%")


def read_limit(value: Any, expected: str = LIMIT) -> float | str:
    """Return a limit as it may be given, numbers as floats. Raises ValueError for anything else."""
    if isinstance(value, str) and PERCENTAGE.fullmatch(value) and math.isfinite(float(value[:-1])):
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and 0 <= value <= sys.float_info.max:  # compared exactly, where an integer has no float
        return float(value)
    raise ValueError(expected)


def require_limit(limit: Any) -> None:
    """Raise LmcError for what is neither a limit nor None."""
    if limit is not None:
        bound_of(limit, 1.0)


def bound_of(limit: float | str, reference: float | None, expected: str = LIMIT) -> float:
    """Return a limit in the unit of what it limits; ``"5%"`` is relative to ``reference``, a loss.

    >>> bound_of("5%", 2.0), bound_of(0.05, None)
    (0.1, 0.05)
    """
    try:
        limit = read_limit(limit)
    except ValueError:
        raise LmcError(f"limit = {limit!r}; expected {expected}") from None
    if not isinstance(limit, str):
        return limit
    if reference is None:
        raise LmcError(f"limit = {limit!r}: nothing is known of which this is a share; mend: give a number")
    if not reference > 0:
        raise LmcError(
            f"limit = {limit!r}: a share of {reference:.4g}, expected a loss above 0; mend: give a number in "
            "the loss's unit"
        )
    return float(limit[:-1]) / 100 * reference


@dataclass(frozen=True)
class End:
    """A model that was compared: its name, its own mean loss, and its mean 0-1 error where the loss has one.

    ``token_loss``: of tokens, the mean over all that count, whichever sample they are in.
    """

    name: str
    loss: float
    error: float | None = None
    token_loss: float | None = None


MIXED = 2  # layers that a column names


@dataclass(frozen=True)
class Where:
    """Where the worst was seen: a point of a line, a segment of a path, an endpoint, a layer, models, a seed, data.

    Of files that are compared it is a ``tensor``, of layers that are mixed each by itself their ``coefficients``.
    """

    t: float | None = None
    segment: str | None = None
    side: str | None = None
    layer: str | None = None
    pair: tuple[str, ...] | None = None
    seed: int | None = None
    data: str | None = None
    tensor: str | None = None
    coefficients: Mapping[str, float] | None = None

    def __str__(self) -> str:
        """Return it short enough for a column.

        >>> str(Where(t=0.5)), str(Where(side="b", layer="fc1")), str(Where(segment="3a", layer="fc1"))
        ('t=0.5', 'b:fc1', 'seg=3a layer=fc1')

        Of a single model its only endpoint goes without saying.

        >>> str(Where(side="model", layer="fc1"))
        'layer=fc1'

        Of many layers that are mixed the first are named.

        >>> str(Where(coefficients={"fc1": 0.5, "fc2": 1.0, "fc3": 1.0, "fc4": 0.25}))
        'fc1=0.5 fc2=1 and=2 more'
        """
        if self.pair:
            return ", ".join(self.pair)
        if self.side and self.side != ALONE:
            return f"{self.side}:{self.layer}" if self.layer else self.side
        t = None if self.t is None else f"{self.t:.4g}"
        parts = {"t": t, "seg": self.segment, "layer": self.layer, "seed": self.seed, "on": self.data}
        parts |= {"in": self.tensor, **self._mixed()}
        return " ".join(f"{name}={part}" for name, part in parts.items() if part is not None)

    def _mixed(self) -> dict[str, str]:
        given = list((self.coefficients or {}).items())
        more = {"and": f"{len(given) - MIXED} more"} if len(given) > MIXED else {}
        return {layer: f"{value:.4g}" for layer, value in given[:MIXED]} | more


PLACES = {"worst_t": "t", "worst_segment": "segment", "worst_side": "side"}  # keys of details, fields of Where
PLACES |= {
    "worst_layer": "layer",
    "worst_pair": "pair",
    "worst_seed": "seed",
    "worst_data": "data",
    "worst_tensor": "tensor",
    "worst_coefficients": "coefficients",
}


@dataclass(frozen=True)
class Matrix:
    """Barriers between all models of a set, (n, n) as aligned and as given, and the pairs of names above the limit."""

    names: list[str]
    aligned: list[list[float]]
    naive: list[list[float]]
    above: list[list[str]] = field(default_factory=list)
    method: str | None = None


class Seen(NamedTuple):
    """One measurement that a limit bounds, and its place ("at t = 0.5"); ``bound`` where it has a limit of its own."""

    height: float
    place: str
    bound: float | None = None


@dataclass(frozen=True)
class Failure:
    """Why something does not hold, in parts: ``subject`` is (or does) ``what``.

    ``measured`` is the measurement's name, ``remarks`` what belongs beside it; ``value`` only where it is not that of
    the finding. ``where`` describes the worst, ``data`` what it was measured on. ``seen`` is all that the limit bounds,
    ``things`` what that is called. ``beside`` belongs to the endpoints' losses. ``next``: what may help, and was not
    tried; nothing that cannot. ``diagnosis``: further lines that say why. ``simplest``: what violates the limit most
    simply, where that is not what is least above it.
    """

    subject: str
    what: str
    measured: str
    where: str
    data: str
    seen: Sequence[Seen]
    things: str
    remarks: Sequence[str] = ()
    beside: str = ""
    value: float | None = None
    next: Sequence[str] = ()
    diagnosis: Sequence[str] = ()
    simplest: Seen | None = None


@dataclass(frozen=True)
class Examined:
    """Data on which endpoints were measured: a ``network`` with these data, and the endpoints' losses.

    ``required``: names of those that what was found refers to; ``label`` is what the data are called.
    """

    network: Any = field(repr=False)
    ends: tuple[End, ...]
    required: tuple[str, ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Compared:
    """Losses of samples that the limit bounds, for verdicts on the population that the samples are from.

    ``losses``, (n,) float64 in the finding's unit, less is better, at a ``place`` ("at t = 0.5"). ``against``: (n,)
    each, what they are compared with; to be within the limit of one of them is enough. ``shares``: (n,) each, what a
    limit in percent is a share of, where that is not ``against``. ``weights``: (n,), what a sample weighs. ``fixed``:
    False for a place that was chosen by these very samples. ``reach``: how far losses can differ at most, where that is
    known. ``limit``: where it is another than the finding's. ``draw``: the endpoint, and which of its random draws.
    """

    place: str
    losses: Any = field(repr=False)
    against: tuple[Any, ...] = field(repr=False)
    shares: tuple[Any, ...] = field(default=(), repr=False)
    weights: Any = field(default=None, repr=False)
    fixed: bool = True
    reach: float | None = None
    limit: float | str | None = None
    draw: tuple[str, int] | None = None


@one_line(lambda found: f"{found.value!r} {found.unit}, limit {found.limit!r}, {found.where}")
@dataclass(frozen=True)
class Finding:
    """What a property found: ``value`` in ``unit``, to be judged against ``limit`` as it was given.

    ``reference``: the loss that a percentage refers to, by default that of the worse endpoint. ``naive``: the value
    with nothing aligned. ``curve``: what it is drawn by. ``verdict``: only where it is not simply whether value ≤
    limit. ``failure``: given where the verdict is not to pass, as data or as lines of text. ``witness``: what proves
    the finding. ``facts``: all else that a reader may want, JSON-able. ``worst_loss``: the loss itself where the worst
    was seen. ``above``: what ``value`` is measured above, the chord between the endpoints' losses, the worse of them,
    or an endpoint's own. ``merge``: the loss of a merge, by a name such as "at t = 0.5". ``of_losses``: whether the
    verdict depends on losses at all. ``examined``: where several data sets were measured on, or others than the
    network's: each, the one that the value is of first. ``known``: how the value is known, in a clause: "certified",
    "exact", "sampled at 33 points", "inner: 'embed' left whole". ``explanation``: what carries the value, as
    ``diagnose/explanation.py`` says it; plain data. ``advice``: what may help, of a failure that is lines of text.
    ``compared``: all that the limit bounds, sample by sample, all of which has to hold; by it a population is judged.
    ``not_compared``: why there is nothing of the kind, in a clause. ``everywhere``: gives the same of all that lies
    between the places of ``compared``, or why there is none; costly. ``share``: how many of each endpoint's draws have
    to hold, where the verdict is of random draws.
    """

    value: float
    limit: float | str
    unit: str = ""
    reference: float | None = None
    endpoints: tuple[End, ...] = ()
    where: Where = Where()
    naive: float | None = None
    curve: Drawn | None = None
    error_barrier: float | None = None
    matrix: Matrix | None = None
    barrier_definition: str = ""
    alignment: Mapping[str, Any] | None = None
    interval: tuple[float, float] | None = None
    verdict: Verdict | None = None
    notes: Sequence[str] = ()
    failure: Failure | Sequence[str] | None = None
    witness: Any = field(default=None, repr=False)
    evaluations: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    worst_loss: float | None = None
    above: Above | None = None
    merge: End | None = None
    of_losses: bool = True
    examined: tuple[Examined, ...] = field(default=(), repr=False)
    known: str | None = None
    advice: Sequence[str] = ()
    explanation: Mapping[str, Any] | None = field(default=None, repr=False)
    compared: Sequence[Compared] = field(default=(), repr=False)
    not_compared: str = "what it finds is no mean over samples that were drawn"
    everywhere: Callable[[], tuple[Sequence[Compared], str]] | None = field(default=None, repr=False)
    share: float | None = None

    @property
    def bound(self) -> float:
        """The limit in ``unit``."""
        worse = max((end.loss for end in self.endpoints), default=None)
        return bound_of(self.limit, worse if self.reference is None else self.reference)

    @property
    def judged(self) -> Verdict:
        """The verdict: a value that is no number never passes, nor one above the limit; one equal to it does."""
        if self.verdict not in (None, "pass"):
            return self.verdict
        return "pass" if self.value <= self.bound else "fail"

    def explained(self, why: Callable[[], Failure]) -> Finding:
        """Return the finding with why it fails, if it does; only then is that worked out."""
        return self if self.judged == "pass" else replace(self, failure=why())
