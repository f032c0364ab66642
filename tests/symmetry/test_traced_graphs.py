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
