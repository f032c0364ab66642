"""The checkpoints of a pair or its like while its checks run: loaded once, freed after the last, written if passed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lmccheck.errors import CheckpointError, LmcError
from lmccheck.gate.core import Core, Sources
from lmccheck.manifest.plan import Measured
from lmccheck.store.given import paths_of


class Loaded:
    """What a pair or a set has loaded, or the error that loading it gave; both are kept for its next check."""

    def __init__(self, folder: Path, plan: Measured, core: Core) -> None:
        self.folder = folder
        self.plan = plan
        self.core = core
        self.passed: set[str] = set()
        self.lines: list[str] = []  # what became of the aligned file, for the terminal
        self.description: dict[str, Any] = {
            "files": {key: {"path": str(paths_of(given, folder)[0])} for key, given in plan.files.items()}
        }
        self.environment: dict[str, Any] = {}
        self._witnesses: dict[str, Any] = {}
        self._sources: Sources | None = None
        self._outcome: Any = None

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
        try:
            outcome = self.core.load(self.folder, self.plan, sources)
        except LmcError as error:
            return error
        self.description = {**self.description, **outcome.description, "inputs": read_beside(outcome)}
        self.environment = environment(str(outcome.device), str(outcome.description.get("device", "cpu")))
        return outcome

    def note_pass(self, check: str, witness: Any) -> None:
        """Remember that a check passed, and the alignment under which it did (None when nobody will ask for it).

        What can be written has a method ``ship(target, files)`` that writes it.
        """
        self.passed.add(check)
        if hasattr(witness, "ship"):
            self._witnesses[check] = witness

    def free(self) -> None:
        """Let go of the weights; what passed is remembered."""
        self._sources = self._outcome = None

    def write_aligned(self, folder: Path) -> None:
        """Write what passed under the alignment of the first check, in the manifest's order, that aligned.

        Raises ``CheckpointError`` when it cannot be written.
        """
        from safetensors import SafetensorError

        plan = self.plan
        order = [check.name for check in plan.checks if check.name in self._witnesses]
        if not order:
            self.lines.append(f"{plan.ships} not written for {plan.name}: none of its checks aligns")
            return
        target = folder / plan.shipped_name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._witnesses[order[0]].ship(target, plan.shipped_files)
        except (OSError, LmcError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"--lmc-aligned-dir: cannot write {target}: {reason}") from None
        finally:
            self._witnesses.clear()
        self.lines.append(f"{plan.ships} written to {target}")


def read_beside(loaded: Any) -> list[dict[str, Any]]:
    """Return the files that were read beside checkpoints, with their hashes: data, recipes, code."""
    from lmccheck.store.files import sha256_of

    ends = getattr(loaded, "origins", ()) or [end.checkpoint for end in getattr(loaded, "endpoints", ())]
    checkpoints = {path for end in ends for path in end.files}
    read = dict.fromkeys(path for path in getattr(loaded, "inputs", ()) if path not in checkpoints)
    return [{"path": str(path), "sha256": sha256_of(path)} for path in read if path.is_file()]


def environment(asked: str, device: str) -> dict[str, Any]:
    """Return what the numbers depend on, asked of the torch that computed them: ``asked`` came to ``device``."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {"device": asked}
    facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": asked}
    return {**facts, "gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else facts
