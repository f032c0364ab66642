"""Reading what a user's code yields: said to be going on after a while, and ended where it does not end by itself."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lmccheck.errors import SourceError

LOGGER = logging.getLogger("lmccheck")
EVERY = 10.0  # seconds between two lines of progress
MOST_BATCHES = 1_000_000
MOST_BYTES = 2**36  # 64 GiB, or half of the machine's memory where that is less


def gathered(source: Iterable[Any], what: str) -> list[Any]:
    """Return everything that ``source`` yields, in order, all of which is held in memory.

    Every ten seconds the logger ``lmccheck`` says how far it is. Raises SourceError, beginning with ``what``, past a
    million batches, or more bytes than 64 GiB or half of the machine's memory.
    """
    items: list[Any] = []
    held, most = 0, min(MOST_BYTES, _memory() // 2)
    with told(lambda: f"{what}: still reading, {len(items):,} batches and {held / 2**20:,.0f} MiB so far"):
        for item in source:
            items.append(item)
            held += _bytes(item)
            if len(items) > MOST_BATCHES or held > most:
                raise SourceError(
                    f"{what}: no end after {len(items):,} batches and {held / 2**20:,.0f} MiB, expected at most "
                    f"{MOST_BATCHES:,} batches and {most / 2**20:,.0f} MiB; mend: let it end, for example by "
                    "itertools.islice(batches, 100)"
                )
    return items


@contextmanager
def told(text: Callable[[], str]) -> Iterator[None]:
    """Log ``text()`` every ten seconds while the block lasts, also while the user's code does not come back."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(EVERY):
            LOGGER.warning("%s", text())

    threading.Thread(target=tell, name="lmccheck-progress", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _bytes(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    if isinstance(value, (tuple, list)):
        return sum(map(_bytes, value))
    return int(getattr(value, "nbytes", 0))


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # this system does not say
        return 2 * MOST_BYTES
