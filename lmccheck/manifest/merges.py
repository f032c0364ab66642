"""What a manifest may say of a merge: its parents' names, its alignment, its pins, and data and parents in checks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lmccheck.alignment import method_names
from lmccheck.errors import nearest
from lmccheck.manifest.plan import CheckPlan
from lmccheck.manifest.tables import HASH, MergeTable
from lmccheck.properties.settings import AGAINST, MERGE_DATA
from lmccheck.store.documents import key_text, near, shown

TAKEN = (*AGAINST, "merge")  # what reports call something else
NAME = re.compile(r"[A-Za-z0-9._-]+")


def merge_problems(table: MergeTable) -> Iterator[str]:
    """Yield what is wrong with a merge's table, each beginning with the key below it."""
    for name in table.parents:
        if not NAME.fullmatch(name) or name in TAKEN:
            yield (
                f".parents.{key_text(name)}: expected a name of letters, digits, '.', '_' and '-' other than "
                f"{', '.join(TAKEN)}"
            )
    if "base" in table.parents and table.base is not None:
        yield ".parents.base: the name is taken by the base, expected another"
    methods = ("none", *method_names())
    if table.align not in methods:
        yield f".align: got {shown(table.align)}, expected {' or '.join(methods)}{near(table.align, methods)}"
    for key, pin in table.sha256.items():
        if key not in (*table.parents, "base"):
            yield f".sha256.{key_text(key)}: no such parent{nearest(key, table.parents)}, expected one, or base"
        elif not isinstance(pin, str) or not re.fullmatch("[0-9a-fA-F]{64}", pin):
            yield f".sha256.{key_text(key)}: got {shown(pin)}, expected {HASH}"


def check_problems(check: CheckPlan, parents: tuple[str, ...]) -> Iterator[str]:
    """Yield what names no parent in a check's settings, and data that are none."""
    against, data = check.settings.get("against"), check.settings.get("data")
    known = (*AGAINST, *parents)
    if isinstance(against, str) and against not in known:
        yield f".against: got {shown(against)}, expected {' or '.join(known)}{near(against, known)}"
    if isinstance(data, Mapping):
        for key in data:
            if key not in parents:
                yield f".data.{key_text(key)}: no such parent{near(key, parents)}, expected {' or '.join(parents)}"
    elif data is not None and not isinstance(data, (str, list)):
        yield f".data: got {shown(data)}, expected {MERGE_DATA}"


def first_data(checks: Iterable[CheckPlan]) -> Any:
    """Return the first data that a check names: what a merge is traced on that names none itself."""
    for check in checks:
        data = check.settings.get("data")
        named = list(data.values()) if isinstance(data, Mapping) else data if isinstance(data, list) else [data]
        if named and isinstance(named[0], str) and named[0]:
            return named[0]
    return None
