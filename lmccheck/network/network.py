"""A network as it is measured: a module, the data and the loss it is run with, and its symmetries, traced once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmccheck.data.facts import data_facts
from lmccheck.data.imports import input_files
from lmccheck.data.load import Data, load_data
from lmccheck.data.model import build_module
from lmccheck.data.samples import common_samples
from lmccheck.data.trees import moved
from lmccheck.errors import SourceError, SymmetryError, UnsupportedArchitecture, shown_path
from lmccheck.modules.copies import require_eager
from lmccheck.modules.stored import stored_tensors
from lmccheck.modules.untie import heads_apart
from lmccheck.network.arguments import in_order
from lmccheck.network.builder import Builder
from lmccheck.network.constant import ConstantAnswer, constant_answer
from lmccheck.network.device import resolve_device
from lmccheck.network.hub.folder import FolderModel
from lmccheck.network.loss import Loss, counted_only, default_loss, load_loss, require_counted
from lmccheck.shown import one_line
from lmccheck.store.disk import Held
from lmccheck.symmetry.discover import Traced, derive, droppable_of, structure_of
from lmccheck.symmetry.experts import with_experts
from lmccheck.symmetry.spec import PermutationSpec
from lmccheck.symmetry.spec_file import read_spec
from lmccheck.symmetry.structure import Structure
from lmccheck.symmetry.trace import Trace
from lmccheck.symmetry.user_spec import require_fixed, require_given
from lmccheck.symmetry.verify import require

COPIED = "a copy of a live module, which cannot be built afresh"


@one_line(lambda network: f"{network.name!r}, {network.run_on}")
@dataclass(frozen=True, eq=False)
class Network:
    """A module with how it is run. Made by ``load_network``.

    ``name`` is what messages call it (a pair's, a set's), ``model`` what the user named it by. ``given`` is the
    permutation spec that was handed in, None where it is derived from the traced graph; ``origin`` says which.
    ``remarks``: what running it has shown and a report has to say, each once. ``mixing``: by how much of their size
    outputs of samples change when they are run without others of their batch, 0 where that is rounding.
    """

    name: str
    module: nn.Module = field(repr=False)
    model: str
    data: Data
    calibration: Data | None
    loss: Loss = field(repr=False)
    device: str
    torch_device: torch.device
    base: Path = field(repr=False)  # the folder that relative paths and modules are looked up in
    given: PermutationSpec | None = field(default=None, repr=False)
    origin: dict[str, Any] = field(default_factory=lambda: {"origin": "traced"}, repr=False)
    inputs: tuple[Path, ...] = field(default=(), repr=False)  # files that were read for it, beside checkpoints
    spec_file: Held | None = field(default=None, repr=False)
    constants: Mapping[str, Tensor] = field(default_factory=dict, repr=False)  # equal in all checkpoints
    build: Builder = field(kw_only=True, repr=False)  # another module like it
    home: Path | None = field(default=None, kw_only=True, repr=False)  # whose own modules it runs with
    described: FolderModel | None = field(default=None, kw_only=True, repr=False)  # by the config of a folder
    accepted: tuple[str, ...] = field(default=(), kw_only=True, repr=False)  # differences beside the weights, in words
    heads: Mapping[str, str] = field(default_factory=dict, kw_only=True, repr=False)  # written apart, of embeddings
    mixing: float = field(default=0.0, kw_only=True, repr=False)
    remarks: dict[str, None] = field(default_factory=dict, repr=False)
    traces: dict[Any, Trace] = field(default_factory=dict, repr=False)  # of the module, by the inputs it was traced on

    @cached_property
    def constant(self) -> ConstantAnswer | None:
        """The best constant answer to the evaluation data; None where none is known of the loss."""
        return constant_answer(self.data, self.loss)

    @cached_property
    def fitted_samples(self) -> int:
        """How many evaluation samples are calibration data, too."""
        return 0 if self.calibration is None else common_samples(self.data, self.calibration)

    @cached_property
    def labelled(self) -> Data | None:
        """The calibration data of which a loss may be taken: samples in which nothing is counted are not among them.

        None where there is none. What needs no targets (activations, statistics of BatchNorm) sees all of it.
        """
        return None if self.calibration is None else counted_only(self.calibration, self.loss)

    def require_labelled(self, purpose: str) -> Data:
        """Return the calibration data of which a loss may be taken; raise SourceError where there is none."""
        if self.labelled is not None:
            return self.labelled
        got = "no calibration data" if self.calibration is None else f"{self.calibration.origin}: nothing is counted"
        raise SourceError(
            f"{self.name}: {purpose} needs losses on calibration data, got {got}; mend: give `calibration` with "
            "targets, for example the training data"
        )

    @property
    def run_on(self) -> str:
        """What it is and what it is measured on, in a few words."""
        return f"{self.model}, {self.loss.name} on {self.data.origin} ({self.data.samples} samples), {self.device}"

    def example_inputs(self) -> tuple[Any, ...]:
        """Return two samples of the evaluation data as positional inputs, for tracing."""
        inputs = self.data.example()
        first = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        dtype = first.dtype if first is not None else torch.float32
        device = first.device if first is not None else torch.device("cpu")
        positional: tuple[Any, ...] = moved(inputs, device, dtype)
        return positional

    @cached_property
    def _traced(self) -> Traced:
        return derive(self.module, self.example_inputs(), self.constants)

    @property
    def traced(self) -> Traced | None:
        """The traced network; None where its permutation spec was handed in. Raises as ``discover_symmetry`` does."""
        return self._traced if self.given is None else None

    def trace_for(self, purpose: str, mend: str) -> Traced:
        """Return the traced network; raise UnsupportedArchitecture, with ``mend``, where a spec was handed in."""
        if self.given is not None:
            raise UnsupportedArchitecture(
                f"{purpose} the traced network, and its symmetry is given, not traced; mend: {mend}"
            )
        return self._traced

    @property
    def spec(self) -> PermutationSpec:
        """The permutation spec, derived or handed in, verified in float64 before anyone may use it."""
        return self._verified[0]

    @property
    def spec_deviation(self) -> float:
        """By how much outputs were seen to change under random members of the group; at most 1e-9."""
        return self._verified[1]

    @cached_property
    def _verified(self) -> tuple[PermutationSpec, float]:
        if self.given is not None:
            where = f"symmetry {self.origin['origin']}"
            require_fixed(self.given, self.constants, where)
            return self.given, require_given(self.given, self.module, self.example_inputs(), where)
        traced = self._traced
        return traced.spec, require(traced.spec, self.module, self.example_inputs(), graph=traced.trace)

    @property
    def whole_spec(self) -> PermutationSpec:
        """The spec with the order of experts free where it is a symmetry, verified; ``spec`` where there is none.

        What looks at the traced network (activations, paths, dropping) goes by ``spec``, in which experts stay.
        """
        return self._whole[0]

    @property
    def whole_deviation(self) -> float:
        """What ``spec_deviation`` is, of ``whole_spec``."""
        return self._whole[1]

    @cached_property
    def _whole(self) -> tuple[PermutationSpec, float]:
        spec, deviation = self._verified
        if self.given is not None:
            return spec, deviation
        graph, inputs = self._traced.trace, self.example_inputs()
        freed = with_experts(spec, graph, self.module, inputs, self.constants)
        return (spec, deviation) if freed is spec else (freed, require(freed, self.module, inputs, graph=graph))

    def structure(self, purpose: str) -> Structure:
        """Return the network in units, as paths see it; its permutation spec is verified first.

        Raises UnsupportedArchitecture, beginning with ``purpose``, where there is no such structure.
        """
        return structure_of(self._in_units(purpose), purpose, head=False)

    def droppable(self, purpose: str) -> Structure:
        """Return the network in the units that can be dropped, and what is left ``whole``; its spec is verified first.

        Where every hidden unit can be dropped and nothing is read twice it is what ``structure`` gives. Raises
        UnsupportedArchitecture, beginning with ``purpose``, where no unit can be dropped.
        """
        return droppable_of(self._in_units(purpose), purpose)

    def _in_units(self, purpose: str) -> Traced:
        _ = self.spec  # verified before anyone may use it
        needs = f"{purpose}: a permutation spec that is handed in says too little: this needs"
        return self.trace_for(needs, "leave out `symmetry`")

    def on(self, source: Any, what: str = "data") -> Network:
        """Return the same network measured on other data, with nothing kept of this one; ``what`` names them."""
        tokens = self.loss.name == "next_token"
        data = require_counted(in_order(load_data(source, self.base, what, tokens=tokens), self.module), self.loss)
        read = [*input_files(self.base, source), *(held.path for held in data.held)]
        return replace(self, data=data, inputs=tuple(dict.fromkeys([*self.inputs, *read])), remarks={})

    def with_model(self, model: Any) -> Network:
        """Return another network that is run as this one is, with nothing of this one kept."""
        module, label, build = named_module(model, self.base)
        described = model if isinstance(model, FolderModel) else None
        return replace(self, module=module, model=label, build=build, described=described, traces={})

    def untied(self) -> Network:
        """Return the network with every head that is tied to an embedding written apart from it.

        Raises UnsupportedArchitecture where there is none, see ``heads_apart``, or where its spec was handed in.
        """
        if self.given is not None:
            raise UnsupportedArchitecture(
                f"untie = true: {self.name} has symmetry given, which is that of the tied network; mend: leave one out"
            )
        described = None if self.described is None else self.described.untied()
        module, heads = heads_apart(self.module, self.example_inputs(), described)
        build = self.build.with_heads(heads) if described is None else Builder(described, self.base, module)
        return replace(self, module=module, heads=heads, described=described, build=build, traces={})

    def require_unchanged(self) -> None:
        """Raise CheckpointError where its data, calibration or spec came from a file that is another by now."""
        calibration = () if self.calibration is None else self.calibration.held
        others = [] if self.described is None else [self.described.held]
        for held in (*self.data.held, *calibration, *others, *([] if self.spec_file is None else [self.spec_file])):
            held.require_unchanged()

    def facts(self) -> dict[str, Any]:
        """Return what a report says of how it is run; JSON-able."""
        return {
            "model": self.model,
            "module": COPIED if self.build.live else "built",
            "data": data_facts(self.data),
            "calibration": data_facts(self.calibration),
            "loss": self.loss.name,
            "symmetry": self.origin,
            "device": str(self.torch_device),
            **({"untied": dict(self.heads)} if self.heads else {}),
        }


def load_network(
    *,
    name: str,
    model: Any,
    data: Any,
    calibration: Any = None,
    loss: Any = None,
    device: str | torch.device = "auto",
    base: str | os.PathLike[str] | None = None,
    symmetry: str | os.PathLike[str] | PermutationSpec | None = None,
    accepted: tuple[str, ...] = (),
) -> Network:
    """Build the module and load the data and the loss it is measured with; arguments as of ``load_pair``.

    ``accepted``: what reports say of differences beside the weights that a user accepts.
    Raises SourceError, SymmetryError, DeviceError or UnsupportedArchitecture.
    """
    folder = Path(base) if base is not None else Path.cwd()
    torch_device = resolve_device(device)
    module, label, build = named_module(model, folder)
    spec, origin, spec_file = _spec(symmetry, folder, module)
    if isinstance(model, FolderModel):
        loss = model.require_loss() if loss is None else loss
    tokens = loss is not None and load_loss(loss, folder).name == "next_token"
    given = load_data(data, folder, "data", tokens=tokens)
    loss_held = load_loss(default_loss(given) if loss is None else loss, folder)
    held = in_order(given, module)
    calibrating = None
    if calibration is not None:
        calibrating = in_order(load_data(calibration, folder, "calibration", tokens=tokens), module)
    counted = require_counted(held, loss_held)
    described = model if isinstance(model, FolderModel) else None
    imported = any(isinstance(each, str) and ":" in each for each in (model, data, calibration, loss))
    read = [one.path for each in (counted, calibrating) if each is not None for one in each.held]
    read += [] if described is None else [described.held.path]
    inputs = tuple(dict.fromkeys([*input_files(folder, model, data, calibration, loss, symmetry), *read]))
    return Network(
        name, module, label, counted, calibrating, loss_held, str(device), torch_device, folder, spec, origin, inputs,
        spec_file, build=build, home=folder if imported else None, described=described, accepted=accepted,
    )  # fmt: skip


def named_module(model: Any, folder: Path) -> tuple[nn.Module, str, Builder]:
    """Return the module, one whose checkpoint can be loaded by name, what messages call it, and its builder."""
    module = build_module(model, folder)
    require_eager(module)
    stored_tensors(module)
    name = model if isinstance(model, str) else type(module).__name__
    return module, model.label if isinstance(model, FolderModel) else name, Builder(model, folder, module)


def _spec(given: Any, folder: Path, module: nn.Module) -> tuple[PermutationSpec | None, dict[str, Any], Held | None]:
    """Return the spec that was handed in, what a report says of where it comes from, and the file that was read."""
    if given is None:
        return None, {"origin": "traced"}, None
    if isinstance(given, PermutationSpec):
        return given, {"origin": "given"}, None
    if not isinstance(given, (str, os.PathLike)):
        raise SymmetryError(
            f"symmetry: got {type(given).__name__}, expected a .toml or .json file or a PermutationSpec"
        )
    path = folder / given
    spec, held = read_spec(path, module)
    return spec, {"origin": shown_path(path), "sha256": held.sha256}, held
