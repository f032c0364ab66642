"""Adapters on their bases: whether the base is the one that an adapter was trained on, and how adapters are scaled."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmccheck.beside.configs import differences
from lmccheck.beside.folder import Folder
from lmccheck.errors import CheckpointError, shown_path

BASE = ("base_model_name_or_path", "base_model", "base")  # what accepts another base
SCALES = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


def other_base(
    name: str, adapter: Path | None, trained_on: Any, base: Path | None, opened: Callable[[Path], Folder]
) -> tuple[str, bool]:
    """Return a line where an adapter was trained with another base than it is put on, and whether that is certain.

    It is where both lie on this disk; a name of a hub, or a path of another machine, may be that of any folder.
    """
    if not isinstance(trained_on, str) or not trained_on or base is None or adapter is None:
        return "", False
    said = f"{name} ({shown_path(adapter)}): was trained on {trained_on!r} and is put on {shown_path(base)}"
    path = Path(trained_on)
    if os.path.isdir(path):  # whose weights are compared where the adapter is opened
        try:
            first = next((each for each in differences(opened(path), opened(base))), None)
        except (CheckpointError, RecursionError):
            first = None
        if first is None:
            return "", False
        why = f"where {first.what} is {first.values[0]} and {first.values[1]}"
        return f'{said}, {why}; mend: name the base that it was trained on, or accept = ["{BASE[0]}"]', True
    before = (opened(base).config or {}).get("_name_or_path")
    known = {base.name, os.path.basename(os.path.realpath(base)), Path(before).name if isinstance(before, str) else ""}
    return ("", False) if path.name in known else (f"{said}, which cannot be compared", False)


def scales(adapters: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what adapters, by name, are scaled with, where that differs: factors of one are none of another."""
    told = {name: {key: facts.get(key) for key in SCALES if facts.get(key)} for name, facts in adapters.items()}
    if len({str(each) for each in told.values()}) > 1:
        yield "; ".join(f"{name} is an adapter of {_words(each)}" for name, each in list(told.items())[:4])


def _words(facts: Mapping[str, Any]) -> str:
    return ", ".join(key if value is True else f"{key} {value}" for key, value in facts.items()) or "its defaults"
