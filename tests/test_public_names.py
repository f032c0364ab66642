"""``import lmccheck`` is cheap, and every public name is where the documentation says."""

from __future__ import annotations

import subprocess
import sys

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


def test_an_unknown_name_is_an_attribute_error():
    """So that hasattr and typing mistakes behave."""
    with pytest.raises(AttributeError, match="module 'lmccheck' has no attribute 'allign'"):
        lmccheck.allign  # noqa: B018 - the access is what is tested


@pytest.mark.parametrize(
    "before",
    [
        "",
        "import lmccheck.align",
        "from lmccheck.align.api import align",
        "import lmccheck.align.weights",
        "lmccheck.Alignment",
    ],
)
def test_align_is_callable_whatever_was_imported_before(before):
    """The subpackage of the same name does not hide the function."""
    code = f"""
import lmccheck
{before}
import lmccheck.alignment.api as api
api.align = lambda pair, method="m", **options: (pair, method, options)
assert lmccheck.align("pair", "x", seed=3) == ("pair", "x", {{"seed": 3}})
assert lmccheck.align.api is api
from lmccheck import align
assert align("pair") == ("pair", "m", {{}})
print("ok")
"""
    assert run(code) == "ok\n"


def test_linear_connectivity_is_the_function():
    """Not the module that holds it."""
    code = "import lmccheck.properties.linear_connectivity, lmccheck; print(lmccheck.linear_connectivity.__name__)"
    assert run(code) == "linear_connectivity\n"
