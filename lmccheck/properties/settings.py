"""The settings a manifest may give to each property: one model per property, in a registry; no torch here.

A setting left out of the manifest stays None and is not passed on, so that defaults live in one place, the property
itself, where they may depend on the profile.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lmccheck.store.documents import Strict

LIMIT = 'a number ≥ 0 in nats, or a percentage of the worse endpoint\'s loss such as "5%"'

ALIGN = '"none", "weight-matching", "activation-matching", "transport", "transport-both", "learned" or "best"'


def _limit(value: Any) -> float | str:
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    raise ValueError(LIMIT)


Limit = Annotated[float | str, BeforeValidator(_limit)]
MAPS = ("rescaling", "sign-flips", "head-maps", "stream-rotation")
BEYOND = f'"all" or a list of some of {", ".join(MAPS)}'


def _beyond(value: Any) -> Any:
    if value == "all" or (isinstance(value, list) and value and all(name in MAPS for name in value)):
        return value
    raise ValueError(BEYOND)


Beyond = Annotated[str | list[str], BeforeValidator(_beyond)]


class CheckSettings(Strict):
    """What every check may say."""

    property: str | None = Field(default=None, description="the name of a property")
    severity: Literal["fail", "warn"] = Field(default="fail", description='"fail" or "warn"')

    def given(self) -> dict[str, Any]:
        """The property's own settings that the manifest states."""
        return {key: getattr(self, key) for key in sorted(self.model_fields_set - {"property", "severity"})}


class LinearConnectivitySettings(CheckSettings):
    """The loss barrier on the segment between θ_A and the aligned θ_B."""

    align: (
        Literal["none", "weight-matching", "activation-matching", "transport", "transport-both", "learned", "best"]
        | None
    ) = Field(default=None, description=ALIGN)
    limit: Limit | None = Field(default=None, description=LIMIT)
    points: int | None = Field(default=None, ge=3, le=10_001, description="a whole number from 3 to 10001")
    beyond: Beyond | None = Field(default=None, description=BEYOND)
    repair: Literal["none", "bn", "repair"] | None = Field(default=None, description='"none", "bn" or "repair"')


HALF = "a number above 0 and at most 0.5"
SHARE = "a number above 0 and at most 1"
SHARES = f"{SHARE}, or a table of them by unit group"


def _shares(value: Any) -> Any:
    several = list(value.values()) if isinstance(value, dict) and value else [value]
    if all(isinstance(share, (int, float)) and not isinstance(share, bool) and 0 < share <= 1 for share in several):
        return value if isinstance(value, dict) else float(value)
    raise ValueError(SHARES)


class DropoutStabilitySettings(CheckSettings):
    """What dropping units costs, from each layer on (Definition 1)."""

    epsilon: Limit | None = Field(default=None, description=LIMIT)
    keep: Annotated[float | dict[str, float] | None, BeforeValidator(_shares)] = Field(default=None, description=SHARES)
    refit: bool | None = Field(default=None, description="true or false")


class NoiseStabilitySettings(CheckSettings):
    """What random dropout masks cost on the way to them (Lemma 3)."""

    epsilon: Limit | None = Field(default=None, description=LIMIT)
    p: float | None = Field(default=None, ge=0, lt=1, description="a number from 0 to below 1")
    masks: int | None = Field(default=None, ge=1, le=100_000, description="a whole number from 1 to 100000")


class TenSegmentPathSettings(CheckSettings):
    """The largest loss on the ten-segment path of Theorem 2."""

    epsilon: Limit | None = Field(default=None, description=LIMIT)
    keep: float | None = Field(default=None, gt=0, le=0.5, description=HALF)
    refit: bool | None = Field(default=None, description="true or false")
    form: Literal["ten", "short"] | None = Field(default=None, description='"ten" or "short"')


class DropoutPathSettings(CheckSettings):
    """The largest loss on the path of Theorem 1, or of Theorem 3 through a narrow network."""

    epsilon: Limit | None = Field(default=None, description=LIMIT)
    keep: float | None = Field(default=None, gt=0, le=1, description=SHARE)
    refit: bool | None = Field(default=None, description="true or false")
    form: Literal["paper", "short"] | None = Field(default=None, description='"paper" or "short"')
    through: str | None = Field(default=None, min_length=1, description="the path of a .safetensors file")
    through_model: str | None = Field(
        default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", description='"module:callable"'
    )


class VerifyPathSettings(CheckSettings):
    """A saved path, certified anew."""

    path: str = Field(min_length=1, description="the path of a file that save_path wrote")
    epsilon: Limit | None = Field(default=None, description=LIMIT)


class VerifyDropoutSettings(CheckSettings):
    """Saved dropped networks, measured anew."""

    witness: str = Field(min_length=1, description="the path of a file that dropout_stability's witness was saved to")
    epsilon: Limit | None = Field(default=None, description=LIMIT)
    keep: float | None = Field(default=None, gt=0, le=1, description=SHARE)


SETTINGS: dict[str, type[CheckSettings]] = {
    "linear_connectivity": LinearConnectivitySettings,
    "dropout_stability": DropoutStabilitySettings,
    "noise_stability": NoiseStabilitySettings,
    "ten_segment_path": TenSegmentPathSettings,
    "dropout_path": DropoutPathSettings,
    "verify_path": VerifyPathSettings,
    "verify_dropout": VerifyDropoutSettings,
}
