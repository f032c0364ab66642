"""What may be said names what the code knows: lists that are written twice, so that collecting is quick."""

from __future__ import annotations

import pytest

from lmccheck.alignment.api import METHODS
from lmccheck.alignment.beyond.freedoms import KINDS
from lmccheck.alignment.many import MANY_METHODS
from lmccheck.cli import endpoints
from lmccheck.errors import LmcError
from lmccheck.evaluate.segment import REPAIRS
from lmccheck.fusion.fuse import NORMS
from lmccheck.properties.registry import PROPERTIES
from lmccheck.properties.settings import MAPS, choices


@pytest.mark.parametrize(
    ("name", "setting", "known"),
    [
        ("linear_connectivity", "align", {"none", *METHODS.names()}),
        ("linear_connectivity", "repair", set(REPAIRS)),
        ("set_connectivity", "align", {"none", *METHODS.names()}),
        ("set_connectivity", "method", set(MANY_METHODS)),
        ("set_connectivity", "repair", set(REPAIRS)),
        ("fused_connectivity", "norm", set(NORMS)),
    ],
)
def test_every_method_may_be_asked_for(name: str, setting: str, known: set[str]) -> None:
    """And is named where a mistake is explained."""
    declared = PROPERTIES.get(name)
    assert set(choices(declared.parameters[setting].annotation)) == known
    assert set(declared.expected[setting].replace(" or ", ", ").split(", ")) == {f'"{method}"' for method in known}


@pytest.mark.parametrize(
    ("name", "setting", "value", "near"),
    [
        ("dropout_path", "keep", 0, 1e-9),
        ("noise_stability", "p", 1, 0.999),
        ("noise_stability", "p", 0, 0.001),
        ("dropout_stability", "keep", 0, 1e-9),
        ("dropout_stability", "keep", {"0": 0.5, "2": "half"}, {"0": 0.5, "2": 1}),
        ("dropout_stability", "keep", {}, 1),
    ],
)
def test_shares_end_where_they_say(name: str, setting: str, value: object, near: object) -> None:
    """No share of nothing, no certain chance, no share that is no number; what is next to them is a setting."""
    declared = PROPERTIES.get(name)
    assert declared.checked({setting: near}) == {setting: near}
    with pytest.raises(LmcError, match=f"{name}: {setting} = "):
        declared.checked({setting: value})


def test_every_map_may_be_asked_for_and_the_command_line_names_every_method() -> None:
    """Lists of the same."""
    assert set(MAPS) == set(KINDS)
    assert set(endpoints.METHODS.replace(" or ", ", ").split(", ")) == set(METHODS.names())
