"""A saved path certified anew, without searching: is it what it claims to be, and is its loss low?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lmccheck.finding import Finding
from lmccheck.properties.certified_line import Certify
from lmccheck.properties.early_path import early_of, settled_path
from lmccheck.properties.low_loss_path import PASSES, Certified, limit_of
from lmccheck.properties.registry import check
from lmccheck.properties.settings import EarlyFail, Limit, Profile, SavedPath, Seed

if TYPE_CHECKING:
    from lmccheck.network.pair import ModelPair


@check(
    of="pair",
    claim="max L ≤ max(L(θ_A), L(θ_B)) + ε along a saved path",
    quantifier="this path",
    certifies="that every segment is of the kind it says, and its largest loss as the path's own property does",
)
def verify_path(
    pair: ModelPair,
    path: SavedPath,
    *,
    epsilon: Limit | None = None,
    certify: Certify = "auto",
    early_fail: EarlyFail = False,
    seed: Seed = 0,
    profile: Profile = "ci",
) -> Finding:
    """Assert that a path joins θ_A and θ_B with max L ≤ max(L(θ_A), L(θ_B)) + ε, checking every claim it makes.

    ``path``: a Path, or a file that ``lmccheck.save_path`` wrote. Its ends must be the pair's checkpoints to the last
    bit, its names and ties those of the network, and every segment of the kind it says; at every breakpoint outputs
    must be finite and constant segments must leave the loss of every sample as it is. A chain of trained bends (kinds
    l) claims nothing: it is sampled anew, its end may be a copy of θ_B that computes the same on the data, and outputs
    must be finite wherever it is looked at. Losses are measured, nothing is
    taken from the file but weights and, where ``epsilon`` is not given, the limit that the path was made for.
    ``certify``, ``early_fail`` and ``details`` as of ``ten_segment_path``. Raises CheckpointError: WitnessError, which
    is a SymmetryError too, where a segment is not what it says.
    """
    from lmccheck.paths.certify import certify as certified
    from lmccheck.paths.chain import sampled_chain
    from lmccheck.paths.path import Path, load_path

    given = path if isinstance(path, Path) else load_path(pair.base / path)
    origin = "Path" if isinstance(path, Path) else os.fspath(path)
    advice = ["ten_segment_path, which searches for another one"]
    limit, facts, notes = limit_of(epsilon, given.facts.get("epsilon"))
    if (early := early_of(pair, early_fail, seed)) is not None:
        of_theory = None if given.is_chain else pair.network.structure("verify_path")
        if high := settled_path(pair, given, limit, early, profile, of_theory):
            return high.finding("this path is too high", advice, {"origin": origin, **facts}, notes)
    if given.is_chain:
        known = sampled_chain(pair, given, profile=profile, everywhere=True)
    else:
        structure = pair.network.structure("verify_path")
        passes = PASSES.get(certify, {}).get(profile, 0.0)
        known = certified(pair, structure, given, profile=profile, everywhere=True, passes=passes)
    found = Certified(pair, given, known)
    measured = found.settled(found.finding(limit, {"origin": origin, **facts}, notes), certify)
    return found.explained(measured, "this path is too high", advice)
