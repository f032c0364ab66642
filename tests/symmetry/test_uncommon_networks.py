"""Networks that few write: each needs a rule that nothing else needs, is sound, and has the groups derived by hand."""

from __future__ import annotations

import pytest
import torch
from mutant_networks import MUTANT_NETWORKS
from rule_networks import RULE_NETWORKS
from uncommon import GROUPS, UNCOMMON

import lmccheck
from lmccheck.symmetry.analysis import RULE_FAILED


@pytest.mark.parametrize("name", UNCOMMON)
def test_an_uncommon_network_is_sound_and_its_groups_are_found(name: str) -> None:
    """No op without a rule, no rule that fails, f(π·θ) = f(θ), and the group sizes that are there."""
    torch.manual_seed(0)
    module, inputs = UNCOMMON[name]()
    module.eval()
    spec = lmccheck.discover_symmetry(module, inputs)
    assert not spec.unruled
    assert not [frozen for frozen in spec.frozen if RULE_FAILED in frozen.reason]
    assert spec.verify(module, inputs) <= 1e-9
    assert [(g.size, g.copies) if g.within else g.size for g in spec.groups] == GROUPS[name]


@pytest.mark.parametrize("name", [*RULE_NETWORKS, *(f"mutant_{name}" for name in MUTANT_NETWORKS)])
def test_a_network_made_for_one_rule_is_sound(name: str) -> None:
    """The networks that catch wrong rules are treated right by the right ones."""
    torch.manual_seed(0)
    table = RULE_NETWORKS if name in RULE_NETWORKS else MUTANT_NETWORKS
    module, inputs = table[name.removeprefix("mutant_") if table is MUTANT_NETWORKS else name]()
    spec = lmccheck.discover_symmetry(module.eval(), inputs)
    assert not spec.unruled
    assert not [frozen for frozen in spec.frozen if RULE_FAILED in frozen.reason]
    assert spec.verify(module, inputs) <= 1e-9
