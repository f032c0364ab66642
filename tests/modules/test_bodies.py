"""A new body of a module is what ``copy.deepcopy`` makes of it, save that stored tensors are the very ones."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from lmccheck.modules.bodies import Bodies


class Box:
    def __init__(self, held: Any) -> None:
        self.held = held


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.first = self.second = {}  # one dict under two names
        self.box = Box(self.linear)
        self.cache = {"deep": [1.5], 3: OrderedDict(k=torch.ones(2))}
        self.register_buffer("table", torch.zeros(2), persistent=False)
        self.linear.register_forward_hook(self.look)

    def look(self, module: nn.Module, given: Any, output: Any) -> None:
        self.first["seen"] = output


class Slotted(nn.Module):
    """A part whose class says how it is copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        twin = Slotted()
        twin.copies = getattr(self, "copies", 0) + 1
        return twin


def test_what_is_not_stored_is_a_bodys_own() -> None:
    """Stored tensors are shared; dicts, lists, objects, buffers are new, and what was one object still is one."""
    module = nn.Sequential(Part(), Slotted(), nn.Conv1d(2, 2, 1))
    body = Bodies(module).make()
    part, twin = module[0], body[0]
    assert [*body.state_dict()] == [*module.state_dict()]
    assert all(new is old for new, old in zip(body.parameters(), module.parameters(), strict=True))
    assert twin.first is twin.second is not part.first
    assert twin.box.held is twin.linear is not part.linear
    assert twin.cache["deep"] == [1.5]
    assert twin.cache["deep"] is not part.cache["deep"]
    assert twin.cache[3]["k"] is not part.cache[3]["k"]
    assert twin.table is not part.table
    assert body[1].copies == 1
    assert list(vars(twin)) == list(vars(part))
    twin.linear(torch.ones(1, 2))
    assert "seen" in twin.first  # the hook is bound to the body
    assert "seen" not in part.first
