"""The parts of two tokenizer.json compared, beside their tokens and merges, in the form that every version writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from lmccheck.beside.configs import names
from lmccheck.beside.difference import Difference, brief, first_leaf, same
from lmccheck.beside.vocabulary import FAST

ALL = "tokenizer"  # accepts whatever two tokenizers differ in
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")
ELSEWHERE = ("vocab", "merges", "dropout")  # of a model: compared elsewhere, or no part of what it does
BARE = (None, [{"Sequence": {"id": "A"}}])  # a template that puts nothing around a text


def differences(
    tables: tuple[Mapping[str, Any], Mapping[str, Any]], special: Sequence[Set[str]]
) -> Iterator[Difference]:
    """Yield the first difference of each part; ``special`` are the special tokens of each, which loading adds."""
    for part in (*PARTS, "model", "added_tokens"):
        if part == "added_tokens":
            one, other = (_flags(table.get(part)) for table in tables)
            for mine, theirs, known in ((one, other, special[0]), (other, one, special[1])):
                mine.update({token: {"special": True} for token in theirs.keys() - mine.keys() if token in known})
        else:
            one, other = (_plain(part, table.get(part)) for table in tables)
        if not same(one, other):
            place, *values, more = first_leaf(one, other, part)
            told = brief(values[0]), brief(values[1])
            yield Difference(FAST, place, told, (part, *names(place), ALL), more=more)


def _flags(listed: Any) -> dict[str, dict[str, bool]]:
    """Return the flags that are set of tokens that were added."""
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return {str(entry.get("content")): {flag: True for flag in FLAGS if entry.get(flag)} for entry in entries}


def _plain(part: str, value: Any) -> Any:
    """Return a part as every version would write it: nothing that is false, null or 0, one spelling of Metaspace."""
    if isinstance(value, list):
        return [_plain("", each) for each in value]
    if not isinstance(value, dict):
        return value
    left = ELSEWHERE if part == "model" else ()
    found = {key: _plain("", each) for key, each in value.items() if key not in left and each not in (None, False, 0)}
    match found.get("type"):
        case "Metaspace":
            before = "always" if value.get("add_prefix_space", True) else "never"
            old = {"prepend_scheme": before, "split": True}
            return old | {key: each for key, each in found.items() if key not in ("add_prefix_space", "str_rep")}
        case "ByteLevel":
            found = {"use_regex": True} | found if value.get("use_regex", True) else found
            return {key: each for key, each in found.items() if key != "trim_offsets"}
        case "TemplateProcessing" if found.get("single") in BARE and not found.get("special_tokens"):
            return None
    return found
