"""The merged file holds the very network whose loss the curve gives at t."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import Written
from networks.quick import slowly
from networks.sets import shipped
from networks.small import seeded, small_mlp
from safetensors.torch import load_file, save_file
from torch import nn

import lmccheck
from lmccheck.alignment.merge import merged
from lmccheck.errors import CheckpointError, LmcError, SourceError, SymmetryError
from lmccheck.store.files import read_header, sha256_of

FIXTURES = Path(__file__).parents[2] / "fixtures"


def loss_of(path: Path, kind: str) -> float:
    """Return the cross entropy of a file in plain PyTorch."""
    namespace: dict[str, Callable[[], nn.Module]] = {}
    exec((FIXTURES / "models.py").read_text(), namespace)
    module = namespace[kind]()
    module.load_state_dict(load_file(str(path)), strict=True)
    data = load_file(str(FIXTURES / "digits-test.safetensors"))
    with torch.no_grad():
        return nn.functional.cross_entropy(module.eval()(data["inputs"]).double(), data["targets"]).item()


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("repair", [slowly("none"), "bn", "repair"])
@pytest.mark.parametrize("align", [slowly("none"), "weight-matching"])
def test_the_file_has_the_loss_of_the_curve(kind: str, repair: str, align: str, tmp_path: Path) -> None:
    """At every measured t; loaded strictly by the user's own module."""
    pair = shipped(kind)
    result = lmccheck.linear_connectivity(pair, align=align, points=3, profile="dev", repair=repair)
    for t, loss in zip(result.details["t"], result.details["losses"], strict=True):
        path = lmccheck.save_merged(pair, result.witness, tmp_path / "m.safetensors", t=t, repair=repair)
        assert loss_of(path, kind) == pytest.approx(loss, abs=1e-6), t


def test_names_dtypes_and_metadata_are_those_of_a(tmp_path: Path) -> None:
    """One key more says how the file was made."""
    pair = shipped("cnn")
    alignment = lmccheck.align(pair, seed=3)
    path = lmccheck.save_merged(pair, alignment, tmp_path / "new" / "m.safetensors", t=0.25)
    a, written = read_header(FIXTURES / "cnn-seed0.safetensors"), read_header(path)
    assert written.tensors == a.tensors
    said = json.loads(written.metadata.pop("lmccheck"))
    assert written.metadata == a.metadata
    digests = {key: sha256_of(FIXTURES / f"cnn-seed{k}.safetensors") for key, k in (("a", 0), ("b", 1))}
    assert said == {
        "t": 0.25, "method": "weight-matching", "beyond": [], "repair": "bn", "seed": 3, "sha256": digests,
        "version": lmccheck.__version__,
    }  # fmt: skip
    counts = [load_file(str(p))["norm1.num_batches_tracked"] for p in (FIXTURES / "cnn-seed0.safetensors", path)]
    assert counts[0] == counts[1]


def test_metadata_of_a_is_kept(load: Callable[..., lmccheck.ModelPair], tmp_path: Path) -> None:
    """Other keys stay as they are; without an alignment there is no seed."""
    path = lmccheck.save_merged(load(), None, tmp_path / "m.safetensors")
    metadata = read_header(path).metadata
    said = json.loads(metadata.pop("lmccheck"))
    assert metadata == {"format": "pt", "note": "a"}
    assert (said["method"], said["seed"], said["t"]) == ("none", None, 0.5)


def test_what_is_said_of_a_merge_of_merged_files_is_about_that_merge(tmp_path: Path) -> None:
    """No fact of the files that went in stays: t, repair, and which files these were are the last merge's own."""
    pair = shipped("mlp")
    first = lmccheck.save_merged(pair, None, tmp_path / "1.safetensors", t=0.25, repair="none")
    sources = {"model": pair.module, "data": pair.data, "device": "cpu"}
    again = lmccheck.load_pair(first, FIXTURES / "mlp-seed1.safetensors", **sources)
    second = lmccheck.save_merged(again, lmccheck.align(again, seed=5), tmp_path / "2.safetensors", t=0.75)
    said = json.loads(read_header(second).metadata["lmccheck"])
    assert (said["t"], said["method"], said["repair"], said["seed"]) == (0.75, "weight-matching", "bn", 5)
    assert said["sha256"] == {"a": sha256_of(first), "b": sha256_of(FIXTURES / "mlp-seed1.safetensors")}
    written = load_file(str(second))
    middle = merged(again, lmccheck.align(again, seed=5), 0.75)
    assert all(torch.equal(written[name], middle[name]) for name in written)


def test_an_aligned_file_does_not_say_how_the_one_it_came_from_was_merged(tmp_path: Path) -> None:
    """Other metadata is kept; the facts of a merge are about tensors that were not permuted yet."""
    pair = shipped("mlp")
    first = lmccheck.save_merged(pair, None, tmp_path / "1.safetensors")
    sources = {"model": pair.module, "data": pair.data, "device": "cpu"}
    again = lmccheck.load_pair(FIXTURES / "mlp-seed1.safetensors", first, **sources)
    path = lmccheck.align(again, "incoming").save(tmp_path / "aligned.safetensors")
    expected = {key: value for key, value in read_header(first).metadata.items() if key != "lmccheck"}
    assert read_header(path).metadata == expected


def tied() -> nn.Module:
    """A linear layer under two names."""
    parts = {"first": nn.Linear(4, 4), "second": nn.Linear(4, 4), "head": nn.Linear(4, 3)}
    parts["second"].weight = parts["first"].weight
    return Written(lambda s, x: s.head(s.second(s.first(x).relu()).relu()), **parts)


def test_tied_names_are_one_tensor(tmp_path: Path) -> None:
    """Written under the names that A's file has, one or both."""
    states = [seeded(tied, k) for k in (0, 1)]
    for k, state in enumerate(states):
        one = {name: tensor for name, tensor in state.items() if name != "second.weight"}
        save_file(one, str(tmp_path / f"{k}.safetensors"))
    data = torch.randn(20, 4), torch.zeros(20, dtype=torch.int64)
    kwargs = {"model": tied, "data": data, "calibration": data, "device": "cpu"}
    pair = lmccheck.load_pair(*states, **kwargs)
    weights = merged(pair, None, repair="repair")
    assert weights["first.weight"] is weights["second.weight"]
    both = load_file(str(lmccheck.save_merged(pair, None, tmp_path / "m.safetensors")))
    assert torch.equal(both["first.weight"], both["second.weight"])
    pair = lmccheck.load_pair("0.safetensors", "1.safetensors", base=tmp_path, **kwargs)
    path = lmccheck.save_merged(pair, None, tmp_path / "n.safetensors")
    assert read_header(path).tensors.keys() == both.keys() - {"second.weight"}


def test_each_tensor_keeps_the_dtype_of_a() -> None:
    """A mixed file stays mixed; merging is done in float32 and its ends are the files' own numbers."""
    states = [seeded(small_mlp, k) for k in (0, 1)]
    states[0] = {k: v.bfloat16() if k.endswith("weight") else v for k, v in states[0].items()}
    data = torch.randn(20, 4), torch.zeros(20, dtype=torch.int64)
    pair = lmccheck.load_pair(*states, model=small_mlp, data=data, device="cpu")
    middle = merged(pair, None)
    for name, tensor in states[0].items():
        assert middle[name].dtype == tensor.dtype
        assert torch.equal(middle[name], torch.lerp(tensor.float(), states[1][name], 0.5).to(tensor.dtype))
        assert torch.equal(merged(pair, None, 0)[name], tensor)


def test_mistakes(load: Callable[..., lmccheck.ModelPair], tmp_path: Path) -> None:
    """One line each, and nothing is written."""
    pair, path = load(), tmp_path / "m.safetensors"
    for t in (-0.1, 1.5, float("nan"), "0.5", True):
        with pytest.raises(LmcError, match="expected a number from 0 to 1"):
            lmccheck.save_merged(pair, None, path, t=t)  # type: ignore[arg-type]
    with pytest.raises(LmcError, match=r"repair = 'bm'; expected one of \['none', 'bn', 'repair'\]"):
        lmccheck.save_merged(pair, None, path, repair="bm")
    with pytest.raises(LmcError, match="got str, expected an Alignment or None"):
        lmccheck.save_merged(pair, "weight-matching", path)  # type: ignore[arg-type]
    with pytest.raises(SymmetryError, match="the alignment is of another network"):
        lmccheck.save_merged(pair, lmccheck.align(shipped("mlp")), path)
    with pytest.raises(SourceError, match="needs calibration data"):
        lmccheck.save_merged(pair, None, path, repair="repair")
    with pytest.raises(CheckpointError, match="cannot be written"):
        lmccheck.save_merged(pair, None, tmp_path / "a.safetensors" / "m.safetensors")
    assert not path.exists()
