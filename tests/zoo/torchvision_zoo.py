"""torchvision's classification builders with random weights, on the smallest images each of them takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from operators import declare_operators
from torch import nn

Built = tuple[nn.Module, tuple[Any, ...]]

_IMAGE = {"inception_v3": 128, "googlenet": 64, "maxvit_t": 224, "swin": 64, "vit_h_14": 56, "vit": 64, "alexnet": 80}


def names() -> list[str]:
    """Return the names of all classification builders."""
    return list(_models().list_models(module=_models()))


def by_size() -> list[str]:
    """Return the names of all classification builders, those with fewest parameters first."""
    models = _models()
    return sorted(names(), key=lambda name: models.get_model_weights(name)["DEFAULT"].meta["num_params"])


def build(name: str, side: int | None = None) -> Built:
    """Return a network and one batch of two images, ``side`` pixels wide (the least that works by default)."""
    torch.manual_seed(0)
    side = side or next((side for prefix, side in _IMAGE.items() if name.startswith(prefix)), 64)
    settings: dict[str, Any] = {"image_size": side} if name.startswith("vit") else {}
    if name in ("inception_v3", "googlenet"):
        settings = {"init_weights": False}
    module = _models().get_model(name, weights=None, **settings)
    return module, (torch.randn(2, 3, side, side),)


def builders() -> dict[str, Callable[[], Built]]:
    """Return every network of the zoo by name."""
    return {name: partial(build, name) for name in names()}


def _models() -> Any:
    declare_operators()
    import torchvision.models

    return torchvision.models
