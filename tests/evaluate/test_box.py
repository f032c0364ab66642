"""The box between two endpoints: what lies at independent coefficients per layer, against networks built by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from networks.small import seeded, small_batchnorm, small_mlp
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import LmcError
from lmccheck.evaluate.box import Box
from lmccheck.evaluate.points import interpolate

COEFFICIENTS = {"0": 0.25, "4": 0.75}


def rows() -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    return torch.randn(40, 4), torch.randint(0, 3, (40,))


def small_pair() -> lmccheck.ModelPair:
    return lmccheck.load_pair(*(seeded(small_mlp, k) for k in (0, 1)), model=small_mlp, data=rows())


def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(8)
    return torch.randn(40, 1, 4, 4), torch.randint(0, 3, (40,))


def test_each_layer_goes_by_its_own_coefficient() -> None:
    """The loss at (0.25, 0, 0.75) is that of a network whose layers were mixed one by one; no coefficient means a."""
    pair = small_pair()
    box = Box(pair)
    assert box.layers == ("0", "2", "4")
    plain = small_mlp()
    a, b = pair.theta_a, pair.theta_b
    share = {name: COEFFICIENTS.get(name[0], 0.0) for name in a}
    plain.load_state_dict({name: (1 - share[name]) * a[name] + share[name] * b[name] for name in a})
    expected = F.cross_entropy(plain(rows()[0]), rows()[1], reduction="none")
    assert torch.allclose(box.per_sample(COEFFICIENTS), expected.double(), atol=1e-6)
    assert box.loss(COEFFICIENTS) == pytest.approx(expected.mean().item(), abs=1e-6)


def test_corners_are_the_endpoints_and_the_diagonal_is_the_line() -> None:
    """Nothing moved is θ_A bit for bit, all moved θ_B, and one t for all is what the line has there."""
    pair = small_pair()
    box = Box(pair)
    for t, expected in ((0.0, box.first), (1.0, box.second), (0.3, interpolate(box.first, box.second, 0.3))):
        found = box.weights(dict.fromkeys(box.layers, t))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(value, pair.theta_a[name]) for name, value in box.weights({}).items())


def test_a_layer_that_is_moved_all_the_way_takes_no_other_with_it() -> None:
    """At (0.25, 0, 1) only the last layer is b's, bit for bit, whichever layers come before it."""
    pair = small_pair()
    found = Box(pair).weights({"0": 0.25, "4": 1.0})
    assert torch.equal(found["4.weight"], pair.theta_b["4.weight"])
    assert torch.equal(found["2.weight"], pair.theta_a["2.weight"])
    assert torch.equal(found["0.bias"], interpolate(pair.theta_a, pair.theta_b, 0.25)["0.bias"])


def test_batchnorm_is_taken_afresh_from_calibration_data() -> None:
    """At a point of the box statistics are those of the mixed network; layers that only they tell apart are none."""
    evaluation, calibration = images(), (images()[0] * 2, images()[1])
    states = [seeded(small_batchnorm, k) for k in (0, 1)]
    pair = lmccheck.load_pair(*states, model=small_batchnorm, data=evaluation, calibration=calibration)
    box = Box(pair)
    assert box.layers == ("0", "4")  # gain and shift of the BatchNorm are 1 and 0 in both
    assert Box(pair, reestimate=False).layers == ("0", "1", "4")
    left = box.weights({"0": 0.5})
    assert not torch.equal(states[0]["1.running_mean"], states[1]["1.running_mean"])
    assert torch.equal(left["1.running_mean"], states[0]["1.running_mean"])  # no layer of the box: it stays a's
    plain = small_batchnorm()
    mixed = {n: torch.lerp(v, states[1][n], 0.5) if n.startswith("0.") else v for n, v in states[0].items()}
    plain.load_state_dict(mixed)
    torch.optim.swa_utils.update_bn([calibration[0]], plain)
    expected = F.cross_entropy(plain.eval()(evaluation[0]), evaluation[1]).item()
    assert box.loss({"0": 0.5}) == pytest.approx(expected, abs=1e-6)


def test_a_point_is_measured_once_and_layers_may_come_in_any_order() -> None:
    """The same coefficients have the same loss without another pass, also where a zero is written out."""
    box = Box(small_pair())
    first = box.loss({"0": 0.5, "4": 1.0})
    passes = box.evaluator.evaluations
    assert box.loss({"4": 1.0, "2": 0, "0": 0.5}) == first == float(box.per_sample({"4": 1, "0": 0.5}).mean())
    assert (box.evaluator.evaluations, box.points) == (passes, 1)


def test_aligned_weights_take_the_place_of_b() -> None:
    """What is handed in is the other corner."""
    pair = small_pair()
    moved = {name: value + 1 for name, value in pair.theta_a.items() if name.startswith("2.")}
    box = Box(pair, {**pair.theta_a, **moved})
    assert box.layers == ("2",)
    assert torch.equal(box.weights({"2": 1.0})["2.bias"], pair.theta_a["2.bias"] + 1)


class Tied(nn.Module):
    """A head whose weight is the embedding's, and a scale of the outermost module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle, self.head = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(3, 5)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.middle(self.embed(x)), self.head.weight.t()) * self.scale + self.head.bias[:3]


def test_tied_tensors_are_in_one_layer() -> None:
    """A tied tensor moves with the first module that holds it; the outermost module's tensors have their own names."""
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = Tied()
        with torch.no_grad():
            network.scale += seed
        states.append(copy.deepcopy(network.state_dict()))
    data = torch.randn(9, 3), torch.randint(0, 3, (9,))
    box = Box(lmccheck.load_pair(*states, model=Tied, data=data))
    assert box.layers == ("scale", "embed", "middle", "head")
    found = box.weights({"embed": 1.0})
    assert torch.equal(found["head.weight"], states[1]["embed.weight"])
    assert torch.equal(found["head.bias"], states[0]["head.bias"])


class Views(nn.Module):
    """Two modules of which one holds part of the other's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.part = nn.Linear(3, 3), nn.Module()
        self.part.register_buffer("rows", self.whole.weight.detach()[:2])

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x) + (x @ self.part.rows.t()).sum(1, keepdim=True)


def test_memory_that_overlaps_is_in_one_layer() -> None:
    """A view of another module's weights has no coefficient of its own: it could not keep it."""
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(copy.deepcopy(Views().state_dict()))
    box = Box(lmccheck.load_pair(*states, model=Views, data=(torch.randn(9, 3), torch.randint(0, 3, (9,)))))
    assert box.layers == ("whole",)


@pytest.mark.parametrize(
    ("coefficients", "said"),
    [
        ({"1": 0.5}, r"pair .*: layer '1'.*; expected one of \['0', '2', '4'\]"),
        ({"0": 1.5}, r"pair .*: coefficient 1.5 of layer '0'; expected a number from 0 to 1"),
        ({"0": -0.5}, r"coefficient -0.5 of layer '0'"),
        ({"0": float("nan")}, r"coefficient nan of layer '0'"),
        ({"0": True}, r"coefficient True of layer '0'"),
    ],
)
def test_what_is_no_point_of_the_box_is_refused(coefficients: dict[str, float], said: str) -> None:
    """In one line: what was given, and what was expected."""
    with pytest.raises(LmcError, match=said):
        Box(small_pair()).loss(coefficients)
