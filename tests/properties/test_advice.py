"""What a failure says to try exists, was not tried, and can help."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lmccheck
from lmccheck.alignment.methods import METHODS
from lmccheck.properties.advice import APART, DROPPING


def mlp(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def weights(seed, build=mlp):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build()
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=1.0)
        return module.state_dict()


def data(seed=0, samples=64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 4, generator=generator), torch.randint(3, (samples,), generator=generator)


def pair(build=mlp, **given):
    """Two networks apart from one another; with this loss there is a barrier between any two."""
    given = {"loss": wavy, "device": "cpu", **given}
    return lmccheck.load_pair(weights(1, build), weights(2, build), model=build, data=data(), **given)


def wavy(outputs, targets):
    return torch.sin(7 * outputs).sum(1) + 0.0 * targets


def good_pair(build=mlp, same=False):
    """Two networks that answer right on what a labels, so that dropping units costs them something."""
    theta, module = weights(1, build), build()
    module.load_state_dict(theta)
    inputs, others = data()[0], data(1)[0]
    held = (inputs, module(inputs).argmax(1)), (others, module(others).argmax(1))
    near = {name: tensor + 0.01 for name, tensor in theta.items()}
    return lmccheck.load_pair(theta, near, model=build, data=held[0], calibration=held[0 if same else 1], device="cpu")


def advice(result):
    assert result.verdict != "pass"
    found = result.details.get("next", [])
    assert (f"try next: {'; or '.join(found)}" in result.lines) == bool(found)
    return found


def test_an_unaligned_pair_is_told_to_align():
    """By what needs nothing where there is no calibration data, and by that data; by the best of all where there is."""
    bare = advice(lmccheck.linear_connectivity(pair(), align="none", limit=0.0))
    assert bare[:2] == ["align = 'weight-matching'", "calibration data, by which align = 'best' compares every method"]
    assert not any("repair" in line for line in bare)
    full = advice(lmccheck.linear_connectivity(pair(calibration=data(1)), align="none", limit=0.0))
    assert full[0].startswith("align = 'best'")
    assert any(line.startswith("repair = 'repair'") for line in full)


def test_repair_is_named_only_where_it_has_a_layer_to_mend():
    """BatchNorm behind every layer but the last mends what REPAIR would: it would do what was done."""

    def normed():
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    found = lmccheck.linear_connectivity(pair(normed, calibration=data(1)), limit=0.0)
    assert not any("repair" in line for line in advice(found))
    bare = lmccheck.linear_connectivity(pair(normed, calibration=data(1)), limit=0.0, repair="none")
    assert advice(bare)[0] == "repair = 'bn', which re-estimates BatchNorm on calibration data"


def test_maps_beyond_are_named_with_what_they_need():
    """They are refused without an alignment: one line of advice says so by itself."""
    (line,) = [x for x in advice(lmccheck.linear_connectivity(pair(), align="none", limit=0.0)) if "beyond" in x]
    assert line == "beyond = [\"rescaling\"] beside another align than 'none'"


def test_only_what_was_not_used_is_named():
    """After best no method that best runs, no maps beyond that were used, no repair that was done."""
    result = lmccheck.linear_connectivity(
        pair(calibration=data(1)), align="best", limit=0.0, beyond="all", repair="repair", profile="dev"
    )
    named = " ".join(advice(result))
    for name in ("weight-matching", "activation-matching", "transport", "learned", "best"):
        assert f"'{name}'" not in named
    assert "beyond" not in named
    assert "repair" not in named


def test_no_method_is_named_where_one_left_every_unit_in_its_place():
    """Two networks in one order: weight matching moves nothing, so that to align otherwise is no advice."""
    theta = weights(1)
    torch.manual_seed(0)
    near = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in theta.items()}
    given = {"loss": wavy, "device": "cpu", "calibration": data(1)}
    one_order = lmccheck.load_pair(theta, near, model=mlp, data=data(), **given)
    found = lmccheck.linear_connectivity(one_order, limit=0.0)
    assert not any(facts["share_moved"] for facts in found.finding.alignment["groups"].values())
    assert not any(each.startswith("align = 'best'") for each in advice(found))
    assert any(
        each.startswith("align = 'best'")
        for each in advice(lmccheck.linear_connectivity(one_order, align="none", limit=0.0))
    )


def test_nothing_is_said_of_alignment_where_no_unit_may_move():
    """A linear model has no hidden unit, so that no alignment can help it."""

    def linear():
        return nn.Linear(4, 3)

    result = lmccheck.linear_connectivity(
        lmccheck.load_pair(weights(1, linear), weights(2, linear), model=linear, data=data(), device="cpu", loss=wavy),
        limit=0.0,
    )
    assert advice(result) == [APART]


def test_methods_that_are_named_exist():
    """Every align = '…' is a method, and one that is not used."""
    for align in ("none", *METHODS.names()):
        result = lmccheck.linear_connectivity(pair(calibration=data(1)), align=align, limit=0.0, profile="dev")
        for line in advice(result):
            if line.startswith("align = "):
                assert line.split("'")[1] in {*METHODS.names()} - {align}


def test_being_right_unaligned_is_said():
    """Where the alignment costs more than none, none is named first."""
    theta = weights(1)
    near = {name: tensor + 1e-4 for name, tensor in theta.items()}
    permuted = lmccheck.load_pair(theta, near, model=mlp, data=data(), device="cpu")
    result = lmccheck.linear_connectivity(permuted, align="none", limit=1.0)
    assert result.passed
    assert "next" not in result.details


def test_masks_that_would_settle_it_do():
    """The number that is named settles it, if as many hold as did: tried."""
    given = good_pair()
    found = next(
        found
        for epsilon in (0.02, 0.05, 0.1, 0.2, 0.4)
        if (found := lmccheck.noise_stability(given, masks=12, epsilon=epsilon)).verdict == "inconclusive"
    )
    (said,) = found.details["next"]
    masks = int(said.removeprefix("masks = ").split(",")[0])
    assert masks > 12
    from scipy.stats import binomtest

    for side in ("a", "b"):
        share = found.details[side]["hits"] / 12
        interval = binomtest(round(share * masks), masks).proportion_ci(0.95, method="exact")
        if found.details[side]["verdict"] == "inconclusive":
            assert interval.low >= 0.25 or interval.high < 0.25


def test_a_noise_failure_names_what_explains_it():
    """Until that was asked for."""
    plain = advice(lmccheck.noise_stability(good_pair(), masks=40, p=0.5, epsilon=0.0))
    assert plain[-1].startswith("diagnostics = true")
    asked = advice(lmccheck.noise_stability(good_pair(), masks=40, p=0.5, epsilon=0.0, diagnostics=True))
    assert not any("diagnostics" in line for line in asked)


def test_a_search_names_what_widens_it():
    """refit where it was left out, more subsets where not all were tried, half of the units, other calibration data."""
    few = advice(
        lmccheck.dropout_stability(
            good_pair(lambda: mlp(4), same=True), epsilon=0.0, keep=0.25, refit=False, profile="dev"
        )
    )
    assert few == ["refit = true", "keep = 0.5, the most that the theorem allows"]  # 4 subsets, and no other data
    left = advice(lmccheck.dropout_stability(good_pair(lambda: mlp(4), same=True), epsilon=0.0, profile="dev"))
    assert left == [DROPPING]
    many = advice(lmccheck.dropout_stability(good_pair(lambda: mlp(16)), epsilon=0.0, profile="dev"))
    assert [line.split(" ")[0] for line in many] == ["profile", "more"]


def test_batchnorm_is_named_only_where_there_is_one():
    """A limit that rounding exceeds at an end is no matter of BatchNorm in a network without it."""
    result = lmccheck.linear_connectivity(pair(calibration=data(1)), limit=0.0)
    assert "BatchNorm" not in "\n".join(result.lines)


@pytest.mark.parametrize("limit", [0.0])
def test_every_property_of_a_pair_shows_its_endpoints(limit):
    """Own losses and the loss at the worst point: value = worst loss − what the property measures above."""
    given = good_pair()
    line = lmccheck.linear_connectivity(given, limit=limit)
    t, a, b = line.details["worst_t"], line.details["loss_a"], line.details["loss_b"]
    assert line.details["worst_loss"] == pytest.approx(line.value + (1 - t) * a + t * b, rel=1e-12)
    path = lmccheck.ten_segment_path(given, epsilon=limit, profile="dev")
    assert path.details["worst_loss"] == pytest.approx(path.value + max(a, b), rel=1e-6)
    dropped = lmccheck.dropout_stability(given, epsilon=limit, profile="dev")
    own = {"a": a, "b": b}[dropped.details["worst_side"]]
    assert dropped.details["worst_loss"] == pytest.approx(dropped.value + own, rel=1e-6)
    noise = lmccheck.noise_stability(given, epsilon=limit, masks=10)
    side = noise.details["worst_side"]
    assert noise.details["worst_loss"] == max(map(max, noise.details[side]["losses"]))
    for result in (line, path, dropped, noise, lmccheck.verify_dropout(given, dropped.witness, epsilon=limit)):
        assert [end.name for end in result.finding.endpoints] == ["a", "b"]
        assert f"at the worst point {result.details['worst_loss']:.4g}" in "\n".join(result.lines)
