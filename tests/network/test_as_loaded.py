"""The network that is measured is the network that loads, whatever it keeps or aliases: right, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks.keeping import BY_IDENTITY, KEEPING, LENGTHS, ByParameterId, Plain, plain, state
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import LmcError

X = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (32,), generator=torch.Generator().manual_seed(1))
A, B = state(1), state(2)
# those for which there is no reason to refuse: what they keep is their own
RIGHT = {
    "InNamespace", "InDeepObject", "InCachedProperty", "InMethodCache", "InFunctionCache", "InWeakDictionary",
    "AtEvaluation", "PostHook", "OwnLoading", "Forked", "Alias", "ListAlias", "ViewAlias", "NumberKept",
    "InOwnDictionaryByIdentity", "NumberInFunctionCache", "NumberWithFlag", "LazyBuffer",
}  # fmt: skip


def own(weights: dict[str, Tensor]) -> float:
    """The loss of weights, by hand."""
    return float(F.cross_entropy(plain(weights, X), Y))


@pytest.fixture(params=sorted(KEEPING))
def build(request: pytest.FixtureRequest) -> Any:
    BY_IDENTITY.clear()
    LENGTHS.clear()
    ByParameterId.table.clear()
    return KEEPING[request.param]


def refused(build: Any, run: Callable[[], Any]) -> Any:
    """What ``run`` returns; None where it refuses, in one line, with the right blame and a mend, which is right too."""
    said = ""
    try:
        return run()
    except LmcError as error:
        said = str(error)
    assert getattr(build, "__name__", "") not in RIGHT, said
    assert "\n" not in said
    assert "mend:" in said or said.startswith("dropout_stability:")
    assert "defect of lmccheck" not in said
    return None


def pair_of(build: Any, calibrated: bool = False) -> lmccheck.ModelPair:
    """The pair of A and B; with calibration data a line is traced, too, to say how its layers look."""
    calibration = (X, Y) if calibrated else None
    return lmccheck.load_pair(A, B, model=build, data=(X, Y), calibration=calibration, device="cpu")


def fill(build: Any) -> nn.Module:
    """A module that was run with other weights, so that what it keeps, and what outlives it, is filled."""
    module: nn.Module = build()
    module.load_state_dict(state(3))
    module.eval()(X)
    return module


def require_line(found: lmccheck.Result, b: dict[str, Tensor]) -> None:
    """Every point that was measured has the loss of those weights, by hand."""
    for t, loss in zip(found.details["t"], found.details["losses"], strict=True):
        assert loss == pytest.approx(own({k: (1 - t) * A[k] + t * b[k] for k in A}), abs=1e-5)


@pytest.mark.parametrize("filled", [False, True])
def test_the_line_is_that_of_freshly_loaded_networks(build: Any, filled: bool) -> None:
    """Every point of the line has the loss of those weights, computed by hand, or the network is refused.

    Also where other weights were run in the same process before, so that what outlives a module is filled.
    """
    if filled:
        fill(build)
    pair = refused(build, lambda: pair_of(build))
    if pair is not None:
        require_line(lmccheck.linear_connectivity(pair, align="none", points=5, limit=100.0), B)


@pytest.mark.parametrize("name", ["InDictionaryByIdentity", "InDictionaryByIdentityAndName", "NumberByIdentity"])
def test_what_is_kept_by_id_is_never_trusted(name: str) -> None:
    """However seldom a number is given away again: another point of a line would then have the losses of this one."""
    with pytest.raises(LmcError, match=r"keeps what it computed from weights in a dict by id\("):
        pair_of(KEEPING[name])


def test_what_is_aligned_computes_what_it_did(build: Any) -> None:
    """The aligned weights, loaded by hand, give b's outputs; the line to them has their losses; or it is refused."""

    def aligned() -> lmccheck.Result:
        pair = pair_of(build, calibrated=True)
        spec = lmccheck.discover_symmetry(build(), (X,))
        assert spec.verify(build(), (X,)) < 1e-9 or pair.network.spec is None
        return lmccheck.linear_connectivity(pair, align="weight-matching", points=5, limit=100.0)

    strict = build.__name__ not in {
        "AtEvaluation",
        "PostHook",
        "OwnLoading",
        "ViewAlias",
        "NumberKept",
        "InFunctionCache",
        "NumberInFunctionCache",
        "NumberWithFlag",
        "LazyBuffer",
    }
    found = refused(build if strict else Plain, aligned)
    if found is not None:
        weights = found.witness.weights
        assert torch.allclose(plain(weights, X), plain(B, X), atol=1e-5)
        require_line(found, weights)


def test_a_copy_of_a_module_that_was_run_is_right_or_refused(build: Any) -> None:
    """A live module may have kept what it computed from other weights: its losses are by hand, or it is refused."""
    module = fill(build)
    pair = refused(Plain, lambda: pair_of(module))
    if pair is not None:
        require_line(lmccheck.linear_connectivity(pair, align="none", points=3, limit=100.0), B)
        assert pair.description["module"].startswith("a copy of a live module")


@pytest.mark.slow  # that the network is refused or right is tried above
def test_dropping_units_is_measured_as_loaded(build: Any) -> None:
    """The plain losses of dropout stability are those by hand, or the network is refused."""

    def dropped() -> lmccheck.Result:
        return lmccheck.dropout_stability(pair_of(build, calibrated=True), epsilon=5.0, refit=False)

    found = refused(Plain, dropped)
    if found is not None:
        assert [end["loss"] for end in found.details["endpoints"].values()] == pytest.approx([own(A), own(B)], abs=1e-5)
