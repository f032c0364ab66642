"""Limits as they are given: a number in the loss's unit, or a share of a loss."""

from __future__ import annotations

import math
import re

from lmccheck.errors import LmcError


def read_limit(limit: float | str, worse: float, what: str) -> float:
    """Return the limit in the loss's unit; ``"5%"`` is relative to ``worse``, the worse endpoint's loss.

    Raises LmcError, beginning with ``what``, for anything else.

    >>> read_limit("5%", 2.0, "linear_connectivity")
    0.1
    """
    if isinstance(limit, str) and re.fullmatch(r"\d+(\.\d+)?%", limit):
        return float(limit[:-1]) / 100 * worse
    if isinstance(limit, (int, float)) and not isinstance(limit, bool) and math.isfinite(limit) and limit >= 0:
        return float(limit)
    raise LmcError(f"{what}: limit = {limit!r}; expected a number ≥ 0 in the loss's unit, or a share such as '5%'")
