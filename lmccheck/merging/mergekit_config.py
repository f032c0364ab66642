"""A mergekit YAML as it is: which models it names, which of them are parents, and what it says of weights; no torch."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lmccheck.data.extras import extra
from lmccheck.errors import SourceError, nearest, shown_path
from lmccheck.merging.materialise import places
from lmccheck.store.disk import read_bytes

if TYPE_CHECKING:
    from lmccheck.store.checkpoint import Checkpoint

MOST = 2**20  # bytes of a YAML
KEYS = ("model", "base_model", "tokenizer_source", "source")
TOKENIZERS = ("tokenizer_source", "tokenizer", "chat_template")
TOP = (
    "modules", "slices", "models", "merge_method", "base_model", "dtype", "out_dtype", "parameters", *TOKENIZERS,
)  # fmt: skip
OF_MODEL = ("model", "layer_range", "parameters")
WORDS = ("union", "base")  # which may stand where a tokenizer's model does
NO_HUB = "nothing is downloaded; mend: download it yourself, and name its folder"


class Reference(NamedTuple):
    """Where a YAML names a model (``holder[key]``), and the folders that stands for: of the model, of an adapter."""

    holder: dict[str, Any]
    key: str
    said: str
    folders: frozenset[str]


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a mergekit YAML. Raises SourceError for what is none."""
    shown = shown_path(path)
    yaml = extra("yaml", "mergekit", shown)
    try:
        raw, _ = read_bytes(path, "a mergekit YAML", MOST)
        found = yaml.safe_load(raw.decode("utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())
        told = said if said.startswith(shown) else f"{shown}: no YAML: {said}; mend: correct it"
        raise SourceError(told) from None
    if not isinstance(found, dict) or not isinstance(found.get("merge_method"), str):
        raise SourceError(f"{shown}: has no merge_method, expected a mergekit configuration; mend: name the right file")
    try:
        _require_known(found, TOP, shown, "")
        _require_tables(found, shown, "")
    except RecursionError:
        raise SourceError(f"{shown}: holds itself, by an alias, or is nested too deeply; mend: correct it") from None
    return found


def _require_known(table: Mapping[str, Any], known: tuple[str, ...], shown: str, where: str) -> None:
    """Raise SourceError for a key that is nearly one of mergekit's, which passes over those it does not know.

    Others may hold what aliases refer to.
    """
    for key in table:
        if key not in known and (near := nearest(str(key), known)):
            raise SourceError(f"{shown}: {where}{key}: no key of mergekit's{near}; mend: correct it")


def _require_tables(value: Any, shown: str, where: str) -> None:
    """Raise SourceError where ``parameters`` is no table, or a table of a model has a key nearly mergekit's."""
    if isinstance(value, list):
        for k, part in enumerate(value):
            _require_tables(part, shown, f"{where.rstrip('.')}[{k}].")
    if not isinstance(value, dict):
        return
    if "model" in value and "merge_method" not in value:
        _require_known(value, OF_MODEL, shown, where)
    for key, part in value.items():
        if key == "parameters" and not isinstance(part, (dict, type(None))):
            raise SourceError(f"{shown}: {where}parameters: got {part!r}, expected a table; mend: correct it")
        _require_tables(part, shown, f"{where}{key}.")


def references(config: dict[str, Any], path: Path, folder: Path) -> list[Reference]:
    """Return every model that a YAML names; relative paths are looked up beside it, then in ``folder``.

    Raises SourceError for one that is no folder on this machine: nothing is downloaded.
    """
    return [
        Reference(holder, key, said, _folders(said, path, folder)) for holder, key, said in list(_models(config, path))
    ]


def _models(value: Any, path: Path) -> Iterator[tuple[dict[str, Any], str, str]]:
    if isinstance(value, list):
        for part in value:
            yield from _models(part, path)
    if not isinstance(value, dict):
        return
    for key, part in value.items():
        if key in KEYS and isinstance(part, str) and not (part in WORDS and key in KEYS[2:]):
            yield value, key, part
        elif (
            key in KEYS and isinstance(part, dict) and isinstance(part.get("model"), (str, dict)) and "kind" not in part
        ):
            yield value, key, "+".join(_text(part[name]) for name in ("model", "lora") if part.get(name))
        else:
            yield from _models(part, path)


def _text(value: Any) -> str:
    return str(value.get("path")) if isinstance(value, dict) else str(value)


def _folders(said: str, path: Path, folder: Path) -> frozenset[str]:
    """Return the folders that ``model`` or ``model+adapter`` stands for, links followed."""
    found = []
    for part in said.split("+") if not _folder(said, path, folder) else [said]:
        place = _folder(part, path, folder)
        if place is None:
            raise SourceError(
                f"{shown_path(path)}: names the model {part!r}, which is no folder beside it; expected the folder of a "
                f"parent or of the base; {NO_HUB}"
            )
        found.append(os.path.realpath(place))
    return frozenset(found)


def _folder(said: str, path: Path, folder: Path) -> Path | None:
    name = os.path.expanduser(said)
    return next((place for place in (path.parent / name, folder / name) if place.is_dir()), None)


def who_is_who(
    found: list[Reference], parents: Mapping[str, Checkpoint], base: Checkpoint | None, path: Path
) -> list[str | None]:
    """Return, for each reference, the name of the parent that it is; None for the base.

    Raises SourceError for a model that is neither, and for a parent that the YAML does not name.
    """
    known: dict[frozenset[str], str | None] = {} if base is None else {places(base): None}
    known = {**known, **{places(checkpoint): name for name, checkpoint in parents.items()}}
    shown = shown_path(path)
    for reference in found:
        if reference.folders not in known:
            listed = ", ".join(f"{name} = {checkpoint.label}" for name, checkpoint in parents.items())
            is_base = reference.key == "base_model"
            mend = "give it as `base`" if is_base and base is None else "add it to `parents`, or correct the YAML"
            raise SourceError(
                f"{shown}: {reference.key} {reference.said!r} is no parent of this merge, expected one of {listed}"
                f"{'' if base is None else f' or the base, {base.label}'}; mend: {mend}"
            )
    roles = [known[reference.folders] for reference in found]
    if unused := [name for name in parents if name not in roles]:
        raise SourceError(
            f"{shown}: does not name parent {unused[0]!r} ({parents[unused[0]].label}), expected every parent in it; "
            "mend: leave it out of `parents`, or add it to the YAML"
        )
    return roles


def rewritten(found: list[Reference], roles: list[str | None], folders: Mapping[str | None, Path]) -> None:
    """Put the folders that are to be merged in the place of those that a YAML names."""
    for reference, role in zip(found, roles, strict=True):
        reference.holder[reference.key] = {"model": {"path": str(folders[role])}}


def weights_of(config: Mapping[str, Any], roles: Mapping[int, str | None]) -> dict[str, float] | None:
    """Return the weight of each parent, where the YAML says one number each; None where it says more than that.

    ``roles`` gives the parent by the identity of the table that names it.
    """
    models = config.get("models")
    if not isinstance(models, list):
        return None
    common = _number((config.get("parameters") or {}).get("weight"))
    found: dict[str, float] = {}
    for table in models:
        role = roles.get(id(table))
        own = (table.get("parameters") or {}).get("weight")
        weight = common if own is None else _number(own)
        if role is None:
            continue
        if weight is None or role in found:
            return None
        found[role] = weight
    return found or None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def reweighted(config: dict[str, Any], roles: Mapping[int, str | None], weights: Mapping[str, float]) -> None:
    """Give parents other weights in a YAML of ``models``, in the weights' order; those without one are left out."""
    tables = {roles.get(id(table)): table for table in config["models"]}
    for role, weight in weights.items():
        tables[role]["parameters"] = {**(tables[role].get("parameters") or {}), "weight": weight}
    config["models"] = [table for role, table in tables.items() if role is None] + [tables[role] for role in weights]


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool | None:
    """Return what a YAML says of a parameter of the whole merge that is true or false; None where it is neither."""
    value = (config.get("parameters") or {}).get(key, default)
    return value if isinstance(value, bool) else None


def layers_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many layers a YAML's slices need in its models, and whether the merge has those of one of them."""
    parts = [config, *(config.get("modules") or {}).values()]
    found = [_layers(part["slices"]) for part in parts if isinstance(part.get("slices"), list)]
    most = max((layers for layers, _ in found), default=1)
    return {"layers": most, "layout": all(same for _, same in found)}


def _layers(slices: list[Any]) -> tuple[int, bool]:
    ranges = [source["layer_range"] for part in slices for source in part.get("sources", ())]
    total = sum(part["sources"][0]["layer_range"][1] - part["sources"][0]["layer_range"][0] for part in slices)
    most = max(end for _, end in ranges)
    return most, total == most


def clone(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that may be changed."""
    return copy.deepcopy(config)
