"""The approximate dimension of every layer, and its largest eigenvalue: closed forms and explicit sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from networks import Written, param
from networks.planted import deep, independent_pair
from networks.sets import shipped
from networks.small import perceptron, seeded, small_mlp
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment import dimension
from lmccheck.alignment.api import METHODS
from lmccheck.alignment.dimension import approximate_dimension, largest_eigenvalue


def of(
    build: Callable[[], nn.Module], weights: Mapping[str, Tensor], x: Any, classes: int = 2, **more: Any
) -> dict[str, Any]:
    """Return what linear_connectivity says of a network's dimension on calibration data ``x``."""
    n = len(x) if isinstance(x, Tensor) else sum(len(batch) for batch in x)
    targets = torch.zeros(n, dtype=torch.int64)
    given: Any = (x, targets) if isinstance(x, Tensor) else [(b, torch.zeros(len(b), dtype=torch.int64)) for b in x]
    first = x if isinstance(x, Tensor) else x[0]
    data = first[:2], targets[:2] % classes
    pair = lmccheck.load_pair(weights, weights, model=build, data=data, calibration=given, device="cpu", **more)
    found = lmccheck.linear_connectivity(pair, align="none", points=3, profile="dev").details["alignment"]
    return dict(found)


def linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> tuple[float, float]:
    """Return the dimension and the largest eigenvalue of the first of two layers."""
    build = lambda: perceptron(weight.shape[1], len(weight), 2).double()  # noqa: E731  # a builder
    state = {k: torch.zeros_like(v) for k, v in seeded(build, 0).items()}
    state["0.weight"] = weight
    if bias is not None:
        state["0.bias"] = bias
    found = of(build, state, x)
    assert found["dimension"]["left_out"] == {"2.weight": "all that it gives on the calibration data is zero"}
    return found["approximate_dimension"]["0.weight"], found["largest_eigenvalue"]["0.weight"]


def test_one_direction_is_of_dimension_one() -> None:
    """Inputs ±v and no bias: S = W·vvᵀ·Wᵀ has rank one, and its eigenvalue is |W·v|²."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    v = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    found = linear(weight, None, torch.stack([v, -v, v, -v]))
    assert found == pytest.approx((1.0, float((weight @ v).square().sum())), rel=1e-12)


def test_inputs_alike_in_all_directions_are_of_full_dimension() -> None:
    """Σ = 1 and an orthogonal W: S = 1, of dimension d and largest eigenvalue 1."""
    d = 6
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0])
    x = d**0.5 * torch.cat([torch.eye(d), -torch.eye(d)]).double()
    assert linear(rotation, None, x) == pytest.approx((d, 1.0), rel=1e-12)


def test_a_bias_is_one_more_direction() -> None:
    """W = 1, Σ = 1, b = c·e₁: S = 1 + c²·e₁e₁ᵀ, so that Dim = (d + c²)²/(d + 2c² + c⁴) and λ_max = 1 + c²."""
    d, c = 5, 3.0
    x = d**0.5 * torch.cat([torch.eye(d), -torch.eye(d)]).double()
    bias = torch.zeros(d, dtype=torch.float64)
    bias[0] = c
    expected = (d + c**2) ** 2 / (d + 2 * c**2 + c**4), 1 + c**2
    assert linear(torch.eye(d, dtype=torch.float64), bias, x) == pytest.approx(expected, rel=1e-12)


def test_constant_outputs_are_of_dimension_one() -> None:
    """W = 0: S = b·bᵀ, where the mixture of both definitions is zero (it gave 1.3e-16 for what lies in [1, 40])."""
    bias = torch.linspace(-1, 2, 40, dtype=torch.float64)
    x = torch.randn(9, 3, dtype=torch.float64)
    zero = torch.zeros(40, 3, dtype=torch.float64)
    assert linear(zero, bias, x) == pytest.approx((1.0, float(bias.square().sum())), rel=1e-12)


def test_known_eigenvalues() -> None:
    """Σ = diag(λ) under a rotation: Dim = (Σλ)²/Σλ², whatever the scale; between 1 and the rank."""
    d = 8
    rng = np.random.default_rng(3)
    for rank in (1, 2, 5, 8):
        eigenvalues = np.concatenate([rng.uniform(0.1, 5, rank), np.zeros(d - rank)])
        rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
        for scale in (1.0, 1e-6, 1e7):
            s = torch.from_numpy(scale * rotation @ np.diag(eigenvalues) @ rotation.T)
            dimension = approximate_dimension(s)
            assert dimension == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-9)
            assert 1 <= dimension <= rank + 1e-9
            assert largest_eigenvalue(s) == pytest.approx(scale * eigenvalues.max(), rel=1e-9)


def test_the_largest_eigenvalue_of_a_wide_layer_is_found_without_the_others() -> None:
    """600 units, two equal eigenvalues at the top: Lanczos agrees with the construction."""
    n = 600
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(n, 3)))[0]
    s = torch.from_numpy(rotation @ np.diag([2.0, 2.0, 0.5]) @ rotation.T)
    assert largest_eigenvalue(s) == pytest.approx(2.0, rel=1e-9)
    assert largest_eigenvalue(torch.eye(n)) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(
    ("method", "bias"),
    [("none", False), *((name, True) for name in ("none", *METHODS.names()) if name != "learned")],  # best runs learned
)
def test_every_method_reports_it(method: str, bias: bool) -> None:
    """tr(S)²/tr(S²) and λ_max of S = [W b]·E[(φ,1)(φ,1)ᵀ]·[W b]ᵀ, the same for all, by explicit sums."""
    pair = independent_pair(deep(bias))
    result = lmccheck.linear_connectivity(pair, align=method, points=3, profile="dev")
    facts = result.details["alignment"]
    assert facts["dimension"]["samples"] == 200
    assert facts["dimension"]["left_out"] == {}
    value = pair.calibration.batches[0].inputs
    for layer, act in (("0", torch.relu), ("2", torch.tanh), ("4", torch.relu), ("6", torch.relu)):
        rows = np.column_stack([value.numpy(), np.ones(len(value))])
        sigma = sum(np.outer(row, row) for row in rows) / len(rows)
        weight = pair.theta_a[f"{layer}.weight"]
        shift = pair.theta_a[f"{layer}.bias"] if bias else torch.zeros(len(weight))
        both = np.column_stack([weight.numpy(), shift.numpy()])
        eigenvalues = np.linalg.eigvalsh(both @ sigma @ both.T)
        expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
        assert facts["approximate_dimension"][f"{layer}.weight"] == pytest.approx(expected, rel=1e-9)
        assert facts["largest_eigenvalue"][f"{layer}.weight"] == pytest.approx(eigenvalues[-1], rel=1e-9)
        value = act(value @ weight.T + shift)


def convolutional() -> nn.Module:
    """A strided, a grouped and a dilated convolution, the first two with BatchNorm, one without its scale."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 2, groups=2, bias=False), nn.BatchNorm2d(4, affine=False), nn.ReLU(),
        nn.Conv2d(4, 5, 2, dilation=2), nn.Flatten(), nn.Linear(5, 2),
    ).double()  # fmt: skip


def test_convolutions_and_batchnorm_against_explicit_windows() -> None:
    """Each convolution as a matrix on unfolded windows, its BatchNorm folded in; every batch of the data counts."""
    state = {k: v.double() if v.is_floating_point() else v for k, v in seeded(convolutional, 2).items()}
    state |= {"0.weight": 3 * state["0.weight"], "1.weight": torch.randn(6).double(), "1.bias": torch.randn(6).double()}
    batches = [torch.randn(n, 2, 8, 8, dtype=torch.float64) for n in (5, 3, 1)]
    found = of(convolutional, state, batches)
    module = convolutional().eval()
    module.load_state_dict(state)
    value = torch.cat(batches)
    module.requires_grad_(False)
    assert found["dimension"]["samples"] == 9
    assert found["dimension"]["with_batchnorm"] == ["0.weight", "3.weight"]
    for k, part in enumerate(module):
        if not isinstance(part, nn.Conv2d):
            value = part(value)
            continue
        norm = module[k + 1] if isinstance(module[k + 1], nn.BatchNorm2d) else None
        dense = torch.zeros(part.out_channels, part.in_channels, *part.kernel_size, dtype=torch.float64)
        read, made = (c // part.groups for c in (part.in_channels, part.out_channels))
        for u in range(part.out_channels):
            dense[u, (u // made) * read : (u // made + 1) * read] = part.weight[u]
        shift = part.bias if part.bias is not None else torch.zeros(part.out_channels).double()
        if norm is not None:
            gain = (norm.running_var + norm.eps) ** -0.5 * (norm.weight if norm.affine else 1.0)
            dense = dense * gain[:, None, None, None]
            shift = gain * (shift - norm.running_mean) + (norm.bias if norm.affine else 0.0)
        settings = {"dilation": part.dilation, "padding": part.padding, "stride": part.stride}
        columns = nn.functional.unfold(value, part.kernel_size, **settings)
        rows = columns.transpose(1, 2).reshape(-1, columns.shape[1])
        rows = torch.cat([rows, torch.ones(len(rows), 1).double()], 1)
        both = torch.cat([dense.flatten(1), shift[:, None]], 1)
        eigenvalues = torch.linalg.eigvalsh(both @ (rows.T @ rows / len(rows)) @ both.T)
        expected = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
        assert found["approximate_dimension"][f"{k}.weight"] == pytest.approx(expected, rel=1e-9)
        assert found["largest_eigenvalue"][f"{k}.weight"] == pytest.approx(float(eigenvalues[-1]), rel=1e-9)
        value = part(value)


def twice() -> nn.Module:
    """A layer that is used twice, and a head."""
    return Written(lambda s, x: s.head(s.twice(s.twice(x).relu()).relu()), twice=nn.Linear(4, 4), head=nn.Linear(4, 2))


def test_what_cannot_be_said_is_said() -> None:
    """No calibration data, a symmetry that is handed in, a layer used twice: the reason stands in place of numbers."""
    x = torch.randn(6, 4)
    data = x, torch.zeros(6, dtype=torch.int64)
    states = [seeded(small_mlp, k) for k in (0, 1)]
    pair = lmccheck.load_pair(*states, model=small_mlp, data=data, device="cpu")
    facts = lmccheck.align(pair).facts
    assert (facts["approximate_dimension"], facts["largest_eigenvalue"]) == ({}, {})
    assert facts["dimension"]["why"] == "no calibration data"
    given = lmccheck.load_pair(
        *states, model=small_mlp, data=data, calibration=data, device="cpu", symmetry=pair.network.spec
    )
    assert lmccheck.align(given).facts["dimension"]["why"] == "the symmetry is given, the network is not traced"
    found = of(twice, seeded(twice, 0), x)
    assert found["dimension"]["left_out"] == {"twice.weight": "its weight is used more than once"}
    assert list(found["approximate_dimension"]) == ["head.weight"]
    found = of(product, seeded(product, 0), x)
    assert found["dimension"]["left_out"] == {"w": "no linear layer or convolution takes it as it is stored"}
    assert list(found["approximate_dimension"]) == ["head.weight"]


def test_what_would_cost_too_much_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network too large for another copy; tables too large together; batches of more shapes than are traced."""
    x = torch.randn(6, 4)
    state = seeded(small_mlp, 0)
    shapes = [torch.randn(n, 4) for n in (*range(2, 11), 3)]  # of 54 and 3 samples, those of the ninth shape not seen
    found = of(small_mlp, state, shapes)
    assert (found["dimension"]["samples"], found["dimension"]["of"]) == (47, 57)
    value = torch.cat([batch for batch in shapes if len(batch) != 10]).double()
    y = value @ state["0.weight"].double().T + state["0.bias"].double()
    s = y.T @ y / len(y)
    expected = float(s.trace() ** 2 / (s @ s).trace())
    assert found["approximate_dimension"]["0.weight"] == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(dimension, "MOST", 49 + 16)
    found = of(small_mlp, state, x)
    assert found["dimension"]["left_out"] == {
        "2.weight": "its 5 units need a table that is too large beside those of other layers"
    }
    assert list(found["approximate_dimension"]) == ["0.weight", "4.weight"]
    monkeypatch.setattr(dimension, "LARGEST", 10)
    assert of(small_mlp, state, x)["dimension"]["why"].startswith("the network has 83 numbers, of more than 10 no copy")


def test_layers_that_are_not_held_together_have_the_same_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data are run once for all tables, then once for each: no figure changes."""
    x, state = torch.randn(6, 4), seeded(small_mlp, 0)
    together = of(small_mlp, state, x)
    runs: list[int] = []
    seen = dimension.output_moments
    monkeypatch.setattr(dimension, "output_moments", lambda *given: (runs.append(len(given[2])), seen(*given))[1])
    for held, expected in ((1, [1, 1, 1]), (49 + 36, [2, 1])):
        monkeypatch.setattr(dimension, "HELD", held)
        runs.clear()
        assert of(small_mlp, state, x) == together
        assert runs == expected


def product() -> nn.Module:
    """A matrix that is multiplied without a layer, and a head."""
    return Written(lambda s, x: s.head((x @ s.w).relu()), w=param(4, 4), head=nn.Linear(4, 2))


class Branching(nn.Module):
    """Its forward looks at the data, so that it has no one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        hidden = self.first(x).relu()
        return self.head(hidden if float(hidden.detach().sum()) > 1 else 2 * hidden)


def test_a_network_that_cannot_be_traced_is_measured_unaligned_all_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    """align = "none" needs no graph: the verdict stands, the reason is among the facts, and nothing is printed."""
    found = of(Branching, seeded(Branching, 0), torch.randn(6, 4))
    assert "cannot trace it" in found["dimension"]["why"]
    assert (found["approximate_dimension"], found["dimension"]["samples"]) == ({}, 0)
    assert capfd.readouterr() == ("", "")


def test_overflow_on_calibration_data_decides_no_verdict() -> None:
    """Inputs so large that a layer's outputs are infinite: it is left out, and the line is measured as before."""
    x = torch.randn(6, 4)
    x[3:] = 3e38
    found = of(small_mlp, {k: v + 1 for k, v in seeded(small_mlp, 0).items()}, torch.cat([torch.randn(2, 4), x]))
    assert found["approximate_dimension"] == {}
    assert set(found["dimension"]["left_out"].values()) == {"what it gives on the calibration data is not finite"}


def test_the_shipped_perceptron() -> None:
    """On all 1297 samples, by plain matrices: in the first hidden layer, which has biases, the second, and the head."""
    pair = shipped("mlp")
    facts = lmccheck.align(pair, "transport").facts
    value = pair.calibration.batches[0].inputs.double()
    for layer in ("hidden1", "hidden2", "head"):
        y = value.flatten(1) @ pair.theta_a[f"{layer}.weight"].double().T + pair.theta_a[f"{layer}.bias"].double()
        s = y.T @ y / len(y)
        assert facts["approximate_dimension"][f"{layer}.weight"] == pytest.approx(
            float(s.trace() ** 2 / (s @ s).trace()), rel=1e-5
        )
        value = y.relu()
