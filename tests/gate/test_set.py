"""``[set.NAME]``: three models and more, gated as pairs are, their matrix of barriers in every report."""

from __future__ import annotations

import hashlib
import json
import sys
from xml.etree import ElementTree

import pytest


def gate(project, **values):
    """Write a manifest of sets of three with one check each: ``gate(project, good="0.01", bad="2")``."""
    return project.manifest(
        *(project.set(name, value=value) + project.set_check(name, limit=0.05) for name, value in values.items())
    )


def report_of(project, *arguments):
    project.run("--lmc-models", "--lmc-report-json=report.json", *arguments)
    return json.loads((project.path / "report.json").read_text())


def test_a_set_is_a_node_as_a_pair_is(project):
    """manifest::set::check, found by -k and -m, and collected without torch or a look at the files."""
    project.manifest(
        project.pair("two", value="0.01") + project.check("two"),
        project.set("three", value="0.01") + project.set_check("three"),
    )
    project.run("lmc.toml::three::set_connectivity").assert_outcomes(passed=1)
    project.run("--lmc-models", "-k", "set_connectivity", "-m", "lmc").assert_outcomes(passed=1, deselected=2)
    for k in range(3):
        (project.path / f"three-{k}.safetensors").unlink()
    script = (
        "import sys, pytest; options = ['--collect-only', '--lmc-models', '-W', 'error', '-p', 'no:randomly']; "
        "status = pytest.main(options); "
        "print('imported', sorted({'torch', 'numpy', 'safetensors', 'scipy'} & set(sys.modules))); sys.exit(status)"
    )
    result = project.pytester.run(sys.executable, "-c", script)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*<SetCollector three>", "*<CheckItem set_connectivity>", "imported []"])


def test_one_row_and_the_matrices_below(project):
    """Value, naive and place are the worst pair's; what is above the limit is marked."""
    gate(project, bad="2", good="0.01")
    result = project.run("--lmc-models")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "bad *set_connectivity *fail *2 *0.05 *nats *1.1 *bad-0, bad-2 *",
            "good *set_connectivity *pass *0.01 *0.05 *nats *1.1 *good-0, good-2 *",
            "",
            "bad::set_connectivity, barriers in nats, aligned (merge-many); [*] above the limit",
            " *bad-0 *bad-1 *bad-2",
            "*",
            "bad-0 *1 *2[*]",
            "bad-1 *1 *1",
            "bad-2 *2[*] *1",
            "",
            "bad::set_connectivity, barriers in nats, unaligned",
            "*",
            "*",
            "bad-0 *1.1 *1.1",
            "*",
            "*",
            "",
            "good::set_connectivity, barriers in nats, aligned (merge-many)",
        ],
        consecutive=False,
    )


def test_a_failure_is_six_lines(project):
    """The last is the command that repeats it, which points at the set's line."""
    gate(project, bad="2")
    result = project.run("--lmc-models", "--lmc-seed=3")
    start = next(k for k, line in enumerate(result.outlines) if " bad: set_connectivity " in line)
    assert result.outlines[start + 6] == "reproduce: pytest 'lmc.toml::bad::set_connectivity' --lmc-seed=3"
    assert result.outlines[start + 7].startswith("====")


def test_the_markdown_report_has_the_matrices(project):
    """As tables, each below its title."""
    gate(project, good="0.01")
    project.run("--lmc-models", "--lmc-report-md=r.md")
    lines = (project.path / "r.md").read_text().splitlines()
    for title in ("aligned (merge-many)", "unaligned"):
        at = lines.index(f"good::set_connectivity, barriers in nats, {title}")
        assert lines[at + 1] == ""
        assert [cell.strip() for cell in lines[at + 2].split("|")[1:-1]] == ["", "good-0", "good-1", "good-2"]
        assert lines[at + 4].startswith("| good-0 |")


def test_the_json_report_and_junit_have_the_facts(project):
    """The matrix in details, every model's file below sets, the worst pair as a flat fact."""
    gate(project, good="0.01")
    report = report_of(project, "--junitxml=junit.xml")
    check = next(check for check in report["checks"] if check["pair"] == "good")
    assert check["kind"] == "set"
    assert check["details"]["matrix"][0] == [0.0, 0.005, 0.01]
    assert check["witness"]["worst_pair"] == ["good-0", "good-2"]
    assert report["pairs"] == []
    assert [(entry["name"], list(entry["files"])) for entry in report["sets"]] == [
        ("good", ["good-0", "good-1", "good-2"])
    ]
    facts = {p.get("name"): p.get("value") for p in ElementTree.parse(project.path / "junit.xml").iter("property")}
    assert facts["lmc.worst_pair"] == "good-0, good-2"
    assert facts["lmc.naive"] == "1.1"


def test_settings_and_sources_reach_the_property(project):
    """Those of [defaults], those of the set, and only the settings that are stated."""
    project.manifest(
        project.set("plain") + project.set_check("plain"),
        project.set("own")
        + 'loss = "mse"\nsymmetry = "s.toml"\n'
        + project.set_check("own", align="best", reference=2),
    )
    checks = {check["pair"]: check for check in report_of(project)["checks"] if check["pair"]}
    assert checks["plain"]["details"]["loss"] == "cross_entropy"
    assert checks["plain"]["details"]["model"] == "models:mlp"
    assert checks["plain"]["details"]["settings"] == {}
    assert checks["own"]["details"]["loss"] == "mse"
    assert checks["own"]["details"]["settings"] == {"align": "best", "reference": 2}


def test_the_same_fixtures_can_be_overridden(project):
    """A conftest beside the manifest says what a set runs on, as for a pair."""
    gate(project, good="0.01")
    project.pytester.makeconftest(
        "import pytest\n"
        "@pytest.fixture\ndef lmc_model_factory(lmc_model_factory): return lmc_model_factory + '_wide'\n"
        "@pytest.fixture\ndef lmc_data(): return 'm:data'\n"
        "@pytest.fixture\ndef lmc_loss(): return 'mse'\n"
        "@pytest.fixture\ndef lmc_device(): return 'cpu'\n"
    )
    details = report_of(project)["checks"][0]["details"]
    assert [details[key] for key in ("model", "data", "loss", "device")] == ["models:mlp_wide", "m:data", "mse", "cpu"]


def test_a_missing_model_is_told(project):
    """With the set's key, and what would supply it."""
    project.manifest(project.set("good") + project.set_check("good"), defaults="")
    result = project.run("--lmc-models")
    result.stdout.fnmatch_lines(["set.good.model: missing in the set and in [[]defaults], and no conftest.py *"])


def test_severity_and_report_only(project):
    """A set that only warns is green and marked; --lmc-report-only fails nothing."""
    project.manifest(project.set("bad", value="2") + project.set_check("bad", severity="warn"))
    result = project.run("--lmc-models", "-W", "default")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*LmcWarning: lmc.toml::bad::set_connectivity", "bad *fail (warn)*"])
    gate(project, bad="2")
    assert project.run("--lmc-models", "--lmc-report-only").ret == pytest.ExitCode.OK


def test_the_seed_depends_on_every_file(project):
    """Another third model is another search; the same files give the same seed."""
    gate(project, good="0.01", other="0.01")
    seeds = [check["seed"] for check in report_of(project)["checks"] if check["pair"]]
    assert len({*seeds, *(check["seed"] for check in report_of(project)["checks"] if check["pair"])}) == 2


def test_workers_measure_and_the_controller_draws(project):
    """The same matrices under xdist."""
    gate(project, good="0.01", bad="2")
    texts = []
    for flags in [(), ("-n", "2", "--dist=loadscope")]:
        project.run_subprocess("--lmc-models", "--lmc-report-md=r.md", *flags).assert_outcomes(passed=2, failed=1)
        texts.append((project.path / "r.md").read_text())
    assert texts[0] == texts[1]
    assert "unaligned" in texts[0]


def test_every_aligned_model_of_a_passing_set_is_written(project):
    """Into a folder of the set's name, named after the files; a failing set leaves none and says so."""
    gate(project, good="0.01", bad="2")
    result = project.run("--lmc-models", "--lmc-aligned-dir=out")
    assert sorted(str(path.relative_to(project.path / "out")) for path in (project.path / "out").rglob("*.*")) == [
        f"good/good-{k}-aligned.safetensors" for k in range(3)
    ]
    result.stdout.fnmatch_lines(["aligned models not written for bad: set_connectivity did not pass"])
    result.stdout.fnmatch_lines(["aligned models written to */out/good"])


def test_models_whose_files_share_a_stem_are_not_written_over_each_other(project, checkpoint):
    """Each is named after what tells it apart, here its folder."""
    (project.path / "x").mkdir()
    checkpoint(project.path / "x" / "good-0.safetensors", {"model": "other"})
    part = project.set("good", value="0.01").replace("good-1", "x/good-0")
    project.manifest(part + project.set_check("good"))
    result = project.run("--lmc-models", "--lmc-aligned-dir=out")
    assert result.ret == pytest.ExitCode.OK
    assert sorted(path.name for path in (project.path / "out" / "good").iterdir()) == [
        f"{name}-aligned.safetensors" for name in ("good-0", "good-2", "x")
    ]


def test_the_manifest_item_looks_at_every_model(project, checkpoint):
    """Files, headers, pins and doubles, each by its place in the set."""
    parts = [project.set(name) for name in ("gone", "wide", "twin", "pinned")]
    (project.path / "gone-1.safetensors").unlink()
    checkpoint(project.path / "wide-2.safetensors", shape=(3,))
    parts[2] = parts[2].replace("twin-2", "twin-0")
    pins = [hashlib.sha256((project.path / f"pinned-{k}.safetensors").read_bytes()).hexdigest() for k in range(3)]
    parts[3] += f"sha256 = {json.dumps([pins[0].upper(), pins[0], pins[2]])}\n"
    names = ("gone", "wide", "twin", "pinned")
    project.manifest(*(part + project.set_check(name) for name, part in zip(names, parts, strict=True)))
    result = project.run("lmc.toml::manifest")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "set.gone.models[[]1]: no file 'gone-1.safetensors' in *(did you mean 'gone-?.safetensors'?)",
            "set.wide: w is (2,) in models[[]0] and (3,) in models[[]2]; expected the same shapes",
            "set.twin: models[[]0] and models[[]2] are the same file, twin-0.safetensors; expected two checkpoints",
            f"set.pinned.sha256[[]1]: pinned-1.safetensors has sha256 {pins[1]}, expected {pins[0]}; pin the file *",
        ]
    )
    text = result.stdout.str()
    assert text.count("set.") == 4 + text.count("FAILED")


def test_a_name_means_one_thing(project):
    """A pair and a set of one name would share their node id."""
    project.manifest(
        project.pair("same") + project.check("same"), project.set("same") + project.set_check("same", limits=1)
    )
    result = project.run("--lmc-models")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        [
            "lmc.toml: set.same: the name 'same' is taken by a pair, expected another",
            "lmc.toml: set.same.check.set_connectivity.limits: unknown key (did you mean 'limit'?), expected one of *",
        ]
    )
