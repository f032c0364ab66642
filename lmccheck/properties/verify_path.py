"""A saved path certified anew, without searching: is it what it claims to be, and is its loss low?"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from lmccheck.errors import LmcError
from lmccheck.properties.low_loss_path import concluded, require_common, structure_for
from lmccheck.result import Result

if TYPE_CHECKING:
    from lmccheck.network.pair import ModelPair
    from lmccheck.paths.path import Path

NAME = "verify_path"


def verify_path(
    pair: ModelPair,
    path: Path | str | os.PathLike[str],
    *,
    epsilon: float | str = 0.05,
    seed: int = 0,
    profile: str = "ci",
) -> Result:
    """Assert that a path joins θ_A and θ_B with max L ≤ max(L(θ_A), L(θ_B)) + ε, checking every claim it makes.

    ``path``: a Path, or a file that ``lmccheck.save_path`` wrote. Its ends must be the pair's checkpoints to the last
    bit, and every segment of the kind it says; losses are measured, nothing is taken from the file but weights.
    ``details`` as of ``ten_segment_path``. Raises CheckpointError, SymmetryError where a segment is not what it says,
    LmcError where the ends differ.
    """
    from lmccheck.paths.certify import certify
    from lmccheck.paths.path import Path, load_path

    started = time.perf_counter()
    require_common(epsilon, seed, profile, NAME)
    structure = structure_for(pair, NAME)
    if not isinstance(path, (Path, str, os.PathLike)):
        raise LmcError(f"{NAME}: path = {path!r}; expected a Path, or a file that save_path wrote")
    given = path if isinstance(path, Path) else load_path(pair.base / path if pair.base else path)
    certificate = certify(pair, structure, given, profile=profile)
    details: dict[str, Any] = {"origin": "Path" if isinstance(path, Path) else os.fspath(path)}
    return concluded(pair, NAME, given, certificate, epsilon, started, details, remark="", costs=dict)
