"""What a baseline keeps, and when two measurements are the same, worse, better, or not of one kind."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from lmccheck.errors import LmcError
from lmccheck.report.baseline import baseline_text, compared, entry_of, key_of, read_baseline, updated
from lmccheck.report.record import CheckRecord

HERE = Path("/project/b.json")
RECORD = CheckRecord(
    id="lmc.toml::a-b::x", manifest="lmc.toml", manifest_sha256="", pair="a-b", check="x", property="x",
    severity="fail", verdict="pass", blocking=False, value=0.5, limit=1.0, unit="nats", profile="ci",
    settings={"limit": 1.0, "points": 25, "endpoints": "any"},
    pair_description={
        "files": {"a": {"path": "/project/a", "sha256": "a" * 64}},
        "data": {"content": "d1", "sha256": "d" * 64, "origin": "data test"}, "calibration": None,
        "loss": "mse", "device": "cuda:1", "model": "models:mlp",
        "inputs": [{"path": "/project/models.py", "sha256": "c" * 64}, {"path": "/project/test", "sha256": "d" * 64}],
    },
    environment={"torch": "2.13.0", "gpu": "H100"},
)  # fmt: skip


def entry(**changes):
    return entry_of(replace(RECORD, **changes), seed=0, limits={"limit"}, baseline=HERE)


def described(**changes):
    return entry(pair_description={**RECORD.pair_description, **changes})


def test_an_entry_holds_what_defines_a_measurement():
    """Written out by hand: no limit, no path of the machine, code by its hash, data by their content."""
    assert entry() == {
        "value": 0.5, "interval": None, "property": "x", "settings": {"points": 25}, "profile": "ci", "seed": 0,
        "device": "cuda: H100", "data": "d1", "calibration": None, "loss": "mse", "unit": "nats",
        "files": {"a": "a" * 64}, "beside": {"models.py": "c" * 16}, "model": "models:mlp", "recipe": {},
        "torch": "2.13.0",
    }  # fmt: skip


def test_a_merge_is_measured_on_all_its_data():
    """Each task's data by name: the merge's own are those of the first only."""
    tasks = {"prose (prose)": {"content": "p"}, "code (code)": {"content": "q"}}
    assert entry(kind="merge", details={"data": tasks})["data"] == {"prose (prose)": "p", "code (code)": "q"}


@pytest.mark.parametrize(
    ("interval", "now", "verdict"),
    [
        (None, 0.5 + 0.9e-6, "same"),
        (None, 0.5 + 1.1e-6, "worse"),
        (None, 0.5 - 1.1e-6, "better"),
        ([0.46, 0.54], 0.5 + 0.04, "same"),  # half of 0.08 is 0.04
        ([0.46, 0.54], 0.5 + 0.04 + 2e-6, "worse"),
        ([0.46, 0.54], 0.5 - 0.04 - 2e-6, "better"),
        (None, math.nan, "worse"),
        (None, math.inf, "worse"),
        (None, -math.inf, "better"),
    ],
)
def test_more_than_noise_is_no_longer_the_same(interval, now, verdict):
    """1e-6, and of a sampled measurement half the width of its interval."""
    found = compared(entry(interval=interval), entry(value=now, interval=interval))
    assert found["verdict"] == verdict
    assert found["value"] == 0.5


def test_the_tolerance_is_a_share_of_large_values():
    """A perplexity of 20,000 in float32 is not repeatable to 1e-6: what counts is 1e-6 of it, 0.02."""
    assert compared(entry(value=2e4), entry(value=2e4 + 0.019))["verdict"] == "same"
    assert compared(entry(value=2e4), entry(value=2e4 + 0.021))["verdict"] == "worse"


def test_what_was_no_number_is_compared():
    """NaN and infinity are texts in the file, and come back as what they are."""
    text = baseline_text({"k": entry(value=math.nan), "l": entry(value=math.inf)})
    stored = json.loads(text)["checks"]
    assert (stored["k"]["value"], stored["l"]["value"]) == ("nan", "inf")
    assert compared(stored["k"], entry())["verdict"] == "better"
    assert compared(stored["k"], entry(value=math.nan))["verdict"] == "same"
    assert compared(stored["l"], entry(value=math.inf))["verdict"] == "same"
    assert compared(stored["l"], entry(value=math.nan))["verdict"] == "worse"
    json.dumps(compared(stored["l"], entry()), allow_nan=False)


def test_an_interval_without_an_end_bounds_nothing():
    """Half of it is infinite, and nothing could ever be worse."""
    found = compared(entry(interval=[0.1, math.inf]), entry(value=5.0, interval=[4.0, 6.0]))
    assert (found["verdict"], found["why"]) == ("refused", ["the stored interval [0.1, inf] bounds nothing"])


def test_an_interval_that_was_widened_hides_nothing():
    """The narrower of both counts: 0.53 is worse than 0.5 by more than half of the 0.04 that is measured now."""
    wide, now = entry(interval=[0.0, 5.0]), entry(value=0.53, interval=[0.51, 0.55])
    assert compared(wide, now)["verdict"] == "worse"
    assert compared(wide, now)["tolerance"] == pytest.approx(0.02 + 1e-6)


def test_an_interval_stored_of_an_exact_measurement_hides_nothing():
    """Nobody measured it: a hand that widens it would let every regression pass."""
    found = compared(entry(interval=[-1e9, 1e9]), entry(value=5.0))
    said = "an interval is stored ([-1000000000.0, 1000000000.0]), and what is measured now has none"
    assert (found["verdict"], found["why"]) == ("refused", [said])
    assert compared(entry(), entry(value=0.6, interval=[0.0, 9.0]))["verdict"] == "worse"


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (entry(property="y"), "other property (x before, y now)"),
        (entry(settings={"limit": 3.0, "points": 7}), "other settings (points: 25 before, 7 now)"),
        (entry(settings={"align": "none", "points": 25}), "other settings (align: left out before, none now)"),
        (entry(profile="dev"), "other profile (ci before, dev now)"),
        (entry(environment={"gpu": "A100"}), "other device (cuda: H100 before, cuda: A100 now)"),
        (described(data={"content": "d2", "sha256": "d" * 64}), "other data (d1 before, d2 now)"),
        (described(calibration={"content": "e"}), "other calibration data (none before, e now)"),
        (described(loss="cross_entropy"), "other loss (mse before, cross_entropy now)"),
        (entry(unit="points"), "other unit (nats before, points now)"),
    ],
)
def test_what_is_not_of_one_kind_is_refused(now, why):
    """One clause, with both."""
    found = compared(entry(), now)
    assert (found["verdict"], found["why"]) == ("refused", [why])


def test_what_may_change_is_told():
    """Other checkpoints, code, model and torch are what a gate is there for: compared, and said."""
    files = {"a": {"sha256": "b" * 64}}
    inputs = [{"path": "/project/models.py", "sha256": "e" * 64}]
    now = entry(
        pair_description={**RECORD.pair_description, "files": files, "inputs": inputs, "model": "models:cnn"},
        environment={"torch": "2.14.0", "gpu": "H100"},
    )
    found = compared(entry(), now)
    assert found["verdict"] == "same"
    assert found["changed"] == [
        "a aaaaaaaa → bbbbbbbb", "models.py cccccccc → eeeeeeee", "model: models:mlp → models:cnn",
        "torch: 2.13.0 → 2.14.0",
    ]  # fmt: skip


def test_an_update_touches_what_changed():
    """Within noise and of the same files a line stays; of other files it is written anew; stale ones go."""
    stored = {"same": entry(), "moved": entry(), "other": entry(), "stale": entry(), "unselected": entry()}
    now = {
        "same": entry(value=0.5 + 5e-7, environment={**RECORD.environment, "torch": "2.14.0"}),
        "moved": entry(value=0.4),
        "other": described(files={"a": {"sha256": "b" * 64}}),
        "new": entry(value=0.1),
    }
    after = updated(stored, now, ["stale"])
    assert list(baseline_text(after)).count("\n") == 5 + 5
    assert after == {**now, "same": stored["same"], "unselected": stored["unselected"]}


def test_a_file_is_read_as_it_was_written(tmp_path):
    """Sorted, and the same again; the order of entries does not matter."""
    entries = {"b": entry(), "a": entry(interval=[0.1, 0.9])}
    text = baseline_text(entries)
    (tmp_path / "b.json").write_text(text, encoding="utf-8")
    assert read_baseline(tmp_path / "b.json") == entries
    assert baseline_text(dict(reversed(entries.items()))) == text
    assert [line[4:9] for line in text.splitlines()[3:5]] == ['"a": ', '"b": ']
    assert baseline_text({}) == '{\n  "schema_version": 1,\n  "checks": {}\n}\n'


def test_names_do_not_depend_on_where_one_stands(tmp_path, monkeypatch):
    """Relative to the baseline, whatever the current folder."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("deep/er")
    names = [key_of(Path(gate), ["p", "c"], tmp_path / "b.json") for gate in ("lmc.toml", tmp_path / "lmc.toml")]
    monkeypatch.chdir("deep/er")
    assert {*names, key_of(Path("../../lmc.toml"), ["p", "c"], tmp_path / "b.json")} == {"lmc.toml::p::c"}


GOOD = json.dumps(entry())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<<<<<<< HEAD", "Expecting value: line 1 column 1 (char 0); expected a baseline"),
        ('{"schema_version": 1, "checks": {"x": {}, "x": {}}}', "'x' stands there twice; expected"),
        ('{"schema_version": 2, "checks": {}}', "schema_version = 2, expected 1; mend: read it with"),
        ('{"schema_version": 1, "checks": []}', "has no table 'checks'; expected"),
        ("[" * 100_000, "expected a baseline"),
        ('{"schema_version": 1, "checks": {"x": 3}}', "x: got int, expected a table"),
        ('{"schema_version": 1, "checks": {"x": {"value": 1}}}', "x: key 'interval' is missing"),
        ('{"schema_version": 1, "checks": {"x": {"vale": 1}}}', "x: unknown key 'vale' (did you mean 'value'?)"),
        (f'{{"schema_version": 1, "checks": {{"x": {GOOD}}}}}'.replace("0.5", '"much"'), "x: value = 'much', expected"),
        (f'{{"schema_version": 1, "checks": {{"x": {GOOD}}}}}'.replace("0.5", "true"), "x: value = True, expected"),
        (
            f'{{"schema_version": 1, "checks": {{"x": {GOOD}}}}}'.replace('"interval": null', '"interval": [1]'),
            "x: interval = [1], expected two numbers or null",
        ),
        (
            f'{{"schema_version": 1, "checks": {{"x": {GOOD}}}}}'.replace(
                '"interval": null', '"interval": [1, 2, "x"]'
            ),
            "x: interval = [1, 2, 'x'], expected two numbers or null",
        ),
        (
            f'{{"schema_version": 1, "checks": {{"x": {GOOD}}}}}'.replace('"interval": null', '"interval": [2, 1]'),
            "x: interval = [2, 1], expected the lower end first",
        ),
        (f'{{"schema_version": 1, "checks": {{"x": {GOOD}}}}}'.replace("0.5", "NaN"), "NaN is no JSON; expected"),
        (f'{{"schema_version": 1, "checks": {{"x": {GOOD}}}}}'.replace("0.5", "1e999"), "1e999 is too large for a"),
        (f'{{"schema_version": 1, "checks": {{"x": {GOOD}}}}}'.replace("0.5", "9" * 400), "expected a number; mend"),
        (
            f'{{"schema_version": 1, "checks": {{"x": {GOOD}}}}}'.replace('"recipe": {}', '"recipe": 1'),
            "x: recipe = 1, expected a table",
        ),
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path, text, said):
    """In one line: the file, the entry, what was found, what is expected, the mend."""
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(LmcError) as caught:
        read_baseline(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "mend: " in str(caught.value)
