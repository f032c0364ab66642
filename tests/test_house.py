"""The rules of the house, read from the source: rooms in order, no circles, short functions, public pytest only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lmccheck

HOUSE = Path(lmccheck.__file__).parent
FLOORS = (  # each may import from those above it in this list, and from itself; rooms of one floor not from each other
    ("curves", "errors", "registry", "result", "finding", "explain", "shown", "stats"),
    ("store",),
    ("data",),
    ("beside",),
    ("modules",),
    ("symmetry",),
    ("network",),
    ("evaluate",),
    ("alignment",),
    ("fusion", "merging"),
    ("dropping",),
    ("paths",),
    ("diagnose",),
    ("strategies",),
    ("properties",),
    ("manifest", "report"),
    ("__init__",),  # the public names
    ("gate", "cli"),
    ("plugin", "__main__"),
)
GROUND = FLOORS[0]  # files without torch, which may use one another
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FACE = ("gate", "plugin")  # the only ones that know pytest
MOST_LINES, MOST_FUNCTION, MOST_ARGUMENTS = 320, 60, 7

File = tuple[str, ...]  # the parts of a module's name below lmccheck: ("symmetry", "axes"), ("symmetry", "__init__")
FILES = {path.relative_to(HOUSE).with_suffix("").parts: path for path in sorted(HOUSE.rglob("*.py"))}
NAMES = {".".join(file): file for file in FILES}


@cache
def tree(file: File) -> ast.Module:
    return ast.parse(FILES[file].read_text(encoding="utf-8"))


def imported(file: File) -> Iterator[tuple[int, str, str]]:
    """Every import of a file, also inside functions and under TYPE_CHECKING: (line, module, name or "")."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{FILES[file]}:{node.lineno} imports relatively"
            yield from ((node.lineno, node.module or "", alias.name) for alias in node.names)


@cache
def neighbours(file: File) -> dict[File, int]:
    """The files of the house that a file imports, with the line."""
    found: dict[File, int] = {}
    for line, module, name in imported(file):
        parts = tuple(module.split("."))
        if parts[0] == "lmccheck":
            options = ((*parts[1:], name), parts[1:], (*parts[1:], "__init__"))
            found.setdefault(next(option for option in options if option in FILES), line)
    return found


def place(file: File, line: int = 1) -> str:
    return f"{FILES[file].relative_to(HOUSE.parent)}:{line}"


def functions() -> Iterator[tuple[File, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield file, node


def test_every_room_has_its_floor() -> None:
    """A new room is given its place in the order before anything is put in it."""
    assert {file[0] for file in FILES} <= set(FLOOR)


def test_imports_go_downward_only() -> None:
    """A room imports from rooms below it, never from one above or beside it, not even for type checking."""
    wrong = []
    for file in FILES:
        for other, line in neighbours(file).items():
            here, there = file[0], other[0]
            same = here == there or {here, there} <= set(GROUND)
            if not same and FLOOR[there] >= FLOOR[here]:
                wrong.append(f"{place(file, line)} imports {'.'.join(other)}")
    assert not wrong, "\n".join(wrong)


def test_no_two_files_import_each_other_in_a_circle() -> None:
    """Wherever an import stands, following imports never leads back."""
    graph = {file: set(neighbours(file)) - {file} for file in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(".".join(file) for file in reversed(error.args[1])))


def test_only_the_face_knows_pytest() -> None:
    """gate/ and plugin.py import pytest, nothing else does, and nothing imports what pytest keeps private."""
    wrong = []
    for file in FILES:
        for line, module, _ in imported(file):
            root = module.split(".")[0]
            if root == "_pytest" or (root == "pytest" and file[0] not in FACE):
                wrong.append(f"{place(file, line)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_no_file_is_long() -> None:
    """Past 320 lines there are two ideas."""
    lengths = {file: len(path.read_text(encoding="utf-8").splitlines()) for file, path in FILES.items()}
    wrong = [f"{place(file)} has {length} lines" for file, length in lengths.items() if length > MOST_LINES]
    assert not wrong, "\n".join(wrong)


def test_no_function_is_long() -> None:
    """At most 60 lines, docstring included."""
    wrong = []
    for file, function in functions():
        length = (function.end_lineno or 0) - function.lineno + 1
        if length > MOST_FUNCTION:
            wrong.append(f"{place(file, function.lineno)} {function.name} has {length} lines")
    assert not wrong, "\n".join(wrong)


def test_no_function_takes_many_arguments() -> None:
    """At most seven; what a user writes as settings and what an op's schema dictates are no choice of the house."""
    wrong = []
    for file, function in functions():
        given = function.args
        names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        if count > MOST_ARGUMENTS and not _exempt(file, function):
            wrong.append(f"{place(file, function.lineno)} {function.name} takes {count}")
    assert not wrong, "\n".join(wrong)


def _exempt(file: File, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    if function.name.startswith("load_"):
        return True
    if file[0] == "properties":  # decorated as a property: its arguments are the manifest's keys
        decorators = [node.func if isinstance(node, ast.Call) else node for node in function.decorator_list]
        return any(isinstance(node, ast.Name) and node.id == "check" for node in decorators)
    return file[:2] == ("symmetry", "rules")


def test_nothing_is_kept_in_a_bag() -> None:
    """What is computed once is a cached attribute with a name and a type, not an entry of a ``cache``."""
    wrong = []
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "cache":
                wrong.append(f"{place(file, node.lineno)} {ast.unparse(node)}")
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target).split(".")[-1] == "cache":
                bag = ast.unparse(node.annotation) == "dict[Any, Any]"
                wrong += [f"{place(file, node.lineno)} {ast.unparse(node)}"] if bag else []
    assert not wrong, "\n".join(wrong)


def test_every_test_can_be_collected_with_all_others() -> None:
    """Folders of tests are no packages: two files of one name, or an import of ``tests``, break a run of all."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    names = [path.name for path in files if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))
    imported = [
        f"{path}: {node.module}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tests"
    ]
    assert not imported
