"""The witness of dropout stability: every θ_i of every endpoint, in memory and in a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from lmccheck.dropping.choose_units import Keep, unit_counts
from lmccheck.dropping.dropped import Dropped
from lmccheck.dropping.freedom import groups_from, misplaced, unlike
from lmccheck.dropping.search import Search
from lmccheck.errors import CheckpointError, LmcError, shown_path
from lmccheck.evaluate.evaluator import Evaluator, Measured
from lmccheck.explain import called
from lmccheck.finding import ALONE, require_limit
from lmccheck.network.endpoint import Endpoint, kept_weights
from lmccheck.network.view import View
from lmccheck.shown import one_line, some
from lmccheck.store import files
from lmccheck.store.documents import Strict
from lmccheck.store.stated import damaged, read_stated, require_all_used, save_stated
from lmccheck.symmetry.structure import Canonical, State, Structure

FORMAT = "dropout_stability 1"
KEY = "lmccheck"  # of the metadata of a file
WHAT = "the witness"


class DroppedFacts(Strict):
    """What a file says of one θ_i."""

    side: Literal["a", "b", "model"]
    level: int
    loss: float
    how: str
    refitted: bool


class StabilityFacts(Strict):
    """What a file says of all θ_i, of which θ they are, and what was asked of them (None in older files)."""

    format: Literal["dropout_stability 1"] = Field(description="'dropout_stability 1'")
    dropped: list[DroppedFacts] = Field(description="per network its side, level, loss, how it was found, refitted")
    theta: dict[str, str] = Field(description="the hashes of a and b, or of the model")
    keep: float | dict[str, float] | None = Field(default=None, description="a share of units, or a table of them")
    epsilon: float | str | None = Field(default=None, description="a limit")


@one_line(lambda witness: f"{some(f'{len(found)} levels of {side}' for side, found in witness.found.items())}")
@dataclass(frozen=True)
class StabilityWitness(files.Written):
    """θ_i of every endpoint: ``found["a"][i]`` is the Dropped of level i. ``theta``: canonical states of all.

    ``keep`` and ``epsilon`` are what was asked of them, for those who verify; None where nothing is known of it.
    """

    found: Mapping[str, Mapping[int, Dropped]]
    theta: Mapping[str, State] = field(repr=False)
    keep: Keep | None = None
    epsilon: float | str | None = None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a witness as one safetensors file: kept units, and the tensors in which θ_i differs from θ, in float64.

        Names are ``SIDE.LEVEL.keep.GROUP`` and ``SIDE.LEVEL.weights.TENSOR``; JSON under ``lmccheck`` in the metadata
        says how each was found, its calibration loss, which θ it belongs to, and what was asked. Raises CheckpointError
        when it cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        entries: list[dict[str, Any]] = []
        for side, levels in self.found.items():
            theta = self.theta[side]
            for level, dropped in levels.items():
                for group, units in dropped.keep.items():
                    tensors[f"{side}.{level}.keep.{group}"] = units
                for name, tensor in dropped.weights.items():
                    if name not in theta or (tensor is not theta[name] and not tensor.equal(theta[name])):
                        tensors[f"{side}.{level}.weights.{name}"] = tensor
                told = {"loss": dropped.loss, "how": dropped.how, "refitted": dropped.refitted}
                entries.append({"side": side, "level": level, **told})
        facts = {
            "format": FORMAT,
            "dropped": entries,
            "theta": {side: fingerprint(state) for side, state in self.theta.items()},
            "keep": dict(self.keep) if isinstance(self.keep, Mapping) else self.keep,
            "epsilon": self.epsilon,
        }
        return save_stated(tensors, path, KEY, facts, self.inputs)


def witness_of(
    view: View, structure: Structure, searches: Mapping[str, Search], keep: Keep, epsilon: float | str
) -> StabilityWitness:
    """Return what was found for every endpoint, and for what."""
    theta = {name: Canonical(structure, end.once(kept_weights)) for name, end in view.named_endpoints.items()}
    return StabilityWitness({side: search.best for side, search in searches.items()}, theta, keep, epsilon)


def measure_dropped(evaluator: Evaluator, structure: Structure, dropped: Dropped, side: str) -> Measured:
    """Return the losses of θ_i on the evaluation data, with the BatchNorm statistics that it holds."""
    weights = evaluator.weights(structure.stored(dropped.weights))
    return evaluator.measure(weights, reestimate=False, label=f"{side} with units dropped from level {dropped.level}")


def load_dropped(path: str | os.PathLike[str], ends: Mapping[str, Endpoint], structure: Structure) -> StabilityWitness:
    """Read a witness written by ``StabilityWitness.save`` for these very endpoints.

    Raises CheckpointError for other files and damaged ones, and where the endpoints are not those it was made from.
    """
    mend = "holds no witness of dropout stability; mend: name a file of StabilityWitness.save"
    facts, held = read_stated(Path(path), KEY, StabilityFacts, WHAT, mend)
    theta = {name: structure.canonical(end.theta) for name, end in ends.items()}
    if (ALONE in facts.theta) != (ALONE in ends):
        of, load = ("a single model", "load_model") if ALONE in facts.theta else ("a pair", "load_pair")
        raise CheckpointError(
            f"{shown_path(path)}: holds dropped networks of {of}, expected those of "
            f"{' and '.join(map(called, ends))}; mend: verify it on what it belongs to ({load})"
        )
    for side, state in theta.items():
        if fingerprint(state) != facts.theta.get(side):
            raise CheckpointError(
                f"{shown_path(path)}: was made from another {side} than that of {ends[side].network.name}; mend: "
                "load what it belongs to"
            )
    found: dict[str, dict[int, Dropped]] = {name: {} for name in ends}
    used: list[str] = []
    for entry in facts.dropped:
        if entry.side not in found:
            damaged(path, WHAT, f"a network of {entry.side}, of which there is no hash")
        start = f"{entry.side}.{entry.level}."
        if entry.level not in range(len(structure.levels)) or entry.level in found[entry.side]:
            damaged(path, WHAT, f"level {entry.level} of {entry.side} occurs twice, or the network has none")
        keep, changed = _under(held, f"{start}keep."), _under(held, f"{start}weights.")
        used += [f"{start}keep.{group}" for group in (*keep, *groups_from(structure, entry.level))]
        used += [f"{start}weights.{name}" for name in changed]
        weights = {**theta[entry.side], **changed}
        dropped = Dropped(entry.level, keep, weights, entry.loss, entry.how, entry.refitted)
        wrong = misplaced(structure, dropped, 1.0) or unlike(theta[entry.side], weights)
        if wrong is not None:
            damaged(path, WHAT, f"level {entry.level} of {entry.side}: {wrong}")
        found[entry.side][entry.level] = dropped
    require_all_used(path, WHAT, held, used)
    try:
        unit_counts(structure, 1.0 if facts.keep is None else facts.keep)
        require_limit(facts.epsilon)
    except LmcError as error:
        damaged(path, WHAT, str(error))
    return StabilityWitness(found, theta, facts.keep, facts.epsilon)


def _under(held: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in held.items() if name.startswith(start)}


def fingerprint(state: State) -> str:
    """Return a hash of a state's names and numbers."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
