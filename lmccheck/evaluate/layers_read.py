"""What layers read in a run of a network as it is written, whatever it is built of; and putting other values there."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lmccheck.data.trees import input_tensors, mapped
from lmccheck.evaluate.layer_kinds import (
    ATTENTION,
    ELEMENTWISE,
    FUSED,
    LAYERS,
    LOOKUPS,
    MADE,
    MAPS,
    MOVES,
    POSITIONS,
    RIGHT,
    SUMMANDS,
    holds_for_maps,
    is_one_layer,
    is_plain,
    reads_maps,
)
from lmccheck.modules.stored import stored_tensors
from lmccheck.store.tensors import place

PICKED, DATA = 1, 2  # weights chosen by what is computed from inputs; what is computed from inputs


@dataclass(frozen=True)
class Read:
    """A value that a layer reads, the ``call``-th of that layer in this run.

    ``along``: the dimension along which lies what the layer reads at one position; None where it is a map,
    (n, channels, *places), whose places the layer (a convolution, a norm of maps) mixes.
    """

    layer: str
    call: int
    value: Tensor
    along: int | None = -1


Change = Callable[[Read], Tensor | None]


class LayersRead(TorchFunctionMode):
    """A run in which every value that a layer reads is shown to ``change``, which may return another in its place.

    A layer is a product of something computed from the inputs with weights (linear layers, convolutions, recurrent
    layers, attention's projections, however they are written), a norm, or a module of the user's own that holds tensors
    and no other module; of an embedding it is what it gives. A value is shown once, by the name of the layer that reads
    it first; what is put in its place is there for everyone who uses it from then on, residual sums included. What is
    only moved (a view, a copy, a part of it) is the same value.

    ``calls`` counts values by layer; ``fused`` are the recurrent layers all of whose steps run in one call;
    ``sources``: for every stored tensor that multiplies a value, the layer that read this value first; ``unseen``: the
    stored matrices that multiply values number by number, as in a sum written out: no layer is seen there.
    """

    def __init__(self, module: nn.Module, inputs: Any, change: Change) -> None:
        super().__init__()
        self._module = module
        self._change = change
        self._stored: dict[int, str] = {
            place(tensor): name for name, tensor in reversed(stored_tensors(module).items())
        }
        self._paths: dict[nn.Module, str] = {part: path for path, part in module.named_modules()}
        self._own = {part for part in self._paths if part is not module and is_one_layer(part)}
        self._running: list[nn.Module] = []
        self._kinds: dict[int, tuple[StorageWeakRef, int]] = {}
        self._shown: WeakTensorKeyDictionary = (
            WeakTensorKeyDictionary()
        )  # value: (version, what is in its place, layer)
        self.calls: Counter[str] = Counter()
        self.fused: dict[str, None] = {}
        self.sources: dict[str, str] = {}
        self.unseen: dict[str, None] = {}
        self._hooks = ExitStack()
        self._aside = False
        for tensor in input_tensors(inputs):
            self._mark(tensor, DATA)

    def __enter__(self) -> Any:
        for part in self._paths:
            for handle in (
                part.register_forward_pre_hook(self._begin, with_kwargs=True),
                part.register_forward_hook(self._end, always_call=True),
            ):
                self._hooks.callback(handle.remove)
        return super().__enter__()  # type: ignore[no-untyped-call]  # torch leaves it without types

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # as above
        self._hooks.close()

    def outputs(self, output: Any) -> Any:
        """Return what the module returned, with what was put in the place of values."""
        if dataclasses.is_dataclass(output) and not isinstance(output, (type, Mapping)):
            twin = copy.copy(output)
            for part in dataclasses.fields(output):
                object.__setattr__(twin, part.name, self._now(getattr(output, part.name)))
            return twin
        return self._now(output)

    # Modules

    def _begin(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._running.append(part)
        if part not in self._own:
            return
        self._aside, before = True, self._aside
        try:
            given = (self._current(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            value = next((v for v in given if v.is_floating_point() and self._kind(v) == DATA), None)
            if value is not None and value.ndim:
                self._show(value, self._paths[part], None if holds_for_maps(part, value) else -1)
        finally:
            self._aside = before

    def _end(self, *_: Any) -> None:
        self._running.pop()

    # Functions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._aside:
            return func(*args, **kwargs)
        args, kwargs = self._now(args), self._now(kwargs)
        name = getattr(func, "__name__", "")
        if name in LAYERS:
            args, kwargs = self._layer(name, args, kwargs)
        result = self._attention(func, args, kwargs) if name == ATTENTION else func(*args, **kwargs)
        if name in ELEMENTWISE and (not self._running or self._running[-1] not in self._own):
            self._note_unseen(args, kwargs)
        self._follow(name, args, kwargs, result)
        if name in LOOKUPS and isinstance(result, Tensor) and self._kind(result) == DATA:
            result = self._show(result, self._layer_name(args, kwargs))
        return result

    def _layer(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Show what a layer reads; return its arguments with what is put in their place."""
        head, tail = args[: 3 if name == ATTENTION else None], args[3:] if name == ATTENTION else ()
        skipped = 1 if name in SUMMANDS else 0
        given = list(_floating((head[skipped:], {} if name == ATTENTION else kwargs)))
        kinds = [self._kind(tensor) for tensor in given]
        reads = max(kinds, default=0)
        weights = name in (ATTENTION, *POSITIONS, *MAPS) or any(kind < reads for kind in kinds)
        if not reads or not weights:
            return args, kwargs
        layer = self._layer_name(args, kwargs)
        if name in FUSED:
            self.fused[layer] = None
        for tensor, kind in zip(given, kinds, strict=True):
            if kind == reads and tensor.ndim:
                second = name in RIGHT and tensor is not given[0] and tensor.ndim > 1
                shown = self._show(tensor, layer, None if reads_maps(name, tensor) else -2 if second else -1)
                self._note_sources(shown, args, kwargs)
        return (*args[:skipped], *self._now(head[skipped:]), *tail), self._now(kwargs)

    def _attention(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run torch's attention in two parts, since its last product reads a value of its own."""
        if len(args) < 13:
            return func(*args, **kwargs)
        weight, bias = args[11], args[12]
        unit = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        value, scores = func(*args[:11], unit, None, *args[13:], **kwargs)
        self._mark(value, DATA)
        value = self._show(value, self._layer_name((weight,), {}))
        self._note_sources(value, weight)
        return F.linear(value, weight, bias), scores

    def _note_sources(self, value: Tensor, *given: Any) -> None:
        """Note for the weights among arguments that they multiply a value that has been shown."""
        known = self._known(value)
        names = (self._stored.get(place(tensor)) for tensor in _floating(given))
        self.sources |= {name: known[2] for name in names if name is not None and known is not None}

    def _note_unseen(self, args: Any, kwargs: Any) -> None:
        """Note the matrices among the arguments of a product by numbers, if what they multiply is of the inputs."""
        given = list(_floating((args, kwargs)))
        if any(self._kind(tensor) == DATA for tensor in given):
            for tensor in given:
                name = self._stored.get(place(tensor))
                if name is not None and self._kind(tensor) != DATA and sum(size > 1 for size in tensor.shape) > 1:
                    self.unseen[name] = None

    def _layer_name(self, args: Any, kwargs: Any) -> str:
        """Return what a layer is called: a module that has its weights, else the first weight that is read."""
        running = self._running[-1] if self._running else self._module
        path = self._paths[running]
        if path and is_plain(running):
            return path
        names = (self._stored.get(place(tensor)) for tensor in _floating((args, kwargs)))
        return next((name for name in names if name is not None), path or type(running).__name__)

    # Values

    def _known(self, tensor: Tensor) -> tuple[int, Tensor | None, str] | None:
        """Return when a value was shown, what was put in its place and who read it first; None if it was not shown."""
        known: tuple[int, Tensor | None, str] | None = self._shown.get(tensor)  # type: ignore[no-untyped-call]  # as above
        return known if known is not None and known[0] == _version(tensor) else None

    def _current(self, tensor: Tensor) -> Tensor:
        """Return what is in a tensor's place by now."""
        while (known := self._known(tensor)) is not None and known[1] is not None:
            tensor = known[1]
        return tensor

    def _now(self, value: Any) -> Any:
        """Return a tree with what is in its tensors' places; itself where nothing is."""
        stays = all(self._current(tensor) is tensor for tensor in _tensors(value))
        return value if stays else mapped(self._current, value)

    def _show(self, tensor: Tensor, layer: str, along: int | None = -1) -> Tensor:
        """Show a value, unless it has been; return what is in its place from now on."""
        tensor = self._current(tensor)
        if self._known(tensor) is not None:
            return tensor
        call = self.calls[layer]
        self.calls[layer] += 1
        other = self._change(Read(layer, call, tensor, along))
        self._shown[tensor] = (_version(tensor), other, layer)
        if other is None:
            return tensor
        self._shown[other] = (_version(other), None, layer)
        self._mark(other, DATA)
        return other

    def _follow(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """Note of what kind results are, and which of them are values that have been shown."""
        given = list(_tensors((args, kwargs)))
        kinds = [self._kind(tensor) for tensor in given]
        results = list(_tensors(result)) or given[: name == "__setitem__"]
        kind = DATA if any(kinds) and name not in MADE else 0
        if name in MOVES and given:
            kind = kinds[0] or (PICKED if any(kinds) else 0)
            if (known := self._known(given[0])) is not None:
                for tensor in results:
                    if tensor is not given[0] and tensor.is_floating_point():
                        self._shown[tensor] = (_version(tensor), None, known[2])
        for tensor in results if kind else ():
            self._mark(tensor, max(kind, self._kind(tensor)))

    def _mark(self, tensor: Tensor, kind: int) -> None:
        if where := place(tensor):
            self._kinds[where] = StorageWeakRef(tensor.untyped_storage()), kind  # type: ignore[no-untyped-call]  # as above

    def _kind(self, tensor: Tensor) -> int:
        mark = self._kinds.get(place(tensor))
        return 0 if mark is None or mark[0].expired() else mark[1]  # type: ignore[no-untyped-call]  # as above


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)


def _floating(value: Any) -> Iterator[Tensor]:
    return (tensor for tensor in _tensors(value) if tensor.is_floating_point())


def _version(tensor: Tensor) -> int:
    with suppress(RuntimeError):  # tensors of inference mode have none
        return int(tensor._version)
    return 0
