"""A property, an alignment method, a report format, a checkpoint source: one new file in its package, and nothing else.

(A rule for an op is tested so in ``symmetry/test_symmetry.py``.) A file is put into the package of each kind, as a
developer would, in a fresh process, and used by what the user types.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SETUP = """
import torch
from torch import nn
import lmccheck
build = lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
a, b = build().state_dict(), build().state_dict()
given = dict(model=build, data=(torch.randn(6, 3), torch.arange(6) % 2))
"""
CASES = {
    "properties": (
        "lmccheck.properties",
        """
from lmccheck.finding import Finding
from lmccheck.properties.registry import check

@check(of="pair", claim="there are tensors", quantifier="exactly", certifies="their number")
def tensors(pair, *, limit: float = 0.0) -> Finding:
    return Finding(len(pair.theta_a), limit)
""",
        """
from lmccheck.properties import run
result = run("tensors", lmccheck.load_pair(a, b, **given), limit=4.0)
assert (result.value, result.verdict) == (4, "pass")
""",
    ),
    "methods": (
        "lmccheck.alignment.methods",
        """
from lmccheck.alignment.contract import Found
from lmccheck.alignment.methods import method

@method("at-random")
def at_random(problem):
    return Found(problem.spec.random(problem.seed), 0.0, {})
""",
        """
pair = lmccheck.load_pair(a, b, **given)
assert torch.equal(lmccheck.align(pair, "at-random", seed=3).permutation["0"], pair.network.spec.random(3)["0"])
""",
    ),
    "formats": (
        "lmccheck.report.formats",
        """
from lmccheck.report.formats import FORMATS, Format

def count(records, run):
    return str(len(records))

FORMATS.add("count", Format("count", "Count", "write how many checks there were", count), __name__)
""",
        """
import pathlib, pytest
check = "check.linear_connectivity.limit = 1"
pathlib.Path("lmc.toml").write_text(f'schema = 1\\n[pair.x]\\na = "a"\\nb = "b"\\n{check}\\n')
assert pytest.main(["-q", "--lmc-models", "lmc.toml", "--lmc-report-count=count.txt"]) == 1
assert pathlib.Path("count.txt").read_text() == "2"
""",
    ),
    "sources": (
        "lmccheck.store.sources",
        """
from lmccheck.store.checkpoint import SOURCES, Source
from lmccheck.store.sources.state_dict import open_state_dict

def open_list(given, folder, side):
    return open_state_dict(dict(given), folder, side)

SOURCES.add("list", Source("a list of names with tensors", lambda given: isinstance(given, list), open_list), __name__)
""",
        """
pair = lmccheck.load_pair(list(a.items()), b, **given)
assert torch.equal(pair.theta_a["0.weight"], a["0.weight"])
""",
    ),
}


def test_one_new_file_is_all_it_takes(tmp_path: Path) -> None:
    """It is found by itself, and used by its name; four kinds in one process, which says of each whether it was."""
    code = SETUP
    for kind, (package, file, _) in CASES.items():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / f"mine_{kind}.py").write_text(file)
        code += f"import {package} as package\npackage.__path__.append({str(folder)!r})\n"
    for kind, (_, _, use) in CASES.items():
        code += f"{use}\nprint('used', {kind!r})\n"
    plain = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}  # no workers
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=plain)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    assert [kind for kind in CASES if f"used {kind}\n" in found.stdout] == list(CASES)
