"""Verdicts about new data: beside Student's t of scipy, on losses whose numbers are known."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from scipy.stats import ttest_1samp
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import LmcError, SourceError
from lmccheck.finding import Finding

TOP = 0.5  # of the grid below, where the line is highest of its points


def root(outputs: Tensor, targets: Tensor) -> Tensor:
    """√|w·x|: concave in w, so that there is a barrier over the chord."""
    return (outputs - targets).abs().sqrt().flatten()


def inputs(samples: int, seed: int = 0) -> Tensor:
    return torch.rand(samples, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def pair(x: Tensor, **more: Any) -> Any:
    """w = 1 and w = 4: ℓ_i(t) = √((1 + 3t)·x_i), by hand."""
    a, b = ({"weight": torch.full((1, 1), w, dtype=torch.float64)} for w in (1.0, 4.0))
    return lmccheck.load_pair(
        a, b, model=partial(nn.Linear, 1, 1, bias=False), data=(x, torch.zeros_like(x)), loss=root, device="cpu", **more
    )


def heights(x: Tensor, t: float) -> Tensor:
    """D_i(t), by hand."""
    return x.sqrt().flatten() * (math.sqrt(1 + 3 * t) - (1 - t) - 2 * t)


measured = partial(lmccheck.linear_connectivity, align="none", points=3, profile="dev", certify="never")


def test_the_interval_is_students_t_widened_where_the_sample_leans() -> None:
    """One point between the ends: both ends are scipy's, and that on the side of the skewness wider by Edgeworth."""
    x = inputs(60) ** 8
    found = measured(pair(x), limit=0.2, decide="population")
    told, t = found.details["population"], ttest_1samp(heights(x, TOP).numpy(), 0.0).confidence_interval(0.9)
    assert told["student_t"] == pytest.approx([t.low, t.high], abs=1e-9)
    low, high = told["interval"]
    assert low == pytest.approx(t.low, abs=1e-9)
    assert high > t.high + 1e-6
    assert found.interval == (low, high)
    assert (told["confidence"], told["samples"], told["comparisons"], told["multiplicity"]) == (0.95, 60, 1, 1)
    assert told["asymptotic"] is True
    assert "asymptotic" in str(found.finding.known)


@pytest.mark.parametrize(("limit", "verdict"), [(0.15, "pass"), (0.05, "fail"), (0.08, "inconclusive")])
def test_a_limit_above_within_and_below_the_interval(limit: float, verdict: str) -> None:
    """The true mean of D is known: E√x times the height at ½, .0811 · .9946 by the integral over (½, 3⁄2)."""
    found = measured(pair(inputs(400)), limit=limit, decide="population")
    assert found.verdict == verdict
    true = (math.sqrt(2.5) - 1.5) * (1.5**1.5 - 0.5**1.5) / 1.5
    low, high = found.interval or (0, 0)
    assert low < true < high
    plain = measured(pair(inputs(400)), limit=limit)
    assert plain.verdict == ("pass" if plain.value <= limit else "fail")
    assert plain.interval is None
    assert plain.details["population"]["interval"] == [low, high]
    assert any("do not decide about new data" in note for note in plain.notes) == (verdict == "inconclusive")
    known = "new data: not decided" if verdict == "inconclusive" else "new data: 95 %, asymptotic"
    assert str(found.finding.known).endswith(known)


def test_what_is_not_settled_names_the_samples_that_would() -> None:
    """With as many more as it names, and not with half, the limit is outside of the interval."""
    few = inputs(100)
    found = measured(pair(few), limit=0.08, decide="population")
    needed = found.details["population"]["needed"]
    assert found.verdict == "inconclusive"
    assert f"about {needed:,} samples like these would settle it" in "\n".join(found.lines)
    for times, verdict in ((1.02, "settled"), (0.5, "inconclusive")):
        again = few.repeat(math.ceil(times * needed / len(few)), 1)
        again += 1e-6 * (torch.arange(len(again)) // len(few))[:, None]  # each a draw of its own
        now = measured(pair(again), limit=0.08, decide="population").verdict
        assert (now if now == "inconclusive" else "settled") == verdict
    never = measured(pair(few), limit=float(heights(few, TOP).mean()), decide="population")
    assert never.verdict == "inconclusive"


def test_a_limit_in_percent_goes_inside_of_the_mean() -> None:
    """D_i − p·ℓ_i of the worse end is tested: proportional here to √x, far narrower than D_i alone would be."""
    x = inputs(50) ** 4
    found = measured(pair(x), limit="5%", decide="population")
    inside = heights(x, TOP) - 0.05 * 2 * x.sqrt().flatten()
    t = ttest_1samp(inside.numpy(), 0.0).confidence_interval(1 - 2 * 0.05 / 2)  # of two ends one is enough: α/2
    assert found.details["population"]["student_t"][1] - found.limit == pytest.approx(t.high, abs=1e-9)
    assert found.verdict == "pass"


def test_a_fail_counts_the_points_and_a_pass_does_not() -> None:
    """Seven points between the ends: the lower bound at α/7, the upper one at α."""
    x = inputs(80)
    found = measured(pair(x), limit=0.08, decide="population", points=9)
    told = found.details["population"]
    assert (told["multiplicity"], told["left_out"]) == (7, 0)
    every = [ttest_1samp(heights(x, k / 8).numpy(), 0.0) for k in range(1, 8)]
    assert told["student_t"] == pytest.approx(
        [
            max(t.confidence_interval(1 - 2 * 0.05 / 7).low for t in every),
            max(t.confidence_interval(0.9).high for t in every),
        ],
        abs=1e-9,
    )


def test_points_that_were_refined_on_the_same_samples_are_left_out_of_a_fail() -> None:
    """In profile ci four points are, and the multiplicity is that of the grid."""
    told = measured(pair(inputs(80)), limit=0.08, points=5, profile="ci").details["population"]
    assert (told["comparisons"], told["multiplicity"], told["left_out"]) == (7, 3, 4)


def test_samples_that_were_fitted_to_void_it() -> None:
    """One that is calibration data, too, is an error where the population is asked for, and said where it is not."""
    x = inputs(30)
    both = pair(x, calibration=(x[:1], torch.zeros(1, 1, dtype=torch.float64)))
    with pytest.raises(SourceError, match=r"1 of 30 evaluation samples are calibration data, too; mend: "):
        measured(both, limit=1.0, decide="population")
    assert "calibration data" in measured(both, limit=1.0).details["population"]["why"]


def test_samples_that_are_repeated_count_once() -> None:
    """Ten times 30 samples are no 300: bounds are those of 30, as scipy has them."""
    x = inputs(30)
    found = measured(pair(x.repeat(10, 1)), limit=1.0, decide="population")
    assert any(
        note.startswith("270 of 300 samples repeat another one") and note.endswith("count as 30")
        for note in found.notes
    )
    low, high = bound(heights(x, TOP), 0.95)
    middle, wider = (low + high) / 2, math.sqrt(299 / 300 * 30 / 29)  # the deviation of 300 divides by 299
    expected = [middle + (end - middle) / wider for end in (low, high)]
    assert found.details["population"]["student_t"] == pytest.approx(expected, abs=1e-9)
    limit = (middle + expected[1]) / 2  # which 300 samples would settle
    assert measured(pair(x.repeat(10, 1)), limit=limit, decide="population").verdict == "inconclusive"
    assert not any(
        "repeat another" in note for note in measured(pair(inputs(30)), limit=1.0, decide="population").notes
    )


def test_other_answers_to_one_input_are_other_samples() -> None:
    from lmccheck.data.load import Batch, Data
    from lmccheck.data.samples import distinct_samples

    x, y = torch.ones(10, 1), torch.arange(10)
    assert [distinct_samples(Data((Batch(x, each),), "data", True)) for each in (y, y // 2, 0 * y)] == [10, 5, 1]


@pytest.mark.parametrize("samples", [1, 2, 19])
def test_few_samples_decide_nothing(samples: int) -> None:
    """No spread, or one that says nothing of how they lean, however far away the limit is."""
    found = measured(pair(inputs(samples)), limit=5.0, decide="population")
    assert found.verdict == "inconclusive"
    assert "95 % bounds need 20 samples" in found.lines[0]
    assert ("one sample has no spread" in "\n".join(found.lines)) == (samples == 1)


def bound(values: Tensor, confidence: float) -> tuple[float, float]:
    """Both bounds by Student's t, each with this confidence, as scipy has them."""
    found = ttest_1samp(values.numpy(), 0.0).confidence_interval(2 * confidence - 1)
    return found.low, found.high


def merge(x: Tensor) -> Any:
    """w = 1 and w = 4 on targets 0, and their mean: √2.5·x beside √x and 2√x."""
    parents = {n: {"weight": torch.full((1, 1), w, dtype=torch.float64)} for n, w in (("one", 1.0), ("four", 4.0))}
    return lmccheck.load_merge(
        parents, {"uniform": True}, model=partial(nn.Linear, 1, 1, bias=False), data=(x, torch.zeros_like(x)),
        loss=root, device="cpu",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("against", "ends", "confidences"),
    [
        ("better-parent", (1.0, 2.0), (0.975, 0.95)),  # against each: a fail counts both
        ("worse-parent", (1.0, 2.0), (0.95, 0.975)),  # against any: a pass does
        ("mean", (1.5,), (0.95, 0.95)),
        ("four", (2.0,), (0.95, 0.95)),
    ],
)
def test_a_merge_beside_its_parents(against: str, ends: tuple[float, ...], confidences: tuple[float, float]) -> None:
    """Which of two is better is not known of new data: each is tested, or any, as the reference asks."""
    x = inputs(70) ** 2
    found = lmccheck.merged_loss(merge(x), against=against, limit=0.1, decide="population")
    roots, height = x.sqrt().flatten(), math.sqrt(2.5)
    every = [[bound((height - end) * roots, confidence) for end in ends] for confidence in confidences]
    choose = min if against == "worse-parent" else max
    expected = [choose(low for low, _ in every[0]), choose(high for _, high in every[1])]
    assert found.details["population"]["student_t"] == pytest.approx(expected, abs=1e-6)
    assert found.verdict == ("fail" if against == "better-parent" else "pass")


def test_parts_are_judged_beside_the_parent_that_all_data_chose() -> None:
    """Class 1 has targets 3: there the parent that is worse over all is the better one, and its bounds are asked."""
    x = torch.cat([inputs(60), inputs(60, seed=1)])
    kinds = torch.arange(120) // 60
    parents = {n: {"weight": torch.full((1, 1), w, dtype=torch.float64)} for n, w in (("one", 1.0), ("four", 4.0))}
    made = lmccheck.load_merge(
        parents, {"uniform": True}, model=partial(nn.Linear, 1, 1, bias=False), data=(x, kinds), device="cpu",
        loss=lambda out, kind: torch.where(kind == 1, 3 * x.new_tensor(4.0) - out[:, 0], 30 * out[:, 0]),
    )  # fmt: skip
    found = lmccheck.merged_loss(made, against="worse-parent", by="class", limit=1.0, decide="population")
    worse_on_one = 1.5 * x[60:].flatten()  # 12 − 2.5·x beside 12 − 4·x of "four", which 30·x makes the worse one
    assert found.value == pytest.approx(float(worse_on_one.mean()), rel=1e-6)
    assert found.details["population"]["student_t"][1] == pytest.approx(bound(worse_on_one, 0.95)[1], abs=1e-6)
    assert found.verdict != "pass"


def test_samples_that_weigh_as_many_tokens_as_they_count() -> None:
    """The mean of Σ_tokens (d − limit) a sequence decides; a limit in percent of a perplexity by its tangent."""
    from lmccheck.evaluate.metrics import Scores, exponential
    from lmccheck.finding import Compared
    from lmccheck.properties.population import _claim

    rng = torch.Generator().manual_seed(0)
    weights = torch.randint(1, 30, (50,), generator=rng).double()
    own, merged = (torch.rand(50, generator=rng, dtype=torch.float64) for _ in range(2))
    sample = _claim(Compared("here", merged, (own,), weights=weights), 0.1, 1.0).alternatives[0]
    by_hand = weights * (merged - own - 0.1)
    assert [end * float(weights.mean()) for end in sample.student(0.95)] == pytest.approx(bound(by_hand, 0.95))
    scores = Scores(merged, weights, exponential)
    assert float((scores.linear * weights).sum() / weights.sum()) == pytest.approx(scores.value)
    step = 1e-6  # the tangent, by differences: one value more by a step
    more = merged.clone()
    more[3] += step
    slope = (Scores(more, weights, exponential).value - scores.value) / step
    assert slope == pytest.approx(float(scores.value * weights[3] / weights.sum()), rel=1e-4)


def test_bounds_of_a_mean_of_tokens_are_those_of_a_ratio() -> None:
    """Fieller's: both roots of (Σ(d − s·w))² = n·t²·var(d − s·w), whatever the limit is."""
    from lmccheck.finding import Compared
    from lmccheck.properties.population import _judged

    weights = torch.arange(1.0, 21.0, dtype=torch.float64).repeat(5)
    summed = 1 + 0.01 * inputs(100).flatten()  # of a sequence, whatever its length
    for limit in (0.0, 0.3):
        each = Compared("here", summed / weights, (torch.zeros(100, dtype=torch.float64),), weights=weights)
        finding = Finding(0.1, limit, compared=(each,))
        low, high = _judged(finding, finding.compared, 0.95, 1.0).student
        t = 1.6603911560169928
        cov = torch.cov(torch.stack([summed, weights])).tolist()
        y, w = float(summed.mean()), float(weights.mean())
        a, b, c = (w * w - t * t * cov[1][1] / 100, y * w - t * t * cov[0][1] / 100, y * y - t * t * cov[0][0] / 100)
        half = math.sqrt(b * b - a * c) / a
        assert [limit + low, limit + high] == pytest.approx([b / a - half, b / a + half], abs=1e-9)


def test_errors_of_two_networks_that_agree_are_not_known_to_agree_everywhere() -> None:
    """No sample of 100 differs: up to about 3 in 100 of new ones may; 1,000 are enough for a limit of one point."""
    made = {n: {"0.weight": torch.eye(2), "0.bias": torch.zeros(2)} for n in "ab"}
    verdicts = {}
    for count in (100, 1000):
        x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
        given = {"model": partial(nn.Sequential, nn.Linear(2, 2)), "data": (x, x.argmax(1)), "loss": "cross_entropy"}
        one = lmccheck.load_merge(made, {"uniform": True}, device="cpu", **given)
        found = lmccheck.merged_loss(one, metric="error", limit=1.0, decide="population")
        verdicts[count] = found.verdict
    assert verdicts == {100: "inconclusive", 1000: "pass"}


def test_a_set_its_mean_and_two_widths_are_judged_alike() -> None:
    """Three models of known losses; the mean of all beside theirs, every pair beside its own chord."""
    x = inputs(90)
    models = [{"weight": torch.full((1, 1), w, dtype=torch.float64)} for w in (1.0, 4.0, 9.0)]
    given = {"model": partial(nn.Linear, 1, 1, bias=False), "data": (x, torch.zeros_like(x)), "loss": root}
    of_set = lmccheck.load_set(models, device="cpu", **given)
    roots = x.sqrt().flatten()
    mean = lmccheck.set_connectivity(of_set, over="mean", align="none", limit=0.2, decide="population")
    expected = bound((math.sqrt(14 / 3) - 2) * roots, 0.95)
    assert mean.details["population"]["student_t"] == pytest.approx(expected, abs=1e-6)
    pairs = lmccheck.set_connectivity(of_set, align="none", limit=0.2, points=3, decide="population")
    tops = [math.sqrt((a + b) / 2) - (math.sqrt(a) + math.sqrt(b)) / 2 for a, b in ((1, 4), (1, 9), (4, 9))]
    low, high = (
        max(bound(top * roots, 1 - 0.05 / 3)[0] for top in tops),
        max(bound(top * roots, 0.95)[1] for top in tops),
    )
    assert pairs.details["population"]["student_t"] == pytest.approx([low, high], abs=1e-6)
    assert pairs.details["population"]["where"].endswith("between model 0 and model 2")


def test_between_the_points_by_bounds_of_every_sample() -> None:
    """v·|w·x| for |x|, w from 1 to 2, v from 1 to ½: what is shown of all t is above a dense sample's, and near it."""
    a, b = (
        {"0.weight": torch.tensor([[w], [-w]], dtype=torch.float64), "2.weight": torch.full((1, 2), v).double()}
        for w, v in ((1.0, 1.0), (2.0, 0.5))
    )
    x = torch.randn(300, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = partial(nn.Sequential, nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    given = {"model": model, "data": (x, x.abs()), "loss": "mse", "device": "cpu"}
    ask = partial(lmccheck.linear_connectivity, lmccheck.load_pair(a, b, **given), align="none")
    found = ask(limit=0.05, certify="always", decide="population")
    assert found.verdict == "pass"
    everywhere = found.details["population"]["all_t"]
    assert everywhere["holds"] is True
    assert "over all t at 95 %" in str(found.finding.known)
    heights = [((1 + k / 200) * (1 - k / 400) - 1) ** 2 * x.square().flatten() for k in range(1, 200)]
    dense = max(bound(height, 0.95)[1] for height in heights)
    assert dense <= everywhere["bound"] <= dense + 0.01
    points = found.details["population"]["interval"][1]
    tight = ask(limit=(points + 1e-9), certify="always", decide="population", profile="dev")
    assert tight.verdict == "inconclusive"
    assert "not certified between them" in "\n".join(tight.lines)


def test_early_fail_and_what_is_no_mean_of_samples_are_refused() -> None:
    """One line each, with the mend."""
    from lmccheck.finding import Finding
    from lmccheck.properties.population import decided

    asked = {"decide": "population", "confidence": 0.95}
    with pytest.raises(LmcError, match=r"^linear_connectivity: early_fail with decide = \"population\": .*; mend: "):
        measured(pair(inputs(9)), limit=1.0, early_fail=1e-6, decide="population")
    for ask in (lmccheck.shipped, lmccheck.merge_laws):
        with pytest.raises(LmcError, match=r"^\w+: decide = 'population'; expected \"data\" .* judges no loss"):
            ask(merge(inputs(9)), decide="population")
    with pytest.raises(LmcError, match=r"^x: decide = \"population\": what it finds is no mean .*; mend: "):
        decided("x", None, Finding(0.0, 1.0), asked, {})


def test_settings_that_are_wrong_are_one_line() -> None:
    """Confidence 1 would need all that there is."""
    with pytest.raises(LmcError, match=r"confidence = 1.0; expected a number from 0.5"):
        measured(pair(inputs(9)), limit=1.0, confidence=1.0)
    with pytest.raises(LmcError, match=r"decide = 'sample'; expected \"data\""):
        measured(pair(inputs(9)), limit=1.0, decide="sample")


def test_a_box_is_judged_by_its_line_and_corners_and_hindered_by_the_worst_that_was_searched() -> None:
    """√(w·v·|x|), two layers from 1 to 2 or 4: bounds are those of the points that no loss chose, scipy's at α/m."""
    a, b = ({"0.weight": torch.full((1, 1), w).double(), "1.weight": torch.ones(1, 1).double() * v}
            for w, v in ((1.0, 4.0), (2.0, 1.0)))  # fmt: skip
    x = inputs(80)
    model = partial(nn.Sequential, nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    given = {"model": model, "data": (x, torch.zeros_like(x)), "loss": root, "device": "cpu"}
    ask = partial(lmccheck.box_connectivity, lmccheck.load_pair(a, b, **given), align="none", examples=12)
    found = ask(limit=1.0, decide="population")
    fixed = [(t, t) for t in (0.25, 0.5, 0.75)] + [(1.0, 0.0), (0.0, 1.0)]  # and (1, 1), of 12 / 4 corners
    rest = [(1.0, 1.0)] if found.details["population"]["multiplicity"] == 6 else []
    own = [math.sqrt(w * v) * x.sqrt().flatten() for w, v in ((1, 4), (2, 1))]

    def lost(c: tuple[float, float]) -> Tensor:
        return math.sqrt((1 + c[0]) * (4 - 3 * c[1])) * x.sqrt().flatten()

    def ends(c: tuple[float, float], confidence: float, side: int, each: int) -> float:
        return min(bound(lost(c) - other, 1 - (1 - confidence) / each)[side] for other in own)

    points = [*fixed, *rest]
    high = max(ends(c, 0.95, 1, 2) for c in points)
    low = max(ends(c, 0.95, 0, len(points)) for c in points)
    told = found.details["population"]
    assert told["multiplicity"] == len(points)
    assert told["student_t"][0] == pytest.approx(low, abs=1e-6)
    assert told["student_t"][1] >= high - 1e-6
    assert found.details["worst_coefficients"] == {"0": 1.0}  # a corner: nothing was searched that is worse
    assert told["student_t"][1] == pytest.approx(high, abs=1e-6)
    assert (found.verdict, ask(limit=0.5 * low, decide="population").verdict) == ("pass", "fail")


def test_the_worst_that_a_box_search_came_to_keeps_it_from_passing_and_never_makes_it_fail() -> None:
    """Two layers cost only where both are near ½ and ¾: no point of the line, no corner."""
    from networks.switches import hill, switches

    given = switches(4, lambda c: 1e-3 + 1e-4 * c.sum() + hill(c[0]) * hill(c[3] + 0.2) * (c[1] > 0.9), inputs(40))
    found = lmccheck.box_connectivity(given, align="none", limit=0.05, examples=200, decide="population")
    assert found.details["population"]["left_out"] == 1
    assert found.value > 0.05
    assert found.verdict == "inconclusive"
    assert "was chosen by these samples: only other ones can refute it" in "\n".join(found.lines)


def test_a_path_says_nothing_of_new_data_between_its_points() -> None:
    """A finding without bounds between places passes by them, and not where all that lies between was asked for."""
    from lmccheck.finding import Compared
    from lmccheck.properties.population import decided

    made, x = pair(inputs(60)), inputs(60).flatten()
    finding = Finding(0.0, 1.0, compared=(Compared("at breakpoint 1", x / 9, (x,)),), known="certified")
    asked = {"decide": "population", "confidence": 0.95}
    assert decided("verify_path", made, finding, asked, {"certify": "auto"}).judged == "pass"
    found = decided("verify_path", made, finding, asked, {"certify": "always"})
    assert found.judged == "inconclusive"
    assert "not certified between them: nothing is known between the points" in "\n".join(map(str, found.failure or ()))


def test_a_sample_of_the_largest_weight_reaches_as_far_as_its_weight() -> None:
    """Losses that differ by at most 1, one of 40 samples weighs 20 times as much: what was not seen counts so far."""
    from lmccheck.finding import Compared
    from lmccheck.properties.population import _claim

    weights = torch.ones(40, dtype=torch.float64)
    weights[0] = 20.0
    zero = torch.zeros(40, dtype=torch.float64)
    (sample,) = _claim(Compared("here", zero, (zero,), weights=weights, reach=1.0), 0.0, 1.0).alternatives
    assert sample.reach == pytest.approx(20 / (59 / 40))
