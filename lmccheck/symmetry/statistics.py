"""Which stored tensors a traced graph uses as running statistics of a norm, whatever they are called."""

from __future__ import annotations

from torch import fx

from lmccheck.symmetry.facts import facts_of
from lmccheck.symmetry.trace import Placeholder, Trace, op_name

_ON_THE_WAY = {"view", "reshape", "unsqueeze", "expand", "add", "to", "_to_copy", "clone", "alias", "detach", "clamp"}
_ROOTS = {"sqrt", "rsqrt", "pow"}


def running_statistics(trace: Trace) -> set[str]:
    """Return the names of stored tensors that are per-channel numbers of a norm with statistics of its own.

    Those are what batch_norm or instance_norm are called with, and, where a norm is written out, a buffer under a
    root, ``(x − mean) / sqrt(variance + eps)``, with the buffers of its shape in the same part of the network.
    """
    found: set[str] = set()
    roots: list[Placeholder] = []
    for node in trace.graph.nodes:
        if node.op == "call_function":
            if facts_of(node.target).batch_norm is not None or op_name(node.target) == "aten.instance_norm":
                found |= {holder.target for item in node.args[1:5] if (holder := _stored(trace, item)) is not None}
            elif op_name(node.target).removeprefix("aten.") in _ROOTS and (under := _source(trace, node)) is not None:
                roots.append(under)
    lengths = {holder.target: _shape(trace, name) for name, holder in trace.placeholders.items() if holder.stored}
    for root in roots:
        part = root.target.rpartition(".")[0]
        found |= {
            name
            for name, shape in lengths.items()
            if name.rpartition(".")[0] == part and shape == lengths[root.target] and _per_channel(shape)
        }
    return found


def _per_channel(shape: tuple[int, ...]) -> bool:
    """Whether a tensor holds a number per channel, laid out as it is broadcast: (C,), (1, C, 1, 1)."""
    return sum(n > 1 for n in shape) <= 1 <= len(shape)


def _stored(trace: Trace, item: object) -> Placeholder | None:
    if not isinstance(item, fx.Node) or item.op != "placeholder":
        return None
    holder = trace.placeholders[item.name]
    return holder if holder.stored else None


def _source(trace: Trace, node: fx.Node) -> Placeholder | None:
    """Return the stored buffer that a root is taken of, with a small number added or in another shape."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        if node.op == "call_function" and op_name(node.target).removeprefix("aten.") not in _ON_THE_WAY:
            return None
    holder = _stored(trace, node)
    return holder if holder is not None and holder.kind == "buffer" else None


def _shape(trace: Trace, name: str) -> tuple[int, ...]:
    node = next(node for node in trace.graph.nodes if node.name == name)
    return tuple(int(n) for n in node.meta["val"].shape)
