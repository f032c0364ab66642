"""The text of a failure: six lines, from what failed to the command that shows it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from lmccheck.report.record import CheckRecord, number


def failure_text(record: CheckRecord, command: str) -> str:
    """Return what failed; measured against limit; where; worst and smallest; endpoint losses; how to reproduce.

    The property words the first five (``details["failure"]``), because only it knows what was searched; a property
    that does not is described by its numbers.
    """
    lines = [str(line) for line in record.details.get("failure", ())] or plain_lines(record)
    return "\n".join([*lines, f"reproduce: {command}"])


def plain_lines(record: CheckRecord) -> list[str]:
    """Return the facts of a record whose property words nothing itself."""
    unit = f" {record.unit}" if record.unit else ""
    lines = [
        f"{record.property}: {record.verdict} for {record.pair}",
        f"measured {number(record.value)}{unit}, limit {number(record.limit)}{unit}",
    ]
    if record.where:
        lines.append(f"worst at {record.where}")
    if record.naive is not None:
        lines.append(f"without alignment: {number(record.naive)}{unit}")
    losses = [record.details.get("loss_a"), record.details.get("loss_b")]
    if None not in losses:
        lines.append(f"endpoint losses: a {number(losses[0])}, b {number(losses[1])}")
    return lines


def reproduce_command(node: str, flags: Sequence[str]) -> str:
    """Return a shell command; ``node`` is ``path::pair::check`` relative to where the user typed the first one.

    >>> reproduce_command("my gates/lmc.toml::a-b::linear_connectivity", ["--lmc-seed=3"])
    "pytest 'my gates/lmc.toml::a-b::linear_connectivity' --lmc-seed=3"
    """
    quoted = shlex.quote(node)
    return " ".join(["pytest", quoted if quoted != node else f"'{node}'", *map(shlex.quote, flags)])
