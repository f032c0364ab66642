"""Connectivity layer by layer: may every layer of a merge have a coefficient of its own?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmccheck.curves import Bars
from lmccheck.errors import LmcError
from lmccheck.finding import Compared, End, Failure, Finding, Seen, Where
from lmccheck.properties.advice import APART, maps_beyond, other_alignment
from lmccheck.properties.registry import check
from lmccheck.properties.remarks import batchnorm_remark, end_of, measured_on, own_measurements, precision_of
from lmccheck.properties.settings import Align, Beyond, BoxRepair, Examples, Limit, Profile, Seed

if TYPE_CHECKING:
    from lmccheck.alignment.api import Alignment
    from lmccheck.evaluate.box import Box
    from lmccheck.evaluate.evaluator import Measured
    from lmccheck.network.pair import ModelPair
    from lmccheck.strategies.search import Search

EXAMPLES = {"dev": 30, "ci": 100, "thorough": 1000}  # points that are searched, by profile
SHOWN = 6  # layers whose coefficients a line says
SEARCHED = (
    "a search for the highest loss at {points} points, not a sample and no certificate: a pass does not prove that no "
    "other coefficients exceed the limit"
)


@check(
    of="pair",
    claim="L(θ(c)) − max(L(θ_A), L(θ_B)) ≤ limit, each layer l at (1−c_l)θ_A + c_l·π(θ_B) (Adilova et al. 2024)",
    quantifier="there is a π, for all c that a search came to",
    certifies="nothing beyond the points that were searched, for the π that was found",
)
def box_connectivity(
    pair: ModelPair,
    *,
    align: Align = "weight-matching",
    limit: Limit = 0.05,
    examples: Examples | None = None,
    repair: BoxRepair = "bn",
    beyond: Beyond = (),
    seed: Seed = 0,
    profile: Profile = "ci",
) -> Finding:
    """Assert that the loss stays low where every layer has a coefficient of its own, not one t for all.

    value = max_c L(θ(c)) − max(L(θ_A), L(θ_B)) over the points c of [0, 1]^layers that were searched, with L the mean
    loss on the pair's evaluation data, and those of the *original* endpoints. A layer is what one module holds itself;
    those in which the endpoints agree are none. ``examples``: how many points are searched, by default 30, 100 or 1000
    in the profiles dev, ci and thorough: some of the line, some corners, then what Hypothesis draws towards the highest
    loss; the same seed draws the same. Where one exceeds the limit, the simplest that does is looked for among as many
    more: fewest layers, then 1/2, 1, quarters. Both are then measured again, exactly. ``repair``: ``bn`` re-estimates
    BatchNorm statistics on calibration data at every point, ``none`` interpolates them. ``align``, ``beyond``,
    ``limit``: as in ``linear_connectivity``.

    ``details`` hold ``worst_coefficients`` (zeros, θ_A's layers, left out), ``simplest`` with its height, ``layers``,
    ``points`` and more; ``barrier_naive`` is what the same search finds with nothing aligned. The witness is the
    Alignment. Of new data (``decide = "population"``) the line's points and the corners are asked, which no loss chose;
    the worst that was searched can only keep them from passing. What is searched is no sample of the box: a pass proves
    nothing of other points, and no share or mean is said. Raises LmcError (SourceError, SymmetryError,
    UnsupportedArchitecture) when nothing sound can be said.
    Source: Adilova et al. 2024 (layer-wise connectivity).
    """
    from lmccheck.alignment.api import align as align_pair
    from lmccheck.alignment.kept import not_worse
    from lmccheck.evaluate.box import Box
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.strategies.search import search_simplest, search_worst

    if beyond and align == "none":
        raise LmcError(f"box_connectivity: beyond = {beyond!r} with align = 'none'; mend: name an align method")
    evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
    unaligned = Box(pair, evaluator=evaluator, reestimate=repair == "bn")  # says what is missing before all else
    own = own_measurements(pair, evaluator)
    alignment = None if align == "none" else not_worse(pair, align_pair(pair, align, seed=seed, beyond=beyond))
    moved = alignment is not None and not alignment.is_identity
    box = unaligned
    if alignment is not None and moved:
        box = Box(pair, alignment.weights, evaluator=evaluator, reestimate=repair == "bn")
    worse = max(one.loss for one in own.values())
    budget = EXAMPLES[profile] if examples is None else examples
    search = search_worst(box.layers, lambda c: above(box, c, worse), seed=seed, examples=budget)
    naive = search
    if moved:
        naive = search_worst(unaligned.layers, lambda c: above(unaligned, c, worse), seed=seed, examples=budget)
    searched = Searched(pair, box, naive.worst[1], own, search, len(search.seen), align, alignment)
    found = searched.finding(limit)
    if found.judged != "pass":
        searched.simplest = search_simplest(search, found.bound, seed=seed, most=budget)
        found = searched.finding(limit)
    return found.explained(lambda: searched.failure(found))


def above(box: Box, point: Mapping[str, float], worse: float) -> float:
    """Return the loss at a point of a box above that of the worse endpoint, infinite where it is no number."""
    return _height(box.loss(point), worse)


def _height(loss: float, worse: float) -> float:
    return loss - worse if loss == loss else float("inf")


@dataclass
class Searched:
    """A box that was searched, and what is to be said of it; ``points``: how many, before any was made simpler."""

    pair: ModelPair
    box: Box
    naive: float
    own: Mapping[str, Measured]
    search: Search
    points: int
    align: str
    alignment: Alignment | None
    simplest: dict[str, float] | None = None

    @property
    def worse(self) -> float:
        """The loss of the worse endpoint."""
        return max(one.loss for one in self.own.values())

    def again(self, point: Mapping[str, float]) -> Measured:
        """Measure a point once more, whatever is remembered of it."""
        weights = self.box.weights(point)
        return self.box.evaluator.measure(weights, reestimate=self.box.reestimates, label=shown(point))

    def _bars(self, point: Mapping[str, float]) -> Bars:
        """Return the coefficient of every layer at the worst point, beside that of the simplest violation."""
        layers, name = list(self.box.layers), "worst point"
        beside = {} if self.simplest is None else {name: [self.simplest.get(layer, 0.0) for layer in layers]}
        values = {name: [point.get(layer, 0.0) for layer in layers]}
        return Bars(layers, values, beside, "layer", "coefficient", "simplest violation", limited=False)

    def finding(self, limit: float | str) -> Finding:
        """Return what was found, its highest point measured once more."""
        from lmccheck.alignment.dimension import dimension_facts
        from lmccheck.properties.line_notes import pair_notes

        point, _ = self.search.worst
        worst, middle = self.again(point), self.box.measure(dict.fromkeys(self.box.layers, 0.5))
        value, evaluator = _height(worst.loss, self.worse), self.box.evaluator
        notes = [SEARCHED.format(points=self.points), *pair_notes(self.pair, evaluator, self.alignment)]
        return Finding(
            value,
            limit,
            self.pair.loss.unit,
            endpoints=tuple(end_of(name, one) for name, one in self.own.items()),
            worst_loss=worst.loss,
            above="worse",
            merge=End("half-way in all layers", middle.loss, middle.error),
            where=Where(coefficients=point),
            curve=self._bars(point),
            naive=self.naive,
            alignment={"method": "none", **dimension_facts(self.pair)}
            if self.alignment is None
            else self.alignment.summary(),
            notes=[batchnorm_remark(self.pair.network), *notes] if self.box.reestimates else notes,
            witness=self.alignment,
            evaluations=evaluator.evaluations,
            known=f"searched: {self.points} points",
            compared=self._compared(worst),
            facts={
                "layers": list(self.box.layers),
                "points": self.points,
                "simplest": self._simplest(),
                "samples": self.pair.data.samples,
                "precision": precision_of(evaluator),
                "batchnorm": evaluator.batchnorm_summary() if self.box.reestimates else None,
            },
        )

    def _compared(self, worst: Measured) -> list[Compared]:
        """Return the points that no loss chose, beside the worse endpoint, sample by sample; and the worst of all.

        That one was chosen by these very samples: it can keep new data from passing and never makes them fail.
        """
        own = tuple(one.losses for one in self.own.values())
        fixed = [Compared(f"at {shown(c)}", self.box.per_sample(c), own) for c in self.search.fixed]
        point, _ = self.search.worst
        chosen = [] if point in self.search.fixed else [Compared(f"at {shown(point)}", worst.losses, own, fixed=False)]
        return [*fixed, *chosen]

    def _simplest(self) -> dict[str, Any] | None:
        """Return the simplest point above the limit, its loss measured once more; None where there is none."""
        if self.simplest is None:
            return None
        loss = self.again(self.simplest).loss
        return {"coefficients": self.simplest, "loss": loss, "excess": _height(loss, self.worse)}

    def failure(self, found: Finding) -> Failure:
        """Return why the box is too high."""
        how = "as they are, unaligned" if self.align == "none" else f"after {self.align}"
        simplest = found.facts["simplest"]
        point, network = found.where.coefficients or {}, self.pair.network
        used = (found.alignment or {}).get("beyond", ())
        return Failure(
            self.pair.name,
            f"its layers may not be mixed each by itself, {how}",
            "excess over the worse endpoint",
            f"{shown(point)} (every other layer a's), loss {found.worst_loss:.4g}",
            measured_on(self.pair.data),
            [Seen(height, f"at {shown(dict(key))}") for key, height in self.search.seen.items()],
            "points searched (no sample of the box)",
            [] if self.align == "none" else [f"unaligned it is {found.naive:.4g}"],
            simplest=Seen(simplest["excess"], f"at {shown(simplest['coefficients'])}"),
            next=[*other_alignment(network, self.align, found.alignment), *maps_beyond(network, self.align, used)]
            or [APART],
        )


def shown(point: Mapping[str, float]) -> str:
    """Return coefficients as code, of many the first.

    >>> shown({"fc1": 0.5, "fc2": 1.0}), shown({})
    ("{'fc1': 0.5, 'fc2': 1.0}", '{}')
    """
    if len(point) <= SHOWN:
        return repr(dict(point))
    return f"{repr(dict(list(point.items())[:SHOWN]))[:-1]}, … {len(point) - SHOWN} more}}"
