"""300 damaged manifests: a plan that says what TOML says, or lines that a person can act on."""

from __future__ import annotations

import math
import random
import re
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hostile import NAMES, bytes_changed, nested, outcome, values

from lmccheck.errors import ManifestError
from lmccheck.manifest.plan import Plan
from lmccheck.manifest.preflight import problems
from lmccheck.manifest.read import load_manifest
from lmccheck.store.documents import toml_value

COUNT, ROUNDS = 300, 6
BASE: dict[str, Any] = {
    "schema": 1,
    "defaults": {"model": "models:mlp", "data": "data.safetensors", "loss": "cross_entropy"},
    "pair": {
        "one": {
            "a": "a.safetensors",
            "b": "b.safetensors",
            "sha256": {"a": "0" * 64, "b": "F" * 64},
            "calibration": "models:batches",
            "check": {
                "linear_connectivity": {"align": "best", "limit": 0.05, "points": 25},
                "dropout_stability": {"epsilon": 0.1, "keep": 0.5},
                "path": {"property": "ten_segment_path", "epsilon": "5%", "severity": "warn"},
            },
        },
        "two": {
            "a": "c.safetensors",
            "b": "d.safetensors",
            "model_b": "models:wide",
            "check": {"fused_connectivity": {"limit": 1}},
        },
    },
    "model": {
        "single": {
            "checkpoint": "a.safetensors",
            "sha256": "F" * 64,
            "check": {"noise_stability": {"epsilon": "5%", "p": 0.1}},
        },
    },
    "set": {
        "three": {
            "models": ["a.safetensors", "b.safetensors", "c.safetensors"],
            "check": {"set_connectivity": {"limit": 1.0}},
        }
    },
}
ODD = [
    "0x" + "f" * 9000, "1e999", "-inf", "nan", "1_000", "0b11", "1979-05-27T07:32:00Z", "'''\n'''",
    '"\\u0000"', '"\\U0010FFFF"', '"' + "x" * 40_000 + '"', '"a.safetensors\\u0000"',
    "[" * 300 + "]" * 300, "{a={a={a=1}}}", "9" * 400, "true", '""', "[]", "{}", '"%"', '"1e5%"', '"-1%"',
    '"/dev/zero"', '"/dev/zero.safetensors"', '"' + "../" * 500 + 'x.safetensors"', '"\\u001b[31m.safetensors"',
]  # fmt: skip


class Raw(str):
    """A value as TOML has it."""


def text_of(value: Any) -> str:
    """Return a value as TOML, all of it inline."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_value(key)} = {text_of(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(text_of, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return "false" if value is None else toml_value(value)


def written(document: dict[str, Any], rng: random.Random) -> str:
    """Return a document as people write it, with a header for each pair."""
    lines = []
    for key, value in document.items():
        if key in ("pair", "model", "set") and isinstance(value, dict) and rng.random() < 0.8:
            for name, table in value.items():
                if isinstance(table, dict):
                    lines.append(f"[{key}.{toml_value(name)}]")
                    lines += [f"{toml_value(part)} = {text_of(content)}" for part, content in table.items()]
        elif isinstance(value, dict) and rng.random() < 0.5:
            lines += [f"{key}.{toml_value(part)} = {text_of(content)}" for part, content in value.items()]
        else:
            lines.insert(0, f"{toml_value(key)} = {text_of(value)}")
    tops = [line for line in lines if line.split(" = ")[0].strip('"') in BASE or "." in line.split(" = ")[0]]
    return "\n".join([*(line for line in lines if line not in tops), *tops]) if rng.random() < 0.1 else "\n".join(lines)


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    return list(map(copied, value)) if isinstance(value, list) else value


def damaged(rng: random.Random) -> bytes:
    """Return a manifest after a few damages of what it says, or of its bytes."""
    document = copied(BASE)
    for _ in range(rng.choice([0, 1, 1, 2])):
        table = document
        while rng.random() < 0.8 and (inner := [part for part in table.values() if isinstance(part, dict) and part]):
            table = rng.choice(inner)
        key = rng.choice(list(table))
        kind = rng.randrange(5)
        if kind == 0:
            table[rng.choice([*NAMES, "limit", "data", "a" * 300])] = table.pop(key)
        elif kind == 1:
            table.pop(key)
            if not table:
                table["a"] = 1
        elif kind == 2:
            table[rng.choice([*NAMES, "sha256", "model_b", "by"])] = values(rng)
        elif kind == 3:
            table[key] = values(rng)
        else:
            table[key] = Raw(rng.choice(ODD))
    text = written(document, rng)
    content = text.encode("utf-8", "surrogatepass")
    kind = rng.randrange(10)
    if kind == 0:
        content = bytes_changed(rng, content)
    elif kind == 1:
        content = rng.choice(
            [b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"), text.encode("utf-16", "replace")]
        )
    elif kind == 2:
        content += rng.choice(
            [
                b"\n" + b"k." * 20_000 + b"k = 1",
                b"\nk = " + b"[" * 5000,
                b"\nk = " + b"{k=" * 5000,
                b"\0",
                b"\n[pair.one]\n",
                b"\r",
            ]
        )
    return content


def by_toml(content: bytes) -> dict[str, Any] | None:
    """Return what Python's own reader reads, or None."""
    if b"k." * 200 in content:
        return None  # it would be at it for minutes
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def sound(plan: Plan, document: dict[str, Any], what: str) -> None:
    """Look at a plan that was accepted: it says what the document does, within what may be said."""
    assert {pair.name for pair in plan.pairs} == set(document.get("pair", {})), what
    assert {one.name for one in plan.models} == set(document.get("model", {})), what
    assert {each.name for each in plan.sets} == set(document.get("set", {})), what
    for item in plan.comparisons:
        said = document[item.kind][item.name]
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,120}", item.name), what
        assert item.name not in (".", "..", "manifest"), what
        assert all(re.fullmatch("[0-9a-f]{64}", pin) for pin in item.pins.values()), what
        named = said["models"] if item.kind == "set" else [said[key] for key in item.files]
        assert list(item.files.values()) == named, what
        assert {check.name for check in item.checks} == set(said["check"]), what
        for check in item.checks:
            for key, value in check.settings.items():
                if isinstance(value, (int, float)):
                    assert math.isfinite(value), f"{what}: {key}"
                    assert value >= 0, f"{what}: {key}"
                    assert value == type(value)(said["check"][check.name][key]), f"{what}: {key}"


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_damaged_manifests(tmp_path: Path, seed: int) -> None:
    """No traceback, no wait; accepted is only what TOML reads too, and names only files that can be asked for."""
    rng, path = random.Random(1000 + seed), tmp_path / "lmc.toml"
    for number in range(COUNT // ROUNDS):
        what = f"seed {seed}, manifest {number}"
        content = damaged(rng)
        path.write_bytes(content)
        plan, _ = outcome(what, lambda: load_manifest(path), ManifestError)
        document = by_toml(content)
        if plan is not None:
            assert document is not None, f"{what}: accepted what is no TOML"
            sound(plan, document, what)
            found, _ = outcome(what, partial(problems, plan), ManifestError)
            assert found, what  # none of its files is there
            assert all(line.isprintable() and len(line) <= 500 for line in found), what


def test_some_are_accepted(tmp_path: Path) -> None:
    """The damages leave something to accept: at least a sixth, and at most two thirds."""
    path, accepted = tmp_path / "lmc.toml", 0
    for seed in range(ROUNDS):
        rng = random.Random(1000 + seed)
        for _ in range(COUNT // ROUNDS):
            path.write_bytes(damaged(rng))
            accepted += outcome("", lambda: load_manifest(path), ManifestError)[0] is not None
    assert COUNT // 6 <= accepted <= 2 * COUNT // 3


def test_nested_values_are_nested() -> None:
    """What the fuzzers build is as deep as they say."""
    assert nested(3) == [[[1]]]
