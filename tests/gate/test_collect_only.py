"""``pytest --collect-only --lmc-models`` reads TOML and nothing else."""

from __future__ import annotations

import sys


def test_collecting_does_not_import_torch(project):
    """Listing the checks of a manifest must stay instant: no torch, no numpy, no checkpoint opened."""
    project.gate(good="0.01")
    project.pair("good")
    for side in "ab":
        (project.path / f"good-{side}.safetensors").unlink()  # nothing may be read
    script = (
        "import sys, pytest; status = pytest.main(['--collect-only', '--lmc-models', '-q', '-W', 'error']); "
        "print('imported', sorted({'torch', 'numpy', 'safetensors', 'scipy'} & set(sys.modules))); sys.exit(status)"
    )
    result = project.pytester.run(sys.executable, "-c", script)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["lmc.toml::manifest", "lmc.toml::good::linear_connectivity", "imported []"])


def test_the_tree_is_file_pair_check(project):
    """The nodes nest as the manifest does."""
    project.gate(good="0.01", name="gates/lmc.toml")
    result = project.run("--collect-only", "--lmc-models")
    result.stdout.fnmatch_lines(
        [
            "*<ManifestFile lmc.toml>",
            "*<ManifestItem manifest>",
            "*<PairCollector good>",
            "*<CheckItem linear_connectivity>",
        ]
    )
    result.stdout.no_fnmatch_line("*= lmccheck =*")


def test_collecting_writes_no_report(project):
    """A report of a run that measured nothing would replace one that did."""
    project.gate(good="0.01")
    project.run("--collect-only", "--lmc-models", "--lmc-report-json=r.json", "--lmc-report-md=r.md")
    assert not list(project.path.glob("r.*"))
