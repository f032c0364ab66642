"""Numbers known by their place: normal, independent, and the same whatever is drawn beside them."""

from __future__ import annotations

import torch

from lmccheck.evaluate.normals import key_of, normals

MASK = (1 << 64) - 1


def mix(bits: int) -> int:
    """SplitMix64's finaliser, on Python's integers."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


def test_numbers_are_those_of_the_formula() -> None:
    """Φ⁻¹ of the upper 53 bits, in integers of any size and by torch's own inverse of Φ."""
    key, golden = key_of("a", 1), 0x9E3779B97F4A7C15
    found = normals(key, torch.tensor([0, 5, 1000]), 4)
    for row, sample in zip(found, (0, 5, 1000), strict=True):
        stream = mix((key + golden * (sample + 1)) & MASK)
        for place, number in enumerate(row.tolist()):
            uniform = ((mix((stream + golden * (place + 1)) & MASK) >> 11) + 0.5) * 2.0**-53
            exact = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(uniform, dtype=torch.float64))
            assert abs(number - float(exact)) < 1e-9


def test_numbers_are_normal_and_independent() -> None:
    """Moments, and correlations between neighbours, samples and keys, of 2 · 10⁵ numbers within five errors."""
    numbers = torch.cat([normals(key_of(0, k), torch.arange(200), 500) for k in range(2)])
    error = numbers.numel() ** -0.5
    assert abs(float(numbers.mean())) < 5 * error
    assert abs(float(numbers.square().mean()) - 1) < 5 * 2**0.5 * error
    assert abs(float(numbers.pow(4).mean()) - 3) < 5 * 96**0.5 * error
    for one, other in ((numbers[:, 1:], numbers[:, :-1]), (numbers[1:], numbers[:-1]), (numbers[:200], numbers[200:])):
        assert abs(float((one * other).mean())) < 5 * one.numel() ** -0.5
