"""The worst that a test under ``@given`` has seen: what it was called with, as the example that shows it again."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from hypothesis import currently_in_test_context, target
from hypothesis.errors import InvalidArgument
from hypothesis.strategies import DataObject

LABEL = "lmccheck"


@dataclass
class Worst:
    """The largest value that one test was told, and the arguments it was then called with, as code."""

    value: float = -math.inf
    arguments: dict[str, str] | None = None
    calls: int = 0
    called_with: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def told(self, value: float) -> None:
        """Take note of a value; of equal ones the later, to which an example was shrunk."""
        if value >= self.value:
            self.value = value
            self.arguments = {name: repr(given) for name, given in self.called_with.items()}

    def line(self) -> str | None:
        """Return the worst as a line to paste above the test, or why it is none; None where nothing was told."""
        if self.arguments is None:
            return None
        if any(isinstance(given, DataObject) for given in self.called_with.values()):
            return f"worst {self.value:.4g}, drawn by st.data(), of which there is no @example; mend: draw in @given"
        said = ", ".join(f"{name}={given}" for name, given in self.arguments.items())
        return f"@example({said})  # {self.value:.4g}, the worst of {self.calls} calls"


_WORST: ContextVar[Worst | None] = ContextVar("lmccheck worst", default=None)


def toward_worst(value: float) -> float:
    """Return a value after telling Hypothesis to look for larger ones, and the report what the largest was found at.

    As ``hypothesis.target``, once in a call of the test; of further values only the report is told. What is not finite
    is reported, and is no target. Outside of a test under ``@given`` nothing is told to anyone. What is searched this
    way is no sample: say what was found, never a mean, a share or an interval of it.
    """
    if (worst := _WORST.get()) is not None:
        worst.told(math.inf if value != value else value)
    if currently_in_test_context() and math.isfinite(value):
        try:
            target(value, label=LABEL)
        except InvalidArgument:  # told before in this call
            return value
    return value


@contextmanager
def watched(handle: Any, given: Collection[str], itself: Any = None) -> Iterator[Worst]:
    """Keep note of the worst while a test runs; ``handle`` is its attribute ``hypothesis``, ``given`` its fixtures.

    ``itself``: the object whose method it is.
    """
    worst, original = Worst(), handle.inner_test

    @wraps(original)
    def noted(*args: Any, **kwargs: Any) -> Any:
        worst.calls += 1
        drawn = {name: value for name, value in kwargs.items() if name not in given}
        worst.called_with = {name: value for name, value in drawn.items() if itself is None or value is not itself}
        return original(*args, **kwargs)

    token = _WORST.set(worst)
    handle.inner_test = noted
    try:
        yield worst
    finally:
        handle.inner_test = original
        _WORST.reset(token)
