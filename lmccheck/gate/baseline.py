"""What a run measured beside what a baseline holds: a regression fails, under the limit too.

Checks are compared where they are measured; entries without a check are found by the manifest's own item, which knows
all that it asks for, selected or not; the process that writes reports writes the baseline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmccheck.errors import LmcError, shown_path
from lmccheck.explain import number
from lmccheck.gate.options import MANIFESTS, Options, options_of
from lmccheck.manifest.plan import Plan
from lmccheck.properties.registry import LIMITS, PROPERTIES
from lmccheck.report.baseline import Entry, baseline_text, compared, entry_of, key_of, read_baseline, updated
from lmccheck.report.record import NOT_MEASURED, CheckRecord

STORED: pytest.StashKey[dict[str, Entry]] = pytest.StashKey()
FAILS = {"worse": "fail", "missing": "error", "refused": "error"}  # a record's verdict where its limit holds


def stored(config: pytest.Config) -> dict[str, Entry]:
    """Return the entries of the baseline, read once; none where an update is to make it. Raises LmcError."""
    options = options_of(config)
    if STORED not in config.stash:
        path = options.baseline
        there = path is not None and (path.is_file() or not options.update_baseline)
        config.stash[STORED] = read_baseline(path) if there and path is not None else {}
    return config.stash[STORED]


def baseline_problem(config: pytest.Config) -> str | None:
    """Return why there is nothing to compare with, or nothing to update, before anything is measured; or None."""
    options = options_of(config)
    if options.update_baseline and options.baseline is None:
        return "--lmc-update-baseline: which file? mend: name it, --lmc-baseline=PATH, or lmc_baseline in the ini file"
    try:
        stored(config)
    except LmcError as error:
        return f"--lmc-baseline: {error}"
    return None


def beside_baseline(record: CheckRecord, config: pytest.Config, manifest: Path, command: str) -> CheckRecord:
    """Return a measured record with what the baseline says of it, failed where it is worse than that, or not in it.

    ``command`` repeats the check.
    """
    options = options_of(config)
    path = options.baseline
    if path is None or record.value is None:
        return record
    key = key_of(manifest, (record.pair, record.check), path)
    limits = {*LIMITS, "tolerance", *PROPERTIES.get(record.property).limits}
    entry = entry_of(record, seed=options.seed, limits=limits, baseline=path)
    found = {"file": shown_path(path), "key": key, **compared(stored(config).get(key), entry)}
    plan = config.stash[MANIFESTS].get(manifest)
    if plan is not None and (gone := stale(config, manifest, plan)):
        found["unclaimed"] = gone  # said where the manifest's own item, which fails by it, is not selected
    record = replace(record, baseline={**found, **({"entry": entry} if options.update_baseline else {})})
    verdict, told = found["verdict"], said(record, found)
    if found["verdict"] == "same" or options.update_baseline:
        return record
    if verdict == "better":
        return replace(record, notes=[*record.notes, f"{told[0]}; --lmc-update-baseline keeps it"])
    advice = [*record.next, f"{MENDS[verdict]} by: {command} --lmc-update-baseline"]
    if record.verdict != "pass":
        return replace(record, failure=[*record.failure, *told], next=advice)
    head = f"{record.property}: {HEADS[verdict]} for {record.pair}, within its limit"
    measured = f"measured {number(record.value)}{_unit(record)}, limit {number(record.limit)}{_unit(record)}"
    return replace(
        record,
        verdict=FAILS[verdict],
        baseline={**record.baseline, "decides": True},
        failure=[head, measured, *told],
        answers={"what": [head], "measured": [measured, told[0]], "why": told[1:]},
        next=advice,
        reproduce=command,
    )


HEADS = {
    "worse": "worse than the baseline",
    "missing": "not in the baseline",
    "refused": "cannot be compared with the baseline",
}
MENDS = {
    "worse": "accept it as it is now",
    "missing": "take it in",
    "refused": "keep what was measured now",
}


UNCHANGED = "its checkpoints, what lies beside them and torch are those of the baseline: look at what computes it"


def said(record: CheckRecord, found: Mapping[str, Any]) -> list[str]:
    """Return what the comparison came to, a line each: before, now, by how much, and what else changed."""
    file, unit = found["file"], _unit(record)
    if found["verdict"] == "missing":
        return [f"{file}: no entry {found['key']!r}, so nothing says what it was before"]
    if found["verdict"] == "refused":
        return [f"{file}: {'; '.join(found['why'])}: not compared"]
    change, tolerance = float(found["change"]), float(found["tolerance"])
    of = " and half the narrower interval" if found["interval"] is not None else ""
    lines = [
        f"{file}: {float(found['value']):.6g}{unit} before, {record.value:.6g}{unit} now: {abs(change):.4g}{unit} "
        f"{found['verdict']}, more than the {tolerance:.2g}{unit} that count as equal (rounding{of})"
    ]
    if found["changed"]:
        lines.append(f"changed since: {', '.join(found['changed'][:6])}{', …' if len(found['changed']) > 6 else ''}")
    return lines if found["changed"] or found["verdict"] == "better" else [*lines, UNCHANGED]


def _unit(record: CheckRecord) -> str:
    return f" {record.unit}" if record.unit else ""


def stale(config: pytest.Config, manifest: Path, plan: Plan) -> list[str]:
    """Return the entries of a manifest's checks that it does not have, the first of a run those of no manifest, too.

    What is not selected is no less a check. A manifest that is gone counts where it would lie in what was given.
    """
    path = options_of(config).baseline
    if path is None:
        return []
    has = {key_of(manifest, (each.name, check.name), path) for each in plan.comparisons for check in each.checks}
    given = [config.invocation_params.dir / str(argument).partition("::")[0] for argument in config.args]
    first = [*config.stash[MANIFESTS]][:1] == [manifest]
    found = []
    for key in stored(config):
        file = Path(path.parent, key.rsplit("::", 2)[0]).resolve()
        of_this = file == manifest.resolve()
        gone = first and not file.exists() and any(file.is_relative_to(each.resolve()) for each in given)
        if (of_this and key not in has) or gone:
            found.append(key)
    return found


def stale_lines(config: pytest.Config, keys: Iterable[str]) -> list[str]:
    """Return what is said of entries that no check has; nothing where an update removes them."""
    options = options_of(config)
    if options.baseline is None or options.update_baseline:
        return []
    file = shown_path(options.baseline)
    return [
        f"{file}: entry {key!r} belongs to no check; mend: bring the check back, or remove its entry with "
        "--lmc-update-baseline"
        for key in keys
    ]


def write_baseline(config: pytest.Config, rows: list[CheckRecord], complete: bool) -> tuple[str, bool]:
    """Write what a run measured to the baseline; return the line that tells of it, and whether it was written.

    Not a byte is written where the run ended early (``complete`` is False), or a check has no measurement.
    """
    from lmccheck.report.write import write_text

    path = options_of(config).baseline
    assert path is not None
    file = shown_path(path)
    if lacking := [row for row in rows if row.verdict in ("error", NOT_MEASURED)]:
        each = " ".join(f"--deselect '{row.id}'" for row in lacking[:4])
        return (
            f"baseline {file} left as it was: {len(lacking)} of {len(rows)} without a measurement ({lacking[0].id}: "
            f"{lacking[0].verdict}); mend: repair them, or say that they are left out: {each}",
            False,
        )
    if not complete:
        return f"baseline {file} left as it was: the run did not end well; mend: repair what went wrong", False
    before = read_baseline(path) if path.is_file() else {}  # as it is now: another run may have written to it
    measured = {row.baseline["key"]: row.baseline["entry"] for row in rows if "entry" in row.baseline}
    gone = [key for row in rows for key in row.baseline.get("stale", ())]
    after = updated(before, measured, gone)
    added, removed = len(after.keys() - before.keys()), len(before.keys() - after.keys())
    changed = sum(before[key] != after[key] for key in before.keys() & after.keys())
    if before == after and path.is_file():
        return f"baseline {file}: nothing changed", True
    line, written = write_text("baseline", path, baseline_text(after))
    told = f"{added} added, {changed} changed, {removed} removed, {len(after) - added - changed} as they were"
    return (f"{line}: {told}" if written else line), written


def baseline_line(config: pytest.Config, rows: list[CheckRecord]) -> list[str]:
    """Return how many checks are as the baseline has them, better and worse; nothing where none was compared."""
    verdicts = [row.baseline["verdict"] for row in rows if "verdict" in row.baseline]
    counts = {verdict: verdicts.count(verdict) for verdict in ("worse", "missing", "refused", "better", "same")}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    path = options_of(config).baseline
    failed = {key for row in rows for key in row.baseline.get("stale", ())}
    unclaimed = dict.fromkeys(key for row in rows for key in row.baseline.get("unclaimed", ()) if key not in failed)
    lines = [
        f"baseline {line} (the item 'manifest', not selected, fails by it)" for line in stale_lines(config, unclaimed)
    ]
    return [f"baseline {shown_path(path)}: {told}", *lines] if told and path is not None else []


def updates(options: Options) -> bool:
    """Whether a run writes its baseline."""
    return options.update_baseline and options.baseline is not None
