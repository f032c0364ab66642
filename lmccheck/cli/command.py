"""What commands have in common, one file each; none imports anything heavy before it runs.

Each says its HELP and its DESCRIPTION, adds its arguments to its parser, and runs: ``main.py`` calls it by its file.
"""

from __future__ import annotations

import argparse

from lmccheck.errors import LmcError, nearest

HELD, BROKEN, WRONG = 0, 1, 2  # exit status


def count(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def table_format(name: str) -> str:
    """Return the name of a tabulate format. Raises LmcError for what is none."""
    from tabulate import tabulate_formats

    if name not in tabulate_formats:
        raise LmcError(f"--table: got {name!r}, expected a tabulate format{nearest(name, tabulate_formats)}")
    return name
