"""Property tests for trained models: may these two checkpoints be merged?

Every public name is imported on first use, so that ``import lmccheck`` costs nothing and never imports torch: pytest
imports this package at start-up, and ``pytest --help`` must not wait for a deep-learning library.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmccheck.align.api import Alignment, align, save_aligned
    from lmccheck.align.barriers import barrier_matrix
    from lmccheck.align.fusion import Fusion, fuse
    from lmccheck.align.many import ManyAlignment, align_many
    from lmccheck.align.merge import save_merged
    from lmccheck.errors import (
        CheckpointError,
        DeviceError,
        LmcError,
        LmcWarning,
        ManifestError,
        SourceError,
        SymmetryError,
        UnsupportedArchitecture,
        VerdictError,
    )
    from lmccheck.pair import ModelPair, load_pair
    from lmccheck.paths.path import Path, load_path, save_path
    from lmccheck.properties.dropout_path import dropout_path
    from lmccheck.properties.dropout_stability import dropout_stability
    from lmccheck.properties.fused_connectivity import fused_connectivity
    from lmccheck.properties.linear_connectivity import linear_connectivity
    from lmccheck.properties.noise_stability import noise_stability
    from lmccheck.properties.set_connectivity import set_connectivity
    from lmccheck.properties.ten_segment_path import ten_segment_path
    from lmccheck.properties.verify_dropout import verify_dropout
    from lmccheck.properties.verify_path import verify_path
    from lmccheck.result import Result
    from lmccheck.symmetry import PermutationSpec, Slot, UnitGroup, discover_symmetry
    from lmccheck.symmetry.file import load_spec, save_spec, spec_from_groups

_HOMES = {
    "lmccheck.align": ("Alignment", "save_aligned"),
    "lmccheck.align.barriers": ("barrier_matrix",),
    "lmccheck.align.fusion": ("Fusion", "fuse"),
    "lmccheck.align.many": ("ManyAlignment", "align_many"),
    "lmccheck.align.merge": ("save_merged",),
    "lmccheck.errors": (
        "CheckpointError",
        "DeviceError",
        "LmcError",
        "LmcWarning",
        "ManifestError",
        "SourceError",
        "SymmetryError",
        "UnsupportedArchitecture",
        "VerdictError",
    ),
    "lmccheck.pair": ("ModelPair", "load_pair"),
    "lmccheck.paths.path": ("Path", "load_path", "save_path"),
    "lmccheck.properties.dropout_path": ("dropout_path",),
    "lmccheck.properties.dropout_stability": ("dropout_stability",),
    "lmccheck.properties.fused_connectivity": ("fused_connectivity",),
    "lmccheck.properties.linear_connectivity": ("linear_connectivity",),
    "lmccheck.properties.noise_stability": ("noise_stability",),
    "lmccheck.properties.set_connectivity": ("set_connectivity",),
    "lmccheck.properties.ten_segment_path": ("ten_segment_path",),
    "lmccheck.properties.verify_dropout": ("verify_dropout",),
    "lmccheck.properties.verify_path": ("verify_path",),
    "lmccheck.result": ("Result",),
    "lmccheck.symmetry": ("PermutationSpec", "Slot", "UnitGroup", "discover_symmetry"),
    "lmccheck.symmetry.file": ("load_spec", "save_spec", "spec_from_groups"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Alignment",
    "CheckpointError",
    "DeviceError",
    "Fusion",
    "LmcError",
    "LmcWarning",
    "ManifestError",
    "ManyAlignment",
    "ModelPair",
    "Path",
    "PermutationSpec",
    "Result",
    "Slot",
    "SourceError",
    "SymmetryError",
    "UnitGroup",
    "UnsupportedArchitecture",
    "VerdictError",
    "__version__",
    "align",
    "align_many",
    "barrier_matrix",
    "discover_symmetry",
    "dropout_path",
    "dropout_stability",
    "fuse",
    "fused_connectivity",
    "linear_connectivity",
    "load_pair",
    "load_path",
    "load_spec",
    "noise_stability",
    "save_aligned",
    "save_merged",
    "save_path",
    "save_spec",
    "set_connectivity",
    "spec_from_groups",
    "ten_segment_path",
    "verify_dropout",
    "verify_path",
]


class _AlignPackage(ModuleType):
    """The subpackage ``lmccheck.align``, callable: the public function ``align`` bears the same name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Align two networks: see ``lmccheck.align.api.align``."""
        from lmccheck.align.api import align

        return align(*args, **options)


class _Package(ModuleType):
    """This package; importing ``lmccheck.align`` binds the subpackage over the function, so it is made callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "align" and type(value) is ModuleType:
            value.__class__ = _AlignPackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "align":
        return importlib.import_module("lmccheck.align")
    if name == "__version__":
        from importlib.metadata import version

        return version("lmccheck")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lmccheck' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
