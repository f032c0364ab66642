"""A manifest as pytest nodes: file > pair > check, so that ids, ``-k``, fixtures, JUnit and xdist work unchanged.

Only public names of pytest are used. Nothing here imports torch before a check runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmccheck.errors import DeviceError, LmcError, LmcWarning, ManifestError, VerdictError
from lmccheck.manifest import CheckPlan, PairPlan, Plan, load_manifest
from lmccheck.options import MANIFESTS, Options, options_of
from lmccheck.pairing import LoadedPair, Sources
from lmccheck.report.failure import failure_text, reproduce_command
from lmccheck.report.record import CheckRecord

if TYPE_CHECKING:
    from lmccheck.result import Result


class ManifestFile(pytest.File):
    """One ``lmc.toml``; a malformed one is a collection error."""

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        """Yield the manifest's own item, then its pairs.

        Only now does the manifest count as found: pytest also lists the files of folders above the ones it was given.
        """
        self.config.stash[MANIFESTS].add(self.path)
        try:
            plan = load_manifest(self.path)
        except ManifestError as error:
            raise self.CollectError(str(error)) from None
        item = ManifestItem.from_parent(self, name="manifest")
        item.plan = plan
        item.add_marker("lmc")
        yield item
        for pair in plan.pairs:
            collector = PairCollector.from_parent(self, name=pair.name)
            collector.adopt(plan, pair)
            yield collector


class Recorded(pytest.Item):
    """An item that leaves a record of what it measured, whatever happens to it."""

    record: CheckRecord | None = None

    def blank(self) -> CheckRecord:
        """Return the record as it stands before anything is measured."""
        raise NotImplementedError

    def keep(self, record: CheckRecord) -> None:
        """Keep a record, and its flat facts where JUnit and other plugins find them (once, also after a rerun)."""
        self.record = record
        self.user_properties[:] = [fact for fact in self.user_properties if not fact[0].startswith("lmc.")]
        self.user_properties.extend(record.properties())

    def conclude(self, call: pytest.CallInfo[None]) -> None:
        """Record an exception that no check foresaw, so that the item has its row."""
        if call.excinfo is None or call.when == "teardown" or call.excinfo.errisinstance(pytest.skip.Exception):
            return
        if self.record is None or self.record.verdict == "pass":
            error = call.excinfo.value
            text = str(error) if isinstance(error, LmcError) else f"{type(error).__name__}: {error}"
            self.keep(dataclasses.replace(self.blank(), verdict="error", text=text))

    def luggage(self, report: pytest.TestReport) -> dict[str, Any] | None:
        """Return what the item's report carries to the process that keeps the books: plain data."""
        if self.record is not None and (report.when == "call" or (report.when == "setup" and not report.passed)):
            return {"record": dataclasses.replace(self.record, blocking=report.failed).to_dict()}
        return None

    def retell(self, report: pytest.TestReport, call: pytest.CallInfo[None]) -> None:
        """Give a mistake found in setup or teardown its one line too; pytest asks ``repr_failure`` of calls only."""
        if call.excinfo is not None and call.when != "call" and isinstance(call.excinfo.value, LmcError):
            report.longrepr = str(call.excinfo.value)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show what the user can act on without a traceback; a bug keeps its own."""
        if isinstance(excinfo.value, (LmcError, LmcWarning)):
            return str(excinfo.value)
        return super().repr_failure(excinfo)


class ManifestItem(Recorded):
    """Inspects the files that a manifest names, from their headers only."""

    plan: Plan

    def blank(self) -> CheckRecord:
        return CheckRecord(
            id=self.nodeid,
            manifest=self.parent.nodeid if self.parent else "",
            manifest_sha256=self.plan.sha256,
            pair="",
            check="manifest",
            property="manifest",
            severity="fail",
            verdict="pass",
            blocking=True,
        )

    def runtest(self) -> None:
        """Raise ``ManifestError`` with one line per problem."""
        from lmccheck.preflight import problems

        self.keep(self.blank())
        if found := problems(self.plan):
            text = "\n".join(found)
            self.keep(dataclasses.replace(self.blank(), verdict="error", text=text))
            if not options_of(self.config).report_only:
                raise ManifestError(text)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}: manifest"


class PairCollector(pytest.Collector):
    """One pair; loads its checkpoints once for all its checks, and lets go of them after the last."""

    manifest: Plan
    plan: PairPlan
    loaded: LoadedPair

    def adopt(self, manifest: Plan, plan: PairPlan) -> None:
        """Take the part of the plan that this node stands for."""
        self.manifest, self.plan, self.loaded = manifest, plan, LoadedPair(manifest.folder, plan)

    def collect(self) -> Iterator[pytest.Item]:
        """Yield the pair's checks."""
        for check in self.plan.checks:
            item = CheckItem.from_parent(self, name=check.name, callobj=check_pair)
            item.check = check
            item.add_marker("lmc")
            item.extra_keyword_matches.add(check.property)
            yield item

    def teardown(self) -> None:
        """Write θ_B aligned if the pair's selected checks all passed, and free the weights."""
        self.loaded.free()
        folder = options_of(self.config).aligned_dir
        selected = {item.name for item in self.session.items if item.parent and item.parent.nodeid == self.nodeid}
        if folder is None:
            return
        if failed := sorted(selected - self.loaded.passed):
            self.loaded.lines.append(f"aligned b not written for {self.name}: {', '.join(failed)} did not pass")
        else:
            self.loaded.write_aligned(folder)


class CheckItem(Recorded, pytest.Function):
    """One property of one pair."""

    check: CheckPlan

    @property
    def pair(self) -> PairCollector:
        assert isinstance(self.parent, PairCollector)
        return self.parent

    def blank(self) -> CheckRecord:
        pair = self.pair
        return CheckRecord(
            id=self.nodeid,
            manifest=pair.parent.nodeid if pair.parent else "",
            manifest_sha256=pair.manifest.sha256,
            pair=pair.plan.name,
            check=self.check.name,
            property=self.check.property,
            severity=self.check.severity,
            verdict="pass",
            blocking=True,
            profile=options_of(self.config).profile,
            settings=dict(self.check.settings),
            pair_description=pair.loaded.description,
            environment=pair.loaded.environment,
        )

    def luggage(self, report: pytest.TestReport) -> dict[str, Any] | None:
        """Return the record, and after the pair's teardown what became of its aligned file."""
        if report.when != "teardown":
            return super().luggage(report)
        lines, self.pair.loaded.lines = self.pair.loaded.lines, []
        return {"lines": lines} if lines else None

    def measure(self, sources: Sources) -> None:
        """Measure the property, keep the record, and fail if the verdict is anything but pass.

        Raises ``VerdictError`` with the failure's text, or the ``LmcError`` that kept it from being measured. It is
        raised here, where no local variable holds a network: pytest keeps a failure's frames until the next test.
        """
        problem = self.problem(sources)
        if problem is not None and not options_of(self.config).report_only:
            raise problem

    def problem(self, sources: Sources) -> LmcError | None:
        """Measure the property and keep the record; return what the item has to fail with."""
        from lmccheck.properties import run

        options = options_of(self.config)
        try:
            pair = self.pair.loaded.load(sources)
            seed = item_seed(options.seed, self.check.name, pair.description)
            result = run(self.check.property, pair, seed=seed, profile=options.profile, **self.check.settings)
        except LmcError as error:
            self.keep(dataclasses.replace(self.blank(), verdict="error", text=str(error)))
            error.__cause__ = error.__context__ = None  # their frames hold the networks, and only the text is shown
            return error.with_traceback(None)
        return self.judged(result, seed)

    def judged(self, result: Result, seed: int) -> LmcError | None:
        """Keep the record of a result; return what the item has to fail with."""
        options = options_of(self.config)
        record = dataclasses.replace(self.blank(), seed=seed).measured(result)
        if result.passed:
            self.keep(record)
            self.pair.loaded.note_pass(self.check.name, result.witness if options.aligned_dir else None)
            return None
        text = failure_text(record, self.reproduce())
        self.keep(dataclasses.replace(record, text=text))
        if self.check.severity == "fail" or options.report_only:
            return VerdictError(text)
        self.warn(LmcWarning(f"{self.nodeid}\n{text}"))
        return None

    def reproduce(self) -> str:
        """Return the command that repeats this item from where the user typed the first one."""
        here = self.config.invocation_params.dir
        names = self.nodeid.split("::")[1:]
        node = "::".join([os.path.relpath(self.path, here), *names])
        return reproduce_command(node, options_of(self.config).reproducing_flags)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Point at the pair's line in the manifest, where a reader can change something."""
        return self.path, self.pair.plan.line - 1, f"{self.pair.name}: {self.name}"


def check_pair(
    request: pytest.FixtureRequest,
    lmc_model_factory: Any,
    lmc_data: Any,
    lmc_loss: Any,
    lmc_device: str,
) -> None:
    """The function every check item calls; its arguments are the fixtures a conftest may override."""
    item = request.node
    assert isinstance(item, CheckItem)
    item.measure(Sources(model=lmc_model_factory, data=lmc_data, loss=lmc_loss, device=lmc_device))


def item_seed(root: int, check: str, description: dict[str, Any]) -> int:
    """Return an item's own seed: stable across processes and machines, different for each check and each pair."""
    files = description.get("files", {})
    parts = [str(root), check, *(str(files.get(side, {}).get("sha256")) for side in ("a", "b"))]
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:4])


def selection_problem(items: list[pytest.Item], options: Options) -> str | None:
    """Return why the selected checks cannot be run as asked, or None."""
    checks = [item for item in items if isinstance(item, CheckItem)]
    if options.aligned_dir:
        manifests: dict[str, str] = {}
        for check in checks:
            here = check.blank().manifest
            if manifests.setdefault(check.pair.name, here) != here:
                return (
                    f"--lmc-aligned-dir: {manifests[check.pair.name]} and {here} both have a pair {check.pair.name!r}, "
                    "expected different names, since their files would have the same"
                )
    if checks and options.device.startswith("cuda"):  # only now is torch worth importing
        from lmccheck.evaluate.device import resolve_device

        try:
            resolve_device(options.device)
        except DeviceError as error:
            return f"--lmc-device={options.device}: {error}"
    return None
