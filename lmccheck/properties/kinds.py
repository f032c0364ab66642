"""What may be asked of what: the properties of a pair, of a pair of two widths, and of a set; no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from lmccheck.properties.settings import LIMIT, SETTINGS, CheckSettings, Limit

SET_ALIGN = '"weight-matching", "activation-matching", "transport", "transport-both", "learned" or "best"'


class SetConnectivitySettings(CheckSettings):
    """The loss barriers between all pairs of a set, aligned in one frame."""

    align: (
        Literal["weight-matching", "activation-matching", "transport", "transport-both", "learned", "best"] | None
    ) = Field(default=None, description=SET_ALIGN)
    method: Literal["merge-many", "reference"] | None = Field(default=None, description='"merge-many" or "reference"')
    reference: int | None = Field(default=None, ge=0, description="the place of one of the models, counted from 0")
    limit: Limit | None = Field(default=None, description=LIMIT)
    points: int | None = Field(default=None, ge=3, le=10_001, description="a whole number from 3 to 10001")
    repair: Literal["none", "bn", "repair"] | None = Field(default=None, description='"none", "bn" or "repair"')


class FusedConnectivitySettings(CheckSettings):
    """The loss barrier between θ_A and a θ_B of other widths, fused to θ_A's."""

    norm: Literal["activations", "weights"] | None = Field(default=None, description='"activations" or "weights"')
    limit: Limit | None = Field(default=None, description=LIMIT)
    points: int | None = Field(default=None, ge=3, le=10_001, description="a whole number from 3 to 10001")


SET_SETTINGS: dict[str, type[CheckSettings]] = {"set_connectivity": SetConnectivitySettings}
FUSED_SETTINGS: dict[str, type[CheckSettings]] = {"fused_connectivity": FusedConnectivitySettings}

OF_PAIRS = "a pair without model_b"
OF_WIDTHS = "a pair with model_b, of two widths"
OF_SETS = "a set"
KINDS: Mapping[str, Mapping[str, type[CheckSettings]]] = {
    OF_PAIRS: SETTINGS,
    OF_WIDTHS: FUSED_SETTINGS,
    OF_SETS: SET_SETTINGS,
}


def belongs_to(property_name: object) -> str | None:
    """Return what a property is a property of, or None where there is no such property.

    >>> belongs_to("set_connectivity"), belongs_to("set_conectivity")
    ('a set', None)
    """
    return next((kind for kind, known in KINDS.items() if property_name in known), None)
