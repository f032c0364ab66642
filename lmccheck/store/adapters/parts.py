"""Which tensors of an adapter make which tensor of its base, found from names and shapes alone; no torch here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from lmccheck.errors import CheckpointError, nearest
from lmccheck.store.adapters.config import AGAIN, AdapterConfig
from lmccheck.store.header import TensorHeader

PREFIX = "base_model.model."
INNER = ".base_layer."  # in the names of what a module with factors has of its own
ROLES = {  # of the tensors of one module, by how their names end
    ".lora_A.weight": "A", ".lora_B.weight": "B", ".lora_embedding_A": "A", ".lora_embedding_B": "B",
    ".lora_magnitude_vector": "magnitude", ".lora_magnitude_vector.weight": "magnitude", ".lora_B.bias": "bias",
}  # fmt: skip
EMBEDDING = ".lora_embedding_"
OTHERS = ("lora_", "trainable_tokens", "token_adapter")  # in names of what is no tensor of the base
EMBEDDINGS = ("embed_tokens", "lm_head")  # which PEFT stores whole where they were resized, or asked for
FITS = "mend: name the base that the adapter was trained on"

Headers = Mapping[str, TensorHeader]


class OtherNames(CheckpointError):
    """An adapter is of tensors that its base does not have, under no prefix; a model may name the base's otherwise."""


@dataclass(frozen=True)
class Product:
    """How one tensor of the base is changed: by factors, tensors of the adapter by their roles, and a scale.

    ``kind`` is linear, convolution, embedding or bias; ``transposed`` weights are stored (in, out).
    """

    kind: str
    factors: tuple[tuple[str, str], ...]
    scale: float
    transposed: bool = False

    @property
    def outputs_last(self) -> bool:
        """Whether the base's last axis is that of outputs."""
        return self.transposed or self.kind == "embedding"

    @property
    def how(self) -> str:
        """What is made of the factors, in words that are equal where it is the same."""
        return f"{self.kind}{' transposed' * self.transposed} × {self.scale!r}: {[role for role, _ in self.factors]}"


@dataclass(frozen=True)
class Parts:
    """What an adapter changes: tensors of the base by products, and tensors that it stores as a whole."""

    products: Mapping[str, Product]
    whole: Mapping[str, str]


def parts_of(label: str, adapter: Headers, config: AdapterConfig, base: Headers, base_label: str) -> Parts:
    """Return what the tensors of an adapter make of a base.

    Raises CheckpointError where one is not understood, lacks its partner, contradicts the config, or does not fit.
    """
    modules, whole = _by_module(label, adapter)
    _require_targeted(label, modules, config)
    prefix = _prefix(label, [*_weights(modules), *whole.values()], config, base, base_label)
    fit = _Fit(label, adapter, config, base, base_label)
    fit.require_stored(modules, prefix)
    products = {}
    transposed = fit.orientation(modules, prefix)
    for module, roles in modules.items():
        for name, product in fit.products(module, roles, f"{prefix}{module}", transposed):
            products[name] = product
    stored = {f"{prefix}{name}": own for own, name in whole.items()}
    for name, own in stored.items():
        fit.require_whole(own, name)
    fit.require_complete(modules, prefix)
    return Parts(products, stored)


def _by_module(label: str, adapter: Headers) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the adapter's tensors by module and role, and what is stored as a whole with its name in the base."""
    modules: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in adapter:
        if not name.startswith(PREFIX):
            _refuse(label, f"tensor {name!r}", f"names that begin with {PREFIX!r}", AGAIN)
        inner = name.removeprefix(PREFIX)
        end = next((end for end in ROLES if inner.endswith(end)), None)
        if end is not None:
            module, role = inner.removesuffix(end), ROLES[end]
            if role in modules.setdefault(module, {}):
                _refuse(label, f"two tensors {role} of module {module!r}", "one", AGAIN)
            modules[module][role] = name
        elif any(mark in inner for mark in OTHERS):
            _refuse(label, f"tensor {name!r}", "factors of LoRA, magnitudes, and whole tensors", AGAIN)
        else:
            whole[name] = inner.replace(INNER, ".")
    for module, roles in modules.items():
        if missing := next((role for role in "AB" if role not in roles), None):
            _refuse(label, f"no tensor lora_{missing} of module {module!r}", "both factors", AGAIN)
    if not adapter:
        _refuse(label, "no tensors", "factors of LoRA", AGAIN)
    return modules, whole


def _require_targeted(label: str, modules: Collection[str], config: AdapterConfig) -> None:
    """Raise CheckpointError for factors that PEFT would leave out, since the config does not name their module."""
    for module in modules:
        if not config.targets(module):
            _refuse(label, f"factors of module {module!r}", "those of target_modules in its config only", AGAIN)


def _weights(modules: Collection[str]) -> Iterator[str]:
    return (f"{module}.weight" for module in modules)


def _prefix(label: str, names: Collection[str], config: AdapterConfig, base: Headers, base_label: str) -> str:
    """Return what the base's names have before those of the adapter; names that the base lacks may be added."""
    added = (*EMBEDDINGS, *(config.said.get("modules_to_save") or ()))  # which a base may lack: tied ones, and heads
    needed = [name for name in names if not set(name.split(".")) & set(added) or name in base]
    if all(name in base for name in needed):
        return ""
    first = next(name for name in needed if name not in base)
    for own in base:
        if own.endswith(f".{first}"):
            prefix = own.removesuffix(first)
            if all(f"{prefix}{name}" in base for name in needed):
                return prefix
    raise OtherNames(f"{label}: is of tensor {first!r}, which {base_label} does not have{nearest(first, base)}; {FITS}")


@dataclass(frozen=True)
class _Fit:
    """Compares an adapter with a base, tensor by tensor."""

    label: str
    adapter: Headers
    config: AdapterConfig
    base: Headers
    base_label: str

    def orientation(self, modules: Mapping[str, Mapping[str, str]], prefix: str) -> bool:
        """Return whether square weights are stored (in, out): as the others are, else as the config says."""
        for module, roles in modules.items():
            a, b, w = self._shapes(roles, f"{prefix}{module}.weight")
            if not self._embeds(roles) and len(w) == 2 and w[0] != w[1]:
                return w == (a[-1], b[0])
        return self.config.transposed

    def products(
        self, module: str, roles: Mapping[str, str], own: str, transposed: bool
    ) -> Iterator[tuple[str, Product]]:
        """Yield the tensors of the base that a module's factors change, each with how."""
        weight, bias = f"{own}.weight", f"{own}.bias"
        a, b, w = self._shapes(roles, weight)
        rank = self.config.rank(module)
        if len(a) < 2 or len(b) != len(a) or a[0] != rank or b[1] != rank:
            said = f"r {rank} of its config"
            _refuse(self.label, f"factors {a} and {b} of module {module!r}", f"the rank {said}", AGAIN)
        kind: str
        fits: tuple[int, ...]
        if self._embeds(roles):
            kind, fits = "embedding", (a[1], b[0])
        elif len(w) == 2:
            kind, fits = "linear", (a[1], b[0]) if transposed else (b[0], a[1])
        else:
            kind, fits = "convolution", (b[0], *a[1:])
        for name in roles.values():
            if not self.adapter[name].is_floating_point:
                _refuse(self.label, f"tensor {name!r} of {self.adapter[name].torch_dtype}", "floating numbers", AGAIN)
        if w != fits or set(b[2:]) > {1} or len(w) > 5 or not self.base[weight].is_floating_point:
            raise CheckpointError(
                f"{self.label}: factors {a} and {b} of module {module!r} do not fit tensor {weight!r} of "
                f"{self.base_label}, {w} {self.base[weight].torch_dtype}; {FITS}"
            )
        self._require_magnitude(module, roles, kind, b[0], len(w))
        factors = tuple((role, roles[role]) for role in ("A", "B", "magnitude") if role in roles)
        scale = self.config.scale(module)
        yield weight, Product(kind, factors, scale, transposed and kind == "linear")
        if "bias" in roles:
            if bias not in self.base or self.adapter[roles["bias"]].shape != self.base[bias].shape:
                _refuse(
                    self.label, f"a bias of module {module!r}", f"a tensor {bias!r} of its shape in the base", AGAIN
                )
            yield bias, Product("bias", (("bias", roles["bias"]),), scale)

    def require_whole(self, own: str, name: str) -> None:
        """Raise CheckpointError unless a tensor that is stored as a whole is meant to be, and fits the base's."""
        module = name.rpartition(".")[0]
        bias = self.config.said.get("bias", "none") != "none" and "bias" in name
        if not bias and not self.config.saves(module) and module.rpartition(".")[2] not in EMBEDDINGS:
            _refuse(self.label, f"the whole tensor {own!r}", "those of modules_to_save in its config only", AGAIN)
        if name in self.base and self.base[name].shape != self.adapter[own].shape:
            raise CheckpointError(
                f"{self.label}: tensor {own!r} has shape {self.adapter[own].shape}, in {self.base_label} it has "
                f"{self.base[name].shape}; {FITS}, with its vocabulary as it was resized"
            )

    def require_stored(self, modules: Collection[str], prefix: str) -> None:
        """Raise CheckpointError for factors of a module whose weight the base does not hold: one that is tied."""
        if lacking := next((name for name in _weights(modules) if f"{prefix}{name}" not in self.base), None):
            raise CheckpointError(
                f"{self.label}: got factors of module {lacking.removesuffix('.weight')!r}, expected a tensor "
                f"{prefix + lacking!r} in {self.base_label}, which does not have it (one that is tied to another is "
                "stored once, and factors of its own untie it); mend: merge the adapter with peft into an untied base, "
                "and give that model"
            )

    def require_complete(self, modules: Collection[str], prefix: str) -> None:
        """Raise CheckpointError where a module of the base that the config targets has no factors."""
        if self.config.said.get("target_modules") in (None, "all-linear"):
            return
        for name, header in self.base.items():
            module = name.removeprefix(prefix).removesuffix(".weight")
            weight = name.startswith(prefix) and name.endswith(".weight") and len(header.shape) > 1
            if weight and module not in modules and self.config.targets(module):
                _refuse(self.label, f"no factors of module {module!r}", "those of all target_modules", AGAIN)

    def _shapes(self, roles: Mapping[str, str], weight: str) -> tuple[tuple[int, ...], ...]:
        return self.adapter[roles["A"]].shape, self.adapter[roles["B"]].shape, self.base[weight].shape

    def _embeds(self, roles: Mapping[str, str]) -> bool:
        return EMBEDDING in roles["A"]

    def _require_magnitude(self, module: str, roles: Mapping[str, str], kind: str, outputs: int, dims: int) -> None:
        if ("magnitude" in roles) != self.config.dora:
            got = "no magnitudes" if self.config.dora else "magnitudes"
            said = str(self.config.dora).lower()
            _refuse(self.label, f"{got} of module {module!r}", f"what use_dora = {said} in its config says", AGAIN)
        if "magnitude" in roles:
            shape = self.adapter[roles["magnitude"]].shape
            expected = (1, outputs, *(1,) * (dims - 2)) if kind == "convolution" else (outputs,)
            if shape != expected:
                _refuse(self.label, f"magnitudes {shape} of module {module!r}", f"shape {expected}", AGAIN)


def _refuse(label: str, got: str, expected: str, mend: str) -> NoReturn:
    raise CheckpointError(f"{label}: got {got}, expected {expected}; mend: {mend}")
