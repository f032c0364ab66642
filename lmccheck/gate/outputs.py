"""Where a run writes: never over a file that it reads, and never two files at one place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from lmccheck.errors import LmcError, shown_path
from lmccheck.gate.options import MANIFESTS, REFUSED, options_of
from lmccheck.gate.witnesses import witness_path
from lmccheck.manifest.plan import CheckPlan, PairPlan, SetPlan
from lmccheck.store.whole import is_stream, place_of

Checked = tuple[PairPlan | SetPlan, CheckPlan]
PYTESTS = {"xmlpath": "--junitxml", "log_file": "--log-file"}


def output_problem(checks: Iterable[Checked], config: pytest.Config) -> str | None:
    """Return what is wrong with where the outputs of the selected checks would be written, or None.

    Reports that are at fault are noted as refused: they are not even written to say so.
    """
    inodes: dict[tuple[int, int], tuple[str, Path]] = {}
    places: dict[str, tuple[str, Path]] = {}
    for option, path in _outputs(checks, config):
        first = places.setdefault(place_of(path), (option, path))
        if (inode := _inode(path)) is not None and first == (option, path):
            first = inodes.setdefault(inode, first)
        if first != (option, path):
            _refuse(config, path, first[1])
            return f"{option}: {shown_path(path)} is written by {first[0]}, too; mend: give each a file of its own"
    for file in _inputs(config):
        inode = _inode(file)
        found = inodes.get(inode) if inode else places.get(os.path.abspath(file))
        if found is not None:
            _refuse(config, found[1])
            return (
                f"{found[0]}: {shown_path(found[1])} is an input, {shown_path(file)}, which would be overwritten; "
                "mend: give it a file of its own"
            )
    return None


def _outputs(checks: Iterable[Checked], config: pytest.Config) -> Iterator[tuple[str, Path]]:
    options = options_of(config)
    for name, path in options.reports.items():
        if not is_stream(path):
            yield f"--lmc-report-{name}", path
    for key, option in PYTESTS.items():
        if options.reports and (given := config.getoption(key, None)):
            yield option, config.invocation_params.dir / str(given)
    shipped: set[tuple[str, str]] = set()
    for plan, check in checks:
        if options.witness_dir is not None:
            yield (
                f"--lmc-witness-dir ({plan.name}::{check.name})",
                witness_path(options.witness_dir, plan.name, check.name),
            )
        if options.aligned_dir is not None and (plan.kind, plan.name) not in shipped:
            shipped.add((plan.kind, plan.name))
            yield from ((f"--lmc-aligned-dir ({plan.name})", file) for file in _shipped(plan, options.aligned_dir))


def _shipped(plan: PairPlan | SetPlan, folder: Path) -> Iterator[Path]:
    target = folder / plan.shipped_name
    yield target
    try:
        files = [target / name for name in plan.shipped_files] if isinstance(plan, SetPlan) else [target]
    except LmcError:  # two files of one name, which is that set's own error
        return
    for file in files:
        if file != target:
            yield file
        yield file.with_name(f"{file.name.removesuffix('.safetensors')}.permutation.safetensors")


def _inputs(config: pytest.Config) -> Iterator[Path]:
    for manifest, plan in config.stash[MANIFESTS].items():
        yield manifest
        yield manifest.parent / "conftest.py"
        yield from plan.inputs if plan else ()


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _refuse(config: pytest.Config, *paths: Path) -> None:
    config.stash[REFUSED] |= set(paths)
