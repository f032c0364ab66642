"""A permutation spec as a file: what is written is read back exactly, and every mistake is one line to mend it by."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, LanguageModel
from networks.registry import discovered
from torch import nn

import lmccheck
from lmccheck import LmcError, SourceError, SymmetryError
from lmccheck.modules.random_weights import randomised
from lmccheck.symmetry.spec_reader import UNSAID
from lmccheck.symmetry.spec_tables import MOST_PROBLEMS


def as_json(path: Path) -> Path:
    """Write the tables of a TOML file as JSON beside it."""
    twin = path.with_suffix(".json")
    twin.write_text(json.dumps(tomllib.loads(path.read_text()), ensure_ascii=False))
    return twin


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_saved_is_loaded_exactly(name: str, tmp_path: Path) -> None:
    """Groups, slots, layouts and frozen axes come back equal, read as JSON too, and move weights alike."""
    module, _, spec = discovered(name)
    weights, permutation = randomised(module), spec.random(5)
    moved = spec.apply(weights, permutation)
    saved = lmccheck.save_spec(spec, tmp_path / "spec.toml", model="m:f")
    for path in (saved, as_json(saved)):
        loaded = lmccheck.load_spec(path, module)
        assert loaded == spec
        again = loaded.apply(weights, permutation)
        assert all(torch.equal(again[key], moved[key]) for key in weights)
        assert list(loaded.by_name) == list(spec.by_name)  # the order decides what a seed means


def test_a_file_reads_well(tmp_path: Path) -> None:
    """One slot a line, defaults left out; exactly this text."""
    module, _, _ = discovered("mobilenet")
    wide = [{"tensor": "7.weight", "view": [8, 2]}, {"tensor": "9.weight", "dim": 1, "view": [8, 2]}]
    a = {"name": "a", "size": 8, "droppable": True, "slots": [{"tensor": "6.weight"}, *wide]}
    b = {"name": "b", "size": 2, "within": ["a"], "slots": [{**slot, "axis": 1} for slot in wide]}
    small = lmccheck.spec_from_groups(module, [a, b])
    text = lmccheck.save_spec(small, tmp_path / "spec.toml", model="models:mobile").read_text()
    assert text.split("\n", 2)[2] == (
        """\
schema = 1
model = "models:mobile"

[[group]]
name = "a"
size = 8
droppable = true
slots = [
    { tensor = "6.weight", dim = 0 },
    { tensor = "7.weight", dim = 0, view = [8, 2], axis = 0 },
    { tensor = "9.weight", dim = 1, view = [8, 2], axis = 0 },
]

[[group]]
name = "b"
size = 2
within = ["a"]
bound = "the spec does not say that its units may be dropped"
slots = [
    { tensor = "7.weight", dim = 0, view = [8, 2], axis = 1 },
    { tensor = "9.weight", dim = 1, view = [8, 2], axis = 1 },
]
"""
    )


def test_any_text_survives(tmp_path: Path) -> None:
    """Quotes, backslashes, control characters and letters beyond ASCII are written as TOML wants them."""
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    odd = 'a "b" \\ c\n\t\x00\x1f\x7f\x85\u2028 θ 😀 ]]'
    slots = [{"tensor": "0.weight"}, {"tensor": "1.weight", "dim": 1}]
    spec = lmccheck.spec_from_groups(module, [{"name": odd, "size": 3, "bound": odd, "slots": slots}])
    saved = lmccheck.save_spec(spec, tmp_path / "spec.toml", model=odd)
    for path in (saved, as_json(saved)):
        loaded = lmccheck.load_spec(path, module)
        assert loaded.groups == spec.groups
        assert loaded.groups[0].bound == odd


def test_a_description_may_be_python_objects() -> None:
    """Tuples and mappings do as well as what a file can hold."""
    module = nn.Sequential(nn.Linear(2, 6), nn.Linear(6, 1))
    view = torch.Size((2, 3))
    slots = ({"tensor": "0.weight", "view": view}, {"tensor": "1.weight", "dim": 1, "view": view})
    spec = lmccheck.spec_from_groups(module, ({"name": "a", "size": 2, "droppable": True, "slots": slots},))
    assert (spec.groups[0].droppable, [slot.role for slot in spec.groups[0].slots]) == (True, ["producer", "consumer"])


def test_a_tied_name_stands_for_its_tensor() -> None:
    """Any name of a shared tensor may be given; the spec knows it by the first, and both are the same slot."""
    module = LanguageModel()
    names = ["head.weight", "tokens.weight"]
    slots = [{"tensor": name, "dim": 1, "role": "producer"} for name in names]
    spec = lmccheck.spec_from_groups(module, [{"name": "width", "size": 8, "slots": slots}])
    assert [slot.tensor for slot in spec.groups[0].slots] == ["tokens.weight"]
    assert spec.groups[0].bound == UNSAID


def test_containers_may_come_after_what_they_contain() -> None:
    """The groups of a spec are ordered containers first, however they were written."""
    module = nn.Sequential(nn.Linear(2, 6), nn.Linear(6, 1))
    view = [2, 3]
    tensors = [{"tensor": "0.weight", "view": view}, {"tensor": "1.weight", "dim": 1, "view": view}]
    inner = {"name": "in", "size": 3, "within": ["out"], "slots": [{**slot, "axis": 1} for slot in tensors]}
    spec = lmccheck.spec_from_groups(module, [inner, {"name": "out", "size": 2, "slots": tensors}])
    assert [(g.name, g.shape) for g in spec.groups] == [("out", (2,)), ("in", (2, 3))]


def test_a_spec_by_hand_equals_the_derived_one() -> None:
    """For a network whose groups are known the description moves weights as the traced spec does."""
    module, inputs, spec = discovered("encoder_separate")

    def slot(of: lmccheck.Slot) -> dict[str, Any]:
        return {"tensor": of.tensor, "dim": of.dim, "view": [part.size for part in of.piece.parts], "axis": of.at}

    groups = [
        {"name": group.name, "size": group.size, "within": group.within, "slots": list(map(slot, group.slots))}
        for group in spec.groups
    ]
    described = lmccheck.spec_from_groups(module, groups)
    assert described.layouts == spec.layouts
    assert described.verify(module, inputs) <= 1e-9


class Net(nn.Module):
    """4 → 6 → 3, an integer buffer, a view of a weight, a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("steps", torch.zeros(6, dtype=torch.int64))
        self.register_buffer("scale", torch.ones(()))
        self.whole = nn.Parameter(torch.zeros(6, 2))
        self.part = nn.Parameter(self.whole.data[:, 0])


def group(name: str = "h", size: int = 6, slots: Any = None, **keys: Any) -> dict[str, Any]:
    return {"name": name, "size": size, "slots": [{"tensor": "a.weight"}] if slots is None else slots, **keys}


def views(axis: int, *tensors: str, view: tuple[int, ...] = (2, 3)) -> list[dict[str, Any]]:
    return [{"tensor": name, "view": list(view), "axis": axis} for name in tensors]


NO_TENSOR = "expected a tensor of model Net"
SLOT_KEYS = "tensor, dim, role, start, view, strides, axis"
WHOLE, COUNTS = "a whole number of at least 0", "an array of whole numbers of at least 1"
SLOT = 'group "h": slots[0]'
A_6 = "a.weight has 6 positions in dimension 0"


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([3], "group[0]: got 3, expected a table"),
        ([{"size": 6, "slots": [{}]}], "group[0]: name: missing, expected a name"),
        ([group(size=0)], 'group "h": size: got 0, expected a whole number of at least 1'),
        ([group(size=True)], 'group "h": size: got true (a boolean), expected a whole number of at least 1'),
        ([group(slots=[])], 'group "h": slots: got an array, expected an array of at least one slot'),
        ([group(drop=1)], 'group "h": drop: unknown key (did you mean \'droppable\'?), expected one of '
         "name, size, droppable, bound, within, slots"),
        ([group(), group(slots=[{"tensor": "a.bias"}])],
         'group "h": the name occurs twice; mend: rename one, or join their slots'),
        ([group(droppable=True, bound="no")], 'group "h": got droppable = true and bound, expected one of them'),
        ([group(droppable=True)], 'group "h": droppable: got true, but no slot is a consumer, whose weights dropping '
         'a unit would set to zero; mend: give its outgoing weights role = "consumer"'),
        ([group(slots=["a.weight"])], f'{SLOT}: got "a.weight" (a string), expected a table'),
        ([group(slots=[{"tensor": "a.wieght"}])],
         f"{SLOT}.tensor: got \"a.wieght\", {NO_TENSOR} (did you mean 'a.weight'?)"),
        ([group(slots=[{"tensor": "a.weight", "axes": 1}])],
         f"{SLOT}.axes: unknown key (did you mean 'axis'?), expected one of {SLOT_KEYS}"),
        ([group(slots=[{"tensor": "a.weight", "dim": "1"}])], f'{SLOT}.dim: got "1" (a string), expected {WHOLE}'),
        ([group(slots=[{"tensor": "a.weight", "dim": -1}])], f"{SLOT}.dim: got -1, expected {WHOLE}"),
        ([group(slots=[{"tensor": "a.weight", "dim": 2}])],
         f"{SLOT}.dim: got 2, expected 0 to 1: a.weight has shape (6, 4)"),
        ([group(slots=[{"tensor": "scale"}])], f"{SLOT}.dim: got 0, expected no slot: scale has shape ()"),
        ([group(slots=[{"tensor": "a.weight", "role": "reader"}])],
         f'{SLOT}.role: got "reader" (a string), expected "producer" or "consumer"'),
        ([group(slots=[{"tensor": "steps"}])],
         f'{SLOT}.tensor: "steps" is int64, expected floats: no other is ever permuted'),
        ([group(slots=[{"tensor": "part"}])],
         f'{SLOT}.tensor: "part" is a view into another tensor\'s memory, expected its own'),
        ([group(size=5)], f"{SLOT}: {A_6}, the group 5 units; mend: say which with view, axis and start"),
        ([group(size=4, slots=[{"tensor": "a.weight", "start": 3}])],
         f"{SLOT}.view: got [4] from 3 on, but {A_6}; expected a view inside them"),
        ([group(size=2, slots=[{"tensor": "a.weight", "view": [2, 0]}])],
         f"{SLOT}.view: got an array, expected {COUNTS}"),
        ([group(size=3, slots=[{"tensor": "a.weight", "view": [2, 3]}])],
         f"{SLOT}.view: axis 0 of view [2, 3] has 2, expected the group's 3 units"),
        ([group(size=2, slots=[{"tensor": "a.weight", "view": [2, 3], "axis": 2}])],
         f"{SLOT}.axis: got 2, expected 0 to 1: view is [2, 3]"),
        ([group(size=2, slots=[{"tensor": "a.weight", "view": [2, 2]}])],
         f"{SLOT}.view: got [2, 2], but {A_6}; mend: let it cover them all, or say its start"),
        ([group(size=2, slots=[{"tensor": "a.weight", "view": [2, 4]}])],
         f"{SLOT}.view: got [2, 4] from 0 on, but {A_6}; expected a view inside them"),
        ([group(size=2, slots=[{"tensor": "a.weight", "view": [2, 3], "strides": [1]}])],
         f"{SLOT}.strides: got 1 of them, expected 2, one for each of view"),
        ([group(size=2, slots=[{"tensor": "a.weight", "view": [2, 2], "strides": [1, 1]}])],
         f"{SLOT}.strides: got [1, 1], which come to one position twice"),
        ([group(size=2, slots=[{"tensor": "a.weight", "view": [2, 10**9], "strides": [1, 1]}])],
         f"{SLOT}.view: got [2, 1000000000] from 0 on, but {A_6}; expected a view inside them"),
        ([group(), group("g")], f'group "g": slots[0]: a.weight is taken there by {SLOT}, expected one slot'),
        ([group(slots=[{"tensor": "a.weight"}, {"tensor": "a.weight"}])],
         f'group "h": slots[1]: a.weight is taken there by {SLOT}, expected one slot'),
        ([group(), group("g", 2, views(0, "a.weight"))],
         f'group "g": slots[0]: overlaps {SLOT} in a.weight, dimension 0; expected none twice'),
        ([group(), group("g", 3, [{"tensor": "a.weight", "start": 3}])],
         f'group "g": slots[0]: overlaps {SLOT} in a.weight, dimension 0; expected none twice'),
        ([group("g", 2, [{**views(0, "a.weight")[0], "role": "producer"}]),
          group("h", 3, [{**views(1, "a.weight")[0], "role": "consumer"}])],
         f'{SLOT}.role: got "consumer", but group "g": slots[0] says "producer"'),
        ([group(), group("g", 3, [{"tensor": "b.bias"}], within=["hh"])],
         "group \"g\": within: got \"hh\", expected the name of a group (did you mean 'h'?)"),
        ([group("g", 2, views(0, "a.weight"), within=["h"]), group("h", 3, views(1, "a.weight"), within=["g"])],
         ['group "g": within: got "h", which lies in "g" itself, expected no cycle',
          'group "h": within: got "g", which lies in "h" itself, expected no cycle']),
        ([group(within=["h"])], 'group "h": within: got "h", which lies in "h" itself, expected no cycle'),
        ([group("f", 2, views(0, "a.weight", view=(2, 3, 1))),
          group("g", 3, views(1, "a.weight", view=(2, 3, 1)), within=["f"]),
          group("h", 1, views(2, "a.weight", view=(2, 3, 1)), within=["g"])],
         'group "h": within: got "g" without "f", in which that lies; mend: name every containing group'),
        ([group("g", 2, views(0, "a.weight")), group("h", 3, views(1, "a.weight"), within=["g", "g"])],
         'group "h": within: a group occurs twice, expected each once'),
        ([group("g", 2, views(0, "a.weight")),
          group("h", 3, [*views(1, "a.weight"), {"tensor": "b.bias"}], within=["g"])],
         'group "h": slots[1]: its containing group "g" is not in b.bias, expected once; mend: give it a slot in the '
         "same view, or in another dimension"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(groups: Any, message: str | list[str]) -> None:
    """The group, the slot and the key, what was found, what is expected, the nearest name where there is one."""
    with pytest.raises(SymmetryError) as caught:
        lmccheck.spec_from_groups(Net(), groups)
    lines = [message] if isinstance(message, str) else message
    assert str(caught.value) == "\n".join(f"spec_from_groups: {line}" for line in lines)


def test_a_container_that_occurs_twice_is_refused() -> None:
    """Which of the two tells the unit of the inner group's positions cannot be known."""
    module = nn.Linear(8, 8)
    slots = [{"tensor": "weight", "view": [2, 2, 2], "axis": axis} for axis in range(3)]
    with pytest.raises(SymmetryError, match=r'containing group "g" is 2 times in weight, expected once'):
        lmccheck.spec_from_groups(module, [group("g", 2, slots[:2]), group("h", 2, slots[2:], within=["g"])])


def test_containment_in_a_circle_of_dimensions_is_refused() -> None:
    """Two dimensions whose orders depend on each other have no order in which to be permuted."""
    module = nn.Linear(4, 4, bias=False)
    a, c = ({"tensor": "weight", "dim": dim, "start": 0} for dim in (0, 1))
    b, d = ({"tensor": "weight", "dim": dim, "start": 2} for dim in (1, 0))
    groups = [
        group("a", 2, [a]),
        group("c", 2, [c]),
        group("b", 2, [b], within=["a"]),
        group("d", 2, [d], within=["c"]),
    ]
    with pytest.raises(SymmetryError, match=r"weight: dimensions \[0, 1\] each hold a group within one of another"):
        lmccheck.spec_from_groups(module, groups)


def test_many_mistakes_are_not_all_told() -> None:
    """The spec of another network gives a few lines and the suspicion, not thousands."""
    slots = [{"tensor": f"layer{k}.weight"} for k in range(500)]
    with pytest.raises(SymmetryError) as caught:
        lmccheck.spec_from_groups(Net(), [group(slots=slots)])
    lines = str(caught.value).splitlines()
    assert len(lines) == MOST_PROBLEMS + 1
    assert lines[-1].endswith("only the first 10 mistakes are shown; mend: is it this network's spec?")


def test_only_modules_and_groups_are_taken() -> None:
    """Swapped or missing arguments are told, not crashed on."""
    with pytest.raises(SourceError, match="got list as the module"):
        lmccheck.spec_from_groups([], nn.Linear(2, 2))  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(SymmetryError, match="group: got int, expected a sequence of groups"):
        lmccheck.spec_from_groups(nn.Linear(2, 2), 3)  # type: ignore[arg-type]  # the mistake under test


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Load a file's text from its own folder; return the message it gives."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, name: str) -> str:
        Path(name).write_text(text)
        with pytest.raises(SymmetryError) as caught:
            lmccheck.load_spec(name, Net())
        return str(caught.value)

    return load


FROZEN = {"tensor": "a.weight", "dim": 1, "size": 4, "reason": "inputs"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "schema: missing, expected 1"),
        ({"schema": 2}, "schema: got 2, expected 1"),
        ({"schema": 1, "groups": []}, "groups: unknown key (did you mean 'group'?), expected one of schema, model, "
         "unruled, group, frozen"),
        ({"schema": 1, "group": {}}, "group: got a table, expected an array of tables, [[group]]"),
        ({"schema": 1, "frozen": [{**FROZEN, "tensor": "c"}]}, f'frozen[0].tensor: got "c", {NO_TENSOR}'),
        ({"schema": 1, "frozen": [{**FROZEN, "size": 5}]},
         "frozen[0]: got 5 of dimension 1, but a.weight has shape (6, 4)"),
        ({"schema": 1, "frozen": [{**FROZEN, "dim": 2}]},
         "frozen[0]: got 4 of dimension 2, but a.weight has shape (6, 4)"),
        ({"schema": 1, "frozen": [{"tensor": "a.weight", "dim": 1, "size": 4}]},
         "frozen[0].reason: missing, expected why these positions stay, in words"),
        ({"schema": 1, "group": [group(size=5)]},
         f"{SLOT}: {A_6}, the group 5 units; mend: say which with view, axis and start"),
    ],
)  # fmt: skip
def test_a_files_mistake_names_the_file(load: Callable[[str, str], str], content: Any, message: str) -> None:
    """The same lines as for a description, each beginning with the file's name."""
    assert load(json.dumps(content), "spec.json") == f"spec.json: {message}"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("spec.yaml", "", "spec.yaml: got the suffix '.yaml', expected .toml or .json; mend: rename the file"),
        ("spec.toml", "schema 1", "spec.toml: not valid TOML: Expected '=' after a key in a key/value pair (at line 1, "
         "column 8)"),
        ("spec.json", "{", "spec.json: not valid JSON: Expecting property name enclosed in double quotes: line 1 "
         "column 2 (char 1)"),
        ("spec.json", "[" * 100_000, "spec.json: not valid JSON: nested too deeply"),
        ("spec.json", '{"schema": 1, "schema": 1}', "spec.json: not valid JSON: the key 'schema' occurs twice in one "
         "object"),
        ("spec.json", "[]", "spec.json: got an array, expected a table"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read(load: Callable[[str, str], str], name: str, text: str, message: str) -> None:
    """Neither format nor suffix is guessed."""
    assert load(text, name) == message


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """By name."""
    with pytest.raises(SymmetryError, match=r"gone\.toml: no such file"):
        lmccheck.load_spec(tmp_path / "gone.toml", Net())


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """Another suffix, JSON's too, a file where the folder should be, text that no UTF-8 file can hold."""
    spec = lmccheck.spec_from_groups(Net(), [group()])
    for suffix in ("", ".json"):
        with pytest.raises(SymmetryError, match=rf"got the suffix '{suffix}', expected \.toml, as which specs are"):
            lmccheck.save_spec(spec, tmp_path / f"spec{suffix}")
    (tmp_path / "file").touch()
    with pytest.raises(LmcError, match="cannot be written"):
        lmccheck.save_spec(spec, tmp_path / "file" / "spec.toml")
    with pytest.raises(SymmetryError, match="cannot be written"):
        lmccheck.save_spec(spec, tmp_path / "spec.toml", model="\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
