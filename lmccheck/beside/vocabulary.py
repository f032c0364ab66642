"""Tokens and their ids as files list them: tokenizer.json, vocab.json, vocab.txt or a SentencePiece model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lmccheck.beside.folder import Folder
from lmccheck.errors import CheckpointError, shown_path

FAST, ADDED, SETTINGS = "tokenizer.json", "added_tokens.json", "tokenizer_config.json"
PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "source.spm", "target.spm")
MOST_ID = 2**31
OTHERS = ("tekken.json", "tokenizer.tiktoken", "qwen.tiktoken", "bpe.codes", "vocab.bpe", "encoder.json", "dict.txt")


@dataclass(frozen=True)
class Vocabulary:
    """``ids`` by token, those added included; ``scores`` of a unigram model; ``file`` that lists them.

    ``added`` are the entries of what was added to the model's own, as tokenizer.json has them; ``beside`` names the
    file of those that another lists.
    """

    file: str
    ids: dict[str, int]
    scores: list[Any] = field(default_factory=list)
    added: list[dict[str, Any]] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)

    @property
    def largest(self) -> tuple[str, int]:
        """The token of the highest id, and that id."""
        return max(self.ids.items(), key=lambda item: item[1])

    def file_of(self, token: str | None) -> str:
        """Return the file that lists a token."""
        return self.beside.get(token or "", self.file)

    def tokens(self) -> dict[int, str]:
        """Return the token of each id."""
        return {place: token for token, place in self.ids.items()}


def vocabulary_of(folder: Folder) -> Vocabulary | None:
    """Return the tokens of a folder, None where no file lists them. Raises CheckpointError for one that is damaged."""
    if (table := folder.table(FAST)) is not None:
        model = table.get("model")
        listed = model.get("vocab") if isinstance(model, dict) else None
        ids, scores = _listed(listed, folder, FAST)
        return _fast(table, ids, scores, folder)
    if (listed := folder.table("vocab.json")) is not None:
        return Vocabulary("vocab.json", _checked(listed, folder, "vocab.json") | _added_elsewhere(folder))
    if (text := folder.text("vocab.txt")) is not None:
        lines = text.removesuffix("\n").split("\n") if text else []
        ids = {line.removesuffix("\r"): place for place, line in enumerate(lines)}
        return Vocabulary("vocab.txt", ids | _added_elsewhere(folder))
    for name in PIECES:
        if (raw := folder.raw(name)) is not None:
            try:
                pieces = list(_pieces(raw))
                ids = {piece: place for place, (piece, _, _) in enumerate(pieces)}
            except (ValueError, IndexError):
                raise damaged(folder, name, "bytes that are no SentencePiece model", "such a model") from None
            return Vocabulary(name, ids | _added_elsewhere(folder), [piece[1:] for piece in pieces])
    return None


def damaged(folder: Folder, name: str, got: str, expected: str) -> CheckpointError:
    """Return the error of a file that is not what its name says."""
    return CheckpointError(
        f"{shown_path(folder.path / name)}: got {got}, expected {expected}; mend: save the tokenizer again"
    )


def _listed(listed: Any, folder: Folder, name: str) -> tuple[dict[str, int], list[Any]]:
    """Return ids by token, and scores, of a table of ids or a list of tokens, each perhaps with its score."""
    if isinstance(listed, dict):
        return _checked(listed, folder, name), []
    if isinstance(listed, list):
        entries = [entry if isinstance(entry, list) else [entry] for entry in listed]
        if all(entry and isinstance(entry[0], str) for entry in entries):
            return {entry[0]: place for place, entry in enumerate(entries)}, [entry[1:] for entry in entries]
    raise damaged(folder, name, "a model without a vocabulary", "one that lists tokens and their ids")


def _checked(listed: dict[str, Any], folder: Folder, name: str) -> dict[str, int]:
    if not set(map(type, listed.values())) <= {int} or (
        listed and not 0 <= min(listed.values()) <= max(listed.values()) < MOST_ID
    ):
        token, wrong = next((t, n) for t, n in listed.items() if type(n) is not int or not 0 <= n < MOST_ID)
        raise damaged(folder, name, f"the id {str(wrong)[:40]!r} of token {token[:40]!r}", "whole numbers from 0")
    return listed


def _added(listed: Any, folder: Folder) -> Iterator[tuple[str, int]]:
    """Yield the tokens that were added to a model's own."""
    for entry in listed if isinstance(listed, list) else []:
        token, place = (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(token, str) or type(place) is not int or not 0 <= place < MOST_ID:
            raise damaged(folder, FAST, "an entry of added_tokens without content and id", "both")
        yield token, place


def _fast(table: dict[str, Any], ids: dict[str, int], scores: list[Any], folder: Folder) -> Vocabulary:
    """Return the tokens that a tokenizer.json has once it is loaded, those of the files beside it added to its own.

    Those that it has keep their ids, whatever is stated; others get the next ones, in the order of the stated.
    """
    own = dict(_added(table.get("added_tokens"), folder))
    ids, count = ids | own, len(ids)
    entries = {entry["content"]: entry for entry in table["added_tokens"]} if own else {}
    file, stated = added_beside(folder)
    beside: dict[str, str] = {}
    for place, entry in sorted(stated.items()):
        token = entry["content"]
        if file == ADDED and (place in own.values() or token in entries):
            continue  # it is read before tokenizer.json is
        if token not in ids:
            ids[token] = max([count - 1, *own.values()]) + 1
            beside[token] = file
        if token not in entries:
            beside[token] = file
        own[token] = ids[token]
        entries[token] = {"normalized": not entry.get("special"), **entry, "id": ids[token]}
    return Vocabulary(FAST, ids, scores, list(entries.values()), beside)


def added_beside(folder: Folder) -> tuple[str, dict[int, dict[str, Any]]]:
    """Return the file beside a vocabulary that lists tokens to add, and their entries by the ids stated.

    As transformers reads them: added_tokens.json only where tokenizer_config.json has no ``added_tokens_decoder``.
    """
    stated = (folder.table(SETTINGS) or {}).get("added_tokens_decoder")
    if not isinstance(stated, dict):
        listed = _checked(folder.table(ADDED) or {}, folder, ADDED)
        return ADDED, {place: {"content": token} for token, place in listed.items()}
    return SETTINGS, {
        int(place): entry
        for place, entry in stated.items()
        if place.isdecimal() and len(place) < 10 and isinstance(entry, dict) and isinstance(entry.get("content"), str)
    }


def _added_elsewhere(folder: Folder) -> dict[str, int]:
    """Return tokens that were added, of a folder without tokenizer.json."""
    return {entry["content"]: place for place, entry in added_beside(folder)[1].items()}


def _pieces(raw: bytes) -> Iterator[tuple[str, bytes, int]]:
    """Yield (token, bytes of its score, kind) of a SentencePiece model: field 1 of its protocol buffer, repeated.

    Raises ValueError or IndexError for what is none.
    """
    for number, value in _fields(raw):
        if number == 1 and isinstance(value, bytes):
            piece, score, kind = "", b"", 1
            for inner, part in _fields(value):
                if inner == 1 and isinstance(part, bytes):
                    piece = part.decode("utf-8")
                elif inner == 2 and isinstance(part, bytes):
                    score = part
                elif inner == 3 and isinstance(part, int):
                    kind = part
            yield piece, score, kind


def _fields(raw: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield (number, value) of a protocol buffer: whole numbers, and all else as bytes."""
    at = 0
    while at < len(raw):
        key, at = _whole(raw, at)
        if key & 7 == 0:
            number, at = _whole(raw, at)
            yield key >> 3, number
            continue
        if key & 7 == 2:
            size, at = _whole(raw, at)
        else:
            size = {1: 8, 5: 4}.get(key & 7, -1)
        if size < 0 or at + size > len(raw):
            raise ValueError(f"a field of {size} bytes at {at}")
        yield key >> 3, raw[at : at + size]
        at += size


def _whole(raw: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and where what follows begins."""
    value = raw[at]
    at += 1
    if value < 128:
        return value, at
    value &= 127
    for shift in range(7, 70, 7):
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"a number of more than 64 bits at {at}")
