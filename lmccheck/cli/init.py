"""``lmccheck init``: a manifest for checkpoints, with all that can be read; what it writes runs at once."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lmccheck.cli.command import HELD
from lmccheck.cli.draft import MANIFEST, MODELS, Draft
from lmccheck.cli.init_model import settle_model
from lmccheck.errors import CheckpointError, LmcError, SourceError, shown_path
from lmccheck.store.checkpoint import Checkpoint, look_at
from lmccheck.store.folders import CONFIG
from lmccheck.store.header import PICKLES, SAFETENSORS, read_header
from lmccheck.store.names import model_names
from lmccheck.store.whole import write_whole

MEASURED = re.compile(r"test|val|eval|held", re.IGNORECASE)  # names of files that verdicts may be measured on
TRAINING = re.compile(r"train|calib", re.IGNORECASE)  # and of those that align
LIMITS = {"mse": '"5%"', "next_token": '"2%"', "token_cross_entropy": '"2%"'}
LIMIT = "0.05"


HELP = "write a manifest for two checkpoints, or more"
DESCRIPTION = (
    "Write lmc.toml, and models.py where nothing else says the network, for two checkpoints (a pair) "
    "or more (a set). Checkpoints are .safetensors files, folders that save_pretrained wrote, or a folder that "
    "has several of these; data are files beside them with tensors `inputs` and `targets`, or .jsonl files of "
    "text. Nothing is overwritten. Exit status: 0 fine, 2 an error."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add = command.add_argument
    add("checkpoints", metavar="CHECKPOINT", nargs="*", default=["."], help="files or folders (default: this folder)")
    add("--data", metavar="FILE", help="what verdicts are measured on (default: the one file that can be)")
    add("--calibration", metavar="FILE", help="what aligns and re-estimates BatchNorm; never measured on")
    add(
        "--model", metavar="NAME", help='"module:callable" that builds the network (default: what is found or inferred)'
    )
    add("--output", metavar="DIR", default=".", help="where to write (default: this folder)")


def run(options: argparse.Namespace) -> int:
    """Look at everything, write, and say what to do next."""
    folder = Path(options.output)
    require_free(folder / MANIFEST)
    paths = [path for given in options.checkpoints for path in checkpoints_of(Path(given))]
    draft = opened(folder, paths)
    settle_data(draft, options, {path.parent for path in paths} | {folder})
    settle_model(draft, options.model)
    if draft.models:
        require_free(folder / MODELS)
    texts = {MANIFEST: manifest_text(draft), **({MODELS: draft.models} if draft.models else {})}
    write(folder, texts)
    print("\n".join([*draft.said, f"written: {', '.join(shown_path(folder / name) for name in texts)}"]))
    where = "" if folder.resolve() == Path.cwd() else f" {shown_path(folder)}"
    if draft.models:
        print(
            "check: a network that is not yours can pass; are the endpoints' losses that the gate shows those you know?"
        )
    print(f"next: look at the limits in {shown_path(folder / MANIFEST)}, then pytest --lmc-models{where}")
    return HELD


def require_free(path: Path) -> None:
    """Raise LmcError where something is there already."""
    if path.exists() or path.is_symlink():
        raise LmcError(
            f"{shown_path(path)}: is there already, and nothing is overwritten; mend: edit it, or say --output"
        )


def checkpoints_of(path: Path) -> Iterator[Path]:
    """Yield the checkpoint that a path is, or those that lie in the folder that it is. Raises CheckpointError."""
    if not path.exists():
        raise CheckpointError(f"{shown_path(path)}: no such file, expected a checkpoint; mend: correct the path")
    if not path.is_dir() or _is_model(path):
        yield path
        return
    inside = sorted(path.iterdir())
    weights = {
        each for each in inside if each.suffix == SAFETENSORS and each.is_file() and "inputs" not in _tensors(each)
    }
    found = [each for each in inside if each in weights or (each.is_dir() and _is_model(each))]
    if not found:
        other = next((each for each in inside if each.suffix in PICKLES), None)
        hint = f"; {other.name} is a pickle, which is never opened: convert it" if other else ""
        raise CheckpointError(
            f"{shown_path(path)}: no checkpoints, expected {SAFETENSORS} files or folders that save_pretrained wrote"
            f"{hint}; mend: name the files"
        )
    yield from found


def _is_model(path: Path) -> bool:
    weights = [*path.glob(f"*{SAFETENSORS}"), *path.glob(f"*{SAFETENSORS}.index.json")]
    return (path / CONFIG).is_file() and bool(weights)


def _tensors(path: Path) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    """Return the tensors of a file, each its dtype and shape, nothing of what cannot be read."""
    try:
        return {name: (each.dtype, each.shape) for name, each in read_header(path).tensors.items()}
    except LmcError:
        return {}


def opened(folder: Path, paths: Sequence[Path]) -> Draft:
    """Return a draft with its checkpoints, headers read. Raises CheckpointError where they are of no one network."""
    if len(paths) < 2:
        got = f"one checkpoint, {shown_path(paths[0])}" if paths else "none"
        raise CheckpointError(f"init: got {got}, expected two or more; mend: name two, or a folder that has them")
    named = [Path(os.path.relpath(path, folder)).as_posix() for path in paths]
    found = [look_at(str(path.resolve()), folder, name) for path, name in zip(paths, named, strict=True)]
    first = {name: each.shape for name, each in found[0].tensors.items()}
    for name, each in zip(named, found, strict=True):
        shapes = {key: header.shape for key, header in each.tensors.items()}
        if shapes != first:
            differing = {key for key, _ in shapes.items() ^ first.items()}
            other = min(differing & shapes.keys() & first.keys() or differing)  # of another shape, sooner than absent
            raise CheckpointError(
                f"{name}: tensor {other!r} is {shapes.get(other, 'missing')}, in {named[0]} it is "
                f"{first.get(other, 'missing')}; expected checkpoints of one network; mend: name those of one"
            )
    return Draft(folder, named, found)


def settle_data(draft: Draft, options: argparse.Namespace, folders: set[Path]) -> None:
    """Find what is measured on, and what aligns: what was named, or the files beside the checkpoints that can be."""
    for key in ("data", "calibration"):
        if given := getattr(options, key):
            if not Path(given).exists():
                raise SourceError(f"--{key}: {given}: no such file, expected samples; mend: correct the path")
            setattr(draft, key, Path(os.path.relpath(given, draft.folder)).as_posix())
    files = sorted({each.resolve() for folder in folders if folder.is_dir() for each in folder.iterdir()})
    of_samples = [each for each in files if each.suffix == SAFETENSORS and "inputs" in _tensors(each)]
    of_text = [each for each in files if each.suffix == ".jsonl"] if draft.folders and not of_samples else []
    candidates = [Path(os.path.relpath(each, draft.folder)).as_posix() for each in (of_samples or of_text)]
    chosen = {draft.data, draft.calibration}
    rest = [each for each in candidates if each not in chosen]
    if draft.calibration is None:
        training = [each for each in rest if TRAINING.search(Path(each).name)]
        draft.calibration = training[0] if len(training) == 1 and len(candidates) > 1 else None
        rest = [each for each in rest if each not in training or len(candidates) == 1]
    if draft.data is None:
        measured = [each for each in rest if MEASURED.search(Path(each).name)] or rest
        if len(measured) > 1:
            raise SourceError(
                f"init: {len(measured)} files have samples ({', '.join(measured[:3])}), expected one to measure on; "
                "mend: say which, --data FILE"
            )
        draft.data = measured[0] if measured else None
    draft.tokenizer = next((n for n, c in zip(draft.named, draft.found, strict=True) if _has_tokenizer(c)), None)
    for key in ("data", "calibration"):
        named = getattr(draft, key)
        if named and named.endswith(".jsonl"):
            if draft.tokenizer is None:
                raise SourceError(f"{named}: text, and no checkpoint's folder has a tokenizer; mend: say --data FILE")
            draft.texts[key] = named
    draft.loss = loss_of(draft)
    what = {key: getattr(draft, key) for key in ("data", "calibration") if getattr(draft, key)}
    draft.said += [f"{key}: {named}" for key, named in what.items()]


def _has_tokenizer(checkpoint: Checkpoint) -> bool:
    return checkpoint.home is not None and (checkpoint.home / "tokenizer.json").is_file()


def loss_of(draft: Draft) -> str | None:
    """Return the loss that samples ask for, by their dtypes and shapes; None where the default is right.

    Raises SourceError where nothing says it.
    """
    if draft.data is None or draft.texts or not draft.data.endswith(SAFETENSORS):
        return None
    tensors = _tensors(draft.folder / draft.data)
    floats = ("F", "B")
    if "targets" not in tensors:
        return "next_token"
    dtype, shape = tensors["targets"]
    if dtype.startswith(floats) and dtype != "BOOL":
        return "mse"
    return "cross_entropy" if len(shape) == 1 else "token_cross_entropy"


def manifest_text(draft: Draft) -> str:
    """Return the manifest."""
    lines = ["# Written by lmccheck init. Run it: pytest --lmc-models", "schema = 1", ""]
    for key, file in draft.texts.items():
        lines += [f"[data.{key}]", f"jsonl = {_quoted(file)}", f"tokenizer = {_quoted(draft.tokenizer or '')}", ""]
    lines.append("[defaults]")
    sources = {"model": draft.model, "data": draft.data or f"{Path(MODELS).stem}:data", "loss": draft.loss}
    sources["calibration"] = draft.calibration
    notes = {
        "data": "what verdicts are measured on",
        "calibration": "aligns, re-estimates BatchNorm; never measured on",
    }
    for key, value in sources.items():
        if value is not None:
            named = key if key in draft.texts else value
            lines.append(f"{key} = {_quoted(named)}" + (f"  # {notes[key]}" if key in notes else ""))
    limit = LIMITS.get(draft.loss or ("next_token" if draft.texts else ""), LIMIT)
    names = [re.sub(r"[^A-Za-z0-9._-]", "-", name) for name in model_names(draft.named)]
    if len(draft.named) == 2:
        head, check = f"pair.{_key('-'.join(names))}", "linear_connectivity"
        lines += ["", f"[{head}]", f"a = {_quoted(draft.named[0])}", f"b = {_quoted(draft.named[1])}"]
        settings = [
            'align = "weight-matching"',
            f"limit = {limit}  # review: how far above the line between their losses",
        ]
    else:
        head, check = "set.all", "set_connectivity"
        lines += ["", f"[{head}]", "models = [", *(f"    {_quoted(each)}," for each in draft.named), "]"]
        settings = [f"limit = {limit}  # review: how far above the line between any two of them"]
    if draft.repair:
        settings.append(
            f"repair = {_quoted(draft.repair)}  # no calibration data: BatchNorm statistics are interpolated"
        )
    return "\n".join([*lines, "", f"[{head}.check.{check}]", *settings, ""])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write all files, or none where one cannot be or the manifest would not be read. Raises LmcError."""
    from lmccheck.manifest.read import load_manifest  # which imports pydantic

    written: list[Path] = []
    try:
        for name, text in texts.items():
            write_whole(folder / name, text.encode())
            written.append(folder / name)
        load_manifest(folder / MANIFEST)
    except (OSError, LmcError) as error:
        for path in written:
            path.unlink()
        if isinstance(error, LmcError):
            raise
        raise LmcError(f"--output: cannot write to {shown_path(folder)}: {error.strerror or error}") from None
