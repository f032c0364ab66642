"""The report as an in-toto statement of the predicate test-result, which CI signs: what was tested, and how it went.

Specification: in-toto attestation framework, Statement v1 and predicate test-result v0.1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from lmccheck.report.formats import FORMATS, Format, Run

if TYPE_CHECKING:
    from lmccheck.report.record import CheckRecord

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"


def attest(records: list[CheckRecord], run: Run) -> str:
    """Return the statement, unsigned.

    ``subject`` are the files that may be used if it says PASSED: those that a merge ships, for all else the
    checkpoints themselves; the manifests, where nothing is shipped. ``configuration``: manifests, what merges were made
    of, and whatever else was read: data, calibration, recipes, code.
    ``result`` is PASSED where every check passed, WARNED where only checks that warn did not, FAILED for all else,
    whether or not that fails the run: inconclusive, an error, not measured, a run that has not finished.
    """
    from lmccheck.report.record import finite, ordered, plain
    from lmccheck.report.redact import relative

    rows = ordered(records)
    subject = _unique(file for row in rows for file in _subject(row.pair_description))
    manifests = _unique((row.manifest, row.manifest_sha256) for row in rows)
    made_of = _unique(file for row in rows for file in _configuration(row.pair_description))
    passed = [row.id for row in rows if row.verdict == "pass" and run.finished]
    warned = [row.id for row in rows if row.verdict != "pass" and row.green() and run.finished]
    failed = [row.id for row in rows if row.id not in passed and row.id not in warned]
    complete = not run.errors and bool(subject or made_of)
    bad = bool(failed) or not complete or not (passed or warned) or (run.exit_status != 0 and not run.report_only)
    statement = {
        "_type": STATEMENT,
        "subject": [_descriptor(*file) for file in subject or manifests],
        "predicateType": PREDICATE,
        "predicate": {
            "result": "FAILED" if bad else "WARNED" if warned else "PASSED",
            "configuration": [_descriptor(*file) for file in (*manifests, *made_of) if file not in subject],
            "timestamp": run.created,
            "passedTests": passed,
            "warnedTests": warned,
            "failedTests": failed,
            "annotations": {
                "tool": f"lmccheck {run.version}",
                "status": "finished" if run.finished else "not finished",
                "errors": plain([error["message"] for error in run.errors]),
            },
        },
    }
    return json.dumps(finite(relative(statement, run.root)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _subject(described: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    files = described.get("files", {})
    for facts in (files.get("shipped"),) if "recipe" in described else files.values():
        yield from _files(facts)


def _configuration(described: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    read = (described.get("data"), described.get("calibration"), *described.get("inputs", ()))
    for facts in (*described.get("files", {}).values(), *read):
        yield from _files(facts)


def _files(facts: Any) -> Iterator[tuple[str, str | None]]:
    """Yield names and hashes of what a checkpoint, or data, was read from: of every file, where it is several."""
    if not isinstance(facts, Mapping):
        return
    several = facts.get("files")
    if isinstance(several, Mapping):
        yield from several.items()
    elif facts.get("sha256"):
        yield str(facts.get("path") or facts.get("origin")), facts["sha256"]


def _descriptor(name: str, sha256: str | None) -> dict[str, Any]:
    """Return a resource descriptor: a name, a path below the project, and its digest."""
    described: dict[str, Any] = {"name": PurePath(name).name, "path": name} if "/" in name else {"name": name}
    path = described.pop("path", None)
    annotations = {"annotations": {"path": path}} if path else {}
    return {**described, "digest": {"sha256": sha256 or ""}, **annotations}


def _unique(files: Iterator[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    return [file for file in dict.fromkeys(files) if file[1]]


FORMATS.add(
    "attest",
    Format(
        "attest",
        "Attestation",
        "write an in-toto test-result statement, unsigned: what was tested, with hashes, and how it went",
        attest,
        option="--lmc-attest",
        last=True,
        known=lambda head: f'"_type": "{STATEMENT}"'.encode() in head,
    ),
    __name__,
)
