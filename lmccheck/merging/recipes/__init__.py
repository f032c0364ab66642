"""Recipes, one file each: a file here that declares one by ``@recipe`` is all that adding one takes.

Such a file imports torch inside its functions only: manifests are read without it.
"""
