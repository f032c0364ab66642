"""``lmccheck triage``: what the weights of checkpoints say before any network runs, and what that advises."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lmccheck.cli.command import HELD
from lmccheck.errors import CheckpointError, LmcError
from lmccheck.shown import some

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.alignment.triage import SetTriage
    from lmccheck.store.checkpoint import Checkpoint


HELP = "what do the weights of two checkpoints or more say, before anything is run?"
DESCRIPTION = (
    "Say whether checkpoints share their initialisation, how far apart they are, which one stands out, "
    "and what to do: merge as they are, align first, or leave one out. Reads weights only. Exit status: 0 fine, "
    "2 an error."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add = command.add_argument
    add("models", metavar="MODEL", nargs="+", help="a .safetensors file, a model's folder, or a quoted pattern of such")
    add("--json", action="store_true", help="print the facts as JSON")


def run(options: argparse.Namespace) -> int:
    """Look at the checkpoints, one or two in memory at a time, and print what was found."""
    from tabulate import tabulate

    from lmccheck.alignment.triage import triage_set
    from lmccheck.store.checkpoint import look_at
    from lmccheck.store.names import expanded, model_names

    folder = Path.cwd()
    given, matched = expanded(options.models, folder)
    if len(given) < 2:
        raise LmcError(f"triage: got {'; '.join(matched) or f'{len(given)} model'}, expected two or more")
    names = model_names(given)
    opened = [look_at(each, folder, name) for each, name in zip(given, names, strict=True)]
    compared, unlike = _compared(opened)

    def models() -> Iterator[tuple[str, dict[str, Tensor]]]:
        for name, checkpoint in zip(names, opened, strict=True):
            weights = checkpoint.read()
            yield name, {key: weights[key] for key in compared}

    found = triage_set(models)
    if options.json:
        print(json.dumps({"models": dict(zip(names, map(str, given), strict=True)), **found.facts()}, indent=1))
        return HELD
    print(tabulate(_rows(found), headers=["model", "nearest to itself", "distance", ""], disable_numparse=True))
    print("".join(f"\n{line}" for line in (*matched, *unlike)))
    print(found.line())
    return HELD


def _compared(opened: list[Checkpoint]) -> tuple[list[str], list[str]]:
    """Return the tensors that all have in one shape, and a line on the others; raise CheckpointError without any."""
    first, *others = opened
    every = {**dict.fromkeys(name for checkpoint in opened for name in checkpoint.tensors)}
    shapes = {name: {getattr(each.tensors.get(name), "shape", None) for each in opened} for name in every}
    both = [name for name, found in shapes.items() if len(found) == 1]
    if not both:
        told = some(other.label for other in others)
        raise CheckpointError(
            f"{first.label}: no tensor has one name and shape here and in {told}; mend: give checkpoints of one network"
        )
    unlike = [name for name in every if name not in both]
    return both, [f"not compared, of another name or shape somewhere: {some(unlike)}"] if unlike else []


def _rows(found: SetTriage) -> Iterator[list[str]]:
    for name in found.names:
        kin, why = found.kin.get(name), found.outliers.get(name, "")
        if kin is None:
            yield [name, "", "", why or "the others are compared with it"]
        else:
            share = "not told" if kin.share is None else f"{kin.share:.0%} of {kin.units}"
            yield [name, share, f"{kin.distance:.3g}", why or kin.advice]
