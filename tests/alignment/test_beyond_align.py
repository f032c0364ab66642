"""Maps beyond permutations through align(): kinds, dtypes, order, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks.beyond import found_in, pair_of
from safetensors.torch import load_file

import lmccheck
from lmccheck.alignment.beyond.freedoms import KINDS
from lmccheck.modules.random_weights import randomised

# through align()


def small(dtype: torch.dtype = torch.float32, name: str = "relu deep") -> lmccheck.ModelPair:
    """Return a pair of unrelated weights in a dtype."""
    module = found_in(name)[0]
    a, b = ({k: v.to(dtype) for k, v in randomised(module, seed).items()} for seed in (1, 2))
    return pair_of(name, a, b, calibrated=False)


@pytest.mark.parametrize("wrong", ["rotation", ("rescaling", "flips"), "rescalin"])
def test_an_unknown_kind_is_refused_in_one_line(wrong: str | tuple[str, ...]) -> None:
    """LmcError that names it, what there is, and the nearest."""
    with pytest.raises(lmccheck.LmcError, match="align: beyond = ") as raised:
        lmccheck.align(small(), beyond=wrong)
    said = str(raised.value)
    assert "\n" not in said
    assert all(kind in said for kind in KINDS)
    if wrong == "rescalin":
        assert "did you mean 'rescaling'" in said


def test_without_maps_an_alignment_is_the_permutation_alone() -> None:
    """beyond=() is what align() without it gives, bit for bit: θ_B's own numbers in its own dtype, permuted."""
    for dtype in (torch.float32, torch.float16, torch.float64):
        pair = small(dtype)
        plain, empty = lmccheck.align(pair), lmccheck.align(small(dtype), beyond=())
        expected = plain.spec.apply(pair.theta_b, plain.permutation)
        for alignment in (plain, empty):
            assert alignment.beyond == ()
            assert alignment.facts.keys() == plain.facts.keys()
            for name, value in alignment.weights.items():
                assert value.dtype == dtype
                assert torch.equal(value, expected[name])
        assert "maps" not in plain.facts


def test_where_there_is_no_map_the_permutation_is_kept() -> None:
    """A GELU network has none: beyond="all" gives the plain permutation's weights, in float64."""
    pair = small(name="gelu")
    plain, alignment = lmccheck.align(pair), lmccheck.align(pair, beyond="all")
    assert alignment.facts["maps"]["kept"] == "permutation"
    assert all(torch.equal(alignment.permutation[k], plain.permutation[k]) for k in plain.permutation)
    assert all(torch.equal(alignment.weights[k], v.double()) for k, v in plain.weights.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_saved_has_the_dtypes_of_b(dtype: torch.dtype, tmp_path: Path) -> None:
    """Weights are float64 in memory and rounded to θ_B's dtype in the file, to nearest."""
    alignment = lmccheck.align(small(dtype), beyond="rescaling")
    assert {value.dtype for value in alignment.weights.values()} == {torch.float64}
    written = load_file(lmccheck.save_aligned(alignment, tmp_path / "b.safetensors"))
    assert written.keys() == alignment.weights.keys()
    for name, value in written.items():
        assert value.dtype == dtype
        assert torch.equal(value, alignment.weights[name].to(dtype))
    assert (tmp_path / "b.permutation.safetensors").exists()


def test_the_order_and_form_of_kinds_do_not_matter() -> None:
    """A name, a list, any order, twice: one alignment, found once."""
    pair = small()
    first = lmccheck.align(pair, beyond=["sign-flips", "rescaling", "rescaling"])
    assert first.beyond == ("rescaling", "sign-flips")
    assert lmccheck.align(pair, beyond=("rescaling", "sign-flips")) is first
    assert lmccheck.align(pair, beyond="all") is not first


def test_a_given_symmetry_has_no_maps() -> None:
    """Maps are verified on the traced network; without one UnsupportedArchitecture says so in one line."""
    pair = small()
    spec = lmccheck.discover_symmetry(pair.module, pair.example_inputs())
    given = lmccheck.load_pair(pair.theta_a, pair.theta_b, model=pair.module, data=pair.data, loss="mse", symmetry=spec)
    with pytest.raises(lmccheck.UnsupportedArchitecture, match="given, not traced") as raised:
        lmccheck.align(given, beyond="all")
    assert "\n" not in str(raised.value)
