"""What the fuzzers of this folder share: values that break readers, and a watch on time and words."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lmccheck.errors import LmcError

SECONDS = 20
NAMES = [
    "", " ", ".", "..", "w\0", "\x1b[2J\x1b[31mFAILED", "x\n::error::y", "\r", "\ud800", "\U0010ffff", "e\u0301", "é",
    "層", "🦙", "\u202eabc", "__metadata__", "__metadata__ ", "dtype", "a" * 70_000, "<img src=x>", "|`|", "%s{0}",
    "\\x1b", "0", "true", "a.b.c", "lmc.toml::p::check PASSED", "\ufeff", "\u2028",
]  # fmt: skip
NUMBERS = [
    -1, 0, 1, 3, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400), 0.0, -0.0, 0.5, 4.0, 1e308,
    -1e-320, float("inf"), float("-inf"), float("nan"), True, False, None,
]  # fmt: skip


def nested(depth: int, kind: type = list) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def values(rng: random.Random) -> Any:
    """Return something that hardly anyone expects."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(NAMES)
    if kind <= 2:
        return rng.choice(NUMBERS)
    if kind == 3:
        return [rng.choice([*NUMBERS, *NAMES]) for _ in range(rng.randrange(5))]
    if kind == 4:
        return {rng.choice(NAMES): rng.choice([*NUMBERS, *NAMES]) for _ in range(rng.randrange(4))}
    return nested(rng.choice([1, 2, 60]), rng.choice([list, dict]))


def bytes_changed(rng: random.Random, content: bytes) -> bytes:
    """Return the bytes after some of what happens to bytes."""
    for _ in range(rng.randrange(1, 4)):
        place, n = rng.randrange(len(content) + 1), rng.choice([1, 1, 2, 8, 100])
        content = rng.choice(
            [
                content[:place],
                content[:place] + content[place + n :],
                content[:place] + rng.randbytes(n) + content[place:],
                content[:place] + rng.randbytes(n) + content[place + n :],
                content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
                if place < len(content)
                else content,
                content + content[place:],
            ]
        )
    return content


@contextmanager
def watched(what: str) -> Iterator[None]:
    """Raise TimeoutError after 20 seconds, which no reader turns into words of its own."""

    def give_up(*_: object) -> None:
        raise KeyboardInterrupt(f"{what}: still at it after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(what: str, read: Callable[[], Any], refusal: type[LmcError]) -> tuple[Any, str | None]:
    """Return what was read, or None and the words of the refusal; whatever else is raised is the reader's fault."""
    with watched(what):
        try:
            return read(), None
        except refusal as error:
            said = str(error)
    for line in said.split("\n"):
        assert line.isprintable(), f"{what}: {line!r}"
        assert len(line) <= 500, f"{what}: {len(line)} characters"
        assert not line.lstrip().startswith("::"), what
    assert said, what
    return None, said
