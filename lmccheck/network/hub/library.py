"""The library transformers: imported where it is used, quietly, never with code that a folder brings along."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmccheck.data.extras import extra


def transformers_for(purpose: str) -> Any:
    """Return the library. Raises SourceError, beginning with ``purpose``, where it is not there or cannot be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return extra("transformers", "hf", purpose)


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Keep the library's progress bars, logs and deprecations out of the user's terminal; all as it was afterwards."""
    logs = library.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity(logs.CRITICAL)
    logs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
