"""The command line ``lmccheck``: its parser, and what becomes of an error.

Nothing heavy is imported before it is needed: ``--help`` does not wait for torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lmccheck.cli import align, docs, doctor, history, init, merge, symmetry, triage
from lmccheck.cli.command import HELD, WRONG
from lmccheck.data.imports import running_in
from lmccheck.errors import LmcError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 fine, 1 a spec failed verification, 2 an error."""
    options = parser().parse_args(arguments)
    try:
        with running_in(Path.cwd()):
            status: int = options.run(options)
        sys.stdout.flush()
        return status
    except LmcError as error:
        print(f"lmccheck: {error}", file=sys.stderr)
        return WRONG
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return HELD


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(prog="lmccheck", description="Property tests for trained models.", allow_abbrev=False)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for each in (init, doctor, symmetry, align, merge, triage, history, docs):
        name = each.__name__.rpartition(".")[2]
        command = commands.add_parser(name, help=each.HELP, description=each.DESCRIPTION, allow_abbrev=False)
        each.add_arguments(command)
        command.set_defaults(run=each.run)
    return top
