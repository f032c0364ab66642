"""What fuse returns and what it refuses: dtypes, statistics, settings, networks that differ in more than widths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Attention, Written
from networks.small import perceptron
from networks.widths import BUILD, IMAGES, SEQUENCES, VECTORS, copied, fused, mlp, narrow
from safetensors.torch import save_file
from torch import nn

import lmccheck
from lmccheck.modules.runner import outputs_of
from lmccheck.store.header import read_header


def test_float32_checkpoints_keep_their_dtype() -> None:
    """Halves are exact in float32, too."""
    theta = {name: value.float() for name, value in narrow("mlp").items()}
    found = fused("mlp", copied("mlp", theta, 2), theta, 2, 1)
    assert {value.dtype for value in found.weights.values()} == {torch.float32}
    assert found.function_preserving


def test_batchnorm_is_reestimated_on_the_segment() -> None:
    """And without calibration data there is nothing to do it on."""
    theta, wide = narrow("batchnorm"), copied("batchnorm", narrow("batchnorm"), 2)
    build, x = BUILD["batchnorm"]
    y = outputs_of(build(1), theta, (x,), torch.float64)[0]
    given: dict[str, Any] = {"model_a": lambda: build(2), "model_b": lambda: build(1), "data": (x, y), "loss": "mse"}
    result = lmccheck.fused_connectivity(wide, theta, calibration=(x, y), points=3, limit=100.0, **given)
    assert result.passed
    assert max(result.details["losses"]) == pytest.approx(min(result.details["losses"]), rel=1e-9)  # one and the same
    assert any("re-estimated" in note for note in result.details["notes"])
    with pytest.raises(lmccheck.SourceError, match="no calibration data is given"):
        lmccheck.fused_connectivity(wide, theta, norm="weights", **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": -1}, "limit = -1; expected a number"),
        ({"limit": "five"}, "limit = 'five'; expected"),
        ({"points": 2}, "points = 2; expected a whole number from 3 to 10001"),
        ({"profile": "quick"}, 'profile = \'quick\'; expected "dev", "ci" or "thorough"'),
        ({"norm": "weigths"}, r"norm = 'weigths' \(did you mean 'weights'\?\)"),
        ({"seed": 0.5}, "seed = 0.5; expected an integer"),
        ({"calibration": None}, "norm = 'activations' needs calibration data"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    theta = narrow("mlp")
    data = VECTORS, torch.zeros(64, 4, dtype=torch.float64)
    given = {"data": data, "calibration": data, "loss": "mse", **options}
    with pytest.raises(lmccheck.LmcError, match=message) as caught:
        lmccheck.fused_connectivity(theta, theta, model_a=mlp, model_b=mlp, **given)
    assert "\n" not in str(caught.value)


# refusals


def heads(count: int) -> nn.Module:
    """Attention of so many heads, then a linear layer."""
    parts = {"first": nn.Linear(6, 8), "attention": Attention(8, count, "separate"), "head": nn.Linear(8, 2)}
    return Written(lambda s, x: s.head(s.attention(s.first(x))), **parts)


def tied(width: int) -> nn.Module:
    """An encoder whose transpose decodes."""
    return Written(lambda s, x: F.linear(F.relu(s.encoder(x)), s.encoder.weight.t()), encoder=nn.Linear(6, width))


def extra(size: int) -> nn.Module:
    """A stored tensor that nothing reads."""
    return Written(lambda s, x: s.net(x), net=mlp(1), unread=nn.Parameter(torch.zeros(size)))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "depth": (lambda: perceptron(6, 8, 4), lambda: perceptron(6, 8, 8, 4), "tensor '4.weight' is in b and not in a"),
    "width one": (lambda: perceptron(6, 8, 4), lambda: perceptron(6, 1, 4), r"group '0' \(8 units\) of a is none in b"),
    "outputs": (
        lambda: perceptron(6, 8, 4),
        lambda: perceptron(6, 8, 5),
        "dimension 0 of tensor '2.weight' has 4 .* and 5",
    ),
    "heads": (lambda: heads(2), lambda: heads(4), "group 'attention.q/0' has 1 × 2 units in a and 1 × 4 in b"),
    "tied": (lambda: tied(8), lambda: tied(5), "'encoder.weight' both makes and reads them"),
    "unread": (lambda: extra(3), lambda: extra(4), "dimension 0 of tensor 'unread' has 3 positions in a and 4"),
    "kernel": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)),
        "dimension 2 of tensor '0.weight' has 1 positions in a and 3 in b",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_networks_that_differ_in_more_than_widths_are_refused(name: str) -> None:
    """In one line that names the tensor or the group."""
    build_a, build_b, message = REFUSED[name]
    torch.manual_seed(0)
    a, b = build_a(), build_b()
    x = SEQUENCES.float() if name == "heads" else IMAGES.float() if name == "kernel" else VECTORS.float()
    data = x, torch.zeros(len(x))
    with pytest.raises(lmccheck.UnsupportedArchitecture, match=message) as caught:
        lmccheck.fuse(a.state_dict(), b.state_dict(), model_a=a, model_b=b, data=data, loss="mse", norm="weights")
    assert "\n" not in str(caught.value)
    assert "mend" in str(caught.value)


def test_each_endpoint_is_checked_against_its_own_network(tmp_path: Path) -> None:
    """Paths and state dicts; the message says whose it is."""
    torch.manual_seed(0)
    wide, slim = mlp(2), mlp(1)
    for name, module in (("wide", wide), ("slim", slim)):
        save_file(module.state_dict(), tmp_path / f"{name}.safetensors", metadata={"of": name})
    data = VECTORS.float(), torch.zeros(64, dtype=torch.int64)
    given: dict[str, Any] = {"data": data, "calibration": data, "base": tmp_path}
    found = lmccheck.fuse("wide.safetensors", "slim.safetensors", model_a=wide, model_b=slim, **given)
    assert found.metadata == {"of": "slim"}
    found.ship(tmp_path / "fused.safetensors", ())
    said = read_header(tmp_path / "fused.safetensors").metadata
    assert json.loads(said.pop("lmccheck")) == {"method": "soft transport", "norm": "activations", "seed": 0}
    assert said == {"of": "slim"}
    with pytest.raises(lmccheck.CheckpointError, match=r"slim.safetensors: tensor '0.weight' has shape \(5, 6\)"):
        lmccheck.fuse("wide.safetensors", "slim.safetensors", model_a=wide, model_b=wide, **given)
    with pytest.raises(lmccheck.CheckpointError, match=r"state dict b: tensor '0.weight' has shape \(5, 6\)"):
        lmccheck.fuse("wide.safetensors", slim.state_dict(), model_a=wide, model_b=wide, **given)
    broken = {name: torch.full_like(value, torch.nan) for name, value in slim.state_dict().items()}
    with pytest.raises(lmccheck.CheckpointError, match=r"state dict b: tensor '0.weight': got"):
        lmccheck.fuse("wide.safetensors", broken, model_a=wide, model_b=slim, **given)
