"""Delta debugging: what is found breaks it, nothing of it can be left out, and little is asked."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, combinations

import pytest

from lmccheck.diagnose.delta import Budget, minimal

Some = tuple[str, ...]
SIX = tuple("abcdef")


def subsets(items: Some) -> list[Some]:
    return list(chain.from_iterable(combinations(items, k) for k in range(len(items) + 1)))


def monotone(seed: int) -> Callable[[Some], bool]:
    """Broken by whatever holds one of three random sets of two to four."""
    draw = random.Random(seed)
    needed = [set(draw.sample(SIX, draw.randint(2, 4))) for _ in range(3)]
    return lambda some: any(need <= set(some) for need in needed)


def arbitrary(seed: int) -> Callable[[Some], bool]:
    """Broken by random sets, all six together among them, nothing not."""
    draw = random.Random(seed)
    table = {some: draw.random() < 0.4 for some in subsets(SIX)} | {(): False, SIX: True}
    return lambda some: table[some]


@dataclass
class Asked:
    """What breaks something, and what was asked of it."""

    breaks: Callable[[Some], bool]
    asked: list[Some] = field(default_factory=list)

    def __call__(self, some: Some) -> bool:
        self.asked.append(tuple(sorted(some)))
        return self.breaks(self.asked[-1])


@pytest.mark.parametrize("kind", [monotone, arbitrary])
@pytest.mark.parametrize("seed", range(10))
def test_nothing_of_what_is_found_can_be_left_out(kind: Callable[[int], Callable[[Some], bool]], seed: int) -> None:
    """Looked up in all subsets: it breaks, and no set of one less does; every choice is asked once."""
    breaks = Asked(kind(seed))
    found, proven = minimal(random.Random(seed).sample(SIX, 6), breaks)
    few = tuple(sorted(found))
    assert proven
    assert breaks.breaks(few)
    assert not any(breaks.breaks(less) for less in combinations(few, len(few) - 1))
    assert len(breaks.asked) == len(set(breaks.asked))


def test_one_that_others_mend_is_found() -> None:
    """b breaks it, and a mends b: what a search by prefixes leaves, b and c, is not minimal."""
    broken = {("b",), ("b", "c"), ("a", "b", "c")}
    assert minimal("abc", lambda some: some in broken) == (("b",), True)


@pytest.mark.parametrize("seed", range(20))
def test_two_of_sixty_four_take_few_questions(seed: int) -> None:
    """Whichever they are: at most 26, and three where they are suspected first."""
    items = [str(k) for k in range(64)]
    need = set(random.Random(seed).sample(items, 2))
    anywhere, first = (Asked(lambda some: need <= set(some)) for _ in range(2))
    found, proven = minimal(items, anywhere)
    assert (set(found), proven) == (need, True)
    assert len(anywhere.asked) <= 26
    assert set(minimal(sorted(items, key=lambda item: item not in need), first)[0]) == need
    assert len(first.asked) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_what_a_budget_does_not_prove_is_not_said_to_be_minimal(seed: int) -> None:
    """Under every budget what is found breaks it, and is the fewest where that is said."""
    items = [str(k) for k in range(16)]
    need = set(random.Random(seed).sample(items, 3))
    proofs = []
    for most in range(40):
        budget = Budget(most)

        def breaks(some: Some, budget: Budget = budget) -> bool:
            budget.spend()
            return need <= set(some)

        found, proven = minimal(items, breaks)
        assert need <= set(found)
        assert not proven or set(found) == need
        assert budget.used <= most
        proofs.append(proven)
    assert not proofs[0]
    assert proofs[-1]


def test_one_alone_is_minimal_even_if_nothing_is_left() -> None:
    """The first suspect breaks it, and the budget is spent: fewer than one are none, which do not break it."""
    budget = Budget(1)

    def breaks(some: Some) -> bool:
        budget.spend()
        return "c" in some

    assert minimal("cabdef", breaks) == (("c",), True)
