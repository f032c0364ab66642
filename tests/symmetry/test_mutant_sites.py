"""Every call in every rule matters: skip one, and on some small network verification measures the wrong spec.

A *site* is a call of one of the ``METHODS`` of an ``Op`` in ``lmccheck/symmetry/rules``, or a call there of one of
the rules' own functions that does such calls. Its mutant drops what the call does: nothing is unified, frozen
or recorded, and an axis that would be born frozen is born free. Sites are found in the source, so a new one is tested
without being listed; they are named by function and by their order in it.
"""

from __future__ import annotations

import ast
import inspect
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ALL
from networks.registry import derived, discovered
from torch import nn

import lmccheck
from lmccheck.errors import LmcError
from lmccheck.symmetry import discover, rules
from lmccheck.symmetry.analysis import RULE_FAILED
from lmccheck.symmetry.axes import fresh
from lmccheck.symmetry.op import Op
from lmccheck.symmetry.trace import Trace, op_name
from lmccheck.symmetry.verify import TOLERANCE

METHODS = ("unify", "freeze", "frozen", "mixes_across", "contracts", "orders")
FOLDER = Path(inspect.getfile(rules)).parent

Position = tuple[str, int | None, int | None, int | None, int | None]  # file, first and last line, columns


@dataclass(frozen=True)
class Site:
    """One call in one function of the rules."""

    name: str  # module.function:what it calls#its number in the function
    position: Position


# name of a site -> why dropping what it does can never make a spec wrong
SAID = "the record of the op's own result says the same: what is combined is no longer in it"
DATA = "its length depends on the data, so that no weight lies along it"
EQUIVALENT: dict[str, str] = {
    "attention.attention:unify#2": "the heads of queries are matched again when the batch axes are broadcast",
    "elementwise.where:frozen#1": DATA,
    "indexing._lookup:unify#1": "the mask and what it covers are both frozen right after",
    "indexing._ranked:mixes_across#1": SAID,
    "indexing.argmax:mixes_across#1": SAID,
    "indexing.embedding_bag:frozen#2": "nothing reads the bookkeeping outputs",
    "indexing.median:mixes_across#1": "an empty record says nothing",
    "linear.trilinear:mixes_across#2": "the weight has every summed dimension and none beside, and says the same",
    "normalisation.batch_norm_eval:frozen#1": "the saved statistics are empty",
    "normalisation.batch_norm_live:mixes_across#1": "the saved statistics, a number per channel, say the same",
    "normalisation.weight_norm:mixes_across#1": "the second result, a number per row, says the same",
    "reduction._reduced:mixes_across#1": SAID,
    "reduction.cosine_similarity:_reduced#1": SAID,
    "reduction.extremum:_reduced#1": SAID,
    "reduction.extremum:_reduced#2": SAID,
    "reduction.norm:_reduced#1": SAID,
    "reduction.reduce:_reduced#1": SAID,
    "reduction.spread_and_mean:_reduced#1": SAID,
    "spatial.channel_shuffle:regroup#2": "groups and members fit into the channels they came from",
    "spatial.col2im:mixes_across#1": SAID,
}
# name of a site -> why no small network passes it
UNREACHED: dict[str, str] = {
    **{
        f"linear.grouped_product:{what}#1": "torch traces it in bfloat16 only; the zoo has it"
        for what in ("contracts", "freeze", "unify")
    },
    **{f"segments.{f}:{what}#1": DATA for f in ("cat", "cut") for what in ("freeze", "frozen")},
    "shape.regroup:_torn#1": "sizes multiply to the same number, so factors do not run out",
}


def _modules() -> list[types.ModuleType]:
    return [m for name, m in sys.modules.items() if name.startswith(rules.__name__ + ".")]


def _takes_op(function: Any) -> bool:
    return inspect.isfunction(function) and next(iter(inspect.signature(function).parameters), "") == "op"


def _functions() -> dict[str, list[ast.FunctionDef]]:
    """The functions of every file of the rules."""
    return {
        str(path): [n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)]
        for path in sorted(FOLDER.glob("*.py"))
    }


def _calls(function: ast.FunctionDef) -> list[ast.Call]:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    return sorted(calls, key=lambda node: (node.lineno, node.col_offset))


@cache
def _helpers() -> frozenset[str]:
    """The functions of the rules that relate, freeze or record something, themselves or through others."""
    found: set[str] = set()
    while True:
        more = {
            function.name
            for functions in _functions().values()
            for function in functions
            if function.args.args and function.args.args[0].arg == "op"
            if any(_called(call, frozenset(found)) for call in _calls(function))
        }
        if more == found:
            return frozenset(found)
        found = more


@cache
def sites() -> dict[str, Site]:
    """Every call site in the rules, in the order of the source."""
    found = {}
    for path, functions in _functions().items():
        for function in functions:
            counts: dict[str, int] = {}
            for call in _calls(function):
                what = _called(call, _helpers())
                if what:
                    counts[what] = counts.get(what, 0) + 1
                    name = f"{Path(path).stem}.{function.name}:{what}#{counts[what]}"
                    place = call.lineno, call.end_lineno, call.col_offset, call.end_col_offset
                    found[name] = Site(name, (path, *place))
    return found


def _called(call: ast.Call, helpers: frozenset[str]) -> str:
    function = call.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return function.attr if function.value.id == "op" and function.attr in METHODS else ""
    return function.id if isinstance(function, ast.Name) and function.id in helpers else ""


class Watch:
    """Stands between the rules and what they call: notes the sites that are passed and silences one of them."""

    def __init__(self) -> None:
        self.passed: set[Position] = set()
        self.target: Position | None = None
        self.silent = 0
        self._known: dict[tuple[types.CodeType, int], Position] = {}

    def _position(self, frame: types.FrameType) -> Position:
        key = frame.f_code, frame.f_lasti
        if key not in self._known:
            self._known[key] = frame.f_code.co_filename, *list(frame.f_code.co_positions())[frame.f_lasti // 2]
        return self._known[key]

    def method(self, name: str) -> Any:
        original = getattr(Op, name)

        def watched(op: Op, *arguments: Any, **named: Any) -> Any:
            position = self._position(sys._getframe(1))
            self.passed.add(position)
            if not self.silent and position != self.target:
                return original(op, *arguments, **named)
            return fresh(arguments[0]) if name == "frozen" else None

        return watched

    def function(self, original: Any) -> Any:
        def watched(*arguments: Any, **named: Any) -> Any:
            position = self._position(sys._getframe(1))
            self.passed.add(position)
            self.silent += position == self.target
            try:
                return original(*arguments, **named)
            finally:
                self.silent -= position == self.target

        return watched

    @contextmanager
    def watching(self, target: Position | None = None) -> Iterator[None]:
        """Route every call of the rules through this object, and drop what the one at ``target`` does."""
        self.target = target
        with pytest.MonkeyPatch.context() as patch:
            for name in METHODS:
                patch.setattr(Op, name, self.method(name))
            for module in _modules():
                for name, value in list(vars(module).items()):
                    if _takes_op(value):
                        patch.setattr(module, name, self.function(value))
            yield


@dataclass(frozen=True)
class Known:
    """A network whose graph is traced, what is derived for it, and where its ops pass."""

    name: str
    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    traced: Trace
    layouts: Any
    passed: frozenset[Position]
    ops: frozenset[str]

    def derive(self) -> lmccheck.PermutationSpec:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(discover, "trace", lambda *_: self.traced)
            return lmccheck.discover_symmetry(self.module, self.inputs)


def _layout(spec: lmccheck.PermutationSpec) -> Any:
    return spec.layouts, [(group.name, group.size, group.within) for group in spec.groups]


@cache
def networks() -> list[Known]:
    """Every network of the tests, traced once, the smallest first."""
    found = []
    for name in ALL:
        module, inputs, _ = discovered(name)
        traced = derived(name).trace
        ops = frozenset(op_name(node.target) for node in traced.graph.nodes if node.op == "call_function")
        known = Known(name, module.eval(), inputs, traced, None, frozenset(), ops)
        watch = Watch()
        with watch.watching():
            layouts = _layout(known.derive())
        found.append(Known(name, module, inputs, traced, layouts, frozenset(watch.passed), ops))
    return sorted(found, key=lambda known: len(known.traced.graph.nodes))


def outcome(known: Known) -> str:
    """What becomes of a network under a mutant: "same" spec, "sound" but another one, "refused", or "caught"."""
    try:
        spec = known.derive()
        if any(RULE_FAILED in frozen.reason for frozen in spec.frozen):
            return "refused"
        if _layout(spec) == known.layouts:
            return "same"
        torch.manual_seed(0)
        return "sound" if spec.verify(known.module, known.inputs, trials=3) <= TOLERANCE else "caught"
    except (LmcError, IndexError, RuntimeError, ValueError, KeyError):
        return "caught"


def survives(users: list[Known]) -> dict[str, str]:
    """The outcome on every network, or nothing as soon as one network catches the mutant."""
    seen: dict[str, str] = {}
    for known in users:
        seen[known.name] = outcome(known)
        if seen[known.name] == "caught":
            return {}
    return {} if "refused" in seen.values() else seen


# which survive, with their reasons: that is seen on every network, one after the other
SLOW = ("attention.attention:unify#2", "_table.broadcast:unify#1")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in sites()])
def test_a_rule_without_one_of_its_calls_is_caught(name: str) -> None:
    """Whatever single call a rule forgets, some network's spec then changes its function, and verification says so."""
    site = sites()[name]
    users = [known for known in networks() if site.position in known.passed]
    if name in UNREACHED:
        assert not users, f"{name} is listed as out of reach, but {users[0].name} passes it"
        return
    assert users, f"no network passes {name}: add one to tests/networks/mutants.py"
    watch = Watch()
    with watch.watching(site.position):
        survivors = survives(users)
    if name in EQUIVALENT:
        assert survivors, f"{name} is listed as equivalent, but a network catches it"
    else:
        assert not survivors, f"nothing changes its function without {name}: {survivors}"


def test_equivalent_mutants_exist() -> None:
    """The table of equivalent mutants names call sites that are there."""
    assert {*EQUIVALENT, *UNREACHED} <= set(sites())
