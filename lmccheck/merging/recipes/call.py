"""call: a function of the user's own, from the parents' tensors (and the base's) to those of the merge."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lmccheck.data.imports import importable, label, load_object, say
from lmccheck.errors import LmcError, SourceError
from lmccheck.merging.contract import Made, Making, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.store.checkpoint import Checkpoint

NAMED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
EXPECTED = "a table of the merge's tensors by name"


def _read(value: Any, parents: tuple[str, ...], options: Mapping[str, Any]) -> Mapping[str, Any]:
    if not callable(value) and not (isinstance(value, str) and NAMED.fullmatch(value)):
        raise LmcError(f'.call: got {value!r}, expected "module:callable"')
    return {"call": value}


@recipe("call", read=_read, expects='"module:callable" of (parents, base)', drawn="")
def call(making: Making) -> Made:
    """Return what ``merge(parents, base)`` returns: tensors by name, from the parents' by parent and name.

    The base's are None where there is none; a function of one argument gets the parents only. What it is given is
    its own, and must not be changed: a pipeline that writes into its inputs gives another merge when run again.
    """
    from lmccheck.merging.average import write_tensors

    given = making.settings["call"]
    what = f"recipe {label(given)!r}"
    function = load_object(given, making.folder, "recipe") if isinstance(given, str) else given
    if not callable(function):
        raise SourceError(f"{what}: got {type(function).__name__}, expected a function of (parents, base)")
    sources = {**making.parents, **({} if making.base is None else {"the base": making.base})}
    copies = {name: {key: t.clone() for key, t in one.read().items()} for name, one in sources.items()}
    parents = {name: copies[name] for name in making.parents}
    try:
        with importable(making.folder):
            produced = function(*([parents, copies.get("the base")][: _arguments(function)]))
    except LmcError:
        raise
    except (Exception, SystemExit) as error:
        raise SourceError(f"{what}: raised {say(error)}; expected {EXPECTED}; mend: correct it there") from error
    for name, checkpoint in sources.items():
        _require_untouched(checkpoint, copies[name], name, what)
    return Made(write_tensors(making, _checked(produced, making, what)))


def _arguments(function: Callable[..., Any]) -> int:
    """Return how many positional arguments a function takes, at most two."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return 1
    except ValueError:  # it does not say
        return 2
    return 2


def _require_untouched(checkpoint: Checkpoint, copy: Mapping[str, Tensor], name: str, what: str) -> None:
    from lmccheck.store.tensors import equal

    stored = checkpoint.read()
    changed = next((n for n in stored if n not in copy or not equal(stored[n], copy[n])), None)
    if changed is None and (added := copy.keys() - stored.keys()):
        changed = min(added)
    if changed is not None:
        raise SourceError(
            f"{what}: changed its input, tensor {changed!r} of {name}; expected inputs left as they are; mend: work on "
            "copies (tensor.clone(), no in-place operations)"
        )


def _checked(produced: Any, making: Making, what: str) -> dict[str, Tensor]:
    """Return tensors that have the parents' names and shapes. Raises SourceError naming the first that has not."""
    from torch import Tensor

    from lmccheck.store.tensors import shape_of

    if not isinstance(produced, Mapping):
        raise SourceError(f"{what}: returned {type(produced).__name__}, expected {EXPECTED}; mend: return a dict")
    expected = next(iter(making.parents.values())).tensors
    found: dict[str, Tensor] = {}
    for name, tensor in produced.items():
        if not isinstance(tensor, Tensor):
            raise SourceError(
                f"{what}: returned {type(tensor).__name__} for {name!r}, expected a tensor; mend: return tensors"
            )
        if name not in expected:
            raise SourceError(
                f"{what}: returned a tensor {name!r} that no parent has; expected those of the parents; mend: leave it "
                "out"
            )
        header = expected[name]
        if tuple(tensor.shape) != header.shape or tensor.is_floating_point() != header.is_floating_point:
            raise SourceError(
                f"{what}: returned {name!r} as {shape_of(tensor)}, the parents have {header.shape} "
                f"{header.torch_dtype}; mend: keep shapes and kinds of numbers"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()) and not bool(tensor.isinf().any()):
            raise SourceError(f"{what}: returned NaN in {name!r}, expected numbers; mend: correct it there")
        found[name] = tensor.detach().cpu()
    if missing := [name for name in expected if name not in found]:
        raise SourceError(
            f"{what}: returned no tensor {missing[0]!r}, which the parents have; mend: return all of them"
        )
    return found
