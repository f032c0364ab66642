"""Report files: every one is tried, and one that cannot be written costs no measurement."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lmccheck.errors import SourceError
from lmccheck.report.formats import FORMATS, PAGE, Format, Run, formats, shown
from lmccheck.report.record import CheckRecord
from lmccheck.store.whole import is_stream, same_file, write_whole


def write_reports(
    paths: Mapping[str, Path], records: list[CheckRecord], run: Run, *, summary: Path | None = None
) -> list[tuple[str, bool]]:
    """Write a report to each path, by the name of its format; return for each what ``write_text`` says.

    To ``summary``, the page of a CI job, Markdown is appended, where there is anything to show.
    """
    outcomes: list[tuple[str, bool]] = []
    apart = summary is not None and not any(same_file(summary, path) for path in paths.values())
    if summary is not None and apart and shown(records):
        there = summary.stat().st_size if summary.is_file() else 0
        text = FORMATS.get("md").render(records, replace(run, most=PAGE - there)) + "\n"
        outcomes.append(write_text("Markdown summary", summary, text, append=True))
    for each in formats():
        if each.name in paths:
            failed = int(not all(written for _, written in outcomes))
            status = None if run.exit_status is None else run.exit_status or failed
            outcomes.append(write_report(each.title, each, paths[each.name], records, replace(run, exit_status=status)))
    return outcomes


def is_report(path: Path) -> bool:
    """Whether a file is what an earlier run reported, as its beginning says."""
    try:
        with open(path, "rb") as file:
            head = file.read(500) if path.is_file() else b""
    except OSError:
        return False
    return any(each.known(head) for each in formats())


def announce(paths: Mapping[str, Path], records: list[CheckRecord], run: Run) -> None:
    """Replace every report by one that says that the run has not finished, so that a kill leaves no older green one.

    Where that cannot be written, for want of room or of a library, the older one is removed.
    """
    unfinished = replace(run, finished=False, exit_status=None)
    for name, path in paths.items():
        if is_stream(path):
            continue
        _, written = write_report(name, FORMATS.get(name), path, records, unfinished)
        if not written and os.path.isfile(path) and os.access(path, os.W_OK):
            with suppress(OSError):
                os.unlink(os.path.realpath(path))


def write_report(title: str, form: Format, path: Path, records: list[CheckRecord], run: Run) -> tuple[str, bool]:
    """Write a report as ``write_text`` does; a library that it needs and that is not there is a reason like others."""
    try:
        text = form.render(records, run)
    except SourceError as error:
        return f"{title} could not be written to {path}: {error}", False
    return write_text(title, path, text)


def write_text(kind: str, path: Path, text: str, *, append: bool = False) -> tuple[str, bool]:
    """Write a report, making its folders; return the line that tells the user, and whether it was written.

    Whole or not at all: the old file stays as it was where the new one cannot be written.
    """
    try:
        (_append if append else write_whole)(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        return f"{kind} could not be written to {path}: {error.strerror or error}", False
    return f"{kind} written to {path}", True


def _append(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        before, left = file.tell(), memoryview(content)
        try:
            while left:
                left = left[file.write(left) :]
        except BaseException:
            file.truncate(before)
            raise
