"""``lmccheck history``: what became of each check over the runs that were kept."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lmccheck.cli.command import HELD, count, table_format

HELP = "what became of each check over its runs?"
DESCRIPTION = (
    "Show the runs that pytest --lmc-models --lmc-history=FILE kept: a row per check, its values as a "
    "line from the oldest to the newest, the last one and the change since the first. Exit status: 0 fine, 2 an "
    "error."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("file", metavar="FILE", help="the file that --lmc-history named")
    command.add_argument("name", metavar="NAME", nargs="?", default="", help="only checks whose name holds this")
    command.add_argument("--last", metavar="N", type=count, default=40, help="runs that are shown (default: 40)")
    command.add_argument("--table", metavar="FMT", default="simple", help="any tabulate format (default: simple)")


def run(options: argparse.Namespace) -> int:
    """Print the table, in characters that the terminal has."""
    from lmccheck.report.history import BARS, history_table, read_history

    fmt = table_format(options.table)
    checks = read_history(Path(options.file), options.name, options.last)
    encoding = sys.stdout.encoding or "ascii"
    text = history_table(checks, fmt, plain=not encodable(BARS, encoding))
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return HELD


def encodable(text: str, encoding: str) -> bool:
    """Whether an encoding has all characters of a text.

    >>> encodable("▁█", "utf-8"), encodable("▁█", "ascii"), encodable("a", "no such encoding")
    (True, False, False)
    """
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
