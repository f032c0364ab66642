"""Records of every kind of finding, and the page of them as a tree; one test in headless Chromium uses them as well."""

from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from lmccheck.report.formats import FORMATS, Run
from lmccheck.report.record import NOT_MEASURED, CheckRecord

MARKUP = "<script>document.title = 'mine'</script>\"'><img src=x onerror=alert(1)>"
ENDS = [{"name": "a", "loss": 0.1, "error": 0.02}, {"name": "b", "loss": 0.3, "error": None}]
RUN = Run(version="0.2.0", created="2026-01-02T03:04:05+00:00", exit_status=1)
VOID = {"meta", "link", "br", "img", "input", "hr"}


def record(name: str = "one", verdict: str = "fail", **facts: Any) -> CheckRecord:
    id = f"gates/lmc.toml::{name}::linear_connectivity"
    row = CheckRecord(
        id, "gates/lmc.toml", "0" * 64, name, "linear_connectivity", "linear_connectivity", "fail", verdict,
        verdict != "pass", value=0.5, limit=0.1, unit="nats", line=7, reproduce=f"pytest '{id}'",
    )  # fmt: skip
    return replace(row, **facts)


def line(losses: list[float], **more: Any) -> dict[str, Any]:
    t = [k / (len(losses) - 1) for k in range(len(losses))]
    known = {"errors": None, "naive_losses": None, "naive_errors": None, "ends": [0.1, 0.3], "highest": None}
    return {"kind": "line", "t": t, "losses": losses, **known, **more}


def path(count: int = 10, does: str = "go on") -> dict[str, Any]:
    segments = [
        {
            "number": k + 1, "kind": "abcd"[k % 4], "does": does, "loss_start": 0.1 + 0.01 * k,
            "loss_end": 0.11 + 0.01 * k, "max": 0.12 + 0.01 * k, "worst": 0.5,
            "known": "sampled" if k % 4 == 3 else "convex", "points": 0,
        }
        for k in range(count)
    ]  # fmt: skip
    return {"kind": "path", "segments": segments}


def matrix(count: int) -> dict[str, Any]:
    aligned = [[0.01 * abs(i - j) for j in range(count)] for i in range(count)]
    naive = [[1.0 * (i != j) for j in range(count)] for i in range(count)]
    names = [f"model-{k}" for k in range(count)]
    return {"names": names, "aligned": aligned, "naive": naive, "above": [names[:: count - 1]], "method": "merge-many"}


SPIKE = [0.1 + 0.2 * k / 1000 + 0.5 * math.exp(-(((k - 300) / 5) ** 2)) for k in range(1001)]
EXPLAINED = {
    "groups": [{"name": MARKUP, "kind": "units", "share": 0.7, "alone": 0.4}],
    "minimal_layers": ["fc1", MARKUP],
    "samples": {"half": 7, "of": 90, "classes": {MARKUP: 4, "3": 3}},
    "budget": "12 of at most 60 evaluations of the data",
}


def every_kind(name: str = "x") -> list[CheckRecord]:
    """Return one record of each kind, with names that are markup wherever a name may stand."""
    said = {key: [MARKUP] for key in ("what", "measured", "remarks", "where", "extremes", "endpoints", "why")}
    claim = {"claim": MARKUP, "quantifier": MARKUP, "certifies": MARKUP}
    files = {
        "files": {MARKUP: {"path": MARKUP, "sha256": "a" * 64, "parameters": 7, "dtype": "float32"}},
        "model": MARKUP,
    }
    words: dict[str, Any] = {
        "answers": said, "next": [MARKUP], "notes": [MARKUP], "settings": {MARKUP: MARKUP}, "witness": {MARKUP: MARKUP},
        "claim": claim, "pair_description": files, "known": MARKUP, "text": MARKUP, "reproduce": MARKUP,
    }  # fmt: skip
    spike = line(SPIKE, naive_losses=[30 * loss for loss in SPIKE], highest=0.8)
    row = {"parents": {MARKUP: 90.0, "math": 80.0}, "reference": MARKUP, "reference_value": 90.0, "bound": 88.0}
    tasks = {"kind": "tasks", "metric": "accuracy", "higher_is_better": True}
    bars = {"of": "level", "what": "ε", "beside_what": "without refit", "beside": {"a": [0.4] * 14, "b": [0.0] * 14}}
    costs = {"a": [0.3, *[0.01] * 13], "b": [None, *[math.inf] * 13]}
    draws = {"share": 0.25, "of": "mask", "attenuation": {"a": {MARKUP: 0.5}, "b": {MARKUP: 0.25}}}
    return [
        record(MARKUP, curve=spike, endpoints=ENDS, place={"t": 0.3}, interval=[0.4, 0.6], naive=12.0,
               explanation=EXPLAINED, baseline={"value": 0.05, "change": 0.45, "verdict": "worse"}, **words),
        record("nan", value=math.inf, curve=line([0.1, 0.2, math.nan, math.inf, 0.3]), place={"t": 0.75}),
        record("path", curve=path(40, MARKUP), endpoints=ENDS, place={"segment": "40d"}),
        record("bars", curve={"kind": "bars", "names": [MARKUP, *map(str, range(13))], "values": costs, **bars}),
        record("draws", "inconclusive", interval=[0.0, math.inf], value=0.02,
               curve={"kind": "draws", "values": {"a": [0.01, 0.02, math.inf], "b": [0.2] * 3}, **draws}),
        record("tasks", kind="merge", curve={**tasks, "rows": [{"name": MARKUP, "merge": 85.0, **row}] * 9}),
        record("set", kind="set", matrix=matrix(5), place={"pair": ["model-0", "model-4"], "t": 0.5}),
        record("large", "pass", kind="set", value=0.05, matrix=matrix(40)),
        record("error", "error", value=None, limit=None, text=MARKUP),
        record("lost", NOT_MEASURED, value=None, limit=None, text=MARKUP, notes=[MARKUP]),
        record("warns", severity="warn", blocking=False),
        record("shipped", value=3.0, limit=0.0, unit="differences", place={"tensor": MARKUP}),
    ]  # fmt: skip


def page(records: list[CheckRecord], run: Run = RUN) -> str:
    return FORMATS.get("html").render(records, run)


class Tree(HTMLParser):
    """Elements of a page in order as (tag, attributes, text), and whether every one that was opened was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append((tag, self.elements[-1][2]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self.open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data: str) -> None:
        for _, texts in self.open:
            texts.append(data)

    def all(self, tag: str, **wanted: str) -> list[tuple[dict[str, str | None], str]]:
        found = []
        for name, attributes, texts in self.elements:
            if name == tag and all(attributes.get(key.replace("_", "")) == value for key, value in wanted.items()):
                found.append((attributes, " ".join("".join(texts).split())))
        return found
