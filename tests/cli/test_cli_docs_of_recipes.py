"""``lmccheck docs``: every recipe of a merge has a line and a page."""

from __future__ import annotations

import pytest

from lmccheck.cli.docs import overview, page
from lmccheck.merging.contract import RECIPES


@pytest.mark.parametrize("name", RECIPES.names())
def test_every_recipe_has_a_page(name: str) -> None:
    """How it is said in a manifest, what its value is, which keys may stand beside it, and what it makes."""
    recipe, text = RECIPES.get(name), page(name)
    assert f"`recipe = {{ {name} = … }}`, which is {recipe.expects}" in text
    assert all(f"`{option}`" in text for option in recipe.options)
    assert "Return" in text
    assert f"- `{name}`: Return" in overview()
