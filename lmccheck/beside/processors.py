"""What is done to images and sound before a network sees them, compared: preprocessor_config.json and its like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lmccheck.beside.configs import empty, names
from lmccheck.beside.difference import MISSING, Difference, brief, first_leaf, same
from lmccheck.beside.folder import Folder

FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
ALL = "preprocessor"
HARMLESS_KEYS = """
image_processor_type feature_extractor_type processor_class video_processor_type auto_map _valid_processor_keys
_processor_class tokenizer_class return_tensors disable_grouping input_data_format device chat_template backend
"""
HARMLESS = frozenset(HARMLESS_KEYS.split())
DEFAULTS: dict[str, Any] = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_convert_rgb": True,
    "data_format": "channels_first",
    "padding_side": "right",
}
WITHIN = ("image_processor", "feature_extractor")  # tables of a processor_config.json that other versions give files


def differences(a: Folder, b: Folder) -> Iterator[Difference]:
    """Yield what two folders do differently to their inputs; where only one says something, that is one difference."""
    mine, theirs = _stated(a), _stated(b)
    for file in [*mine, *(file for file in theirs if file not in mine)]:
        one, other = mine.get(file), theirs.get(file)
        if one is None or other is None:
            there = ["there" if end is not None else "not" for end in (one, other)]
            yield Difference(file, "it", (there[0], there[1]), (ALL,))
            continue
        for key in [*one, *(key for key in other if key not in one)]:
            if key in HARMLESS:
                continue
            ends = [_one_form(key, end.get(key, DEFAULTS.get(key))) for end in (one, other)]
            if not same(*ends) and not all(map(empty, ends)):
                place, *values, more = first_leaf(one.get(key, MISSING), other.get(key, MISSING), key)
                told = brief(values[0]), brief(values[1])
                yield Difference(file, place, told, (*names(place), ALL), more=more)


def _stated(folder: Folder) -> dict[str, Mapping[str, Any]]:
    """Return what each of a folder's files says; tables within the newer file take the older one's place, as they are
    read first.
    """
    found: dict[str, Mapping[str, Any]] = {name: table for name in FILES if (table := folder.table(name)) is not None}
    newer = dict(found.pop(FILES[2], {}))
    within = [inner for key in WITHIN if isinstance(inner := newer.pop(key, None), dict)]
    if within:
        found[FILES[0]] = {key: value for inner in reversed(within) for key, value in inner.items()}
    if isinstance(inner := newer.pop("video_processor", None), dict):
        found[FILES[1]] = inner
    return found | ({FILES[2]: newer} if any(key not in HARMLESS for key in newer) else {})


def _one_form(key: str, value: Any) -> Any:
    """Return a size as a table, as newer versions write it."""
    if key in ("size", "crop_size") and isinstance(value, int):
        return {"height": value, "width": value}
    return value
