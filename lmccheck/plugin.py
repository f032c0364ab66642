"""The pytest plugin: options and hooks only, so that loading it costs no run more than a few milliseconds.

Everything that knows a manifest, a report or a network is imported by the hook that needs it, when it needs it.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from lmccheck.gate.options import MANIFESTS, REFUSED, USAGE_ERROR, is_manifest, options_of
from lmccheck.report.formats import formats

GROUP = "lmccheck: property tests for trained models"
MARKER = (
    "lmc(*pairs, manifest=None): a check of trained models, as the items of a manifest are; a test that asks for "
    "lmc_pair runs for these pairs of the nearest lmc.toml, or of this manifest, all by default"
)
INI_KEYS = {
    "lmc_device": "default of --lmc-device",
    "lmc_seed": "default of --lmc-seed",
    "lmc_profile": "default of --lmc-profile",
    "lmc_table": "default of --lmc-table",
    "lmc_aligned_dir": "default of --lmc-aligned-dir, relative to this file",
    "lmc_witness_dir": "default of --lmc-witness-dir, relative to this file",
    "lmc_curves": "default of --lmc-curves, relative to this file",
    "lmc_baseline": "default of --lmc-baseline, relative to this file",
    "lmc_history": "default of --lmc-history, relative to this file",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lmccheck", GROUP)
    add = group.addoption
    add("--lmc-models", action="store_true", help="collect lmc.toml and *.lmc.toml under the given paths")
    add("--lmc-device", metavar="auto|cpu|cuda[:N]", help="where networks are evaluated (default: auto)")
    add("--lmc-seed", metavar="INT", help="root seed, from which each check derives its own (default: 0)")
    add("--lmc-profile", metavar="dev|ci|thorough", help="budget of every search (default: ci)")
    add("--lmc-table", metavar="FMT", help="any tabulate format for the terminal table (default: simple)")
    for each in formats():
        add(each.flag, metavar="PATH", help=each.help)
        parser.addini(each.key, f"default of {each.flag}, relative to this file", default="")
    add(
        "--lmc-aligned-dir",
        metavar="DIR",
        help="write PAIR-b-aligned.safetensors (a folder PAIR-b-aligned where b is a folder) for each pair, and "
        "SET/FILE-aligned.safetensors, likewise, for each set, whose "
        "selected checks all passed, under the alignment of its first check that aligns; a check that only warns must "
        "pass too; what an earlier run aligned for a selected pair or set is removed first",
    )
    add(
        "--lmc-witness-dir",
        metavar="DIR",
        help="write PAIR-CHECK.safetensors for each check, passed or not: what proves its verdict (a path, kept units "
        "and refitted weights, masks, an alignment), to be checked again without searching",
    )
    add(
        "--lmc-curves",
        metavar="DIR",
        help="write PAIR-CHECK.csv for each check that measures a line or a path, passed or not: t, segment, loss, "
        "error, lower, upper (bounds where they are certified); what an earlier run wrote for a selected check is "
        "removed first",
    )
    add(
        "--lmc-baseline",
        metavar="PATH",
        help="compare with stored measurements: what is worse than its entry beyond noise, has none, or cannot be "
        "compared with it fails, whatever its limit; an entry without a check fails, too",
    )
    add(
        "--lmc-update-baseline",
        action="store_true",
        help="write what is measured to the baseline in place of comparing, unless something has no measurement; what "
        "is not selected stays as it is, limits do anyway",
    )
    add(
        "--lmc-history",
        metavar="PATH",
        help="add a row for each check to this file of sqlite3; lmccheck history PATH shows what became of each",
    )
    add(
        "--lmc-report-only",
        action="store_true",
        help="measure everything and fail nothing, whatever the verdicts (a crash of lmccheck itself still fails)",
    )
    for key, text in INI_KEYS.items():  # all text, the seed too: pytest's message for a bad int does not name the key
        parser.addini(key, text, default="")


def pytest_configure(config: pytest.Config) -> None:
    from lmccheck.gate import fixtures
    from lmccheck.gate.reporter import Reporter

    config.stash[MANIFESTS] = {}
    config.stash[REFUSED] = set()
    config.addinivalue_line("markers", MARKER)
    config.pluginmanager.register(fixtures, "lmccheck-fixtures")
    options = options_of(config)
    if not _is_worker(config):
        config.pluginmanager.register(Reporter(config), "lmccheck-reporter")
    elif options.models:  # before torch is imported: workers share the cores instead of each taking all
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    dist = config.getoption("dist", "no")
    if options.aligned_dir and dist not in ("no", "loadscope", "loadfile") and not _is_worker(config):
        raise pytest.UsageError(
            f"--lmc-aligned-dir: got --dist={dist}, expected --dist=loadscope, which keeps a pair's checks together"
        )


def pytest_report_header(config: pytest.Config) -> str | None:
    options = options_of(config)
    if options.report_only:
        return "lmccheck: REPORT ONLY: EVERYTHING IS MEASURED, NOTHING FAILS"
    if options.models:
        return f"lmccheck: device {options.device}, seed {options.seed}, profile {options.profile}"
    return None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if not is_manifest(file_path):
        return None
    if not options_of(parent.config).models and not parent.session.isinitpath(file_path):
        return None
    from lmccheck.gate.collect import ManifestFile

    return ManifestFile.from_parent(parent, path=file_path)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse what would otherwise be a green run that tested nothing, or a run on another device than asked for."""
    manifests = config.stash[MANIFESTS]
    problem = None
    if options_of(config).models and not manifests:
        problem = (
            "--lmc-models: no lmc.toml and no *.lmc.toml under the given paths; mend: lmccheck init A B writes one for "
            "two checkpoints"
        )
    elif manifests and not config.getoption("collectonly"):
        from lmccheck.gate.collect import selection_problem

        problem = selection_problem(items, config)
    if problem and _is_worker(config):
        told = {"lmc_usage_error": problem, "lmc_refused": [str(path) for path in config.stash[REFUSED]]}
        config.workeroutput.update(told)  # type: ignore[attr-defined]  # xdist gives workers this dict
        items.clear()
    elif problem:
        raise pytest.UsageError(problem)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Hear of a worker's usage error: a worker cannot end the run with one, the controller does in its name."""
    if problem := getattr(node, "workeroutput", {}).get("lmc_usage_error"):
        node.config.stash[USAGE_ERROR] = problem
        node.config.stash[REFUSED] |= {Path(path) for path in node.workeroutput["lmc_refused"]}
        from lmccheck.gate.outputs import spare

        spare(node.config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Send an item's record with its report, as plain data, since it may travel from a worker to the controller."""
    if not item.config.stash[MANIFESTS]:
        return (yield)
    from lmccheck.gate.items import Recorded

    if not isinstance(item, Recorded):
        return (yield)
    item.conclude(call)
    report = yield
    item.retell(report, call)
    report.lmc = item.payload(report)  # type: ignore[attr-defined]  # extra attributes travel with a report
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Tell a broken manifest's mistakes as text, which pytest's short summary shows; it shows no other."""
    report = yield
    if report.failed and is_manifest(collector.path):
        report.longrepr = report.longreprtext
    return report


def _is_worker(config: pytest.Config) -> bool:
    """True in an xdist worker, whose reports and records the controller receives."""
    return hasattr(config, "workerinput")
