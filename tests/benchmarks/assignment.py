"""Seconds, certified gap and extra memory of the linear assignment, against scipy in the same run.

Run by hand: ``python tests/benchmarks/assignment.py [n ...]``, n = 2048 and 4096 by default. Every row is one process.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from lmccheck.alignment.matching.assignment import assign

KINDS = ("uniform", "sim", "corr")


def normal(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    """Return standard normal numbers, (rows, columns)."""
    return torch.randn(rows, columns, generator=draw)


def similarity(kind: str, n: int) -> Tensor:
    """Return an (n, n) float32 matrix: random; dot products of independent features; correlations of related ones.

    The last has a planted permutation whose units correlate at about 0.6 and a common part of rank 8, as two networks'.
    """
    draw = torch.Generator().manual_seed(0)
    if kind == "uniform":
        return torch.rand(n, n, generator=draw)
    a, b = normal(n, 512, draw), normal(n, 512, draw)
    if kind == "corr":
        b = 0.6 * a + 0.8 * b
        common = normal(8, 512, draw)
        a, b = a + normal(n, 8, draw) @ common, b + normal(n, 8, draw) @ common
        b = b[torch.randperm(n, generator=draw)]
        a, b = ((x - x.mean(1, keepdim=True)) for x in (a, b))
        a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    return a @ b.T


def peak(*, afresh: bool = False) -> float:
    """Return the highest memory of this process in MB, from now on if ``afresh`` (Linux)."""
    if afresh:
        Path("/proc/self/clear_refs").write_text("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(n: int, kind: str, solver: str) -> dict[str, float | str]:
    """Return what one assignment takes; the memory is what the process's peak grows by."""
    matrix = similarity(kind, n)
    assign(matrix[:64, :64], exact_to=0)  # what only the first call pays
    before = peak(afresh=True)
    begin = time.perf_counter()
    found = assign(matrix, exact_to=n if solver == "scipy" else 0)
    seconds = time.perf_counter() - begin
    memory = peak() - before
    return {"seconds": seconds, "value": found.value, "gap": found.gap, "solver": found.solver, "MB": memory}


def main(sizes: list[int]) -> None:
    """Print the table, a line as soon as it is measured and all of them at the end."""
    rows: list[list[object]] = []
    for n in sizes:
        for kind in KINDS:
            found = {}
            for solver in ("scipy", "auction"):
                command = [sys.executable, __file__, "--one", str(n), kind, solver]
                found[solver] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                it, yardstick = found[solver], found["scipy"]
                took = "" if it["solver"] == solver else f"gave up: {it['solver']}"
                row = [n, kind, solver, it["seconds"], yardstick["seconds"] / it["seconds"], it["MB"]]
                rows.append([*row, it["gap"] / abs(it["value"]), it["value"] - yardstick["value"], took])
                print(*rows[-1], file=sys.stderr)
    headers = ["n", "kind", "solver", "seconds", "times faster", "extra MB", "gap / value", "value − scipy's", ""]
    print(tabulate(rows, headers, floatfmt=("", "", "", ".2f", ".1f", ".0f", ".1e", ".1e")))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]), sys.argv[3], sys.argv[4])))
    else:
        main([int(n) for n in sys.argv[1:]] or [2048, 4096])
