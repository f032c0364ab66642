"""Private copies of a module, in which what shared memory still does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lmccheck.errors import LmcError, SourceError, UnsupportedArchitecture
from lmccheck.modules.held import Held, held_tensors
from lmccheck.modules.stored import stored_tensors
from lmccheck.store.tensors import equal, identity


def private_copy(
    module: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None, *, evaluate: bool = True
) -> nn.Module:
    """Return a copy that shares nothing with ``module``, on a device and its floats in a dtype where these are given.

    It is in evaluation mode unless ``evaluate`` is False. Whatever shares memory with a stored tensor (a plain
    attribute, an item of a list) shares memory with that tensor's copy. Raises SourceError when the module cannot be
    copied, UnsupportedArchitecture when a function of its own holds a stored tensor, which no copy of the module
    could have changed, or when switching it to evaluation mode changes its weights (merged adapters): what it then
    computes is not a function of the checkpoint alone.
    """
    require_eager(module)
    stored = stored_tensors(module)
    held = held_tensors(module)
    memo = _copied_tensors(module, stored, held, device, dtype)
    with copying(module):
        twin: nn.Module = copy.deepcopy(module, dict(memo))
    twin = uncompiled(_in_dtype(twin, device, dtype))
    return in_evaluation_mode(twin) if evaluate else twin


def uncompiled(module: nn.Module) -> nn.Module:
    """Return a private module that runs as it is written, also where ``module.compile()`` was called."""
    for part in module.modules():
        part._compiled_call_impl = None
    return module


def in_evaluation_mode(module: nn.Module) -> nn.Module:
    """Switch a private module to evaluation mode; raises UnsupportedArchitecture where that changes its weights."""
    before = stored_tensors(module)
    overridden = any(type(part).train is not nn.Module.train for part in module.modules())
    copies = {name: tensor.clone() for name, tensor in before.items()} if overridden else {}
    after = stored_tensors(module.eval())
    for name, tensor in after.items():
        if name not in before or not equal(tensor, copies.get(name, before[name])):
            raise UnsupportedArchitecture(
                f"model {type(module).__name__}: switching it to evaluation mode changes its tensor {name!r}; mend: "
                "merge or remove adapters before saving, and return a model whose eval() leaves weights alone"
            )
    return module


def shared_tensors(module: nn.Module) -> dict[int, object]:
    """Return the tensors that a module stores, and those that share memory with one, by their objects' ids."""
    stored = list(stored_tensors(module).values())
    places = {_place(tensor) for tensor in stored} - {None}
    return {
        **{id(tensor): tensor for tensor in stored},
        **{id(item.tensor): item.tensor for item in held_tensors(module) if _place(item.tensor) in places},
    }


def copied_by_python(part: nn.Module) -> bool:
    """Whether ``copy.deepcopy`` of a module does no more than to copy its ``__dict__``."""
    own = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__slots__", "__getnewargs__")
    kinds = [kind for kind in type(part).__mro__[:-1] if kind is not nn.Module]
    return type(type(part)) is type and not any(name in vars(kind) for kind in kinds for name in own)


def require_eager(module: nn.Module) -> None:
    """Raise UnsupportedArchitecture where a part of a module is no longer what its author wrote, and say what it is."""
    for name, part in module.named_modules():
        for known, what, mend in _MADE_OVER:
            if known(part):
                where = f", submodule {name!r}" if name else ""
                raise UnsupportedArchitecture(
                    f"model {type(module).__name__}{where}: got {what}, expected an eager float module; mend: {mend}"
                )


_MADE_OVER: tuple[tuple[Callable[[nn.Module], bool], str, str], ...] = (
    (
        lambda part: isinstance(part, torch.jit.ScriptModule),
        "a TorchScript module",
        "return the original, without torch.jit.script or torch.jit.trace",
    ),
    (
        lambda part: type(part).__name__ == "OptimizedModule",
        "what torch.compile returns",
        "return the module itself (model._orig_mod), and take `_orig_mod.` out of the checkpoint's names",
    ),
    (
        lambda part: ".quantized." in type(part).__module__ and type(part).__module__.startswith("torch."),
        "a quantised module, whose weights are packed",
        "check the float model that it was made from, before it is quantised",
    ),
)


@contextmanager
def copying(module: nn.Module) -> Iterator[None]:
    """Turn what copying a module raises into a SourceError."""
    try:
        yield
    except LmcError:
        raise
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"model {type(module).__name__}: cannot be copied: {said}; mend: make copy.deepcopy(model) work"
        ) from error


def _simple(tensor: Tensor) -> bool:
    """Whether a tensor is numbers in memory of its own that a view of other memory could replace."""
    kind = type(tensor) in (Tensor, nn.Parameter)
    return kind and tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"


def _place(tensor: Tensor) -> int | None:
    """Return where the memory of a tensor begins; None where it has none of its own."""
    if not _simple(tensor) or not tensor.numel():
        return None
    return int(tensor.untyped_storage().data_ptr())


def _copied_tensors(
    module: nn.Module,
    stored: Mapping[str, Tensor],
    held: list[Held],
    device: torch.device | None,
    dtype: torch.dtype | None,
) -> dict[int, object]:
    """Return a copy of every stored tensor and of what shares memory with one, by the object's id."""
    sharing: dict[int, dict[object, Tensor]] = {}
    names: dict[int, str] = {}
    plain: dict[int, Tensor] = {id(tensor): tensor for tensor in stored.values() if _place(tensor) is not None}
    for name, tensor in stored.items():
        if (place := _place(tensor)) is not None:
            sharing.setdefault(place, {})[identity(tensor)] = tensor
            names.setdefault(place, name)
    memo: dict[int, object] = {}
    for item in held:
        place = _place(item.tensor)
        if place in sharing:
            if item.by_function:
                raise UnsupportedArchitecture(
                    f"model {type(module).__name__}: {item.path} holds the memory of {names[place]!r} in a function or "
                    "an array, where no copy of the model has its own; mend: take it from self in forward"
                )
            sharing[place][identity(item.tensor)] = item.tensor
            plain[id(item.tensor)] = item.tensor
        elif not item.tensor.is_leaf:  # what a hook computed when the module was built, and computes again
            memo[id(item.tensor)] = item.tensor.detach().clone()
    copies: dict[object, Tensor] = {}
    for several in sharing.values():
        copies.update(_together(module, several, device, dtype))
    for number, tensor in plain.items():
        data = copies[identity(tensor)]
        twin = nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data.detach()
        twin.__dict__.update(tensor.__dict__)
        memo[number] = twin
    return memo


def _together(
    module: nn.Module, several: Mapping[object, Tensor], device: torch.device | None, dtype: torch.dtype | None
) -> dict[object, Tensor]:
    """Return copies of tensors of one memory that share memory in turn."""
    first = next(iter(several.values()))
    if len(several) == 1:
        new = _converted(first.detach(), device, dtype)
        if _place(new) == _place(first):
            new = new.clone(memory_format=torch.preserve_format)
        return {identity(first): new}
    if any(tensor.dtype != first.dtype for tensor in several.values()):
        raise UnsupportedArchitecture(
            f"model {type(module).__name__}: tensors of several dtypes share one memory; mend: give each its own"
        )
    whole = first.detach().new_empty(0).set_(first.untyped_storage())
    new = _converted(whole.clone(), device, dtype)
    return {
        identity(tensor): new.as_strided(tensor.shape, tensor.stride(), int(tensor.storage_offset()))
        for tensor in several.values()
    }


_WIDE = {torch.complex32: torch.complex128, torch.complex64: torch.complex128}


def _converted(tensor: Tensor, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    if dtype is not None and tensor.is_floating_point():
        return tensor.to(device, dtype)
    wide = _WIDE.get(tensor.dtype) if dtype == torch.float64 else None  # a complex tensor keeps its imaginary part
    return tensor.to(device, wide) if wide else tensor.to(device)


def _in_dtype(module: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> nn.Module:
    """Convert what a module registers and does not store; complex tensors keep their imaginary part."""
    if device is not None:
        module.to(device)
    if dtype is not None:
        named = {torch.float64: module.double, torch.float32: module.float, torch.float16: module.half}
        named.get(dtype, module.bfloat16)()
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = _converted(tensor.data, device, dtype)
    return module
