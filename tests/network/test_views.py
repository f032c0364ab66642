"""Pairs, sets and pairs of two widths are views of networks and endpoints: loaded by one code, traced once."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from networks.small import seeded, small_mlp
from safetensors.torch import save_file
from torch import nn

import lmccheck
from lmccheck.errors import CheckpointError, SymmetryError
from lmccheck.network import network as network_module
from lmccheck.store.checkpoint import open_checkpoint

DATA = (torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2]))
GIVEN: dict[str, Any] = {"model": small_mlp, "data": DATA}


def wider() -> nn.Module:
    """small_mlp with other hidden widths."""
    return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))


def test_a_network_is_traced_once_for_all_its_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs of a set, and pairs with other weights, share one trace and one verified spec."""
    calls = []
    derive = network_module.derive
    monkeypatch.setattr(network_module, "derive", lambda *given: calls.append(1) or derive(*given))
    models = lmccheck.load_set([seeded(small_mlp, k) for k in range(3)], **GIVEN)
    specs = [models.pair(i, j).network.spec for i in range(3) for j in range(3) if i != j]
    pair = models.pair(0, 1)
    specs += [pair.with_weights(pair.theta_b, pair.theta_a).network.spec]
    assert models.network.traced is not None
    assert models.network.traced.spec is specs[0]
    assert all(spec is specs[0] for spec in specs)
    assert calls == [1]


def test_what_a_pair_computed_once_is_its_own() -> None:
    """``once`` keeps by function and arguments; pairs with other weights or data begin anew."""
    pair = lmccheck.load_pair(seeded(small_mlp, 0), seeded(small_mlp, 1), **GIVEN)
    made: list[int] = []

    def make(pair: lmccheck.ModelPair, number: int) -> int:
        made.append(number)
        return number + len(pair.theta_a)

    assert [pair.once(make, 1), pair.once(make, 1), pair.once(make, 2)] == [7, 7, 8]
    assert made == [1, 2]
    others = [pair.with_weights(pair.theta_a, pair.theta_b), pair.measured_on(pair.data, pair.data)]
    assert [other.once(make, 1) for other in others] == [7, 7]
    assert made == [1, 2, 1, 1]
    assert (others[1].calibration, pair.calibration) == (pair.data, None)


def test_a_pair_and_what_it_kept_are_freed_together() -> None:
    """Nothing outside of a pair holds its weights once it is gone, alignments and the trace included."""
    pair = lmccheck.load_pair(seeded(small_mlp, 0), seeded(small_mlp, 1), **GIVEN)
    alive = [weakref.ref(tensor) for tensor in (*pair.theta_a.values(), *lmccheck.align(pair).weights.values())]
    assert lmccheck.align(pair) is lmccheck.align(pair)
    del pair
    gc.collect()
    assert not [reference for reference in alive if reference() is not None]


def test_a_file_and_a_state_dict_are_described_alike(tmp_path: Path) -> None:
    """Names, shapes, dtypes and sizes, known before a tensor is read; only the file has a path and a hash."""
    state = {"w": torch.zeros(2, 3).bfloat16(), "n": torch.zeros(2, dtype=torch.int64), "b": torch.zeros(3)}
    save_file(state, str(tmp_path / "x.safetensors"), {"note": "x"})
    file, memory = (open_checkpoint(given, tmp_path, "a") for given in ("x.safetensors", state))
    assert dict(file.tensors) == dict(memory.tensors)
    assert file.facts() | {"path": None, "sha256": None} == memory.facts()
    assert (memory.facts()["parameters"], memory.facts()["dtype"]) == (9, "bfloat16+float32")
    assert file.metadata == {"note": "x"}
    assert all(torch.equal(file.read()[name], tensor) for name, tensor in state.items())
    with pytest.raises(CheckpointError, match="state dict a: got a pin, expected one for files only"):
        open_checkpoint(state, tmp_path, "a", "0" * 64)
    with pytest.raises(CheckpointError, match=r"a: got int, expected .* or a \.safetensors path or a state dict"):
        open_checkpoint(3, tmp_path, "a")


def test_two_widths_are_two_networks_on_one_set_of_data() -> None:
    """Each endpoint fits its own network; data and loss are those of the first."""
    pair = lmccheck.load_widths(
        seeded(small_mlp, 0), seeded(wider, 1), model_a=small_mlp, model_b=wider, data=DATA, loss="cross_entropy"
    )
    assert [end.theta["0.weight"].shape[0] for end in (pair.a, pair.b)] == [6, 9]
    assert pair.a.network.data is pair.b.network.data
    assert [end.network.spec.groups[0].size for end in (pair.a, pair.b)] == [6, 9]
    assert {"model", "model_b", "files", "data", "loss"} <= pair.description.keys()
    with pytest.raises(CheckpointError, match=r"state dict b: tensor '0\.weight' has shape \(6, 4\), model"):
        lmccheck.load_widths(seeded(small_mlp, 0), seeded(small_mlp, 1), model_a=small_mlp, model_b=wider, data=DATA)


def test_a_spec_that_is_handed_in_is_verified_before_use() -> None:
    """And what needs the traced network says that it was not traced."""
    states = seeded(small_mlp, 0), seeded(small_mlp, 1)
    spec = lmccheck.discover_symmetry(small_mlp(), (DATA[0][:2],))
    good = lmccheck.load_pair(*states, **GIVEN, symmetry=spec)
    assert good.network.spec is spec
    assert good.network.traced is None
    with pytest.raises(lmccheck.UnsupportedArchitecture, match="leave out `symmetry`"):
        good.network.structure("a test")
    groups = [{"name": "0", "size": 6, "slots": [{"tensor": "0.weight"}]}]
    wrong = lmccheck.spec_from_groups(small_mlp(), groups)
    with pytest.raises(SymmetryError, match="this permutation spec changes the output"):
        _ = lmccheck.load_pair(*states, **GIVEN, symmetry=wrong).network.spec


@pytest.mark.parametrize(("models", "got"), [([], r"got 0 model\(s\)"), ("a.safetensors", "got str")])
def test_a_set_has_at_least_two_models(models: Any, got: str) -> None:
    """In one line, before anything is built."""
    with pytest.raises(CheckpointError, match=f"models: {got}, expected"):
        lmccheck.load_set(models, **GIVEN)
