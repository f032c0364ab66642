"""The checkpoints of one pair while its checks run: loaded once, freed after the last, written when all passed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmccheck.errors import CheckpointError, LmcError, SourceError
from lmccheck.manifest import PairPlan

if TYPE_CHECKING:
    from lmccheck.align.api import Alignment
    from lmccheck.pair import ModelPair


@dataclass(frozen=True)
class Sources:
    """What the fixtures say a check runs on; the manifest's values unless a conftest overrides them."""

    model: Any
    data: Any
    loss: Any
    device: str

    def same(self, other: Sources) -> bool:
        """True when loading again would give the same pair: equal text, or the very same objects."""
        mine, theirs = (
            (self.model, self.data, self.loss, self.device),
            (other.model, other.data, other.loss, other.device),
        )
        return all(
            one is two or (isinstance(one, str) and isinstance(two, str) and one == two)
            for one, two in zip(mine, theirs, strict=True)
        )


class LoadedPair:
    """One pair's checkpoints, or the error that loading them gave; both are kept for the pair's next check."""

    def __init__(self, folder: Path, plan: PairPlan) -> None:
        self.folder = folder
        self.plan = plan
        self.passed: set[str] = set()
        self.lines: list[str] = []  # what became of the aligned file, for the terminal
        self.description: dict[str, Any] = {"files": {"a": {"path": plan.a}, "b": {"path": plan.b}}}
        self.environment: dict[str, Any] = {}
        self._alignments: dict[str, Alignment] = {}
        self._sources: Sources | None = None
        self._outcome: ModelPair | LmcError | None = None

    def load(self, sources: Sources) -> ModelPair:
        """Return the pair, loaded at the first call.

        Raises the ``LmcError`` that loading gave, again at every call: large files are not read twice to fail twice.
        """
        if self._outcome is None or self._sources is None or not self._sources.same(sources):
            self._sources, self._outcome = sources, self._load(sources)
        if isinstance(self._outcome, LmcError):
            raise self._outcome
        return self._outcome

    def _load(self, sources: Sources) -> ModelPair | LmcError:
        from lmccheck.pair import load_pair

        plan = self.plan
        try:
            for key, fixture in (("model", "lmc_model_factory"), ("data", "lmc_data")):
                if getattr(sources, key) is None:
                    raise SourceError(
                        f"pair.{plan.name}.{key}: missing in the pair and in [defaults], and no conftest.py beside the "
                        f"manifest overrides the fixture {fixture}"
                    )
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
        except LmcError as error:
            return error.with_traceback(None)
        self.description = {**self.description, **pair.description}
        self.environment = environment(str(pair.device))
        return pair

    def note_pass(self, check: str, witness: Any) -> None:
        """Remember that a check passed, and the alignment under which it did (None when nobody will ask for it)."""
        self.passed.add(check)
        if witness is None:
            return
        from lmccheck import Alignment

        if isinstance(witness, Alignment):
            self._alignments[check] = witness

    def free(self) -> None:
        """Let go of the weights; what passed is remembered."""
        self._sources = self._outcome = None

    def write_aligned(self, folder: Path) -> None:
        """Write θ_B under the alignment of the first check, in the manifest's order, that aligned.

        Raises ``CheckpointError`` when the file cannot be written.
        """
        from safetensors import SafetensorError

        from lmccheck import save_aligned

        order = [check.name for check in self.plan.checks if check.name in self._alignments]
        if not order:
            self.lines.append(f"aligned b not written for {self.plan.name}: none of its checks aligns")
            return
        path = folder / f"{self.plan.name}-b-aligned.safetensors"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_aligned(self._alignments[order[0]], path)
        except (OSError, LmcError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"--lmc-aligned-dir: cannot write {path}: {reason}") from None
        finally:
            self._alignments.clear()
        self.lines.append(f"aligned b written to {path}")


def environment(device: str) -> dict[str, Any]:
    """Return what the numbers depend on, asked of the torch that computed them."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {"device": device}
    facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": device}
    return {**facts, "gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else facts
