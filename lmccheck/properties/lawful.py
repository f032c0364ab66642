"""Which laws a merge keeps: tried on its parents, and on drawn networks by running its recipe on them.

Manifests are collected with this file, so that what draws networks (Hypothesis, slow to import) is imported by use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError
from lmccheck.merging.contract import LAWS as CLAIMED
from lmccheck.merging.laws import ALWAYS, SAID, broken
from lmccheck.merging.trial import Act, Broken, Made, Setting, Trial
from lmccheck.properties.publication import note_of_one, taken_alone
from lmccheck.store.checkpoint import Checkpoint, look_at
from lmccheck.store.compare import same_bits
from lmccheck.store.scratch import scratch

if TYPE_CHECKING:
    from lmccheck.merging.merge import Merge

WEIGHTS = {"weights", "counts"}  # settings that weigh parents
MOST = 4  # parents that are taken one by one
DRAWN = 12  # parents that networks are drawn for


@dataclass
class Tried:
    """Every law that was tried; those that are broken, where, and the smallest example of each that was drawn."""

    laws: tuple[str, ...]
    unclaimed: tuple[str, ...]
    broken: dict[str, Broken] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    drawn: int = 0
    notes: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Return all of it; JSON-able."""
        verdicts = {law: "broken" if law in self.broken else "holds" for law in self.laws}
        return {
            "laws": verdicts | dict.fromkeys(self.unclaimed, "not claimed"),
            "said": {law: SAID[law] for law in (*self.laws, *self.unclaimed) if law in SAID},
            "broken": {law: f"{one.words}, {self.where[law]}" for law, one in self.broken.items()},
            "smallest": dict(self.examples),
            "drawn": self.drawn,
        }


def tried_laws(merge: Merge, *, examples: int, seed: int) -> Tried:
    """Try the laws that a merge's recipe claims, and those of all. Raises LmcError where the recipe cannot be run."""
    facts = merge.product.made.facts
    claims = {*merge.recipe.claims, *facts.get("claims", ())}
    laws = (*ALWAYS, *(law for law in CLAIMED if law in claims))
    found = Tried(("mixed", *laws), tuple(law for law in CLAIMED if law not in claims))
    found.notes.extend(note_of_one(merge))
    _on_parents(merge, laws, found)
    _on_drawn(merge, laws, found, examples, seed)
    if found.unclaimed:
        found.notes.append(f"not claimed by {merge.recipe.name}: {', '.join(found.unclaimed)}")
    return found


def _on_parents(merge: Merge, laws: tuple[str, ...], found: Tried) -> None:
    first = Made(merge.product.checkpoint, merge.product.made.facts)
    if (same := _unmixed(merge)) is not None:
        found.broken["mixed"], found.where["mixed"] = same, "the merge as it is made"
    act, reason = _action(merge) if "equivariant" in laws else (None, "")
    if reason:
        found.notes.append(f"equivariance was not tried on the parents: {reason}")
    if len(merge.given) > MOST and "unit" in laws:
        found.notes.append(f"M({{x: 1}}) = x was tried on {MOST} of {len(merge.given)} parents")
    with scratch("laws") as folder:
        numbers = iter(range(1_000_000))

        def make(setting: Setting) -> Made:
            return made_of(merge, setting, folder / str(next(numbers)))

        trial = Trial(
            make,
            Setting(merge.given, merge.base_file, first.facts.get("counts")),
            act=act,
            buffers=_buffers(merge),
            layout=first.facts.get("layout", True),
            most=MOST,
            **_promised(merge),
        ).given(first)
        for one in broken(trial, laws):
            found.broken[one.law], found.where[one.law] = one, "on the parents"


def _on_drawn(merge: Merge, laws: tuple[str, ...], found: Tried, examples: int, seed: int) -> None:
    from lmccheck.merging.drawn import tried

    names = tuple(merge.given)[:DRAWN]
    strategy, most, shrinks = _strategy(merge, names)
    if strategy is None:
        found.notes.append(
            f"{merge.recipe.name} was not tried on drawn networks: it needs the parents' own names or data"
        )
        return

    def make(setting: Setting, folder: Path) -> Made:
        return made_of(merge, setting, folder)

    layout = merge.product.made.facts.get("layout", True)
    seen, found.drawn = tried(
        strategy,
        make,
        laws,
        {"layout": layout, "most": MOST, **_promised(merge)},
        examples=min(examples, most),
        start=seed,
        shrinks=shrinks,
    )
    for law, (one, words) in seen.items():
        found.examples[law] = words
        if law not in found.broken:
            found.broken[law], found.where[law] = one, "on a drawn network"


def _strategy(merge: Merge, names: tuple[str, ...]) -> tuple[Any, int, int]:
    """Return what draws networks for a recipe, how many at most, and how many more where a law is broken.

    None where it runs on its own parents only.
    """
    from lmccheck.merging import drawn_folders
    from lmccheck.merging.drawn import SHRINKS, networks

    kind, shared = merge.recipe.declared.drawn, _shared(merge, names)
    if kind == "perceptron":
        return networks(names, merge.base_file is not None, shared), 1000, SHRINKS
    if kind == "llama":
        originals: dict[str | None, Checkpoint] = dict(merge.files.items())
        if merge.base_file is not None:
            originals[None] = merge.base_file
        return drawn_folders.llamas(originals, int(merge.product.made.facts.get("layers", 1)), None), 4, 20
    if kind == "adapters":
        from lmccheck.merging.recipes.adapters import adapter_config

        configs = {name: adapter_config(merge.files[name], name) for name in names}
        return drawn_folders.adapters(configs, shared), 6, 30
    return None, 0, 0


def _shared(merge: Merge, names: tuple[str, ...]) -> dict[str, float] | None:
    """Return weights for the first parents only, of the same sum as all; None where they are those of the recipe."""
    counts = merge.product.made.facts.get("counts")
    if counts:
        return {name: float(counts[name]) or 1.0 for name in names}
    weights = merge.recipe.settings.get("weights")
    if len(names) == len(merge.given) or not isinstance(weights, Mapping):
        return None
    own = {name: float(weights[name]) for name in names}
    total = sum(own.values())
    share = sum(weights.values()) / total if total else 1.0
    return {name: share * weight for name, weight in own.items()}


def made_of(merge: Merge, setting: Setting, folder: Path) -> Made:
    """Run a merge's recipe on something else, below a new folder."""
    recipe, parents = merge.recipe, setting.parents
    if setting.weights is not None and "weights" in recipe.settings:
        recipe = replace(recipe, settings={**recipe.settings, "weights": dict(setting.weights)})
    if setting.weights is not None and "counts" in recipe.settings:
        counts = {name: round(count) for name, count in setting.weights.items()}
        recipe = replace(recipe, settings={**recipe.settings, "counts": counts})
        parents = {name: parents[name] for name in counts}
    made = recipe.make(parents, setting.base, folder, seed=merge.seed, measure=merge._measure)
    return Made(look_at(str(made.path), Path(), "the merge"), made.facts)


def _promised(merge: Merge) -> dict[str, Any]:
    """Return what a recipe promises: its dtype, whether its weights can be given, and how it rounds."""
    facts = merge.product.made.facts
    return {
        "dtype": facts.get("dtype", merge.recipe.settings.get("dtype")),
        "once": merge.recipe.declared.once,
        "weighted": not WEIGHTS.isdisjoint(merge.recipe.settings),
    }


def _unmixed(merge: Merge) -> Broken | None:
    """Return what is wrong where a merge of several is one of them."""
    alone = taken_alone(merge, merge.product.made.facts)
    sources = {f"parent {name}": one for name, one in merge.given.items() if name not in alone}
    sources |= {} if merge.base_file is None else {"the base": merge.base_file}
    for who, one in sources.items():
        if same_bits(merge.product.checkpoint, one):
            return Broken("mixed", f"the merge equals {who} bit for bit: nothing was merged into it")
    return None


def _buffers(merge: Merge) -> frozenset[str]:
    """Return the floating tensors that nothing learns and no data change."""
    from lmccheck.modules.constants import statistics_of

    module = merge.network.module
    learned = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    stored = module.state_dict(keep_vars=True)
    return frozenset(
        name for name in stored if name not in learned | statistics_of(module) and stored[name].is_floating_point()
    )


def _action(merge: Merge) -> tuple[Act | None, str]:
    """Return how a random permutation of the network's units acts on a checkpoint, or why none does."""
    from lmccheck.merging.drawn import acted

    try:
        spec = merge.network.spec
    except LmcError as error:
        return None, f"its symmetries are not known ({error})"
    if not spec.groups:
        return None, "the network has no units to permute"
    if spec.stacks:
        return None, "the symmetry given moves whole experts, of which no single tensor is permuted"
    names = next(iter(merge.given.values())).tensors
    if strange := next((name for name in names if name not in spec.shapes and name not in spec.tied), None):
        return None, f"its files hold {strange!r}, by which name the network knows no tensor"
    permutation = spec.moving(merge.seed)

    def act(one: Checkpoint) -> Checkpoint:
        return acted(one, lambda name, value: spec.moved(name, value, permutation))

    return act, ""
