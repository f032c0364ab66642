"""Whether two JSON reports say the same: ``python tests/same_report.py old.json new.json``; run by hand.

Keys and values are compared, numbers to 1e-9; seconds, dates, arguments and paths of folders may differ, and texts are
shown where they do.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FREE = {"created", "arguments", "seconds", "platform", "lmccheck_version"}
ABSENT = object()


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Yield one line per difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if key not in FREE:
                yield from differences(old.get(key, ABSENT), new.get(key, ABSENT), f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for k, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{where}[{one['id'] if isinstance(one, dict) and 'id' in one else k}]")
    elif isinstance(old, float) and isinstance(new, (int, float)):
        if not math.isclose(old, new, rel_tol=1e-9, abs_tol=1e-9):
            yield f"{where}: {old} is now {new}"
    elif old != new and not (isinstance(old, str) and isinstance(new, str) and Path(old).name == Path(new).name):
        yield f"{where}: {shown(old)} is now {shown(new)}"


def shown(value: Any) -> str:
    return "absent" if value is ABSENT else repr(value)[:300]


if __name__ == "__main__":
    found = list(differences(*(json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:3])))
    print("\n".join(found) or "the same")
    sys.exit(bool(found))
