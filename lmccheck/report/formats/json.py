"""The report as strict JSON: every number that was measured, for machines."""

from __future__ import annotations

import json as stdlib_json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmccheck.report.formats import FORMATS, Format, Run

if TYPE_CHECKING:
    from lmccheck.report.record import CheckRecord

SCHEMA_VERSION = 1
REPEATED = ("manifest_sha256", "pair_description", "environment", "text")  # said once elsewhere, or renamed
DETAILS = (
    "failure",
    "place",
    "error_barrier",
    "barrier_definition",
    "matrix",
    "explanation",
)  # said in details, under other keys


def json(records: list[CheckRecord], run: Run) -> str:
    """Return the document; NaN and the infinities are strings, since JSON has no such numbers."""
    from lmccheck.report.notes import together_of
    from lmccheck.report.record import finite, ordered, plain
    from lmccheck.report.redact import relative

    rows = ordered(records)
    measured_on = next((row.environment for row in rows if row.environment), {})
    document = {
        "schema_version": SCHEMA_VERSION,
        "lmccheck_version": run.version,
        "created": run.created,
        "status": "finished" if run.finished else "not finished",
        "exit_status": run.exit_status,
        "environment": {**run.environment, **measured_on},
        "manifests": [
            {"path": path, "sha256": sha256}
            for path, sha256 in sorted({row.manifest: row.manifest_sha256 for row in rows}.items())
        ],
        "pairs": described(rows, "pair"),
        "models": described(rows, "model"),
        "sets": described(rows, "set"),
        "merges": described(rows, "merge"),
        "checks": [check(row) for row in rows],
        "population": together_of(rows),
        "errors": plain(list(run.errors)),
    }
    return stdlib_json.dumps(finite(relative(document, run.root)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def check(row: CheckRecord) -> dict[str, Any]:
    """Return one entry of ``checks``."""
    entry = {key: value for key, value in row.to_dict().items() if key not in (*REPEATED, *DETAILS)}
    return {**entry, "message": row.text}


def described(rows: Sequence[CheckRecord], kind: str) -> list[dict[str, Any]]:
    """Return one entry per pair, model, set or merge, described by the first of its checks that could load it."""
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row.manifest, row.pair)):
        if row.pair and row.kind == kind:
            entry = entries.setdefault((row.manifest, row.pair), {})
            entry.update({key: value for key, value in row.pair_description.items() if key not in entry})
    return [{"manifest": manifest, "name": name, **entry} for (manifest, name), entry in entries.items()]


FORMATS.add(
    "json",
    Format(
        "json",
        "JSON report",
        "write every measurement as JSON",
        json,
        last=True,
        known=lambda head: b'"lmccheck_version":' in head,
    ),
    __name__,
)
