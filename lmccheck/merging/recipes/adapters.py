"""adapters: parents that are adapters on one base, combined by peft itself and merged into the base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmccheck.data.imports import say
from lmccheck.errors import LmcError, SourceError, nearest, shown_path
from lmccheck.merging.contract import Made, Making, recipe
from lmccheck.merging.settings import weights as read_weights

if TYPE_CHECKING:
    from lmccheck.store.checkpoint import Checkpoint

HOW = (
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip
DENSE = ("ties", "dare", "magnitude")  # which keep a share of the entries
SIGNS = ("total", "frequency")
ADAPTER = "adapter_config.json"


def _read(value: Any, parents: tuple[str, ...], options: Mapping[str, Any]) -> Mapping[str, Any]:
    found, how = read_weights(value, parents, "adapters"), options.get("how", "linear")
    if how not in HOW:
        near = nearest(how, HOW) if isinstance(how, str) else ""
        raise LmcError(f".how: got {how!r}{near}, expected one of {', '.join(HOW)}")
    density, rank, signs = (options.get(key) for key in ("density", "svd_rank", "majority_sign_method"))
    number = isinstance(density, (int, float)) and not isinstance(density, bool)
    if how.startswith(DENSE) and not (number and 0 < density <= 1):  # type: ignore[operator]  # a number, then
        raise LmcError(
            f".density: got {density!r}, expected the share of entries that {how} keeps, above 0 and at most 1"
        )
    if density is not None and not how.startswith(DENSE):
        raise LmcError(f".density: got {density!r}, expected none: how = {how!r} keeps all entries; mend: leave it out")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1 or "svd" not in how):
        raise LmcError(f".svd_rank: got {rank!r}, expected a whole number from 1, with a how of svd")
    if signs is not None and (signs not in SIGNS or "ties" not in how):
        raise LmcError(f".majority_sign_method: got {signs!r}, expected one of {', '.join(SIGNS)}, with a how of ties")
    return {"weights": found, "how": how, "density": density, "svd_rank": rank, "majority_sign_method": signs}


def _claims(settings: Mapping[str, Any]) -> frozenset[str]:
    """peft's linear adds factors: of one adapter it is that adapter, of several no sum of their products."""
    return frozenset({"linear": {"unit", "order"}, "cat": {"unit", "order", "linear"}}.get(settings["how"], set()))


@recipe(
    "adapters",
    read=_read,
    expects="a table of weights by parent, each an adapter on one base",
    options=("how", "density", "svd_rank", "majority_sign_method"),
    claims=_claims,
    drawn="adapters",
)
def adapters(making: Making) -> Made:
    """Return the base with peft's ``add_weighted_adapter`` of the adapters merged into it, as a pipeline does it.

    A base with a config is loaded by its own library; of another the layers that adapters change are built by their
    names. Random combinations draw from the run's seed.
    """
    from lmccheck.merging.peft_run import combined

    settings = making.settings
    given = {name: weight for name, weight in settings["weights"].items() if name in making.parents}
    folders = {name: adapter_folder(making.parents[name], name) for name in given}
    base = _base_of(making, folders)
    path, version = combined(making, base, folders, given)
    total = {"weight_of_base": 1 - sum(given.values())}
    return Made(path, {"weights": given, **total, "how": settings["how"], "peft": version, "products": True})


def adapter_folder(checkpoint: Checkpoint, name: str) -> Path:
    """Return the folder of a parent's adapter. Raises SourceError for a parent that is none."""
    folders = [file.parent for file in checkpoint.files if (file.parent / ADAPTER).is_file()]
    if not folders:
        raise SourceError(
            f"recipe adapters: parent {name} is {checkpoint.label}, expected an adapter on its base; mend: "
            f'{name} = {{ base = "…", adapter = "…" }}'
        )
    return folders[0]


def adapter_config(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Return what a parent's adapter says of itself. Raises SourceError."""
    path = adapter_folder(checkpoint, name) / ADAPTER
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{shown_path(path)}: {say(error)}; mend: save the adapter again") from None
    return found if isinstance(found, dict) else {}


def _base_of(making: Making, folders: Mapping[str, Path]) -> Checkpoint:
    """Return the base that all adapters lie on. Raises SourceError where they have several, or none is given."""
    if making.base is None:
        raise SourceError("recipe adapters: no base is given, expected what the adapters lie on; mend: give `base`")
    own = set(making.base.files)
    for name, folder in folders.items():
        beside = {file for file in making.parents[name].files if file.parent != folder}
        if beside and beside != own:
            raise SourceError(
                f"recipe adapters: parent {name} lies on {min(map(str, beside))}, the base is {making.base.label}; "
                "expected adapters on one base; mend: name the same base"
            )
    return making.base
