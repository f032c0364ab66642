"""Where a run writes: never over a file that it reads, and never two files at one place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from glob import escape, glob
from pathlib import Path

import pytest

from lmccheck.errors import LmcError, shown_path
from lmccheck.gate.options import MANIFESTS, REFUSED, options_of
from lmccheck.gate.witnesses import curve_path, witness_path
from lmccheck.manifest.plan import CheckPlan, Measured, PairPlan
from lmccheck.report.formats import FORMATS
from lmccheck.report.record import CheckRecord
from lmccheck.report.write import is_report
from lmccheck.store.folders import MADE_HERE
from lmccheck.store.header import SAFETENSORS, read_header
from lmccheck.store.loss_curve import is_loss_curve
from lmccheck.store.whole import is_stream, place_of
from lmccheck.store.writing import beside

Checked = tuple[Measured, CheckPlan]
PYTESTS = {"xmlpath": "--junitxml", "log_file": "--log-file"}
READ = {".py", ".toml", ".ini", ".cfg", ".safetensors"}  # files of other people's, whatever they hold


def output_problem(checks: Iterable[Checked], config: pytest.Config) -> str | None:
    """Return what is wrong with where the outputs of the selected checks would be written, or None.

    Reports that are at fault are noted as refused: they are not even written to say so.
    """
    for name in options_of(config).reports:
        if (lacking := FORMATS.get(name).lacking) is not None:
            return lacking
    if (history := options_of(config).history) is not None:
        from lmccheck.report.history import history_problem

        if problem := history_problem(history):
            return f"--lmc-history: {problem}"
    inodes: dict[tuple[int, int], tuple[str, Path]] = {}
    places: dict[str, tuple[str, Path]] = {}
    for option, path in _outputs(checks, config):
        first = places.setdefault(place_of(path), (option, path))
        if (inode := _inode(Path(os.path.realpath(path)))) is not None and first == (option, path):
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
    reports = {*PYTESTS.values(), *(each.flag for each in FORMATS)}
    for option, path in places.values():
        what, ours = ("report", is_report) if option in reports else ("curve of a check", is_loss_curve)
        read = path.suffix in READ if option in reports else option.startswith("--lmc-curves")
        if read and path.is_file() and not ours(path):
            _refuse(config, path)
            return f"{option}: {shown_path(path)} is there already, and no {what}; mend: give it a file of its own"
    return None


def _outputs(checks: Iterable[Checked], config: pytest.Config) -> Iterator[tuple[str, Path]]:
    options = options_of(config)
    for name, path in options.reports.items():
        if not is_stream(path):
            yield FORMATS.get(name).flag, path
    for key, option in PYTESTS.items():
        if given := config.getoption(key, None):
            yield option, config.invocation_params.dir / str(given)
    if options.history is not None:
        yield "--lmc-history", options.history
    if options.baseline is not None and options.update_baseline:
        yield "--lmc-baseline", options.baseline
    shipped: set[tuple[str, str]] = set()
    for plan, check in checks:
        if options.witness_dir is not None:
            yield (
                f"--lmc-witness-dir ({plan.name}::{check.name})",
                witness_path(options.witness_dir, plan.name, check.name),
            )
        if options.curves_dir is not None:
            yield f"--lmc-curves ({plan.name}::{check.name})", curve_path(options.curves_dir, plan.name, check.name)
        if options.aligned_dir is not None and plan.ships and (plan.kind, plan.name) not in shipped:
            shipped.add((plan.kind, plan.name))
            yield from ((f"--lmc-aligned-dir ({plan.name})", file) for file in _shipped(plan, options.aligned_dir))


def _shipped(plan: Measured, folder: Path) -> Iterator[Path]:
    target = folder / plan.shipped_name
    yield target
    files = [target / name for name in plan.shipped_files] if not isinstance(plan, PairPlan) else [target]
    for file in files:
        if file != target:
            yield file
        yield beside(file, "permutation")


def _inputs(config: pytest.Config) -> Iterator[Path]:
    if config.inipath is not None:
        yield config.inipath
    options = options_of(config)
    if options.baseline is not None and not options.update_baseline:
        yield options.baseline
    for plugin in config.pluginmanager.get_plugins():
        if Path(getattr(plugin, "__file__", None) or "").name == "conftest.py":
            yield Path(plugin.__file__)
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
    spare(config)


def spare(config: pytest.Config) -> None:
    """Turn away JUnit's file where it was refused: pytest writes it whatever the exit status."""
    refused = {place_of(path) for path in config.stash[REFUSED]}
    for plugin in config.pluginmanager.get_plugins():
        if isinstance(file := getattr(plugin, "logfile", None), str) and place_of(Path(file)) in refused:
            plugin.logfile = os.devnull


def remove_stale(folder: Path, records: Iterable[CheckRecord]) -> list[Path]:
    """Remove what an earlier run aligned, or merged, for the selected checks, so that nobody ships what fails now.

    Return those files. Only what says that lmccheck made it is removed; what cannot be removed stays.
    """
    removed = []
    for name in sorted({record.pair for record in records if record.pair and record.kind != "model"}):
        inside = escape(str(folder / name))
        of_pair = [folder / f"{name}-b-{how}" for how in ("aligned", "fused")]
        files = [f"{path}{SAFETENSORS}" for path in of_pair]
        for file in map(Path, (*files, *sorted(glob(f"{inside}/*-aligned{SAFETENSORS}")))):
            if _is_ours(beside(file, "permutation")) or _is_ours(file):
                removed += _removed(file)
                _removed(beside(file, "permutation"))
        for made in (folder / f"{name}-merged", *of_pair, *map(Path, sorted(glob(f"{inside}/*-aligned")))):
            if os.path.isfile(made / MADE_HERE):
                removed += _removed(*sorted(made.glob(f"*{SAFETENSORS}*")))
                _removed(beside(made, "permutation"))
    return removed


def remove_stale_curves(folder: Path, records: Iterable[CheckRecord]) -> list[Path]:
    """Remove the curves that an earlier run wrote for the selected checks, as ``remove_stale`` does; return them."""
    files = (curve_path(folder, record.pair, record.check) for record in records if record.pair)
    return _removed(*filter(is_loss_curve, files))


def _removed(*paths: Path) -> list[Path]:
    """Remove files, what links point to with it; return those that could be."""
    gone = []
    for path in paths:
        with suppress(OSError):
            os.unlink(os.path.realpath(path))
            gone.append(path)
    return gone


def _is_ours(path: Path) -> bool:
    """Whether a file's header says that lmccheck aligned or fused it."""
    try:
        return '"method":' in read_header(path).metadata.get("lmccheck", "")
    except LmcError:
        return False
