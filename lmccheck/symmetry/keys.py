"""The keys of a spec file, and what each is expected to be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lmccheck.store.documents import Strict

WHOLE = "a whole number of at least 0"
COUNT = "a whole number of at least 1"
COUNTS = "an array of whole numbers of at least 1"
Counts = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
Role = Literal["producer", "consumer"]


class SlotTable(Strict):
    """Keys of one entry of ``slots``."""

    tensor: str = Field(description="the name of a tensor")
    dim: int = Field(default=0, ge=0, description=WHOLE)
    role: Role | None = Field(default=None, description='"producer" or "consumer"')
    start: int | None = Field(default=None, ge=0, description=WHOLE)
    view: Counts | None = Field(default=None, description=COUNTS)
    strides: Counts | None = Field(default=None, description=COUNTS)
    axis: int = Field(default=0, ge=0, description=WHOLE)


class GroupTable(Strict):
    """Keys of ``[[group]]``."""

    name: str = Field(min_length=1, description="a name")
    size: int = Field(ge=1, description=COUNT)
    droppable: bool | None = Field(default=None, description="true or false")
    bound: str | None = Field(default=None, min_length=1, description="why its units may not be dropped, in words")
    within: list[str] = Field(default=[], description="an array of names of groups")
    slots: list[Any] = Field(min_length=1, description="an array of at least one slot")


class FrozenTable(Strict):
    """Keys of ``[[frozen]]``."""

    tensor: str = Field(description="the name of a tensor")
    dim: int = Field(ge=0, description=WHOLE)
    size: int = Field(ge=1, description=COUNT)
    reason: str = Field(description="why these positions stay, in words")


class Top(Strict):
    """Keys of the file itself."""

    version: int = Field(alias="schema", ge=1, le=1, description="1")
    model: str | None = Field(default=None, description="the name of a model")
    unruled: dict[str, int] = Field(default={}, description="a table of ops and how often each occurs")
    group: list[Any] = Field(default=[], description="an array of tables, [[group]]")
    frozen: list[Any] = Field(default=[], description="an array of tables, [[frozen]]")
