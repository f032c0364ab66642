"""Sets of networks: permuted copies, trained digits, tiny ones."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import lmccheck
from lmccheck.alignment.many import ManyAlignment
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of
from networks.registry import discovered
from networks.small import small_mlp

FIXTURES = Path(__file__).parents[2] / "fixtures"


DIGITS: dict[str, Any] = {
    "model": "models:mlp",
    "data": "digits-test.safetensors",
    "calibration": "digits-train.safetensors",
    "base": FIXTURES,
}


def shipped(kind: str, device: str = "cpu") -> lmccheck.ModelPair:
    """Return a shipped pair, as fixtures/lmc.toml describes it."""
    given = {**DIGITS, "model": f"models:{kind}", "device": device}
    return lmccheck.load_pair(*(f"{kind}-seed{k}.safetensors" for k in range(2)), **given)


SMALL: dict[str, Any] = {
    "model": small_mlp,
    "data": (
        torch.randn(40, 4, generator=torch.Generator().manual_seed(0)),
        torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1)),
    ),
}


def planted(name: str, count: int, seed: int = 0) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """Return ``count`` permuted copies of a random network in float64, and what else align_many needs."""
    module, inputs, spec = discovered(name)
    torch.manual_seed(seed)
    theta = randomised(module, seed)
    samples = torch.randn(24, *inputs[0].shape[1:])
    targets = outputs_of(module, theta, (samples,), torch.float64)[0]  # θ's own outputs: every copy has loss zero
    data = samples, targets
    copies = [spec.apply(theta, spec.random(seed + k)) for k in range(count)]
    return copies, {"model": module, "data": data, "calibration": data, "loss": "mse"}


def noisy(weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: v + 0.2 * v.std() * torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in weights.items()}


def equal_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def objective(many: ManyAlignment) -> float:
    """Σ_{i<j}⟨θ_i, θ_j⟩ over learned tensors with slots, written out; for networks without BatchNorm."""
    learned = {s.tensor for g in many.spec.groups for s in g.slots if s.learned}
    return sum(float((a[k].double() * b[k].double()).sum()) for a, b in combinations(many.weights, 2) for k in learned)


def digit_set() -> ManyAlignment:
    """Both trained digit networks and a permuted noisy copy of the first, in one frame."""
    first = load_file(FIXTURES / "mlp-seed0.safetensors")
    spec = lmccheck.align(lmccheck.load_pair("mlp-seed0.safetensors", "mlp-seed1.safetensors", **DIGITS)).spec
    copy = spec.apply(noisy(first, 0), spec.random(1))
    return lmccheck.align_many(["mlp-seed0.safetensors", "mlp-seed1.safetensors", copy], **DIGITS)
