"""The tables of ``lmc.toml``: which keys there are, of which types, and what a mistake is told to expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from lmccheck.properties.registry import COMMON, PROPERTIES, TAKEN
from lmccheck.store.documents import Strict

CALLABLE = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"
SOURCES = rf"\.safetensors$|^{CALLABLE}$"
LOSSES = ("cross_entropy", "mse", "next_token", "token_cross_entropy")

SOURCE = 'a path ending ".safetensors", "module:callable" or the name of a [data.NAME]'
LOSS = ", ".join(f'"{name}"' for name in LOSSES) + ' or "module:callable"'
SPEC_FILE = 'a path ending ".toml" or ".json"'
MODEL = '"module:callable", the callable returning a torch.nn.Module'
FILE = 'the path of a .safetensors file or of a model\'s folder, or { base = "…", adapter = "…" }'
MODELS = f"an array of two checkpoints or more, each {FILE}, or a pattern of paths"
ACCEPT = 'an array of names of what may differ between configs or tokenizers, such as ["rope_scaling"]'
UNTIE = "true, for heads written apart from the embeddings that they are tied to, or false"
HASH = "64 hexadecimal digits"
NAMING = {  # keys that name checkpoints, and where they belong
    "a": " (two checkpoints are a [pair.NAME])",
    "b": " (two checkpoints are a [pair.NAME])",
    "checkpoint": " (a single checkpoint is a [model.NAME])",
    "models": " (several checkpoints are a [set.NAME])",
    "parents": " (the parents of a merge are named in a [merge.NAME])",
    "recipe": " (the recipe of a merge is named in a [merge.NAME])",
}


class Sources(Strict):
    """Keys of ``[defaults]``, each of which a pair, a model, a set or a merge may override."""

    model: str | None = Field(default=None, pattern=f"^{CALLABLE}$", description=MODEL)
    data: str | dict[str, Any] | None = Field(default=None, description=SOURCE)
    calibration: str | dict[str, Any] | None = Field(default=None, description=SOURCE)
    loss: str | None = Field(default=None, description=LOSS)
    symmetry: str | None = Field(default=None, pattern=r"\.(toml|json)$", description=SPEC_FILE)
    accept: list[str] | None = Field(default=None, description=ACCEPT)

    @classmethod
    def elsewhere(cls, key: str, value: Any) -> str:
        """Say where checks and their settings belong, and that TOML takes a dot in a name for a table."""
        if key in {one.name for one in PROPERTIES}:
            return f" (it is a check: [….check.{key}])"
        if isinstance(value, dict):
            return ' (a name with a dot is quoted, as in [pair."v1.5"])'
        owners = [one.name for one in PROPERTIES if key in one.parameters]
        of_all = {*TAKEN, *(common.name for common in COMMON)}
        known = "PROPERTY" if key in of_all else owners[0] if owners else None
        return f" (it is one of a check: check.{known} = {{ {key} = … }})" if known else ""


class Measured(Sources):
    """What the tables of a pair, a model, a set and a merge have in common."""

    belongs: ClassVar[Mapping[str, str]] = NAMING


class PairTable(Measured):
    """Keys of ``[pair.NAME]``."""

    a: Any = Field(description=FILE)
    b: Any = Field(description=FILE)
    model_b: str | None = Field(default=None, pattern=f"^{CALLABLE}$", description=MODEL)
    untie: bool = Field(default=False, description=UNTIE)
    sha256: dict[str, Any] = Field(default={}, description='a table such as { a = "…", b = "…" }')
    check: dict[str, Any] = Field(default={}, description="a table of checks by property")


class ModelTable(Measured):
    """Keys of ``[model.NAME]``."""

    checkpoint: Any = Field(description=FILE)
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$", description=HASH)
    check: dict[str, Any] = Field(default={}, description="a table of checks by property")


class SetTable(Measured):
    """Keys of ``[set.NAME]``."""

    models: list[Any] | str = Field(min_length=1, description=MODELS)
    sha256: list[Any] = Field(default=[], description="an array of hashes, one for each of the models, in order")
    check: dict[str, Any] = Field(default={}, description="a table of checks by property")


class AdaptedTable(Strict):
    """Keys of a checkpoint that is an adapter on its base."""

    base: Any = Field(description=FILE)
    adapter: str = Field(min_length=1, description="the path of an adapter's folder")


class MergeTable(Measured):
    """Keys of ``[merge.NAME]``."""

    parents: dict[str, Any] = Field(
        min_length=1, description='a table of checkpoints by name such as { chat = "…", math = "…" }'
    )
    recipe: Any = Field(description="a table such as { linear = { chat = 0.5, math = 0.5 } }")
    base: Any = Field(default=None, description=FILE)
    shipped: Any = Field(default=None, description=FILE)
    align: str = Field(default="none", description="none or a method of alignment")
    untie: bool = Field(default=False, description=UNTIE)
    sha256: dict[str, Any] = Field(default={}, description="a table of hashes by parent, or of the base")
    check: dict[str, Any] = Field(default={}, description="a table of checks by property")


class Pins(Strict):
    """Keys of a pair's ``sha256``."""

    a: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$", description=HASH)
    b: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$", description=HASH)


class Top(Strict):
    """Keys of the file itself."""

    version: int = Field(alias="schema", ge=1, le=1, description="1")
    defaults: dict[str, Any] = Field(default={}, description="a table")
    data: dict[str, Any] = Field(default={}, description="a table of data by name, [data.NAME]")
    pair: dict[str, Any] = Field(default={}, description="a table of pairs")
    models: dict[str, Any] = Field(default={}, alias="model", description="a table of single models, [model.NAME]")
    sets: dict[str, Any] = Field(default={}, alias="set", description="a table of sets")
    merge: dict[str, Any] = Field(default={}, description="a table of merges")
