"""Libraries that only some need: imported where they are used, and missed in one line."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lmccheck.data.imports import say
from lmccheck.errors import SourceError


def extra(module: str, name: str, what: str) -> Any:
    """Return a module of an optional library. Raises SourceError, beginning with ``what``, where it is not there.

    ``name`` is the extra of lmccheck that installs it.
    """
    root = module.partition(".")[0]
    try:
        import_module(root)
        return import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == root
        got = "is not installed" if missing else f"cannot be imported ({say(error)})"
        raise SourceError(f'{what}: needs {root}, which {got}; mend: pip install "lmccheck[{name}]"') from None
