"""The in-toto statement: what was tested, by hash, and how it went; only what is certain reads PASSED."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from lmccheck.report.formats import FORMATS, Run
from lmccheck.report.record import NOT_MEASURED, CheckRecord

A, B, DATA, MANIFEST, OUT, YAML = ("a" * 64, "b" * 64, "d" * 64, "e" * 64, "f" * 64, "1" * 64)
PAIR = {
    "files": {"a": {"path": "/p/a.safetensors", "sha256": A}, "b": {"path": "/p/b.safetensors", "sha256": B}},
    "data": {"origin": "data test.safetensors", "samples": 5, "sha256": DATA},
    "calibration": None,
}
RUN = Run(version="0.2.0", created="2026-01-02T03:04:05+00:00", exit_status=0, root="/p")


def record(name: str = "one", verdict: str = "pass", **facts: Any) -> CheckRecord:
    id = f"lmc.toml::{name}::linear_connectivity"
    row = CheckRecord(
        id, "lmc.toml", MANIFEST, name, "linear_connectivity", "linear_connectivity", "fail", verdict,
        verdict != "pass", pair_description=PAIR,
    )  # fmt: skip
    return replace(row, **facts)


def statement(*rows: CheckRecord, run: Run = RUN) -> dict[str, Any]:
    return json.loads(FORMATS.get("attest").render(list(rows), run))


def test_the_statement_has_the_specifications_fields():
    """Statement v1 with predicate test-result v0.1: subjects by sha256, the configuration, and a timestamp."""
    found = statement(record())
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert [(each["name"], each["digest"]["sha256"]) for each in found["subject"]] == [
        ("a.safetensors", A),
        ("b.safetensors", B),
    ]
    predicate = found["predicate"]
    assert predicate["result"] == "PASSED"
    assert {each["digest"]["sha256"] for each in predicate["configuration"]} == {MANIFEST, DATA}
    assert predicate["passedTests"] == ["lmc.toml::one::linear_connectivity"]
    assert predicate["timestamp"] == "2026-01-02T03:04:05+00:00"


def test_of_a_merge_the_subject_is_what_ships():
    """Parents, base and the YAML are configuration; each file of a folder is a subject of its own."""
    shipped = {"path": "/p/out", "sha256": "0" * 64, "files": {"out/model.safetensors": OUT}}
    inputs = [{"path": "/p/merge.yaml", "sha256": YAML}]
    merge = {**PAIR, "files": {**PAIR["files"], "shipped": shipped}, "recipe": {"name": "mergekit"}, "inputs": inputs}
    found = statement(record(kind="merge", pair_description=merge))
    assert [(each["name"], each["digest"]["sha256"]) for each in found["subject"]] == [("model.safetensors", OUT)]
    assert {each["digest"]["sha256"] for each in found["predicate"]["configuration"]} == {MANIFEST, A, B, DATA, YAML}


def test_a_merge_of_which_nothing_ships_passes_for_its_manifest():
    """The subject is what asked for it."""
    found = statement(record(kind="merge", pair_description={**PAIR, "recipe": {"name": "linear"}}))
    assert [each["digest"]["sha256"] for each in found["subject"]] == [MANIFEST]
    assert found["predicate"]["result"] == "PASSED"


@pytest.mark.parametrize("verdict", ["fail", "inconclusive", "error", NOT_MEASURED])
@pytest.mark.parametrize("report_only", [False, True])
def test_whatever_did_not_pass_is_failed(verdict, report_only):
    """An inconclusive check is FAILED, and so is a run in which nothing was to fail."""
    run = replace(RUN, report_only=report_only, exit_status=0 if report_only else 1)
    found = statement(record(), record("two", verdict), run=run)
    assert found["predicate"]["result"] == "FAILED"
    assert found["predicate"]["failedTests"] == ["lmc.toml::two::linear_connectivity"]


def test_a_check_that_only_warns_is_warned():
    """WARNED, with its id."""
    found = statement(record(), record("two", "fail", severity="warn", blocking=False))
    assert found["predicate"]["result"] == "WARNED"
    assert found["predicate"]["warnedTests"] == ["lmc.toml::two::linear_connectivity"]


@pytest.mark.parametrize(
    "run",
    [
        replace(RUN, finished=False, exit_status=None),
        replace(RUN, exit_status=1),
        replace(RUN, errors=[{"id": "x.lmc.toml", "message": "malformed"}]),
    ],
)
def test_a_run_that_is_not_over_or_not_green_never_reads_passed(run):
    """Killed, red for any reason, or with a manifest that could not be read."""
    assert statement(record(), run=run)["predicate"]["result"] == "FAILED"


def test_nothing_measured_is_failed():
    """Without rows, and without a file that was read."""
    assert statement()["predicate"]["result"] == "FAILED"
    assert statement(record(pair_description={}))["predicate"]["result"] == "FAILED"
