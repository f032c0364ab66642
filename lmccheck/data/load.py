"""From what a user names ("pkg.mod:name", a file, an object) to a module, batches of data and a loss."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmccheck.data import collate
from lmccheck.data.described import DataSpec, describes, read_spec
from lmccheck.data.imports import importable, label, load_object, say
from lmccheck.data.read_described import read_described
from lmccheck.data.reading import gathered
from lmccheck.data.trees import input_tensors, positional, take_samples
from lmccheck.errors import CheckpointError, LmcError, SourceError, shown_path
from lmccheck.shown import one_line, some
from lmccheck.store import files
from lmccheck.store.disk import Held
from lmccheck.store.header import require_samples
from lmccheck.store.tensors import shape_of


@one_line(lambda batch: f"inputs {some(map(shape_of, input_tensors(batch.inputs)))}; targets {shape_of(batch.targets)}")
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


@one_line(lambda data: f"{data.origin}, {data.samples} samples in {len(data.batches)} batches")
@dataclass(frozen=True)
class Data:
    """Evaluation or calibration data, held in memory: batches and where they came from.

    ``rebatch`` is True when the samples came as one tensor, so that lmccheck may choose the batch size, of ``most``
    samples where that is said. ``held``: the files that they were read from. ``uncounted``: how many samples were left
    out because nothing in them is counted. ``kind``: what they are ("text", "images"), None where nothing says.
    ``columns``: what else is known of the samples, (n,) by name; ``places``: where each is from ("math.jsonl:12").
    ``notes``: what reading them left to be said. ``tokenizer``: what made tokens of them, None where nothing did.
    """

    batches: tuple[Batch, ...] = field(repr=False)
    origin: str
    rebatch: bool
    held: tuple[Held, ...] = field(default=(), repr=False, compare=False)
    uncounted: int = 0
    kind: str | None = None
    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, repr=False, compare=False)
    places: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    most: int | None = None
    tokenizer: Path | None = None

    @property
    def samples(self) -> int:
        """Number of samples over all batches."""
        return sum(batch.samples for batch in self.batches)

    @cached_property
    def content(self) -> str:
        """16 hexadecimal digits that are the same for the same samples, wherever they lie and however they are batched.

        A hash of what networks are given and compared with, in order: dtypes, shapes and bytes of all tensors.
        """
        parts: dict[int, Any] = {}
        for batch in self.batches:
            for place, tensor in enumerate((*input_tensors(batch.inputs), batch.targets)):
                kind = f"{tensor.dtype} {tuple(tensor.shape[1:])}".encode()
                raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
                parts.setdefault(place, hashlib.sha256(kind)).update(raw)
        return hashlib.sha256(b"".join(part.digest() for part in parts.values())).hexdigest()[:16]

    def only(self, kept: Sequence[Tensor]) -> Data:
        """Return some of the samples: ``kept``, (k,) bool for each batch, says which."""
        parts = zip(self.batches, kept, strict=True)
        batches = tuple(b if which.all() else b.take(which.nonzero().flatten()) for b, which in parts if which.any())
        which = torch.cat([one.cpu() for one in kept]).tolist()
        columns = {name: tuple(compress(values, which)) for name, values in self.columns.items()}
        return replace(self, batches=batches, columns=columns, places=tuple(compress(self.places, which)))

    def example(self, samples: int = 2) -> tuple[Any, ...]:
        """Return the first samples as positional example inputs for tracing."""
        return positional(take_samples(self.batches[0].inputs, slice(samples)), self.origin)


def load_data(source: Any, folder: Path | None = None, what: str = "data", *, tokens: bool = False) -> Data:
    """Return data from what holds it.

    ``source``: a .safetensors file with ``inputs`` and ``targets``; ``"module:callable"``; a DataSpec, or the
    dictionary that a ``[data.NAME]`` of a manifest is (``{"jsonl": "math.jsonl", "tokenizer": "models/a"}``); a pair
    (inputs, targets) of tensors, arrays or lists; a dictionary with a key ``targets`` or ``labels``, all else being the
    network's keyword arguments (what a tokenizer returns); an iterable of such batches; or a data set of single samples
    (torch's, or the library datasets'). ``tokens``: where targets are left out, the inputs serve, as for the loss
    next_token.
    Raises SourceError or CheckpointError.
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, DataSpec) or describes(source):
        return _described(source, folder, what, tokens)
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if ":" in text and not text.endswith(".safetensors") and not Path(text).exists():
            return _called(load_object(text, folder, what), f"{what} {text!r}", folder, tokens)
        return _from_file(Path(text) if folder is None else folder / text, what, tokens)
    if callable(source) and not collate.is_dataset(source):
        return _called(source, f"{what} {label(source)!r}", folder, tokens)
    return _held(source, what, folder, tokens)


def _described(given: Any, folder: Path | None, what: str, tokens: bool) -> Data:
    """Return the data of a DataSpec, or of a dictionary that says what one says."""
    problems: list[str] = []
    spec = given if isinstance(given, DataSpec) else read_spec(given, what, problems)
    if spec is None:
        raise SourceError(problems[0])
    if spec.form == "call":
        given = load_object(spec.path, folder, what) if isinstance(spec.path, str) else spec.path
        return _called(given, f"{what} {label(spec.path)!r}", folder, tokens)
    if spec.form == "safetensors":
        return _from_file(Path(spec.path) if folder is None else folder / spec.path, what, tokens)
    try:
        found = read_described(spec, folder or Path())
    except SourceError as error:
        raise SourceError(f"{what} {error}") from None
    origin = f"{what} {shown_path((folder or Path()) / spec.path)}"
    data = _checked([Batch(found.inputs, found.targets)], origin, rebatch=True)
    known = {f.name: getattr(found, f.name) for f in fields(found) if f.name not in ("inputs", "targets")}
    tokenizer = None if spec.tokenizer is None else (folder or Path()) / spec.tokenizer
    return replace(data, tokenizer=tokenizer, **known)


def _from_file(path: Path, what: str, tokens: bool) -> Data:
    if path.suffix != ".safetensors" and not path.exists():
        raise SourceError(
            f"{what} {shown_path(path)}: no such file, expected a .safetensors file or 'module:callable'; mend: "
            "correct it"
        )
    try:
        header = files.read_header(path)
        require_samples(header, shown_path(path), tokens=tokens)  # before anything is read
        stored = files.read(path, header)
    except CheckpointError as error:
        raise SourceError(f"{what} {error}") from None
    origin = f"{what} {shown_path(path)}"
    batch = _batch((stored.tensors["inputs"], stored.tensors.get("targets")), origin, tokens)
    return replace(_checked([batch], origin, rebatch=True), held=(stored.held,))


def _called(build: Any, what: str, folder: Path | None, tokens: bool) -> Data:
    """Return the data that a user's function makes, or that a name stands for."""
    if not callable(build) or collate.is_dataset(build):
        return load_data(build, folder, what, tokens=tokens)
    with _users(what, folder):
        produced = build()
    if isinstance(produced, (str, os.PathLike, Data)):
        return load_data(produced, folder, what, tokens=tokens)
    return _held(produced, what, folder, tokens)


@contextmanager
def _users(what: str, folder: Path | None) -> Iterator[None]:
    """Run a user's code: what it raises is a SourceError that names it."""
    try:
        with importable(folder):
            yield
    except LmcError:
        raise
    except (Exception, SystemExit) as error:
        raise SourceError(f"{what}: raised {say(error)}; expected an iterable of (inputs, targets)") from error


def _held(source: Any, what: str, folder: Path | None, tokens: bool) -> Data:
    """Return data from an object that holds it: all of it at once, samples one by one, or batches."""
    pair = f"{what} (inputs, targets)"
    if isinstance(source, Mapping) or collate.is_array(source):
        return _checked([_batch(source, pair, tokens)], pair, rebatch=True)
    if isinstance(source, tuple) and any(part is None or _whole(part) for part in source):
        return _checked([_batch(source, pair, tokens)], pair, rebatch=True)
    if not isinstance(source, Iterable) and not collate.is_dataset(source):
        raise SourceError(
            f"{what}: got {collate.kind(source)}, expected a .safetensors path, 'module:callable', (inputs, targets), "
            "a dictionary, batches of them or a data set; mend: give one of these"
        )
    with _users(what, folder):
        apart = collate.is_dataset(source)
        items = gathered((source[k] for k in range(len(source))) if apart else source, what)
    if not items and isinstance(source, Iterator):
        raise SourceError(
            f"{what}: the {collate.kind(source)} gave nothing; it can be read once only, and may have been; mend: give "
            "a list, or a function that makes it anew"
        )
    if items and (apart or all(map(collate.single, items))):
        return _checked([_batch(collate.stacked(items, what), what, tokens)], what, rebatch=True)
    of = "" if isinstance(source, (list, tuple)) else f" of the {collate.kind(source)}"
    batches = [_batch(item, f"{what}: batch {k}{of}", tokens) for k, item in enumerate(items)]
    return _checked(batches, what, rebatch=False)


def _whole(part: Any) -> bool:
    """Whether a part of a tuple says that the tuple is (inputs, targets) and not several batches."""
    return collate.is_array(part) or collate.is_listed(part)


def _batch(item: Any, where: str, tokens: bool) -> Batch:
    """Return a batch. Raises SourceError, beginning with ``where``, where it is none, or lacks targets."""
    if isinstance(item, Batch):
        return item
    given, targets = collate.parts_of(item, where)
    if targets is not None:
        if not isinstance(targets, Tensor) and not _whole(targets):
            raise SourceError(
                f"{where}: targets are {collate.kind(targets)}, expected a tensor, an array or a list of numbers; "
                "mend: one target a sample"
            )
        held = collate.array(targets, f"{where}: targets")
        inputs = _inputs(given, where, len(held) if held.ndim else None)
        if tokens:
            collate.refuse_mask(inputs, held, where)
        return Batch(inputs, held)
    if not tokens:
        keys = f", keys {list(given)}" if isinstance(given, Mapping) else ""
        raise SourceError(
            f"{where}: no targets{keys}, expected (inputs, targets), or a dictionary with 'targets' or 'labels'; mend: "
            "give them, as a tuple (with the loss next_token the inputs serve)"
        )
    inputs = _inputs(given, where, None)
    return Batch(inputs, collate.own_targets(inputs, where))


def _inputs(given: Any, where: str, samples: int | None) -> Any:
    inputs = collate.inputs_of(given, f"{where}: inputs", samples)
    if not input_tensors(inputs):
        raise SourceError(
            f"{where}: inputs are {collate.kind(given)} without a tensor, expected tensors or arrays; mend: convert "
            "them"
        )
    return inputs


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
