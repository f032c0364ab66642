"""A permutation spec for a reader: which units may move, what stays and why, which ops had no rule, what to ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tabulate import tabulate

from lmccheck.errors import printable
from lmccheck.report.escape import PIPED, escaped

if TYPE_CHECKING:
    from lmccheck.symmetry.capabilities import Capability
    from lmccheck.symmetry.slots import Slot, UnitGroup
    from lmccheck.symmetry.spec import PermutationSpec
    from lmccheck.symmetry.structure import Structure

SHOWN_TENSORS = 2
SHORT = 60  # characters of what is said in a table, and not below it


def heading(title: str, spec: PermutationSpec, verified: str) -> str:
    """Return the first line: the model, how much of what it stores may move, and what verification found."""
    groups = f"{len(spec.groups)} unit group{'' if len(spec.groups) == 1 else 's'}"
    return f"{title}, {groups}, {100 * spec.free_share:.4g} % free to move; {verified}"


def groups_table(
    spec: PermutationSpec, fmt: str = "simple", everything: bool = False, structure: Structure | None = None
) -> str:
    """Return one row per unit group, and below the table why the units of some cannot be dropped.

    Long lists of tensors are cut short unless ``everything`` is asked for. ``structure``: of the traced network, which
    dropping goes by.
    """
    limit = None if everything else SHOWN_TENSORS
    reasons: dict[str, int] = {}
    rows = [
        [
            group.name,
            str(group.size),
            f"{group.copies} × {', '.join(group.within)}" if group.within else "",
            str(len(group.slots)),
            _droppable(group, structure, reasons),
            _tensors([slot for slot in group.slots if slot.role == "producer"], limit),
            _tensors([slot for slot in group.slots if slot.role == "consumer"], limit),
        ]
        for group in spec.groups
    ]
    headers = ["group", "size", "within", "slots", "droppable", "made by", "read by"]
    if not any(group.within for group in spec.groups):
        rows, headers = [[*row[:2], *row[3:]] for row in rows], [header for header in headers if header != "within"]
    table = _draw(headers, rows, fmt, right=("size", "slots"))
    return "\n".join([table, *(f"({number}) {reason}" for reason, number in reasons.items())])


def _droppable(group: UnitGroup, structure: Structure | None, reasons: dict[str, int]) -> str:
    """Say whether a group's units can be dropped; units inside others go with these."""
    outer = group.within[0] if group.within else group.name
    if structure is None:
        why = group.bound
    elif outer in structure.sizes:
        return "with its group" if group.within else "yes"
    else:
        why = structure.whole.get(outer, group.bound)
    return f"no ({reasons.setdefault(why, len(reasons) + 1)})" if why else "yes"


def frozen_table(spec: PermutationSpec, fmt: str = "simple", everything: bool = False) -> str:
    """Return what stays in place: a row per reason, or per dimension of a tensor when ``everything`` is asked for."""
    if everything:
        every = [[item.tensor, str(item.dim), str(item.size), item.reason] for item in spec.frozen]
        return _draw(["frozen tensor", "dim", "positions", "why"], every, fmt, right=("dim", "positions"))
    merged: dict[str, tuple[set[str], int]] = {}
    for item in spec.frozen:
        tensors, size = merged.get(item.reason, (set(), 0))
        merged[item.reason] = tensors | {item.tensor}, size + item.size
    rows = [[reason, str(len(tensors)), str(size)] for reason, (tensors, size) in merged.items()]
    return _draw(["frozen because", "tensors", "positions"], rows, fmt, right=("tensors", "positions"))


def capabilities_table(asked: Mapping[str, Capability], fmt: str = "simple") -> str:
    """Return what can be asked of the network: a row per property, how it can be known, and below the table why not."""
    reasons: dict[str, int] = {}
    rows = []
    for name, found in asked.items():
        said = f"{found.why}; mend: {found.mend}" if found.mend else found.why
        short = len(said) <= SHORT
        rows.append([name, found.how, said if short else f"({reasons.setdefault(said, len(reasons) + 1)})"])
    table = _draw(["property", "how", "what of it"], rows, fmt, right=())
    return "\n".join([table, *(f"({number}) {reason}" for reason, number in reasons.items())])


def describe(
    title: str,
    spec: PermutationSpec,
    verified: str,
    fmt: str = "simple",
    everything: bool = False,
    structure: Structure | None = None,
) -> str:
    """Return the whole text: heading, groups, frozen axes, ops without a rule; what to ask of a traced network."""
    parts = [heading(title, spec, verified)]
    if spec.groups:
        parts.append(groups_table(spec, fmt, everything, structure))
    if spec.frozen:
        parts.append(frozen_table(spec, fmt, everything))
    if spec.unruled:
        ops = ", ".join(f"{op} ({count})" for op, count in sorted(spec.unruled.items()))
        parts.append(f"ops without a rule, which freeze what they touch: {ops}")
    if structure is not None:
        from lmccheck.symmetry.capabilities import capabilities

        parts.append(capabilities_table(capabilities(structure), fmt))
    return "\n\n".join(parts)


def _tensors(slots: Iterable[Slot], limit: int | None) -> str:
    """Return the tensors of slots, each once, those of one module together.

    ``norm.weight``, ``norm.bias`` and ``fc.weight`` read ``norm.{weight,bias}, fc.weight``.
    """
    by_module: dict[str, dict[str, None]] = {}
    for slot in slots:
        module, _, name = slot.tensor.rpartition(".")
        by_module.setdefault(module, {})[name] = None
    texts = []
    for module, names in by_module.items():
        joined = ",".join(names)
        texts.append(f"{module}{'.' if module else ''}{joined if len(names) == 1 else '{' + joined + '}'}")
    if limit is not None and len(texts) > limit:
        texts[limit:] = [f"{len(texts) - limit} more"]
    return ", ".join(texts)


def _draw(headers: Sequence[str], rows: list[list[str]], fmt: str, right: Sequence[str]) -> str:
    rows = [[escaped(text, fmt) if fmt in PIPED else printable(text) for text in row] for row in rows]
    align = ["right" if header in right else "left" for header in headers]
    return tabulate(rows, headers=headers, tablefmt=fmt, disable_numparse=True, colalign=align)
