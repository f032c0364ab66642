"""Two checkpoints compared tensor by tensor: what differs, by how much, where, and what that looks like."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmccheck.store.checkpoint import Checkpoint, look_at
from lmccheck.store.compare import compare, difference, last_place, same_bits
from lmccheck.store.symptoms import symptoms


def state(**tensors: Tensor) -> Checkpoint:
    return look_at(tensors, Path(), "a")


def float_of(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def test_equal_checkpoints_have_no_difference() -> None:
    """The same bits under the same names are the same, in whatever order."""
    w, n = torch.randn(3, 2), torch.arange(3)
    found = compare(state(w=w, n=n), state(n=n.clone(), w=w.clone()))
    assert found.identical
    assert (found.largest, found.compared) == (0.0, 2)
    assert same_bits(state(w=w, n=n), state(n=n, w=w))


def test_another_dtype_is_another_tensor() -> None:
    """Ones in bfloat16 are no ones in float32, though the numbers are; nor are the bits of 0 in an integer's."""
    one = torch.ones(3)
    found = compare(state(w=one.bfloat16()), state(w=one))
    assert (found.identical, found.dtypes) == (False, {"w": ("bfloat16", "float32")})
    zeros = torch.zeros(3)
    assert not same_bits(state(w=zeros), state(w=zeros.int()))
    found = compare(state(w=zeros), state(w=zeros.int()))
    assert not found.identical


def test_the_tensor_that_is_furthest_off_comes_first() -> None:
    """Whatever the names."""
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    found = compare(state(a=a + 0.125, b=b + 0.5), state(a=a, b=b))
    assert [one.name for one in found.differences] == ["b", "a"]
    assert found.largest == 0.5


def test_the_largest_difference_and_its_place_are_named() -> None:
    """Of all entries that differ the furthest apart is told, with its index and in units of the last place."""
    expected = torch.tensor([[1.0, 2.0], [4.0, 0.5]])
    got = expected.clone()
    got[1, 0] += 2.0**-10
    got[0, 0] += 2.0**-12
    found = difference("w", got, expected)
    assert found is not None
    assert (found.entries, found.of, found.index, found.largest) == (2, 4, (1, 0), 2.0**-10)
    assert found.ulps == 2.0**-10 / 2.0**-21  # numbers from 4 to 8 are 2⁻²¹ apart
    assert "tensor 'w' (1, 0): got 4.001, expected 4, apart 0.0009766" in found.words


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_sign_of_zero_and_the_kind_of_nan_are_bits(dtype: torch.dtype) -> None:
    """−0 beside 0 differs in its bits and in no number; so do two NaN of different payloads."""
    found = difference("w", torch.tensor([-0.0, 1.0], dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype))
    assert found is not None
    assert (found.entries, found.largest) == (1, 0.0)
    assert "in their bits only" in found.words


def test_nan_payloads_differ_in_their_bits() -> None:
    """NaN is NaN as a number; its payload is told apart."""
    one, other = (torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC00001))
    assert difference("w", one, one.clone()) is None
    found = difference("w", one, other)
    assert found is not None
    assert found.largest == 0.0


def test_what_is_no_number_on_one_side_is_endlessly_far() -> None:
    """NaN or ∞ beside a number is an infinite difference; ∞ beside the same ∞ is none."""
    found = difference("w", torch.tensor([torch.inf, torch.nan]), torch.tensor([torch.inf, 1.0]))
    assert found is not None
    assert (found.largest, found.index, found.entries) == (math.inf, (1,), 1)


def test_integers_are_compared_exactly() -> None:
    """Numbers beyond 2⁵³ that differ by one are one apart."""
    found = difference("n", torch.tensor([2**60 + 1]), torch.tensor([2**60]))
    assert found is not None
    assert (found.largest, found.ulps) == (1.0, 1.0)


@given(st.integers(0, 2**31 - 2).filter(lambda bits: bits & 0x7F800000 != 0x7F800000))
def test_the_last_place_is_the_distance_to_the_next_number(bits: int) -> None:
    """The next larger float32 is one unit in the last place away."""
    number, after = float_of(bits), float_of(bits + 1)
    if math.isfinite(after):
        assert last_place(number, "float32") == after - number


def test_rounding_explains_another_dtype() -> None:
    """A float32 tensor stored in bfloat16 is told as rounded; one further change, and it is not."""
    w = torch.randn(64, generator=torch.Generator().manual_seed(0))
    narrow = w.bfloat16()
    found = compare(state(w=narrow), state(w=w))
    assert found.dtypes == {"w": ("bfloat16", "float32")}
    assert found.rounded
    assert 0 < found.differences[0].ulps <= 0.5
    narrow[3] *= 1.5
    assert not compare(state(w=narrow), state(w=w)).rounded


def test_large_tensors_are_compared_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place is that in the whole tensor, in whichever slice it lies."""
    monkeypatch.setattr("lmccheck.store.compare.SLICE", 4)
    got = torch.zeros(3, 5)
    got[2, 1], got[0, 4] = 2.0, 1.0
    found = difference("w", got, torch.zeros(3, 5))
    assert found is not None
    assert (found.index, found.entries) == ((2, 1), 2)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


W, V = draw(4, 4), draw(4, 4, seed=1)


@pytest.mark.parametrize(
    ("got", "expected", "said"),
    [
        ({"module.w": W, "module.v": V}, {"w": W, "v": V}, "names begin with 'module.'"),
        ({"w": W, "x": V}, {"w": W, "v": V}, "'v' is there, bit for bit, under the name 'x'"),
        ({"w": W[:2].t().contiguous()}, {"w": W[:2]}, "'w' is the expected one transposed"),
        ({"w": W.t().contiguous()}, {"w": W}, "'w' is the expected one transposed"),
        ({"w": W[[1, 0, 3, 2]]}, {"w": W}, "'w' holds the expected rows in another order"),
        ({"w": W[:, [1, 0, 3, 2]]}, {"w": W}, "'w' holds the expected columns in another order"),
        ({"w": W[:3]}, {"w": W}, "'w' lacks the last 1 rows"),
        ({"w": V, "v": W}, {"w": W, "v": V}, "'v' holds, bit for bit, what 'w' should"),
        ({"w": 1.4 * W, "v": V}, {"w": W, "v": V}, "times 1.4"),
        ({"w": torch.zeros(4, 4)}, {"w": W}, "'w' holds nothing but 0"),
        (
            {"n": torch.arange(2000.0).bfloat16()},
            {"n": torch.arange(2000)},
            "'n' is an integer buffer stored as bfloat16",
        ),
    ],
)
def test_known_mishaps_are_named(got: dict[str, Tensor], expected: dict[str, Tensor], said: str) -> None:
    """Renamed, transposed, permuted, cut, exchanged, scaled, never filled, truncated: each is told as what it is."""
    here, there = state(**got), state(**expected)
    assert any(said in line for line in symptoms(compare(here, there), here, there))


def test_exchanged_layers_are_one_line() -> None:
    """Two layers, all of whose tensors are each other's, are named as layers; half of one is told by its tensors."""
    names = {f"net.{k}.{part}": draw(4, 4, seed=10 * k + len(part)) for k in (0, 3, 7) for part in ("w", "bias")}
    swap = {"3": "7", "7": "3"}
    crossed = {n: names[".".join(swap.get(part, part) for part in n.split("."))] for n in names}
    here, there = state(**crossed), state(**names)
    assert symptoms(compare(here, there), here, there) == [
        "the layers net 3 and 7 are exchanged, in all 4 of their tensors that differ"
    ]
    half = state(**{**crossed, "net.7.w": names["net.7.w"]})
    lines = symptoms(compare(half, there), half, there)
    assert not any("exchanged" in line for line in lines)
    assert "tensor 'net.3.w' holds, bit for bit, what 'net.7.w' should" in lines


def test_an_unknown_mishap_has_no_name() -> None:
    """Noise is none of the known ones."""
    here, there = state(w=W + 0.1 * V), state(w=W)
    assert symptoms(compare(here, there), here, there) == []
