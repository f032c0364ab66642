"""Libraries that only some need: without one, one line with the command that installs it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from networks.tokens import LINES, write_rows, write_tokenizer

from lmccheck.data.extras import extra
from lmccheck.data.load import load_data
from lmccheck.errors import SourceError


@pytest.fixture
def without(monkeypatch):
    """Take a library away."""

    def without(*names: str) -> None:
        for name in names:
            for known in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
                monkeypatch.delitem(sys.modules, known)
            monkeypatch.setitem(sys.modules, name, None)

    return without


def test_a_library_that_is_not_there_is_one_line(without):
    """What needs it, and the extra that has it."""
    without("lm_eval")
    with pytest.raises(SourceError) as caught:
        extra("lm_eval.tasks", "eval", "metric x")
    assert str(caught.value) == ('metric x: needs lm_eval, which is not installed; mend: pip install "lmccheck[eval]"')


def test_text_needs_a_tokenizer_library_and_no_more(without, tmp_path: Path):
    """Without transformers a tokenizer.json is read by the library tokenizers; without both there is a line."""
    pytest.importorskip("tokenizers")
    write_tokenizer(tmp_path / "tok")
    write_rows(tmp_path / "t.jsonl", [{"text": line} for line in LINES])
    spec = {"jsonl": "t.jsonl", "tokenizer": "tok"}
    without("transformers")
    tokens = load_data(spec, tmp_path).batches[0].inputs["input_ids"]
    assert tokens.shape == (4, 7)
    without("tokenizers")
    with pytest.raises(
        SourceError, match=r'needs tokenizers, which is not installed; mend: pip install "lmccheck\[hf\]"'
    ):
        load_data(spec, tmp_path)
    (tmp_path / "tok" / "tokenizer.json").rename(tmp_path / "tok" / "vocab.json")
    with pytest.raises(SourceError, match=r"needs transformers, which is not installed"):
        load_data(spec, tmp_path)


@pytest.mark.parametrize(("form", "library"), [("images", "PIL"), ("parquet", "pyarrow")])
def test_images_and_tables_need_the_extra_data(without, tmp_path: Path, form: str, library: str):
    """Nothing else does."""
    for name in ("a", "b"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "1.png").write_bytes(b"x")
    (tmp_path / "t.parquet").write_bytes(b"x")
    without(library)
    with pytest.raises(
        SourceError, match=rf'needs {library}, which is not installed; mend: pip install "lmccheck\[data\]"'
    ):
        load_data({form: {"images": "val", "parquet": "t.parquet"}[form]}, tmp_path)
