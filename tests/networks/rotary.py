"""Attention with rotary positions in its usual forms, and its planes multiplied by complex numbers, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = dict[str, Tensor]
WIDTH = 16


@dataclass(frozen=True)
class Form:
    """How an attention turns its queries and keys: ``heads`` and ``keys`` of ``size``, the first ``turned`` of them.

    ``pairs``: ``half`` for coordinates j and j + turned/2, ``interleaved`` for 2j and 2j + 1. ``layers``: queries, keys
    and values of their own, ``fused`` one after the other, or ``per head``. ``norm`` of queries and keys: of what, with
    gains or not.
    """

    heads: int = 4
    keys: int = 2
    size: int = 4
    turned: int = 4
    pairs: str = "half"
    layers: str = "separate"
    bias: bool = True
    norm: str = ""

    @property
    def planes(self) -> tuple[list[int], list[int]]:
        """The coordinates of a head that make its planes."""
        r = self.turned
        if self.pairs == "half":
            return list(range(r // 2)), list(range(r // 2, r))
        return list(range(0, r, 2)), list(range(1, r, 2))

    def places(self, which: str, head: int) -> tuple[str, list[int]]:
        """Return the layer that makes a head's queries, keys or values, and at which of its outputs."""
        d, counts = self.size, {"q": self.heads, "k": self.keys, "v": self.keys}
        if self.layers == "separate":
            return which, list(range(head * d, head * d + d))
        if self.layers == "fused":
            before = {"q": 0, "k": self.heads, "v": self.heads + self.keys}[which]
            return "qkv", list(range((before + head) * d, (before + head + 1) * d))
        assert len(set(counts.values())) == 1  # per head: as GPT-NeoX has it
        start = (3 * head + "qkv".index(which)) * d
        return "qkv", list(range(start, start + d))


class RotaryNet(nn.Module):
    """A causal block on tokens: rotary attention and a GELU layer, no norm of the stream, logits of 11."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form, d = form, form.size
        self.embed = nn.Embedding(11, WIDTH)
        widths = {"q": form.heads * d, "k": form.keys * d, "v": form.keys * d}
        if form.layers != "separate":
            widths = {"qkv": sum(widths.values())}
        for name, width in widths.items():
            setattr(self, name, nn.Linear(WIDTH, width, bias=form.bias))
        if form.norm == "gains":
            self.norm_q, self.norm_k = nn.RMSNorm(d), nn.RMSNorm(d)
        self.out = nn.Linear(form.heads * d, WIDTH)
        self.up, self.down, self.head = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH), nn.Linear(WIDTH, 11)

    def _turn(self, x: Tensor) -> Tensor:
        form, r = self.form, self.form.turned
        speeds = 3.0 ** -torch.arange(r // 2, dtype=x.dtype)
        angles = torch.outer(torch.arange(x.shape[2], dtype=x.dtype), speeds)
        cosine, sine = angles.cos(), angles.sin()
        moving, still = x[..., :r], x[..., r:]
        if form.pairs == "half":
            one, two = moving.chunk(2, -1)
            moving = torch.cat([one * cosine - two * sine, two * cosine + one * sine], -1)
        else:
            one, two = moving.unflatten(-1, (-1, 2)).unbind(-1)
            moving = torch.stack([one * cosine - two * sine, two * cosine + one * sine], -1).flatten(-2)
        return torch.cat([moving, still], -1) if r < form.size else moving

    def forward(self, index: Tensor) -> Tensor:
        form, x = self.form, self.embed(index)
        n, t, d = *index.shape, form.size
        counts = (form.heads, form.keys, form.keys)
        if form.layers == "separate":
            parts = [layer(x).view(n, t, h, d) for layer, h in zip((self.q, self.k, self.v), counts, strict=True)]
        elif form.layers == "fused":
            parts = [y.view(n, t, -1, d) for y in self.qkv(x).split([h * d for h in counts], -1)]
        else:
            parts = list(self.qkv(x).view(n, t, form.heads, 3 * d).chunk(3, -1))
        q, k, v = (part.transpose(1, 2) for part in parts)
        if form.norm == "gains":
            q, k = self.norm_q(q), self.norm_k(k)
        elif form.norm:
            q, k = F.rms_norm(q, (d,)), F.rms_norm(k, (d,))
        q, k = self._turn(q), self._turn(k)
        k, v = (z.repeat_interleave(form.heads // form.keys, 1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return self.head(x + self.down(F.gelu(self.up(x))))


FORMS = {
    "llama": Form(bias=False),
    "qwen2": Form(heads=6, keys=3),
    "no groups": Form(heads=3, keys=3),
    "interleaved": Form(pairs="interleaved"),
    "partial": Form(size=8, turned=4),
    "partial, interleaved": Form(size=6, turned=4, pairs="interleaved"),
    "fused": Form(heads=2, keys=2, layers="fused"),
    "fused, grouped": Form(heads=4, keys=2, layers="fused"),
    "per head, partial": Form(heads=2, keys=2, size=6, turned=4, layers="per head"),
}
NORMED = {"norm": Form(norm="plain"), "norm with gains": Form(norm="gains")}
LONE = {"one key": replace(FORMS["llama"], keys=1), "one head": Form(heads=1, keys=1)}


def multiplied(form: Form, weights: Weights, factors: Tensor, names: Mapping[str, str] | None = None) -> Weights:
    """Return ``weights`` with plane j of key head g times ``factors[g, j]``, and its queries times 1/conj of that.

    ``names``: what the layers q, k and v, or qkv, are called.
    """
    result = {name: value.clone() for name, value in weights.items()}
    first, second = form.planes
    for which, heads in (("k", form.keys), ("q", form.heads)):
        for head in range(heads):
            layer, places = form.places(which, head)
            called = (names or {}).get(layer, layer)
            for name in (f"{called}.weight", f"{called}.bias"):
                if name not in weights:
                    continue
                for j in range(len(first)):
                    c = complex(factors[head * form.keys // heads, j])
                    c = c if which == "k" else 1 / c.conjugate()
                    x, y = places[first[j]], places[second[j]]
                    a, b = weights[name][x], weights[name][y]
                    result[name][x], result[name][y] = c.real * a - c.imag * b, c.imag * a + c.real * b
    return result
