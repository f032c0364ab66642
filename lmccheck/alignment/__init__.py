"""Aligning networks: every method works on the permutation spec, none knows an architecture."""
