"""Parents, a recipe, and the network that it makes of them: a Merge, made once, measured as it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmccheck.alignment.api import Alignment
from lmccheck.alignment.api import align as align_pair
from lmccheck.alignment.kept import ROUNDING, as_compared, calibrated, kept_note, not_worse, settled
from lmccheck.data.load import Data
from lmccheck.errors import SourceError, nearest
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.merging.contract import Made, Recipe
from lmccheck.merging.given import names_of, pins_of, recipe_of, require_alignable, require_distinct, require_enough
from lmccheck.merging.product import Product
from lmccheck.modules.precision import own_settings
from lmccheck.modules.stored import stored_tensors
from lmccheck.network.endpoint import Endpoint, endpoint, require_same_tensors
from lmccheck.network.hub.names import as_described, under_module_names
from lmccheck.network.loaded import as_it_loads, as_loaded
from lmccheck.network.loading import network_of
from lmccheck.network.network import Network
from lmccheck.network.once import Keeps
from lmccheck.network.pair import Given, ModelPair
from lmccheck.network.resident import Endpoints, Named
from lmccheck.shown import one_line, some
from lmccheck.store.checkpoint import Checkpoint, look_at, open_checkpoint
from lmccheck.store.disk import Held
from lmccheck.store.heads import with_own_heads
from lmccheck.store.prefixes import prefixes_differ
from lmccheck.store.surroundings import all_held, all_unchanged


@one_line(lambda merge: f"{merge.name!r}, {merge.recipe.text} of {some(merge.parents)}; {merge.network.run_on}")
@dataclass(frozen=True, eq=False)
class Merge(Keeps):
    """Parents of one network, a recipe, and what it makes of them. Made by ``load_merge``.

    ``files`` are the parents' checkpoints as a recipe reads them, under the names of their files; ``base_file`` that of
    the base. ``shipped`` is what is published, described without reading it. ``sources`` are data by name.
    """

    name: str
    ends: Endpoints = field(repr=False)  # the parents, in the order of ``files``
    recipe: Recipe
    files: Mapping[str, Checkpoint] = field(repr=False)
    base_file: Checkpoint | None = field(default=None, repr=False)
    shipped: Checkpoint | None = field(default=None, repr=False)
    align: str = "none"
    seed: int = 0
    sources: Mapping[str, Any] = field(default_factory=dict, repr=False)
    accept: tuple[str, ...] = ()
    read_for_recipe: tuple[Held, ...] = field(default=(), repr=False)
    origin: Merge | None = field(default=None, repr=False)  # the same merge, measured on other data
    tried: dict[int, Product] = field(default_factory=dict, init=False, repr=False)  # by seed, made to be compared
    kind = "merge"
    chosen_by: dict[str, Data] = field(default_factory=dict, init=False, repr=False)  # data that the recipe looked at

    @property
    def network(self) -> Network:
        """The network of the parents, with the data that are measured on."""
        return self.ends.network

    @property
    def parents(self) -> Mapping[str, Endpoint]:
        """The parents by name, in order; read as they are asked for where they are large."""
        return Named(tuple(self.files), self.ends)

    @property
    def named_endpoints(self) -> Mapping[str, Endpoint]:
        """What the merge is compared with: its parents, by name."""
        return self.parents

    @property
    def checkpoints(self) -> Mapping[str, Checkpoint]:
        """Every checkpoint that was read for it, by name."""
        others = {"base": self.base_file, "shipped": self.shipped}
        parents = dict(zip(self.files, self.ends.checkpoints, strict=True))
        return {**parents, **{name: one for name, one in others.items() if one is not None}}

    @property
    def device(self) -> str:
        """The device that was asked for."""
        return self.network.device

    @cached_property
    def base_model(self) -> Endpoint | None:
        """The base, read at the first look; None where there is none."""
        if self.base_file is None:
            return None
        return endpoint(self.network, under_module_names(self.base_file, self.network))

    @cached_property
    def product(self) -> Product:
        """What the recipe makes, on disk; made at the first look."""
        return self.origin.product if self.origin else Product(self.make, f"merge {self.name}")

    @cached_property
    def merged(self) -> Endpoint:
        """The merge as its own consumer loads it. Raises LmcError where the recipe fails, or makes no such network."""
        if self.origin is not None:
            end = self.origin.merged
            network = replace(end.network, data=self.network.data, remarks=self.network.remarks)
            return replace(end, network=network)
        made = self.product.checkpoint
        network = as_described(self.network, made)
        return as_loaded(endpoint(network, under_module_names(made, network)))[0]

    def make(self, target: Path, seed: int | None = None) -> Made:
        """Make it below ``target``, unless it was made to compare alignments; by default with the merge's own seed."""
        given, kept = self.given, self.tried.get(self.seed if seed is None else seed)
        made = kept.made if kept else self._make(given, target, seed)
        said = (note for found in self.alignments.values() for note in kept_note(found.facts, self.align))
        return replace(made, notes=(*made.notes, *dict.fromkeys(said)))

    @cached_property
    def given(self) -> Mapping[str, Checkpoint]:
        """The parents as the recipe gets them: their files, or, aligned to the first, their weights."""
        known = any(file.as_stored is not None for file in self.ends.checkpoints)  # whose names the library converts
        known = known or not prefixes_differ(self.files.values(), stored_tensors(self.network.module))
        if self.align == "none" and known and not self.network.heads:
            return self.files
        return self._given(self.alignments)

    def _given(self, alignments: Mapping[str, Alignment]) -> Mapping[str, Checkpoint]:
        moved = {name: found.weights for name, found in alignments.items()}
        return {name: self._stored(name, moved.get(name, end.theta)) for name, end in self.parents.items()}

    def _stored(self, name: str, weights: Mapping[str, Tensor]) -> Checkpoint:
        """Return a parent with weights under the names of its file, or, if they had a prefix, those of the module."""
        end, file = self.parents[name], self.files[name]
        if end.checkpoint.as_stored is not None:
            state = end.checkpoint.as_stored(weights)
        else:
            named = end.checkpoint if self.network.heads else file
            state = {n: weights[n] for n in (named.tensors if named.tensors.keys() <= weights.keys() else weights)}
        return replace(
            look_at(state, Path(), f"parent {name}"),
            metadata=file.metadata,
            home=file.home,
            config=end.checkpoint.config,
            same=lambda one, other: torch.equal(state[one], state[other]),
        )

    @cached_property
    def alignments(self) -> dict[str, Alignment]:
        """How every other parent is aligned to the first; none where nothing is aligned. Raises as ``align`` does.

        Nothing is moved where that gives the merge a lower loss on calibration data; without any, no parent is whose
        objective is lower than unaligned.
        """
        if self.align == "none":
            return {}
        first, *others = self.parents
        pairs = {name: self.pair(first, name) for name in others}
        found = {name: align_pair(pair, self.align, seed=self.seed) for name, pair in pairs.items()}
        network = calibrated(self.network)
        if network is None:
            return {name: not_worse(pairs[name], each) for name, each in found.items()}
        if all(settled(each, pairs[name].theta_a) for name, each in found.items()):
            return found
        loss = self._loss_on(network)
        made = (partial(self._make, self._given(each)) for each in (found, {}))
        products = [Product(each, f"merge {self.name}") for each in made]
        losses = [loss(product.checkpoint.read()) for product in products]
        aligned, still = (found if found == found else float("inf") for found in losses)
        compared = {"by": "loss of the merge on calibration data", "aligned": aligned, "identity": still}
        compared["kept"] = "aligned" if aligned <= still + ROUNDING else "identity"
        self.tried[self.seed] = products[compared["kept"] == "identity"]
        return {name: as_compared(each, pairs[name].theta_b, compared) for name, each in found.items()}

    def _make(self, given: Mapping[str, Checkpoint], target: Path, seed: int | None = None) -> Made:
        """Let the recipe make something of parents, below ``target``."""
        seed = self.seed if seed is None else seed
        base = self.base_file and with_own_heads(self.base_file, self.network.heads)
        return self.recipe.make(given, base, target, seed=seed, measure=self._measure)

    def _measure(self, name: Any) -> Callable[[Mapping[str, Tensor]], float]:
        """Return what gives the mean loss of weights on other data than the merge's own."""
        network = self.on(name).network
        (self.origin or self).chosen_by[str(name)] = network.data
        return self._loss_on(network)

    def _loss_on(self, network: Network) -> Callable[[Mapping[str, Tensor]], float]:
        """Return what gives the mean loss of weights, named as a recipe names them, on a network's data."""
        evaluator = Evaluator(network, next(iter(self.parents.values())).theta)
        home = next(iter(self.files.values())).home

        def loss(weights: Mapping[str, Tensor]) -> float:
            soup = replace(look_at(weights, Path(), "of a merge"), home=home)
            end = endpoint(network, under_module_names(soup, network))
            return evaluator.measure(evaluator.weights(end.theta), reestimate=False, label="a merge").loss

        return loss

    def on(self, data: Any) -> Merge:
        """Return the same merge measured on other data: one of its named data, or whatever ``load_pair`` takes."""
        source = self.sources.get(data, data) if isinstance(data, str) else data
        if isinstance(source, str) and not source.endswith(".safetensors") and ":" not in source:
            known = f"one of {', '.join(self.sources)}, " if self.sources else ""
            raise SourceError(
                f"data {source!r}: no such name{nearest(source, self.sources)}, expected {known}a .safetensors path or "
                "'module:callable'; mend: correct it"
            )
        network = self.network.on(source, f"data {data}" if isinstance(data, str) else "data")
        return replace(self, ends=self.ends.of(network), origin=self.origin or self)

    def pair(self, a: str, b: str) -> ModelPair:
        """Return two parents as a pair."""
        return ModelPair(f"{a}-{b}", self.parents[a], self.parents[b])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the merge as one file of safetensors, with how it was made; raises CheckpointError."""
        return self.product.save(Path(path), self.facts(), self.inputs)

    def ship(self, target: Path, files: Sequence[str]) -> None:
        """Write the merge to the folder ``target`` as its recipe made it, and beside it how that was."""
        self.product.ship(target, self.facts())

    def facts(self) -> dict[str, Any]:
        """Return how the merge was made; JSON-able."""
        return {
            **self.recipe.facts(),
            "made": dict(self.product.made.facts),
            "align": self.align,
            "seed": self.seed,
            "sha256": {name: checkpoint.sha256 for name, checkpoint in self.files.items()},
            "version": version("lmccheck"),
        }

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file that was read for it, none of which may be written to."""
        files = (file for checkpoint in self.checkpoints.values() for file in checkpoint.files)
        return (*files, *self.network.inputs, *self.recipe.inputs)

    def require_unchanged(self) -> None:
        """Raise CheckpointError where a file that was read for it is another by now."""
        all_unchanged((*self.checkpoints.values(), *self.read_for_recipe))
        self.network.require_unchanged()

    @property
    def description(self) -> dict[str, Any]:
        """What a report says of the merge; JSON-able."""
        files = {name: checkpoint.facts() for name, checkpoint in self.checkpoints.items()}
        return {"files": files, "recipe": self.recipe.facts(), "align": self.align, **self.network.facts()}


@own_settings()
def load_merge(
    parents: Mapping[str, Given],
    recipe: Mapping[str, Any] | str | Recipe,
    *,
    model: Any = None,
    data: Any,
    base_model: Given | None = None,
    shipped: Given | None = None,
    align: str = "none",
    calibration: Any = None,
    loss: Any = None,
    device: str | torch.device = "auto",
    base: str | os.PathLike[str] | None = None,
    name: str | None = None,
    seed: int = 0,
    accept: Sequence[str] = (),
    symmetry: Any = None,
    sources: Mapping[str, Any] | None = None,
    sha256: Mapping[str, str] | None = None,
    untie: bool = False,
) -> Merge:
    """Load and check the parents of a merge, and how it is made of them.

    ``parents``: checkpoints by name, as ``load_pair`` takes them; ``base_model``: the checkpoint they were tuned from,
    for recipes that need it. ``recipe``: ``{"linear": {"chat": 0.5, "math": 0.5}}``, ``"uniform"``, ``{"call":
    "module:callable"}`` and others, one of ``lmccheck.merging.recipes``. ``shipped``: what is published, for the
    property ``shipped``. ``align``: a method of ``lmccheck.align`` by which the parents are aligned to the first before
    a linear recipe, unless that is worse. ``sources``: further data by name, for properties that say ``data``.
    ``accept``: differences of configs and tokenizers that are meant. All else as in ``load_pair``.
    It is made at the first look at ``.merged``. Raises as ``load_pair``, and LmcError.
    """
    folder = Path(base) if base is not None else Path.cwd()
    names = names_of(parents)
    read = recipe_of(recipe, names, folder)
    require_alignable(align, read)
    held = all_held(read.inputs)
    require_enough(names, read, base_model)
    pins = pins_of(sha256, names)
    opened = {key: open_checkpoint(given, folder, f"parent {key}", pins.get(key)) for key, given in parents.items()}
    require_distinct(opened)
    origin = None if base_model is None else open_checkpoint(base_model, folder, "base_model", pins.get("base"))
    published = None if shipped is None else look_at(shipped, folder, "shipped")
    compared = {**opened, **({} if origin is None else {"base_model": origin})}
    title = name or "-".join(names)
    network = network_of(
        compared, model, accept, name=title, data=data, calibration=calibration, loss=loss, device=device, base=folder,
        symmetry=symmetry,
    )  # fmt: skip
    network = network.untied() if untie else network
    first, *rest = named = [under_module_names(checkpoint, network) for checkpoint in opened.values()]
    for other in (*rest, *([] if origin is None else [under_module_names(origin, network)])):
        require_same_tensors(first, other, network.module)
    ends = Endpoints(network, named)
    ends.check()
    ends = ends.of(as_it_loads(ends, ends.dtype))
    named_data = dict(sources or {})
    return Merge(title, ends, read, opened, origin, published, align, seed, named_data, tuple(accept), held)
