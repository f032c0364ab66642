"""The types of settings: what may be said, in a manifest and in Python alike, and what a mistake is told to expect.

A property's signature is made of these (or of plain types); a type's text stands here once, not in any property.
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import Field, PlainValidator
from pydantic.fields import FieldInfo

from lmccheck.alignment import method_names
from lmccheck.data.described import CALLABLE
from lmccheck.finding import LIMIT, LIMIT_OF_MERGE, read_limit
from lmccheck.properties.endpoints import Endpoints
from lmccheck.properties.population import CONFIDENT, Decide
from lmccheck.store.documents import Strict

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


ENDPOINTS = '"useful" (each better than a constant answer) or "any"'


DECIDE = '"data" (these samples) or "population" (what they are drawn from)'
CONFIDENCE = "a number from 0.5 up to, and without, 1"


NO_LOSSES = '"data" and nothing else: it compares files, judges no loss, and nothing of it depends on samples'
DecideFiles = Annotated[Literal["data"], Field(description=NO_LOSSES)]


class Common(Strict):
    """What may be asked of every property, in Python too."""

    endpoints: Endpoints = Field(default="any", description=ENDPOINTS)
    decide: Decide = Field(default="data", description=DECIDE)
    confidence: float = Field(default=CONFIDENT, ge=0.5, lt=1, description=CONFIDENCE)


class CheckTable(Common):
    """What a manifest's table of settings may say of every property."""

    endpoints: Endpoints = Field(default="useful", description=ENDPOINTS)
    property: str | None = Field(default=None, description="the name of a property")
    severity: Literal["fail", "warn"] = Field(default="fail", description='"fail" or "warn"')


def choices(annotation: Any) -> tuple[str, ...]:
    """Return the texts of every Literal inside a type.

    >>> choices(Literal["none", "bn"] | None)
    ('none', 'bn')
    """
    if get_origin(annotation) is Literal:
        return tuple(text for text in get_args(annotation) if isinstance(text, str))
    return tuple(text for part in get_args(annotation) for text in choices(part))


def expected(annotation: Any) -> str:
    """Return what a type expects, in words.

    >>> expected(Points | None), expected(Literal["a", "b", "c"]), expected(bool)
    ('a whole number from 3 to 10001', '"a", "b" or "c"', 'true or false')
    """
    said = [part.description for part in get_args(annotation) if isinstance(part, FieldInfo) and part.description]
    if said:
        return said[0]
    if texts := choices(annotation):
        quoted = [f'"{text}"' for text in texts]
        return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(expected(part) for part in get_args(annotation) if part is not type(None))
    return NAMES.get(annotation, "another value")


def _reader(text: str, accepts: Callable[[Any], bool]) -> tuple[PlainValidator, Any]:
    """Return what makes a type of any values that ``accepts`` is true of."""

    def read(value: Any) -> Any:
        if not accepts(value):
            raise ValueError(text)
        return value

    return PlainValidator(read), Field(description=text)


Limit = Annotated[float | str, PlainValidator(read_limit), Field(description=LIMIT)]
MergeLimit = Annotated[
    float | str,
    PlainValidator(lambda value: read_limit(value, LIMIT_OF_MERGE)),
    Field(description=LIMIT_OF_MERGE),
]
Points = Annotated[int, Field(ge=3, le=10_001, description="a whole number from 3 to 10001")]
Seed = Annotated[int, Field(description="an integer")]
EARLY = "false, or how likely a wrong fail may be: a number from 1e-12 to 0.05, such as 1e-6"


def _early(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is False or (number and 1e-12 <= value <= 0.05)


EarlyFail = Annotated[float | Literal[False], *_reader(EARLY, _early)]

AGAINST = ("better-parent", "worse-parent", "mean")  # beside the names of parents
Against = Annotated[str, Field(min_length=1, description=f"{', '.join(AGAINST)} or a parent's name")]
MERGE_DATA = "the name of data, a list of names, or a table of a name for each parent"


def _merge_data(value: Any) -> bool:
    if isinstance(value, Mapping) and value and all(isinstance(name, str) for name in value.values()):
        return True
    return (
        value is None
        or (not isinstance(value, (Mapping, list)) and value != "")
        or (isinstance(value, list) and bool(value) and all(isinstance(name, str) and name for name in value))
    )


MergeData = Annotated[Any, *_reader(MERGE_DATA, _merge_data)]
METRICS = ("loss", "token-loss", "perplexity", "error", "accuracy")  # evaluate/metrics.py says what they are
METRIC = f'{", ".join(METRICS)}, "module:callable" (model, batches -> per-sample values) or {{ lm_eval = "task" }}'


def _metric(value: Any) -> bool:
    if isinstance(value, Mapping):
        return set(value) == {"lm_eval"} and isinstance(value["lm_eval"], str) and bool(value["lm_eval"])
    named = isinstance(value, str) and (value in METRICS or CALLABLE.fullmatch(value) is not None)
    return named or callable(value) or hasattr(value, "higher_is_better")


Metric = Annotated[Any, *_reader(METRIC, _metric)]
By = Annotated[str, Field(min_length=1, description='"class" or the name of a column of the data')]
Profile = Literal["dev", "ci", "thorough"]

if TYPE_CHECKING:
    Method: TypeAlias = str
    Align: TypeAlias = str
else:  # whatever methods there are
    Method = Literal[method_names()]
    Align = Literal[("none", *method_names())]
Repair = Literal["none", "bn", "repair"]
BoxRepair = Literal["none", "bn"]
Frame = Literal["merge-many", "reference"]
Over = Literal["pairs", "mean"]
Norm = Literal["activations", "weights"]
Place = Annotated[int, Field(ge=0, description="the place of one of the models, counted from 0")]

MAPS = ("rescaling", "sign-flips", "head-maps", "rotary-planes", "stream-rotation")


def _maps(value: Any) -> bool:
    if isinstance(value, str):
        return value == "all" or value in MAPS
    return isinstance(value, (list, tuple, set, frozenset)) and all(name in MAPS for name in value)


Beyond = Annotated[str | tuple[str, ...], *_reader(f'"all" or a list of some of {", ".join(MAPS)}', _maps)]

SHARE = "a number above 0 and at most 1"
Share = Annotated[float, Field(gt=0, le=1, description=SHARE)]
Half = Annotated[float, Field(gt=0, le=0.5, description="a number above 0 and at most 0.5")]
Probability = Annotated[float, Field(gt=0, lt=1, description="a number between 0 and 1")]
Quantile = Annotated[float, Field(ge=0.01, le=0.99, description="a number from 0.01 to 0.99")]
NOISE = '"masks", "gaussian", or a number from 0 to 10, which is the size of the noise of diagnostics'
Noise = Annotated[Literal["masks", "gaussian"] | Annotated[float, Field(ge=0, le=10)], Field(description=NOISE)]
Size = Annotated[
    float,
    Field(ge=1e-6, le=1e30, description="a number from 1e-6 to 1e30: the noise's length in what it is put into"),
]
Masks = Annotated[int, Field(ge=1, le=100_000, description="a whole number from 1 to 100000")]

Examples = Annotated[int, Field(ge=1, le=1000, description="a whole number from 1 to 1000")]

TOLERANCE = '"bits", "rounded" (to the dtype that is shipped), or the largest difference allowed, a number ≥ 0'


def _tolerance(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value in ("bits", "rounded") if isinstance(value, str) else number and 0 <= value < float("inf")


Tolerance = Annotated[str | float, *_reader(TOLERANCE, _tolerance)]


def _shares(value: Any) -> bool:
    several = list(value.values()) if isinstance(value, Mapping) else [value]
    numbers = (share for share in several if isinstance(share, (int, float)) and not isinstance(share, bool))
    return bool(several) and sum(0 < share <= 1 for share in numbers) == len(several)


Shares = Annotated[float | Mapping[str, float], *_reader(f"{SHARE}, or a table of them by unit group", _shares)]


def _mean_weights(value: Any) -> bool:
    if isinstance(value, (str, bytes)) or not (isinstance(value, Mapping) or hasattr(value, "__iter__")):
        return False
    several = list(value.values() if isinstance(value, Mapping) else value)
    numbers = (weight for weight in several if isinstance(weight, (int, float)) and not isinstance(weight, bool))
    return bool(several) and sum(0 <= weight < math.inf for weight in numbers) == len(several)


MEAN_WEIGHTS = "numbers ≥ 0, one for each of the models in their order, or a table of them by model"
MeanWeights = Annotated[Mapping[str, float] | Sequence[float], *_reader(MEAN_WEIGHTS, _mean_weights)]


def _file(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and bool(os.fspath(value))


def _weights(value: Any) -> bool:
    tensors = isinstance(value, Mapping) and all(hasattr(part, "shape") for part in value.values())
    return value is None or _file(value) or (tensors and bool(value))


def _model(value: Any) -> bool:
    named = isinstance(value, str) and CALLABLE.fullmatch(value) is not None
    return value is None or named or callable(value)


def _path(value: Any) -> bool:
    return _file(value) or (hasattr(value, "points") and hasattr(value, "segments"))


def _witness(value: Any) -> bool:
    return _file(value) or (hasattr(value, "found") and hasattr(value, "theta"))


Weights = Annotated[Any, *_reader("the path of a .safetensors file", _weights)]
Model = Annotated[Any, *_reader('"module:callable"', _model)]
SavedPath = Annotated[Any, *_reader("a Path, or a file that save_path wrote", _path)]
SavedDropout = Annotated[Any, *_reader("a witness of dropout_stability, or the file it was saved to", _witness)]
