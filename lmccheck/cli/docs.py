"""``lmccheck docs``: a page for every property, method, recipe, public name, fixture and strategy, as declared."""

from __future__ import annotations

import argparse
import ast
import inspect
from collections.abc import Mapping
from importlib import resources

from lmccheck.cli.command import HELD
from lmccheck.errors import LmcError, nearest

HELP = "show what a property, an alignment method, a recipe or a public name is"
DESCRIPTION = (
    "Print the page of NAME as Markdown, or, without one, a line for everything that has a page. Exit "
    "status: 0 fine, 2 an error."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("name", metavar="NAME", nargs="?", help="such as linear_connectivity or weight-matching")


def run(options: argparse.Namespace) -> int:
    """Print the page of a name, or the list of all."""
    print(overview() if options.name is None else page(options.name))
    return HELD


def overview() -> str:
    """Return one line for everything that has a page, part by part."""
    return "\n\n".join(_list(title, lines) for title, lines in _parts().items())


def _list(title: str, lines: Mapping[str, str]) -> str:
    return "\n".join([f"## {title}", *(f"- `{name}`: {said}" for name, said in lines.items())])


def _parts() -> dict[str, dict[str, str]]:
    """Return, by title, the names that have a page with a line each."""
    import lmccheck
    from lmccheck.alignment.methods import METHODS
    from lmccheck.merging.contract import RECIPES
    from lmccheck.properties.registry import PROPERTIES

    others = [name for name in lmccheck.__all__ if name not in PROPERTIES and not name.startswith("__")]
    return {
        "Properties": {each.name: each.claim for each in PROPERTIES},
        "Alignment methods": {each.name: each.description for each in METHODS},
        "Recipes of merges": {each.name: _first(each.make) for each in RECIPES},
        "In Python": {name: _first(getattr(lmccheck, name)) for name in others},
        "Fixtures of pytest": {name: text.partition("\n")[0] for name, text in fixtures().items()},
        "Strategies for Hypothesis (lmccheck.strategies)": {n: _first(each) for n, each in strategies().items()},
    }


def fixtures() -> dict[str, str]:
    """Return the fixtures by name with their texts, read from where they are declared: without pytest."""
    source = resources.files("lmccheck.gate").joinpath("fixtures.py").read_text(encoding="utf-8")
    made = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    found = {node.name: ast.get_docstring(node) or "" for node in made if any(map(_is_fixture, node.decorator_list))}
    return {name: text.replace("``", "`") for name, text in sorted(found.items())}


def _is_fixture(node: ast.expr) -> bool:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node) == "pytest.fixture"


def strategies() -> Mapping[str, object]:
    """Return what ``lmccheck.strategies`` offers, by name."""
    from lmccheck import strategies as offered

    return {name: getattr(offered, name) for name in offered.__all__}


def page(name: str) -> str:
    """Return the page of a property, method, recipe, public name, fixture or strategy; LmcError for any other name."""
    import lmccheck
    from lmccheck.alignment.methods import METHODS
    from lmccheck.merging.contract import RECIPES
    from lmccheck.properties import docs
    from lmccheck.properties.registry import PROPERTIES

    if name in METHODS:
        method = METHODS.get(name)
        needs = ", ".join(method.needs) or "nothing"
        parts = [f"# {name}", f"An alignment method. Needs: {needs}. Source: {method.source or 'this project'}."]
        return "\n\n".join([*parts, _text(method.run)])
    if name in RECIPES:
        recipe = RECIPES.get(name)
        beside = f" Beside it: `{'`, `'.join(recipe.options)}`." if recipe.options else ""
        needs = " Needs a `base`." if recipe.needs_base else ""
        said = f"A recipe of `[merge.NAME]`: `recipe = {{ {name} = … }}`, which is {recipe.expects}.{beside}{needs}"
        return "\n\n".join([f"# {name}", said, _text(recipe.make)])
    if name in lmccheck.__all__ and name not in PROPERTIES:
        value = getattr(lmccheck, name)
        shown = f"{name}{inspect.signature(value)}" if inspect.isfunction(value) else name
        return f"# {name}\n\n```python\n{shown}\n```\n\n{_text(value)}"
    if name in fixtures():
        return f"# {name}\n\nA fixture of pytest, there wherever lmccheck is installed.\n\n{fixtures()[name]}"
    if name in strategies():
        value = strategies()[name]
        shown = f"from lmccheck.strategies import {name}\n{name}{inspect.signature(value)}"  # type: ignore[arg-type]  # each is a function or a class
        return f"# {name}\n\n```python\n{shown}\n```\n\n{_text(value)}"
    if name not in PROPERTIES:
        for title, lines in _parts().items():  # a part by a word of its title: properties, recipes, strategies
            if name.lower().rpartition(".")[2] in title.lower().replace("(", " ").split():
                return _list(title, lines)
        known = [
            *PROPERTIES.names(),
            *METHODS.names(),
            *RECIPES.names(),
            *(each for each in lmccheck.__all__ if each not in PROPERTIES),
            *fixtures(),
            *strategies(),
        ]
        raise LmcError(f"docs: {name!r}: no such page{nearest(name, known)}; mend: lmccheck docs lists them")
    return docs.page(name)


def _text(value: object) -> str:
    return inspect.cleandoc(value.__doc__ or "").replace("``", "`")


def _first(value: object) -> str:
    return _text(value).partition("\n")[0]
