"""Files of data in folders: images by class, tables of parquet; no torch here."""

from __future__ import annotations

from pathlib import Path

from lmccheck.errors import SourceError, shown_path

EXPECTED = "a folder of images per class (photos/cat/1.png)"
TABLES = "a .parquet file, or a folder of them"


def image_files(folder: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """Return the classes of a folder, and its files, each with the place of its class. Raises SourceError.

    Names that begin with a dot are those of no class and no image.
    """
    try:
        entries = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    except OSError as error:
        raise SourceError(
            f"{shown_path(folder)}: cannot be read: {error.strerror or error}, expected {EXPECTED}; mend: correct it"
        ) from None
    if stray := next((each for each in entries if not each.is_dir()), None):
        raise SourceError(
            f"{shown_path(stray)}: a file beside the classes, expected {EXPECTED}; mend: put it in its class"
        )
    if len(entries) < 2:
        raise SourceError(f"{shown_path(folder)}: got {len(entries)} class(es), expected {EXPECTED}, two or more")
    found: list[tuple[Path, int]] = []
    for place, entry in enumerate(entries):
        files = sorted(each for each in entry.iterdir() if not each.name.startswith("."))
        if not files:
            raise SourceError(f"{shown_path(entry)}: a class without images, expected one or more; mend: take it out")
        if inner := next((each for each in files if each.is_dir()), None):
            raise SourceError(f"{shown_path(inner)}: a folder in a class, expected images; mend: one folder per class")
        found += [(file, place) for file in files]
    return [entry.name for entry in entries], found


def parquet_files(path: Path) -> list[Path]:
    """Return the files of a table, in sorted order. Raises SourceError."""
    found = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not found or not all(each.is_file() for each in found):
        got = "a folder without one" if path.is_dir() else "no such file"
        raise SourceError(f"{shown_path(path)}: {got}, expected {TABLES}; mend: correct the path")
    return found
