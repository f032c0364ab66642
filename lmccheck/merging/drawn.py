"""Small networks drawn by Hypothesis on which a recipe's laws are tried; a broken law shrinks to a smallest example."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from lmccheck.merging.laws import LAWS
from lmccheck.merging.trial import Act, Broken, Made, Setting, Trial
from lmccheck.store.checkpoint import Checkpoint, look_at

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("float32", "bfloat16", "float64", "float16")
SHRINKS = 300  # examples that a broken law is shrunk with
Strategy = Any  # hypothesis' strategies have no types that survive a composite


@dataclass(frozen=True)
class Drawn:
    """A small merge: what it is made of, and how the drawn permutation of its units acts.

    ``prepare(folder)`` writes what has to lie in files, below a folder that outlives the example.
    """

    prepare: Callable[[Path], Setting]
    act: Act | None = None


def words(setting: Setting, tensor: str | None = None) -> str:
    """Return a merge in numbers, of the tensor that a law is broken at, or of the first ones."""
    sources = {**setting.parents, **({} if setting.base is None else {"base": setting.base})}
    told = (f"{who}: {_numbers(one, tensor)}" for who, one in sources.items())
    weights = "" if setting.weights is None else f"; weights {dict(setting.weights)}"
    return "; ".join(told) + weights


def _numbers(one: Checkpoint, tensor: str | None) -> str:
    shown = [tensor] if tensor in one.tensors else list(one.tensors)[:2]
    parts = [f"{name} = {_values(one, name)}" for name in shown if name is not None]
    return ", ".join(parts) + (", …" if len(one.tensors) > len(shown) > 1 else "")


def _values(one: Checkpoint, name: str) -> str:
    if one.tensors[name].numbers > 12:
        return f"{one.tensors[name].shape}"
    told = str(one.get(name).double().tolist())
    return re.sub(r"-?\d+\.\d{5,}(e[+-]?\d+)?", lambda found: f"{float(found[0]):.5g}", told)


class Stop(BaseException):
    """Raised past Hypothesis when enough examples were tried."""


@st.composite
def networks(draw: Any, names: tuple[str, ...], base: bool, weights: Mapping[str, float] | None) -> Drawn:
    """Draw parents of one perceptron: two layers, a copy of the first as tied weights have it, an integer table."""
    import torch

    inputs, hidden, outputs = (draw(st.integers(1, most)) for most in (2, 3, 2))
    dtype = getattr(torch, draw(st.sampled_from(DTYPES)))
    shapes = {"fc1.weight": (hidden, inputs), "fc1.bias": (hidden,), "fc2.weight": (outputs, hidden)}
    tied = draw(st.booleans())
    entries = st.floats(-2, 2, width=16)
    amount = sum(_count(shape) for shape in shapes.values())

    def state() -> dict[str, Tensor]:
        values = torch.tensor(draw(st.lists(entries, min_size=amount, max_size=amount)), dtype=torch.float64)
        values = values / 3  # so that sums are rounded
        found, start = {}, 0
        for name, shape in shapes.items():
            found[name] = values[start : start + _count(shape)].reshape(shape).to(dtype)
            start += _count(shape)
        if tied:
            found["tied.weight"] = found["fc1.weight"].clone()
        return {**found, "table": torch.arange(inputs)}

    order = torch.tensor(draw(st.permutations(range(hidden))), dtype=torch.int64)

    def moved(name: str, value: Tensor) -> Tensor:
        if name == "table":
            return value
        return value[:, order] if name == "fc2.weight" else value[order]

    parents = {name: look_at(state(), Path(), name) for name in names}
    drawn_base = look_at(state(), Path(), "base") if base else None
    return Drawn(lambda folder: Setting(parents, drawn_base, weights), lambda one: acted(one, moved))


def acted(one: Checkpoint, moved: Callable[[str, Tensor], Tensor]) -> Checkpoint:
    """Return a checkpoint whose tensors are moved when they are read."""

    def get(name: str) -> Tensor:
        return moved(name, one.get(name)).contiguous()

    return replace(
        one, get=get, read=lambda: {name: get(name) for name in one.tensors}, path=None, digest=None,
        digests=None, lies={},
        same=lambda first, second: False,
    )  # fmt: skip


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


Maker = Callable[[Setting, Path], Made]


def tried(
    strategy: Strategy,
    make: Maker,
    laws: Iterable[str],
    trial: Mapping[str, Any],
    *,
    examples: int,
    start: int,
    shrinks: int = SHRINKS,
) -> tuple[dict[str, tuple[Broken, str]], int]:
    """Return the laws that do not hold on drawn networks, each with its smallest example, and how many were drawn.

    ``make(setting, folder)`` makes a merge below a new folder; ``trial`` holds what else a Trial is made of.
    """
    seen: dict[str, tuple[Broken, str]] = {}
    laws = list(laws)
    drawn = _run(strategy, make, laws, trial, seen, (examples, start, 0))
    for law in list(seen):
        _run(strategy, make, [law], trial, seen, (examples, start, shrinks))
    return seen, drawn


def _run(
    strategy: Strategy,
    make: Maker,
    laws: list[str],
    trial: Mapping[str, Any],
    seen: dict[str, tuple[Broken, str]],
    how: tuple[int, int, int],
) -> int:
    """Try laws on networks, each example in a folder of its own; what is broken is noted, the last one the smallest."""
    examples, start, shrinks = how
    shrink = shrinks > 0
    runs = 0

    @seed(start)
    @settings(
        max_examples=examples, database=None, deadline=None, verbosity=Verbosity.quiet, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )  # fmt: skip
    @given(strategy)
    def attempt(drawn: Drawn) -> None:
        nonlocal runs
        runs += 1
        if runs > (shrinks if shrink else examples):
            raise Stop
        with tempfile.TemporaryDirectory(prefix="lmccheck-law-") as folder:
            numbered = iter(range(1_000_000))
            setting = drawn.prepare(Path(folder))
            one = Trial(lambda what: make(what, Path(folder) / str(next(numbered))), setting, act=drawn.act, **trial)
            found = {law: broken for law in laws if (broken := LAWS[law](one)) is not None}
            for law, broken in found.items():
                if shrink or law not in seen:
                    seen[law] = broken, words(setting, broken.tensor)
        if shrink and found:
            raise AssertionError

    with suppress(Stop, AssertionError):
        attempt()
    return min(runs, examples)
