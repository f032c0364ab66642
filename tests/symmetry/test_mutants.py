"""Every rule matters: replace one by a wrong one, and on some small network verification measures the wrong spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from networks import ALL
from networks.registry import derived, discovered
from torch import nn

import lmccheck
from lmccheck.errors import LmcError
from lmccheck.symmetry import discover
from lmccheck.symmetry.analysis import RULE_FAILED
from lmccheck.symmetry.axes import fresh
from lmccheck.symmetry.op import Op, Symbol
from lmccheck.symmetry.rules import RULES
from lmccheck.symmetry.trace import Shaped, Trace, op_name
from lmccheck.symmetry.verify import TOLERANCE

FUNCTIONS = {f"{f.__module__.rsplit('.', 1)[-1]}.{f.__name__}": f for f in RULES.values()}
EXEMPT = {
    "elementwise.uniform": "a tensor of one value is new and free by its rule, and relates to nothing",
    "elementwise.number": "a tensor of one number has no axes",
    "elementwise.random": "a network that draws numbers has no function to keep; the rule freezes what it touches",
    "linear.grouped_product": "torch traces it in bfloat16 only; the zoo's Mixtral shows it",
}


@dataclass(frozen=True)
class Known:
    """A network whose graph is traced."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    traced: Trace
    ops: frozenset[str]


@cache
def networks() -> list[Known]:
    """Every small network of the tests, traced once, the smallest first."""
    found = []
    for name in ALL:
        module, inputs, _ = discovered(name)
        traced = derived(name).trace
        module.eval()
        ops = frozenset(op_name(node.target) for node in traced.graph.nodes if node.op == "call_function")
        found.append(Known(name, module, inputs, traced, ops))
    return sorted(found, key=lambda known: len(known.traced.graph.nodes))


def caught(known: Known) -> bool:
    """Whether what is derived now is measured to be wrong, or cannot even be applied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discover, "trace", lambda *_: known.traced)
        try:
            spec = lmccheck.discover_symmetry(known.module, known.inputs)
            assert not [frozen for frozen in spec.frozen if RULE_FAILED in frozen.reason]
            return not spec.verify(known.module, known.inputs, trials=3) <= TOLERANCE
        except (LmcError, IndexError, RuntimeError, ValueError, KeyError):
            return True


def forgotten(op: Op, *arguments: Any) -> Any:
    """A rule that relates nothing: whatever comes out is new and free."""

    def symbol(value: Any) -> Any:
        if isinstance(value, Shaped):
            return Symbol(tuple(fresh(n) for n in value.shape))
        return tuple(symbol(item) for item in value) if isinstance(value, tuple) else value

    return symbol(op.out)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in EXEMPT])
def test_a_forgotten_rule_is_caught(name: str) -> None:
    """A rule that relates its output to nothing changes the function of some network, and verification says so."""
    names = {op for op, function in RULES.items() if function is FUNCTIONS[name]}
    users = [known for known in networks() if names & known.ops]
    assert users, f"no network uses the rule {name}: add one to tests/networks/rules.py"
    with pytest.MonkeyPatch.context() as patch:
        for op in names:
            patch.setitem(RULES, op, forgotten)
        assert any(caught(known) for known in users), [known.name for known in users]


SILENT: dict[str, Callable[..., Any]] = {
    "unify": lambda op, *_: None,
    "freeze": lambda op, *_: None,
    "orders": lambda op, *_: None,
    "frozen": lambda op, size, *_: fresh(size),
    "mixes_across": lambda op, *_: None,
}


@pytest.mark.parametrize("method", SILENT)
def test_each_thing_a_rule_can_say_matters(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were no axes matched, frozen, ordered or mixed, some network's spec would change its function."""
    monkeypatch.setattr(Op, method, SILENT[method])
    assert any(caught(known) for known in networks())
