"""Laws of merging: what must hold of a merge M(base; parents, weights), and the entry where it does not.

For every method: names, shapes and dtypes as promised; tied tensors stay tied; integers and constants are the parents';
the same seed gives the same bytes. Claimed by some: M({x: 1}) = x; equal parents give that parent; the order of parents
does not matter; scaling all weights changes nothing; M(π·base; π·θ) = π·M(base; θ) for the network's permutations π;
M = Σ w·θ. Equality is to the rounding of the dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmccheck.merging.trial import (
    Broken,
    Trial,
    astray,
    base_of,
    compared,
    in_place_of,
    rounding_of,
    sources_of,
    unlike,
)
from lmccheck.store.compare import difference

if TYPE_CHECKING:
    from torch import Tensor

    from lmccheck.store.checkpoint import Checkpoint

SAID = {  # the laws in words, those of every method first
    "mixed": "the merge is not the base, nor one of several parents, bit for bit",
    "names": "the merge has the names and shapes of its parents",
    "dtypes": "the merge has the dtypes that were promised",
    "ties": "tensors that are one in all parents are one in the merge",
    "integers": "integers are those of a parent",
    "constants": "buffers that are equal in all parents stay as they are",
    "seed": "the same seed gives the same bytes",
    "unit": "M({x: 1}) = x",
    "equal": "M of equal parents is that parent",
    "order": "M does not depend on the order of the parents",
    "scale": "M does not change when all weights are scaled",
    "equivariant": "M(π·base; π·θ) = π·M(base; θ) for permutations π of units",
    "linear": "M = Σ w·θ",
}
ALWAYS = ("names", "dtypes", "ties", "integers", "constants", "seed")
SCALE = 3.0  # by which all weights are multiplied


def names(trial: Trial) -> Broken | None:
    """The merge has the names and shapes of its parents."""
    if not trial.layout:
        return None
    got, (who, parent) = trial.merged().checkpoint.tensors, next(iter(trial.setting.parents.items()))
    for name, header in parent.tensors.items():
        if name not in got:
            return Broken("names", f"the merge lacks tensor {name!r} of parent {who}")
        if got[name].shape != header.shape:
            return Broken(
                "names", f"tensor {name!r} has shape {got[name].shape}, in parent {who} it has {header.shape}"
            )
    more = next((name for name in got if name not in parent.tensors), None)
    return None if more is None else Broken("names", f"the merge has a tensor {more!r}, which parent {who} lacks")


def dtypes(trial: Trial) -> Broken | None:
    """Floating tensors have the dtype that was promised, or that of the first parent; integers stay integers."""
    who, parent = next(iter(trial.setting.parents.items()))
    for name, header in trial.merged().checkpoint.tensors.items():
        told = parent.tensors.get(name, header)
        if told.is_floating_point != header.is_floating_point:
            return Broken(
                "dtypes", f"tensor {name!r} is {header.torch_dtype}, in parent {who} it is {told.torch_dtype}"
            )
        expected = trial.dtype if trial.dtype and header.is_floating_point else told.torch_dtype
        if header.torch_dtype != expected:
            promise = "the recipe promises" if trial.dtype else f"parent {who} has"
            return Broken("dtypes", f"tensor {name!r} is {header.torch_dtype}, {promise} {expected}")
    return None


def ties(trial: Trial) -> Broken | None:
    """Two names that hold one tensor in the base and every parent do so in the merge."""
    merged = trial.merged().checkpoint
    for one, other in _twins(sources_of(trial.setting), merged):
        found = difference(other, merged.get(other), merged.get(one))
        if found is not None:
            said = f"{one!r} and {other!r} are one tensor in every parent, in the merge they are two"
            return Broken("ties", said, other, found.index, found.got, found.expected, found.largest)
    return None


def integers(trial: Trial) -> Broken | None:
    """Each integer tensor is, bit for bit, that of a parent or of the base."""
    merged = trial.merged().checkpoint
    for name, header in merged.tensors.items():
        if header.is_floating_point:
            continue
        own = [one.get(name) for one in sources_of(trial.setting) if name in one.tensors]
        found = [difference(name, merged.get(name), one) for one in own if one.shape == header.shape]
        if found and all(one is not None for one in found):
            first = found[0]
            assert first is not None
            said = "an integer tensor is that of no parent"
            return Broken("integers", said, name, first.index, first.got, first.expected, first.largest)
    return None


def constants(trial: Trial) -> Broken | None:
    """A buffer that is equal in the base and every parent is that in the merge, to the rounding of its dtype."""
    merged, sources = trial.merged().checkpoint, sources_of(trial.setting)
    for name in sorted(trial.buffers or ()):
        if name not in merged.tensors or any(name not in one.tensors for one in sources):
            continue
        value = sources[0].get(name)
        if all(difference(name, one.get(name), value) is None for one in sources[1:]):
            said = "a buffer that is equal in all parents is another in the merge"
            explained = replace(rounding_of(trial), size=1.0).between(merged.get(name), value, [value])
            if broken := unlike("constants", said, name, merged.get(name), value, explained):
                return broken
    return None


def seed(trial: Trial) -> Broken | None:
    """Making it twice with one seed gives the same bytes."""
    one, other = trial.merged().checkpoint, trial.make(trial.setting).checkpoint
    if dict(one.tensors) != dict(other.tensors):
        return Broken("seed", "made twice with one seed, the merge has other tensors")
    for name in one.tensors:
        found = difference(name, other.get(name), one.get(name))
        if found is not None:
            said = "made twice with one seed, the merge differs"
            return Broken("seed", said, name, found.index, found.got, found.expected, found.largest)
    return None


def unit(trial: Trial) -> Broken | None:
    """A parent with weight 1, and no other, is what the merge gives."""
    for who, parent in list(trial.setting.parents.items())[: trial.most]:
        given = trial.setting.parents if trial.weighted else {who: parent}
        setting = replace(trial.setting, parents=given, weights={who: 1.0})
        said = f"M({{{who}: 1}}) ≠ {who}"
        explained = replace(rounding_of(trial), size=1.0).between
        if broken := compared("unit", said, trial.make(setting), parent, (parent, *base_of(setting)), explained):
            return broken
    return None


def equal(trial: Trial) -> Broken | None:
    """Parents that are all one give that one."""
    who, parent = next(iter(trial.setting.parents.items()))
    same = {name: in_place_of(parent, original) for name, original in trial.setting.parents.items()}
    setting = replace(trial.setting, parents=same)
    said = f"M of {len(setting.parents)} times {who} ≠ {who}"
    explained = rounding_of(trial).between
    return compared("equal", said, trial.make(setting), parent, (parent, *base_of(setting)), explained)


def order(trial: Trial) -> Broken | None:
    """Parents in reversed order, each with its own weight, give the same merge."""
    weights = trial.setting.weights or trial.merged().facts.get("weights")
    setting = replace(
        trial.setting,
        parents=dict(reversed(list(trial.setting.parents.items()))),
        weights=dict(reversed(list(weights.items()))) if weights and trial.weighted else trial.setting.weights,
    )
    if len(setting.parents) < 2:
        return None
    said = f"M({', '.join(setting.parents)}) ≠ M({', '.join(trial.setting.parents)})"
    expected = trial.merged().checkpoint
    return compared("order", said, trial.make(setting), expected, sources_of(trial.setting), rounding_of(trial).again)


def scale(trial: Trial) -> Broken | None:
    """Weights that are all multiplied by one number give the same merge."""
    weights = trial.setting.weights or trial.merged().facts.get("weights")
    if not weights or not trial.weighted:
        return None
    setting = replace(trial.setting, weights={who: SCALE * weight for who, weight in weights.items()})
    said = f"M of weights times {SCALE:g} ≠ M"
    expected = trial.merged().checkpoint
    return compared("scale", said, trial.make(setting), expected, sources_of(trial.setting), rounding_of(trial).again)


def equivariant(trial: Trial) -> Broken | None:
    """Units permuted in the base and all parents alike are permuted in the merge, and nothing else changes."""
    if trial.act is None:
        return None
    base = None if trial.setting.base is None else trial.act(trial.setting.base)
    parents = {who: trial.act(parent) for who, parent in trial.setting.parents.items()}
    setting = replace(trial.setting, parents=parents, base=base)
    expected = trial.act(trial.merged().checkpoint)
    said = "M(π·base; π·θ) ≠ π·M(base; θ)" if base is not None else "M(π·θ) ≠ π·M(θ)"
    return compared("equivariant", said, trial.make(setting), expected, sources_of(setting), rounding_of(trial).again)


def linear(trial: Trial) -> Broken | None:
    """The merge is the sum of parents by the weights that its recipe states, and of the base by its weight."""
    made = trial.merged()
    weights, of_base = made.facts.get("weights"), made.facts.get("weight_of_base", 0.0)
    if not weights:
        return None
    base = trial.setting.base
    sources = [(trial.setting.parents[who], weight) for who, weight in weights.items()]
    sources += [(base, of_base)] if base is not None and of_base else []
    said = "M ≠ " + " + ".join(f"{weight:.4g}·{who}" for who, weight in weights.items())
    said += f" + {of_base:.4g}·base" if base is not None and of_base else ""
    rounds = 1 + sum(abs(weight) for weight in weights.values())  # of the base, in differences from it
    for name, header in made.checkpoint.tensors.items():
        theirs = [source.tensors.get(name) for source, _ in sources]
        if not header.is_floating_point or not all(one is not None and one.is_floating_point for one in theirs):
            continue  # integers are the matter of other laws, also where a recipe makes floats of them
        expected: Any = 0
        for source, weight in sources:
            expected = expected + weight * source.get(name).double()
        got, terms = made.checkpoint.get(name), [(weight, source.get(name)) for source, weight in sources]
        steps = terms if trial.once or base is None or name not in base.tensors else [*terms, (rounds, base.get(name))]
        allowed = rounding_of(trial).of_sum(got, expected, steps)
        found = unlike("linear", said, name, got, expected, allowed)
        if found is None and not trial.once:
            found = astray("linear", said, name, got, expected, terms, allowed)
        if found:
            return found
    return None


LAWS: Mapping[str, Callable[[Trial], Broken | None]] = {
    "names": names, "dtypes": dtypes, "ties": ties, "integers": integers, "constants": constants, "seed": seed,
    "unit": unit, "equal": equal, "order": order, "scale": scale, "equivariant": equivariant, "linear": linear,
}  # fmt: skip


def broken(trial: Trial, laws: Iterable[str]) -> list[Broken]:
    """Return those of the laws that do not hold, each at its first entry."""
    return [found for law in laws if (found := LAWS[law](trial)) is not None]


def _twins(sources: list[Checkpoint], merged: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield pairs of names that hold one tensor in every source; such as hold one number only do not count."""
    first, *others = sources
    seen: dict[Any, list[str]] = {}
    for name, header in first.tensors.items():
        if not header.is_floating_point or header.numbers < 2 or any(name not in one.tensors for one in others):
            continue
        if name not in merged.tensors:
            continue
        beside = seen.setdefault(header, [])
        for other in beside:
            if all(difference(name, one.get(name), one.get(other)) is None for one in sources) and _varies(
                first.get(name)
            ):
                yield other, name
                break
        else:
            beside.append(name)


def _varies(value: Tensor) -> bool:
    flat = value.reshape(-1)
    return bool((flat != flat[0]).any())
