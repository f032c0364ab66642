"""The text of a failure: from what failed to what may help, and the command that shows it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from lmccheck.explain import next_lines
from lmccheck.report.record import CheckRecord


def failure_text(record: CheckRecord) -> str:
    """Return what failed, as the record says it (a line each), what may help, and how to reproduce it."""
    return "\n".join([*record.failure, *next_lines(record.next), f"reproduce: {record.reproduce}"])


def reproduce_command(node: str, flags: Sequence[str]) -> str:
    """Return a shell command; ``node`` is ``path::pair::check`` relative to where the user typed the first one.

    >>> reproduce_command("my gates/lmc.toml::a-b::linear_connectivity", ["--lmc-seed=3"])
    "pytest 'my gates/lmc.toml::a-b::linear_connectivity' --lmc-seed=3"
    """
    quoted = shlex.quote(node)
    return " ".join(["pytest", quoted if quoted != node else f"'{node}'", *map(shlex.quote, flags)])
