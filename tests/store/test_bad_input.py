"""Bad input: one line that names the file, the key or tensor, what was found, what is expected, and the mend."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Written
from networks.small import seeded, small_batchnorm, small_mlp
from safetensors.torch import load_file, save_file
from torch import nn

import lmccheck
from lmccheck import CheckpointError, DeviceError, LmcError, SourceError

Load = Callable[..., lmccheck.ModelPair]


def said(error: pytest.ExceptionInfo[LmcError], *words: str) -> str:
    """Return the message after checking that it is one line and holds every word."""
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, f"{word!r} not in {text!r}"
    return text


def rewrite(folder: Path, name: str, **tensors: Any) -> None:
    """Change tensors of a file; None removes one."""
    state = {**load_file(str(folder / name)), **tensors}
    save_file({k: v for k, v in state.items() if v is not None}, str(folder / name))


def test_missing_file(load: Load) -> None:
    """A path that does not exist is named."""
    with pytest.raises(CheckpointError) as error:
        load(a="nowhere.safetensors")
    said(error, "nowhere.safetensors", "no such file", "mend")


def test_a_folder_instead_of_a_file(load: Load, folder: Path) -> None:
    """A folder is not read as a checkpoint."""
    with pytest.raises(CheckpointError) as error:
        load(a=str(folder))
    said(error, "folder", "expected")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_checkpoint(load: Load, folder: Path, keep: int) -> None:
    """A file cut anywhere is refused before any tensor is used."""
    path = folder / "b.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError) as error:
        load()
    said(error, "b.safetensors", "truncated or corrupt", "mend")


@pytest.mark.parametrize(
    "content",
    [b"\x10\0\0\0\0\0\0\0{not json at all}", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 64, b'\x0a\0\0\0\0\0\0\0{"a": [1]}'],
)
def test_corrupt_checkpoint(load: Load, folder: Path, content: bytes) -> None:
    """Bytes that are no safetensors file are refused, whatever they are."""
    (folder / "b.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load()
    said(error, "b.safetensors", "corrupt")


@pytest.mark.parametrize("name", ["b.pt", "b.bin", "renamed.safetensors"])
def test_pickle(load: Load, folder: Path, name: str) -> None:
    """A pickle is refused by name or by content, never loaded, and the conversion is shown."""
    if name == "renamed.safetensors":
        (folder / name).write_bytes(pickle.dumps({"a": 1}))
    else:
        torch.save({"a": torch.zeros(1)}, folder / name)
    with pytest.raises(CheckpointError) as error:
        load(b=name)
    said(error, name, "pickle", "save_file")


def test_tensor_missing_from_one_endpoint(load: Load, folder: Path) -> None:
    """The tensor and both files are named."""
    rewrite(folder, "b.safetensors", **{"2.bias": None})
    with pytest.raises(CheckpointError) as error:
        load()
    said(error, "'2.bias' is missing", "a.safetensors", "b.safetensors")


def test_extra_tensor_in_one_endpoint(load: Load, folder: Path) -> None:
    """An extra tensor is as wrong as a missing one."""
    rewrite(folder, "b.safetensors", extra=torch.zeros(1))
    with pytest.raises(CheckpointError) as error:
        load()
    said(error, "'extra'")


def test_shapes_that_differ(load: Load, folder: Path) -> None:
    """Both shapes are shown."""
    rewrite(folder, "b.safetensors", **{"2.bias": torch.zeros(7)})
    with pytest.raises(CheckpointError) as error:
        load()
    said(error, "'2.bias'", "(7,)", "(5,)")


def test_checkpoint_of_another_model(load: Load) -> None:
    """Names or shapes that the model does not have are named with the model."""
    with pytest.raises(CheckpointError) as error:
        load(model=lambda: nn.Sequential(nn.Linear(4, 6)))
    said(error, "is unknown to model Sequential")
    with pytest.raises(CheckpointError) as error:
        load(model=lambda: nn.Sequential(*small_mlp(), nn.Linear(3, 3)))
    said(error, "is missing, model Sequential has it")
    with pytest.raises(CheckpointError) as error:
        load(model=lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)))
    said(error, "'0.weight'", "(6, 4)", "(8, 4)")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(load: Load, folder: Path, value: float) -> None:
    """NaN and Inf are counted and located."""
    rewrite(folder, "b.safetensors", **{"2.bias": torch.tensor([0.0, value, 0, 0, 0])})
    with pytest.raises(CheckpointError) as error:
        load()
    said(error, "b.safetensors", "'2.bias'", "among 5 values")


def test_pin_mismatch(load: Load) -> None:
    """A file that is not the pinned one is refused with both hashes."""
    with pytest.raises(CheckpointError) as error:
        load(sha256={"a": "0" * 64})
    said(error, "a.safetensors", "sha256", "0" * 64)


def test_nan_loss_of_an_endpoint(load: Load) -> None:
    """A loss that is NaN at an endpoint is an error with the sample's number, not a verdict."""

    def broken(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.where(targets == targets[3], float("nan"), 0.0)

    with pytest.raises(SourceError) as error:
        lmccheck.linear_connectivity(load(loss=broken))
    said(error, "a.safetensors", "nan at sample", "expected finite losses")


def test_targets_of_the_wrong_length(load: Load, folder: Path) -> None:
    """As many targets as inputs."""
    rewrite(folder, "data.safetensors", targets=torch.zeros(19, dtype=torch.int64))
    with pytest.raises(SourceError) as error:
        load()
    said(error, "data.safetensors", "20 inputs", "19 targets")


def test_targets_of_the_wrong_dtype(load: Load, folder: Path) -> None:
    """Class indices are integers."""
    rewrite(folder, "data.safetensors", targets=torch.zeros(20))
    with pytest.raises(SourceError) as error:
        lmccheck.linear_connectivity(load())
    said(error, "data.safetensors", "'targets' is float32", "int64")


def test_targets_out_of_range(load: Load, folder: Path) -> None:
    """Classes the model does not have are shown as a range."""
    rewrite(folder, "data.safetensors", targets=torch.full((20,), 3))
    with pytest.raises(SourceError) as error:
        lmccheck.linear_connectivity(load())
    said(error, "classes 3..3", "3 outputs")


def test_targets_of_the_wrong_shape(load: Load, folder: Path) -> None:
    """mse never broadcasts (n, 3) against (n,)."""
    rewrite(folder, "data.safetensors", targets=torch.zeros(20))
    with pytest.raises(SourceError) as error:
        lmccheck.linear_connectivity(load(loss="mse"))
    said(error, "(20,)", "(20, 3)")


def test_empty_data(load: Load, folder: Path) -> None:
    """No samples, no verdict."""
    rewrite(folder, "data.safetensors", inputs=torch.zeros(0, 4), targets=torch.zeros(0, dtype=torch.int64))
    with pytest.raises(SourceError) as error:
        load()
    said(error, "data.safetensors", "0 samples")


def test_data_without_targets(load: Load, folder: Path) -> None:
    """The tensors that are there are listed."""
    rewrite(folder, "data.safetensors", targets=None)
    with pytest.raises(SourceError) as error:
        load()
    said(error, "'targets'", "['inputs']")


def test_data_with_nan(load: Load, folder: Path) -> None:
    """NaN in the inputs is the data's fault and is said to be."""
    rewrite(folder, "data.safetensors", inputs=torch.full((20, 4), float("nan")))
    with pytest.raises(SourceError) as error:
        load()
    said(error, "data.safetensors", "'inputs'", "NaN")


def test_data_of_the_wrong_width(load: Load, folder: Path) -> None:
    """An input the model cannot take names the data and the shape."""
    rewrite(folder, "data.safetensors", inputs=torch.zeros(20, 5))
    with pytest.raises(SourceError) as error:
        lmccheck.linear_connectivity(load())
    said(error, "data.safetensors", "(20, 5)")


def test_model_callable_that_raises(load: Load, folder: Path) -> None:
    """The callable and what it raised are in the line."""
    (folder / "models.py").write_text("def mlp():\n    raise RuntimeError('no weights here')\n")
    with pytest.raises(SourceError) as error:
        load()
    said(error, "models:mlp", "RuntimeError: no weights here")


def test_model_callable_that_returns_no_module(load: Load) -> None:
    """A dict is not a network."""
    with pytest.raises(SourceError) as error:
        load(model=lambda: {})
    said(error, "returned dict", "torch.nn.Module")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("models.mlp", ["'module:name'"]),
        ("modles:mlp", ["no module 'modles'"]),
        ("models:mpl", ["no 'mpl'", "did you mean 'mlp'"]),
    ],
)
def test_model_reference_that_leads_nowhere(load: Load, reference: str, words: list[str]) -> None:
    """Each part of the reference that is wrong is named."""
    with pytest.raises(SourceError) as error:
        load(model=reference)
    said(error, reference, *words)


def test_module_with_an_error_in_it(load: Load, folder: Path) -> None:
    """A module that cannot be imported says why."""
    (folder / "broken_models.py").write_text("import no_such_library\n")
    with pytest.raises(SourceError) as error:
        load(model="broken_models:mlp")
    said(error, "no_such_library", "not installed")


def test_batchnorm_without_calibration() -> None:
    """BatchNorm statistics are never interpolated; without calibration data there is no verdict."""
    states = [seeded(small_batchnorm, k) for k in (0, 1)]
    data = torch.randn(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)
    pair = lmccheck.load_pair(*states, model=small_batchnorm, data=data)
    with pytest.raises(SourceError) as error:
        lmccheck.linear_connectivity(pair)
    said(error, "1 BatchNorm layer", "calibration")


@pytest.mark.parametrize("device", ["cuda:0", "cuda:99", "tpu", "cuda:x"])
def test_device_that_is_not_there(load: Load, device: str) -> None:
    """A device that cannot be had is an error, never a quiet fall-back."""
    with pytest.raises(DeviceError) as error:
        load(device=device)
    said(error, device, "mend")


def test_unknown_loss(load: Load) -> None:
    """The nearest name is offered."""
    with pytest.raises(SourceError) as error:
        load(loss="cross_entropi")
    said(error, "did you mean 'cross_entropy'")


def test_loss_that_is_already_reduced(load: Load) -> None:
    """A mean is not a per-sample loss."""
    with pytest.raises(SourceError) as error:
        lmccheck.linear_connectivity(load(loss=nn.functional.cross_entropy))
    said(error, "one loss per sample")


@pytest.mark.parametrize(
    "settings",
    [
        {"limit": -1},
        {"limit": "many"},
        {"limit": float("nan")},
        {"limit": True},
        {"points": 2},
        {"align": "wieght-matching"},
        {"limit": None},
        {"seed": "a"},
    ],
)
def test_settings_that_make_no_sense(load: Load, settings: dict[str, Any]) -> None:
    """Limits, grids and methods are checked before anything runs."""
    with pytest.raises(LmcError) as error:
        lmccheck.linear_connectivity(load(), **settings)
    said(error, next(iter(settings)))


def test_aligned_weights_that_cannot_be_written(load: Load, folder: Path) -> None:
    """The path is named and nothing half-written is left."""
    (folder / "file").write_text("")
    with pytest.raises(CheckpointError) as error:
        lmccheck.save_aligned(lmccheck.align(load()), folder / "file" / "b.safetensors")
    said(error, "cannot be written")


def test_calibration_of_the_wrong_width_or_too_small() -> None:
    """What neither matching nor re-estimation can run on is the calibration data's fault and is said to be."""
    states = [seeded(small_batchnorm, k) for k in (0, 1)]
    data = torch.randn(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)
    for inputs in (torch.randn(8, 2, 4, 4), torch.randn(1, 1, 3, 3)):
        calibration = inputs, torch.zeros(len(inputs), dtype=torch.int64)
        pair = lmccheck.load_pair(*states, model=small_batchnorm, data=data, calibration=calibration)
        with pytest.raises(SourceError) as error:
            lmccheck.linear_connectivity(pair)
        said(error, "calibration", "mend")


def test_model_callable_that_ends_the_program(load: Load) -> None:
    """A model file that calls sys.exit does not end the gate."""

    def build() -> nn.Module:
        raise SystemExit(2)

    with pytest.raises(SourceError) as error:
        load(model=build)
    said(error, "SystemExit: 2")


def test_targets_that_are_a_scalar(load: Load, folder: Path) -> None:
    """One target a sample."""
    rewrite(folder, "data.safetensors", targets=torch.tensor(1))
    with pytest.raises(SourceError) as error:
        load()
    said(error, "data.safetensors", "scalar")


def test_float8_checkpoint(load: Load, folder: Path) -> None:
    """Quantised weights need their scales; they are refused, not evaluated as they are."""
    for name in ("a.safetensors", "b.safetensors"):
        rewrite(folder, name, **{"2.bias": torch.zeros(5).to(torch.float8_e4m3fn)})
    with pytest.raises(CheckpointError) as error:
        load()
    said(error, "'2.bias' is float8_e4m3fn", "bfloat16")


def test_a_model_that_makes_its_own_tensors_still_runs_in_float64() -> None:
    """Zeros of the default dtype made inside forward follow the float64 verification."""

    def run(x: torch.Tensor, cell: nn.Module, head: nn.Module) -> torch.Tensor:
        return head(cell(x[:, None], torch.zeros(1, len(x), 6))[0][:, -1])

    def recurrent() -> nn.Module:
        return Written(run, nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3))

    states = [seeded(recurrent, k) for k in (0, 1)]
    data = torch.randn(8, 4), torch.zeros(8, dtype=torch.int64)
    assert lmccheck.align(lmccheck.load_pair(*states, model=recurrent, data=data)).function_deviation <= 1e-9
