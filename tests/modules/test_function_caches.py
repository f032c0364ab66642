"""Caches of functions are cleared where what they hold may have been computed from weights, and only there."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmccheck.modules.caches import clear_caches
from lmccheck.modules.numbers import executed

KEPT = torch.ones(1)  # which the cached functions below could reach


@pytest.mark.parametrize("size", [128, None])
@pytest.mark.parametrize(
    ("result", "cleared"),
    [
        (3.0, False), ("text", False), ((1, 2.0), False), (None, False), (torch.float32, False),
        ([1.0], True), ({"norm": 1.0}, True), (SimpleNamespace(norm=1.0), True), (bytearray(8), True),
        (torch.ones(1), True), ((1, (torch.ones(1),)), True),
    ],
)  # fmt: skip
def test_what_may_hold_numbers_of_weights_is_cleared(result: Any, cleared: bool, size: int | None) -> None:
    """Lists, objects and tensors, however the cache is bounded; results that nobody can fill stay."""

    @functools.lru_cache(size)
    def cached(_: int) -> Any:
        return result if len(KEPT) else None

    cached(1)
    cached(2)
    clear_caches([cached])
    assert (cached.cache_info().currsize == 0) == cleared


def test_a_tensor_that_was_asked_with_counts() -> None:
    """A number computed from a tensor is kept under that tensor."""

    @functools.lru_cache
    def norm(of: torch.Tensor) -> float:
        return float(of.norm())

    norm(torch.ones(2))
    clear_caches([norm])
    assert norm.cache_info().currsize == 0


def test_a_profile_goes_on_behind_a_run_that_is_watched() -> None:
    """cProfile sets an object that is no function, which may only be set again by itself."""
    import cProfile

    def afterwards() -> None:
        pass

    profile = cProfile.Profile()
    profile.enable()
    try:
        with executed() as codes:
            afterwards()
        afterwards()
    finally:
        profile.disable()
    assert afterwards.__code__ in codes
    assert any(entry.code is afterwards.__code__ for entry in profile.getstats())


def test_code_of_two_files_with_one_text_is_seen_of_both() -> None:
    """Python takes such code for equal, whichever file it is of; what one of them keeps would be looked for in none."""
    both: list[dict[str, object]] = [{}, {}]
    for number, names in enumerate(both):
        exec(compile("def get():\n    return 1\n", f"file{number}.py", "exec"), names)
    functions = [names["get"] for names in both]
    with executed() as codes:
        for function in functions:
            assert callable(function)
            function()
    assert {code.co_filename for code in codes} >= {"file0.py", "file1.py"}


def test_what_garbage_goes_through_at_its_end_is_no_part_of_a_run() -> None:
    """A generator that another network began, in a circle that is found to be garbage while this one is run."""

    def begun() -> Iterator[None]:
        try:
            yield
        finally:
            pass

    circle: list[Any] = [begun()]
    circle.append(circle)
    next(circle[0])
    del circle
    with executed() as codes:
        _ = [[] for _ in range(100_000)]
    assert begun.__code__ not in codes
    assert gc.isenabled()
