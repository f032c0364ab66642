"""Normal numbers known by their place: the same whatever is drawn beside them, in whatever batch, on any device."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # of the steps of a counter (Steele et al. 2014)
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of its finaliser
TOGETHER = 1 << 22  # numbers that are drawn at a time


def key_of(*place: object) -> int:
    """Return 64 bits for a place such as (seed, draw, layer, call), as a signed number."""
    said = "\0".join(str(part) for part in place).encode()
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "little", signed=True)


def normals(key: int, samples: Tensor, count: int) -> Tensor:
    """Return independent standard normal numbers, (samples, count) float64, on the device of ``samples``.

    The number of sample s and place e is Φ⁻¹((h + ½)/2⁵³), h the upper 53 bits of mix(mix(key + γ(s+1)) + γ(e+1)) mod
    2⁶⁴ with SplitMix64's γ and mix. So it depends on ``key``, s and e alone. ``samples``: their numbers, (n,) int64.
    Source: Salmon et al. 2011 for generators by counters; Steele, Lea and Flood 2014 for this mix.

    >>> one, other = normals(7, torch.tensor([3, 4]), 5), normals(7, torch.tensor([4]), 3)
    >>> torch.equal(one[1:, :3], other)
    True
    """
    places = torch.arange(1, count + 1, device=samples.device) * _signed(GOLDEN)
    streams = _mixed((samples + 1) * _signed(GOLDEN) + key)
    bits = _mixed(streams[:, None] + places)
    uniform = (_shifted(bits, 11).double() + 0.5) * 2.0**-53
    drawn: Tensor = torch.special.ndtri(uniform)
    return drawn


def _mixed(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * _signed(FIRST)
    bits = (bits ^ _shifted(bits, 27)) * _signed(SECOND)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros, which torch does not do to signed numbers."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >= 1 << 63 else bits
