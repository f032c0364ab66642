"""The measuring core as the gate sees it: the one place through which networks are loaded and properties run.

Another core may be put in its place (``config.stash[CORE]``): tests of the plugin measure nothing that way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmccheck.errors import SourceError

if TYPE_CHECKING:
    from lmccheck.manifest.plan import Measured
    from lmccheck.network.pair import ModelPair
    from lmccheck.network.single import SingleModel
    from lmccheck.result import Result


@dataclass(frozen=True)
class Sources:
    """What the fixtures say a check runs on; the manifest's values unless a conftest overrides them."""

    model: Any
    data: Any
    loss: Any
    device: str

    def same(self, other: Sources) -> bool:
        """True when loading again would give the same networks: equal text, or the very same objects."""
        both = zip(vars(self).values(), vars(other).values(), strict=True)
        return all(one is two or (isinstance(one, str) and isinstance(two, str) and one == two) for one, two in both)


def described(first: Any, folder: Path) -> bool:
    """Whether a checkpoint lies in a folder whose config describes its model; headers are read at most."""
    from lmccheck.store.checkpoint import look_at
    from lmccheck.store.folders import CONFIG

    home = look_at(first, folder, "model").home
    return home is not None and (home / CONFIG).is_file()


def default_loss(model: Any, data: Any) -> str | None:
    """Return the loss of a model and samples that are the user's own; None where what they are decides."""
    return "cross_entropy" if model is not None and isinstance(data, str) else None


MENDS = {
    "model": '"module:callable" that builds it, or name folders with a config.json',
    "data": '"…", a file, a callable or the name of a [data.NAME]: what networks are run and measured on',
}


def _public(name: str) -> Any:
    """Return one of lmccheck's public functions, imported when it is called."""

    def call(*given: Any, **options: Any) -> Any:
        import lmccheck

        return getattr(lmccheck, name)(*given, **options)

    return staticmethod(call)


class Core:
    """Loads what a plan names, and runs properties of it; nothing heavy is imported before it is needed."""

    load_pair: Callable[..., ModelPair] = _public("load_pair")
    load_model: Callable[..., SingleModel] = _public("load_model")
    load_widths: Callable[..., Any] = _public("load_widths")
    load_set: Callable[..., Any] = _public("load_set")
    load_merge: Callable[..., Any] = _public("load_merge")

    def load(self, folder: Path, plan: Measured, sources: Sources) -> Any:
        """Return what a plan names: a pair, one of two widths, a model, a set or a merge. Raises ``LmcError``."""
        from lmccheck.manifest.plan import MergePlan, ModelPlan, SetPlan

        first = next(iter(plan.files.values()))
        for key, fixture in (("model", "lmc_model_factory"), ("data", "lmc_data")):
            if getattr(sources, key) is None and not (key == "model" and described(first, folder)):
                raise SourceError(
                    f"{plan.kind}.{plan.name}.{key}: missing in the {plan.kind} and in [defaults], and no "
                    f"conftest.py beside the manifest overrides the fixture {fixture}; mend: {key} = {MENDS[key]}"
                )
        given: dict[str, Any] = {
            "model": sources.model,
            "data": sources.data,
            "calibration": plan.calibration,
            "loss": sources.loss,
            "device": sources.device,
            "base": folder,
            "name": plan.name,
            "sha256": plan.sha256,
            "symmetry": plan.symmetry,
        }
        given |= {key: value for key in ("accept", "untie") if (value := getattr(plan, key))}
        if isinstance(plan, ModelPlan):
            return self.load_model(plan.checkpoint, **given)
        if isinstance(plan, SetPlan):
            return self.load_set(plan.models, **given, **({"matched": plan.matched} if plan.matched else {}))
        if isinstance(plan, MergePlan):
            own = {"base_model": plan.base, "shipped": plan.shipped, "align": plan.align}
            return self.load_merge(plan.parents, plan.recipe, **own, sources=plan.sources, **given)
        if plan.model_b is None:
            return self.distinct(self.load_pair(plan.a, plan.b, **given))
        model = given.pop("model")
        return self.distinct(self.load_widths(plan.a, plan.b, model_a=model, model_b=plan.model_b, **given))

    def distinct(self, pair: Any) -> Any:
        """Return a pair; raise CheckpointError where a and b are one network: a gate that compares nothing is red."""
        from lmccheck.network.pair import require_distinct

        require_distinct(pair)
        return pair

    def run(self, property_name: str, loaded: Any, *, seed: int, profile: str, **settings: Any) -> Result:
        """Run a property of what was loaded, with a seed and a search profile.

        Raises CheckpointError where a file has changed since: the verdict would not be about what lies there.
        """
        from lmccheck.properties import run

        result = run(property_name, loaded, seed=seed, profile=profile, **settings)
        loaded.require_unchanged()
        return result

    def call(self, property_name: str, *arguments: Any, **settings: Any) -> Result:
        """Call a property as a Python script would."""
        from lmccheck.properties.registry import PROPERTIES

        return PROPERTIES.get(property_name)(*arguments, **settings)


CORE = pytest.StashKey[Core]()


def core_of(config: pytest.Config) -> Core:
    """Return the core of this run."""
    return config.stash.setdefault(CORE, Core())
