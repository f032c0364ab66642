"""The JSON Schema that is shipped: every report keeps to it, it knows every key, and it refuses what is none."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from pages import RUN, every_kind, record

from lmccheck.report.formats import FORMATS, Run

SCHEMA = json.loads(files("lmccheck.report").joinpath("report.schema.json").read_text(encoding="utf-8"))


def document(*records: Any, run: Run = RUN) -> dict[str, Any]:
    return json.loads(FORMATS.get("json").render(list(records), run))


def validate(report: Any) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(report)


def test_the_schema_is_one():
    """Of JSON Schema, draft 2020-12."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_kind_of_check_keeps_to_the_schema():
    """Curves of each kind, numbers that are none, errors, what was not measured; a run that goes on; nothing at all."""
    validate(document(*every_kind()))
    validate(document(record(), run=Run(finished=False, exit_status=None)))
    validate(document(run=Run(errors=[{"id": "x.lmc.toml", "message": "line 3"}])))


def test_the_schema_knows_every_key():
    """None is written that it does not describe, and none is described that is not written."""
    report = document(*every_kind())
    assert set(report) == set(SCHEMA["properties"])
    assert {key for check in report["checks"] for key in check} == set(SCHEMA["$defs"]["check"]["properties"])


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (("schema_version",), 2), (("status",), "done"), (("checks", 0, "verdict"), "passed"),
        (("checks", 0, "value"), "NaN"), (("checks", 0, "interval"), [0.1]), (("checks", 0, "kind"), "trio"),
        (("checks", 0, "curve"), {"kind": "line", "t": [0.0]}), (("checks", 0, "curve"), {"kind": "spiral"}),
        (("checks", 0, "endpoints"), [{"name": "a"}]), (("checks", 0, "notes"), "one"), (("pairs",), [{}]),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(place, wrong):
    """A verdict, a number, a curve that there is none of; a list that is not one."""
    report: Any = deepcopy(document(record(interval=[0.1, math.inf])))
    validate(report)
    *before, last = place
    inside = report
    for key in before:
        inside = inside[key]
    inside[last] = wrong
    with pytest.raises(jsonschema.ValidationError):
        validate(report)


@pytest.mark.parametrize("key", ["id", "verdict", "value", "message", "details"])
def test_a_key_that_is_left_out_is_missed(key):
    """Those that every reader needs."""
    report = document(record())
    del report["checks"][0][key]
    with pytest.raises(jsonschema.ValidationError, match=f"'{key}' is a required property"):
        validate(report)
