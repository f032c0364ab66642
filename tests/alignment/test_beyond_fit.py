"""Closed forms of maps beyond permutations: polar, best scale, mixing, balance."""

from __future__ import annotations

import itertools

import pytest
import torch
from networks.beyond import found_in
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import minimize_scalar

from lmccheck.alignment.beyond.fit import balance, best_scale, polar
from lmccheck.alignment.beyond.freedoms import random_matrix
from lmccheck.alignment.beyond.mix import mix_group
from lmccheck.modules.random_weights import randomised

# closed forms


@pytest.mark.parametrize("shape", [(4, 4), (3, 5, 5), (1, 1)])
def test_polar_is_scipys_procrustes(shape: tuple[int, ...]) -> None:
    """The rotation nearest to a cross-moment Aᵀ·B is scipy's, matrix by matrix, and orthogonal."""
    generator = torch.Generator().manual_seed(len(shape))
    a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    found = polar(a.mT @ b).reshape(-1, *shape[-2:])
    for k, (x, y) in enumerate(zip(a.reshape(found.shape), b.reshape(found.shape), strict=True)):
        expected, _ = orthogonal_procrustes(x.numpy(), y.numpy())
        assert torch.allclose(found[k], torch.from_numpy(expected), atol=1e-10)
        assert torch.allclose(found[k].T @ found[k], torch.eye(len(x), dtype=torch.float64), atol=1e-12)


def test_best_scale_is_scipys_minimum() -> None:
    """‖a_in − s·b_in‖² + ‖a_out − b_out/s‖² is as small as scipy's bounded search from many brackets makes it."""
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(40, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    b, d = b * torch.logspace(-0.7, 0.7, 40).double()[:, None], d * torch.logspace(0.7, -0.7, 40).double()[:, None]
    found = best_scale((a * b).sum(1), (b * b).sum(1), (c * d).sum(1), (d * d).sum(1))
    for k in range(40):

        def cost(log: float, k: int = k) -> float:
            s = torch.tensor(log, dtype=torch.float64).exp()
            return float(((a[k] - s * b[k]) ** 2).sum() + ((c[k] - d[k] / s) ** 2).sum())

        edges = torch.linspace(-2.5, 2.5, 11).tolist()
        searched = [
            minimize_scalar(cost, bounds=ends, method="bounded", options={"xatol": 1e-10})
            for ends in itertools.pairwise(edges)
        ]
        best = min(searched, key=lambda result: result.fun)
        assert cost(float(found[k].log())) <= best.fun + 1e-9
        assert cost(float(found[k].log())) == pytest.approx(best.fun, abs=1e-9)


def test_a_planted_scale_is_found() -> None:
    """a_in = s·b_in and a_out = b_out/s for s from 0.1 to 10: found to 1e-7, the cost's zero."""
    scales = torch.logspace(-1, 1, 21, dtype=torch.float64)
    ones = torch.ones(21, dtype=torch.float64)
    found = best_scale(5 * scales, 5 * ones, 2 / scales, 2 * ones)
    assert torch.allclose(found, scales, rtol=1e-7)


def test_mixing_is_multiplying_rows_and_dividing_columns() -> None:
    """A diagonal D: D·W₁, D·b₁ and W₂·D⁻¹, nothing else; the same by a full matrix, with M⁻ᵀ for what reads."""
    module, derived, freedoms, _, _ = found_in("relu")
    (freedom,) = freedoms
    assert freedom.kind == "rescaling"
    weights = randomised(module, 3)
    group = derived.spec.by_name[freedom.group]
    scale = torch.linspace(0.3, 3, 12, dtype=torch.float64)
    expected = {
        "0.weight": weights["0.weight"] * scale[:, None],
        "0.bias": weights["0.bias"] * scale,
        "2.weight": weights["2.weight"] / scale,
        "2.bias": weights["2.bias"],
    }
    for matrix in (scale[None], torch.diag(scale)[None]):
        mixed = mix_group(derived.spec, group, weights, freedom.forward, freedom.backward, matrix)
        assert all(torch.allclose(mixed[k], expected[k], rtol=1e-12) for k in weights)
    full = torch.randn(1, 12, 12, dtype=torch.float64)
    mixed = mix_group(derived.spec, group, weights, freedom.forward, freedom.backward, full)
    assert torch.allclose(mixed["0.weight"], full[0] @ weights["0.weight"], rtol=1e-12)
    assert torch.allclose(mixed["2.weight"], weights["2.weight"] @ torch.linalg.inv(full[0]), rtol=1e-9)


def test_head_maps_act_head_by_head() -> None:
    """Queries of head h by M_h, keys by M_h⁻ᵀ; values by M_h, the output map by M_h⁻¹ from the right: by hand."""
    module, derived, freedoms, _, _ = found_in("attention without biases")
    weights = randomised(module, 3)
    maps = [f for f in freedoms if f.kind == "head-maps"]
    assert len(maps) == 2
    for freedom in maps:
        group = derived.spec.by_name[freedom.group]
        matrix = random_matrix(group, "head-maps")
        mixed = mix_group(derived.spec, group, weights, freedom.forward, freedom.backward, matrix)
        touched = {slot.tensor.rsplit(".", 2)[-2]: slot.tensor for slot in (*freedom.forward, *freedom.backward)}
        assert set(touched) in ({"q", "k"}, {"v", "out"})
        for head, m in enumerate(matrix):
            rows, back = slice(8 * head, 8 * head + 8), torch.linalg.inv(m)
            if "v" in touched:
                assert torch.allclose(mixed[touched["v"]][rows], m @ weights[touched["v"]][rows], rtol=1e-9)
                assert torch.allclose(
                    mixed[touched["out"]][:, rows], weights[touched["out"]][:, rows] @ back, rtol=1e-9
                )
            else:
                first = next(slot.tensor for slot in freedom.forward)
                second = next(slot.tensor for slot in freedom.backward)
                assert torch.allclose(mixed[first][rows], m @ weights[first][rows], rtol=1e-9)
                assert torch.allclose(mixed[second][rows], back.T @ weights[second][rows], rtol=1e-9)


def test_balance_makes_what_makes_and_what_reads_as_large() -> None:
    """Of one hidden layer: row and column norms agree unit by unit, and products of weights are what they were."""
    module, derived, freedoms, _, _ = found_in("relu")
    weights = randomised(module, 3)
    weights["0.weight"] = weights["0.weight"] * torch.logspace(-2, 2, 12).double()[:, None]
    result = balance(derived.spec, list(freedoms), weights)
    made = (result["0.weight"] ** 2).sum(1) + result["0.bias"] ** 2
    assert torch.allclose(made, (result["2.weight"] ** 2).sum(0), rtol=1e-9)
    before = weights["2.weight"][:, :, None] * weights["0.weight"][None]
    assert torch.allclose(result["2.weight"][:, :, None] * result["0.weight"][None], before, rtol=1e-9)


@pytest.mark.parametrize("name", ["relu deep", "vgg"])
def test_balance_forgets_the_scales_a_network_came_with(name: str) -> None:
    """Two networks that differ by rescaling alone are the same network once balanced."""
    module, derived, freedoms, _, _ = found_in(name)
    weights = other = randomised(module, 3)
    rescaling = [f for f in freedoms if f.kind == "rescaling"]
    for freedom in rescaling:
        group = derived.spec.by_name[freedom.group]
        other = mix_group(
            derived.spec, group, other, freedom.forward, freedom.backward, random_matrix(group, "rescaling")
        )
    one, two = (balance(derived.spec, rescaling, w) for w in (weights, other))
    assert all(torch.allclose(one[k], two[k], rtol=1e-6) for k in one if one[k].is_floating_point())
