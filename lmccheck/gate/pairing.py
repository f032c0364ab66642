"""How pairs, pairs of two widths and sets are loaded, and what of them --lmc-aligned-dir writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmccheck.errors import CheckpointError
from lmccheck.gate.loading import Loaded, Sources
from lmccheck.manifest.plan import PairPlan, SetPlan


def loaded(folder: Path, plan: PairPlan | SetPlan) -> Loaded:
    """Return what is to hold a plan's checkpoints; nothing is read yet."""
    if isinstance(plan, SetPlan):
        return LoadedSet(folder, plan)
    return LoadedPair(folder, plan) if plan.model_b is None else LoadedWidths(folder, plan)


class LoadedPair(Loaded):
    """A pair of one network: a ModelPair."""

    plan: PairPlan

    def read(self, sources: Sources) -> tuple[Any, dict[str, Any], str]:
        from lmccheck.network.pair import load_pair

        plan = self.plan
        pair = load_pair(
            plan.a,
            plan.b,
            model=sources.model,
            data=sources.data,
            calibration=plan.calibration,
            loss=sources.loss,
            device=sources.device,
            base=self.folder,
            name=plan.name,
            sha256=dict(plan.sha256),
            symmetry=plan.symmetry,
        )
        return pair, pair.description, str(pair.device)

    def writable(self, witness: Any) -> bool:
        from lmccheck import Alignment

        return isinstance(witness, Alignment)

    def target(self, folder: Path) -> Path:
        return folder / f"{self.plan.name}-b-aligned.safetensors"

    def write(self, witness: Any, target: Path) -> None:
        from lmccheck import save_aligned

        save_aligned(witness, target)


class LoadedWidths(Loaded):
    """A pair of two widths: each endpoint as a pair with itself, in its own network."""

    plan: PairPlan
    what = "fused b"

    def read(self, sources: Sources) -> tuple[Any, dict[str, Any], str]:
        from lmccheck.network.pair import load_pair

        plan = self.plan
        first = second = None
        for key, path, model in (("a", plan.a, sources.model), ("b", plan.b, plan.model_b)):
            pin = plan.sha256.get(key)
            pair = load_pair(
                path,
                path,
                model=model,
                data=sources.data if first is None else first.data,  # batches may come only once
                calibration=plan.calibration if first is None else first.calibration,
                loss=sources.loss,
                device=sources.device,
                base=self.folder,
                name=plan.name,
                sha256={"a": pin, "b": pin} if pin else {},
            )
            first, second = first or pair, pair
        assert first is not None
        assert second is not None
        files = {"a": first.description["files"]["a"], "b": second.description["files"]["a"]}
        description = {**first.description, "model_b": second.description["model"], "files": files}
        return (first, second), description, str(first.device)

    def writable(self, witness: Any) -> bool:
        from lmccheck import Fusion

        return isinstance(witness, Fusion)

    def target(self, folder: Path) -> Path:
        return folder / f"{self.plan.name}-b-fused.safetensors"

    def write(self, witness: Any, target: Path) -> None:
        from lmccheck.store import checkpoint

        checkpoint.save(witness.weights, target, witness.metadata)


class LoadedSet(Loaded):
    """A set: a ModelSet."""

    plan: SetPlan
    what = "aligned models"

    def read(self, sources: Sources) -> tuple[Any, dict[str, Any], str]:
        from lmccheck.network.set import load_set

        plan = self.plan
        models = load_set(
            plan.models,
            name=plan.name,
            sha256=plan.sha256,
            model=sources.model,
            data=sources.data,
            calibration=plan.calibration,
            loss=sources.loss,
            device=sources.device,
            base=self.folder,
            symmetry=plan.symmetry,
        )
        return models, models.description, models.device

    def writable(self, witness: Any) -> bool:
        from lmccheck import ManyAlignment

        return isinstance(witness, ManyAlignment)

    def target(self, folder: Path) -> Path:
        return folder / self.plan.name

    def write(self, witness: Any, target: Path) -> None:
        """Write each model, ``STEM-aligned.safetensors``. Raises CheckpointError for two of one stem."""
        from lmccheck import save_aligned

        names = [f"{Path(model).stem}-aligned.safetensors" for model in self.plan.models]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise CheckpointError(f"two models would be {twice}; mend: give their files different names")
        target.mkdir(exist_ok=True)
        for k, name in enumerate(names):
            save_aligned(witness.member(k), target / name)
