"""generation_config.json compared: the tokens that text starts and ends with are differences, sampling is only said."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lmccheck.beside.difference import MISSING, Difference, brief, first_leaf, same
from lmccheck.beside.folder import Folder

FILE, ALL = "generation_config.json", "generation_config"
TOKENS = re.compile(r"_token_id$|^forced_|_to_id$")
BOOKKEEPING = {"transformers_version", "use_cache", "output_attentions", "output_hidden_states", "torch_dtype"}


def differences(a: Folder, b: Folder) -> Iterator[Difference]:
    """Yield what two folders' generation_config.json say differently; one that is in one folder only is said."""
    one, other = a.table(FILE), b.table(FILE)
    if one is None or other is None:
        if one is not other:
            told = ["not there" if each is None else "there" for each in (one, other)]
            yield Difference(FILE, "it", (told[0], told[1]), (ALL,), note=True)
        return
    for key in [*one, *(key for key in other if key not in one)]:
        ends = [_bare(table.get(key)) for table in (one, other)]
        if key in BOOKKEEPING or key.startswith("_") or same(*ends):
            continue
        place, *values, more = first_leaf(one.get(key, MISSING), other.get(key, MISSING), key)
        told = [brief(value) for value in values]
        names = dict.fromkeys((key, f"{ALL}.{key}", ALL))
        yield Difference(FILE, place, (told[0], told[1]), tuple(names), TOKENS.search(key) is None, more)


def _bare(value: object) -> object:
    """Return a value, of a list of one what it holds."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value
