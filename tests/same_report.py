"""Whether a JSON report still says what an older one said: ``python tests/same_report.py old.json new.json [keys]``.

Every key of the old report must be in the new one, with the same value, numbers to 1e-9; keys may be added. Seconds,
dates, arguments and folders of paths may differ. With ``keys`` only keys and verdicts are compared: they hold on any
machine. ``tests/report/fixtures-report.json`` is the gate's report on the shipped fixtures, made by one thread (set
OMP_NUM_THREADS=1), from before the code was divided into rooms.
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


def differences(old: Any, new: Any, values: bool = True, where: str = "") -> Iterator[str]:
    """Yield one line per difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() - FREE:
            yield from differences(old[key], new.get(key, ABSENT), values, f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for k, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, values, f"{where}[{k}]")
    elif new is not ABSENT and not values and not where.endswith(".verdict"):
        return
    elif isinstance(old, float) and isinstance(new, (int, float)):
        if not math.isclose(old, new, rel_tol=1e-9, abs_tol=1e-9):
            yield f"{where}: {old} is now {new}"
    elif old != new and not (isinstance(old, str) and isinstance(new, str) and Path(old).name == Path(new).name):
        yield f"{where}: {shown(old)} is now {shown(new)}"


def shown(value: Any) -> str:
    return "absent" if value is ABSENT else repr(value)[:300]


if __name__ == "__main__":
    reports = [json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:3]]
    reports = [{**report, "checks": {check["id"]: check for check in report["checks"]}} for report in reports]
    found = list(differences(*reports, values=sys.argv[3:] != ["keys"]))
    print("\n".join(found) or "the same")
    sys.exit(bool(found))
