"""How each ATen op carries axes: a table from op name to rule, filled by the modules of this package.

A rule receives an ``Op`` and the call's arguments in schema order (tensors as ``Symbol``) and returns the output's
``Symbol`` (or a tuple). It unifies axes that must be indexed alike, freezes axes whose positions the op tells apart,
and reports with ``mixes_across`` which axes survive when everything else is combined. A call a rule does not treat
raises ``Uncovered``; the engine then freezes what the call touches. A new family is a new module here: all are loaded.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from lmccheck.symmetry.rules._table import RULES

__all__ = ["RULES"]

for _family in iter_modules(__path__, f"{__name__}."):
    import_module(_family.name)
