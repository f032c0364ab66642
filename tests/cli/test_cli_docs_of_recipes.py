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


def test_a_part_of_the_list_has_a_page() -> None:
    """By a word of its title, in any case: strategies, with the module's name too; no other part comes with it."""
    assert page("strategies") == page("lmccheck.strategies")
    assert page("strategies").startswith("## Strategies for Hypothesis")
    assert "## Recipes" not in page("strategies")
    assert page("Recipes").startswith("## Recipes of merges")
