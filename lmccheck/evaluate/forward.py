"""The one place that runs a network: given weights and inputs, what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmccheck.errors import SourceError
from lmccheck.module import identity, private_copy, stored_tensors


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
            for name, own, generator in _draws(module, seed):
                free = strength > 1 and name not in buffers
                _shake(self._state[name], own.detach(), generator, strength, signed=free)

    def change(self, move: Callable[[str, Tensor], None]) -> None:
        """Let ``move(name, tensor)`` change every tensor in place; one with several names is changed once."""
        self._kept.restore()
        with torch.no_grad():
            for tensor, name in {identity(t): (t, name) for name, t in self._state.items()}.values():
                move(name, tensor)

    def cast(self, value: Any) -> Any:
        """Return inputs on the device, floating tensors in the runner's dtype; other objects as they are."""
        if isinstance(value, Tensor):
            return value.to(self.device, self.dtype) if value.dtype.is_floating_point else value.to(self.device)
        if isinstance(value, (tuple, list)):
            return type(value)(self.cast(item) for item in value)
        if isinstance(value, dict):
            return {key: self.cast(item) for key, item in value.items()}
        return value

    def __call__(self, inputs: Any, where: str) -> Any:
        """Run the network on one batch: a tensor, a tuple of positional arguments or a dict of keyword arguments.

        Raises SourceError, beginning with ``where``, when the network itself raises.
        """
        double = self.dtype == torch.float64
        try:
            with torch.no_grad(), exact_float32(), StayDouble() if double else nullcontext():
                inputs = self.cast(inputs)
                if isinstance(inputs, dict):
                    return self.module(**inputs)
                return self.module(*inputs) if isinstance(inputs, (tuple, list)) else self.module(inputs)
        except Exception as error:
            said = (str(error).strip() or "no message").splitlines()[0]
            raise SourceError(
                f"{where}: running the model{' in float64' if double else ''} raised {type(error).__name__}: {said}; "
                f"inputs {_shapes(inputs)}; mend: check the model, and that the data fits it"
            ) from error


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
    values = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, (tuple, list)) else [inputs]
    return ", ".join(f"{tuple(v.shape)} {dtype_name(v)}" for v in values if isinstance(v, Tensor)) or "without tensors"


def dtype_name(tensor: Tensor) -> str:
    """Return ``float32`` for torch.float32."""
    return str(tensor.dtype).removeprefix("torch.")


_WIDE = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64),
    **dict.fromkeys((torch.complex32, torch.complex64), torch.complex128),
}


def _widened(value: Any) -> Any:
    return _WIDE.get(value, value) if isinstance(value, torch.dtype) else value


class StayDouble(TorchFunctionMode):
    """Turn conversions to a narrower float into conversions to float64, so that a float64 run is one throughout.

    Networks that compute a norm or a softmax "in float32" would otherwise bound every comparison by float32 noise, and
    those that make tensors of the default dtype would not run.
    """

    def __enter__(self) -> Any:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()  # type: ignore[no-untyped-call]  # torch leaves it without types

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch leaves it without types
        torch.set_default_dtype(self._default)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            return args[0].double()
        args = tuple(_widened(a) for a in args)
        kwargs = {k: _widened(v) for k, v in (kwargs or {}).items()}
        if func in _GROUPED and args[0].dtype == torch.float64 and args[0].ndim == 2 and args[1].ndim == 3:
            return _grouped_product(args[0], args[1], kwargs["offs"] if "offs" in kwargs else args[2])
        return func(*args, **kwargs)


_GROUPED = [f for f in (getattr(torch, "_grouped_mm", None), getattr(F, "grouped_mm", None)) if f is not None]


def _grouped_product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Multiply rows by their expert's matrix, expert e's ending at ``ends[e]``; torch has none of this in float64."""
    out = rows.new_zeros(rows.shape[0], matrices.shape[2])
    begin = 0
    for matrix, end in zip(matrices, ends.tolist(), strict=True):
        out[begin:end] = rows[begin:end] @ matrix
        begin = end
    return out


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep TF32 off on a GPU; a no-op on a CPU."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def tensors_in(value: Any) -> list[Tensor]:
    """Return every floating tensor of a network's output, in a stable order (dataclasses and mappings included)."""
    if isinstance(value, Tensor):
        return [value] if value.dtype.is_floating_point else []
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in tensors_in(item)]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in tensors_in(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [t for field in dataclasses.fields(value) for t in tensors_in(getattr(value, field.name))]
    return tensors_in(value.logits) if hasattr(value, "logits") else []


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


def randomised(module: nn.Module, seed: int = 0, reference: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return float64 weights for ``module`` in which no two positions are alike.

    Tensors of ``reference`` (the module's own by default) are mixed half and half with noise of their own scale, at
    least 0.1, so that a deep network's activations neither explode nor die out more than they did; those that are
    nowhere negative (running variances) stay positive; integer tensors are kept.
    """
    drawn: dict[object, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, own, generator in _draws(module, seed):
        if identity(own) not in drawn:
            source = (own if reference is None else reference[name]).detach()
            drawn[identity(own)] = target = torch.empty(
                source.shape, dtype=torch.float64 if source.is_floating_point() else source.dtype
            )
            _shake(target, source, generator)
        weights[name] = drawn[identity(own)]
    return weights


def _draws(module: nn.Module, seed: int) -> Iterator[tuple[str, Tensor, torch.Generator]]:
    """Yield the name, the tensor and the generator of every tensor of a module; tied names are drawn alike."""
    generator = torch.Generator()
    first: dict[object, int] = {}
    for number, (name, own) in enumerate(stored_tensors(module).items()):
        generator.manual_seed(seed * 1_000_003 + first.setdefault(identity(own), number))
        yield name, own, generator


_AT_ONCE = 1 << 20  # numbers


def _shake(
    target: Tensor, source: Tensor, generator: torch.Generator, strength: float = 1.0, signed: bool = False
) -> None:
    """Fill ``target`` with ``source`` and noise, a little at a time; not ``signed``, what is positive stays so."""
    target.copy_(source)
    if not source.is_floating_point() or not source.numel():
        return
    spread = float(source.float().std().nan_to_num(0.0)) if source.numel() > 1 else 0.0
    reads = source[0].numel() if source.ndim else 1
    least = min(0.1, max(reads, 1) ** -0.5)  # a layer that was initialised to zero gets weights of a usual size
    positive = not signed and bool((source >= 0).all()) and bool((source > 0).any())
    contiguous = target if target.is_contiguous() else target.contiguous()
    for part in contiguous.view(-1).split(_AT_ONCE):  # type: ignore[no-untyped-call]  # torch leaves it without types
        noise = torch.randn(part.shape, generator=generator).to(part.device)  # float32: as random, and twice as fast
        part.add_(noise, alpha=strength * max(spread, least))
        if spread >= least and strength == 1.0:
            part.mul_(0.5**0.5)
        if positive:
            part.abs_().add_(0.05)
    if contiguous is not target:
        target.copy_(contiguous)
