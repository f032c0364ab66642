"""The witness of dropout stability: every θ_i of both endpoints, in memory and in a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lmccheck.dropping.dropped import Dropped
from lmccheck.errors import CheckpointError, shown_path
from lmccheck.evaluate.evaluator import Evaluator, Measured
from lmccheck.network.pair import ModelPair
from lmccheck.store import files
from lmccheck.symmetry.structure import State, Structure

FORMAT = "dropout_stability 1"


@dataclass(frozen=True)
class StabilityWitness(files.Written):
    """θ_i of both endpoints: ``found["a"][i]`` is the Dropped of level i. ``theta``: canonical states of both."""

    found: Mapping[str, Mapping[int, Dropped]]
    theta: Mapping[str, State] = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a witness as one safetensors file: kept units, and the tensors in which θ_i differs from θ, in float64.

        Names are ``SIDE.LEVEL.keep.GROUP`` and ``SIDE.LEVEL.weights.TENSOR``; JSON under ``lmccheck`` in the metadata
        says how each was found, its calibration loss, and which θ it belongs to. Raises CheckpointError when it cannot
        be written.
        """
        tensors: dict[str, Tensor] = {}
        entries: list[dict[str, Any]] = []
        for side, levels in self.found.items():
            theta = self.theta[side]
            for level, dropped in levels.items():
                for group, units in dropped.keep.items():
                    tensors[f"{side}.{level}.keep.{group}"] = units
                for name, tensor in dropped.weights.items():
                    if tensor is not theta[name] and not tensor.equal(theta[name]):
                        tensors[f"{side}.{level}.weights.{name}"] = tensor
                told = {"loss": dropped.loss, "how": dropped.how, "refitted": dropped.refitted}
                entries.append({"side": side, "level": level, **told})
        facts = {
            "format": FORMAT,
            "dropped": entries,
            "theta": {side: fingerprint(state) for side, state in self.theta.items()},
        }
        return files.save(tensors, path, {"lmccheck": json.dumps(facts)}, inputs=self.inputs)


def measure_dropped(evaluator: Evaluator, structure: Structure, dropped: Dropped, side: str) -> Measured:
    """Return the losses of θ_i on the evaluation data, with the BatchNorm statistics that it holds."""
    weights = evaluator.weights(structure.stored(dropped.weights))
    return evaluator.measure(weights, reestimate=False, label=f"{side} with units dropped from level {dropped.level}")


def load_dropped(path: str | os.PathLike[str], pair: ModelPair, structure: Structure) -> StabilityWitness:
    """Read a witness written by ``StabilityWitness.save`` for this very pair.

    Raises CheckpointError for other files, and where the endpoints are not those the witness was made from.
    """
    held = files.load(path)
    shown = shown_path(os.fspath(path))
    try:
        facts = json.loads(files.read_header(path).metadata["lmccheck"])
        known = facts["format"] == FORMAT
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise CheckpointError(
            f"{shown}: holds no witness of dropout stability; mend: name a file of StabilityWitness.save"
        )
    theta = {"a": structure.canonical(pair.theta_a), "b": structure.canonical(pair.theta_b)}
    for side, state in theta.items():
        if fingerprint(state) != facts["theta"][side]:
            raise CheckpointError(
                f"{shown}: was made from another {side} than pair {pair.name} has; mend: load the pair it belongs to"
            )
    found: dict[str, dict[int, Dropped]] = {"a": {}, "b": {}}
    for entry in facts["dropped"]:
        start = f"{entry['side']}.{entry['level']}."
        keep = _under(held, f"{start}keep.")
        changed = _under(held, f"{start}weights.")
        weights = {**theta[entry["side"]], **changed}
        found[entry["side"]][entry["level"]] = Dropped(
            entry["level"], keep, weights, entry["loss"], entry["how"], entry["refitted"]
        )
    return StabilityWitness(found, theta)


def _under(held: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in held.items() if name.startswith(start)}


def fingerprint(state: State) -> str:
    """Return a hash of a state's names and numbers."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def dropped_violation(structure: Structure, theta: State, dropped: Dropped, keep: float) -> str | None:
    """Return what keeps a network from being a θ_i of ``theta``, as one clause; None where it is one.

    At most ⌊keep·h⌋ units of every group of its levels may be read, and where levels are single groups the rows of the
    levels up to its own must be those of θ.
    """
    if dropped.level not in range(len(structure.levels)):
        return f"level {dropped.level} is none of the network's {len(structure.levels)}"
    groups = {group for level in structure.levels[dropped.level :] for group in level}
    if groups != set(dropped.keep):
        return f"units are kept in {sorted(dropped.keep)}, expected {sorted(groups)}"
    for name, tensor in theta.items():
        other = dropped.weights.get(name)
        if other is None or other.shape != tensor.shape or (tensor.is_floating_point() and not other.isfinite().all()):
            return f"tensor {name!r} is missing, of another shape, or not finite"
    for group, units in dropped.keep.items():
        size = structure.sizes[group]
        if len(units) > int(keep * size) or len(units) != len(set(units.tolist())):
            return f"{len(units)} of {size} units are kept in {group}, expected at most {int(keep * size)}"
        gone = structure.others(group, units)
        for name, blocks in structure.columns.items():
            for block in blocks:
                if block.group == group and dropped.weights[name].index_select(block.dim, block.of(gone)).any():
                    return f"tensor {name!r} reads units of {group} that are not kept"
    if structure.sequential:
        before = {group for level in structure.levels[: dropped.level + 1] for group in level}
        for name, blocks in structure.rows.items():
            for block in blocks:
                own, its = (
                    x[name].index_select(block.dim, block.positions.reshape(-1)) for x in (theta, dropped.weights)
                )
                if block.group in before and not own.equal(its):
                    return f"incoming weights of {block.group} in tensor {name!r} are not those of the network"
    return None
