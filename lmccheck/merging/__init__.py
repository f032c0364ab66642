"""Merges as they are made: a recipe makes one checkpoint of several; declared and read without torch."""
