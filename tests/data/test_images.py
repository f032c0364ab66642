"""Folders of images and tables of parquet: classes, pixels and columns against what was written."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from lmccheck.data.load import load_data
from lmccheck.errors import CheckpointError, SourceError
from lmccheck.evaluate.slices import slices

Image = pytest.importorskip("PIL.Image")
CLASSES = ("ape", "bee", "cat")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two images of each of three classes, written out of order; pixels by class and number."""
    monkeypatch.chdir(tmp_path)
    pixels = {}
    for k, name in reversed(list(enumerate(CLASSES))):
        (tmp_path / "val" / name).mkdir(parents=True)
        for j in (1, 0):
            found = np.random.default_rng(10 * k + j).integers(0, 256, (4, 5, 3), dtype=np.uint8)
            Image.fromarray(found).save(tmp_path / "val" / name / f"{j}.png")
            pixels[k, j] = found
    return tmp_path, pixels


def test_classes_are_the_folders_in_sorted_order(photos):
    """Pixels from 0 to 1, channels first; the class is a column, the file a place."""
    folder, pixels = photos
    (folder / "val" / ".DS_Store").write_bytes(b"x")
    data = load_data({"images": "val"}, folder)
    (batch,) = data.batches
    expected = np.stack([pixels[k, j] for k in range(3) for j in range(2)]).transpose(0, 3, 1, 2) / 255
    assert torch.allclose(batch.inputs.double(), torch.from_numpy(expected), atol=1e-7)
    assert batch.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert (data.kind, data.rebatch, data.places[3]) == ("images", True, "val/bee/1.png")
    assert (slices(data, "class").names, slices(data, "class").counts) == (CLASSES, [2, 2, 2])
    assert len(data.held) == 6


def half(image):
    """Half the size, one channel."""
    return np.asarray(image.convert("L").resize((2, 2)), dtype=np.float32)


def test_a_transform_makes_one_size_of_many(photos):
    """Without one, images of other sizes are refused, naming the first of them."""
    folder, _ = photos
    Image.new("RGB", (9, 9)).save(folder / "val" / "cat" / "2.png")
    with pytest.raises(
        SourceError, match=r"^data val/cat/2.png: has shape \(3, 9, 9\), 0.png \(3, 4, 5\); expected one"
    ):
        load_data({"images": "val"}, folder)
    data = load_data({"images": "val", "transform": half}, folder)
    assert data.batches[0].inputs.shape == (7, 2, 2)
    (folder / "own.py").write_text("def flat(image):\n    import torch\n    return torch.ones(3) * image.size[0]\n")
    named = load_data({"images": "val", "transform": "own:flat"}, folder)
    assert named.batches[0].inputs[:, 0].tolist() == [5.0] * 6 + [9.0]


def broken(folder, what):
    val = folder / "val"
    if what == "text":
        (val / "bee" / "2.png").write_text("no image")
    elif what == "cut":
        raw = (val / "bee" / "0.png").read_bytes()
        (val / "bee" / "0.png").write_bytes(raw[: len(raw) // 2])
    elif what == "stray":
        (val / "readme.md").write_text("x")
    elif what == "empty":
        (val / "dog").mkdir()
    elif what == "inner":
        (val / "bee" / "more").mkdir()


@pytest.mark.parametrize(
    ("what", "keys", "said"),
    [
        ("text", {}, "data val/bee/2.png: cannot be identified, expected an image that pillow can read"),
        ("cut", {}, "data val/bee/0.png: "),
        ("stray", {}, "data val/readme.md: a file beside the classes, expected a folder of images per class"),
        ("empty", {}, "data val/dog: a class without images"),
        ("inner", {}, "data val/bee/more: a folder in a class"),
        ("", {"images": "vel"}, "data vel: cannot be read: No such file"),
        ("", {"images": "val/bee"}, "data val/bee/0.png: a file beside the classes"),
        (
            "",
            {"transform": lambda image: image},
            "data transform '<lambda>': returned Image for val/ape/0.png, expected a",
        ),
        ("", {"transform": lambda image: image.nothing}, "data transform '<lambda>': raised AttributeError: "),
        (
            "",
            {"transform": lambda image: np.full(2, random.random())},
            "data transform '<lambda>': makes two things of",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(photos, what, keys, said):
    """The file, what is wrong with it, what is expected."""
    folder, _ = photos
    broken(folder, what)
    with pytest.raises(SourceError) as caught:
        load_data({"images": "val", **keys}, folder)
    assert str(caught.value).replace("test_what_cannot_be_read_is_one_line.", "").startswith(said)
    assert "\n" not in str(caught.value)


def test_an_image_that_changed_is_noticed(photos):
    """As every file that was read."""
    folder, _ = photos
    data = load_data({"images": "val"}, folder)
    Image.new("RGB", (5, 4)).save(folder / "val" / "cat" / "0.png")
    (changed,) = [held for held in data.held if str(held.path).endswith("cat/0.png")]
    with pytest.raises(CheckpointError, match=r"cat/0.png: changed after it was loaded"):
        changed.require_unchanged()


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Write columns as parquet; load them."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)

    def table(columns, name="t.parquet", **keys):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        parquet.write_table(arrow.table(columns), tmp_path / name)
        return load_data({"parquet": name.partition("/")[0], **keys}, tmp_path)

    return table


def test_a_table_of_numbers_has_inputs_and_targets(table):
    """Of usual names, or of those that are said; what else it holds are columns; a folder's files are one table."""
    rows = {"x": [[1.0, 2.0], [3.0, 4.0]], "y": [0, 1], "site": ["a", "b"]}
    data = table(rows)
    assert (data.batches[0].inputs.tolist(), data.batches[0].targets.tolist()) == (rows["x"], rows["y"])
    assert dict(data.columns) == {"site": ("a", "b")}
    table(rows, "many/1.parquet")
    data = table({"x": [[5.0, 6.0]], "y": [1], "site": ["c"]}, "many/0.parquet")
    assert (data.batches[0].inputs[:, 0].tolist(), data.places[1]) == ([5.0, 1.0, 3.0], "many/1.parquet, row 0")
    data = table({"a": [1.0, 2.0], "b": [0.5, 1.5]}, column="a", target="b")
    assert (data.batches[0].inputs.tolist(), data.batches[0].targets.tolist()) == ([1.0, 2.0], [0.5, 1.5])


def test_a_table_of_images_is_like_a_folder_of_them(table, photos):
    """Bytes as the library datasets stores them."""
    folder, _ = photos
    files = sorted((folder / "val").rglob("*.png"))
    data = table({"image": [{"bytes": f.read_bytes(), "path": None} for f in files], "label": [0, 0, 1, 1, 2, 2]})
    same = load_data({"images": "val"}, folder)
    assert torch.equal(data.batches[0].inputs, same.batches[0].inputs)
    assert torch.equal(data.batches[0].targets, same.batches[0].targets)
    assert data.kind == "images"


def test_a_table_of_text_is_like_lines_of_json(table, tmp_path):
    """With the same tokenizer, the same tokens; without one, a line."""
    from networks.tokens import LINES, word_tokenizer

    word_tokenizer().save(str(tmp_path / "words.json"))
    data = table({"text": list(LINES), "task": list("abcd")}, tokenizer="words.json")
    assert data.batches[0].targets[0][:6].tolist() == word_tokenizer().encode(LINES[0]).ids
    assert (data.kind, data.columns["task"], data.places[1]) == ("text", tuple("abcd"), "t.parquet, row 1")
    with pytest.raises(SourceError, match=r"^data t.parquet, row 0: holds text, 'text', and no tokenizer is given"):
        table({"text": list(LINES)})


@pytest.mark.parametrize(
    ("columns", "keys", "said"),
    [
        ({"x": [1.0], "z": [1]}, {}, r"t.parquet, row 0: target: got none of the usual names among \['x', 'z'\]"),
        ({"xx": [1.0], "y": [1]}, {"column": "x"}, r"column: got no column 'x' \(did you mean 'xx'\?\) among"),
        ({"x": [1.0, None], "y": [1, 2]}, {}, r"t.parquet, row 1: 'x': got null, expected numbers"),
        ({"x": ["a"], "y": [1]}, {}, r"t.parquet, row 0: 'x': got \"a\" \(a string\), expected numbers"),
        ({"x": [], "y": []}, {}, r"t.parquet: holds no row"),
    ],
)
def test_a_table_that_is_no_data_is_one_line(table, columns, keys, said):
    """The row, the column, and which there are."""
    with pytest.raises(SourceError, match=said):
        table(columns, **keys)


def test_a_file_that_is_no_table_is_one_line(tmp_path):
    """Of other bytes; a folder without a table."""
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"no parquet at all")
    for path, said in (
        ("t.parquet", "no parquet that can be read"),
        (".", "a folder without one"),
        ("u", "no such file"),
    ):
        (tmp_path / "t.parquet").rename(tmp_path / "t") if path == "." else None
        with pytest.raises(SourceError, match=said):
            load_data({"parquet": path}, tmp_path)
