"""Names tell checkpoints apart by the shortest parts of their paths; patterns are replaced by what they match."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmccheck.errors import CheckpointError
from lmccheck.store.names import expanded, model_names


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["a.safetensors", "x/b.safetensors"], ("a", "b")),
        (["a/model.safetensors", "b/model.safetensors"], ("a", "b")),
        (["a/model.safetensors.index.json", "b/model.safetensors"], ("a", "b")),
        (["models/a", "models/b/"], ("a", "b")),
        (["runs/1/ckpt/model.safetensors", "runs/2/ckpt/model.safetensors"], ("1", "2")),
        (["/t/one/m.safetensors", "/t/two/m.safetensors", "/t/three.safetensors"], ("one", "two", "three")),
        (["a/x.safetensors", "b/x.safetensors", "a.safetensors"], ("a-x", "b", "a")),
        (
            ["a/x.safetensors", "b/x.safetensors", "a/y.safetensors", "b/y.safetensors"],
            ("a-x", "b-x", "a-y", "b-y"),
        ),
        (["m.safetensors", "../m.safetensors", "x/m.safetensors"], ("m (0)", "m (1)", "x")),
        ([{}, "x/a.safetensors", "x/a.safetensors"], ("model 0", "a (1)", "a (2)")),
        ([{"base": "base", "adapter": "ad/math"}, {"base": "base", "adapter": "ad/code"}], ("math", "code")),
        (["v1.5", "v1.6"], ("v1.5", "v1.6")),
    ],
)
def test_names_are_the_shortest_parts_that_tell_apart(models: list[object], names: tuple[str, ...]) -> None:
    """The file's own name where that does, else folders; what is one path is told apart by its place."""
    assert model_names(models) == names
    assert len(set(names)) == len(names)
    assert not any("/" in name for name in names), "files are written under these names"


def test_a_pattern_is_what_it_matches_in_natural_order(tmp_path: Path) -> None:
    """client-10 after client-9, folders too, hidden ones not; a file that is called like a pattern is itself."""
    for name in ("client-10", "client-9", "client-1", ".client-3"):
        (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / "x[1].safetensors").touch()
    (tmp_path / "runs" / "seed-2").mkdir(parents=True)
    (tmp_path / "runs" / "seed-11").mkdir()
    found, said = expanded("client-*.safetensors", tmp_path)
    assert found == [f"client-{k}.safetensors" for k in (1, 9, 10)]
    assert said == ["client-*.safetensors matches 3: client-1.safetensors, client-9.safetensors, client-10.safetensors"]
    assert expanded(["x[1].safetensors", "runs/*"], tmp_path) == (
        ["x[1].safetensors", "runs/seed-2", "runs/seed-11"],
        ["runs/* matches 2: runs/seed-2, runs/seed-11"],
    )
    with pytest.raises(CheckpointError, match=r"no file matches 'clint-\*\.safetensors' in .*, which holds 6 others"):
        expanded("clint-*.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match=r"no file matches 'gone/\*': there is no folder .*gone"):
        expanded(["gone/*"], tmp_path)
