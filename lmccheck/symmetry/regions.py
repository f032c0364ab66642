"""Regions of a traced graph that are run under a context; those whose context computes nothing else are undone."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import fx


class Region(NamedTuple):
    """A part of a graph under a context: the node that holds it, what is run there, and on which arguments."""

    held: fx.Node
    inner: fx.GraphModule
    given: list[Any]


def region_of(node: fx.Node) -> Region | None:
    """Return the region that a call runs under a context (no_grad, autocast); None for other calls."""
    if not getattr(node.target, "__name__", "").startswith("wrap_with_"):
        return None
    for k, argument in enumerate(node.args):
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            owner = node.graph.owning_module
            inner = owner.get_submodule(str(argument.target)) if owner is not None else None
            if isinstance(inner, fx.GraphModule):
                return Region(argument, inner, list(node.args[k + 1 :]))
    return None


def inline_regions(program: torch.export.ExportedProgram) -> None:
    """Put what is computed without gradients, or where autocast is disabled, in the place of its call.

    What it computes is the same, and all of a graph is looked at for activations, layers and units alike. Autocast that
    is enabled stays a region: it changes what is computed.
    """
    module = program.graph_module
    while found := [node for node in module.graph.nodes if _computes_the_same(node)]:
        for node in found:  # which may have regions inside
            _inline(module, node)
    module.recompile()


def _computes_the_same(node: fx.Node) -> bool:
    """Whether a context changes no number; a graph is run without autocast, so that disabling it is nothing."""
    name = getattr(node.target, "__name__", "")
    return name == "wrap_with_set_grad_enabled" or (name == "wrap_with_autocast" and node.args[2] is False)


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    region = region_of(node)
    assert region is not None
    held, inner, given = region
    name = str(held.target)
    values: dict[fx.Node, Any] = dict(zip(inner.graph.find_nodes(op="placeholder"), given, strict=True))
    with module.graph.inserting_before(node):
        found: Any = module.graph.graph_copy(inner.graph, values)
    for part in inner.graph.find_nodes(op="get_attr"):  # regions inside of it
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
