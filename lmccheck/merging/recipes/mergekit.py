"""mergekit: a YAML of mergekit's, run by mergekit itself on the parents' folders, offline and on the CPU."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmccheck.data.extras import extra
from lmccheck.data.imports import say
from lmccheck.errors import LmcError, SourceError, shown_path
from lmccheck.merging.contract import Made, Making, recipe
from lmccheck.merging.materialise import as_folder
from lmccheck.merging.mergekit_config import TOKENIZERS as OF_TOKENIZERS
from lmccheck.merging.mergekit_config import (
    clone,
    flag,
    layers_of,
    read_yaml,
    references,
    reweighted,
    rewritten,
    weights_of,
    who_is_who,
)

FULL = ("No space left", "File too large", "Disk quota")  # however the libraries it writes with put that
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
SYMMETRIC = {"slerp": ("equal", "equivariant"), "model_stock": ("equal", "equivariant"), "linear": ("equivariant",)}


def _read(value: Any, parents: tuple[str, ...], options: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise LmcError(f".mergekit: got {value!r}, expected the path of a mergekit YAML")
    seed = options.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32):
        raise LmcError(f".seed: got {seed!r}, expected a whole number from 0 to 2³²−1")
    return {"mergekit": os.fspath(value), "seed": seed, "weights": None}


def _look(settings: Mapping[str, Any], parents: tuple[str, ...], folder: Path) -> None:
    """Raise SourceError where the YAML is none, or names a model that is no folder."""
    path = folder / settings["mergekit"]
    references(read_yaml(path), path, folder)


@recipe("mergekit", read=_read, expects="the path of a mergekit YAML", options=("seed",), look=_look, drawn="llama")
def mergekit(making: Making) -> Made:
    """Return the folder that mergekit makes of its YAML.

    The models that it names are replaced by the parents' and the base's folders; what lies elsewhere, as an adapter
    on its base does, is written out first. Random methods draw from ``seed``, by default the run's. ``weights`` among
    the settings, which no manifest says, gives the parents other weights than the YAML does.
    """
    path = making.folder / making.settings["mergekit"]
    shown = shown_path(path)
    config = clone(read_yaml(path))
    found = references(config, path, making.folder)
    roles = who_is_who(found, making.parents, making.base, path)
    tables = {
        id(reference.holder): role for reference, role in zip(found, roles, strict=True) if reference.key == "model"
    }
    folders: dict[str | None, Path] = {
        role: as_folder(
            making.base if role is None else making.parents[role],  # type: ignore[arg-type]  # the base is one of them
            making.target / f"in-{number}",
            f"{shown}: {'the base' if role is None else f'parent {role}'}",
        )
        for number, role in enumerate(dict.fromkeys(roles))
    }
    weights = weights_of(config, tables)
    if making.settings["weights"] is not None:
        reweighted(config, tables, weights := dict(making.settings["weights"]))
    rewritten(found, roles, folders)
    seed = making.seed if making.settings["seed"] is None else making.settings["seed"]
    tokenizer = _has_tokenizer([folders[next(iter(roles))]])
    if not tokenizer and _has_tokenizer(map(Path, found[0].folders)):  # drawn networks, which stand for that folder
        for key in OF_TOKENIZERS:
            config.pop(key, None)
    target = making.target / "merged"
    _run(config, target, seed, shown, tokenizer=tokenizer)
    method = str(config["merge_method"])
    facts = {"method": method, "seed": seed, "mergekit": version("mergekit")}
    facts |= layers_of(config)
    if (dtype := config.get("out_dtype") or config.get("dtype")) is not None:
        facts["dtype"] = str(dtype)
    return Made(target, {**facts, **_told(config, method, weights, making.base is not None)})


def _has_tokenizer(folders: Iterable[Path]) -> bool:
    return any((folder / name).is_file() for folder in folders for name in TOKENIZERS)


def _told(config: Mapping[str, Any], method: str, weights: Mapping[str, float] | None, base: bool) -> dict[str, Any]:
    """Return which laws a method claims, as it is configured, and the sum that it is where it is one."""
    if weights is None or not config.get("models"):
        return {"claims": sorted(SYMMETRIC.get(method, ()))}
    normalize = flag(config, "normalize", {"linear": True}.get(method, False))
    if method not in ("linear", "task_arithmetic") or normalize is None or set(config.get("parameters") or {}) - {
        "weight", "normalize", "int8_mask"
    }:  # fmt: skip
        return {"claims": sorted(SYMMETRIC.get(method, ()))}
    total = sum(weights.values())
    effective = {name: weight / total for name, weight in weights.items()} if normalize and total else dict(weights)
    one = normalize or abs(total - 1) < 1e-9
    claims = {"order", "equivariant", "unit", "linear", *({"equal"} if one else ()), *({"scale"} if normalize else ())}
    of_base = {"weight_of_base": 1 - sum(effective.values())} if method == "task_arithmetic" else {}
    return {"claims": sorted(claims), "weights": effective, **of_base}


def _run(config: Mapping[str, Any], target: Path, seed: int, shown: str, *, tokenizer: bool) -> None:
    """Run mergekit. Raises SourceError with what it says where it does not finish."""
    with _quiet():
        extra("mergekit", "mergekit", shown)
        library, options, merge = (
            extra(f"mergekit.{name}", "mergekit", shown) for name in ("config", "options", "merge")
        )
    try:
        with _quiet(), _offline(), _own_random():
            merge.run_merge(
                library.MergeConfiguration.model_validate(config),
                str(target),
                options=options.MergeOptions(
                    random_seed=seed,
                    device="cpu",
                    quiet=True,
                    trust_remote_code=False,
                    write_model_card=False,
                    copy_tokenizer=tokenizer,
                ),
            )
    except (Exception, SystemExit) as error:
        full = any(words in str(error) for words in FULL)
        mend = "set TMPDIR to a folder with room" if full else "correct the YAML"
        raise SourceError(f"{shown}: mergekit: {_said(error)}; mend: {mend}") from error


def _said(error: BaseException) -> str:
    """Return what mergekit says in one line; of what does not validate the first place and what is wrong there."""
    listed = getattr(error, "errors", None)
    if not callable(listed) or not listed():
        return " ".join(say(error).split())
    first, *others = listed()
    place = ".".join(map(str, first["loc"])) or "the YAML"
    more = f" (and {len(others)} more)" if others else ""
    return f"{place}: {' '.join(first['msg'].split())}, got {str(first.get('input'))[:60]!r}{more}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars, logs and warnings of a run out of the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let no library reach a network while the block lasts, whatever the environment says."""
    from unittest.mock import patch

    hub = extra("huggingface_hub.constants", "mergekit", "mergekit")
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    with patch.dict(os.environ, dict.fromkeys(names, "1")), patch.object(hub, "HF_HUB_OFFLINE", True):
        yield


@contextlib.contextmanager
def _own_random() -> Iterator[None]:
    """Put every generator that mergekit seeds back to where it was."""
    import numpy as np
    import torch

    state, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numbers)
