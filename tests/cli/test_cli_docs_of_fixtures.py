"""``lmccheck docs``: pages of fixtures and strategies, from where they are declared."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lmccheck import strategies
from lmccheck.cli.docs import fixtures, overview, page
from lmccheck.errors import LmcError
from lmccheck.gate import fixtures as declared

FIXTURES = ["lmc", "lmc_data", "lmc_device", "lmc_loss", "lmc_model_factory", "lmc_pair", "lmc_record"]


@pytest.mark.parametrize("name", FIXTURES)
def test_every_fixture_has_a_page_with_what_its_declaration_says(name: str) -> None:
    """Word for word, and a line in the list."""
    assert list(fixtures()) == FIXTURES
    text = page(name)
    assert text.startswith(f"# {name}\n\nA fixture of pytest")
    first = (getattr(declared, name).__doc__ or "").strip().partition("\n")[0].replace("``", "`")
    assert first in text
    assert f"- `{name}`: {first}" in overview()


@pytest.mark.parametrize("name", strategies.__all__)
def test_every_strategy_has_a_page(name: str) -> None:
    """With how it is imported and called."""
    text = page(name)
    assert f"from lmccheck.strategies import {name}\n{name}(" in text
    assert f"- `{name}`: " in overview()


def test_a_wrong_name_is_compared_with_them_too() -> None:
    """The nearest one is named."""
    with pytest.raises(LmcError, match="did you mean 'lmc_pair'"):
        page("lmc_pairs")


def test_pages_of_fixtures_need_no_pytest() -> None:
    """They are read from the source."""
    said = "page('lmc_record')[:12], {'pytest'} & set(sys.modules)"
    code = f"import sys\nfrom lmccheck.cli.docs import page\nprint({said})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "# lmc_record set()\n"
