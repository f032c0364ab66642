"""What a traced graph holds of what was written: what computes nothing is left out, and has nothing decomposed."""

from __future__ import annotations

import pytest
import torch
from networks import Written
from torch import nn
from torch.fx import config

from lmccheck.symmetry.discover import derive
from lmccheck.symmetry.op import source_of
from lmccheck.symmetry.rules import RULES
from lmccheck.symmetry.trace import op_name, trace

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def cast(s: Written, x: torch.Tensor) -> torch.Tensor:
    """Casts to what x is already, with what torch asserts of it, and one to float64 that is a cast."""
    hidden = s.a(x.float().to(torch.device("cpu"))).relu().flatten(1)
    return s.b(hidden.to(torch.float64).to(torch.float32))


def test_a_cast_is_no_reason_to_decompose(monkeypatch: pytest.MonkeyPatch) -> None:
    """The casts to the same are gone, real ones stay, torch.export's second pass is not asked for, the numbers are the
    module's own."""
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", lambda *_: pytest.fail("decomposed"))
    torch.manual_seed(0)
    module = Written(cast, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    traced = derive(module, (X,))
    calls = [op_name(node.target) for node in traced.trace.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.linear", "aten.relu", "aten.flatten", "aten.to", "aten.to", "aten.linear"]
    assert [group.size for group in traced.spec.groups] == [6]
    found = traced.trace.module(*traced.trace.given(module.state_dict(), (X,)).values())
    by_hand = (X @ module.a.weight.T + module.a.bias).clamp(min=0) @ module.b.weight.T + module.b.bias
    assert torch.allclose(found[0], by_hand, atol=1e-6)


def test_a_copy_of_the_same_dtype_stays() -> None:
    """What is written to the copy in place is not written to what it was copied from."""

    def copied(s: Written, x: torch.Tensor) -> torch.Tensor:
        hidden = s.a(x)
        return s.b(hidden + hidden.to(torch.float32, copy=True).relu_())

    module = Written(copied, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    traced = derive(module, (X,))
    found = traced.trace.module(*traced.trace.given(module.state_dict(), (X,)).values())
    hidden = X @ module.a.weight.T + module.a.bias
    expected = (hidden + hidden.clamp(min=0)) @ module.b.weight.T + module.b.bias
    assert torch.allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize("lines", [True, False])
def test_nodes_know_their_lines_where_they_are_asked_for(lines: bool) -> None:
    """Those of a graph that is only run do not; afterwards torch is as it was."""
    before = getattr(config, "do_not_emit_stack_traces", False)
    graph = trace(Doubled(), (torch.randn(2, 3),), RULES, lines=lines).graph
    sources = [source_of(node) for node in graph.nodes if node.op == "call_function"]
    assert sources
    assert all(source.startswith("test_traced_graphs.py:") for source in sources) == lines
    assert getattr(config, "do_not_emit_stack_traces", False) == before


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


class NoGradients(nn.Module):
    """Layers of which some are run under modes of gradients, one inside of another, and given by an output of it."""

    def __init__(self, *modes: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.modes = modes

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.modes:
            hidden = self.a(x).relu()
            return self.c(self.b(hidden).tanh()), hidden.mean(1)
        with torch.set_grad_enabled(self.modes[0]):
            hidden = self.a(x).relu()
            with torch.set_grad_enabled(self.modes[1]):
                after = self.b(hidden).tanh()
            last, hidden = self.c(after), hidden.mean(1)
        return last, hidden


@pytest.mark.parametrize("modes", [(False, False), (False, True), (True, False)])
def test_modes_of_gradients_hide_nothing(modes: tuple[bool, bool]) -> None:
    """The graph is that of the network without them: the same calls, groups and layers, and the same outputs."""
    torch.manual_seed(0)
    plain, module = NoGradients(), NoGradients(*modes)
    module.load_state_dict(plain.state_dict())
    found, wanted = derive(module, (X,)), derive(plain, (X,))
    calls = [
        [(op_name(node.target), node.name) for node in traced.trace.graph.nodes if node.op == "call_function"]
        for traced in (found, wanted)
    ]
    assert [op for op, _ in calls[0]] == [op for op, _ in calls[1]]
    assert sorted(group.size for group in found.spec.groups) == [5, 6]
    slots = [[(group.name, group.slots, group.copies) for group in traced.spec.groups] for traced in (found, wanted)]
    assert slots[0] == slots[1]
    assert [layer.weight for layer in found.layers] == [layer.weight for layer in wanted.layers]
    assert found.spec.verify(module, (X,), trials=3, seed=0) <= 1e-9
    given = found.trace.given(module.state_dict(), (X,)).values()
    outputs = found.trace.module(*given)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(outputs, plain(X), strict=True))


def test_disabled_autocast_hides_nothing() -> None:
    """As transformers write it around rotary positions, here inside of no_grad: the graph is that without both."""

    def written(s: Written, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            hidden = s.a(x).relu()
            with torch.autocast("cpu", enabled=False):
                hidden = s.c(hidden).tanh()
        return s.b(hidden)

    torch.manual_seed(0)
    parts = {"a": nn.Linear(4, 6), "c": nn.Linear(6, 5), "b": nn.Linear(5, 2)}
    traced = [derive(module, (X,)) for module in (Written(written, **parts), nn.Sequential(*parts.values()))]
    names = [op_name(node.target) for node in traced[0].trace.graph.nodes if node.op == "call_function"]
    assert names == ["aten.linear", "aten.relu", "aten.linear", "aten.tanh", "aten.linear"]
    assert len(traced[0].layers) == len(traced[1].layers) == 3


@pytest.mark.parametrize("inside", [True, False])
def test_modes_of_gradients_around_and_inside_of_autocast(inside: bool) -> None:
    """What is autocast stays a region of its own, the only one; the outputs are the module's."""

    def written(s: Written, x: torch.Tensor) -> torch.Tensor:
        autocast, plain = torch.autocast("cpu", torch.bfloat16), torch.no_grad()
        with autocast if inside else plain, plain if inside else autocast:
            hidden = s.a(x).relu()
            if not inside:
                return s.b(s.c(hidden).tanh()).float()
        return s.b(s.c(hidden.float()).tanh())

    torch.manual_seed(0)
    module = Written(written, a=nn.Linear(4, 6), c=nn.Linear(6, 5), b=nn.Linear(5, 2))
    traced = derive(module, (X,))
    parts = [part for part in traced.trace.module.modules() if isinstance(part, torch.fx.GraphModule)]
    names = [op_name(node.target) for part in parts for node in part.graph.nodes if node.op == "call_function"]
    assert "wrap_with_set_grad_enabled" not in names
    assert inside or len(parts) == 1 + names.count("wrap_with_autocast") == 2  # torch leaves some of its own
    found = traced.trace.module(*traced.trace.given(module.state_dict(), (X,)).values())
    with torch.no_grad():
        assert torch.allclose(found[0], module(X), atol=1e-6)
    assert sorted(group.size for group in traced.spec.groups) == [5, 6]
