"""A manifest as pytest nodes, file > pair (or model, set, merge) > check: ids, ``-k``, JUnit and xdist just work.

Only public names of pytest are used. Nothing here imports torch before a check runs.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmccheck.errors import DeviceError, LmcError, LmcWarning, ManifestError, VerdictError
from lmccheck.gate.baseline import baseline_problem, beside_baseline
from lmccheck.gate.core import Sources, core_of
from lmccheck.gate.items import ManifestItem, Recorded, causes, without_frames
from lmccheck.gate.loading import Loaded
from lmccheck.gate.options import MANIFESTS, options_of
from lmccheck.gate.outputs import output_problem
from lmccheck.gate.selection import blank_check
from lmccheck.gate.witnesses import curve_lines, unsaid_by, witness_lines
from lmccheck.manifest.plan import CheckPlan, Measured, Plan
from lmccheck.manifest.read import load_manifest
from lmccheck.report.failure import failure_text
from lmccheck.report.record import NOT_MEASURED, CheckRecord

if TYPE_CHECKING:
    from lmccheck.result import Result


class ManifestFile(pytest.File):
    """One ``lmc.toml``; a malformed one is a collection error."""

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        """Yield the manifest's own item, then its pairs, its models, its sets and its merges.

        Only now does the manifest count as found: pytest also lists the files of folders above the ones it was given.
        """
        found = self.config.stash[MANIFESTS]
        found[self.path] = None
        try:
            plan = found[self.path] = load_manifest(self.path)
        except ManifestError as error:
            raise self.CollectError(str(error)) from None
        item = ManifestItem.from_parent(self, name="manifest")
        item.plan = plan
        item.add_marker("lmc")
        yield item
        for comparison in plan.comparisons:
            collector = COLLECTORS[comparison.kind].from_parent(self, name=comparison.name)
            collector.adopt(plan, comparison)
            yield collector


class PairCollector(pytest.Collector):
    """One pair; loads its checkpoints once for all its checks, and lets go of them after the last."""

    manifest: Plan
    plan: Measured
    loaded: Loaded

    def adopt(self, manifest: Plan, plan: Measured) -> None:
        """Take the part of the plan that this node stands for."""
        self.manifest, self.plan = manifest, plan
        self.loaded = Loaded(manifest.folder, plan, core_of(self.config))

    def collect(self) -> Iterator[pytest.Item]:
        """Yield its checks."""
        for check in self.plan.checks:
            item = CheckItem.from_parent(self, name=check.name, callobj=check_pair)
            item.check = check
            item.add_marker("lmc")
            item.extra_keyword_matches.add(check.property)
            yield item

    def teardown(self) -> None:
        """Free the weights, and after the last selected check write what was aligned if they all passed.

        Whoever orders the checks of several pairs among one another comes by several times.
        """
        self.loaded.free()
        folder = options_of(self.config).aligned_dir
        items = [item for item in self.session.items if item.parent and item.parent.nodeid == self.nodeid]
        ended = self.session.shouldstop or self.session.shouldfail
        if folder is None or (not ended and any(getattr(item, "record", None) is None for item in items)):
            return
        selected = {item.name for item in items}
        if self.plan.ships is None:
            self.loaded.lines.append(f"{self.name} is a single model: --lmc-aligned-dir has nothing to write for it")
        elif failed := sorted(selected - self.loaded.passed):
            self.loaded.lines.append(f"{self.plan.ships} not written for {self.name}: {', '.join(failed)} did not pass")
        else:
            self.loaded.write_aligned(folder)


class ModelCollector(PairCollector):
    """One single model, treated as a pair is."""


class SetCollector(PairCollector):
    """One set of models, likewise."""


class MergeCollector(PairCollector):
    """One merge, likewise."""


COLLECTORS: dict[str, Any] = {
    "pair": PairCollector,
    "model": ModelCollector,
    "set": SetCollector,
    "merge": MergeCollector,
}


class CheckItem(Recorded, pytest.Function):
    """One property of one pair, model, set or merge; ``pair`` is any of them."""

    check: CheckPlan

    @property
    def pair(self) -> PairCollector:
        assert isinstance(self.parent, PairCollector)
        return self.parent

    def blank(self) -> CheckRecord:
        pair = self.pair
        manifest = pair.parent.nodeid if pair.parent else ""
        return replace(
            blank_check(self.nodeid, manifest, pair.manifest, pair.plan, self.check),
            profile=options_of(self.config).profile,
            pair_description=pair.loaded.description,
            environment=pair.loaded.environment,
            reproduce=self.reproduce(),
        )

    def payload(self, report: pytest.TestReport) -> dict[str, Any] | None:
        """Return the record, and after the last teardown what became of the aligned files."""
        if report.when != "teardown":
            return super().payload(report)
        lines, self.pair.loaded.lines = self.pair.loaded.lines, []
        return {"lines": lines} if lines else None

    def measure(self, sources: Sources) -> None:
        """Measure the property, keep the record, and fail if the verdict is anything but pass.

        Raises ``VerdictError`` with the failure's text, or the ``LmcError`` that kept it from being measured. It is
        raised here, where no local variable holds a network: pytest keeps a failure's frames until the next test.
        """
        problem = self.problem(sources)
        unmeasured = self.record is not None and self.record.verdict == NOT_MEASURED
        if problem is not None and (unmeasured or not options_of(self.config).report_only):
            raise problem

    def problem(self, sources: Sources) -> LmcError | None:
        """Measure the property and keep the record; return what the item has to fail with."""
        options = options_of(self.config)
        try:
            networks = self.pair.loaded.load(sources)
            seed = item_seed(options.seed, self.check.name, self.pair.loaded.description)
            result = core_of(self.config).run(
                self.check.property, networks, seed=seed, profile=options.profile, **self.check.settings
            )
            if unsaid := unsaid_by(result.details):
                raise ManifestError(f"{self.check.name}: {unsaid}")
        except LmcError as error:
            ended = ended_by(error)
            blank = self.blank()
            self.remember(blank.unmeasured(str(error)) if ended else replace(blank, verdict="error", text=str(error)))
            return without_frames(error, self.config)
        return self.judged(result, seed)

    def judged(self, result: Result, seed: int) -> LmcError | None:
        """Keep the record of a result; return what the item has to fail with."""
        options = options_of(self.config)
        record = replace(self.blank(), seed=seed).measured(result)
        record = beside_baseline(record, self.config, self.path, self.reproduce(baseline=True))
        try:
            if options.witness_dir is not None:
                self.pair.loaded.lines += witness_lines(result.witness, options.witness_dir, self.pair.name, self.name)
            if options.curves_dir is not None:
                self.pair.loaded.lines += curve_lines(record, options.curves_dir)
        except LmcError as error:
            self.remember(replace(record, verdict="error", text=str(error)))
            return without_frames(error, self.config)
        if record.verdict == "pass":
            self.remember(record)
            self.pair.loaded.note_pass(self.check.name, result.witness if options.aligned_dir else None)
            return None
        text = failure_text(record)
        self.remember(replace(record, text=text))
        if self.check.severity == "fail" or record.verdict == "error" or options.report_only:
            return VerdictError(text)
        with warnings.catch_warnings():
            if not any(action == "error" and kind is LmcWarning for action, _, kind, *_ in warnings.filters):
                warnings.simplefilter("always", LmcWarning)  # -W error is about other people's warnings
            self.warn(LmcWarning(f"{self.nodeid}\n{text}"))
        return None

    def reportinfo(self) -> tuple[Path, int, str]:
        """Point at the pair's or the set's line in the manifest, where a reader can change something."""
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


def ended_by(error: LmcError) -> bool:
    """Whether an error stands for code that ended the program; one that ended pytest's run ends it: that is raised."""
    for cause in causes(error):
        if isinstance(cause, pytest.exit.Exception):
            raise cause
        if isinstance(cause, SystemExit):
            return True
    return False


def item_seed(root: int, check: str, description: dict[str, Any]) -> int:
    """Return an item's own seed: stable across processes and machines, different for each check and its files."""
    parts = [str(root), check, *(str(facts.get("sha256")) for facts in description["files"].values())]
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:4])


def selection_problem(items: list[pytest.Item], config: pytest.Config) -> str | None:
    """Return why the selected checks cannot be run as asked, or None."""
    options, checks = options_of(config), [item for item in items if isinstance(item, CheckItem)]
    named: dict[tuple[str, str], tuple[str, str]] = {}  # the manifest that has it, and of what kind it is there
    each = "--lmc-witness-dir" if options.witness_dir else "--lmc-curves" if options.curves_dir else ""
    for check in checks if options.aligned_dir or each else ():
        here, kind, name = check.blank().manifest, check.pair.plan.kind, check.pair.name
        apart = "" if each else kind  # witnesses and curves are called by the name alone
        first, other = named.setdefault((apart, name), (here, kind))
        if first != here and (each or check.pair.plan.ships):
            option = each or "--lmc-aligned-dir"
            what = f"a {kind} {name!r}" if kind == other else f"something called {name!r}, a {other} and a {kind}"
            return (
                f"{option}: {first} and {here} both have {what}, expected different names, "
                "since their files would have the same; mend: rename one of them"
            )
    if problem := baseline_problem(config):
        return problem
    if problem := output_problem([(check.pair.plan, check.check) for check in checks], config):
        return problem
    if checks and options.device.startswith("cuda"):  # only now is torch worth importing
        from lmccheck.network.device import resolve_device

        try:
            resolve_device(options.device)
        except DeviceError as error:
            return f"--lmc-device={options.device}: {error}"
    return None
