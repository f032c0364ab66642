"""Checkpoints of one network, two or more, with what is needed to measure them: a ModelSet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lmccheck.errors import CheckpointError
from lmccheck.network.pair import ModelPair, Origin, StateDict, load_pair

Given = str | os.PathLike[str] | StateDict


@dataclass(frozen=True)
class ModelSet:
    """Weights of one network, (n,) of each, as ``load_pair`` gives them. Made by ``load_set``.

    ``pair`` is the first two: the network, the data and the loss to measure all of them with.
    """

    name: str
    names: tuple[str, ...]
    thetas: tuple[dict[str, Tensor], ...] = field(repr=False)
    origins: tuple[Origin, ...]
    pair: ModelPair
    description: dict[str, Any] = field(repr=False)

    @property
    def device(self) -> str:
        """The device that was asked for."""
        return self.pair.device

    def towards(self, reference: int) -> dict[int, ModelPair]:
        """Return each model but the reference, by its place, as b of a pair with it; what the network is like is kept.

        That is its permutation spec, which is the network's and not the checkpoints': derived and verified once.
        """
        known = {key: self.pair.cache[key] for key in ("spec", "derived") if key in self.pair.cache}
        files = self.description["files"]
        return {
            k: replace(
                self.pair,
                name=f"{self.names[reference]}-{name}",
                theta_a=self.thetas[reference],
                theta_b=self.thetas[k],
                origins=(self.origins[reference], self.origins[k]),
                description={**self.description, "files": {"a": files[self.names[reference]], "b": files[name]}},
                cache=dict(known),
            )
            for k, name in enumerate(self.names)
            if k != reference
        }


def load_set(models: Sequence[Given], *, name: str | None = None, sha256: Sequence[str] = (), **given: Any) -> ModelSet:
    """Load and check two checkpoints of one network or more; the network and the data are loaded once.

    ``models``: .safetensors files or state dicts; ``sha256`` pins them, in their order; all else as in ``load_pair``.
    Raises as ``load_pair`` does, naming the model.
    """
    names = model_names(models)
    pins = dict(enumerate(sha256))
    pairs: list[ModelPair] = []
    for k, other in list(enumerate(models))[1:]:
        pinned = {key: pins[at] for key, at in (("a", 0), ("b", k)) if at in pins}
        try:
            pairs.append(load_pair(models[0], other, name=f"{names[0]}-{names[k]}", sha256=pinned, **given))
        except CheckpointError as error:
            raise CheckpointError(f"{names[0]} (a) and {names[k]} (b): {error}") from None
        first = pairs[0]
        given |= {"model": first.module, "data": first.data, "calibration": first.calibration, "loss": first.loss}
        given["symmetry"] = first.symmetry
    files = [first.description["files"]["a"], *(pair.description["files"]["b"] for pair in pairs)]
    return ModelSet(
        name or "-".join(names),
        names,
        (first.theta_a, *(pair.theta_b for pair in pairs)),
        (first.origins[0], *(pair.origins[1] for pair in pairs)),
        first,
        {**first.description, "files": dict(zip(names, files, strict=True))},
    )


def model_names(models: Sequence[Given]) -> tuple[str, ...]:
    """Return a name for each model: its file's stem, the path where stems meet, ``model k`` for a state dict."""
    paths = {k: Path(os.fspath(m)) for k, m in enumerate(models) if isinstance(m, (str, os.PathLike))}
    stems = [path.stem for path in paths.values()]
    short = [
        (paths[k].stem if stems.count(paths[k].stem) == 1 else str(paths[k])) if k in paths else f"model {k}"
        for k in range(len(models))
    ]
    return tuple(name if short.count(name) == 1 else f"{name} ({k})" for k, name in enumerate(short))
