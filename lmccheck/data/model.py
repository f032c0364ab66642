"""From what a user names ("pkg.mod:name", a callable, a module) to the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmccheck.data.imports import importable, label, load_object, say, takes_nothing
from lmccheck.errors import LmcError, SourceError


def build_module(model: str | nn.Module | Callable[[], Any], folder: Path | None = None, seed: int = 0) -> nn.Module:
    """Return the network: an nn.Module as it is, or what ``"module:callable"`` or a callable returns.

    What it draws to begin with is decided by ``seed``.
    """
    if isinstance(model, nn.Module):
        return model
    build = load_object(model, folder, "model") if isinstance(model, str) else model
    if isinstance(build, nn.Module):
        return build
    what = f"model {label(model)!r}"
    if not callable(build):
        raise SourceError(f"{what}: got {type(build).__name__}, expected a callable that returns a torch.nn.Module")
    try:
        with importable(folder), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the same in every run
            module = build()
    except LmcError:
        raise
    except (Exception, SystemExit) as error:
        mend = "correct it there" if takes_nothing(build) else "make it callable without arguments"
        raise SourceError(f"{what}: raised {say(error)}; expected a torch.nn.Module; mend: {mend}") from error
    if not isinstance(module, nn.Module):
        raise SourceError(
            f"{what}: returned {type(module).__name__}, expected a torch.nn.Module; mend: return the network"
        )
    return module
