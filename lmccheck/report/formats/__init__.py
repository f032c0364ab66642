"""The formats of a report, one file each: records of checks and what is known of the run in, text out; no torch here.

A file of this package adds its format to ``FORMATS`` and is found by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmccheck.errors import SourceError
from lmccheck.registry import Registry

if TYPE_CHECKING:
    from lmccheck.report.record import CheckRecord


@dataclass(frozen=True)
class Run:
    """What is known of a run beside its records.

    ``errors``: one ``{"id": …, "message": …}`` per manifest that could not be collected. ``created``: date and time.
    ``environment``: what the run was given. ``finished``: False in what is written at the start of a run, for the case
    that it is killed; there is no ``exit_status`` then. ``root``: the folder that paths in JSON are relative to.
    ``table`` and ``width``: how tables are drawn on the terminal. ``most``: bytes that a page has room for.
    """

    errors: Sequence[Mapping[str, str]] = ()
    report_only: bool = False
    version: str = ""
    created: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    exit_status: int | None = 0
    finished: bool = True
    root: str = ""
    table: str = "simple"
    most: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Format:
    """A format: ``render`` makes its text of all records. ``name`` ends its option, ``--lmc-report-NAME=PATH``, where
    ``option`` says no other. ``known``: whether a file that begins with such bytes (500 of them) is one of its reports.

    ``title`` is what the user is told was written, ``help`` the option's line of help; without ``to_file`` there is no
    option. ``needs``: a library, and the extra of lmccheck that installs it. ``last``: it states the exit status, which
    files that cannot be written change. What is slow to import is imported by ``render``: options are listed at the
    start of every run.
    """

    name: str
    title: str
    help: str
    render: Callable[[list[CheckRecord], Run], str]
    to_file: bool = True
    last: bool = False
    option: str = ""
    known: Callable[[bytes], bool] = lambda head: False
    needs: tuple[str, str] | None = None

    @property
    def flag(self) -> str:
        """Its option on the command line."""
        return self.option or f"--lmc-report-{self.name}"

    @property
    def lacking(self) -> str | None:
        """What it cannot do without and is not installed, with the mend, in a line; None where nothing is missing."""
        if self.needs is None:
            return None
        from lmccheck.data.extras import extra

        library, name = self.needs
        try:
            extra(library, name, self.flag)
        except SourceError as error:
            return str(error)
        return None

    @property
    def key(self) -> str:
        """The key of its option in ini files, and the option's name inside of pytest."""
        return self.flag.removeprefix("--").replace("-", "_")


PAGE = 1024 * 1000  # bytes: GitHub shows no Markdown that is larger, and drops the summary of a step whole
FORMATS: Registry[Format] = Registry("report format", "lmccheck.report.formats")


def formats() -> list[Format]:
    """Return the formats that are written to files, each an option, in the order in which they are written."""
    return sorted((each for each in FORMATS if each.to_file), key=lambda each: each.last)


def shown(records: list[CheckRecord]) -> list[CheckRecord]:
    """Return the records a reader wants to see: every check, and a manifest's own item if it has something to say."""
    return [record for record in records if record.pair or record.verdict != "pass" or record.notes]
