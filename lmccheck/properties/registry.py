"""A property is declared once: by a function, whose signature is the only schema of its settings; no torch here.

From the declaration come the manifest's keys, the checks of Python calls, the ``lmc`` facade, the README's row and the
page of documentation. A built-in property is a file of this package; others are declared alike in a conftest, or in a
module that an installed package names as entry point of the group ``lmccheck.properties``.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, get_type_hints, overload

from lmccheck.errors import LmcError, nearest
from lmccheck.finding import Finding
from lmccheck.properties.endpoints import Endpoints, looked_at
from lmccheck.properties.judge import judge
from lmccheck.properties.population import CONFIDENT, Decide, decided, require_all_samples
from lmccheck.registry import Registry
from lmccheck.result import Result

if TYPE_CHECKING:
    from lmccheck.properties.settings import CheckTable
    from lmccheck.store.documents import Strict

P = ParamSpec("P")
Table = TypeVar("Table", bound="Strict")
Kind = Literal["pair", "model", "widths", "set", "merge"]
OF: Mapping[str, str] = {
    "pair": "a pair without model_b",
    "model": "a single model",
    "widths": "a pair with model_b, of two widths",
    "set": "a set",
    "merge": "a merge",
}
TABLES: Mapping[str, str] = {  # of a manifest, which ask of each kind
    "pair": "[pair.NAME]",
    "model": "[model.NAME]",
    "widths": "[pair.NAME] with model_b",
    "set": "[set.NAME]",
    "merge": "[merge.NAME]",
}
LOADED = {  # what a public function takes, and what makes one
    "pair": ("a pair", "lmccheck.load_pair(a, b, model=…, data=…)"),
    "model": ("a single model", "lmccheck.load_model(checkpoint, model=…, data=…)"),
    "widths": ("a pair of two widths", "lmccheck.load_widths(a, b, model_a=…, model_b=…, data=…)"),
    "set": ("a set", "lmccheck.load_set(models, model=…, data=…)"),
    "merge": ("a merge", "lmccheck.load_merge(parents, recipe, model=…, data=…)"),
}
UNSAID = ("seed", "profile")  # which no manifest says: they come from the run
TAKEN = {"property", "severity", "endpoints"}
LIMITS = ("limit", "epsilon")  # names of settings that a verdict depends on, of whatever type
EMPTY = inspect.Parameter.empty
COMMON = tuple(  # what every property may be asked; one that has such a setting of its own keeps its own
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for name, default, annotation in (
        ("endpoints", "any", Endpoints),
        ("decide", "data", Decide),
        ("confidence", CONFIDENT, float),
    )
)


def load_set(
    models: Any, *, model: Any = None, data: Any, calibration: Any = None, loss: Any = None, device: Any = "auto",
    base: Any = None, symmetry: Any = None,
) -> Any:  # fmt: skip
    """``load_set``, imported when it is called: its arguments are part of public signatures."""
    return import_module("lmccheck.network.model_set").load_set(**locals())


def load_widths(
    a: Any, b: Any, *, model_a: Any = None, model_b: Any = None, data: Any, calibration: Any = None, loss: Any = None,
    device: Any = "auto", base: Any = None,
) -> Any:  # fmt: skip
    """``load_widths`` likewise."""
    return import_module("lmccheck.network.pair").load_widths(**locals())


# what a public function loads inside
LOADERS: Mapping[str, Callable[..., Any]] = {"set": load_set, "widths": load_widths}


@dataclass(frozen=True)
class Property:
    """A declared property. ``function`` takes what is measured, one of the kinds ``of``, and returns a Finding."""

    name: str
    of: tuple[Kind, ...]
    claim: str
    quantifier: str
    certifies: str
    function: Callable[..., Finding] = field(repr=False)

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The settings by name, in order, with their types; the first argument is what is measured."""
        found = dict(list(inspect.signature(self.function).parameters.items())[1:])
        stated = {name: Any if p.annotation is EMPTY else p.annotation for name, p in found.items()}
        holder = type("Settings", (), {"__annotations__": stated})  # the first argument's type is seldom imported
        hints = get_type_hints(holder, self.function.__globals__, include_extras=True)
        return {name: p.replace(annotation=hints[name]) for name, p in found.items()}

    @cached_property
    def expected(self) -> dict[str, str]:
        """What each setting expects, in words."""
        from lmccheck.properties.settings import expected

        return {name: expected(parameter.annotation) for name, parameter in self.parameters.items()}

    @cached_property
    def table(self) -> type[CheckTable]:
        """The model of a manifest's table of settings, read with ``stated``; limits must be given there."""
        from lmccheck.properties.settings import CheckTable

        said = [name for name in self.parameters if name not in UNSAID]
        return self._model(CheckTable, said, given=self.limits)

    @cached_property
    def limits(self) -> dict[str, Any]:
        """The defaults of its limits: for Python only, since a manifest's limits are reviewed where they are written.

        One whose default is None gets it from elsewhere, and need not be given.
        """
        from lmccheck.properties.settings import Limit

        return {
            name: p.default
            for name, p in self.parameters.items()
            if (p.annotation == Limit or name in LIMITS) and p.default not in (EMPTY, None)
        }

    def stated(self, table: CheckTable) -> dict[str, Any]:
        """Return the settings that a manifest's table states; what it leaves out has the property's own default."""
        own = {*self.parameters, *(common.name for common in COMMON)}
        return {name: getattr(table, name) for name in sorted(table.model_fields_set) if name in own}

    @cached_property
    def _call(self) -> type[Strict]:
        from lmccheck.properties.settings import Common

        return self._model(Common, self.parameters)

    def _model(self, base: type[Table], names: Iterable[str], given: Iterable[str] = ()) -> type[Table]:
        """Return a strict pydantic model of some settings; a field's description says what is expected."""
        from pydantic import Field, create_model

        fields: dict[str, Any] = {
            name: (
                p.annotation,
                Field(... if p.default is EMPTY or name in given else p.default, description=self.expected[name]),
            )
            for name, p in self.parameters.items()
            if name in names
        }
        return create_model(self.name, __base__=base, **fields)

    def checked(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings as the property takes them. Raises LmcError with one line for the first that is wrong."""
        from pydantic import ValidationError

        from lmccheck.properties.settings import choices

        try:
            table = self._call.model_validate(dict(settings))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            name = str(problem["loc"][0])
        else:
            return {name: getattr(table, name) for name in settings}
        known = self._call.model_fields
        if problem["type"] == "extra_forbidden":
            valid = ", ".join(known)
            raise LmcError(f"{self.name}: unknown setting {name!r}{nearest(name, known)}; expected one of {valid}")
        if problem["type"] == "missing":
            raise LmcError(f"{self.name}: {name}: missing; expected {self.expected[name]}")
        value = settings[name]
        near = nearest(value, choices(known[name].annotation)) if isinstance(value, str) else ""
        said = repr(value).splitlines()[0][:200]  # of a tensor, for example, the beginning
        raise LmcError(f"{self.name}: {name} = {said}{near}; expected {known[name].description}")

    def measure(self, measured: Any, settings: Mapping[str, Any]) -> Result:
        """Return the Result for what is loaded, a pair or a set, say; settings are checked first."""
        return self._measure(lambda: measured, settings)

    def _measure(self, load: Callable[[], Any], settings: Mapping[str, Any]) -> Result:
        from lmccheck.network.running import running

        started = time.perf_counter()
        checked = self.checked(settings)
        common = {p.name: checked.pop(p.name, p.default) for p in COMMON if p.name not in self.parameters}
        require_all_samples(self.name, common, checked)
        measured = load()
        with running(measured):
            finding = self.function(measured, **checked)
            if isinstance(finding, Finding):
                defaults = {name: value for name, value in self.limits.items() if name not in settings}
                finding = decided(self.name, measured, finding, common, checked)
                finding = looked_at(measured, finding, common["endpoints"], defaults)
        made_of = getattr(getattr(finding, "witness", None), "made_of", None)
        if made_of is not None and hasattr(measured, "inputs"):
            made_of(measured.inputs)  # what it was measured of is never written over
        return judge(self.name, finding, time.perf_counter() - started)

    @cached_property
    def _loaded_by(self) -> dict[str, inspect.Parameter]:
        """The arguments of what loads a set or two widths inside of the public function; none for a pair."""
        return {} if self._loader is None else dict(inspect.signature(self._loader).parameters)

    @property
    def _loader(self) -> Callable[..., Any] | None:
        """What loads inside of the public function, where that takes one kind only, which is given in parts."""
        return LOADERS.get(self.of[0]) if len(self.of) == 1 else None

    @property
    def loads(self) -> bool:
        """Whether the public function takes what is to be loaded in parts, too."""
        return self._loader is not None

    @cached_property
    def signature(self) -> inspect.Signature:
        """The signature of the public function: what is loaded inside is given in parts."""
        own = self._own
        first, *settings = own.parameters.values()
        return own.replace(parameters=[*(self._loaded_by.values() or [first]), *settings], return_annotation="Result")

    @cached_property
    def _own(self) -> inspect.Signature:
        """The signature of the function, with what every property may be asked."""
        own = inspect.signature(self.function)
        return own.replace(parameters=[*own.parameters.values(), *(p for p in COMMON if p.name not in own.parameters)])

    def __call__(self, *given: Any, **named: Any) -> Result:
        """Measure what is given: something loaded, or, for a set and for two widths, what is to be loaded."""
        parts = self._loaded_by
        loads = parts and not (len(given) == 1 and hasattr(given[0], "network"))  # a view is loaded already
        if not loads and given:
            self._require_kind(given[0])
        signature = self.signature if loads else self._own
        for name in named.keys() - signature.parameters.keys():
            near = nearest(name, signature.parameters) or f"; expected some of {list(signature.parameters)[1:]}"
            raise TypeError(f"{self.name}() got an unexpected keyword argument {name!r}{near}")
        try:
            bound = signature.bind(*given, **named).arguments
        except TypeError as error:
            raise TypeError(f"{self.name}(): {error}") from None
        if loads:
            load = partial(LOADERS[self.of[0]], **{name: bound.pop(name) for name in parts if name in bound})
            return self._measure(load, bound)
        measured = bound.pop(next(iter(signature.parameters)))
        return self.measure(measured, bound)

    def _require_kind(self, given: Any) -> None:
        """Raise TypeError for what a pair is loaded from, and for a view of another kind than it is a property of."""
        kind = getattr(given, "kind", None) if hasattr(given, "network") else None
        own = {*self.of, *(["pair"] if "widths" in self.of else [])}  # of two widths that are the same
        if isinstance(given, (str, PathLike, Mapping)):
            got = type(given).__name__
        elif kind == "endpoint":
            got = "an endpoint"
        elif kind in LOADED and kind not in own:
            got = LOADED[kind][0]
        else:
            return
        expected, mends = zip(*(LOADED[kind] for kind in self.of), strict=True)
        raise TypeError(f"{self.name}(): got {got}, expected {' or '.join(expected)}; mend: {' or '.join(mends)}")


PROPERTIES: Registry[Property] = Registry("property", "lmccheck.properties", group="lmccheck.properties")


@overload
def check(
    *, of: Literal["pair", "model", "merge"] | tuple[Kind, ...], claim: str, quantifier: str, certifies: str
) -> Callable[[Callable[P, Finding]], Callable[P, Result]]: ...
@overload
def check(
    *, of: Literal["widths", "set"], claim: str, quantifier: str, certifies: str
) -> Callable[[Callable[P, Finding]], Callable[..., Result]]: ...
def check(*, of: Kind | tuple[Kind, ...], claim: str, quantifier: str, certifies: str) -> Any:
    """Declare a property: a function of a pair, a single model, two widths, a set or a merge that returns a Finding.

    ``of`` may be several of them, ``("pair", "model")``, for what looks at ``named_endpoints`` alone. Its name and its
    keyword arguments, with their types and defaults, are the property's; the docstring says what a reader needs to
    know. ``claim``, ``quantifier`` ("for all t", "there is a π") and ``certifies``, what a pass does, are its row in
    tables. Returned is the public function: it checks the settings, loads what is given in parts, and returns the
    Result.
    """
    kinds = tuple(dict.fromkeys(of)) if isinstance(of, (tuple, list)) else (of,)
    if not kinds or (wrong := next((kind for kind in kinds if kind not in OF), None)) is not None:
        near = nearest(str(wrong), OF) if kinds else ""
        raise LmcError(f"check: of = {of!r}{near}; expected one of {list(OF)}, or several of them")

    def declare(function: Callable[..., Finding]) -> Callable[..., Result]:
        declared = Property(function.__name__, kinds, claim, quantifier, certifies, function)
        if taken := TAKEN.intersection(inspect.signature(function).parameters):
            raise LmcError(f"property {declared.name!r}: setting {min(taken)!r} is one of every check; mend: rename it")
        PROPERTIES.add(declared.name, declared, function.__code__.co_filename)

        @functools.wraps(function)
        def public(*given: Any, **named: Any) -> Result:
            return declared(*given, **named)

        public.__signature__ = declared.signature  # type: ignore[attr-defined]  # which inspect and help read
        return public

    return declare


def properties_of(kind: Kind) -> list[str]:
    """Return the names of the properties of a pair, a single model, two widths, a set or a merge."""
    return [declared.name for declared in PROPERTIES if kind in declared.of]
