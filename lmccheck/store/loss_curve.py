"""A curve of losses as a table: columns in Python, rows of a CSV file."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path

from lmccheck.errors import CheckpointError
from lmccheck.shown import one_line
from lmccheck.store import files
from lmccheck.store.whole import unwritable, write_whole

COLUMNS = ("t", "segment", "loss", "error", "lower", "upper")
HEAD = ",".join(COLUMNS) + "\n"


def _described(curve: LossCurve) -> str:
    count = max(curve.segment)
    of = "a line" if count == 1 else f"{count} segments"
    return f"{len(curve.t)} points of {of}, loss {min(curve.loss):.4g} to {max(curve.loss):.4g}"


@one_line(_described)
@dataclass(frozen=True)
class LossCurve(files.Written):
    """Losses along a line or a path, a row for each point in order of ``t``; every column is a list.

    ``t``: where, from 0 (a) to 1 (b), every segment of a path taking an equal share. ``segment``: on which, counted
    from 1; a breakpoint is of the segment that begins there. ``loss``: the mean on evaluation data, ``error``: the mean
    0-1 error, None where there is none. ``lower`` and ``upper``: between the neighbours of a point, measured or not, no
    loss is below or above; None where that is not certified.
    """

    t: list[float]
    segment: list[int]
    loss: list[float]
    error: list[float | None]
    lower: list[float | None]
    upper: list[float | None]

    def csv(self) -> str:
        """Return the table as CSV, under its columns' names: floats in full, nothing where there is no number."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(zip(*(getattr(self, name) for name in COLUMNS), strict=True))
        return text.getvalue()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write ``csv()`` to a file, whole or not at all, never over what was read; return it.

        Raises CheckpointError when it cannot be written.
        """
        target = Path(path)
        files.require_apart([target], self.inputs)
        try:
            write_whole(target, self.csv().encode())
        except OSError as error:
            raise CheckpointError(unwritable(target, error)) from None
        return target


def is_loss_curve(path: Path) -> bool:
    """Whether a file is a table that was written here, by its first line."""
    try:
        with open(path, "rb") as file:
            return path.is_file() and file.readline(len(HEAD)) == HEAD.encode()
    except OSError:
        return False
