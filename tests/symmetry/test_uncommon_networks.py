"""Networks that few write: each needs a rule that nothing else needs, is sound, and has the groups derived by hand."""

from __future__ import annotations

import pytest
from networks import ALL, NETWORKS
from networks.registry import discovered, found_groups

from lmccheck.symmetry.analysis import RULE_FAILED

UNCOMMON = [name for name in ALL if name.startswith("uncommon ")]


@pytest.mark.parametrize("name", UNCOMMON)
def test_an_uncommon_network_is_sound_and_its_groups_are_found(name: str) -> None:
    """No op without a rule, no rule that fails, f(π·θ) = f(θ), and the group sizes that are there."""
    module, inputs, spec = discovered(name)
    module.eval()
    assert not spec.unruled
    assert not [frozen for frozen in spec.frozen if RULE_FAILED in frozen.reason]
    assert spec.verify(module, inputs) <= 1e-9
    assert found_groups(spec) == ALL[name].groups


@pytest.mark.parametrize("name", [name for name in ALL if name not in NETWORKS and name not in UNCOMMON])
def test_a_network_made_for_one_rule_is_sound(name: str) -> None:
    """The networks that catch wrong rules are treated right by the right ones."""
    module, inputs, spec = discovered(name)
    module.eval()
    assert not spec.unruled
    assert not [frozen for frozen in spec.frozen if RULE_FAILED in frozen.reason]
    assert spec.verify(module, inputs) <= 1e-9
