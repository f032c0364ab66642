"""The tables of a permutation spec as people write it: the keys of each, and what groups say of one another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from lmccheck.errors import SymmetryError, nearest
from lmccheck.store.documents import Strict, read_table
from lmccheck.symmetry.slots import containers_first

MOST_PROBLEMS = 10  # a spec of another network has one for every slot
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

    @property
    def title(self) -> str:
        """What messages call the group."""
        return f"group {quoted(self.name)}"


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


class Problems(list[str]):
    """The mistakes of a description, told together; ``origin`` begins every line."""

    def __init__(self, origin: str) -> None:
        super().__init__()
        self.origin = origin

    def append(self, problem: str) -> None:
        super().append(problem)
        if len(self) == MOST_PROBLEMS:
            super().append(f"only the first {MOST_PROBLEMS} mistakes are shown; mend: is it this network's spec?")
            self.settle()

    def settle(self) -> None:
        """Raise SymmetryError if there are any."""
        if self:
            raise SymmetryError("\n".join(f"{self.origin}: {problem}" for problem in self))


def read_groups(groups: Sequence[Any], problems: Problems) -> list[GroupTable]:
    """Return the tables of groups in their order, but each after those it lies in."""
    if isinstance(groups, (str, Mapping)) or not isinstance(groups, Sequence):
        problems.append(f"group: got {type(groups).__name__}, expected a sequence of groups")
        problems.settle()
    tables: dict[str, GroupTable] = {}
    for k, values in enumerate(map(_plain, groups)):
        name = values.get("name") if isinstance(values, dict) else None
        title = f"group {quoted(name)}" if isinstance(name, str) and name else f"group[{k}]"
        table = read_table(GroupTable, values, title, problems, ": ")
        if table is None:
            continue
        if table.name in tables:
            problems.append(f"{title}: the name occurs twice; mend: rename one, or join their slots")
        if table.droppable and table.bound:
            problems.append(f"{title}: got droppable = true and bound, expected one of them")
        tables[table.name] = table
    for table in tables.values():
        _check_within(table, tables, problems)
    problems.settle()
    return [tables[name] for name in containers_first({name: table.within for name, table in tables.items()})]


def _check_within(table: GroupTable, tables: Mapping[str, GroupTable], problems: Problems) -> None:
    """Check that ``within`` names groups, all of those around them too, and never comes back to the group."""
    where = f"{table.title}: within"
    for name in table.within:
        got = f"{where}: got {quoted(name)}"
        if name not in tables:
            problems.append(f"{got}, expected the name of a group{nearest(name, tables)}")
        elif name == table.name or table.name in tables[name].within:
            problems.append(f"{got}, which lies in {quoted(table.name)} itself, expected no cycle")
        elif absent := [outer for outer in tables[name].within if outer not in table.within]:
            problems.append(f"{got} without {quoted(absent[0])}, in which that lies; mend: name every containing group")
    if len(set(table.within)) < len(table.within):
        problems.append(f"{where}: a group occurs twice, expected each once")


def _plain(values: Any) -> Any:
    """Return dicts and lists, as a file would have given, for any mappings and sequences."""
    if isinstance(values, Mapping):
        return {key: _plain(value) for key, value in values.items()}
    return list(map(_plain, values)) if isinstance(values, Sequence) and not isinstance(values, str) else values


def quoted(name: str | None) -> str:
    """Return a name as a file has it."""
    return json.dumps(name, ensure_ascii=False)
