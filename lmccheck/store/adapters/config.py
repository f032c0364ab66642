"""``adapter_config.json``: the kind of an adapter, its ranks and scales, and which modules it is of; no torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from lmccheck.errors import CheckpointError, shown_path
from lmccheck.store.disk import Held
from lmccheck.store.documents import read_document, shown
from lmccheck.store.folders import ADAPTER_CONFIG

AGAIN = "save the adapter again with PEFT's save_pretrained"
EXPECTED = "a LoRA adapter, with rsLoRA or DoRA"
BIASES = ("none", "all", "lora_only")
STARTS = (None, True, False, "gaussian", "eva", "orthogonal")  # of factors, that leave the base as it is
READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "bias", "fan_in_fan_out", "rank_pattern",
    "alpha_pattern", "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
    "init_lora_weights", "base_model_name_or_path",
}  # fmt: skip
OF_TRAINING = {  # what changes nothing of a merged model
    "auto_mapping", "task_type", "revision", "inference_mode", "peft_version", "lora_dropout", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "runtime_config", "qalora_group_size", "megatron_core",
}  # fmt: skip


@dataclass(frozen=True)
class AdapterConfig:
    """What a LoRA adapter says of itself, checked; ``held`` is the file as it was read."""

    held: Held
    said: Mapping[str, Any]

    @property
    def dora(self) -> bool:
        """Whether weights are scaled to magnitudes."""
        return bool(self.said.get("use_dora"))

    @property
    def transposed(self) -> bool:
        """Whether it says that its weights are stored (in, out), as GPT-2's Conv1D has them."""
        return bool(self.said.get("fan_in_fan_out"))

    @property
    def base(self) -> str:
        """The base that it was trained on, as it was named then; empty where none is."""
        return self.said.get("base_model_name_or_path") or ""

    def rank(self, module: str) -> int:
        """Return the rank of a module's factors."""
        return int(self._of("rank_pattern", module, self.said.get("r", 8)))

    def scale(self, module: str) -> float:
        """Return what the product of a module's factors is multiplied with: α/r, with rsLoRA α/√r."""
        rank, alpha = self.rank(module), self._of("alpha_pattern", module, self.said.get("lora_alpha", 8))
        return float(alpha / math.sqrt(rank) if self.said.get("use_rslora") else alpha / rank)

    def targets(self, module: str) -> bool:
        """Whether it is of a module, by ``target_modules`` and what is excluded; true where it does not say."""
        targets = self.said.get("target_modules")
        if _named(self.said.get("exclude_modules"), module) or self.saves(module):
            return False
        return targets in (None, "all-linear") or (_named(targets, module) and self._in_layers(module))

    def saves(self, module: str) -> bool:
        """Whether a module is stored as a whole, by ``modules_to_save``."""
        return any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.said.get("modules_to_save") or ())

    def facts(self) -> dict[str, Any]:
        """Return what a report says of it; JSON-able."""
        kept = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "bias")
        return {key: self.said[key] for key in kept if self.said.get(key)} | {"base": self.base or None}

    def _of(self, key: str, module: str, otherwise: float) -> float:
        for pattern, value in (self.said.get(key) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(value)
        return otherwise

    def _in_layers(self, module: str) -> bool:
        layers = self.said.get("layers_to_transform")
        if layers is None or layers == [] or isinstance(self.said.get("target_modules"), str):
            return True
        patterns = self.said.get("layers_pattern") or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            if found := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module):
                return int(found[1]) in (layers if isinstance(layers, list) else [layers])
        return False


def read_config(folder: Path) -> AdapterConfig:
    """Return the config in an adapter's folder. Raises CheckpointError for every kind that is not LoRA."""
    path = folder / ADAPTER_CONFIG
    try:
        held, _, said = read_document(path)
    except ValueError as error:
        raise CheckpointError(str(error) if "mend: " in str(error) else f"{error}; mend: {AGAIN}") from None
    if said.get("peft_type") != "LORA":
        _refuse(path, "peft_type", said.get("peft_type"), EXPECTED, "merge it into its base where it was trained")
    for key, value in said.items():
        if value and key not in READ | OF_TRAINING:
            _refuse(path, key, value, f"{EXPECTED}", "merge it into its base where it was trained")
    if said.get("init_lora_weights", True) not in STARTS:
        _refuse(
            path,
            "init_lora_weights",
            said["init_lora_weights"],
            "factors that were added to the base as it is",
            "convert it with PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)",
        )
    for key, (right, expected) in TYPES.items():
        if key in said and not right(said[key]):
            _refuse(path, key, said[key], expected, AGAIN)
    return AdapterConfig(held, said)


def _refuse(path: Path, key: str, got: Any, expected: str, mend: str) -> NoReturn:
    raise CheckpointError(f"{shown_path(path)}: {key}: got {shown(got)}, expected {expected}; mend: {mend}")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _named(names: Any, module: str) -> bool:
    """Whether a module is among names, as they end, or matches the one pattern that is given instead."""
    if isinstance(names, str):
        return _compiled(names).fullmatch(module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False
    return isinstance(value, str)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _patterns_of(right: Any) -> Any:
    return lambda value: (
        value is None
        or (isinstance(value, dict) and all(_is_pattern(key) and right(number) for key, number in value.items()))
    )


def _or_none(right: Any) -> Any:
    return lambda value: value is None or right(value)


_FLAG = (_or_none(lambda value: isinstance(value, bool)), "true or false")
_NAMES = (_or_none(lambda value: _are_names(value) and all(map(_is_pattern, value))), "an array of names of modules")
_NAMED = (_or_none(lambda value: _are_names(value) or _is_pattern(value)), "names of modules, or a pattern")
TYPES = {
    "r": (_is_rank, "a rank, a whole number from 1"),
    "lora_alpha": (_is_number, "a number"),
    "rank_pattern": (_patterns_of(_is_rank), "a table from names of modules to ranks"),
    "alpha_pattern": (_patterns_of(_is_number), "a table from names of modules to numbers"),
    "use_rslora": _FLAG,
    "use_dora": _FLAG,
    "lora_bias": _FLAG,
    "fan_in_fan_out": _FLAG,
    "bias": (lambda value: value in BIASES, f"one of {', '.join(BIASES)}"),
    "target_modules": _NAMED,
    "exclude_modules": _NAMED,
    "modules_to_save": _NAMES,
    "layers_pattern": _NAMED,
    "layers_to_transform": (
        _or_none(lambda v: type(v) is int or (isinstance(v, list) and all(type(n) is int for n in v))),
        "numbers of layers",
    ),
    "base_model_name_or_path": (_or_none(lambda value: isinstance(value, str)), "a name or a path"),
}
