"""The network as a graph of ATen ops: torch.export, functionalised where the module writes in place."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from io import StringIO
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import InputKind
from torch.fx import config
from torch.utils._pytree import tree_leaves

from lmccheck.data.trees import tensors_in
from lmccheck.errors import UnsupportedArchitecture
from lmccheck.modules.caches import clear_caches, tensor_caches
from lmccheck.modules.copies import in_evaluation_mode, private_copy
from lmccheck.modules.held import held_tensors
from lmccheck.modules.runner import outputs_of
from lmccheck.modules.stored import stored_tensors, tied_names
from lmccheck.store.tensors import identity, overlap, place
from lmccheck.symmetry.regions import inline_regions

_EXPORTING = threading.Lock()  # torch.export patches modules and globals: one at a time


@dataclass(frozen=True)
class Placeholder:
    """A graph input: ``kind`` is parameter, buffer, constant or input; ``target`` its name in the module."""

    kind: str
    target: str
    stored: bool  # does a state dict hold it?
    value: torch.Tensor | None = None  # of a constant that is not stored


@dataclass(frozen=True)
class Trace:
    """A traced module: the graph, what its placeholders stand for, and which names share one tensor."""

    module: torch.fx.GraphModule  # runs on its placeholders' values, in order
    placeholders: dict[str, Placeholder]
    tied: dict[str, str]  # every state-dict name -> the name its storage is known by

    def given(self, weights: Mapping[str, Any], inputs: Any) -> dict[torch.fx.Node, Any]:
        """Return what the graph's placeholders stand for, in order, with these weights and positional inputs."""
        leaves = iter(tree_leaves(inputs))
        nodes = [node for node in self.graph.nodes if node.op == "placeholder"]
        return {
            node: weights[holder.target] if holder.stored else next(leaves) if holder.kind == "input" else holder.value
            for node, holder in zip(nodes, self.placeholders.values(), strict=True)
        }

    def constants(self) -> list[str]:
        """Return the names of the floating constants of several numbers that no checkpoint holds."""
        return [
            holder.target
            for holder in self.placeholders.values()
            if holder.value is not None and holder.value.is_floating_point() and holder.value.numel() > 1
        ]

    @property
    def graph(self) -> torch.fx.Graph:
        return self.module.graph


@dataclass(frozen=True)
class Shaped:
    """The shape and dtype of a traced value; a length that depends on the data is a large prime of its own."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)


def value_of(node: torch.fx.Node) -> Any:
    """Return what the trace knows of a node's value: tensors as ``Shaped``, lengths as ints, in their containers."""
    return _plain(node.meta.get("val"))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return Shaped(tuple(_length(n) for n in value.shape), value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_plain(item) for item in value)
    return _length(value)


def _length(value: Any) -> Any:
    """Return a symbolic length as an int: every unknown in it stands for a prime that occurs nowhere else."""
    if not isinstance(value, torch.SymInt):
        return value
    import sympy  # type: ignore[import-untyped]  # torch brings it, and has it loaded here

    expression = value.node.expr
    unknown = sorted(expression.free_symbols, key=str)
    primes = {u: sympy.nextprime(100_003 + 997 * int("".join(c for c in str(u) if c.isdigit()) or 0)) for u in unknown}
    return int(expression.subs(primes))


_KINDS = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
    InputKind.USER_INPUT: "input",
}


def op_name(target: Any) -> str:
    """Return ``aten.linear`` for ``torch.ops.aten.linear.default``; the plain name for anything else."""
    packet = getattr(target, "overloadpacket", None)
    if packet is not None:
        return str(packet)
    return str(getattr(target, "__name__", target))


def trace(
    module: nn.Module,
    example_inputs: tuple[Any, ...],
    known: Collection[str],
    *,
    lines: bool = True,
    private: bool = False,
) -> Trace:
    """Trace ``module`` in evaluation mode on ``example_inputs`` and return its graph.

    Ops named in ``known`` stay as they are; others are decomposed where PyTorch has a decomposition. With ``lines``
    nodes know from which lines of code they come, which takes a good part of the time. A ``private`` module is nobody
    else's: it is not copied, and its weights are let go.
    Raises UnsupportedArchitecture when torch.export cannot trace the module.
    """
    twin = _TensorsOnly(in_evaluation_mode(module) if private else private_copy(module))
    caches = tensor_caches(module)
    clear_caches(caches)
    with _EXPORTING, warnings.catch_warnings(), torch.enable_grad(), quiet_logs(), _asking(lines):
        warnings.simplefilter("ignore")  # deprecations inside torch.export are not the user's
        program = _export(twin, example_inputs)
        inline_regions(program)
        targets = {node.target for graph in _needed(program) for node in graph.nodes if node.op == "call_function"}
        unknown = {t for t in targets if op_name(t) not in known and isinstance(t, torch._ops.OpOverload)}
        if any(isinstance(t, torch._ops.OpOverload) and t._schema.is_mutable for t in targets) or unknown:
            available = _decompositions()
            program = program.run_decompositions({t: available[t] for t in unknown if t in available})
    _needed(program)
    placeholders: dict[str, Placeholder] = {}
    state = stored_tensors(module).keys()
    values = {**program.constants, **dict(twin.named_buffers(remove_duplicate=False))}
    shared: dict[int, list[str]] = {}  # names by where their memory begins
    for name, tensor in stored_tensors(twin.module).items():
        if tensor.layout == torch.strided and tensor.numel():
            shared.setdefault(place(tensor), []).append(name)
    for spec in program.graph_signature.input_specs:
        target = (spec.target or spec.arg.name).removeprefix("module.")
        value = values.get(spec.target or "")
        if target not in state and isinstance(value, torch.Tensor):
            target = _stored_name(twin.module, value, shared) or target
        held = target in state
        value = None if held else value
        placeholders[spec.arg.name] = Placeholder(
            _KINDS.get(spec.kind, "constant"), target, held, value.clone() if isinstance(value, torch.Tensor) else None
        )
    tied = tied_names(module)
    _release(twin)
    clear_caches(caches)  # what tracing put there are no numbers
    return Trace(program.graph_module, placeholders, tied)


def _needed(program: torch.export.ExportedProgram) -> list[torch.fx.Graph]:
    """Return the graphs of a program after taking out what computes nothing.

    That is what no output needs (attention's averaged weights bind no axis), ``x.to(…)`` that gives x as it is, and
    what that asserts of x: torch has no other way of writing it, and would decompose the whole graph for its sake.
    """
    parts = [part for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    for part in parts:
        for node in list(part.graph.nodes):
            if op_name(node.target) == "aten._assert_tensor_metadata":
                part.graph.erase_node(node)
            elif op_name(node.target) == "aten.to" and _gives_what_it_takes(node):
                node.replace_all_uses_with(node.args[0])
                part.graph.erase_node(node)
        part.graph.eliminate_dead_code()
        part.recompile()
    return [part.graph for part in parts]


def _gives_what_it_takes(node: torch.fx.Node) -> bool:
    """Whether a call of ``to`` returns its very argument: nothing is to be copied, laid out or converted."""
    source, *settings = node.args
    if not isinstance(source, torch.fx.Node) or True in (*settings, *node.kwargs.values()):
        return False
    before, after = source.meta.get("val"), node.meta.get("val")
    told = ("dtype", "device", "layout")
    same = all(getattr(before, name, None) == getattr(after, name, None) for name in told)
    return same and not any(isinstance(each, torch.memory_format) for each in (*settings, *node.kwargs.values()))


def _stored_name(module: nn.Module, value: torch.Tensor, shared: dict[int, list[str]]) -> str | None:
    """Return the name of the stored tensor that a constant of the graph is, None where it is memory of its own.

    Raises UnsupportedArchitecture for one that is a part or another view of a stored tensor.
    """
    if value.layout != torch.strided or not value.numel():
        return None
    names = shared.get(value.untyped_storage().data_ptr(), [])
    stored = stored_tensors(module) if names else {}
    for name in names:
        if identity(stored[name]) == identity(value):
            return name
    near = next((name for name in names if overlap(stored[name], value)), None)
    if near is None:
        return None
    path = next((item.path for item in held_tensors(module) if identity(item.tensor) == identity(value)), "")
    raise UnsupportedArchitecture(
        f"model {type(module).__name__}: {f'attribute {path}' if path else 'a constant'} of shape {tuple(value.shape)} "
        f"is a view of the memory of {near!r}, which the traced graph cannot say; mend: take the view in forward, or "
        "use align = 'none'"
    )


def another_graph(module: nn.Module, graph: Trace) -> str:
    """Say that a traced graph does not compute what the module computes with other weights, and what can be done."""
    names = ", ".join(repr(name) for name in graph.constants()[:3])
    return (
        f"model {type(module).__name__}: the traced graph computes something else than the model with other weights: "
        f"it holds as constants what was computed from weights before it was traced ({names or 'numbers'}); mend: "
        "compute it in forward from self's own parameters, or use align = 'none'"
    )


@cache
def _decompositions() -> Any:
    return torch.export.default_decompositions()


def _release(twin: nn.Module) -> None:
    """Give back the memory of a private copy at once; the traced program refers to it in cycles."""
    for tensor in (*twin.parameters(), *twin.buffers()):
        tensor.data = tensor.data.new_empty(0)


class _TensorsOnly(nn.Module):
    """A module whose output is the list of floating tensors that ``module`` returns, whatever holds them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> list[torch.Tensor]:
        return tensors_in(self.module(*inputs))


@contextmanager
def _asking(lines: bool) -> Iterator[None]:
    """Have torch look for the lines of code that nodes come from, or not; a torch that cannot leave it always does."""
    before = getattr(config, "do_not_emit_stack_traces", False)
    config.do_not_emit_stack_traces = before or not lines
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Keep what torch.export logs, at every level and on failures at length, out of the user's terminal and logs."""
    traces = logging.getLogger("torch.__trace")  # writes without asking whether its level is disabled
    before = logging.root.manager.disable, traces.disabled
    logging.disable(logging.CRITICAL)
    traces.disabled = True
    try:
        yield
    finally:
        logging.disable(before[0])
        traces.disabled = before[1]


def _export(module: _TensorsOnly, example_inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder op hides its attention from the rules
    try:
        with redirect_stderr(StringIO()):  # where it fails it prints the whole graph
            return torch.export.export(module, example_inputs, strict=False)
    except Exception as error:
        inner = module.module
        outputs_of(inner, stored_tensors(inner), example_inputs, torch.float32)  # inputs that do not fit say so here
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedArchitecture(
            f"model {type(module.module).__name__}: torch.export cannot trace it: {type(error).__name__}: {first}; "
            "mend: make torch.export.export(model, inputs, strict=False) work, or use align = 'none'"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
