"""Aligning two networks: every method works on the permutation spec, none knows an architecture."""

from lmccheck.align.api import METHODS, Alignment, align, save_aligned

__all__ = ["METHODS", "Alignment", "align", "save_aligned"]
