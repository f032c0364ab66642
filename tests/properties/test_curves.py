"""What findings are drawn by: numbers that a report shows are those that the verdict is about."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from itertools import pairwise

import jsonschema
import pytest
import torch
from networks.dropping import case
from networks.small import seeded, small_mlp
from torch import Tensor, nn

import lmccheck
from lmccheck.curves import Bars, Draws, Profile, Tasks
from lmccheck.report.formats import FORMATS, Run
from lmccheck.report.record import CheckRecord
from lmccheck.result import Result

SCHEMA = json.loads(files("lmccheck.report").joinpath("report.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pair() -> lmccheck.ModelPair:
    return case("relu")[0]


def record_of(result: Result) -> CheckRecord:
    """The record as a worker sends it, whose entry in the JSON report keeps to the schema."""
    blank = CheckRecord(*["x"] * 6, severity="fail", verdict="pass", blocking=False)
    record = CheckRecord.from_dict(json.loads(json.dumps(blank.measured(result).to_dict())))
    report = json.loads(FORMATS.get("json").render([record], Run()))
    jsonschema.validate(report["checks"][0], {"$ref": "#/$defs/check", "$defs": SCHEMA["$defs"]})
    return record


def test_a_line_travels_with_its_record(pair: lmccheck.ModelPair) -> None:
    """Points and losses of the details, also of a Result that was made by hand; nothing where there are none."""
    details = {"t": [0, 0.5, 1], "losses": [0.1, 0.6, 0.1], "naive_losses": [0.1, math.nan, 0.1]}
    curve = record_of(Result("p", "fail", 0.5, 0.1, "nats", details=details)).curve
    assert (curve["kind"], curve["t"], curve["losses"]) == ("line", [0, 0.5, 1], [0.1, 0.6, 0.1])
    assert math.isnan(curve["naive_losses"][1])
    found = lmccheck.linear_connectivity(pair, points=3, profile="dev")
    assert record_of(found).curve["losses"] == found.details["losses"]
    none: list[float] = []
    for t, losses in ((None, None), ([0, 1], {"a": []}), ([0, 1], [1.0]), (none, none)):
        details = {"t": t, "losses": losses}
        assert record_of(Result("p", "pass", 0.0, 0.1, "nats", details=details)).curve == {}


def test_the_segments_of_a_path_carry_its_largest_loss(pair: lmccheck.ModelPair) -> None:
    """Ten in order, each beginning where the last ends; the highest is what the excess is measured from."""
    found = lmccheck.ten_segment_path(pair, profile="dev")
    profile = found.finding.curve
    assert isinstance(profile, Profile)
    segments = record_of(found).curve["segments"]
    assert [part["number"] for part in segments] == list(range(1, 11))
    assert all(left["loss_end"] == right["loss_start"] for left, right in pairwise(segments))
    worse = max(found.details["loss_a"], found.details["loss_b"])
    assert max(part["max"] for part in segments) - worse == pytest.approx(found.value)


def test_what_units_cost_is_drawn_by_level(pair: lmccheck.ModelPair) -> None:
    """The largest bar is the value; without refit they stand beside; a witness that is verified has the same bars."""
    found = lmccheck.dropout_stability(pair, profile="dev")
    bars = found.finding.curve
    assert isinstance(bars, Bars)
    assert len(bars.names) == len(found.details["levels"])
    assert record_of(found).curve["values"] == bars.values
    assert max(cost for row in bars.values.values() for cost in row) == found.value
    assert dict(bars.beside) == found.details["epsilon_plain"]
    again = lmccheck.verify_dropout(pair, witness=found.witness, epsilon=1.0).finding.curve
    assert again.values["a"] == pytest.approx(bars.values["a"])
    assert lmccheck.dropout_stability(pair, profile="dev", refit=False).finding.curve.beside == {}


def test_draws_are_drawn_one_by_one(pair: lmccheck.ModelPair) -> None:
    """Masks, and noise with what of it reaches the output from each layer."""
    masks = lmccheck.noise_stability(pair, masks=9, profile="dev")
    assert isinstance(masks.finding.curve, Draws)
    assert record_of(masks).curve["values"] == {end: masks.details[end]["q"] for end in "ab"}
    noise = lmccheck.noise_stability(pair, noise="gaussian", masks=8, profile="dev")
    curve = record_of(noise).curve
    assert (curve["share"], len(curve["values"]["a"])) == (0.5, 8)
    assert list(curve["attenuation"]["a"]) == list(noise.details["gaussian"]["a"])


def head() -> nn.Module:
    return nn.Linear(3, 3)


def scaled(factor: float) -> dict[str, Tensor]:
    return {"weight": factor * torch.eye(3), "bias": torch.zeros(3)}


def test_a_merge_is_drawn_beside_its_parents_and_the_worst_that_is_allowed() -> None:
    """By hand: L = log(1 + 2·e^−s) of weights s·I; the limit is above the better parent, below it for accuracy."""
    data = torch.eye(3), torch.arange(3)
    merge = lmccheck.load_merge(
        {"x": scaled(2), "y": scaled(4)}, {"linear": {"x": 0.5, "y": 0.5}}, model=head, data=data
    )
    curve = lmccheck.merged_loss(merge, limit=0.25).finding.curve
    assert isinstance(curve, Tasks)
    (row,) = curve.rows
    assert record_of(lmccheck.merged_loss(merge, limit=0.25)).curve["rows"] == [row]
    own = {name: math.log1p(2 * math.exp(-s)) for name, s in (("x", 2), ("y", 4), ("merge", 3))}
    assert row["parents"] == pytest.approx({"x": own["x"], "y": own["y"]})
    assert (row["merge"], row["bound"]) == (pytest.approx(own["merge"]), pytest.approx(own["y"] + 0.25))
    accuracy = lmccheck.merged_loss(merge, metric="accuracy", by="class", limit=5.0).finding.curve
    assert accuracy.higher_is_better
    assert [(row["name"], row["bound"]) for row in accuracy.rows] == [(f"class {k}", 95.0) for k in range(3)]


def test_the_mean_of_a_set_is_drawn_with_every_mean_that_leaves_one_out() -> None:
    """The first bar is the value; a model that has all the weight cannot be left out."""
    states = [seeded(small_mlp, seed) for seed in range(3)]
    given = {"model": small_mlp, "data": (torch.randn(8, 4), torch.randint(0, 3, (8,)))}
    found = lmccheck.set_connectivity(states, **given, align="none", over="mean")
    bars = found.finding.curve
    assert record_of(found).curve["names"] == bars.names
    assert bars.names == ["all models", "without model 0", "without model 1", "without model 2"]
    assert bars.values["the mean"][0] == found.value
    alone = lmccheck.set_connectivity(states, **given, align="none", over="mean", weights=[1, 0, 0]).finding.curve
    assert alone.values["the mean"][1] is None
