"""What is found of a published checkpoint beside the merge that it should be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lmccheck.beside.compare import Side
from lmccheck.beside.compare import compare as compare_beside
from lmccheck.errors import LmcError
from lmccheck.shown import some
from lmccheck.store.compare import Comparison, Difference, compare, difference, same_bits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmccheck.merging.merge import Merge
    from lmccheck.network.endpoint import Endpoint
    from lmccheck.store.checkpoint import Checkpoint


@dataclass(frozen=True)
class Publication:
    """What differs, what explains it, what each network's loss is.

    ``equals`` names parents (or ``the base``) that it is bit for bit, ``alone`` those that the recipe takes alone.
    ``refused`` says why it does not load. ``losses`` are measured only where something differs.
    """

    label: str
    comparison: Comparison
    equals: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    refused: str = ""
    beside: tuple[str, ...] = ()  # what is wrong with its config and tokenizer
    accepted: tuple[str, ...] = ()  # what of them differs and is accepted, in words
    explanations: list[str] = field(default_factory=list)
    losses: Mapping[str, float] = field(default_factory=dict)
    mends: list[str] = field(default_factory=list)

    @property
    def worst(self) -> Difference | None:
        """The tensor that is furthest from what it should be."""
        return self.comparison.differences[0] if self.comparison.differences else None

    def as_rounded(self, tolerance: str | float) -> bool:
        """Whether it is the merge in another dtype, and that is meant."""
        return tolerance == "rounded" and self.comparison.rounded

    def count(self, tolerance: str | float) -> int:
        """Return how many tensors, files and keys are wrong, by whatever but the size of a difference."""
        told = self.comparison
        found = len(told.missing) + len(told.unknown) + len(told.shapes) + len(self.beside) + bool(self.refused)
        found += sum(name not in self.alone for name in self.equals)
        if isinstance(tolerance, str) and not self.as_rounded(tolerance):
            found += len({*told.dtypes, *(one.name for one in told.differences)})
        return found

    def problems(self, tolerance: str | float) -> list[str]:
        """Return in words all that keeps it from being the merge, the worst first; nothing where it is."""
        copies = [name for name in self.equals if name not in self.alone]
        found = [f"equals {_who(name)} bit for bit: nothing was merged into it" for name in copies]
        found += self._layout()
        found += self._numbers(tolerance)
        found += [f"does not load: {self.refused}"] if self.refused else []
        return [*found, *self.beside]

    def _layout(self) -> list[str]:
        told, found = self.comparison, []
        if told.missing:
            found.append(f"lacks {len(told.missing)} of {told.tensors} tensors of the merge: {some(told.missing)}")
        if told.unknown:
            found.append(f"has {len(told.unknown)} tensors that the merge has not: {some(told.unknown)}")
        for name, (got, expected) in list(told.shapes.items())[:3]:
            found.append(f"has tensor {name!r} of shape {got}, in the merge it is {expected}")
        return found

    def _numbers(self, tolerance: str | float) -> list[str]:
        told, worst = self.comparison, self.worst
        differ = f"{len(told.differences)} of {told.compared} tensors"
        found = []
        if told.dtypes and not self.as_rounded(tolerance) and isinstance(tolerance, str):
            name, (got, expected) = next(iter(told.dtypes.items()))
            rounded = '; it is the merge rounded to that, tolerance = "rounded" says that this is meant'
            found.append(
                f"has {len(told.dtypes)} tensors of another dtype than the merge: {name!r} is {got}, expected "
                f"{expected}{rounded if told.rounded else ''}"
            )
        if worst is None or self.as_rounded(tolerance):
            return found
        if isinstance(tolerance, str):
            found.append(f"differs from what the recipe makes in {differ}; furthest: {worst.words}")
        elif not worst.largest <= tolerance:
            found.append(f"differs from what the recipe makes by more than {tolerance:.4g}; furthest: {worst.words}")
        return found

    def notes(self, tolerance: str | float) -> list[str]:
        """Return what has to be said of one that passes."""
        told, notes = self.comparison, []
        notes += [f"it is {_who(name)}, which the recipe takes alone" for name in self.equals if name in self.alone]
        if self.as_rounded(tolerance) and self.worst is not None:
            got, expected = next(iter(told.dtypes.values()))
            notes.append(f"rounded from {expected} to {got}, by {told.largest:.3g} at most, in {self.worst.name!r}")
        elif not isinstance(tolerance, str) and self.worst is not None and self.worst.largest <= tolerance:
            notes.append(f"within the tolerance, not the same: {self.worst.words}")
        return notes

    def facts(self) -> dict[str, Any]:
        """Return all of it; JSON-able."""
        told, worst = self.comparison, self.worst
        return {
            "shipped": self.label,
            "compared": told.compared,
            "differing": {one.name: one.largest if math.isfinite(one.largest) else None for one in told.differences},
            "worst": None if worst is None else {"tensor": worst.name, "index": list(worst.index), "said": worst.words},
            "missing": list(told.missing),
            "unknown": list(told.unknown),
            "shapes": {name: [list(got), list(want)] for name, (got, want) in told.shapes.items()},
            "dtypes": {name: list(pair) for name, pair in told.dtypes.items()},
            "equals": list(self.equals),
            "refused": self.refused,
            "beside": list(self.beside),
            "explanations": list(self.explanations),
            "losses": dict(self.losses),
        }


def _who(name: str) -> str:
    return name if name == "the base" else f"parent {name}"


def published(merge: Merge, shipped: Checkpoint) -> Publication:
    """Compare what is published with the merge, load it, and, where it is not the merge, explain and measure it."""
    expected, facts = merge.product.checkpoint, merge.product.made.facts
    comparison = _compared(merge, shipped, expected)
    sources = {**merge.files, **({} if merge.base_file is None else {"the base": merge.base_file})}
    equals = tuple(name for name, source in sources.items() if same_bits(shipped, source))
    end, refused = _loaded(merge, shipped)
    told: dict[str, Any] = {"equals": equals, "alone": taken_alone(merge, facts), "refused": refused}
    told["beside"], told["accepted"] = _beside(merge, shipped, expected)
    if comparison.identical and not refused:
        return Publication(shipped.label, comparison, **told)
    explanations = [] if comparison.identical or comparison.rounded else _explained(merge, shipped, comparison)
    losses, mends = _measured(merge, end)
    return Publication(shipped.label, comparison, explanations=explanations, losses=losses, mends=mends, **told)


def _beside(merge: Merge, shipped: Checkpoint, expected: Checkpoint) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what its config and tokenizer say that those of the merge do not, and what of that is accepted.

    Dtypes are those of its tensors.
    """
    made = expected if expected.home is not None else next(iter(merge.files.values()))
    if expected.home is not None and shipped.home is None:
        return ("has no config.json beside it, the merge has one; mend: publish the folder",), ()
    sides = replace(Side.of("shipped", shipped), meant=("dtype",)), replace(Side.of("the merge", made), made=True)
    found = compare_beside(sides, merge.accept)
    problems = tuple(f"is not what the merge is beside its weights: {line}" for line in found.problems)
    return problems, found.told_accepted()


def _compared(merge: Merge, shipped: Checkpoint, expected: Checkpoint) -> Comparison:
    """Compare all tensors; one that the network knows by several names may be stored under any of them."""
    from lmccheck.modules.stored import tied_names

    tied = tied_names(merge.network.module)
    names: dict[str, str] = {}
    for name in expected.tensors:
        if name not in shipped.tensors and name in tied:
            twins = [other for other in shipped.tensors if tied.get(other) == tied[name]]
            names |= {name: twins[0]} if twins else {}
    found = compare(shipped, expected, names)
    copies = {
        name
        for name in found.unknown
        for other in expected.tensors
        if name in tied and tied.get(other) == tied[name]
        and expected.tensors[other].shape == shipped.tensors[name].shape
        and difference(name, shipped.get(name), expected.get(other)) is None
    }  # fmt: skip
    return replace(found, unknown=tuple(name for name in found.unknown if name not in copies))


def taken_alone(merge: Merge, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the parent that the recipe takes alone, if it takes one, with weight 1."""
    return tuple(name for name, weight in _only(facts).items() if weight == 1.0)


def _only(facts: Mapping[str, Any]) -> dict[str, float]:
    """Return the one parent that a merge is made of, with its weight; nothing where it is made of more."""
    if isinstance(taken := facts.get("taken"), (list, tuple)) and len(set(taken)) == 1:
        return {str(taken[0]): 1.0}
    weights = {name: weight for name, weight in (facts.get("weights") or {}).items() if weight}
    return weights if len(weights) == 1 else {}


def note_of_one(merge: Merge) -> list[str]:
    """Say of which parent a merge is made where it is of one of several; nothing where it is of more."""
    alone = _only(merge.product.made.facts) if len(merge.files) > 1 else {}
    return [f"the recipe takes {_who(name)} alone: nothing of the other parents is in the merge" for name in alone]


def _loaded(merge: Merge, shipped: Checkpoint) -> tuple[Endpoint | None, str]:
    """Return what is published as its own consumer loads it, with its own config, or why it does not load."""
    from lmccheck.network.endpoint import endpoint
    from lmccheck.network.hub.names import as_described, under_module_names
    from lmccheck.network.loaded import as_loaded

    try:
        network = as_described(merge.network, shipped)
        found = as_loaded(endpoint(network, under_module_names(shipped, network)))[0]
        return found, _otherwise(found, shipped) if network.described is not None else ""
    except LmcError as error:
        return None, str(error)


def _otherwise(end: Endpoint, shipped: Checkpoint) -> str:
    """Say which tensor from_pretrained makes of a published folder that its files do not hold; empty where none."""
    from lmccheck.network.hub.consumed import consumed

    if shipped.home is None:
        return ""
    state = consumed(shipped.home).state_dict()
    if lacking := [name for name in end.theta if name not in state]:
        return f"from_pretrained makes a network of it without {len(lacking)} of its tensors: {some(lacking)}"
    for name, tensor in end.theta.items():
        if (found := difference(name, state[name], tensor.to(state[name].dtype))) is not None:
            return f"from_pretrained makes something else of it than its files hold: {found.words}"
    return ""


def _explained(merge: Merge, shipped: Checkpoint, comparison: Comparison) -> list[str]:
    from lmccheck.merging.mixture import mixture
    from lmccheck.store.symptoms import symptoms

    weights = merge.recipe.settings.get("weights") or merge.product.made.facts.get("weights")
    names = [one.name for one in comparison.differences]
    said = mixture(shipped, merge.files, merge.base_file, weights, names)
    part = f"what differs, {len(names)} of {len(shipped.tensors)} tensors," if len(names) < len(shipped.tensors) else ""
    sums = [f"{part or 'what is shipped'} is {said}; the recipe is {merge.recipe.text}"] if said else []
    return [*sums, *symptoms(comparison, shipped, merge.product.checkpoint)]


def _measured(merge: Merge, end: Endpoint | None) -> tuple[dict[str, float], list[str]]:
    """Return the losses of the parents, the merge and what is shipped, each as it is, and what would mend the last."""
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.properties.remarks import reestimated, stale_statistics

    def loss(one: Endpoint, label: str) -> float:
        evaluator = Evaluator(one.network, one.theta)
        return evaluator.measure(evaluator.weights(one.theta), reestimate=False, label=label).loss

    found = {name: loss(parent, f"parent {name}") for name, parent in merge.parents.items()}
    found["the merge"] = loss(merge.merged, "the merge")
    if end is None:
        return found, []
    found["shipped"] = loss(end, "shipped")
    mended = reestimated(end)
    return found, [] if mended is None else stale_statistics(end.network, found["shipped"], mended)
