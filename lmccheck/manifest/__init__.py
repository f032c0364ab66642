"""``lmc.toml``: read into a plan, and its files looked at from their headers; no torch here."""
