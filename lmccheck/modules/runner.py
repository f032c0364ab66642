"""The one place that runs a network: given weights and inputs, what comes out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lmccheck.data.imports import out_of_memory, say
from lmccheck.data.trees import input_tensors, moved, tensors_in
from lmccheck.errors import LmcError, SourceError
from lmccheck.modules.bodies import Bodies
from lmccheck.modules.caches import clear_caches, tensor_caches
from lmccheck.modules.copies import in_evaluation_mode, private_copy
from lmccheck.modules.precision import StayDouble, exact_float32
from lmccheck.modules.random_weights import draws, shake
from lmccheck.modules.stored import stored_tensors
from lmccheck.store.tensors import dtype_name, equal, identity

UNSTEADY = (
    "loading or running it changes its stored tensor {!r} in evaluation mode, so that what it computes is no function "
    "of the checkpoint; mend: write `if self.training:` before the line that does, or take it out of the state dict"
)
TWO_OUTPUTS = "gives two outputs for the same weights and inputs; mend: make forward deterministic in evaluation mode"


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

    The copy shares nothing with the user's module, so neither its weights nor its statistics are ever touched. For
    every point of weight space ``module`` is a new body for the same stored tensors, made as a user would make it:
    as built, weights put in, what its own ``load_state_dict`` does beside, switched to evaluation mode. So whatever a
    network keeps of one run (a cache computed from other weights) is unknown to the next, and what it has handed out
    is left alone.
    """

    def __init__(
        self, module: nn.Module, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.pristine = private_copy(module, self.device, dtype, evaluate=False)  # never run
        self.pristine.requires_grad_(False)
        self._state = stored_tensors(self.pristine)
        self._bodies = Bodies(self.pristine)
        self._caches = tensor_caches(self.pristine)
        self._loads = loads_itself(self.pristine)
        self.module = in_evaluation_mode(self._bodies.make())

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy ``weights`` (every name of the state dict) into the module, converted to its device and dtype."""
        with torch.no_grad():
            for name, target in self._state.items():
                target.copy_(weights[name])
        self._renew()

    def changed(self, weights: Mapping[str, Tensor]) -> str | None:
        """Return the name of a floating tensor that is no longer what was loaded, None where there is none."""
        for name, tensor in self._state.items():
            if tensor.is_floating_point() and not equal(tensor, weights[name].to(tensor)):
                return name
        return None

    def _renew(self) -> None:
        """Make a new body for the weights as they now are."""
        clear_caches(self._caches)
        self.module = self._bodies.make()
        if self._loads:
            load_into(self.module, self._state)
        self.module.eval()

    def draw(
        self,
        module: nn.Module,
        seed: int,
        strength: float = 1.0,
        reference: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Put random weights in, those of ``randomised(module, seed, reference)``, without a second copy of them.

        A ``strength`` below 1 keeps nearer to the module's own weights; one above 1 goes far from them, and lets
        parameters that are nowhere negative change sign.
        """
        buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
        with torch.no_grad():
            for name, own, generator in draws(module, seed):
                free = strength > 1 and name not in buffers
                source = own if reference is None else reference[name]
                shake(self._state[name], source.detach(), generator, strength, signed=free)
        self._renew()

    def change(
        self, move: Callable[[str, Tensor], None], together: Callable[[Mapping[str, Tensor]], None] | None = None
    ) -> None:
        """Let ``move(name, tensor)`` change every tensor in place, then ``together`` several of them at once.

        A tensor with several names is changed once.
        """
        with torch.no_grad():
            for tensor, name in {identity(t): (t, name) for name, t in self._state.items()}.values():
                move(name, tensor)
            if together is not None:
                together(self._state)
        self._renew()

    def cast(self, value: Any) -> Any:
        """Return inputs or targets on the device, floating tensors in the runner's dtype; other objects as they are."""
        return moved(value, self.device, self.dtype)

    def __call__(self, inputs: Any, where: str) -> Any:
        """Run the network on one batch: a tensor, a tuple of positional arguments or a dict of keyword arguments.

        Raises SourceError, beginning with ``where``, when the network itself raises.
        """
        try:
            return run_module(self.module, inputs, where, self.device, self.dtype)
        finally:
            clear_caches(self._caches)  # their user finds nothing of these weights in them


def run_module(module: nn.Module, inputs: Any, where: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Run a module on one batch as ``Runner`` does, without gradients and in one precision throughout."""
    double = dtype == torch.float64
    doing = f"{where}: running the model{' in float64' if double else ''}"
    shapes = ", ".join(f"{tuple(t.shape)} {dtype_name(t)}" for t in input_tensors(inputs)) or "without tensors"
    after = f"; inputs {shapes}; mend: check the model, and that the data fits it"
    precision = StayDouble() if double else nullcontext()
    with as_source_error(doing, after), torch.no_grad(), exact_float32(), precision:
        inputs = moved(inputs, device, dtype)
        if isinstance(inputs, dict):
            return module(**inputs)
        return module(*inputs) if isinstance(inputs, (tuple, list)) else module(inputs)


def loads_itself(module: nn.Module) -> bool:
    """Whether a module's own ``load_state_dict`` does more than to copy tensors: overridden, or with hooks."""
    return any(
        part._load_state_dict_pre_hooks
        or part._load_state_dict_post_hooks
        or type(part).load_state_dict is not nn.Module.load_state_dict
        or not type(part)._load_from_state_dict.__module__.startswith("torch.")
        for part in module.modules()
    )


def load_into(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Let a module load weights by its own ``load_state_dict``. Raises SourceError where that raises.

    A file knows nothing of the versions that torch notes beside a state dict; a module that demands its own gets it.
    """
    doing = f"model {type(module).__name__}: load_state_dict"
    with as_source_error(doing, "; mend: make model.load_state_dict(weights) work"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module.load_state_dict(dict(weights))
        except ValueError:  # what torch itself raises of names and shapes is a RuntimeError
            noted = module.state_dict()
            noted.update(weights)
            module.load_state_dict(noted)


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
