"""``lmccheck align``: permute one checkpoint's hidden units towards another's, and write it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lmccheck.cli.command import HELD
from lmccheck.cli.endpoints import METHODS, add_pair, load, maps, output_path, row

if TYPE_CHECKING:
    from lmccheck.alignment.api import Alignment

MIDDLE = 0.5


HELP = "permute one checkpoint's hidden units towards another's"
DESCRIPTION = (
    "Permute B's hidden units towards A's, verify on the data that B computes what it did, and write "
    "it, with the permutation beside it. Exit status: 0 fine, 2 an error."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_pair(
        command,
        METHODS,
        "where to write B aligned: a .safetensors file, or a folder where B is one; PATH.permutation.safetensors "
        "holds the permutation",
    )


def run(options: argparse.Namespace) -> int:
    """Align, say what came of it, write."""
    from tabulate import tabulate

    from lmccheck.store.writing import beside

    target = output_path(options, "b", beside(Path(options.output), "permutation"))
    from lmccheck.alignment.api import align, save_aligned
    from lmccheck.alignment.merge import segment
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.line import chord

    pair = load(options)
    alignment = align(pair, options.method, seed=options.seed, beyond=maps(options))
    evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
    repair = "none" if evaluator.batchnorms and pair.calibration is None else "bn"
    ends = [
        evaluator.measure(evaluator.weights(weights), reestimate=False, label=f"endpoint {name}").loss
        for name, weights in (("a", pair.theta_a), ("b", pair.theta_b))
    ]
    heights = [
        segment(pair, evaluator, found, repair).measure(MIDDLE).loss - chord(MIDDLE, *ends)
        for found in (None, alignment)
    ]
    statistics = ", BatchNorm statistics interpolated" if repair == "none" else ""
    unit = f" ({pair.loss.unit})" if pair.loss.unit else ""
    chosen = alignment.facts.get("chosen")
    rows = [
        row("method", alignment.method + (f" (of which {chosen})" if chosen else "")),
        row("objective", alignment.objective),
        row("unit groups moved", _moved(alignment)),
        row("outputs of B change by", f"{alignment.function_deviation:.1e}"),
        row(f"barrier at t = {MIDDLE}, unaligned{unit}", heights[0]),
        row(f"barrier at t = {MIDDLE}, aligned{unit}{statistics}", heights[1]),
    ]
    print(tabulate(rows, tablefmt="plain", disable_numparse=True))
    print(f"\nwritten to {save_aligned(alignment, target)}")
    return HELD


def _moved(alignment: Alignment) -> str:
    """Say how many groups have units that moved, and how many of all units did."""
    import torch

    moved = [p != torch.arange(p.shape[-1]) for p in alignment.permutation.values()]
    units = sum(each.numel() for each in moved)
    share = sum(int(each.sum()) for each in moved) / units if units else 0.0
    return f"{sum(bool(each.any()) for each in moved)} of {len(moved)}, {100 * share:.4g} % of their units"
