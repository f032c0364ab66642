"""What a manifest may say names what the properties know: lists that are written twice, so that collecting is quick."""

from __future__ import annotations

import typing
from typing import Any

from lmccheck.alignment.api import METHODS
from lmccheck.alignment.many import MANY_METHODS
from lmccheck.cli import endpoints as pair
from lmccheck.evaluate.segment import REPAIRS
from lmccheck.fusion.fuse import NORMS
from lmccheck.properties.kinds import SET_ALIGN, FusedConnectivitySettings, SetConnectivitySettings
from lmccheck.properties.settings import ALIGN, LinearConnectivitySettings


def literals(annotation: Any) -> set[str]:
    """Return the strings of every Literal inside an annotation."""
    parts = typing.get_args(annotation)
    return {p for p in parts if isinstance(p, str)} | {text for p in parts for text in literals(p)}


def test_every_method_may_be_asked_for_in_a_manifest() -> None:
    """And is named where a mistake is explained, and in the command line's help."""
    fields = LinearConnectivitySettings.model_fields
    assert literals(fields["align"].annotation) == {"none", *METHODS}
    assert literals(fields["repair"].annotation) == set(REPAIRS)
    assert set(ALIGN.replace(" or ", ", ").split(", ")) == {f'"{name}"' for name in ("none", *METHODS)}
    assert set(pair.METHODS.replace(" or ", ", ").split(", ")) == set(METHODS)


def test_what_sets_and_two_widths_know_may_be_asked_for_too() -> None:
    """A set has no ``none``: its matrix of unaligned barriers is always measured."""
    fields = SetConnectivitySettings.model_fields
    assert literals(fields["align"].annotation) == set(METHODS)
    assert set(SET_ALIGN.replace(" or ", ", ").split(", ")) == {f'"{name}"' for name in METHODS}
    assert literals(fields["method"].annotation) == set(MANY_METHODS)
    assert literals(fields["repair"].annotation) == set(REPAIRS)
    assert literals(FusedConnectivitySettings.model_fields["norm"].annotation) == set(NORMS)
