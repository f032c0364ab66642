"""The network that is measured is the network that loads: compared before anything else, at both ends and between."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from types import CodeType

import torch
from torch import Tensor, nn

from lmccheck.data.batches import ELEMENTS, numbers, rebatched
from lmccheck.data.imports import running_in
from lmccheck.data.trees import take_samples, tensors_in
from lmccheck.errors import CheckpointError, LmcError, UnsupportedArchitecture
from lmccheck.modules.caches import kept_by_identity
from lmccheck.modules.constants import differing_structure, shared_constants
from lmccheck.modules.fresh import ON_GPU, ROUNDING, apart, difference, freshly_loaded
from lmccheck.modules.memory import give_back
from lmccheck.modules.numbers import executed, kept_in_context, kept_number, numbers_outside, numbers_within
from lmccheck.modules.precision import working_dtype
from lmccheck.modules.random_weights import randomised, shaken
from lmccheck.modules.runner import TWO_OUTPUTS, UNSTEADY, Runner, as_source_error, run_module
from lmccheck.modules.spots import Spot
from lmccheck.modules.watched import Watched, kept_outside
from lmccheck.network.alone import Alone
from lmccheck.network.endpoint import Endpoint
from lmccheck.network.network import Network
from lmccheck.store.tensors import between

SAMPLES = 256  # of a batch whose size lmccheck chooses; one of a user's own is compared as it is evaluated,
MOST = 8 * ELEMENTS  # if its inputs have no more numbers than this
MIXED = 100.0  # times the rounding of outputs: by less, sums in another order may change them
OUTPUTS = 2**20  # numbers of an output that are kept for comparison; of a larger one evenly spaced ones
OUTSIDE = (
    "keeps what it computed from weights in {}, where other weights find it as well; mend: compute it in forward, or "
    "keep it in an attribute of the module"
)
_KEEPING: dict[tuple[Path, str] | None, str] = {}  # code that was refused here for what it keeps, and in which words
BY_ID = "a dict by id(…), which Python gives to another module once this one is gone"


def as_loaded(*ends: Endpoint) -> tuple[Endpoint, ...]:
    """Return endpoints of one network, with whose weights a runner gives what a freshly loaded module gives.

    For every endpoint, and for one point between the first two, a module is built, loads the weights by its own
    ``load_state_dict`` (hooks included), is switched to evaluation mode, run on the first batch as it is evaluated, and
    freed. Then one runner takes the same weights, so that what it keeps of one point shows at the next. Both compute in
    the same precision on the same device: outputs may differ by 1e-5 of their size in float32, 1e-10 in float64, ten
    times that on a GPU. The modules are built under different seeds: numbers that are drawn when a network is built and
    that no checkpoint holds are no part of the model. A live module cannot be built again; a copy of it takes its
    place. Raises UnsupportedArchitecture, naming the tensor, attribute or submodule.
    """
    network = as_it_loads(ends, working_dtype(*(end.theta for end in ends)))
    return tuple(replace(end, network=network) for end in ends)


def as_it_loads(ends: Sequence[Endpoint], dtype: torch.dtype) -> Network:
    """Return the network of ``as_loaded(*ends)``; ``dtype`` is that in which all of them are computed.

    Endpoints are asked for one after the other, and may be read as they are.
    """
    network = ends[0].network
    if (known := _KEEPING.get(_named(network))) is not None:  # what it kept is there by now, and would not show
        raise UnsupportedArchitecture(known)
    _require_one_structure(ends)
    check = _Comparison(network, dtype)
    asked = partial(_others, ends), lambda _: ends[0].theta
    with Alone(network, asked, dtype, check.inputs) as alone, running_in(network.home):
        for number, (label, theta) in enumerate(_points(ends)):
            check.expect(label, theta, number)
        for label, theta in _points(ends):
            check.compare(label, theta)
        mixing = check.mixing()
        check.rest()
        if (far := alone.differs()) is not None:
            where = f"something outside of it (where nothing was run before, outputs are {far:.1e} of their size apart)"
            raise check.kept(where)
        constants = shared_constants(network.module, (end.theta for end in ends))
        give_back()
        return replace(network, constants=constants, mixing=mixing)


def _named(network: Network) -> tuple[Path, str] | None:
    """Return what code is known by in this process; None where it was not named but given."""
    return (network.home.resolve(), network.model) if network.home is not None and ":" in network.model else None


def _some(tensor: Tensor) -> Tensor:
    return tensor if tensor.numel() <= OUTPUTS else tensor.flatten()[:: 1 + tensor.numel() // OUTPUTS]


def _require_one_structure(ends: Sequence[Endpoint]) -> None:
    """Raise CheckpointError where endpoints have different masks or tables: what lies between them is none."""
    first = ends[0].theta
    for end in islice(ends, 1, None):
        name = differing_structure(end.network.module, first, end.theta)
        if name is not None:
            raise CheckpointError(
                f"{end.checkpoint.label}: buffer {name!r} is not that of {ends[0].checkpoint.label}, and both hold "
                "whole numbers, or one of them ±inf: a mask or a table, of which an average is none; mend: take "
                "checkpoints that were made with the same one"
            )


def _points(ends: Sequence[Endpoint]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    yield from ((end.checkpoint.label, end.theta) for end in ends)
    if len(ends) > 1:
        yield "the point half way", _half_way(ends[0].theta, ends[1].theta)


def _others(ends: Sequence[Endpoint], module: nn.Module) -> Mapping[str, Tensor]:
    """Return weights that are not those of the first endpoint; of a single one, those of the module are changed."""
    return _half_way(ends[0].theta, ends[1].theta) if len(ends) > 1 else shaken(module, 1)


def _half_way(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: between(t, second[name].to(t.dtype), 0.5) if t.is_floating_point() else t for name, t in first.items()
    }


class _Comparison:
    """What freshly loaded modules gave, one after the other, and a runner that has to give the same."""

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        self.network, self.dtype, self.device = network, dtype, network.torch_device
        batch = rebatched(network.data)[0]
        most = min(MOST // numbers(batch), SAMPLES if network.data.rebatch else batch.samples)
        self.inputs = batch.take(slice(max(2, most))).inputs
        self.where = f"{network.data.origin}, first batch"
        self.what = f"model {network.model}"
        self.expected: dict[str, list[Tensor]] = {}
        self.ops: dict[str, list[str]] = {}
        self._runner: Runner | None = None

    @property
    def live(self) -> bool:
        """Whether there is but one module, which is copied; known for certain once one was built."""
        return self.network.build.live

    def expect(self, label: str, theta: Mapping[str, Tensor], number: int) -> None:
        """Keep what a module that was built under a seed of its own gives; nothing else of it is left."""
        module = self._fresh(theta, number)
        outputs, watched = self._watched(module, trusted=not self.live)
        self.expected[label], self.ops[label] = outputs, watched.ops
        if not number:
            with executed() as codes:
                again = self._watched(module, trusted=not self.live)[1]
            keeps = again.ops != watched.ops or not again.foreign.keys() <= watched.foreign.keys()
            if keeps and kept_by_identity(module):
                raise self.kept(BY_ID)
            self._require_no_numbers(module, theta, codes)
        if watched.foreign:

            def another() -> Watched:
                return self._watched(module if self.live else self._fresh(theta, number), trusted=not self.live)[1]

            place = kept_outside(watched, another)
            if place:
                raise self.kept(place)

    def _require_no_numbers(self, module: nn.Module, theta: Mapping[str, Tensor], codes: Collection[CodeType]) -> None:
        """Raise UnsupportedArchitecture where a number is kept outside of a module, or in one that was run before."""
        outside = numbers_outside(module, codes)
        if outside.begun:
            raise self.kept(f"a generator ({outside.begun[0].__qualname__}) that was begun before it was run")
        other = cache(lambda: randomised(module, 1, theta))
        copies: list[nn.Module] = []
        unrun: list[list[Spot]] = []  # the places in a copy, until it is run

        def run(shaken: bool) -> list[Tensor]:
            unrun.clear()
            with as_source_error(f"{self.what}: building and running it"):
                module = copies[-1] if copies else self.network.build(0)
                return self._outputs(freshly_loaded(module, other() if shaken else theta, self.device, self.dtype))

        def within() -> list[Spot]:
            if not unrun:
                copies[:] = [self._fresh(theta, 0)]
                unrun[:] = [numbers_within(copies[0], codes)]
            return unrun[0]

        spot = None
        for places in outside.places:
            spot = spot or kept_number(partial(list, places), run, self._near)
        if self.live:
            spot = spot or kept_number(within, run, self._near)
        if spot is not None:
            raise self.kept(spot.called)
        if outside.contextual and kept_in_context(run, self._near):
            raise self.kept("a variable of a context")

    def kept(self, place: str) -> UnsupportedArchitecture:
        """Return the error that says where something is kept; code that was named is refused from now on."""
        mend = "; the module that was given has been run before: give the callable that builds it" if self.live else ""
        text = f"{self.what}: {OUTSIDE.format(place)}{mend}"
        if (named := _named(self.network)) is not None:
            _KEEPING[named] = text
        return UnsupportedArchitecture(text)

    def compare(self, label: str, theta: Mapping[str, Tensor]) -> None:
        """Raise UnsupportedArchitecture where the runner gives something else, or changes what is stored."""
        runner = self._runner = self._runner or Runner(self.network.module, self.device, self.dtype)
        runner.load(theta)
        first, watched = self._watched(runner.module)
        changed = runner.changed(theta)
        if changed:
            raise UnsupportedArchitecture(f"{self.what}: {UNSTEADY.format(changed)}")
        if not self._near(first, self.expected[label]):
            if not self._near(first, self._outputs(runner.module)):
                raise UnsupportedArchitecture(f"{self.what}: {TWO_OUTPUTS}")
            raise UnsupportedArchitecture(self._refusal(label, theta, first, runner))
        if watched.ops != self.ops[label]:
            first_op = next((x for x, y in zip(self.ops[label], watched.ops, strict=False) if x != y), "the last ones")
            place = f"something outside of it (from {first_op} on it computes less, or more, than when first run)"
            raise self.kept(place)

    def rest(self) -> None:
        """Let go of the runner: nothing more is compared."""
        self._runner = None
        give_back()

    def mixing(self) -> float:
        """Return by how much of their size outputs change where the second half of the batch is not run, if by much.

        Of the largest batch, at the point that was compared last. A network that does not run on fewer samples, or
        whose outputs have no samples in dimension 0, tells nothing.
        """
        batch = max(rebatched(self.network.data), key=lambda each: each.samples)
        batch = batch.take(slice(max(2, min(MOST // numbers(batch), SAMPLES))))
        few = batch.samples // 2
        if not few or self._runner is None:
            return 0.0
        module, some = self._runner.module, take_samples(batch.inputs, slice(few))
        with suppress(LmcError):
            whole, half = (
                tensors_in(run_module(module, given, self.where, self.device, self.dtype))
                for given in (batch.inputs, some)
            )
            pairs = [(x[:few], y) for x, y in zip(whole, half, strict=False) if x.ndim and len(x) == batch.samples]
            far = max((apart([x], [y]) for x, y in pairs if x.shape == y.shape and x.is_floating_point()), default=0.0)
            return far if far > MIXED * ROUNDING[self.dtype] else 0.0
        return 0.0

    def _fresh(self, theta: Mapping[str, Tensor], seed: int) -> nn.Module:
        return freshly_loaded(self.network.build(seed), theta, self.device, self.dtype)

    def _watched(self, module: nn.Module, *, trusted: bool = True) -> tuple[list[Tensor], Watched]:
        with Watched(module, self.inputs, trusted=trusted) as watched:
            outputs = self._outputs(module)
        name = watched.reads(self.network.module)
        if name is not None:
            raise UnsupportedArchitecture(
                f"{self.what}: a copy of it still reads the original's {name!r}, through a function that holds the "
                "original; mend: let hooks and functions use the module that they are called with"
            )
        return outputs, watched

    def _outputs(self, module: nn.Module) -> list[Tensor]:
        given = run_module(module, self.inputs, self.where, self.device, self.dtype)
        return [_some(tensor).clone() for tensor in tensors_in(given)]

    def _near(self, first: list[Tensor], second: list[Tensor]) -> bool:
        allowed = ROUNDING[self.dtype] * (ON_GPU if self.device.type == "cuda" else 1)
        return len(first) == len(second) and apart(first, second) <= allowed

    def _refusal(self, label: str, theta: Mapping[str, Tensor], found: list[Tensor], runner: Runner) -> str:
        """Say what makes a runner compute something else than a freshly loaded module, and what can be done."""
        far = (
            f"outputs {apart(self.expected[label], found):.1e} of their size apart"
            if len(found) == len(self.expected[label])
            else "other outputs"
        )
        fresh, run = self._fresh(theta, 0), (self.inputs, self.where)
        if self._near(found, self._outputs(fresh)):
            drawn = difference(fresh, self._fresh(theta, 1), *run, self.device, self.dtype)
            return (
                f"{self.what}: two modules built afresh compute different things with the weights of {label} ({far}): "
                f"{drawn}; it is drawn when the model is built, and no checkpoint holds it; mend: register it as a "
                "buffer"
            )
        by = difference(self._fresh(theta, 0), runner.module, *run, self.device, self.dtype)
        return (
            f"{self.what}: what it computes with the weights of {label} depends on what was loaded or run before "
            f"({far} from a freshly built module's): {by}; mend: compute it from self's own parameters in forward, "
            "or register it as a buffer and save it"
        )
