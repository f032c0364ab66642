"""``lmccheck merge``: align two checkpoints, interpolate, mend the statistics, and write the merged network."""

from __future__ import annotations

import argparse

from lmccheck.cli.command import HELD
from lmccheck.cli.endpoints import METHODS, add_pair, load, maps, output_path, row

HELP = "align two checkpoints and average them"
DESCRIPTION = (
    "Write (1 − t)·A + t·B, B aligned first and the merged network's statistics mended: the weights "
    "that a gate measures at t. Exit status: 0 fine, 2 an error."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_pair(
        command,
        f"none, {METHODS}",
        "where to write the merged network, named and typed as A's file: a .safetensors file, or a folder where A is "
        "one",
    )
    add = command.add_argument
    add("-t", metavar="T", type=share, default=0.5, help="B's share, from 0 to 1 (default: 0.5)")
    add(
        "--repair",
        metavar="HOW",
        default="bn",
        help="bn (default): re-estimate BatchNorm statistics on the calibration data; repair: also rescale all other "
        "layers (REPAIR); none: leave them interpolated",
    )


def share(text: str) -> float:
    """Return a number from 0 to 1."""
    try:
        t = float(text)
    except ValueError:
        t = -1.0
    if not 0 <= t <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 0 to 1")
    return t


def run(options: argparse.Namespace) -> int:
    """Merge, measure what is written on the data, write it."""
    from tabulate import tabulate

    target = output_path(options, "a")
    from lmccheck.alignment.api import align
    from lmccheck.alignment.merge import facts, merged, segment, write
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.evaluate.line import chord
    from lmccheck.evaluate.segment import require_repair

    require_repair(options.repair, "merge")
    pair = load(options)
    t, repair = options.t, options.repair
    alignment = (
        None if options.method == "none" else align(pair, options.method, seed=options.seed, beyond=maps(options))
    )
    weights = merged(pair, alignment, t, repair)
    evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
    a, b, found = (
        evaluator.measure(evaluator.weights(state), reestimate=False, label=label)
        for label, state in (("endpoint a", pair.theta_a), ("endpoint b", pair.theta_b), ("merged", weights))
    )
    measured = [("A", a), ("B", b), (f"merged, t = {t:.4g}", found)]
    if alignment is not None:
        measured.append(("merged unaligned", segment(pair, evaluator, None, repair).measure(t)))
    level = chord(t, a.loss, b.loss)
    rows = [
        row(name, each.loss, each.loss - level if name not in "AB" else None, each.error) for name, each in measured
    ]
    unit = f", {pair.loss.unit}" if pair.loss.unit else ""
    headers = ["network", f"{pair.loss.name}{unit}", "over the line from A to B", "0-1 error"]
    if found.error is None:
        rows, headers = [each[:-1] for each in rows], headers[:-1]
    print(tabulate(rows, headers=headers, disable_numparse=True, colalign=["left", *["right"] * (len(headers) - 1)]))
    print(f"\nwritten to {write(weights, target, pair, facts(pair, alignment, t, repair))}")
    return HELD
