"""Loading the plugin costs pytest next to nothing."""

from __future__ import annotations

import subprocess
import sys

MEASURE = """
import pytest, sys, time
start = time.process_time()
import lmccheck.plugin
import lmccheck.gate.fixtures
heavy = {"torch", "numpy", "pydantic", "tabulate", "scipy", "safetensors"} & set(sys.modules)
print(time.process_time() - start, *heavy)
"""
LIMIT = 0.020  # seconds beyond pytest's own
RUNS = 7


def measure():
    output = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True).stdout.split()
    return float(output[0]), output[1:]


def test_the_plugin_is_imported_in_under_20_ms():
    """CPU time, the least of several fresh processes: the cost itself, without what else the machine was doing."""
    measured = [measure() for _ in range(RUNS)]
    assert min(seconds for seconds, _ in measured) < LIMIT
    assert [heavy for _, heavy in measured if heavy] == []


def test_a_plain_run_imports_nothing_heavy(project):
    """A run without manifests pays for none of lmccheck's libraries."""
    project.pytester.makepyfile(
        "import sys\n"
        "def test_plain(): assert not {'torch', 'pydantic', 'tabulate', 'lmccheck.collect'} & set(sys.modules)"
    )
    project.pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=1)
