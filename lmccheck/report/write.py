"""Report files: every one is tried, and one that cannot be written costs no measurement."""

from __future__ import annotations

from pathlib import Path


def write_text(kind: str, path: Path, text: str, *, append: bool = False) -> tuple[str, bool]:
    """Write a report, making its folders; return the line that tells the user, and whether it was written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        return f"{kind} could not be written to {path}: {error.strerror or error}", False
    return f"{kind} written to {path}", True
