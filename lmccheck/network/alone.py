"""What a network computes where nothing was run before: in a process of its own, with its code imported anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from lmccheck.data.imports import imported_anew, running_in
from lmccheck.data.trees import take_samples, tensors_in
from lmccheck.errors import LmcError, SourceError
from lmccheck.modules.forked import Forked
from lmccheck.modules.fresh import ROUNDING, apart, freshly_loaded
from lmccheck.modules.runner import run_module
from lmccheck.network.network import Network

Weights = Callable[[nn.Module], Mapping[str, Tensor]]
SAMPLES = 4  # of a batch: more of them tell no more of what is kept
ALIKE = 10.0  # times the rounding of outputs: another process may have its own libraries sum in another order
CPU = torch.device("cpu")
PATIENCE = 10.0, 20.0  # seconds that are waited for at least, and times what it takes here
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks"


class Alone(Forked):
    """A network that is not run before it is asked; made before any other of its kind is run.

    ``weights`` are those that it is asked with, each after its code was imported again, of a module that was just built
    and may be changed; ``inputs`` are a batch, as a network takes it, of which some are run.
    """

    def __init__(self, network: Network, weights: Sequence[Weights], dtype: torch.dtype, inputs: object) -> None:
        self._network, self._weights, self._dtype = network, weights, dtype
        self._inputs = inputs
        super().__init__(self._anew)

    def __enter__(self) -> Alone:
        if not _of_torch(self._network.module):
            try:
                super().__enter__()
            except OSError as error:
                self._say(f"no process of its own: {error.strerror}")
        return self

    def differs(self) -> float | None:
        """Return by how much of their size outputs differ from those that the network gives here by now, if they do.

        Both are computed on the CPU. None where they do not, or where there is nothing to compare with; a remark of the
        network's says why there is not.
        """
        if not self.there:
            return None
        least, times = PATIENCE
        started = time.monotonic()
        try:
            with _one_thread():
                here = [tensor for weights in self._weights for tensor in self._outputs(weights)]
            there: list[Tensor] = self.ask(least + times * (time.monotonic() - started))
        except LmcError as error:
            self._say(str(error))
            return None
        far = apart(there, here) if len(here) == len(there) else float("inf")
        return far if far > ALIKE * ROUNDING[self._dtype] else None

    def _say(self, why: str) -> None:
        said = "what it computes after others were run is not compared with what it computes alone"
        self._network.remarks[f"model {self._network.model}: {said}: {why}"] = None

    def _anew(self) -> list[Tensor]:
        return [
            tensor
            for weights in self._weights
            for tensor in imported_anew(self._network.home, partial(self._outputs, weights))
        ]

    def _outputs(self, weights: Weights) -> list[Tensor]:
        with running_in(self._network.home):
            module = self._network.build(0)
            module = freshly_loaded(module, weights(module), CPU, self._dtype)
            try:
                return self._run(module, take_samples(self._inputs, slice(SAMPLES)))
            except SourceError:  # some take their batch and no other
                return self._run(module, self._inputs)

    def _run(self, module: nn.Module, inputs: object) -> list[Tensor]:
        given = run_module(module, inputs, f"{self._network.data.origin}, alone", CPU, self._dtype)
        return [tensor.clone() for tensor in tensors_in(given)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in as many threads as a process of its own has: sums of another order differ by rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _of_torch(module: nn.Module) -> bool:
    """Whether all that a network runs is torch's own, which keeps nothing."""
    return all(
        type(part).__module__.startswith("torch.")
        and "forward" not in vars(part)
        and not any(getattr(part, name, None) for name in HOOKS)
        for part in module.modules()
    )
