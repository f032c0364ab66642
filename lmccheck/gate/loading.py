"""The checkpoints of a pair or a set while its checks run: loaded once, freed after the last, written if all passed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmccheck.errors import CheckpointError, LmcError, SourceError
from lmccheck.manifest.plan import PairPlan, SetPlan


@dataclass(frozen=True)
class Sources:
    """What the fixtures say a check runs on; the manifest's values unless a conftest overrides them."""

    model: Any
    data: Any
    loss: Any
    device: str

    def same(self, other: Sources) -> bool:
        """True when loading again would give the same networks: equal text, or the very same objects."""
        mine, theirs = (
            (self.model, self.data, self.loss, self.device),
            (other.model, other.data, other.loss, other.device),
        )
        return all(
            one is two or (isinstance(one, str) and isinstance(two, str) and one == two)
            for one, two in zip(mine, theirs, strict=True)
        )


class Loaded:
    """What a pair or a set has loaded, or the error that loading it gave; both are kept for its next check.

    A subclass says how it is loaded (``read``), what of a check's witness can be written (``writable``), and writes it.
    """

    what = "aligned b"  # what --lmc-aligned-dir writes, for the terminal

    def __init__(self, folder: Path, plan: PairPlan | SetPlan) -> None:
        self.folder = folder
        self.plan = plan
        self.passed: set[str] = set()
        self.lines: list[str] = []  # what became of the aligned file, for the terminal
        self.description: dict[str, Any] = {"files": {key: {"path": path} for key, path in plan.files.items()}}
        self.environment: dict[str, Any] = {}
        self._witnesses: dict[str, Any] = {}
        self._sources: Sources | None = None
        self._outcome: Any = None

    def read(self, sources: Sources) -> tuple[Any, dict[str, Any], str]:
        """Return what a property takes, its description, and the device; raise the ``LmcError`` that keeps it away."""
        raise NotImplementedError

    def writable(self, witness: Any) -> bool:
        """Whether a passing check's witness holds what --lmc-aligned-dir is to write."""
        raise NotImplementedError

    def target(self, folder: Path) -> Path:
        """Return where that is written: a file, or the folder of several."""
        raise NotImplementedError

    def write(self, witness: Any, target: Path) -> None:
        """Write it; the folder of ``target`` exists."""
        raise NotImplementedError

    def load(self, sources: Sources) -> Any:
        """Return what a property takes, loaded at the first call.

        Raises the ``LmcError`` that loading gave, again at every call: large files are not read twice to fail twice.
        """
        if self._outcome is None or self._sources is None or not self._sources.same(sources):
            self._sources, self._outcome = sources, self._read(sources)
        if isinstance(self._outcome, LmcError):
            raise self._outcome
        return self._outcome

    def _read(self, sources: Sources) -> Any:
        plan = self.plan
        try:
            for key, fixture in (("model", "lmc_model_factory"), ("data", "lmc_data")):
                if getattr(sources, key) is None:
                    raise SourceError(
                        f"{plan.kind}.{plan.name}.{key}: missing in the {plan.kind} and in [defaults], and no "
                        f"conftest.py beside the manifest overrides the fixture {fixture}"
                    )
            outcome, description, device = self.read(sources)
        except LmcError as error:
            return error.with_traceback(None)
        self.description = {**self.description, **description}
        self.environment = environment(device)
        return outcome

    def note_pass(self, check: str, witness: Any) -> None:
        """Remember that a check passed, and the alignment under which it did (None when nobody will ask for it)."""
        self.passed.add(check)
        if witness is not None and self.writable(witness):
            self._witnesses[check] = witness

    def free(self) -> None:
        """Let go of the weights; what passed is remembered."""
        self._sources = self._outcome = None

    def write_aligned(self, folder: Path) -> None:
        """Write what passed under the alignment of the first check, in the manifest's order, that aligned.

        Raises ``CheckpointError`` when it cannot be written.
        """
        from safetensors import SafetensorError

        order = [check.name for check in self.plan.checks if check.name in self._witnesses]
        if not order:
            self.lines.append(f"{self.what} not written for {self.plan.name}: none of its checks aligns")
            return
        target = self.target(folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.write(self._witnesses[order[0]], target)
        except (OSError, LmcError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"--lmc-aligned-dir: cannot write {target}: {reason}") from None
        finally:
            self._witnesses.clear()
        self.lines.append(f"{self.what} written to {target}")


def environment(device: str) -> dict[str, Any]:
    """Return what the numbers depend on, asked of the torch that computed them."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {"device": device}
    facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": device}
    return {**facts, "gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else facts
