"""Permutation symmetries of a network, derived from its traced graph and verified before use."""

from lmccheck.symmetry.discover import discover_symmetry
from lmccheck.symmetry.slots import Frozen, Slot, UnitGroup
from lmccheck.symmetry.spec import PermutationSpec

__all__ = ["Frozen", "PermutationSpec", "Slot", "UnitGroup", "discover_symmetry"]
