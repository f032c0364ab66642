"""What lies beside weights in a model's folder: what is loaded in their place, and what belongs to them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.store.disk import Held, hashed
from lmccheck.store.documents import read_document, shown
from lmccheck.store.folders import CONFIG, INDEX, adapters_among, names_in
from lmccheck.store.header import PICKLES, SAFETENSORS, read_header

if TYPE_CHECKING:
    from lmccheck.store.checkpoint import Checkpoint

OTHER = "transformers_weights"  # the key of a config.json by which from_pretrained loads another file
BELONGS = re.compile(  # configs, tokenizers, processors, templates
    r".*config\.json|tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab.*|merges\.txt|chat_template.*"
    r"|.+\.(model|spm|tiktoken|codes|jinja)|tekken\.json|encoder\.json|dict\.txt"
)


@dataclass(frozen=True)
class Surroundings:
    """The configs and tokenizers of a folder, as they were when its weights were looked at."""

    home: Path
    held: tuple[Held, ...]

    @classmethod
    def of(cls, home: Path) -> Surroundings:
        """Return those of a folder; what cannot be read is told by whoever needs it."""
        return cls(home, all_held(home / name for name in sorted(_belonging(home))))

    def require_unchanged(self) -> None:
        """Raise CheckpointError where one of them is another by now, is gone, or has come."""
        all_unchanged(self.held)
        if new := _belonging(self.home) - {held.path.name for held in self.held}:
            raise CheckpointError(
                f"{shown_path(self.home / min(new))}: was not there when the weights beside it were looked at, "
                "expected a folder that stays as it is; mend: run again when nothing writes to it"
            )


def _belonging(home: Path) -> set[str]:
    return {name for name in names_in(home) if BELONGS.fullmatch(name) and (home / name).is_file()}


def all_held(paths: Iterable[Path]) -> tuple[Held, ...]:
    """Return the states of files. Raises CheckpointError with one line."""
    try:
        return tuple(map(hashed, paths))
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def all_unchanged(read: Iterable[Held | Checkpoint]) -> None:
    """Raise CheckpointError where one of what was read is another by now."""
    for each in read:
        each.require_unchanged()


def require_read(home: Path, weights: Path) -> None:
    """Raise CheckpointError where from_pretrained of a folder makes something else of it than of its ``weights``."""
    if not (home / CONFIG).is_file():
        return
    if adapter := [name for name in adapters_among(names_in(home)) if name != weights.name]:
        raise CheckpointError(
            f"{shown_path(weights)}: got {adapter[0]}, an adapter, beside {weights.name}, a whole model: "
            "from_pretrained puts the one on the other, expected one of them; mend: give each a folder of its own"
        )
    try:
        named = read_document(home / CONFIG)[2].get(OTHER)
    except ValueError:  # told where it is needed
        return
    if named is not None and named != weights.name:
        raise CheckpointError(
            f"{shown_path(home / CONFIG)}: says {OTHER} = {shown(named)}, which from_pretrained loads in place of "
            f"{weights.name}, expected the weights beside it; mend: remove the key {OTHER!r}"
        )


def remarks_beside(home: Path, weights: Path, tensors: Collection[str]) -> Iterator[str]:
    """Yield what lies beside a single file of weights and may be taken for the model, too."""
    for name in sorted(names_in(home) - {weights.name}):
        if name.startswith("pytorch_model") and Path(name.removesuffix(INDEX)).suffix in PICKLES:
            yield (
                f"{weights.name} is read, as from_pretrained does, {name} beside it is not, which programs of before "
                "safetensors load: remove it, or check that it says the same"
            )
        elif name.endswith(SAFETENSORS):
            try:
                twice = next((tensor for tensor in read_header(home / name).tensors if tensor in tensors), None)
            except CheckpointError:  # of whatever it is a part, it is none of this model
                continue
            if twice is not None:
                yield f"{weights.name} is read, {name} beside it is not, which holds a tensor {twice!r}, too"
