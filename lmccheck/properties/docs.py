"""What is written about a property, made from its declaration: a row of the README's table, and a page."""

from __future__ import annotations

import inspect
import json
from typing import Any

from lmccheck.properties.registry import EMPTY, OF, PROPERTIES, UNSAID, Property

HEADER = "| property | claim | quantifier | what a pass certifies |\n|---|---|---|---|"


def row(declared: Property) -> str:
    """Return a property's row of the table."""
    return f"| `{declared.name}` | {declared.claim} | {declared.quantifier} | {declared.certifies} |"


def table() -> str:
    """Return the table of all properties, those of other packages too."""
    return "\n".join([HEADER, *map(row, PROPERTIES)])


def page(name: str) -> str:
    """Return a property's page as Markdown. Raises LmcError for an unknown name."""
    declared = PROPERTIES.get(name)
    parts = [
        f"# {declared.name}",
        f"A property of {', or of '.join(OF[kind] for kind in declared.of)}.",
        f"{HEADER}\n{row(declared)}",
        inspect.cleandoc(declared.function.__doc__ or "").replace("``", "`"),
        "## Settings",
        "\n".join(["| setting | expected | default |", "|---|---|---|", *_settings(declared)]),
        _in_manifests(declared),
    ]
    return "\n\n".join(parts) + "\n"


def _settings(declared: Property) -> list[str]:
    return [
        f"| `{name}` | {declared.expected[name].replace('|', chr(92) + '|')} | {_default(parameter.default)} |"
        for name, parameter in declared.parameters.items()
    ]


def _in_manifests(declared: Property) -> str:
    said = f"A manifest says all but {' and '.join(f'`{name}`' for name in UNSAID)}, which are those of the run"
    said += "".join(f"; `{name}` must be given" for name in declared.limits)
    said = (
        f'{said}. Every check may say `severity`, `"fail"` or `"warn"`, and `endpoints`: `"useful"`, by which nothing '
        'is concluded where an endpoint answers no better than a constant, or `"any"`, the default in Python: a note'
    )
    if "decide" in declared.parameters:
        return f"{said}."
    return (
        f'{said}; `decide`: `"data"`, or `"population"`, by which it passes or fails only where that holds for new '
        "data at `confidence` (0.95, asymptotically), and is inconclusive elsewhere."
    )


def _default(value: Any) -> str:
    if value is EMPTY:
        return "must be given"
    return "none" if value in (None, ()) else f"`{json.dumps(value)}`"
