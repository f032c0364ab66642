"""What the commands about a pair of checkpoints have in common: their arguments, and what they refuse to overwrite."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmccheck.alignment import method_names
from lmccheck.data.imports import input_files
from lmccheck.errors import LmcError
from lmccheck.store.given import files_of, lies_in_folder
from lmccheck.store.whole import overwritten

if TYPE_CHECKING:
    from lmccheck.network.pair import ModelPair

SUFFIX = ".safetensors"
METHODS = " or ".join([", ".join(method_names()[:-1]), method_names()[-1]])


def add_pair(command: argparse.ArgumentParser, methods: str, output: str) -> None:
    """Add the arguments that name a pair, how it is aligned, and the file to write."""
    add = command.add_argument
    add("a", metavar="A", help="the checkpoint that stays: a .safetensors file, a model's folder or an index")
    add("b", metavar="B", help="the checkpoint that is permuted towards it, of the same kinds")
    add(
        "--model",
        metavar="NAME",
        help='"module:callable" returning a torch.nn.Module; may be left out where A is a folder whose config.json '
        "says it",
    )
    add(
        "--data",
        metavar="DATA",
        required=True,
        help='what is measured, and the alignment verified, on: a .safetensors file with tensors "inputs" and '
        '"targets", or "module:callable"',
    )
    add(
        "--calibration",
        metavar="DATA",
        help="what alignments are chosen and statistics taken on, such as the training data; never measured on",
    )
    add("--method", metavar="METHOD", default="weight-matching", help=f"{methods} (default: weight-matching)")
    add(
        "--beyond",
        metavar="MAPS",
        default="",
        help="maps beyond permutations that keep B's function: all, or some of rescaling, sign-flips, head-maps, "
        "rotary-planes and stream-rotation, separated by commas (default: none)",
    )
    add(
        "--loss",
        metavar="LOSS",
        help='cross_entropy, mse, next_token, token_cross_entropy or "module:function", one loss per sample; by '
        "default what the model of a folder is trained with, else cross_entropy",
    )
    add("--symmetry", metavar="FILE", help="a spec file (.toml, .json) in place of the derived symmetries")
    add("--seed", metavar="N", type=int, default=0, help="seed of everything random (default: 0)")
    add("--device", metavar="DEVICE", default="auto", help="auto (default), cpu or cuda[:N]")
    add("-o", "--output", metavar="PATH", required=True, help=output)


def maps(options: argparse.Namespace) -> str | list[str]:
    """Return the maps beyond permutations that were asked for."""
    return "all" if options.beyond == "all" else [name for name in str(options.beyond).split(",") if name]


def load(options: argparse.Namespace) -> ModelPair:
    """Return the pair that the arguments name; paths and modules are looked up in the current folder."""
    from lmccheck.network.pair import load_pair

    return load_pair(
        options.a,
        options.b,
        model=options.model,
        data=options.data,
        calibration=options.calibration,
        loss=options.loss,
        device=options.device,
        symmetry=options.symmetry,
    )


def output_path(options: argparse.Namespace, like: str, *more: Path) -> Path:
    """Return what to write: a .safetensors file, or a folder where ``like``, the argument it is laid out as, is one.

    ``more`` are files that are written with it. Raises LmcError for another name, and for what is read.
    """
    target = Path(options.output)
    if target.suffix != SUFFIX and not lies_in_folder(getattr(options, like), Path.cwd()):
        raise LmcError(
            f"--output: got {options.output!r}, expected a {SUFFIX} file, since {like.upper()} is no folder; "
            "mend: correct its suffix"
        )
    require_unread(options, target, *more)
    return target


def require_unread(options: argparse.Namespace, *written: Path) -> None:
    """Raise LmcError where a file to be written is one that the arguments name as input, under whatever name."""
    here = Path.cwd()
    named = [given for name, given in vars(options).items() if name != "output"]
    checkpoints = (getattr(options, side, None) for side in ("a", "b"))
    inputs = [*input_files(here, *named), *(file for given in checkpoints for file in files_of(given, here))]
    for target in written:
        if overwritten(target, inputs) is not None or any(
            target.resolve() in file.resolve().parents for file in inputs
        ):
            raise LmcError(f"--output: {target} is read from, expected a file of its own; mend: choose another name")


def row(name: str, *values: Any) -> list[str]:
    """Return a row of text: numbers with four significant digits, nothing for None."""
    from lmccheck.explain import number

    return [name, *map(number, values)]
