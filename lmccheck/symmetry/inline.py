"""Regions of a traced program that only gradients ask for are made part of the graph around them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx


def inline_gradient_modes(program: torch.export.ExportedProgram) -> None:
    """Put what is computed under ``no_grad`` or ``enable_grad`` in the place of the call that it is written as.

    What it computes is the same, and all of a graph is looked at for activations, layers and units alike.
    """
    module = program.graph_module
    for node in [each for each in module.graph.nodes if _is_region(each)]:
        _inline(module, node)
    module.recompile()


def _is_region(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "wrap_with_set_grad_enabled"


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    _, held, *given = node.args
    assert isinstance(held, fx.Node)
    name = str(held.target)
    inner = module.get_submodule(name)
    assert isinstance(inner, fx.GraphModule)
    values: dict[fx.Node, Any] = dict(zip(inner.graph.find_nodes(op="placeholder"), given, strict=True))
    with module.graph.inserting_before(node):
        found: Any = module.graph.graph_copy(inner.graph, values)
    for part in inner.graph.find_nodes(op="get_attr"):  # regions of another kind inside of it
        own = f"{name}_{part.target}".replace(".", "_")
        module.add_submodule(own, inner.get_submodule(str(part.target)))
        values[part].target = own
    for user in list(node.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(found[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(node)
    if not held.users:
        module.graph.erase_node(held)
        module.delete_submodule(name)
