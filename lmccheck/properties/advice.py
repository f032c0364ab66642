"""What may help where a check does not pass, and was not tried: nothing that cannot, nothing that loosens a limit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError

if TYPE_CHECKING:
    from lmccheck.network.network import Network
    from lmccheck.symmetry.structure import Structure

WANTING = {"calibration": False, "traced": True}
THOROUGH = "profile = 'thorough' (--lmc-profile=thorough for manifests)"


APART = "checkpoints that share more of their training; no setting of this check is left to try"
DROPPING = "networks that were trained with dropout, or wider ones; no setting of this check is left to try"


def other_alignment(network: Network, align: str, found: Mapping[str, Any] | None = None) -> list[str]:
    """Return which method of alignment may do better than the one that was used; none where no unit may be permuted.

    ``best`` runs all it can, so that only those it does not run are left after it. ``found`` says what the method did
    (``Alignment.summary``): where it left every unit in its place, the networks are in one order, and none is named.
    """
    from lmccheck.alignment.methods import METHODS, starts

    try:
        movable = bool(network.spec.groups)
    except LmcError:  # no symmetry, nothing to align by
        return []
    groups = (found or {}).get("groups", {})
    if not movable or (align != "none" and groups and not any(facts["share_moved"] for facts in groups.values())):
        return []
    compared = (*starts(), "learned", "best")
    has = {"calibration": network.calibration is not None, "traced": network.traced is not None}
    if align not in ("best", "learned") and all(has.values()):
        return ["align = 'best', which runs every method and takes what is lowest on calibration data"]
    if align == "none":
        return ["align = 'weight-matching'", *_for_want_of(has)]
    others = [name for name in METHODS.names() if name not in (*compared, align)]
    return [
        *(f"align = '{name}'" for name in others if all(has[need] for need in METHODS.get(name).needs)),
        *_for_want_of(has),
    ]


def _for_want_of(has: Mapping[str, bool]) -> list[str]:
    """With calibration data, which is missing, more can be tried; a spec that was handed in stands in the way of it."""
    return ["calibration data, by which align = 'best' compares every method"] if has == WANTING else []


def maps_beyond(network: Network, align: str, used: Collection[str]) -> list[str]:
    """Return which maps beyond permutations the network has that were not used; each is verified here."""
    from lmccheck.alignment.beyond.freedoms import KINDS, Trial, find_freedoms
    from lmccheck.alignment.beyond.stream import find_streams

    rest = tuple(kind for kind in KINDS if kind not in used)
    if not rest or network.given is not None:
        return []
    try:
        derived = network.trace_for("maps beyond permutations need", "leave out `symmetry`")
        trial = Trial(network.module, network.example_inputs())
        kinds = {freedom.kind for freedom in find_freedoms(derived, trial, rest)}
        if "stream-rotation" in rest and find_streams(derived, trial)[0]:
            kinds.add("stream-rotation")
    except LmcError:
        return []
    named, beside = ", ".join(f'"{kind}"' for kind in rest if kind in kinds), " beside another align than 'none'"
    return [f"beyond = [{named}]{beside if align == 'none' else ''}"] if named else []


def repairing(network: Network) -> list[str]:
    """Return that REPAIR may help, where it has a layer to mend that BatchNorm does not mend already."""
    from lmccheck.evaluate.repair import repairable

    if network.calibration is None or network.given is not None:
        return []
    try:
        layers, _ = repairable(network.trace_for("REPAIR needs", "use repair = 'bn'"))
    except LmcError:
        return []
    return ["repair = 'repair', which mends the statistics of the merged layers"] if layers else []


def more_data(network: Network, what: str) -> list[str]:
    """Return that more calibration data may help ``what``, unless it is what is measured on: that is all there is."""
    data = network.calibration
    if data is None or network.fitted_samples:
        return []
    return [f"more calibration data for {what} (now {data.samples} samples)"]


def wider_search(network: Network, structure: Structure, settings: Mapping[str, Any]) -> list[str]:
    """Return what may find better units to keep than a search with these settings (keep, refit, profile) did.

    More random subsets help only where not all of them were tried.
    """
    from lmccheck.dropping.choose_units import RANDOM, unit_counts

    keep, profile = settings["keep"], settings["profile"]
    shares = list(keep.values()) if isinstance(keep, Mapping) else [keep]
    kept = unit_counts(structure, keep)
    subsets = math.prod(math.comb(structure.sizes[group], count) for group, count in kept.items())
    found = [
        *([] if settings["refit"] else ["refit = true"]),
        *([THOROUGH] if profile != "thorough" and subsets > RANDOM[profile] else []),
        *(["keep = 0.5, the most that the theorem allows"] if min(shares) < 0.5 else []),
        *more_data(network, "the search"),
    ]
    return found or [DROPPING]
