"""``--lmc-baseline``: a regression fails under the limit too; ``--lmc-update-baseline`` writes whole or not at all."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

CHECK = "linear_connectivity"
FILE = "--lmc-baseline=b.json"
UPDATE = "--lmc-update-baseline"


def entries(project, name="b.json"):
    return json.loads((project.path / name).read_text(encoding="utf-8"))["checks"]


def measured(project, **values):
    """A gate that now measures other values than it did: the checkpoints are others, too."""
    project.gate(**values)
    return project.run("--lmc-models", FILE, "--lmc-report-json=r.json")


def checks_of(project):
    return {check["pair"]: check for check in json.loads((project.path / "r.json").read_text())["checks"]}


WRITTEN: list[str] = []  # by the first update: the same project has the same baseline


@pytest.fixture
def kept(project):
    """A project whose baseline holds 0.01 for ``good`` and 0.02 for ``other``."""
    project.gate(good="0.01", other="0.02")
    if WRITTEN:
        (project.path / "b.json").write_text(WRITTEN[0], encoding="utf-8")
        return project
    result = project.run("--lmc-models", FILE, UPDATE)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["baseline written to *b.json: 2 added, 0 changed, 0 removed, 0 as they were"])
    WRITTEN.append((project.path / "b.json").read_text(encoding="utf-8"))
    return project


def test_an_update_writes_a_line_per_check_and_no_limit(kept):
    """Sorted, a line each, with value, unit, hashes and what defines the measurement; a limit nowhere."""
    lines = (kept.path / "b.json").read_text().splitlines()
    names = [f"lmc.toml::{pair}::{CHECK}" for pair in ("good", "other")]
    assert [json.loads("{" + line.rstrip(",") + "}").popitem()[0] for line in lines[3:5]] == names
    assert "limit" not in "".join(lines)
    good = entries(kept)[names[0]]
    assert (good["value"], good["interval"], good["unit"], good["settings"]) == (0.01, None, "nats", {})
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in good["files"].values())


@pytest.mark.slow
def test_the_same_measurement_passes(kept):
    """What was stored a moment ago is no regression, and the last line says so."""
    result = kept.run("--lmc-models", FILE)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["baseline b.json: 2 same"])


def test_a_regression_under_the_limit_fails(kept):
    """0.03 is below the limit of 0.05 and 0.02 above what it was: before, now, by how much, what changed, what next."""
    result = measured(kept, good="0.03", other="0.02")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            f"{CHECK}: worse than the baseline for good, within its limit",
            "measured 0.03 nats, limit 0.05 nats",
            "b.json: 0.01 nats before, 0.03 nats now: 0.02 nats worse, more than the 1e-06 nats*",
            "changed since: a ???????? → ????????",
            f"try next: accept it as it is now by: pytest 'lmc.toml::good::{CHECK}' --lmc-baseline=b.json {UPDATE}",
            f"reproduce: pytest 'lmc.toml::good::{CHECK}' --lmc-baseline=b.json",
            "fail or error beside the baseline: *",
            "baseline b.json: 1 worse, 1 same",
        ]
    )
    result.stdout.no_fnmatch_line("fail: the limit is exceeded*")
    found = checks_of(kept)["good"]
    assert (found["verdict"], found["value"], found["limit"]) == ("fail", 0.03, 0.05)
    stored = found["baseline"]
    assert (stored["verdict"], stored["value"], stored["interval"]) == ("worse", 0.01, None)
    assert stored["change"] == pytest.approx(0.02, abs=1e-15)


@pytest.mark.slow
def test_noise_of_rounding_is_no_regression(kept):
    """Up to 1e-6 counts as equal, two of them do not."""
    assert measured(kept, good="0.0100009", other="0.0199991").ret == pytest.ExitCode.OK
    assert measured(kept, good="0.010002", other="0.02").ret == pytest.ExitCode.TESTS_FAILED


def test_an_improvement_is_said_and_passes(kept):
    """Lower is better: a note, and green; it is kept when somebody says so."""
    result = measured(kept, good="0.004", other="0.02")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["good::*: b.json: 0.01 nats before, 0.004 nats now: 0.006 nats better*update-*keeps it"]
    )
    assert entries(kept)[f"lmc.toml::good::{CHECK}"]["value"] == 0.01


@pytest.mark.slow
def test_what_was_typed_to_accept_it_works(kept, monkeypatch):
    """The command of the failure, pasted, changes that entry alone; then the gate is green."""
    text = measured(kept, good="0.03", other="0.02").stdout.str()
    command = re.search("accept it as it is now by: (.*)", text)[1]
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p fakecore")
    before = entries(kept)
    done = subprocess.run(command, shell=True, cwd=kept.path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    after = entries(kept)
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {f"lmc.toml::good::{CHECK}"}
    assert kept.run("--lmc-models", FILE).ret == pytest.ExitCode.OK


def test_a_limit_still_fails_and_is_never_changed(kept):
    """An update takes 2 in, and the check is as red as without a baseline; the line of the baseline stands below."""
    result = measured(kept, good="2", other="0.02")
    result.stdout.fnmatch_lines(
        ["measured 2 nats, limit 0.05 nats", "b.json: 0.01 nats before, 2 nats now: 1.99 nats*"]
    )
    kept.run("--lmc-models", FILE, UPDATE).assert_outcomes(passed=2, failed=1)
    assert entries(kept)[f"lmc.toml::good::{CHECK}"]["value"] == 2.0
    assert kept.run("--lmc-models", FILE).ret == pytest.ExitCode.TESTS_FAILED


def test_a_check_without_an_entry_fails(kept):
    """Also one that only warns: nobody looked at it."""
    kept.manifest(kept.pair("new") + kept.check("new", severity="warn"))
    result = kept.run("--lmc-models", FILE, f"lmc.toml::new::{CHECK}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [f"{CHECK}: not in the baseline for new, within its limit", "b.json: no entry 'lmc.toml::new::*"]
    )


@pytest.mark.slow
def test_a_regression_of_a_check_that_warns_warns(kept):
    """severity = "warn" is about what is measured, whatever it is measured against."""
    kept.manifest(kept.pair("good", value="0.03") + kept.check("good", severity="warn"))
    result = kept.run("--lmc-models", FILE, f"lmc.toml::good::{CHECK}", "-W", "default")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*LmcWarning*", "*worse than the baseline for good*"])


def test_an_entry_without_a_check_fails(kept):
    """A check that is gone leaves its entry stale; the manifest's own item says so, and an update removes it."""
    kept.gate(good="0.01")
    result = kept.run("--lmc-models", FILE)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines([f"b.json: entry 'lmc.toml::other::{CHECK}' belongs to no check; mend: *{UPDATE}"])
    assert kept.run("--lmc-models", FILE, "--lmc-report-only").ret == pytest.ExitCode.OK
    kept.run("--lmc-models", FILE, UPDATE).stdout.fnmatch_lines(["*b.json: 0 added, 0 changed, 1 removed, 1 as*"])
    assert list(entries(kept)) == [f"lmc.toml::good::{CHECK}"]


def test_an_entry_without_a_check_is_told_where_the_item_that_fails_by_it_is_not_selected(kept):
    """The run passes, as what was selected does, and its last lines name the entry."""
    kept.gate(good="0.01")
    result = kept.run("--lmc-models", FILE, "-k", "good")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [f"baseline b.json: entry 'lmc.toml::other::{CHECK}' belongs to no check; *not selected*"]
    )


@pytest.mark.parametrize("selected", [("-k", "good or manifest"), (f"lmc.toml::good::{CHECK}",)])
def test_what_is_not_selected_is_not_stale(kept, selected):
    """By keyword and by node id; an update of a selection leaves the entries of the others."""
    before = (kept.path / "b.json").read_text()
    assert kept.run("--lmc-models", FILE, *selected).ret == pytest.ExitCode.OK
    assert kept.run("--lmc-models", FILE, UPDATE, *selected).ret == pytest.ExitCode.OK
    assert (kept.path / "b.json").read_text() == before


def test_entries_of_other_manifests_are_left_alone(kept):
    """A baseline may serve several manifests: those outside of what was given are none of this run's business."""
    kept.gate(third="0.01", name="gates/lmc.toml")
    kept.run("--lmc-models", FILE, UPDATE, "gates")
    assert [key.partition("::")[0] for key in entries(kept)] == ["gates/lmc.toml", "lmc.toml", "lmc.toml"]
    assert kept.run("--lmc-models", FILE, "gates").ret == pytest.ExitCode.OK
    assert kept.run("--lmc-models", FILE).ret == pytest.ExitCode.OK
    (kept.path / "gates/lmc.toml").unlink()
    result = kept.run("--lmc-models", FILE)
    result.stdout.fnmatch_lines(["b.json: entry 'gates/lmc.toml::third::* belongs to no check*"])
    assert kept.run("--lmc-models", FILE, "lmc.toml").ret == pytest.ExitCode.OK


def test_a_check_is_called_the_same_from_anywhere(kept, monkeypatch):
    """Node ids depend on where pytest was started; names in a baseline do not."""
    monkeypatch.chdir(kept.path.parent)
    result = kept.run("--lmc-models", f"--lmc-baseline={kept.path.name}/b.json", kept.path.name)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["baseline *b.json: 2 same"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--lmc-seed=3", "other seed (0 before, 3 now)"),
        ("points", "other settings (points: left out before, 5 now)"),
        ("data", "other data (data.safetensors before, more.safetensors now)"),
    ],
)
def test_other_things_are_not_compared(kept, change, said):
    """Another seed, profile, device, setting or other data: one line refuses, and says how they differ."""
    flags = [change] if change.startswith("-") else []
    if change == "points":
        kept.manifest(kept.pair("good", value="0.01") + kept.check("good", points=5))
    if change == "data":
        (kept.path / "data.safetensors").rename(kept.path / "more.safetensors")
        kept.manifest(
            kept.pair("good", value="0.01") + kept.check("good"),
            defaults='model = "models:mlp"\ndata = "more.safetensors"\n',
        )
        (kept.path / "data.safetensors").rename(kept.path / "more.safetensors")
    result = kept.run("--lmc-models", FILE, f"lmc.toml::good::{CHECK}", *flags)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    lines = [line for line in result.outlines if line.startswith("b.json: ")]
    assert lines == [f"b.json: {said}: not compared"]


@pytest.mark.slow
def test_another_limit_is_compared(kept):
    """A limit says what is wanted, not what is measured."""
    kept.manifest(kept.pair("good", value="0.01") + kept.check("good", limit=0.4))
    assert kept.run("--lmc-models", FILE, f"lmc.toml::good::{CHECK}").ret == pytest.ExitCode.OK


def test_an_update_is_whole_or_not_at_all(kept):
    """After an error nothing is written and the run is red, unless the broken check is left out by name."""
    before = (kept.path / "b.json").read_bytes()
    broken = {"raise": "CheckpointError"}
    kept.manifest(
        kept.pair("good", value="0.03") + kept.check("good"), kept.pair("other", **broken) + kept.check("other")
    )
    result = kept.run("--lmc-models", FILE, UPDATE, "--lmc-report-only")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = next(line for line in result.outlines if line.startswith("baseline b.json left as it was: 1 of 3"))
    assert (kept.path / "b.json").read_bytes() == before
    said = text.partition("left out: ")[2].replace("'", "").split()
    assert kept.run("--lmc-models", FILE, UPDATE, *said).ret == pytest.ExitCode.OK
    assert [entry["value"] for entry in entries(kept).values()] == [0.03, 0.02]


@pytest.mark.slow
def test_an_update_after_an_early_end_writes_nothing(kept):
    """-x leaves checks without a measurement."""
    before = (kept.path / "b.json").read_bytes()
    kept.gate(bad="2", good="0.03", other="0.02")
    result = kept.run("--lmc-models", FILE, UPDATE, "-x")
    result.stdout.fnmatch_lines(["baseline b.json left as it was: 2 of 4 without a measurement*"])
    assert (kept.path / "b.json").read_bytes() == before


@pytest.mark.slow
def test_what_moved_within_the_noise_keeps_its_line(kept):
    """The same files and half of 1e-6: the entry stays, so that small steps do not add up."""
    before = (kept.path / "b.json").read_text()
    (kept.path / "b.json").write_text(before.replace('"value": 0.01', '"value": 0.0100005'))
    result = kept.run("--lmc-models", FILE, UPDATE)
    result.stdout.fnmatch_lines(["baseline b.json: nothing changed"])
    assert entries(kept)[f"lmc.toml::good::{CHECK}"]["value"] == 0.0100005


def test_report_only_fails_nothing_and_says_it(kept):
    """The row says fail and why; the exit status is 0."""
    kept.gate(good="0.03", other="0.02")
    result = kept.run("--lmc-models", FILE, "--lmc-report-only")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["good *fail*", "b.json: 0.01 nats before, 0.03 nats now*", "baseline b.json: 1 worse*"]
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file; mend: --lmc-update-baseline makes it"),
        ('{"tool": "eslint"}', "has no table 'checks'*"),
    ],
)
def test_what_is_no_baseline_is_a_usage_error(project, text, said):
    """Before anything is measured, in one line; an update does not write over it either."""
    project.gate(good="0.01")
    if text is not None:
        (project.path / "b.json").write_text(text)
    for flags in ((),) if text is None else ((), (UPDATE,)):
        result = project.run("--lmc-models", FILE, *flags)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: --lmc-baseline: baseline b.json: {said}"])
        assert text is None or (project.path / "b.json").read_text() == text


def test_an_update_needs_a_file(project):
    """A usage error names the option and the ini key."""
    project.gate(good="0.01")
    result = project.run("--lmc-models", UPDATE)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --lmc-update-baseline: which file? mend: name it, --lmc-baseline=PATH*"])


def test_the_ini_key_names_the_file_beside_it(kept):
    """lmc_baseline is relative to the ini file; a run without manifests does not read it."""
    kept.pytester.makeini("[pytest]\nlmc_baseline = b.json\n")
    kept.gate(good="0.03", other="0.02")
    kept.run("--lmc-models").assert_outcomes(passed=2, failed=1)
    (kept.path / "b.json").unlink()
    kept.pytester.makepyfile("def test_plain(): pass")
    assert kept.run("test_the_ini_key_names_the_file_beside_it.py").ret == pytest.ExitCode.OK


def test_a_report_is_not_written_over_the_baseline(kept):
    """It is an input."""
    before = (kept.path / "b.json").read_bytes()
    result = kept.run("--lmc-models", FILE, "--lmc-report-json=b.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (kept.path / "b.json").read_bytes() == before


@pytest.mark.slow
def test_workers_compare_and_the_controller_writes(kept):
    """Under xdist the same checks fail, stale entries are found, and one process writes the update."""
    kept.gate(good="0.03", third="0.02")
    flags = ("-n", "2", "--dist=loadscope")
    result = kept.run_subprocess("--lmc-models", FILE, *flags, "--lmc-report-json=r.json")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["b.json: entry 'lmc.toml::other::*", "baseline b.json: 1 worse, 1 missing"])
    assert {name: check["baseline"]["verdict"] for name, check in checks_of(kept).items() if name} == {
        "good": "worse",
        "third": "missing",
    }
    result = kept.run_subprocess("--lmc-models", FILE, UPDATE, *flags)
    result.stdout.fnmatch_lines(["baseline written to *b.json: 1 added, 1 changed, 1 removed, 0 as they were"])
    assert [entry["value"] for entry in entries(kept).values()] == [0.03, 0.02]
