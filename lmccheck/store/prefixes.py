"""Names of tensors that differ by a prefix only, as wrappers and training scripts leave them; no torch at import.

One that all names of a file begin with is taken off where that makes them those of the network, and that is said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from lmccheck.shown import some
from lmccheck.store.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = {  # parts of names that a wrapper adds wherever it stands
    "module": "DataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
COUNTERS = {"n_averaged"}  # what AveragedModel stores beside the names that it adds its prefix to


def without_prefix(checkpoint: Checkpoint, others: Collection[str]) -> Checkpoint:
    """Return a checkpoint whose names lack what all of them begin with, where they are ``others`` without it.

    Else it is returned as it is.
    """
    prefix = shared_prefix(checkpoint.tensors, others)
    return _without(checkpoint, prefix) if prefix else checkpoint


def alike(first: Checkpoint, second: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Return two checkpoints without the prefixes that one of them has, or each has its own of, and nothing else."""
    one = without_prefix(first, second.tensors)
    two = without_prefix(second, one.tensors)
    mine, theirs = _common(set(one.tensors)), _common(set(two.tensors))
    meet = _stripped(set(one.tensors), mine) & _stripped(set(two.tensors), theirs)
    if mine and theirs and mine != theirs and len(meet) == len(one.tensors) == len(two.tensors):
        return _without(one, mine), _without(two, theirs)
    return one, two


def _without(checkpoint: Checkpoint, prefix: str) -> Checkpoint:
    names = {name.removeprefix(prefix): name for name in checkpoint.tensors if name.startswith(prefix)}

    def read() -> dict[str, Tensor]:
        state = checkpoint.read()
        return {short: state[name] for short, name in names.items()}

    return replace(
        checkpoint,
        tensors={short: checkpoint.tensors[name] for short, name in names.items()},
        read=read,
        get=lambda short: checkpoint.get(names[short]),
        same=lambda one, other: checkpoint.same(names[one], names[other]),
        lies={short: checkpoint.lies[name] for short, name in names.items() if name in checkpoint.lies},
        apart=frozenset(short for short, name in names.items() if name in checkpoint.apart),
        shards={short: checkpoint.shards[name] for short, name in names.items() if name in checkpoint.shards},
        remarks=(*checkpoint.remarks, f"names are taken without their prefix {prefix!r}{_by(prefix)}"),
    )


def shared_prefix(names: Collection[str], others: Collection[str]) -> str:
    """Return the prefix of all names without which more than half of them, and more than with it, are ``others``.

    >>> shared_prefix(["module.w", "module.b", "n_averaged"], ["w", "b"]), shared_prefix(["ema.w", "w"], ["w"])
    ('module.', '')
    """
    names, others = set(names) - (COUNTERS - set(others)), set(others)
    if not names or not others:
        return ""
    parts = _common(names).split(".")[:-1]
    best, met = "", max(len(names & others), min(len(names), len(others)) / 2)
    for k in range(1, len(parts) + 1):
        prefix = "".join(f"{part}." for part in parts[:k])
        if (meet := len(_stripped(names, prefix) & others)) > met:
            best, met = prefix, meet
    return best


def prefix_problem(names: Collection[str], others: Collection[str], owner: str) -> str | None:
    """Return in words how names differ from ``others``, those of ``owner``, if it is by prefixes, with the mend.

    Prefixes are what is said where more than half of the names meet without them, and more than do with them.

    >>> prefix_problem(["module.w", "module.b"], ["w", "b"], "model m:f")
    "names begin with 'module.' (as DataParallel saves them), those of model m:f do not; mend: strip it from every name"
    """
    names, others = set(names), set(others)
    if not names or not others or names & others == others:
        return None
    best = max((len(names & others), min(len(names), len(others)) / 2))
    added = _prefixes(names, others, best)
    if added:
        more = f", the file holds {len(added)} such sets" if len(added) > 1 else ""
        mend = "keep one set and strip its prefix" if len(added) > 1 else "strip it from every name"
        listed = " or ".join(f"{prefix!r}{_by(prefix)}" for prefix in added)
        return f"names begin with {listed}, those of {owner} do not{more}; mend: {mend}"
    if lacking := _prefixes(others, names, best):
        prefix = lacking[0]
        return (
            f"names lack the prefix {prefix!r}{_by(prefix)} of those of {owner}; mend: build the inner network, or add "
            "the prefix to every name"
        )
    own, theirs = _common(names), _common(others)
    if own and theirs and len(_stripped(names, own) & _stripped(others, theirs)) > best:
        return f"names begin with {own!r}, those of {owner} with {theirs!r}; mend: replace the one by the other"
    parts = sorted({part for name in names | others for part in name.split(".")} & WRAPPERS.keys())
    if parts and len({_bare(name) for name in names} & {_bare(name) for name in others}) > best:
        listed = some(f"{part!r} (of {WRAPPERS[part]})" for part in parts)
        return f"names differ from those of {owner} in {listed}; mend: unwrap the model before it is saved and built"
    return None


def _prefixes(names: set[str], others: set[str], best: float) -> list[str]:
    """Return what stands before more than ``best`` of the other names, most frequent ones first."""
    found: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        for k in range(1, len(parts)):
            if ".".join(parts[k:]) in others:
                prefix = ".".join(parts[:k]) + "."
                found[prefix] = found.get(prefix, 0) + 1
    return sorted((p for p, count in found.items() if count > best), key=lambda p: (-found[p], p))


def _stripped(names: set[str], prefix: str) -> set[str]:
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def _common(names: set[str]) -> str:
    """Return the parts that all names begin with."""
    if not names:
        return ""
    first, last = min(names).split("."), max(names).split(".")
    same = 0
    while same < min(len(first), len(last)) - 1 and first[same] == last[same]:
        same += 1
    return "".join(f"{part}." for part in first[:same])


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _by(prefix: str) -> str:
    """Say who saves names like this, if one is known to."""
    who = [WRAPPERS[part] for part in prefix.rstrip(".").split(".") if part in WRAPPERS]
    return f" (as {who[0]} saves them)" if who else ""


def prefixes_differ(files: Iterable[Checkpoint], module: Collection[str]) -> bool:
    """Return whether files have other names than each other because some have a prefix that all their names share."""
    named = [set(file.tensors) for file in files]
    return any(names != named[0] for names in named) and any(not names <= set(module) for names in named)
