"""A stand-in for the measuring core, so that tests of the pytest face take milliseconds and no torch.

``-p fakecore`` replaces it: what a pair "measures" is written in the metadata of its checkpoint ``a``, for example
``{"value": "0.01"}``, ``{"raise": "CheckpointError"}`` or ``{"crash": "1"}``.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from lmccheck import errors
from lmccheck.gate.core import CORE, Core
from lmccheck.result import Result
from lmccheck.store.files import read_header, sha256_of

LOADED: list[str] = []


class Text(str):
    """Text of a type that xdist does not send, as torch's version is."""


class Number(float):
    """A number of a type that xdist does not send, as numpy's are."""


class Alignment:
    """What a check that aligns leaves as its witness."""

    def ship(self, target, files):
        Path(target).write_bytes(b"aligned")


class ManyAlignment:
    """What a check of a set leaves as its witness."""

    def ship(self, target, files):
        target.mkdir()
        for file in files:
            (target / file).write_bytes(b"aligned")


def load_pair(
    a,
    b,
    *,
    model,
    data,
    calibration=None,
    loss="cross_entropy",
    device="auto",
    base=None,
    name=None,
    sha256=None,
    symmetry=None,
):
    LOADED.append(name)
    files = {side: Path(base) / path for side, path in (("a", a), ("b", b))}
    facts = read_header(files["a"]).metadata
    if "raise" in facts:
        raise getattr(errors, facts["raise"])(f"{a}: broken on purpose, got ashes, expected weights")
    description = {
        "files": {
            side: {"path": str(path), "sha256": sha256_of(path), "parameters": 4} for side, path in files.items()
        },
        "model": str(model),
        "data": str(data),
        "calibration": str(calibration),
        "loss": str(loss),
        "symmetry": str(symmetry),
        "device": device,
        "loads": len(LOADED),
    }
    description["model"] = Text(description["model"])
    return SimpleNamespace(name=name, device=device, facts=facts, description=description)


def load_set(models, *, name=None, sha256=(), **given):
    """Like ``load_pair``: what the set measures is written in its first file."""
    pair = load_pair(models[0], models[1], name=name, **given)
    names = [Path(model).stem for model in models]
    facts = {"sha256": list(sha256), "files": {n: {"sha256": n} for n in names}}
    return SimpleNamespace(**{**vars(pair), "names": names, "description": {**pair.description, **facts}})


def run(property_name, loaded, *, seed, profile, **settings):
    measure = run_set if property_name == "set_connectivity" else run_pair
    return measure(property_name, loaded, **settings)


def run_set(property_name, models, *, method="merge-many", limit=0.05, points=5, **settings):
    """The worst pair is that of the first and the last model; all others are at half its barrier."""
    result = run_pair(property_name, models, limit=limit, points=points)
    names, count = models.names, len(models.names)

    def barrier(i, j):
        return 0.0 if i == j else result.value / (1 if {i, j} == {0, count - 1} else 2)

    details = {
        **result.details,
        "names": names,
        "matrix": [[barrier(i, j) for j in range(count)] for i in range(count)],
        "matrix_naive": [[1.1 * (i != j) for j in range(count)] for i in range(count)],
        "above_limit": [] if result.passed else [[names[0], names[-1]]],
        "worst_pair": [names[0], names[-1]],
        "alignment": {"method": method},
        "settings": settings,
    }
    return replace(result, witness=ManyAlignment(), details=details)


def run_pair(property_name, pair, *, align="weight-matching", limit=0.05, points=25):
    if "crash" in pair.facts:
        raise RuntimeError("a bug, not the user's mistake")
    if "raise_in_run" in pair.facts:
        raise errors.SymmetryError("layer 3: got a wrong permutation, expected f(π·θ) = f(θ)")
    value = Number(pair.facts.get("value", "0.01"))
    limit = 0.1 if isinstance(limit, str) else limit
    verdict = pair.facts.get("verdict") or ("pass" if value <= limit else "fail")
    details = {
        "t": [0.0, 0.5, 1.0],
        "losses": [0.1, 0.1 + value, 0.1],
        "naive_losses": [0.1, 1.2, float("nan")],
        "barrier": value,
        "barrier_naive": 1.1,
        "worst_t": 0.5,
        "loss_a": 0.1,
        "loss_b": 0.1,
        "model": pair.description["model"],
        "data": pair.description["data"],
        "loss": pair.description["loss"],
        "device": pair.description["device"],
        "align": align,
        "points": points,
    }
    if "note" in pair.facts:
        details["notes"] = [pair.facts["note"]]
    if verdict != "pass":
        details["failure"] = [
            f"linear_connectivity failed for {pair.name}",
            f"measured {value:.4g} nats, limit {limit:.4g} nats",
            "at t = 0.5",
            "worst seen 0.2 at t = 0.5; smallest counterexample t = 0.25",
            "endpoint losses: a 0.1 nats, b 0.1 nats",
        ]
    return Result(
        property=property_name,
        verdict=verdict,
        value=value,
        limit=limit,
        unit="nats",
        witness=Alignment() if align != "none" else None,
        evaluations=3,
        seconds=0.5,
        details=details,
    )


class FakeCore(Core):
    """Loads from headers alone, and measures what they say."""

    load_pair = staticmethod(load_pair)
    load_set = staticmethod(load_set)
    run = staticmethod(run)

    def distinct(self, pair):
        return pair

    def call(self, property_name, pair, **settings):
        return run(property_name, pair, seed=0, profile="ci", **settings)


def pytest_configure(config):
    config.stash[CORE] = FakeCore()
