"""Soft transport between networks of different widths."""
