"""100 damaged permutation specs: refused in lines, or such that the network's function does stay as it is."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import NAMES, bytes_changed, outcome, values
from networks.small import small_mlp
from torch.func import functional_call

import lmccheck
from lmccheck.errors import SymmetryError
from lmccheck.network.network import load_network
from lmccheck.symmetry.spec import PermutationSpec

COUNT, ROUNDS = 100, 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The spec of a small network, as JSON has it."""
    import tomllib

    path = tmp_path_factory.mktemp("spec") / "spec.toml"
    lmccheck.save_spec(lmccheck.discover_symmetry(small_mlp(), (torch.zeros(2, 4),)), path)
    return tomllib.loads(path.read_text())


def damaged(rng: random.Random, base: dict[str, Any]) -> bytes:
    """Return the spec after a few damages of what it says, or of its bytes."""
    document = json.loads(json.dumps(base))
    for _ in range(rng.choice([0, 1, 1, 2])):
        table = document
        if rng.random() < 0.9:
            groups = document.get("group")
            table = rng.choice(groups) if groups and isinstance(groups, list) else document
        slots = table.get("slots") if isinstance(table, dict) else None
        if slots and isinstance(slots, list) and rng.random() < 0.7:
            table = rng.choice(slots)
        if not isinstance(table, dict) or not table:
            continue
        key, kind = rng.choice(list(table)), rng.randrange(4)
        if kind == 0:
            table.pop(key)
        elif kind == 1:
            table[rng.choice([*NAMES, "start", "dim", "view", "strides", "size"])] = rng.choice([0, 1, 2, 3, [2, 3]])
        elif kind == 2 and isinstance(table[key], list) and len(table[key]) > 1:
            rng.shuffle(table[key])
            table[key].pop()
        else:
            table[key] = values(rng)
    content = json.dumps(document).encode("utf-8", "surrogatepass")
    return bytes_changed(rng, content) if rng.random() < 0.15 else content


def keeps(spec: PermutationSpec, rng: random.Random) -> bool:
    """Whether a random member of the spec's group keeps a random network's function, in float64."""
    torch.manual_seed(rng.randrange(2**31))
    module = small_mlp().double()
    theta = {name: torch.randn_like(tensor) for name, tensor in module.state_dict().items()}
    moved = spec.apply(theta, {group.name: torch.randperm(group.size) for group in spec.groups})
    inputs = torch.randn(16, 4, dtype=torch.float64)
    one, other = functional_call(module, theta, (inputs,)), functional_call(module, dict(moved), (inputs,))
    return bool(torch.allclose(one, other, rtol=1e-9, atol=1e-9))


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_damaged_specs(tmp_path: Path, base: dict[str, Any], seed: int) -> None:
    """No traceback, no wait; whatever is used in the end keeps f(π·θ) = f(θ), seen by running both."""
    rng, path, module = random.Random(2000 + seed), tmp_path / "spec.json", small_mlp()
    data = torch.randn(8, 4), torch.zeros(8, dtype=torch.int64)
    used = 0
    for number in range(COUNT // ROUNDS):
        what = f"seed {seed}, spec {number}"
        path.write_bytes(damaged(rng, base))
        found, _ = outcome(what, lambda: lmccheck.load_spec(path, module), SymmetryError)

        def verified() -> PermutationSpec:
            return load_network(name="p", model=module, data=data, symmetry=path).spec

        spec, _ = outcome(what, verified, SymmetryError)
        assert spec is None or found is not None, what
        if spec is not None:
            used += 1
            assert all(keeps(spec, rng) for _ in range(3)), f"{what}: used, though it changes the function"
    assert 2 <= used < COUNT // ROUNDS
