"""Strategies for Hypothesis about trained models: draw what may be asked of a pair, a set or a merge, and shrink it.

Each is bound to what it draws for: a pair, a single model, a set or a merge, or the name of a pytest fixture that is
one. What is drawn shows itself as one line of code, is made smaller towards what is simplest, and has a loss that is
measured once, so that no example is ever flaky. What ``@given`` draws is searched, not sampled: its examples are not
independent, and no mean, share or interval of them says anything.

    @given(c=coefficients("lmc_pair"))
    def test_layers_may_be_mixed(lmc_pair, c):
        assert toward_worst(height(lmc_pair, c)) <= 0.05
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis.strategies import SearchStrategy

from lmccheck.errors import LmcError
from lmccheck.strategies import draws
from lmccheck.strategies.dyadic import BITS
from lmccheck.strategies.losses import height as height
from lmccheck.strategies.losses import loss as loss
from lmccheck.strategies.values import DroppedUnits as DroppedUnits
from lmccheck.strategies.values import PermutedUnits as PermutedUnits
from lmccheck.strategies.values import Rows as Rows
from lmccheck.strategies.values import WeightNoise as WeightNoise
from lmccheck.strategies.worst import toward_worst as toward_worst

ANY = ("pair", "model", "set", "merge")
__all__ = [
    "DroppedUnits", "PermutedUnits", "Rows", "WeightNoise", "batches", "coefficients", "dropout_masks", "height",
    "loss", "merge_weights", "noise", "permutations", "toward_worst", "ts",
]  # fmt: skip


def ts(on: Any = None, *, bits: int = BITS) -> SearchStrategy[float]:
    """Points t of the line between two endpoints: dyadic rationals in [0, 1], shrinking to 1/2.

    ``on``: a pair, for which it is checked that there is a line; it may be left out. ``bits``: t is a multiple of
    2^−bits, 1 to 20. It shrinks to the smallest denominator, then towards 1/2.
    """
    _checked("ts", on, ("pair",), free=True)
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 20:
        raise LmcError(f"ts: bits = {bits!r}; expected a whole number from 1 to 20")
    return draws.t_of(bits)


def coefficients(
    on: Any, *, per: str = "layer", layers: Sequence[str] | None = None, align: str = "none"
) -> SearchStrategy[dict[str, float]]:
    """Coefficients of a pair's layers, ``{"fc1": 0.5}``: 0 is θ_A, 1 is θ_B, and zeros are dropped.

    ``layers``: those that may have one, all in which the ends differ by default (``align`` says of which b).
    Shrinks to the fewest layers, then to 1/2.
    """
    if per != "layer":
        raise LmcError(f"coefficients: per = {per!r}; expected 'layer'")
    _checked("coefficients", on, ("pair",))
    return draws.coefficients_of(on, layers, align, BITS)


def permutations(on: Any, *, groups: Sequence[str] | None = None, swaps: int = 8) -> SearchStrategy[PermutedUnits]:
    """Members of the permutation group that was derived from the network and verified; shrinks to the fewest swaps.

    ``groups``: unit groups that may move; then nothing but at most ``swaps`` swaps is drawn, else a random member, too.
    """
    _checked("permutations", on, ANY)
    return draws.permutations_of(on, groups, swaps)


def dropout_masks(on: Any, *, groups: Sequence[str] | None = None, rate: float = 0.5) -> SearchStrategy[DroppedUnits]:
    """Sets of hidden units to drop, each unit at about ``rate`` (a multiple of 1/16); shrinks to the fewest units.

    ``groups``: unit groups of which units are dropped, all that can be by default. One unit of each stays.
    """
    _checked("dropout_masks", on, ANY)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 1 / 16 <= rate <= 15 / 16:
        raise LmcError(f"dropout_masks: rate = {rate!r}; expected a number from 1/16 to 15/16")
    return draws.dropped_of(on, groups, rate)


def batches(on: Any, *, most: int = 64) -> SearchStrategy[Rows]:
    """Rows of the evaluation data, at most ``most`` of them; shrinks to the fewest, then to the first ones."""
    _checked("batches", on, ANY)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise LmcError(f"batches: most = {most!r}; expected a whole number above 0")
    return draws.rows_of(on, most)


def noise(on: Any, *, most: float = 0.1) -> SearchStrategy[WeightNoise]:
    """Gaussian noise in every parameter, of at most ``most`` times its norm; shrinks to the smallest, then seed 0."""
    _checked("noise", on, ANY)
    if isinstance(most, bool) or not isinstance(most, (int, float)) or not 0 < most < float("inf"):
        raise LmcError(f"noise: most = {most!r}; expected a number above 0")
    return draws.noise_of(on, float(most))


def merge_weights(on: Any) -> SearchStrategy[dict[str, float]]:
    """Weights ≥ 0 of the models of a set, a merge or a pair, which sum to 1; zeros dropped, shrinks to equal ones."""
    _checked("merge_weights", on, ("pair", "set", "merge"))
    return draws.weights_of(on)


def _checked(what: str, on: Any, kinds: Sequence[str], *, free: bool = False) -> None:
    """Raise LmcError where a strategy means nothing for what it is bound to; a fixture is looked at later."""
    if isinstance(on, str) or (free and on is None):
        return
    draws.bound(on, what, kinds)
