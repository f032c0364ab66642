"""``import lmccheck`` is cheap, and every public name is where the documentation says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lmccheck


def run(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_the_package_does_not_import_torch():
    """Nor anything else that takes time."""
    code = (
        "import lmccheck, sys; print({'torch', 'numpy', 'pydantic', 'pytest'} & set(sys.modules), lmccheck.__version__)"
    )
    assert run(code).startswith("set() ")


@pytest.mark.parametrize("name", lmccheck.__all__)
def test_every_public_name_is_served(name):
    """And listed by dir()."""
    assert getattr(lmccheck, name) is not None
    assert name in dir(lmccheck)


def test_strategies_are_there_without_an_import_of_their_own():
    """As the README writes them; and nothing of Hypothesis is imported before."""
    code = (
        "import lmccheck, sys; before = 'hypothesis' in sys.modules, 'strategies' in dir(lmccheck); "
        "print(*before, lmccheck.strategies.ts(None))"
    )
    assert run(code).startswith("False True ")


def test_an_unknown_name_is_an_attribute_error():
    """So that hasattr and typing mistakes behave."""
    with pytest.raises(AttributeError, match="module 'lmccheck' has no attribute 'allign'"):
        lmccheck.allign  # noqa: B018 - the access is what is tested


@pytest.mark.parametrize("name", lmccheck.__all__)
def test_no_package_has_the_name_of_a_public_name(name):
    """Importing such a package would hide the function or class of its name."""
    assert not (Path(lmccheck.__file__).parent / name / "__init__.py").exists()


def test_linear_connectivity_is_the_function():
    """Not the module that holds it."""
    code = "import lmccheck.properties.linear_connectivity, lmccheck; print(lmccheck.linear_connectivity.__name__)"
    assert run(code) == "linear_connectivity\n"
