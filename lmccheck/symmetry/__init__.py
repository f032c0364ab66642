"""Permutation symmetries of a network, derived from its traced graph and verified before use."""

from lmccheck.symmetry.discover import discover_symmetry
from lmccheck.symmetry.spec import Frozen, PermutationSpec, Slot, UnitGroup

__all__ = ["Frozen", "PermutationSpec", "Slot", "UnitGroup", "discover_symmetry"]
