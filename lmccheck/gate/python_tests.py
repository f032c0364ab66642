"""Ordinary tests of trained models: the test that runs, the pairs of a manifest it is run for, rows it adds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from lmccheck.errors import LmcError, nearest

if TYPE_CHECKING:
    from lmccheck.manifest.plan import PairPlan, Plan
    from lmccheck.report.record import CheckRecord
    from lmccheck.result import Result

MARKER = "lmc"
PAIR = "lmc_pair"
NAMED = {"lmc", PAIR, "lmc_record", "request"}  # a test that has one of these may ask for what its own fixtures say
REQUEST = pytest.StashKey[pytest.FixtureRequest]()  # that of the test which runs
PLANNED = pytest.StashKey[dict[tuple[object, ...], "PlannedPair"]]()
RECORDS: pytest.StashKey[list[CheckRecord]] = pytest.StashKey()
WORST = pytest.StashKey[str]()


@dataclass(frozen=True, eq=False)
class PlannedPair:
    """A pair of a manifest that tests are run for; loaded when the first of them asks for it."""

    manifest: Plan
    plan: PairPlan

    def __repr__(self) -> str:
        return f"{self.manifest.path.name}::{self.plan.name}"


def current_request(config: pytest.Config, what: str) -> pytest.FixtureRequest:
    """Return the request of the test that runs. Raises LmcError where there is none, or it names none of ours."""
    if REQUEST not in config.stash:
        raise LmcError(
            f"{what}: no test runs that has it among its arguments, or among those of its fixtures; mend: name it there"
        )
    return config.stash[REQUEST]


def keep_request(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep the request of the test that runs, for fixtures that live longer than it."""
    before = request.config.stash.get(REQUEST, None)
    request.config.stash[REQUEST] = request
    yield
    if before is None:
        del request.config.stash[REQUEST]
    else:
        request.config.stash[REQUEST] = before


def parametrise(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for ``lmc_pair`` once for each pair of its manifest, or for those its marker names.

    Raises CollectError with one line: no manifest, a malformed one, no such pair.
    """
    marker = metafunc.definition.get_closest_marker(MARKER)
    said, where = (marker.args, marker.kwargs) if marker is not None else ((), {})
    try:
        if unknown := next((key for key in where if key != "manifest"), None):
            raise LmcError(f"mark.lmc: unknown {unknown!r}{nearest(unknown, ['manifest'])}; expected manifest=…")
        if PAIR not in metafunc.fixturenames:
            if said or where:
                raise LmcError(f"mark.lmc{said or where}: the test does not ask for {PAIR}; mend: make it an argument")
            return
        if _own(metafunc):
            return
        plan = _plan(metafunc, where.get("manifest"))
        pairs = _chosen(plan, said)
    except LmcError as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from None
    known = metafunc.config.stash.setdefault(PLANNED, {})
    place = metafunc.module.__name__, metafunc.cls  # whose fixtures say what the pair runs on
    planned = [known.setdefault((plan.path, pair.name, *place), PlannedPair(plan, pair)) for pair in pairs]
    metafunc.parametrize(PAIR, planned, ids=[pair.name for pair in pairs], indirect=True, scope="session")


def _own(metafunc: pytest.Metafunc) -> bool:
    """Whether the user says what the fixture is: by parametrize, or with a fixture of that name."""
    if any(PAIR in str(mark.args[:1]) for mark in metafunc.definition.iter_markers("parametrize")):
        return True
    places = [metafunc.module, metafunc.cls]
    for plugin in metafunc.config.pluginmanager.get_plugins():
        file = getattr(plugin, "__file__", None)
        if isinstance(plugin, ModuleType) and file and metafunc.definition.path.is_relative_to(Path(file).parent):
            places.append(plugin)
    return any(hasattr(place, PAIR) for place in places if place is not None)


def _plan(metafunc: pytest.Metafunc, named: Any) -> Plan:
    """Return the manifest that the marker names, or the nearest lmc.toml at or above the test."""
    from lmccheck.manifest.read import load_manifest

    folder = metafunc.definition.path.parent
    if named is not None:
        return load_manifest(folder / str(named))
    above = [folder, *(up for up in folder.parents if up.is_relative_to(metafunc.config.rootpath))]
    for place in above:
        if (place / "lmc.toml").is_file():
            return load_manifest(place / "lmc.toml")
    raise LmcError(
        f"{PAIR}: no lmc.toml in {folder} or above it up to {metafunc.config.rootpath}; mend: write one, or name it, "
        '@pytest.mark.lmc(manifest="….lmc.toml")'
    )


def _chosen(plan: Plan, said: tuple[Any, ...]) -> list[PairPlan]:
    by_name = {pair.name: pair for pair in plan.pairs}
    if not by_name:
        raise LmcError(f"{PAIR}: {plan.path} has no pair; mend: add [pair.NAME] to it")
    for name in said:
        if name not in by_name:
            near = nearest(str(name), by_name)
            raise LmcError(f"mark.lmc: no pair {name!r}{near} in {plan.path}; expected some of {list(by_name)}")
    return [by_name[name] for name in said] if said else list(by_name.values())


def mark_parametrised(item: pytest.Item) -> None:
    """Say of a test that runs for several pairs that it is parametrised: Hypothesis looks for that of methods."""
    if isinstance(_parameters(item).get(PAIR), PlannedPair):
        item.add_marker(pytest.mark.parametrize(PAIR, []))


def _parameters(item: Any) -> dict[str, Any]:
    return dict(getattr(getattr(item, "callspec", None), "params", {}))


def planned_for(request: pytest.FixtureRequest) -> PlannedPair | None:
    """Return the pair of a manifest that the test of a request is run for."""
    found = _parameters(request.node).get(PAIR)
    return found if isinstance(found, PlannedPair) else None


def add_record(item: pytest.Item, result: Result, name: str | None, pair: str | None) -> None:
    """Keep a row for the report, in place of an earlier one of that name of the same test."""
    from lmccheck.gate.items import command_of
    from lmccheck.report.record import CheckRecord
    from lmccheck.result import Result

    if not isinstance(result, Result):
        raise LmcError(f"lmc_record: got {type(result).__name__}, expected a Result")
    rows = item.stash.setdefault(RECORDS, [])
    check = name or result.property
    blank = CheckRecord(
        id=f"{item.nodeid}::{check}", manifest=item.nodeid.split("::")[0], manifest_sha256="", pair=pair or item.name,
        check=check, property=result.property, severity="fail", verdict="pass", blocking=False,
        reproduce=command_of(item, []),
    )  # fmt: skip
    rows[:] = [*(row for row in rows if row.check != check), blank.measured(result)]


def payload_of(item: pytest.Item, report: pytest.TestReport) -> dict[str, Any] | None:
    """Return what a test's report carries: its rows, and the worst that Hypothesis found; the test's outcome decides.

    A row of a test that passes warns only: what the test expects is its own to say.
    """
    if report.when != "call":
        return None
    rows = [
        replace(row, blocking=report.failed, severity="fail" if report.failed else "warn").to_dict()
        for row in item.stash.get(RECORDS, [])
    ]
    found = [f"{item.nodeid}: {item.stash[WORST]}"] if WORST in item.stash else []
    return {"records": rows, "whole": found} if rows or found else None


def searched(item: pytest.Item) -> ExitStack:
    """Return what surrounds a test under ``@given`` that uses lmccheck.strategies: it keeps the worst that was found.

    Nothing where the test is no such test, or the strategies were never imported.
    """
    around = ExitStack()
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    arguments = getattr(item, "funcargs", {})
    if handle is None or "lmccheck.strategies" not in sys.modules:
        return around
    from lmccheck.strategies.draws import fixtures
    from lmccheck.strategies.worst import watched

    def fixture(name: str) -> Any:
        return arguments[name] if name in arguments else current_request(item.config, name).getfixturevalue(name)

    def note(worst: Any) -> None:
        if (line := worst.line()) is not None:
            item.stash[WORST] = line

    around.enter_context(fixtures(fixture))
    itself = getattr(item.obj, "__self__", None)  # type: ignore[attr-defined]  # it has a handle, so it has an obj
    worst = around.enter_context(watched(handle, arguments, itself))
    around.callback(partial(note, worst))
    return around
