"""From what a user names ("pkg.mod:name", a file, an object) to a module, batches of data and a loss."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmccheck.errors import CheckpointError, SourceError, shown_path
from lmccheck.store import files
from lmccheck.store.disk import Held
from lmccheck.store.header import require_samples
from lmccheck.store.imports import importable, label, load_object, say
from lmccheck.store.trees import input_tensors, positional, take_samples


@dataclass(frozen=True)
class Batch:
    """Inputs (a tensor, a tuple of arguments or a dict of keyword arguments) and their targets, n samples of each."""

    inputs: Any
    targets: Tensor

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.targets)

    def take(self, which: slice | Tensor) -> Batch:
        """Return some of the samples; see ``trees.take_samples``."""
        return Batch(take_samples(self.inputs, which), self.targets[which])


@dataclass(frozen=True)
class Data:
    """Evaluation or calibration data, held in memory: batches and where they came from.

    ``rebatch`` is True when the samples came as one tensor, so that lmccheck may choose the batch size. ``held``: the
    file that they were read from, None for all else.
    """

    batches: tuple[Batch, ...] = field(repr=False)
    origin: str
    rebatch: bool
    held: Held | None = field(default=None, repr=False, compare=False)

    @property
    def samples(self) -> int:
        """Number of samples over all batches."""
        return sum(batch.samples for batch in self.batches)

    def example(self, samples: int = 2) -> tuple[Any, ...]:
        """Return the first samples as positional example inputs for tracing."""
        return positional(take_samples(self.batches[0].inputs, slice(samples)), self.origin)


def load_data(source: Any, folder: Path | None = None, what: str = "data") -> Data:
    """Return data from a .safetensors file, ``"module:callable"``, a pair of tensors, or an iterable of batches.

    A file holds ``inputs`` and ``targets``; batches are ``(inputs, targets)``. Raises SourceError or CheckpointError.
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if ":" in text and not text.endswith(".safetensors") and not Path(text).exists():
            return _called(load_object(text, folder, what), f"{what} {text!r}", folder)
        return _from_file(Path(text) if folder is None else folder / text, what)
    if callable(source):
        return _called(source, f"{what} {label(source)!r}", folder)
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], Tensor):
        return _checked([Batch(source[0], source[1])], f"{what} (inputs, targets)", rebatch=True)
    if isinstance(source, Iterable):
        return _from_batches(source, what)
    raise SourceError(
        f"{what}: got {type(source).__name__}, expected a .safetensors path, 'module:callable' or (inputs, targets)"
    )


def _from_file(path: Path, what: str) -> Data:
    if path.suffix != ".safetensors" and not path.exists():
        raise SourceError(
            f"{what} {shown_path(path)}: no such file, expected a .safetensors file or 'module:callable'; mend: "
            "correct it"
        )
    try:
        header = files.read_header(path)
        require_samples(header, shown_path(path))  # before anything is read
        stored = files.read(path, header)
    except CheckpointError as error:
        raise SourceError(f"{what} {error}") from None
    batch = Batch(stored.tensors["inputs"], stored.tensors["targets"])
    return replace(_checked([batch], f"{what} {shown_path(path)}", rebatch=True), held=stored.held)


def _called(build: Any, what: str, folder: Path | None) -> Data:
    if not callable(build):
        return load_data(build, folder, what)
    try:
        with importable(folder):
            produced = build()
            if not isinstance(produced, (tuple, list, str, Data)):
                produced = list(produced)
    except (Exception, SystemExit) as error:
        raise SourceError(f"{what}: raised {say(error)}; expected an iterable of (inputs, targets)") from error
    if isinstance(produced, (str, Data)) or (
        isinstance(produced, tuple) and len(produced) == 2 and isinstance(produced[1], Tensor)
    ):
        return load_data(produced, folder, what)
    return _from_batches(produced, what)


def _from_batches(source: Iterable[Any], what: str) -> Data:
    batches = []
    for k, item in enumerate(source):
        if not isinstance(item, (tuple, list)) or len(item) != 2 or not isinstance(item[1], Tensor):
            raise SourceError(
                f"{what}: batch {k} is {type(item).__name__}, expected (inputs, targets) with targets a tensor"
            )
        batches.append(Batch(item[0], item[1]))
    return _checked(batches, what, rebatch=False)


def _checked(batches: list[Batch], origin: str, rebatch: bool) -> Data:
    for k, batch in enumerate(batches):
        where = origin if len(batches) == 1 else f"{origin}, batch {k}"
        if batch.targets.ndim == 0:
            raise SourceError(f"{where}: tensor 'targets' is a scalar, expected one target a sample; mend: shape (n,)")
        for tensor in input_tensors(batch.inputs):
            if tensor.layout != torch.strided:
                raise SourceError(f"{where}: inputs are {tensor.layout}, expected dense; mend: inputs.to_dense()")
            if tensor.ndim == 0 or len(tensor) != batch.samples:
                got = "a scalar" if tensor.ndim == 0 else f"{len(tensor)} inputs"
                raise SourceError(
                    f"{where}: got {got} and {batch.samples} targets, expected as many targets as inputs; mend: one "
                    "target a sample"
                )
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise SourceError(
                    f"{where}: tensor 'inputs' holds NaN or Inf, expected finite numbers; mend: clean the data"
                )
        if batch.targets.is_floating_point() and not torch.isfinite(batch.targets).all():
            raise SourceError(
                f"{where}: tensor 'targets' holds NaN or Inf, expected finite numbers; mend: clean the data"
            )
    if not sum(batch.samples for batch in batches):
        raise SourceError(f"{origin}: got 0 samples, expected at least one; mend: give data to measure on")
    return Data(tuple(batch for batch in batches if batch.samples), origin, rebatch)
