"""Samples that occur in two data sets, whole samples only; files that hold the same tensors."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lmccheck.data.load import Data, load_data
from lmccheck.data.samples import common_samples
from lmccheck.store.checkpoint import Checkpoint, look_at


def data_of(inputs: object, samples: int) -> Data:
    return load_data((inputs, torch.zeros(samples)))


def test_samples_are_common_where_all_of_their_inputs_are() -> None:
    """Counted as a set of rows counts them; a difference in one number, wherever it is, is one."""
    generator = torch.Generator().manual_seed(0)
    mine = torch.randint(0, 2, (500, 9), generator=generator).float()  # few rows, so that many occur in both
    theirs = torch.randint(0, 2, (40, 9), generator=generator).float()
    rows = {tuple(row) for row in theirs.tolist()}
    expected = sum(tuple(row) in rows for row in mine.tolist())
    assert 0 < expected < 500
    assert common_samples(data_of(mine, 500), data_of(theirs, 40)) == expected
    images = torch.rand(30, 3, 40, 40, generator=generator)
    other = images.flip(0).clone()
    for k in range(10):
        other[k, k % 3, 3 * k, 37 - k] += 1e-3  # one pixel, not one of the few that are looked at first
    assert common_samples(data_of(images, 30), data_of(other, 30)) == 20


def test_containers_batches_and_precision_do_not_matter() -> None:
    """A tensor, a tuple or batches of it; −0 and 0; float64 of float32; flat or not."""
    x = torch.randn(12, 6)
    x[0, 0] = 0.0
    y = x.double()
    y[0, 0] = -0.0
    batches = load_data([((part,), torch.zeros(len(part))) for part in y.flip(0).split(5)])
    assert common_samples(data_of(x, 12), batches) == 12
    assert common_samples(data_of(x, 12), data_of(x.reshape(12, 2, 3), 12)) == 12
    two = data_of((x, x + 1), 12)
    assert common_samples(two, data_of((x, x), 12)) == 0
    assert common_samples(two, data_of((x, x + 1), 12)) == 12


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64, torch.bfloat16])
def test_every_kind_of_number_is_compared(dtype: torch.dtype) -> None:
    """Each sample once, against itself."""
    x = torch.arange(160).reshape(20, 8) % 251 % (2 if dtype == torch.bool else 256)
    x[:, :5] = (torch.arange(20)[:, None] >> torch.arange(5)) & 1
    x = x.to(dtype)
    assert common_samples(data_of(x[:11], 11), data_of(x[4:], 16)) == 7


def test_much_data_takes_little_time() -> None:
    """Few numbers of each sample settle most of them: 80 MB in well under two seconds."""
    x = torch.rand(2000, 10_000)
    started = time.perf_counter()
    assert common_samples(data_of(x[:200], 200), data_of(x[100:] + 1, 1900)) == 0
    assert time.perf_counter() - started < 2


def test_files_are_compared_by_their_tensors(tmp_path: Path) -> None:
    """Whatever their metadata, their order and what BatchNorm has counted; one number makes them differ."""
    state = {"a": torch.randn(700_000), "b.weight": torch.ones(3), "n.num_batches_tracked": torch.tensor(1)}

    def file(name: str, metadata: dict[str, str] | None = None, **changed: torch.Tensor) -> Checkpoint:
        save_file({**state, **changed}, tmp_path / name, metadata=metadata)
        return look_at(name, tmp_path, name)

    first = file("first")
    assert first.same_contents(file("copy", {"epoch": "3"}))
    assert first.same_contents(file("later", **{"n.num_batches_tracked": torch.tensor(9)}))
    changed = state["a"].clone()
    changed[-1] += 1e-3
    assert not first.same_contents(file("other", a=changed))
    assert not first.same_contents(file("half", a=state["a"].half()))
    assert not first.same_contents(file("more", c=torch.zeros(1)))


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_samples_that_were_rounded_are_the_same(narrow: torch.dtype) -> None:
    """Calibration in float32 and evaluation data of which 5 of 8 are the same in half precision: 5 are seen."""
    x = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    other = torch.cat([x[:5], torch.randn(3, 7, generator=torch.Generator().manual_seed(1))]).to(narrow)
    whole, half = load_data((x, torch.zeros(20))), load_data((other, torch.zeros(8)))
    assert common_samples(half, whole) == 5
    assert common_samples(whole, half) == 5
