"""The one place that runs a network: given weights and inputs, what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lmccheck.errors import LmcError, SourceError
from lmccheck.modules.precision import StayDouble, exact_float32
from lmccheck.modules.random_weights import draws, shake
from lmccheck.modules.stored import private_copy, stored_tensors
from lmccheck.store.imports import out_of_memory, say
from lmccheck.store.tensors import dtype_name, identity
from lmccheck.store.trees import input_tensors, moved, tensors_in


@contextmanager
def as_source_error(doing: str, after: str = "", kind: type[SourceError] = SourceError) -> Iterator[None]:
    """Turn whatever a network's own code raises into a SourceError: what was done, what was raised, what comes after.

    Errors that lmccheck raises on purpose pass as they are.
    """
    try:
        yield
    except LmcError:
        raise
    except Exception as error:
        lacking = out_of_memory(error)
        raise kind(f"{doing}: {lacking}" if lacking else f"{doing} raised {say(error)}{after}") from error


class Runner:
    """A private copy of a module in evaluation mode, on one device and in one float dtype, that takes weights.

    The copy shares nothing with the user's module, so neither its weights nor its statistics are ever touched.
    """

    def __init__(
        self, module: nn.Module, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.module = _in_dtype(private_copy(module).to(self.device), dtype)
        self.module.requires_grad_(False)
        self._state = stored_tensors(self.module)
        self._kept = _Kept(self.module, self._state)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy ``weights`` (every name of the state dict) into the module, converted to its device and dtype.

        What the module kept from earlier runs (a cache computed from other weights) is forgotten.
        """
        self._kept.restore()
        with torch.no_grad():
            for name, target in self._state.items():
                target.copy_(weights[name])

    def draw(self, module: nn.Module, seed: int, strength: float = 1.0) -> None:
        """Put random weights in, those of ``randomised(module, seed)``, without a second copy of them.

        A ``strength`` below 1 keeps nearer to the module's own weights; one above 1 goes far from them, and lets
        parameters that are nowhere negative change sign.
        """
        self._kept.restore()
        buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
        with torch.no_grad():
            for name, own, generator in draws(module, seed):
                free = strength > 1 and name not in buffers
                shake(self._state[name], own.detach(), generator, strength, signed=free)

    def change(self, move: Callable[[str, Tensor], None]) -> None:
        """Let ``move(name, tensor)`` change every tensor in place; one with several names is changed once."""
        self._kept.restore()
        with torch.no_grad():
            for tensor, name in {identity(t): (t, name) for name, t in self._state.items()}.values():
                move(name, tensor)

    def cast(self, value: Any) -> Any:
        """Return inputs or targets on the device, floating tensors in the runner's dtype; other objects as they are."""
        return moved(value, self.device, self.dtype)

    def __call__(self, inputs: Any, where: str) -> Any:
        """Run the network on one batch: a tensor, a tuple of positional arguments or a dict of keyword arguments.

        Raises SourceError, beginning with ``where``, when the network itself raises.
        """
        double = self.dtype == torch.float64
        doing = f"{where}: running the model{' in float64' if double else ''}"
        after = f"; inputs {_shapes(inputs)}; mend: check the model, and that the data fits it"
        precision = StayDouble() if double else nullcontext()
        with as_source_error(doing, after), torch.no_grad(), exact_float32(), precision:
            inputs = self.cast(inputs)
            if isinstance(inputs, dict):
                return self.module(**inputs)
            return self.module(*inputs) if isinstance(inputs, (tuple, list)) else self.module(inputs)


def _in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a module's floating tensors; complex ones keep their imaginary part, unlike with ``module.to(dtype)``."""
    named = {torch.float64: module.double, torch.float32: module.float, torch.float16: module.half}
    named.get(dtype, module.bfloat16)()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_complex() and dtype == torch.float64:
            tensor.data = tensor.data.to(torch.complex128)
    return module


_REGISTERED = {"_parameters", "_buffers", "_modules"}


class _Kept:
    """What a module holds beside its stored tensors: plain attributes, containers of them, buffers that are not stored.

    A network may keep in them what it computed in an earlier run (attention biases looked up once, for example), which
    would be wrong under other weights.
    """

    def __init__(self, module: nn.Module, stored: Mapping[str, Tensor]) -> None:
        self._attributes = [
            (part.__dict__, {k: (v, _contents(v)) for k, v in part.__dict__.items() if k not in _REGISTERED})
            for part in module.modules()
        ]
        held = {identity(tensor) for tensor in stored.values()}
        self._buffers = [
            (part._buffers, name, buffer, buffer.clone())
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None and identity(buffer) not in held
        ]

    def restore(self) -> None:
        """Put everything back as it was."""
        for held, before in self._attributes:
            for key in held.keys() - before.keys() - _REGISTERED:
                del held[key]
            for key, (value, contents) in before.items():
                held[key] = value
                if isinstance(contents, dict):
                    value.clear()
                    value.update(contents)
                elif isinstance(contents, list):
                    value[:] = contents
        with torch.no_grad():
            for buffers, name, buffer, content in self._buffers:
                buffer.copy_(content)
                buffers[name] = buffer


def _contents(value: Any) -> Any:
    """Return a shallow copy of a plain dict or list, None for anything else."""
    return value.copy() if type(value) in (dict, list) else None


def _shapes(inputs: Any) -> str:
    return ", ".join(f"{tuple(t.shape)} {dtype_name(t)}" for t in input_tensors(inputs)) or "without tensors"


def outputs_of(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    inputs: tuple[Any, ...],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Return the floating tensors ``module`` returns with ``weights`` on positional ``inputs``."""
    runner = Runner(module, device, dtype)
    runner.load(weights)
    return tensors_in(runner(tuple(inputs), f"model {type(module).__name__}, example inputs"))
