"""``lmccheck docs``: a page for every property, alignment method, recipe and public name, made from its declaration."""

from __future__ import annotations

import argparse
import inspect

from lmccheck.cli.command import HELD, Commands
from lmccheck.errors import LmcError, nearest


def add_to(commands: Commands) -> None:
    """Add the command's parser."""
    command = commands.add_parser(
        "docs",
        help="show what a property, an alignment method, a recipe or a public name is",
        description="Print the page of NAME as Markdown, or, without one, a line for everything that has a page. Exit "
        "status: 0 fine, 2 an error.",
        allow_abbrev=False,
    )
    command.set_defaults(run=run)
    command.add_argument("name", metavar="NAME", nargs="?", help="such as linear_connectivity or weight-matching")


def run(options: argparse.Namespace) -> int:
    """Print the page of a name, or the list of all."""
    print(overview() if options.name is None else page(options.name))
    return HELD


def overview() -> str:
    """Return one line per property, alignment method, recipe and public name."""
    import lmccheck
    from lmccheck.alignment.methods import METHODS
    from lmccheck.merging.contract import RECIPES
    from lmccheck.properties.registry import PROPERTIES

    others = [name for name in lmccheck.__all__ if name not in PROPERTIES and not name.startswith("__")]
    parts = {
        "Properties": {each.name: each.claim for each in PROPERTIES},
        "Alignment methods": {each.name: each.description for each in METHODS},
        "Recipes of merges": {each.name: _first(each.make) for each in RECIPES},
        "In Python": {name: _first(getattr(lmccheck, name)) for name in others},
    }
    return "\n\n".join(
        "\n".join([f"## {title}", *(f"- `{name}`: {said}" for name, said in lines.items())])
        for title, lines in parts.items()
    )


def page(name: str) -> str:
    """Return the page of a property, a method, a recipe or a public name. Raises LmcError for any other name."""
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
    if name not in PROPERTIES:
        known = [
            *PROPERTIES.names(),
            *METHODS.names(),
            *RECIPES.names(),
            *(each for each in lmccheck.__all__ if each not in PROPERTIES),
        ]
        raise LmcError(f"docs: {name!r}: no such page{nearest(name, known)}; mend: lmccheck docs lists them")
    return docs.page(name)


def _text(value: object) -> str:
    return inspect.cleandoc(value.__doc__ or "").replace("``", "`")


def _first(value: object) -> str:
    return _text(value).partition("\n")[0]
