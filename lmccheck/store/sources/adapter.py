"""An adapter on its base, as PEFT saves it: the product is the checkpoint, and the factors never are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.store.adapters.config import AdapterConfig, read_config
from lmccheck.store.adapters.parts import OtherNames, Parts, parts_of
from lmccheck.store.adapters.product import multiplied
from lmccheck.store.checkpoint import SOURCES, Checkpoint, Source, look_at
from lmccheck.store.contents import Lying, same_bytes
from lmccheck.store.folders import CONFIG, adapter_in
from lmccheck.store.given import Adapted
from lmccheck.store.shards import File
from lmccheck.store.surroundings import Surroundings

if TYPE_CHECKING:
    from torch import Tensor

KEYS = ("base", "adapter")


@dataclass(frozen=True)
class _Merged:
    """A base, and the files of an adapter that changes it."""

    base: Checkpoint
    file: File
    config: AdapterConfig
    parts: Parts
    around: Surroundings  # of the adapter, which may have a tokenizer of its own

    def checkpoint(self, path: Path) -> Checkpoint:
        """Return the merged model as a checkpoint; the adapter lies at ``path``."""
        added = {name: self.file.header.tensors[own] for name, own in self.parts.whole.items()}
        base, files = self.base, (self.file.path, self.config.held.path)
        return Checkpoint(
            f"{shown_path(path)} on {base.label}",
            {**base.tensors, **{name: header for name, header in added.items() if name not in base.tensors}},
            self.read,
            str(path),
            metadata=base.metadata,
            require_unchanged=self.require_unchanged,
            same=self.same,
            files=(*base.files, *files),
            home=base.home,
            get=lambda name: self._merged(name, base.get),
            lies={name: lying for name in (*base.tensors, *added) if (lying := self._lying(name)) is not None},
            digests=None if base.digests is None else self.digests,
            as_stored=base.as_stored,
            shards=base.shards,
            apart=base.apart | {*self.parts.products, *filter(self.config.saves, self.parts.whole)},
            remarks=base.remarks,
            about={"adapter": {"path": str(path), **self.config.facts()}, "base": base.path},
        )

    def read(self) -> dict[str, Tensor]:
        """Return every tensor of the merged model."""
        state = self.base.read()
        return {name: self._merged(name, state.__getitem__) for name in dict.fromkeys((*state, *self.parts.whole))}

    def digests(self) -> dict[Path, str]:
        """Return the hash of every file, the base's and the adapter's."""
        own = {self.file.path: self.file.digest(), self.config.held.path: self.config.held.sha256}
        return own if self.base.digests is None else {**self.base.digests(), **own}

    def require_unchanged(self) -> None:
        """Raise CheckpointError where a file of the base or of the adapter is another by now."""
        self.base.require_unchanged()
        self.file.require_unchanged()
        self.config.held.require_unchanged()
        self.around.require_unchanged()

    def same(self, one: str, other: str) -> bool:
        """Whether two names are made alike of the same bytes; no if they cannot be read now."""
        first, second = self._lying(one), self._lying(other)
        if first is None or second is None:
            return not {one, other} & {*self.parts.products, *self.parts.whole} and self.base.same(one, other)
        try:
            return same_bytes(first, second)
        except (OSError, ValueError):
            return False

    def _merged(self, name: str, base: Callable[[str], Tensor]) -> Tensor:
        """Return one tensor of the merged model, ``base`` being asked for that of the base."""
        import torch

        if name in self.parts.whole:
            tensor = self.file.get(self.parts.whole[name])
            if name in self.base.tensors:  # PEFT copies it into what the base has
                tensor = tensor.to(getattr(torch, self.base.tensors[name].torch_dtype))
        else:
            tensor = base(name)
        product = self.parts.products.get(name)
        if product is None:
            return tensor
        return multiplied(product, tensor, {role: self.file.get(own) for role, own in product.factors})

    def _lying(self, name: str) -> Lying | None:
        """Return what a tensor is made of; None where that is not known."""
        found = self.base.lies.get(name)
        if name in self.parts.whole:
            own = self.parts.whole[name]
            found = self.file.lying(own)
            dtypes = (
                self.file.header.tensors[own].dtype,
                self.base.tensors.get(name, self.file.header.tensors[own]).dtype,
            )
            found = found if dtypes[0] == dtypes[1] else Lying(found.spans, f"{dtypes[0]} as {dtypes[1]}")
        product = self.parts.products.get(name)
        if found is None or product is None:
            return found
        factors = [self.file.lying(own).spans[0] for _, own in product.factors]
        return Lying((*found.spans, *factors), f"{found.how} {product.how}".strip())


def open_adapter(given: Mapping[str, Any] | Adapted, folder: Path, side: str) -> Checkpoint:
    """Return an adapter on its base as a checkpoint; nothing but headers and the adapter's config is read."""
    named = {"base": given.base, "adapter": given.adapter} if isinstance(given, Adapted) else dict(given)
    for key in KEYS:
        if key not in named:
            raise CheckpointError(f"{side}: got no {key!r}, expected 'base' and 'adapter'; mend: name both")
    if other := next((key for key in named if key not in KEYS), None):
        raise CheckpointError(f"{side}: got the key {other!r}, expected 'base' and 'adapter' only; mend: leave it out")
    if not isinstance(named["adapter"], (str, os.PathLike)):
        got = type(named["adapter"]).__name__
        raise CheckpointError(f"{side}: adapter: got {got}, expected the path of an adapter's folder; mend: name it")
    path = folder / named["adapter"]
    file, config = File(adapter_in(path)), read_config(adapter_in(path).parent)
    base = look_at(named["base"], folder, f"{side}, base")
    if config.base and not recorded_base_seen(path, config, base, folder):
        said = (
            f"trained on {config.base!r} as its config says, and {base.label} is known to fit by names and shapes only"
        )
        base = replace(base, remarks=(*base.remarks, said))
    try:
        return _merged(path, base, file, config)
    except OtherNames as error:
        if base.home is None or not (base.home / CONFIG).is_file():
            raise
        return _waiting(path, base, file, config, error)


def _merged(path: Path, base: Checkpoint, file: File, config: AdapterConfig) -> Checkpoint:
    parts = parts_of(shown_path(path), file.header.tensors, config, base.tensors, base.label)
    return _Merged(base, file, config, parts, Surroundings.of(file.path.parent)).checkpoint(path)


def _waiting(path: Path, base: Checkpoint, file: File, config: AdapterConfig, error: OtherNames) -> Checkpoint:
    """Return a checkpoint that can be read once the model that the base's config describes has named its tensors."""

    def refuse(*_: Any) -> Any:
        raise error

    around = Surroundings.of(file.path.parent)
    found = _Merged(base, file, config, Parts({}, {}), around).checkpoint(path)
    return replace(found, read=refuse, get=refuse, lies={}, onto=lambda view: _merged(path, view(base), file, config))


def recorded_base_seen(path: Path, config: AdapterConfig, base: Checkpoint, folder: Path) -> bool:
    """Return whether the base that an adapter was trained on is there, and holds what the one that is given does.

    Raises CheckpointError where it holds other weights.
    """
    seen = False
    for start in (folder, path.parent, path, Path.cwd()) if config.base else ():
        try:
            recorded = look_at(start / config.base, folder, "base")
            same = recorded.same_files(base) or not base.lies or recorded.same_contents(base)
        except (CheckpointError, OSError, ValueError):  # it is not there, or no model is
            continue
        if not same:
            raise CheckpointError(
                f"{shown_path(path)}: was trained on {recorded.label}, and is given on {base.label}, which holds other "
                "weights; mend: name the base that it was trained on"
            )
        seen = True
    return seen


def _is_adapter(given: Any) -> bool:
    """Whether something names a base or an adapter, and not tensors."""
    paths = (str, os.PathLike, Mapping, Adapted)
    return isinstance(given, Adapted) or (
        isinstance(given, Mapping) and any(isinstance(given.get(key), paths) for key in KEYS)
    )


SOURCES.add("adapter", Source("{'base': …, 'adapter': …}", _is_adapter, open_adapter), __name__)
