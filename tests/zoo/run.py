"""Print what lmccheck finds in every network of a zoo: python tests/zoo/run.py torchvision transformers [NAME ...].

Each network is measured in a process of its own, so that its memory can be told. The last line of a zoo's table is
its totals. ``--full-size`` measures ResNet-50 and ViT-B/16 on images of 224 pixels instead.
"""

from __future__ import annotations

import argparse
import multiprocessing
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torchvision_zoo
import transformers_zoo
from measure import Row, measure
from tabulate import tabulate

ZOOS: dict[str, Any] = {"torchvision": torchvision_zoo, "transformers": transformers_zoo}
FULL_SIZE = ("resnet50", "vit_b_16")


def measured(zoo: str, name: str, side: int | None = None) -> Row:
    """Build and measure one network."""
    warnings.simplefilter("ignore")
    module, inputs = ZOOS[zoo].build(name) if side is None else ZOOS[zoo].build(name, side)
    return measure(name, module, inputs)


def rows(zoo: str, names: Iterable[str], side: int | None = None) -> list[Row]:
    """Measure networks one after the other, each in a fresh process."""
    found = []
    for name in names:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            found.append(alone.submit(measured, zoo, name, side).result())
    return found


def table(found: list[Row]) -> str:
    """Return the rows and their totals as text."""
    header = ["network", "parameters", "groups", "free %", "unread %", "deviation", "seconds", "memory ×", "remark"]
    cells = [
        [
            row.name,
            f"{row.parameters:,}",
            row.groups,
            f"{100 * row.free:.2f}",
            f"{100 * row.unread:.1f}" if row.unread else "",
            "" if row.deviation is None else f"{row.deviation:.1e}",
            f"{row.discover_s:.1f} + {row.verify_s:.1f}",
            f"{row.memory:.1f}",
            row.refusal[:80] or ", ".join(f"{op} has no rule" for op in row.unruled),
        ]
        for row in found
    ]
    return tabulate(cells, header, disable_numparse=True) + "\n\n" + totals(found)


def totals(found: list[Row]) -> str:
    """Return one line: how many networks, refused, unsound, with free groups, and the median share that is free."""
    shares = sorted(row.free for row in found if row.deviation is not None) or [0.0]
    return (
        f"{len(found)} networks: {sum(bool(row.refusal) for row in found)} refused with a reason, "
        f"{sum(not row.sound for row in found)} unsound, {sum(row.groups > 0 for row in found)} with free groups; "
        f"free share of the parameters: least {100 * shares[0]:.1f} %, median {100 * shares[len(shares) // 2]:.2f} %"
    )


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoos", nargs="+", help="torchvision, transformers, then names of networks (all by default)")
    parser.add_argument("--full-size", action="store_true", help="ResNet-50 and ViT-B/16 on 224 × 224 images")
    given = parser.parse_args(arguments)
    wanted = [name for name in given.zoos if name not in ZOOS]
    if given.full_size:
        print(table(rows("torchvision", FULL_SIZE, 224)))
        return
    for zoo in (name for name in given.zoos if name in ZOOS):
        build: dict[str, Callable[..., Any]] = ZOOS[zoo].builders()
        print(f"{zoo}\n{table(rows(zoo, [name for name in build if not wanted or name in wanted]))}\n", flush=True)


if __name__ == "__main__":
    main()
