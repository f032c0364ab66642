"""Curves on demand: what the properties measure at the same points, and what the network itself computes there."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks.dropping import case
from networks.small import seeded, small_batchnorm, small_mlp
from networks.widths import mlp
from torch import Tensor, nn

import lmccheck
from lmccheck.properties.registry import PROPERTIES
from lmccheck.report.loss_curve import loss_curve
from lmccheck.report.record import CheckRecord


def own_loss(module: nn.Module, theta: dict[str, Tensor], pair: Any) -> float:
    """The mean cross entropy by one forward pass of the module itself, in float64."""
    module = module.double().eval()
    batches = [torch.func.functional_call(module, theta, (batch.inputs.double(),)) for batch in pair.data.batches]
    return F.cross_entropy(torch.cat(batches), torch.cat([batch.targets for batch in pair.data.batches])).item()


@pytest.fixture(scope="module")
def batchnorm() -> lmccheck.ModelPair:
    draw = torch.Generator().manual_seed(0)
    data = torch.randn(40, 1, 4, 4, generator=draw), torch.randint(3, (40,), generator=draw)
    states = (seeded(small_batchnorm, seed) for seed in (0, 1))
    return lmccheck.load_pair(*states, model=small_batchnorm, data=data, calibration=data)


@pytest.mark.parametrize("repair", ["bn", "none", "repair"])
def test_a_line_is_the_one_that_linear_connectivity_measures(batchnorm: lmccheck.ModelPair, repair: str) -> None:
    """The same losses and errors at the same t, aligned, whatever is done to BatchNorm."""
    found = lmccheck.linear_connectivity(batchnorm, limit=100.0, points=9, profile="dev", repair=repair)
    curve = lmccheck.curve(batchnorm, found.witness, 9, repair=repair)
    assert curve.t == found.details["t"]
    assert curve.loss == pytest.approx(found.details["losses"], abs=1e-9)
    assert curve.error == pytest.approx(found.details["errors"], abs=1e-9)
    assert curve.segment == [1] * 9
    assert curve.lower == curve.upper == [None] * 9
    plain = lmccheck.curve(batchnorm, points=9, repair=repair)
    assert plain.loss == pytest.approx(found.details["naive_losses"], abs=1e-9)


def test_a_line_as_it_is_by_its_own_forward_passes() -> None:
    """Without an alignment nothing moves; at both ends they are the checkpoints' own losses."""
    states = [seeded(small_mlp, seed) for seed in (0, 1)]
    states = [{name: tensor.double() for name, tensor in state.items()} for state in states]
    draw = torch.Generator().manual_seed(0)
    data = torch.randn(30, 4, generator=draw), torch.randint(3, (30,), generator=draw)
    pair = lmccheck.load_pair(*states, model=small_mlp, data=data)
    curve = lmccheck.curve(pair, points=7)
    assert curve.t == [k / 6 for k in range(7)]
    a, b = pair.theta_a, pair.theta_b
    own = [own_loss(small_mlp(), {n: (1 - t) * a[n] + t * b[n] for n in a}, pair) for t in curve.t]
    assert curve.loss == pytest.approx(own, abs=1e-9)


def test_a_path_by_its_own_forward_passes(tmp_path: Path) -> None:
    """In float64 at equal shares of its segments; the same from the file; a path of another pair is refused."""
    pair = case("relu")[0]
    path = lmccheck.ten_segment_path(pair, profile="dev").witness
    curve = lmccheck.curve(pair, path, 21)
    module = pair.module
    assert curve.loss == pytest.approx([own_loss(module, path.at(t), pair) for t in curve.t], abs=1e-9)
    assert curve.segment == [min(k // 2 + 1, 10) for k in range(21)]
    assert lmccheck.curve(pair, path.save(tmp_path / "p.safetensors"), 21) == curve
    assert repr(curve).startswith("LossCurve(21 points of 10 segments, loss ")
    other = lmccheck.load_pair(pair.theta_b, pair.theta_a, model=module, data=(pair.data.batches[0].inputs,
                               pair.data.batches[0].targets))  # fmt: skip
    with pytest.raises(lmccheck.CheckpointError, match="does not begin at a"):
        lmccheck.curve(other, path)


def test_a_chain_takes_batchnorm_afresh_as_its_property_does(batchnorm: lmccheck.ModelPair) -> None:
    """Breakpoints of trained bends lose what the path's own property says."""
    found = lmccheck.ten_segment_path(batchnorm, form="learned", profile="dev")
    segments = found.details["segments"]
    curve = lmccheck.curve(batchnorm, found.witness, len(segments) + 1)
    known = [*(part["loss_start"] for part in segments), segments[-1]["loss_end"]]
    assert curve.loss == pytest.approx(known, abs=1e-9)


def test_a_fusion_is_the_line_that_fused_connectivity_measures() -> None:
    """Of a pair of two widths; without its fusion there is no line."""
    draw = torch.Generator().manual_seed(0)
    data = torch.randn(30, 6, generator=draw), torch.randint(4, (30,), generator=draw)
    wide, slim = mlp(2), mlp(1)
    pair = lmccheck.load_widths(
        wide.state_dict(), slim.state_dict(), model_a=wide, model_b=slim, data=data, calibration=data
    )
    found = PROPERTIES.get("fused_connectivity").measure(pair, {"points": 5, "profile": "dev", "limit": 100.0})
    curve = lmccheck.curve(pair, found.witness, 5)
    assert curve.loss == pytest.approx(found.details["losses"], abs=1e-9)
    with pytest.raises(lmccheck.LmcError, match="got NoneType, expected a Fusion"):
        lmccheck.curve(pair)


@pytest.mark.parametrize(
    ("given", "settings", "says"),
    [
        (None, {"points": 1}, "points = 1; expected a whole number from 2 to 10001"),
        (None, {"points": True}, "points = True; expected a whole number"),
        (None, {"repair": "ni"}, "repair = 'ni'; expected one of"),
        (0.5, {}, "got float, expected an Alignment, a Path, its file or None"),
        ("nowhere.safetensors", {}, "nowhere.safetensors: "),
    ],
)
def test_what_is_no_curve_is_refused(
    batchnorm: lmccheck.ModelPair, given: Any, settings: dict[str, Any], says: str
) -> None:
    """One line each: what, got, expected."""
    with pytest.raises(lmccheck.LmcError, match=says):
        lmccheck.curve(batchnorm, given, **settings)


def test_a_curve_is_saved_whole_and_never_over_what_was_read(tmp_path: Path) -> None:
    """Columns under their names, floats in full; a checkpoint it was measured of stays."""
    file = lmccheck.LossCurve([0.0, 1.0], [1, 2], [0.1 + 0.2, 2.0], [None, 0.5], [None, 1.0], [0.5, None])
    saved = file.save(tmp_path / "deep" / "c.csv")
    assert (
        saved.read_text() == "t,segment,loss,error,lower,upper\n0.0,1,0.30000000000000004,,,0.5\n1.0,2,2.0,0.5,1.0,\n"
    )
    own = lmccheck.LossCurve([0.0], [1], [0.0], [None], [None], [None]).made_of([saved])
    with pytest.raises(lmccheck.CheckpointError, match=r"was read as .*, expected a file of its own"):
        own.save(saved)
    with pytest.raises(lmccheck.CheckpointError, match="cannot be written"):
        own.save(tmp_path / "deep")
    with open(saved) as read:
        assert float(next(iter(csv.DictReader(read)))["loss"]) == 0.1 + 0.2


def test_a_path_is_written_as_it_was_measured() -> None:
    """Every sampled point, each breakpoint once, bounds where they are known; nothing is above or below them."""
    pair = case("relu")[0]
    blank = CheckRecord(*["x"] * 6, severity="fail", verdict="pass", blocking=False)
    found = lmccheck.ten_segment_path(pair, profile="dev", epsilon=100.0, certify="always")
    curve = loss_curve(blank.measured(found))
    assert curve is not None
    path = found.witness
    assert curve.t == sorted(set(curve.t))
    assert (curve.t[0], curve.t[-1], set(curve.segment)) == (0.0, 1.0, set(range(1, 11)))
    assert curve.loss == pytest.approx([own_loss(pair.module, path.at(t), pair) for t in curve.t], abs=1e-5)
    assert max(curve.loss) == found.details["certified_max"]
    assert found.details["certified_bound"] is not None
    dense = {t: own_loss(pair.module, path.at(t), pair) for t in (k / 500 for k in range(501))}
    for k, (low, high) in enumerate(zip(curve.lower, curve.upper, strict=True)):
        near = curve.t[max(0, k - 1)], curve.t[min(len(curve.t) - 1, k + 1)]
        inside = [loss for t, loss in dense.items() if near[0] <= t <= near[1]]
        assert high is not None
        assert max(inside, default=0.0) <= high + 1e-9
        assert low is None or min(inside) >= low - 1e-9
    constant = [low for k, low in zip(curve.segment, curve.lower, strict=True) if k in (5, 6, 7)]
    assert None not in constant


def test_what_is_only_sampled_has_no_bound() -> None:
    """Segments of trained bends are not bounded; where the loss was no number, the file says infinity."""
    part = {"loss_start": 1.0, "loss_end": 2.0, "max": math.inf, "worst": 0.5, "known": "sampled"}
    part["seen"] = [[0.25, 1.5, 0.5], [0.5, math.nan, None]]
    curve = {"kind": "path", "segments": [part]}
    found = loss_curve(CheckRecord(*["x"] * 6, severity="fail", verdict="fail", blocking=False, curve=curve))
    assert found is not None
    assert (found.t, found.loss) == ([0.0, 0.25, 0.5, 1.0], [1.0, 1.5, math.inf, 2.0])
    assert found.lower == found.upper == [None] * 4
    assert ",inf," in found.csv()
