"""Dropout stability and low-loss paths of pairs trained on Fashion-MNIST: losses, what they rest on, their cost.

    python tests/benchmarks/fashion.py                 # once: trains the pairs into a cache outside the repository
    python tests/benchmarks/paths.py [NET ...] [--sampled 200] [--keep 0.5]

One row per net and property: ε or excess with and without refitting the dropped networks, on 10,000 test images (4,000
for convolutional nets), searched on 5,000 training images. ``forwards`` is one forward pass of one network over the
test data in the same run, the yardstick of the seconds. With ``--sampled`` every segment is measured at that many
points on the first 1,000 images too, and how far the largest lies above the certified maximum there is printed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from alignment import pair_of
from tabulate import tabulate

import lmccheck
from lmccheck.data.batches import first_samples
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.paths.certify import certify

NETS = ("mlp", "mlpnb", "cnn", "cnnbn", "resnet")
HEADERS = ["net", "property", "kinds", "value", "no refit", "max", "known", "evals", "seconds", "forwards", "worst"]
PROPERTIES = {  # in this order: each searches what it needs and the ones before it have not
    "ten_segment_path": {},
    "ten_segment_path, short": {"form": "short"},
    "dropout_path": {},
    "dropout_path, short": {"form": "short"},
    "dropout_stability": {},
    "noise_stability": {},
}


def rows(net: str, keep: float, profile: str, properties: list[str]) -> Iterator[tuple[list[Any], Any]]:
    """Yield a table row and the result of every property of one pair; what one has searched the next ones know."""
    pair = pair_of(net)
    for title, settings in PROPERTIES.items():
        name = title.partition(",")[0]
        if name not in properties:
            continue
        given = settings if name == "noise_stability" else {**settings, "keep": keep}
        started = time.perf_counter()
        try:
            result = getattr(lmccheck, name)(pair, epsilon=0.02, profile=profile, **given)
        except lmccheck.LmcError as error:
            yield [net, title, "", type(error).__name__, "", "", "", "", "", "", str(error)[:60]], None
            continue
        seconds = time.perf_counter() - started
        details = result.details
        plain = details.get("without_refit") or {}
        exact = details.get("exact")
        yield (
            [
                net, title, details.get("kinds", ""), f"{result.value:.4f}", _number(plain.get("excess")),
                _number(details.get("certified_max")), "" if exact is None else "all" if exact else "but d",
                result.evaluations, f"{seconds:.1f}", f"{seconds / forward_seconds(pair):.0f}",
                details.get("worst_segment", "") or details.get("worst_layer", ""),
            ],
            result,
        )  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def forward_seconds(pair: lmccheck.ModelPair) -> float:
    """Return how long one pass of one network over the evaluation data takes."""
    evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
    weights = evaluator.weights(pair.theta_a)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        evaluator.measure(weights, reestimate=False, label="yardstick")
        times.append(time.perf_counter() - started)
    return min(times)


def above_certified(pair: lmccheck.ModelPair, path: lmccheck.Path, points: int) -> tuple[float, float]:
    """Return how far the largest of many samples lies above the certified maximum: on a, b, c segments, and on d."""
    few = pair.measured_on(first_samples(pair.data, 1000), pair.calibration)
    found = certify(few, few.network.structure("benchmark"), path)
    evaluator = Evaluator(few.network, few.theta_a, dtype=torch.float64)
    worst = {True: -1.0, False: -1.0}
    for segment in found.segments:
        for k in range(points + 1):
            weights = evaluator.weights(path.between(segment.number - 1, k / points))
            loss = evaluator.measure(weights, reestimate=False, label="sample").loss
            worst[segment.kind == "d"] = max(worst[segment.kind == "d"], loss - found.largest)
    return worst[False], worst[True]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=NETS)
    parser.add_argument("--sampled", type=int, default=0)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--profile", default="ci")
    parser.add_argument("--properties", default=",".join(dict.fromkeys(name.partition(",")[0] for name in PROPERTIES)))
    options = parser.parse_args()
    table = []
    for net in options.nets:
        for row, result in rows(net, options.keep, options.profile, options.properties.split(",")):
            table.append(row)
            print(*row, flush=True)
            if options.sampled and result is not None and isinstance(result.witness, lmccheck.Path):
                inner, outer = above_certified(pair_of(net), result.witness, options.sampled)
                print(f"  {options.sampled} points a segment: a, b, c {inner:+.1e}, d {outer:+.1e} over certified")
    print(tabulate(table, HEADERS, disable_numparse=True))


if __name__ == "__main__":
    main()
