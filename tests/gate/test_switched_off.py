"""``-p no:lmccheck`` leaves pytest untouched; --help names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lmccheck
from lmccheck.plugin import INI_KEYS
from lmccheck.report.formats import formats


def test_switched_off_nothing_of_it_is_left(project):
    """No option, no fixture, no manifest."""
    project.gate(good="0.01")
    project.pytester.makepyfile("def test_plain(): pass")
    off = ("-p", "no:lmccheck", "-W", "error")
    project.pytester.runpytest_subprocess(*off).assert_outcomes(passed=1)
    result = project.pytester.runpytest_subprocess(*off, "--lmc-models")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "unrecognized arguments: --lmc-models" in result.stderr.str()
    project.pytester.runpytest_subprocess(*off, "--fixtures").stdout.no_fnmatch_line("lmc*")


def test_help_names_every_option(project):
    """pytest --help shows the group with all of surface's options and ini keys."""
    text = project.run("--help").stdout.str()
    keys = [*INI_KEYS, *(each.key for each in formats())]
    options = {
        "models",
        "report-only",
        "update-baseline",
        *(key.removeprefix("lmc_").replace("_", "-") for key in keys),
    }
    assert options == {
        "models", "device", "seed", "profile", "table", "report-json", "report-md", "aligned-dir", "witness-dir",
        "report-only", "attest", "report-html", "baseline", "update-baseline", "history", "curves",
    }  # fmt: skip
    assert set(re.findall(r"--lmc-([a-z-]+)", text)) == options
    for key in keys:
        assert f"  {key} " in text


def test_the_plugin_imports_only_pytest_and_the_standard_library():
    """At module level, whatever functions import when they are called."""
    import ast
    import sys

    for name in ("plugin", "gate/options", "gate/fixtures", "gate/core", "errors"):
        tree = ast.parse((Path(lmccheck.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
        imported = {
            alias.name if isinstance(node, ast.Import) else str(node.module)
            for node in tree.body
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        roots = {module.split(".")[0] for module in imported}
        assert roots <= {"pytest", "lmccheck"} | sys.stdlib_module_names
