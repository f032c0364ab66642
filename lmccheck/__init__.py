"""Property tests for trained models: may these two checkpoints be merged?

Every public name is imported on first use, so that ``import lmccheck`` costs nothing and never imports torch: pytest
imports this package at start-up, and ``pytest --help`` must not wait for a deep-learning library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmccheck import strategies as strategies
    from lmccheck.alignment.api import Alignment as Alignment
    from lmccheck.alignment.api import align as align
    from lmccheck.alignment.api import save_aligned as save_aligned
    from lmccheck.alignment.barriers import barrier_matrix as barrier_matrix
    from lmccheck.alignment.many import ManyAlignment as ManyAlignment
    from lmccheck.alignment.many import align_many as align_many
    from lmccheck.alignment.merge import save_merged as save_merged
    from lmccheck.errors import CheckpointError as CheckpointError
    from lmccheck.errors import DeviceError as DeviceError
    from lmccheck.errors import LmcError as LmcError
    from lmccheck.errors import LmcWarning as LmcWarning
    from lmccheck.errors import ManifestError as ManifestError
    from lmccheck.errors import SourceError as SourceError
    from lmccheck.errors import SymmetryError as SymmetryError
    from lmccheck.errors import UnsupportedArchitecture as UnsupportedArchitecture
    from lmccheck.errors import VerdictError as VerdictError
    from lmccheck.fusion.fuse import Fusion as Fusion
    from lmccheck.fusion.fuse import fuse as fuse
    from lmccheck.merging.merge import Merge as Merge
    from lmccheck.merging.merge import load_merge as load_merge
    from lmccheck.network.model_set import ModelSet as ModelSet
    from lmccheck.network.model_set import load_set as load_set
    from lmccheck.network.pair import ModelPair as ModelPair
    from lmccheck.network.pair import WidthPair as WidthPair
    from lmccheck.network.pair import load_pair as load_pair
    from lmccheck.network.pair import load_widths as load_widths
    from lmccheck.network.single import SingleModel as SingleModel
    from lmccheck.network.single import load_model as load_model
    from lmccheck.paths.curve import curve as curve
    from lmccheck.paths.path import Path as Path
    from lmccheck.paths.path import load_path as load_path
    from lmccheck.paths.path import save_path as save_path
    from lmccheck.properties.box_connectivity import box_connectivity as box_connectivity
    from lmccheck.properties.dropout_path import dropout_path as dropout_path
    from lmccheck.properties.dropout_stability import dropout_stability as dropout_stability
    from lmccheck.properties.fused_connectivity import fused_connectivity as fused_connectivity
    from lmccheck.properties.linear_connectivity import linear_connectivity as linear_connectivity
    from lmccheck.properties.merge_laws import merge_laws as merge_laws
    from lmccheck.properties.merged_loss import merged_loss as merged_loss
    from lmccheck.properties.noise_stability import noise_stability as noise_stability
    from lmccheck.properties.set_connectivity import set_connectivity as set_connectivity
    from lmccheck.properties.shipped import shipped as shipped
    from lmccheck.properties.ten_segment_path import ten_segment_path as ten_segment_path
    from lmccheck.properties.verify_dropout import verify_dropout as verify_dropout
    from lmccheck.properties.verify_path import verify_path as verify_path
    from lmccheck.result import Result as Result
    from lmccheck.store.loss_curve import LossCurve as LossCurve
    from lmccheck.symmetry.discover import discover_symmetry as discover_symmetry
    from lmccheck.symmetry.slots import Slot as Slot
    from lmccheck.symmetry.slots import UnitGroup as UnitGroup
    from lmccheck.symmetry.spec import PermutationSpec as PermutationSpec
    from lmccheck.symmetry.spec_file import load_spec as load_spec
    from lmccheck.symmetry.spec_file import save_spec as save_spec
    from lmccheck.symmetry.spec_file import spec_from_groups as spec_from_groups

_PUBLIC = {
    "alignment.api": "Alignment align save_aligned",
    "alignment.barriers": "barrier_matrix",
    "alignment.many": "ManyAlignment align_many",
    "alignment.merge": "save_merged",
    "errors": "CheckpointError DeviceError LmcError LmcWarning ManifestError SourceError SymmetryError "
    "UnsupportedArchitecture VerdictError",
    "fusion.fuse": "Fusion fuse",
    "merging.merge": "Merge load_merge",
    "network.model_set": "ModelSet load_set",
    "network.pair": "ModelPair WidthPair load_pair load_widths",
    "network.single": "SingleModel load_model",
    "paths.curve": "curve",
    "paths.path": "Path load_path save_path",
    "properties.box_connectivity": "box_connectivity",
    "properties.dropout_path": "dropout_path",
    "properties.dropout_stability": "dropout_stability",
    "properties.fused_connectivity": "fused_connectivity",
    "properties.linear_connectivity": "linear_connectivity",
    "properties.merge_laws": "merge_laws",
    "properties.merged_loss": "merged_loss",
    "properties.noise_stability": "noise_stability",
    "properties.set_connectivity": "set_connectivity",
    "properties.shipped": "shipped",
    "properties.ten_segment_path": "ten_segment_path",
    "properties.verify_dropout": "verify_dropout",
    "properties.verify_path": "verify_path",
    "result": "Result",
    "store.loss_curve": "LossCurve",
    "symmetry.discover": "discover_symmetry",
    "symmetry.slots": "Slot UnitGroup",
    "symmetry.spec": "PermutationSpec",
    "symmetry.spec_file": "load_spec save_spec spec_from_groups",
}
_HOME = {name: f"lmccheck.{home}" for home, names in _PUBLIC.items() for name in names.split()}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("lmccheck")
    if name == "strategies":  # a room of its own, for which Hypothesis is needed
        return import_module("lmccheck.strategies")
    if name not in _HOME:
        raise AttributeError(f"module 'lmccheck' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "strategies"})
