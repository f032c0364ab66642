"""``[merge.NAME]``: every mistake is a line, before any network runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks.merges import MANIFEST
from safetensors.torch import save_file

from lmccheck.errors import ManifestError
from lmccheck.manifest.plan import MergePlan
from lmccheck.manifest.preflight import problems
from lmccheck.manifest.read import load_manifest

CHANGES = {
    "other.safetensors": "data.safetensors",
    'data = "test"\ncheck.merged_loss = { against = "better-parent"': (
        'data = "test"\nsha256 = { x = "PIN" }\ncheck.merged_loss = { against = "y"'
    ),
    '{ data = "test", limit': '{ data = { x = "test" }, limit',
}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A manifest of three merges beside their files, without a mistake."""
    from lmccheck.store.files import sha256_of

    for k, name in enumerate(("x", "y", "z", "base")):
        save_file({"weight": torch.full((3, 3), float(k))}, tmp_path / f"{name}.safetensors")
    save_file({"inputs": torch.eye(3), "targets": torch.arange(3)}, tmp_path / "data.safetensors")
    (tmp_path / "models.py").write_text("")
    path = tmp_path / "lmc.toml"
    text = MANIFEST
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text.replace("PIN", sha256_of(tmp_path / "x.safetensors")))
    return path


def told(path: Path, old: str = "", new: str = "") -> str:
    """Return what is said of the manifest with a part of it replaced, when it is read or when its files are."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    try:
        return "\n".join(problems(load_manifest(path)))
    except ManifestError as error:
        return str(error)


def test_a_merge_is_a_plan(manifest: Path) -> None:
    """Its parents, base, recipe and pins; data of its first check where it names none; the line of its header."""
    assert not told(manifest)
    plan = load_manifest(manifest)
    soup, far, _ = plan.merges
    assert isinstance(soup, MergePlan)
    assert (soup.kind, soup.line, soup.recipe.name, list(soup.files)) == (
        "merge",
        9,
        "greedy_soup",
        ["parents.x", "parents.y"],
    )
    assert list(soup.pins) == ["parents.x"]
    assert far.data == plan.data["test"]
    assert far.files == {"parents.x": "x.safetensors", "base": "base.safetensors"}
    names = {path.name for path in plan.inputs}
    assert names >= {"x.safetensors", "base.safetensors", "data.safetensors", "models.py"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("greedy_soup", "greedy_soop", "merge.soup.recipe: unknown recipe 'greedy_soop' (did you mean 'greedy_soup'?)"),
        ('greedy_soup = "val"', 'greedy_soup = "vall"', 'merge.soup.recipe.greedy_soup: got "vall"'),
        ('greedy_soup = "val"', 'uniform = true, call = "m:f"', "merge.soup.recipe: got 2 recipes, uniform and call"),
        ('greedy_soup = "val"', "linear = { x = 1.0, z = 1 }", "merge.soup.recipe.linear.z: no such parent"),
        ('["test", "val"]', '["test", "vale"]', 'merge.far.check.merged_loss.data[1]: got "vale"'),
        ('{ x = "test" }', '{ y = "test" }', "merge.lost.check.merged_loss.data.y: no such parent"),
        ('{ x = "test" }', "3", "merge.lost.check.merged_loss.data: got 3, expected the name of data"),
        (
            'against = "y"',
            'against = "best-parent"',
            'against: got "best-parent" (a string), expected better-parent or',
        ),
        (
            'base = "base.',
            'align = "best"\nbase = "base.',
            'merge.far.align: got "best" (a string), expected none: call',
        ),
        (
            'recipe = "uniform"',
            'recipe = "uniform"\nalign = "bets"',
            'merge.lost.align: got "bets" (a string), expected',
        ),
        ("base.safetensors", "bass.safetensors", "merge.far.base: no file 'bass.safetensors'"),
        ("z.safetensors", "x.safetensors", "merge.lost: parents.x and parents.z are the same file"),
        ("parents = { x = ", "parents = { mean = ", "merge.soup.parents.mean: expected a name of letters"),
        (
            'parents = { x = "x.safetensors" }',
            'parents = { base = "x.safetensors" }',
            "merge.far.parents.base: the name",
        ),
        ("[merge.lost]", "[set.soup]\nmodels = ['a', 'b']\n[merge.lost]", "name 'soup' is taken by a set"),
        ('recipe = "uniform"', 'recipe = { fedavg = "n.json" }', "merge.lost.recipe.fedavg: "),
        ('recipe = "uniform"', "", "merge.lost.recipe: missing"),
        ('by = "class", limit = 5.0', 'by = "class"', "merge.soup.check.classes.limit: missing"),
        ('metric = "error"', 'metric = "errors"', 'merge.soup.check.classes.metric: got "errors"'),
        ("sha256 = { x", "sha256 = { z", "merge.soup.sha256.z: no such parent"),
        ('sha256 = { x = "', 'sha256 = { x = "0000', "merge.soup.sha256.x: got"),
        (
            'parents = { x = "x.safetensors", y = ',
            'parents = { x = "z.safetensors", y = ',
            "merge.soup.sha256.x: z.safe",
        ),
    ],
)
def test_a_mistake_in_a_merge_is_told(manifest: Path, old: str, new: str, said: str) -> None:
    """The key, what was got, the nearest name."""
    assert said in told(manifest, old, new)
