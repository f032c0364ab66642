"""What a report says of data: where they came from, how many samples, and what tells them from others."""

from __future__ import annotations

import hashlib
from typing import Any

from lmccheck.data.load import Data
from lmccheck.errors import shown_path

LISTED = 20  # files of data that a report names


def data_facts(data: Data | None) -> dict[str, Any] | None:
    """Return what a report says of data, None where there are none; JSON-able.

    ``sha256`` is that of the file that was read, or, of several, of what sha256sum would say of them.
    """
    if data is None:
        return None
    facts = {"origin": data.origin, "samples": data.samples, "uncounted": data.uncounted, "content": data.content}
    if len(data.held) <= 1:
        return {**facts, "sha256": data.held[0].sha256} if data.held else facts
    names = sorted((shown_path(held.path), held.sha256) for held in data.held)
    listing = "".join(f"{sha256}  {name}\n" for name, sha256 in names).encode()
    facts |= {"sha256": hashlib.sha256(listing).hexdigest()}
    return facts | ({"files": dict(names)} if len(names) <= LISTED else {})
