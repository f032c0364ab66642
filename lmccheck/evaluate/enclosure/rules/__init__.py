"""How each ATen op carries an enclosure: one file per family of ops, all are loaded."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from lmccheck.evaluate.enclosure.cell import ENCLOSURES

__all__ = ["ENCLOSURES"]

for _family in iter_modules(__path__, f"{__name__}."):
    import_module(_family.name)
