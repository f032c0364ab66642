"""A baseline: what checks measured when somebody last looked, and what is measured now beside it; no torch here.

A file of JSON, a line per check, sorted, so that a diff of it is read as one. A check is called by its manifest's path
relative to that file, its pair and its name, from wherever pytest is run.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lmccheck.errors import LmcError, nearest, shown_path
from lmccheck.explain import number
from lmccheck.report.record import CheckRecord, finite, plain

SCHEMA_VERSION = 1
EXPECTED = "a baseline, as --lmc-update-baseline writes it"
EXACT = 1e-6  # what two runs of an exact measurement may differ by, of 1 or of the value where that is larger
DEFINE = (  # what two measurements must have in common to be compared, and what that is called
    ("property", "property"), ("settings", "settings"), ("profile", "profile"), ("seed", "seed"),
    ("device", "device"), ("data", "data"), ("calibration", "calibration data"), ("loss", "loss"), ("unit", "unit"),
)  # fmt: skip
TOLD = ("files", "beside", "model", "recipe", "torch")  # what may have changed, and is then said of a regression
DIGITS = 16  # of a hash of what is no checkpoint
Entry = Mapping[str, Any]


def read_baseline(path: Path) -> dict[str, Entry]:
    """Return the entries of a file by their names. Raises LmcError with one line for what is no baseline."""
    what = f"baseline {shown_path(path)}"
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text, object_pairs_hook=_once, parse_constant=_never_written, parse_float=_finite)
    except FileNotFoundError:
        raise LmcError(f"{what}: no such file; mend: --lmc-update-baseline makes it") from None
    except OSError as error:
        raise LmcError(f"{what}: cannot be read: {error.strerror or error}; mend: name the right file") from None
    except (ValueError, RecursionError) as error:
        raise LmcError(f"{what}: {error}; expected {EXPECTED}; mend: restore it from version control") from None
    if not isinstance(document, dict) or not isinstance(document.get("checks"), dict):
        raise LmcError(f"{what}: has no table 'checks'; expected {EXPECTED}; mend: name the right file")
    if (version := document.get("schema_version")) != SCHEMA_VERSION:
        raise LmcError(
            f"{what}: schema_version = {version!r}, expected {SCHEMA_VERSION}; mend: read it with the "
            "lmccheck that wrote it"
        )
    entries: dict[str, Entry] = document["checks"]
    for key, entry in entries.items():
        if problem := _problem(entry):
            raise LmcError(f"{what}: {key}: {problem}; mend: restore it, or write it again with --lmc-update-baseline")
    return entries


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a table; raise ValueError where a name stands twice, as after two branches that both added it."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return table


def _never_written(constant: str) -> Any:
    """Raise ValueError for what JSON has no word for: what is no number is a text in a baseline."""
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    """Return a number; raise ValueError where it is too large for one, and would hide whatever is measured now."""
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is too large for a number")
    return number


def _problem(entry: Any) -> str:
    """Return what is wrong with an entry; empty where nothing is."""
    if not isinstance(entry, dict):
        return f"got {type(entry).__name__}, expected a table"
    known = ("value", "interval", *(name for name, _ in DEFINE), *TOLD)
    if extra := next((key for key in entry if key not in known), None):
        return f"unknown key {extra!r}{nearest(extra, known)}"
    if lacking := next((key for key in known if key not in entry), None):
        return f"key {lacking!r} is missing"
    if _figure(entry["value"]) is None:
        return f"value = {entry['value']!r}, expected a number"
    interval = entry["interval"]
    ends = [end for end in map(_figure, interval) if end is not None] if isinstance(interval, list) else []
    if interval is not None and not (isinstance(interval, list) and len(interval) == len(ends) == 2):
        return f"interval = {interval!r}, expected two numbers or null"
    if ends and ends[0] > ends[1]:
        return f"interval = {interval!r}, expected the lower end first"
    tables = ("settings", "files", "beside", "recipe")
    return next((f"{key} = {entry[key]!r}, expected a table" for key in tables if not isinstance(entry[key], dict)), "")


def _figure(value: Any) -> float | None:
    """Return a number as it was measured; JSON has texts for what is none."""
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    return float(value) if not isinstance(value, str) or value in ("nan", "inf", "-inf") else None


def baseline_text(entries: Mapping[str, Entry]) -> str:
    """Return the file that holds these entries, a line each, sorted."""
    lines = [
        f"    {json.dumps(key, ensure_ascii=False)}: {json.dumps(finite(plain(entries[key])), **_STYLE)}"
        for key in sorted(entries)
    ]
    checks = "{\n" + ",\n".join(lines) + "\n  }" if lines else "{}"
    return f'{{\n  "schema_version": {SCHEMA_VERSION},\n  "checks": {checks}\n}}\n'


_STYLE: dict[str, Any] = {"sort_keys": True, "ensure_ascii": False, "allow_nan": False}


def key_of(manifest: Path, names: Iterable[str], baseline: Path) -> str:
    """Return what a check is called in a baseline, wherever pytest was started.

    >>> key_of(Path("/p/gates/lmc.toml"), ["a-b", "linear_connectivity"], Path("/p/baseline.json"))
    'gates/lmc.toml::a-b::linear_connectivity'
    """
    return "::".join([_below(manifest, baseline), *names])


def _below(path: str | os.PathLike[str], baseline: Path) -> str:
    return Path(os.path.relpath(path, baseline.parent)).as_posix()


def entry_of(record: CheckRecord, *, seed: int, limits: Collection[str], baseline: Path) -> dict[str, Any]:
    """Return what a baseline keeps of a measured record: the value, and what a later one must agree in to be compared.

    ``seed`` is the run's, ``limits`` are the settings that limit the value: they say what is wanted, not what is
    measured, and are left out.
    """
    described = record.pair_description
    data: dict[str, Any] = {key: _content(described.get(key)) for key in ("data", "calibration")}
    several = record.details.get("data") if record.kind == "merge" else None
    if isinstance(several, Mapping) and several:  # a merge is measured on more data than its own
        data["data"] = {name: _content(found) for name, found in several.items()}
    of_checkpoints = {str(sha256) for facts in described.get("files", {}).values() for sha256 in _hashes(facts)}
    of_data = {sha256 for key in data for sha256 in _hashes(described.get(key) or {})}
    beside = {
        _below(each["path"], baseline): each["sha256"][:DIGITS]
        for each in described.get("inputs", ())
        if each["sha256"] not in of_checkpoints | of_data
    }
    device = str(described.get("device", "")).partition(":")[0]
    entry = {
        "value": record.value,
        "interval": record.interval,
        "property": record.property,
        "settings": {name: value for name, value in record.settings.items() if name not in {*limits, "endpoints"}},
        "profile": record.profile,
        "seed": seed,
        "device": ": ".join(filter(None, [device, record.environment.get("gpu", "")])),
        "data": data["data"],
        "calibration": data["calibration"],
        "loss": described.get("loss"),
        "unit": record.unit,
        "files": {name: facts.get("sha256") for name, facts in described.get("files", {}).items()},
        "beside": beside,
        "model": described.get("model"),
        "recipe": described.get("recipe") or {},
        "torch": record.environment.get("torch"),
    }
    return dict(finite(plain(entry)))


def _content(facts: Any) -> str | None:
    """Return what tells data from others: their content; of what was not loaded here, what there is."""
    if not isinstance(facts, Mapping):
        return None if facts is None else str(facts)
    return str(facts.get("content") or facts.get("sha256") or facts.get("origin"))


def _hashes(facts: Mapping[str, Any]) -> list[str]:
    if not isinstance(facts, Mapping):
        return []
    several = facts.get("files")
    return [facts.get("sha256", ""), *(several.values() if isinstance(several, Mapping) else ())]


def compared(stored: Entry | None, now: Entry) -> dict[str, Any]:
    """Return a measurement beside the stored one, as reports show it; plain data.

    ``verdict``: "same", "better", "worse", "missing" or "refused" (where they are not of one kind: ``why`` says how
    they differ). ``change`` is now − before; more than ``tolerance``, in either direction, is not the same. That is
    1e-6 (of the value where that is above 1), and where both have an interval half the width of the narrower one: a
    stored interval that is wider than what is measured now excuses nothing by that.
    ``changed`` is what else differs, a clause each.
    """
    if stored is None:
        return {"verdict": "missing", "value": None, "interval": None, "change": None, "tolerance": None}
    before, after = float(stored["value"]), float(now["value"])
    found = {"value": stored["value"], "interval": stored["interval"], "change": None, "tolerance": None}
    if why := [_differs(name, stored[key], now[key]) for key, name in DEFINE if stored[key] != now[key]]:
        return {**found, "verdict": "refused", "why": why}
    width = 0.0
    if stored["interval"] is not None and now["interval"] is None:
        why = [f"an interval is stored ({_shown(stored['interval'])}), and what is measured now has none"]
        return {**found, "verdict": "refused", "why": why}
    if stored["interval"] is not None:
        low, high = (float(end) for end in stored["interval"])
        width = min(high - low, _width(now["interval"])) / 2 if math.isfinite(high - low) else math.inf
    if not math.isfinite(width):
        why = [f"the stored interval [{number(low)}, {number(high)}] bounds nothing"]
        return {**found, "verdict": "refused", "why": why}
    tolerance = EXACT * max(1.0, abs(before) if math.isfinite(before) else 1.0) + width
    change = after - before
    worse = change > tolerance or (math.isnan(after) and not math.isnan(before))
    better = change < -tolerance or (math.isnan(before) and not math.isnan(after))
    changed = [clause for key in TOLD for clause in _changes(key, stored[key], now[key])]
    verdict = "worse" if worse else "better" if better else "same"
    return {**finite({**found, "change": change, "tolerance": tolerance}), "verdict": verdict, "changed": changed}


def _width(interval: Any) -> float:
    low, high = (float(end) for end in interval)
    return high - low if low <= high else math.inf


def _differs(name: str, before: Any, now: Any) -> str:
    """Return how two measurements differ in what they must have in common."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        told = [[_shown(found[key]) if key in found else "left out" for found in (before, now)] for key in keys[:2]]
        shown = [f"{key}: {was} before, {became} now" for key, (was, became) in zip(keys, told, strict=False)]
        return f"other {name} ({'; '.join(shown)}{'; …' if len(keys) > 2 else ''})"
    return f"other {name} ({_shown(before)} before, {_shown(now)} now)"


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _changes(key: str, before: Any, now: Any) -> list[str]:
    """Return what changed beside the value: files by name, anything else as it was and is."""
    if key not in ("files", "beside"):
        return [f"{key}: {_shown(before)} → {_shown(now)}"] if before != now else []
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return [f"{name} {str(before.get(name))[:8]} → {str(now.get(name))[:8]}" for name in names]


def updated(stored: Mapping[str, Entry], measured: Mapping[str, Entry], stale: Iterable[str]) -> dict[str, Entry]:
    """Return the entries after an update: what was measured replaces what was stored, and stale entries go.

    Where nothing changed but within the tolerance, the stored entry stays as it is: a diff shows what somebody must
    look at, and many small steps cannot add up unseen.
    """
    gone = set(stale)
    entries = {key: entry for key, entry in stored.items() if key not in gone}
    for key, entry in measured.items():
        found = compared(stored.get(key), entry)
        if found["verdict"] != "same" or [c for c in found["changed"] if not c.startswith("torch: ")]:
            entries[key] = entry
    return entries
