"""The gate on what is shipped: the good file passes, and each bad one stops with a line that says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from networks.small import seeded, small_mlp
from safetensors.torch import save_file

from lmccheck.manifest.preflight import problems
from lmccheck.manifest.read import load_manifest

pytestmark = pytest.mark.usefixtures("real_core")

DEFAULTS = 'schema = 1\n[defaults]\nmodel = "models:mlp"\ndata = "data.safetensors"\n'
MERGE = """
[merge.{name}]
parents = {{ x = "a.safetensors", y = "b.safetensors" }}
recipe = {{ linear = {{ x = 0.7, y = 0.7 }} }}
shipped = "{shipped}"
check.shipped = {{ tolerance = "bits" }}
"""
LAWS = "check.merge_laws = { examples = 3 }\n"


def test_what_is_shipped_is_gated(pytester: pytest.Pytester, folder: Path) -> None:
    """The sum passes with its laws; the normalised sum and one of the parents stop, each with its own line."""
    a, b = seeded(small_mlp, 0), seeded(small_mlp, 1)
    made = {k: (0.7 * a[k].double() + 0.7 * b[k].double()).float() for k in a}
    save_file(made, folder / "sum.safetensors")
    save_file({k: (v.double() / 1.4).float() for k, v in made.items()}, folder / "mean.safetensors")
    shipped = {"good": "sum", "normalised": "mean", "wrong-file": "b"}
    texts = [MERGE.format(name=name, shipped=f"{file}.safetensors") for name, file in shipped.items()]
    texts[0] += LAWS
    (folder / "lmc.toml").write_text(DEFAULTS + "".join(texts))
    report = folder / "report.json"
    result = pytester.runpytest_inprocess("--lmc-models", str(folder / "lmc.toml"), "--lmc-report-json", str(report))
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines_random(
        [
            "*what is shipped is the sum divided by the weights' sum (a normalised sum)*",
            "*equals parent y bit for bit: nothing was merged into it*",
        ]
    )
    checks = {check["id"].split("::", 1)[1]: check for check in json.loads(report.read_text())["checks"]}
    assert checks["good::shipped"]["value"] == 0
    assert checks["good::merge_laws"]["details"]["laws"]["equal"] == "not claimed"


def test_what_is_shipped_is_looked_at_before_anything_is_measured(folder: Path) -> None:
    """A stale index beside a new file, and a file that is not there, are problems of the manifest item."""
    out = folder / "out"
    out.mkdir()
    save_file({"w": torch.ones(2)}, out / "model.safetensors", {"format": "pt"})
    index = {"metadata": {"total_size": 8}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    texts = [MERGE.format(name=name, shipped=name) for name in ("out", "lost.safetensors")]
    (folder / "lmc.toml").write_text(DEFAULTS + "".join(texts).replace("[merge.lost.safetensors]", "[merge.lost]"))
    stale, lost = problems(load_manifest(folder / "lmc.toml"))
    assert stale.startswith("merge.out.shipped: ")
    assert "model.safetensors" in stale
    assert "index" in stale
    assert lost.startswith("merge.lost.shipped: no file 'lost.safetensors'")


@pytest.mark.parametrize("shipped", ["", 3])
def test_a_manifest_says_what_is_shipped_as_a_path(folder: Path, shipped: object) -> None:
    """Anything else is refused where it is written."""
    from lmccheck.errors import ManifestError

    text = MERGE.format(name="one", shipped="@").replace('"@"', json.dumps(shipped))
    (folder / "lmc.toml").write_text(DEFAULTS + text)
    with pytest.raises(ManifestError, match=r"merge\.one\.shipped"):
        load_manifest(folder / "lmc.toml")
