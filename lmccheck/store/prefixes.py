"""Names of tensors that differ by a prefix only, as wrappers and training scripts leave them; no torch here."""

from __future__ import annotations

from collections.abc import Collection

from lmccheck.shown import some

WRAPPERS = {  # parts of names that a wrapper adds wherever it stands
    "module": "DataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}


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
