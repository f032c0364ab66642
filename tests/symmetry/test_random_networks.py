"""Random networks out of blocks, nested, branched and shared at random: whatever is derived keeps the function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from networks.quick import slowly
from networks.random import whole

import lmccheck
from lmccheck.symmetry.analysis import RULE_FAILED

FAMILIES = ("vectors", "tokens", "words", "images")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [6, slowly(130)])
def test_a_random_network_keeps_its_function(count: int, family: str) -> None:
    """So many networks of each family: no rule fails, no op is without one, f(π·θ) = f(θ), the last hidden layer is
    free."""

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data(), st.integers(0, 2**16))
    def sound(data: st.DataObject, seed: int) -> None:
        def pick(options: Sequence[Any]) -> Any:
            options = list(options)
            return options[data.draw(st.integers(0, len(options) - 1))]

        torch.manual_seed(seed)
        module, inputs = whole(pick, family)
        note(repr(module))
        spec = lmccheck.discover_symmetry(module.eval(), inputs)
        assert not spec.unruled
        assert not [frozen for frozen in spec.frozen if RULE_FAILED in frozen.reason]
        assert 7 in {group.size for group in spec.groups}
        assert spec.verify(module, inputs, trials=2, seed=seed) <= 1e-9

    sound()
