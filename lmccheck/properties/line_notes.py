"""What is to be said of a line beside its losses: of buffers and dtypes, and of what moved b."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmccheck.properties.remarks import calibration_remarks, precision_of

if TYPE_CHECKING:
    from lmccheck.alignment.api import Alignment
    from lmccheck.evaluate.evaluator import Evaluator
    from lmccheck.network.pair import ModelPair


def pair_notes(pair: ModelPair, evaluator: Evaluator, alignment: Alignment | None) -> list[str]:
    """Return what is to be said of interpolating a pair under an alignment: buffers, dtypes, what moved b."""
    from lmccheck.modules.constants import differing_integers

    notes = []
    buffers = [name for name in evaluator.buffers if name not in pair.network.constants]
    if buffers:
        notes.append(f"float buffers interpolated like weights: {', '.join(buffers[:3])}")
    integers = differing_integers(pair.module, pair.theta_a, pair.theta_b)
    if integers:
        notes.append(f"integer buffers differ, between a and b the nearer end's are taken: {', '.join(integers[:3])}")
    stored = {facts["dtype"] for facts in pair.description["files"].values()}
    if stored - {"float32", "float64"}:
        notes.append(f"stored as {', '.join(sorted(stored))}, evaluated in {precision_of(evaluator)}")
    return notes if alignment is None else [*notes, *_alignment_notes(pair, alignment)]


TURNED = "b is a permuted copy of a: that aligned they are one network says nothing about two; mend: name another b"


def _alignment_notes(pair: ModelPair, alignment: Alignment) -> list[str]:
    """Say what moved b, whence that was known to be allowed, and what stayed in place."""
    from lmccheck.alignment.kept import kept_note
    from lmccheck.network.endpoint import same_weights
    from lmccheck.symmetry.experts import STAY

    notes = [_beyond_note(alignment)] if alignment.beyond else []
    if not alignment.is_identity and same_weights(pair.a, replace(pair.b, theta=alignment.weights)):
        notes.append(TURNED)
    notes += calibration_remarks(alignment.method, alignment.facts)
    if pair.symmetry is not None:
        origin = pair.description["symmetry"]["origin"]
        source = "given" if origin == "given" else f"read from {origin}"
        notes.append(f"permutation spec {source}, not derived from the traced network; verified on the data")
    if not alignment.spec.groups:
        notes.append("no unit group may be permuted; aligned equals unaligned")
    elif kept := kept_note(alignment.facts, alignment.method):
        notes += kept
    elif alignment.is_identity:
        notes.append("weight matching kept the identity: the units were already in order")
    if left := [frozen.reason for frozen in alignment.spec.frozen if frozen.reason.endswith(STAY)]:
        notes.append(left[0] + (f" (and {len(left) - 1} more lists)" if len(left) > 1 else ""))
    if alignment.spec.unruled:
        ops = ", ".join(sorted(alignment.spec.unruled))
        notes.append(f"ops without a symmetry rule froze what they touch: {ops}")
    return notes


def _beyond_note(alignment: Alignment) -> str:
    """Say that more than a permutation was applied, and what."""
    facts = alignment.facts["maps"]
    used = {kind: len(groups) for kind, groups in facts["groups"].items() if groups}
    if facts["kept"] in ("permutation", "permutation alone") or not used:
        return f"maps beyond permutations ({', '.join(alignment.beyond)}): none was of use, b is permuted only"
    named = ", ".join(f"{kind} of {count} group(s)" for kind, count in used.items())
    return f"b is not only permuted but mapped beyond permutations, its function kept: {named}"
