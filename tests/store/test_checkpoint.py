"""Safetensors in and out: headers without torch, nothing lost on the way through."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lmccheck
from lmccheck.store import files


def test_header_agrees_with_the_library(tmp_path: Path) -> None:
    """Names, dtypes, shapes and metadata equal those that safetensors itself reads."""
    tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(4, dtype=torch.bfloat16),
        "c": torch.tensor(3),
        "d": torch.zeros(0, 2),
    }
    save_file(tensors, str(tmp_path / "x.safetensors"), metadata={"k": "v"})
    header = files.read_header(tmp_path / "x.safetensors")
    with safe_open(str(tmp_path / "x.safetensors"), "pt") as file:
        assert set(file.keys()) == set(header.tensors)
        assert {k: tuple(file.get_slice(k).get_shape()) for k in tensors} == {
            k: h.shape for k, h in header.tensors.items()
        }
        assert {k: file.get_slice(k).get_dtype() for k in tensors} == {k: h.dtype for k, h in header.tensors.items()}
    assert header.metadata == {"k": "v"}


def test_headers_are_read_without_torch(tmp_path: Path) -> None:
    """The manifest item must not pay for a deep-learning library."""
    save_file({"a": torch.zeros(1)}, str(tmp_path / "x.safetensors"))
    code = (
        "import sys; from lmccheck.store.files import read_header; "
        f"read_header({str(tmp_path / 'x.safetensors')!r}); print('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_aligned_weights_keep_dtype_metadata_and_every_number(tmp_path: Path, dtype: torch.dtype) -> None:
    """save_aligned writes θ_B's own numbers, dtype and metadata, and the permutation that reproduces it."""
    from networks.small import seeded, small_mlp

    paths = []
    for k in (0, 1):
        state = {name: value.to(dtype) for name, value in seeded(small_mlp, k).items()}
        paths.append(tmp_path / f"{k}.safetensors")
        save_file(state, str(paths[k]), metadata={"format": "pt", "step": str(k)})
    data = torch.randn(8, 4), torch.zeros(8, dtype=torch.int64)
    pair = lmccheck.load_pair(paths[0], paths[1], model=small_mlp, data=data)
    alignment = lmccheck.align(pair)
    out = lmccheck.save_aligned(alignment, tmp_path / "deep" / "b-aligned.safetensors")
    header = files.read_header(out)
    assert header.metadata == {"format": "pt", "step": "1"}
    original, written = load_file(str(paths[1])), load_file(str(out))
    assert {k: v.dtype for k, v in original.items()} == {k: v.dtype for k, v in written.items()}
    for name in original:
        assert torch.equal(original[name].flatten().sort().values, written[name].flatten().sort().values)
    permutation = load_file(str(out.with_name("b-aligned.permutation.safetensors")))
    again = alignment.spec.apply(original, permutation)
    assert all(torch.equal(again[k], written[k]) for k in original)


def test_tied_weights_may_be_stored_once_or_twice(tmp_path: Path) -> None:
    """A file without the second name of a tied tensor loads; a file whose two names differ is refused."""
    from networks import LanguageModel

    torch.manual_seed(0)
    states = [LanguageModel().state_dict() for _ in range(2)]
    data = torch.randint(0, 11, (4, 6)), torch.randint(0, 11, (4, 6))
    once = [{k: v for k, v in state.items() if k != "head.weight"} for state in states]
    pair = lmccheck.load_pair(*once, model=LanguageModel, data=data, loss="next_token")
    assert pair.theta_b["head.weight"] is pair.theta_b["tokens.weight"]
    aligned = lmccheck.align(pair).weights
    assert aligned["head.weight"] is aligned["tokens.weight"]
    twice = [{k: v.clone() for k, v in state.items()} for state in states]
    assert (
        lmccheck.load_pair(*twice, model=LanguageModel, data=data, loss="next_token").theta_a["head.weight"] is not None
    )
    twice[1]["head.weight"] += 1
    with pytest.raises(lmccheck.CheckpointError, match="they are one tensor"):
        lmccheck.load_pair(*twice, model=LanguageModel, data=data, loss="next_token")
