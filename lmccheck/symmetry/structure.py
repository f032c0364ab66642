"""Which numbers of a network belong to which unit: its row (incoming), its columns (outgoing), the head, and the rest.

Everything a path does is said in these terms, so that no path knows an architecture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from lmccheck.errors import UnsupportedArchitecture
from lmccheck.symmetry.discover import Derived
from lmccheck.symmetry.single_units import lone_units
from lmccheck.symmetry.sites import Layer, stored_name
from lmccheck.symmetry.slots import Frozen, Slot
from lmccheck.symmetry.trace import Trace, op_name

State = Mapping[str, Tensor]  # float tensors in float64 by their canonical names; integer tensors as they are
Units = Mapping[str, Tensor]  # per unit group, int64 positions of units


@dataclass(frozen=True)
class Block:
    """Where the units of one group lie in one dimension of a tensor: ``positions`` (units, numbers a unit) int64."""

    group: str
    dim: int
    positions: Tensor = field(repr=False)

    def of(self, units: Tensor) -> Tensor:
        """Return the positions of some units, one after the other."""
        return self.positions[units].reshape(-1)


@dataclass(frozen=True)
class Structure:
    """A network as unit groups in sequence.

    ``rows`` holds, per tensor, the blocks along its producing dimension (a unit's incoming weights, bias, norm vectors
    and statistics); ``columns`` those along its consuming one. ``head`` names the last layer's weight and bias, in
    which the output is affine; where there is none it is empty and ``headless`` says why. ``inert`` tensors are never
    read, ``variances`` must stay positive, ``uncovered`` are hidden layers whose outputs are no units, each with why.
    ``levels`` are the groups in order from input to output, those that feed one another (a residual stream and its
    blocks) together.
    """

    groups: tuple[str, ...]
    sizes: Mapping[str, int]
    levels: tuple[tuple[str, ...], ...]
    rows: Mapping[str, tuple[Block, ...]] = field(repr=False)
    columns: Mapping[str, tuple[Block, ...]] = field(repr=False)
    head: tuple[str, ...]
    headless: str = field(repr=False)
    uncovered: Mapping[str, str] = field(repr=False)
    inert: frozenset[str] = field(repr=False)
    variances: frozenset[str] = field(repr=False)
    layers: tuple[Layer, ...] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    trace: Trace = field(repr=False)

    @property
    def depth(self) -> int:
        """d, the number of weight layers of a chain: one more than there are levels."""
        return len(self.levels) + 1

    @property
    def sequential(self) -> bool:
        """Whether every level is one group that does not feed itself: then each may be dropped after the other."""
        return all(len(level) == 1 for level in self.levels) and not any(
            {block.group for block in self.rows.get(name, ())} & {block.group for block in self.columns.get(name, ())}
            for name in self.columns
        )

    def canonical(self, weights: State) -> dict[str, Tensor]:
        """Return weights by their canonical names, floating ones in float64; nothing is shared with ``weights``."""
        kept: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            own = self.trace.tied.get(name, name)
            if own not in kept:
                kept[own] = tensor.detach().cpu().to(torch.float64) if tensor.is_floating_point() else tensor
        return kept

    def stored(self, state: State) -> dict[str, Tensor]:
        """Return a state by every name of the state dict."""
        return {name: state[own] for name, own in self.trace.tied.items()}

    def keep_all(self) -> dict[str, Tensor]:
        """Return all units of all groups."""
        return {group: torch.arange(self.sizes[group]) for group in self.groups}

    def others(self, group: str, units: Tensor) -> Tensor:
        """Return the units of a group that are not in ``units``, in order."""
        free = torch.ones(self.sizes[group], dtype=torch.bool)
        free[units] = False
        return free.nonzero().flatten()


def structure_of(derived: Derived, purpose: str = "a path", *, head: bool = True) -> Structure:
    """Return the structure of a traced network; without ``head`` also where its output comes from no last layer.

    Raises UnsupportedArchitecture, naming the op or tensor, where the theory does not hold: units combined other than
    by outgoing weights (LayerNorm, GroupNorm, RMSNorm), outgoing weights read by no linear layer or convolution,
    tensors that are read twice, grouped convolutions, an output that is not affine in the last layer's weights.
    """
    spec, traced = derived.spec, derived.trace
    layers = derived.layers
    by_weight = {layer.weight: layer for layer in layers}
    users = _users(traced)
    last, headless = _head(traced, layers)
    if head and headless:
        raise UnsupportedArchitecture(f"{purpose}: {headless}")
    rows: dict[str, list[Block]] = {}
    columns: dict[str, list[Block]] = {}
    sizes: dict[str, int] = {}
    for group in spec.groups:
        if group.within:
            continue  # its units lie inside the units of another group, which own all of their numbers
        if group.bound:
            raise UnsupportedArchitecture(
                f"{purpose}: units of group {group.name!r} cannot be dropped one by one: {group.bound}; the theory "
                "does not hold across them; mend: ask for linear_connectivity, which does not need it"
            )
        sizes[group.name] = group.size
        for slot in group.slots:
            block = Block(group.name, slot.dim, slot.positions()[0])
            _place(slot, block, by_weight, rows, columns, purpose)
    for name, size, row_blocks, column_blocks in lone_units(traced, layers):
        sizes[name] = size
        for tensor, dim, count in row_blocks:
            rows.setdefault(tensor, []).append(Block(name, dim, torch.arange(count).reshape(1, -1)))
        for tensor, dim, count in column_blocks:
            columns.setdefault(tensor, []).append(Block(name, dim, torch.arange(count).reshape(1, -1)))
    if not sizes:
        why = next((item.reason for item in spec.frozen if "network's" not in item.reason), "")
        raise UnsupportedArchitecture(
            f"{purpose}: the network has no hidden units that may be dropped{f' ({why})' if why else ''}"
        )
    _refuse_reuse({*rows, *columns, *last}, users, purpose)
    _refuse_overlap(rows, purpose)
    _refuse_overlap(columns, purpose)
    for tensor in columns:
        layer = by_weight[tensor]
        if layer.groups > 1:
            raise UnsupportedArchitecture(f"{purpose}: tensor {tensor!r} is a grouped convolution; the theory needs 1")
    if clash := set(last) & set(rows):
        raise UnsupportedArchitecture(f"{purpose}: tensor {sorted(clash)[0]!r} is both a hidden layer's and the head's")
    levels = _levels(list(sizes), rows, columns, layers, traced)
    stored = set(traced.tied.values())
    return Structure(
        tuple(group for level in levels for group in level),
        sizes,
        levels,
        {name: tuple(blocks) for name, blocks in rows.items()},
        {name: tuple(blocks) for name, blocks in columns.items()},
        last,
        headless,
        _uncovered(derived, rows, last),
        frozenset(name for name in stored if not users.get(name)),
        frozenset(_variances(traced)),
        layers,
        spec.shapes,
        traced,
    )


def _place(
    slot: Slot,
    block: Block,
    by_weight: Mapping[str, Layer],
    rows: dict[str, list[Block]],
    columns: dict[str, list[Block]],
    purpose: str,
) -> None:
    """Sort one slot into rows or columns. A layer's weight is told by its layer: a unit may be on both its sides."""
    layer = by_weight.get(slot.tensor)
    if layer is not None:
        (rows if slot.dim == layer.out else columns).setdefault(slot.tensor, []).append(block)
        return
    if slot.role == "consumer":
        raise UnsupportedArchitecture(
            f"{purpose}: tensor {slot.tensor!r} holds outgoing weights of group {block.group!r} and is read by no "
            "linear layer or convolution of its own"
        )
    known = rows.setdefault(slot.tensor, [])
    if any(other.dim != block.dim for other in known):
        raise UnsupportedArchitecture(f"{purpose}: tensor {slot.tensor!r} has units along two of its dimensions")
    known.append(block)


def _users(traced: Trace) -> dict[str, int]:
    """Count, per stored tensor, the nodes that read it."""
    count: dict[str, int] = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder" and (name := stored_name(node, traced)) is not None:
            count[name] = count.get(name, 0) + len(node.users)
    return count


def _refuse_reuse(names: Iterable[str], users: Mapping[str, int], purpose: str) -> None:
    twice = sorted(name for name in names if users.get(name, 0) > 1)
    if twice:
        raise UnsupportedArchitecture(
            f"{purpose}: tensor {twice[0]!r} is read {users[twice[0]]} times (tied, shared or recurrent); the theory "
            "needs each weight in one place"
        )


def _refuse_overlap(blocks: Mapping[str, Sequence[Block]], purpose: str) -> None:
    for tensor, several in blocks.items():
        taken = torch.cat([block.positions.reshape(-1) for block in several])
        if len(taken) != len(torch.unique(taken)):
            groups = sorted({block.group for block in several})
            raise UnsupportedArchitecture(
                f"{purpose}: numbers of tensor {tensor!r} belong to several units at once (groups {groups}): products "
                "of units; the theory does not hold there"
            )


_LINEAR_IN_FIRST = {
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.permute",
    "aten.transpose", "aten.t", "aten.squeeze", "aten.unsqueeze", "aten.contiguous", "aten.clone", "aten.alias",
    "aten.detach", "aten.to", "aten._to_copy", "aten.mean", "aten.sum", "aten.select", "aten.slice",
    "aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d", "aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d",
    "aten.adaptive_avg_pool3d", "aten.identity", "aten.expand", "aten.dropout", "aten.movedim", "aten.narrow",
}  # fmt: skip


def _uncovered(derived: Derived, rows: Mapping[str, Sequence[Block]], head: Sequence[str]) -> dict[str, str]:
    """Return the learned matrices and kernels some outputs of which are neither units nor the network's, and why."""
    spec, traced = derived.spec, derived.trace
    out = {layer.weight: layer.out for layer in derived.layers}
    frozen: dict[str, list[Frozen]] = {}
    for item in spec.frozen:
        frozen.setdefault(item.tensor, []).append(item)
    found = {}
    for node in traced.graph.nodes:
        name = stored_name(node, traced)
        if name is None or name in head or not node.users or traced.placeholders[node.name].kind != "parameter":
            continue
        shape = spec.shapes.get(name, ())
        if len(shape) < 2 or (name in rows and _covers(rows[name], shape)):
            continue
        reasons = [f.reason for f in frozen.get(name, ()) if name not in out or f.dim == out[name]]
        if not any("network's output" in reason for reason in reasons):
            found[name] = "; ".join(dict.fromkeys(reasons)) or "a layer of one unit among ops that are not followed"
    return found


def _covers(blocks: Sequence[Block], shape: tuple[int, ...]) -> bool:
    return sum(block.positions.numel() for block in blocks) == shape[blocks[0].dim]


def _head(traced: Trace, layers: Sequence[Layer]) -> tuple[tuple[str, ...], str]:
    """Return the weight and bias of the layer whose output, up to linear ops, is the network's only output.

    Where there is none, return nothing and why.
    """
    by_node = {layer.node: layer for layer in layers}
    output = next(node for node in traced.graph.nodes if node.op == "output")
    values = [node for node in output.all_input_nodes if node.op != "placeholder"]
    if len(values) != 1:
        return (), f"the network returns {len(values)} values; mend: wrap it to return the logits alone"
    node: fx.Node = values[0]
    while node.name not in by_node:
        name = op_name(node.target)
        scaled = name in ("aten.mul", "aten.div") and len(node.args) > 1 and isinstance(node.args[1], int | float)
        if (
            node.op != "call_function"
            or not (name in _LINEAR_IN_FIRST or scaled)
            or not isinstance(node.args[0], fx.Node)
        ):
            return (), (
                f"the network's output comes from {name}, expected a linear layer or convolution, so that the loss is "
                "convex in its weights; mend: end forward() with that layer"
            )
        node = node.args[0]
    layer = by_node[node.name]
    return ((layer.weight,) if layer.bias is None else (layer.weight, layer.bias)), ""


def _variances(traced: Trace) -> set[str]:
    """Return the running variances that batch norms read."""
    found = set()
    for node in traced.graph.nodes:
        if node.op == "call_function" and "batch_norm" in op_name(node.target) and len(node.args) > 4:
            name = stored_name(node.args[4], traced)
            if name is not None:
                found.add(name)
    return found


def _levels(
    groups: Sequence[str],
    rows: Mapping[str, Sequence[Block]],
    columns: Mapping[str, Sequence[Block]],
    layers: Sequence[Layer],
    traced: Trace,
) -> tuple[tuple[str, ...], ...]:
    """Return groups in an order in which none feeds an earlier one, those on a circle together."""
    feeds: dict[str, set[str]] = {group: set() for group in groups}
    for tensor, blocks in columns.items():
        for reader in rows.get(tensor, ()):
            for block in blocks:
                feeds[block.group].add(reader.group)
    reach = {group: _reachable(group, feeds) for group in groups}
    together: list[tuple[str, ...]] = []
    placed: set[str] = set()
    for group in groups:
        if group not in placed:
            circle = tuple(o for o in groups if o == group or (o in reach[group] and group in reach[o]))
            placed.update(circle)
            together.append(circle)
    position = {node.name: k for k, node in enumerate(traced.graph.nodes)}
    first = {block.group: position[layer.node] for layer in reversed(layers) for block in rows.get(layer.weight, ())}
    ordered: list[tuple[str, ...]] = []
    while together:
        ready = [
            level
            for level in together
            if not any(level[0] in reach[other[0]] for other in together if other is not level)
        ]
        level = min(ready, key=lambda names: min(first.get(name, 0) for name in names))
        together.remove(level)
        ordered.append(level)
    return tuple(ordered)


def _reachable(start: str, feeds: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(feeds[start])
    while waiting:
        group = waiting.pop()
        if group not in found:
            found.add(group)
            waiting += feeds[group]
    return found
