"""Every alignment method, and the installed peers, on pairs trained on Fashion-MNIST: barrier, time, memory, function.

    python tests/benchmarks/fashion.py                 # once: trains the pairs into a cache outside the repository
    python tests/benchmarks/alignment.py [NET ...] [--methods a,b] [--points 11]

One row per net and method. Barriers are lmccheck's own, over the chord of the original endpoints, on 4,000 test images
(10,000 for the MLPs), BatchNorm re-estimated on 5,000 training images at every point, which are also the calibration
data. Peers run in their own processes with their own code, named by LMC_PEER_REBASIN and LMC_PEER_SINKHORN; their
aligned weights are measured in the same way. A method named "best+maps" also uses maps beyond permutations.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fashion
import torch
from peers.run import PEERS, interpreter, peer_alignment
from tabulate import tabulate
from torch import Tensor

import lmccheck
from lmccheck.alignment.api import METHODS
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.outputs import function_deviation
from lmccheck.evaluate.points import interpolate
from lmccheck.store import files

HERE = Path(__file__).parent
HEADERS = ["net", "method", "barrier", "error barrier", "at", "cpu s", "peak MB", "function"]


def pair_of(net: str) -> lmccheck.ModelPair:
    """Return a trained pair with its data."""
    cache = fashion.CACHE
    test = "fashion-test" if net.startswith("mlp") else "fashion-test4k"
    return lmccheck.load_pair(
        cache / f"{net}-seed0.safetensors",
        cache / f"{net}-seed1.safetensors",
        model=f"fashion:{net}",
        data=str(cache / f"{test}.safetensors"),
        calibration=str(cache / "fashion-calibration.safetensors"),
        base=HERE,
    )


class Measure:
    """Barriers of aligned weights of one pair; endpoints are measured once."""

    def __init__(self, pair: lmccheck.ModelPair, points: int) -> None:
        self.evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
        self.pair, self.ts = pair, [k / (points - 1) for k in range(points)]
        self.a = self.evaluator.weights(pair.theta_a)
        self.ends = [self._at(self.a, False), self._at(self.evaluator.weights(pair.theta_b), False)]

    def _at(self, weights: dict[str, Tensor], reestimate: bool) -> tuple[float, float]:
        found = self.evaluator.measure(weights, reestimate=reestimate, label="benchmark")
        return found.loss, found.error or 0.0

    def __call__(self, weights: dict[str, Tensor]) -> tuple[float, float, float]:
        """Return the loss barrier, the error barrier in percentage points, and where the loss is highest."""
        target = self.evaluator.weights(weights)
        (loss_a, error_a), (loss_b, error_b) = self.ends
        curve = [(t, *self._at(interpolate(self.a, target, t), True)) for t in self.ts]
        worst = max((loss - (1 - t) * loss_a - t * loss_b, t) for t, loss, _ in curve)
        wrong = max(error - (1 - t) * error_a - t * error_b for t, _, error in curve)
        return worst[0], 100 * wrong, worst[1]


class Peak:
    """The most resident memory, over what there was before, while a block runs: sampled every 5 ms."""

    def __enter__(self) -> Peak:
        self._before = self.most = _resident()
        self._running = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._running:
            self.most = max(self.most, _resident())
            time.sleep(0.005)

    def __exit__(self, *error: Any) -> None:
        self._running = False
        self._thread.join()
        self.most -= self._before


def _resident() -> float:
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def ours(net: str, method: str) -> tuple[dict[str, Tensor], float, float, float]:
    """Return aligned weights, CPU seconds (all of align(): tracing and verification too), MB and deviation."""
    pair = pair_of(net)
    name, _, maps = method.partition("+")
    begin = time.process_time()
    with Peak() as peak:
        alignment = lmccheck.align(pair, name, beyond="all" if maps else ())
    return alignment.weights, time.process_time() - begin, peak.most, alignment.function_deviation


def main() -> None:
    """Print the table, row by row as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=list(fashion.RECIPES))
    parser.add_argument("--methods", default=",".join([*METHODS.names(), "best+maps"]))
    parser.add_argument("--points", type=int, default=11)
    options = parser.parse_args()
    rows: list[list[str]] = []

    def row(net: str, method: str, measured: tuple[float, float, float], cpu: float, mb: float, change: float) -> None:
        loss, error, t = measured
        rows.append(
            [net, method, f"{loss:.4f}", f"{error:+.2f} pp", f"{t:.2f}", f"{cpu:.2f}", f"{mb:.0f}", f"{change:.0e}"]
        )
        print(*rows[-1], sep="  ", flush=True)

    ours("mlp", "weight-matching")  # what is imported and compiled on first use is nobody's alignment
    for net in options.nets:
        pair = pair_of(net)
        measure = Measure(pair, options.points)
        row(net, "none", measure(pair.theta_b), 0.0, 0.0, 0.0)
        for peer, (_, script) in PEERS.items():
            python = interpreter(peer)
            if python is None:
                rows.append([net, peer, "left out: its interpreter is not named", "", "", "", "", ""])
                continue
            facts, path = peer_alignment(python, script, net, fashion.CACHE)
            if path is None:
                rows.append([net, peer, f"failed: {facts['error']}"[:60], "", "", "", "", ""])
                continue
            weights = files.load(path)
            change = function_deviation(pair.network, pair.theta_b, weights)
            row(net, peer, measure(weights), facts["cpu_seconds"], facts["peak_rss_mb"], change)
        for method in options.methods.split(","):
            row(net, method, *_measured(measure, ours(net, method)))
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} thread(s), {options.points} points")
    print("\n" + tabulate(rows, HEADERS, disable_numparse=True))


def _measured(
    measure: Callable[[dict[str, Tensor]], tuple[float, float, float]],
    found: tuple[dict[str, Tensor], float, float, float],
) -> tuple[tuple[float, float, float], float, float, float]:
    weights, cpu, mb, change = found
    return measure(weights), cpu, mb, change


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
