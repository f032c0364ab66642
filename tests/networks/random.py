"""Blocks that random networks are made of.

A builder is a function of ``pick`` (which chooses one of several options) and of the shape that comes in; it returns a
module. Streams are vectors (n, width), tokens (n, length, width) or images (n, width, height, width). Whatever draws
the options, Hypothesis or ``random``, decides the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.written import Written, param, said

Pick = Callable[[Sequence[Any]], Any]
Shape = tuple[int, ...]
Builder = Callable[[Pick, Shape, int], nn.Module]  # the int says how deep networks inside the block may be nested
WIDTHS = [2, 3, 4, 5, 6, 8, 12]
KEEPING: dict[int, list[Builder]] = {2: [], 3: [], 4: []}  # rank -> blocks that change nothing but the width
CHANGING: dict[int, list[Builder]] = {2: [], 3: [], 4: []}  # rank -> blocks that change other sizes, or the rank
NESTING: dict[int, list[Builder]] = {2: [], 3: [], 4: []}  # rank -> blocks made of networks


def do(says: str, function: Callable[..., Tensor], *parts: Any) -> nn.Module:
    """A function of one tensor and of some parts, that prints as ``says(parts)``."""
    return Written(function, *parts, says=says)


def weight(*shape: int) -> nn.Parameter:
    return param(*shape, scale=0.5)


class Chain(nn.Sequential):
    """Modules one after the other, printed in one line."""

    def __repr__(self) -> str:
        return "[" + " > ".join(map(said, self)) + "]"


def keeping(*ranks: int) -> Callable[[Builder], Builder]:
    """Register a block for streams of these ranks that keeps every size but the width."""
    return _register(KEEPING, ranks)


def changing(*ranks: int) -> Callable[[Builder], Builder]:
    """Register a block that changes sizes other than the width."""
    return _register(CHANGING, ranks)


def nesting(*ranks: int) -> Callable[[Builder], Builder]:
    """Register a block that is made of smaller networks and keeps every size but the width."""
    return _register(NESTING, ranks)


def _register(table: dict[int, list[Builder]], ranks: Sequence[int]) -> Callable[[Builder], Builder]:
    def add(builder: Builder) -> Builder:
        for rank in ranks:
            table[rank].append(builder)
        return builder

    return add


def unit_dim(shape: Shape) -> int:
    """Return the dimension of the units: 1 in images, the last one elsewhere."""
    return 1 if len(shape) == 4 else -1


def width(shape: Shape) -> int:
    return shape[unit_dim(shape)]


def divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def project(shape: Shape, out: int, bias: bool = True) -> nn.Module:
    """A linear map of the units, at every other position alike."""
    return nn.Conv2d(shape[1], out, 1, bias=bias) if len(shape) == 4 else nn.Linear(shape[-1], out, bias=bias)


def shape_after(module: nn.Module, shape: Shape) -> Shape:
    with torch.no_grad():
        return tuple(module.eval()(torch.randn(shape)).shape)


def network(pick: Pick, shape: Shape, depth: int, most: int = 3, free: bool = True, out: int | None = None) -> Chain:
    """A chain of up to ``most`` random blocks, ending in ``out`` units if given; ``free`` lets other sizes change."""
    parts: list[nn.Module] = []
    for _ in range(pick(range(1, most + 1))):
        menu = [*KEEPING[len(shape)], *(NESTING[len(shape)] * 2 if depth else [])]
        builder = pick([*menu, *(CHANGING[len(shape)] if free else [])])
        parts.append(builder(pick, shape, depth - 1))
        shape = shape_after(parts[-1], shape)
        if width(shape) > 24:
            parts.append(project(shape, pick(WIDTHS)))
            shape = shape_after(parts[-1], shape)
    if out is not None and width(shape) != out:
        parts.append(project(shape, out))
    return Chain(*parts)


# -- layers --------------------------------------------------------------------------------------------------------


@keeping(2, 3, 4)
def linear(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    return project(shape, pick(WIDTHS), pick([True, False]))


@keeping(2, 3, 4)
def hidden(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    return Chain(project(shape, pick(WIDTHS)), activation(pick, shape, depth))


@keeping(2, 3, 4)
def activation(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    return pick([nn.ReLU(), nn.GELU(), nn.Tanh(), nn.SiLU(), nn.Hardswish(), nn.Softplus(), nn.LeakyReLU()])


@keeping(2, 3)
def norm(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    w = shape[-1]
    plain = [nn.LayerNorm(w), nn.RMSNorm(w), do("rms", _rms, weight(w)), do("unit", lambda x: F.normalize(x, dim=-1))]
    if len(shape) == 2:
        per_group = nn.GroupNorm(pick(divisors(w)), w)
        return pick([*plain, nn.BatchNorm1d(w), per_group, nn.BatchNorm1d(w, affine=False), nn.PReLU(w)])
    over_tokens = nn.BatchNorm1d(shape[1]), nn.LayerNorm(shape[1:]), nn.InstanceNorm1d(shape[1], affine=True)
    return pick([*plain, *over_tokens[: 3 if w > 1 else 2], do("by unit", _transposed, nn.BatchNorm1d(w))])


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def _transposed(x: Tensor, inner: nn.Module) -> Tensor:
    return inner(x.transpose(1, 2)).transpose(1, 2)


@keeping(4)
def image_norm(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    w = shape[1]
    last = do("channels last", lambda x, inner: inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(w))
    moving = nn.BatchNorm2d(w, track_running_stats=False)
    members = nn.GroupNorm(pick(divisors(w)), w)
    return pick([nn.BatchNorm2d(w), members, members, nn.InstanceNorm2d(w, affine=True), moving, last, nn.PReLU(w)])


@keeping(4)
def convolution(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    w, padding = shape[1], pick(["zeros", "circular"])
    kind = pick(["plain", "depthwise", "grouped", "separable", "dilated"])
    if kind == "depthwise":
        return nn.Conv2d(w, w * pick([1, 2]), 3, padding=1, groups=w)
    if kind == "grouped":
        groups = pick(divisors(w))
        return nn.Conv2d(w, groups * pick([1, 2, 3]), 3, padding=1, groups=groups, padding_mode=padding)
    if kind == "separable":
        return Chain(nn.Conv2d(w, w, 3, padding=1, groups=w), nn.ReLU(), nn.Conv2d(w, pick(WIDTHS), 1))
    if kind == "dilated":
        return nn.Conv2d(w, pick(WIDTHS), 3, padding=2, dilation=2)
    return nn.Conv2d(w, pick(WIDTHS), 3, padding=1, padding_mode=padding, bias=pick([True, False]))


@changing(4)
def strided(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    w, out = shape[1], pick(WIDTHS)
    up = nn.ConvTranspose2d(w, out, 2, stride=2) if shape[2] < 5 else nn.Conv2d(w, out, 1)
    return pick([nn.Conv2d(w, out, 3, stride=2, padding=1), up, nn.ConvTranspose2d(w, out, 3, padding=1)])


@changing(4)
def resized(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    w, small = shape[1], shape[2] < 5 and shape[3] < 5
    options: list[nn.Module] = [nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d((1, 2)), nn.MaxPool2d(2, ceil_mode=True)]
    options += [nn.AvgPool2d(3, 1, 1), do("pad", lambda x: F.pad(x, (1, 0, 0, 1)))]
    options += [nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")] if small else []
    options += [nn.PixelShuffle(2)] if small and w % 4 == 0 else []
    options += [nn.PixelUnshuffle(2)] if not shape[2] % 2 and not shape[3] % 2 else []
    return pick(options)


@keeping(4)
def gated_image(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    w, middle = shape[1], pick(WIDTHS)

    def excite(x: Tensor, down: nn.Module, up: nn.Module) -> Tensor:
        return x * up(down(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]

    return pick([
        do("squeeze-excite", excite, nn.Linear(w, middle), nn.Linear(middle, w)),
        do("minus the mean", lambda x: x - x.mean((2, 3), keepdim=True)),
        do("softmax over channels", lambda x: x.softmax(1)),
        do("softmax over space", lambda x: x.flatten(2).softmax(-1).view_as(x)),
    ])  # fmt: skip


# -- gates, splits and shuffles of the units -----------------------------------------------------------------------


@keeping(2, 3, 4)
def halves(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    d = unit_dim(shape)
    even: list[nn.Module] = [
        nn.GLU(d),
        do("chunk swap", lambda x: torch.cat(x.chunk(2, d)[::-1], d)),
        do(
            "chunk a·tanh(b), a", lambda x: torch.cat([x.chunk(2, d)[0] * x.chunk(2, d)[1].tanh(), x.chunk(2, d)[0]], d)
        ),
        do("chunk a + b", lambda x: torch.add(*x.chunk(2, d))),
    ]
    if width(shape) % 2 == 0:
        return pick(even)
    return do("first one, rest", lambda x: torch.cat([x.narrow(d, 1, width(shape) - 1) * x.narrow(d, 0, 1), x], d))


@keeping(2, 3, 4)
def swiglu(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    middle = pick(WIDTHS)
    inner = (shape[0], middle, *shape[2:]) if len(shape) == 4 else (*shape[:-1], middle)
    parts = project(shape, middle), project(shape, middle), project(inner, pick(WIDTHS))
    return do("swiglu", lambda x, gate, up, down: down(F.silu(gate(x)) * up(x)), *parts)


@keeping(2, 3, 4)
def cut(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    d, w = unit_dim(shape), width(shape)
    a = pick(range(1, w)) if w > 1 else 1
    b = pick(range(a, w + 1))
    options: list[nn.Module] = [
        do(f"[:{a}]", lambda x: x.narrow(d, 0, a)),
        do(f"[{b - a}:{b}] beside all", lambda x: torch.cat([x, x.narrow(d, b - a, a).sigmoid()], d)),
        do(f"scale [:{a}]", lambda x: torch.cat([x.narrow(d, 0, a) * 2, x.narrow(d, a, w - a).tanh()], d)),
        do("every other", lambda x: x.movedim(d, -1)[..., ::2].movedim(-1, d)),
        do("x + roll(x)", lambda x: x + x.roll(1, d)),
        do("x · flip(x)", lambda x: x * x.flip(d)),
        do("cumsum", lambda x: x.cumsum(d)),
        do("differences", lambda x: x.narrow(d, 1, w - 1) * x.narrow(d, 0, w - 1).tanh() if w > 1 else x),
        do("sort", lambda x: x.sort(d)[0]),
        do("by index", lambda x: x.index_select(d, torch.arange(w - 1, -1, -1))),
        do("beside itself", lambda x: torch.cat([x, -x], d)),
    ]
    return pick(options)


Rows = tuple[str, Callable[..., Tensor], list[Any]]  # what it does to (…, a, b), and its parts


def _rows(a: int, b: int, c: int) -> list[Rows]:
    """What may be done to a rows of b units; c is a width to go to."""
    both_by_one = lambda y, p: torch.einsum("...ab,bc,ad->...dc", y, p, p.mT @ p)  # noqa: E731 # fits the table
    return [
        ("shuffle", lambda y: y.transpose(-1, -2), []),
        ("max within", lambda y: y.amax(-1, keepdim=True), []),
        ("max of rows", lambda y: y.max(-2, keepdim=True)[0], []),
        ("softmax over rows", lambda y: y.softmax(-2), []),
        ("softmax within", lambda y: y.softmax(-1), []),
        ("minus the rows' mean", lambda y: y - y.mean(-2, keepdim=True), []),
        ("times logsumexp", lambda y: y * y.logsumexp(-1, keepdim=True), []),
        ("divided by variance", lambda y: y / (1 + y.var(-1, keepdim=True, unbiased=False)), []),
        ("layer norm within", lambda y, inner: inner(y), [nn.LayerNorm(b)]),
        ("linear within", lambda y, inner: inner(y), [nn.Linear(b, c)]),
        ("linear over rows", lambda y, inner: inner(y.mT).mT, [nn.Linear(a, c)]),
        ("linear by row", lambda y, p: torch.einsum("...ab,abc->...ac", y, p), [weight(a, b, c)]),
        ("both by one", both_by_one, [weight(b, a)]),
        ("scaled by row", lambda y, p: y * p, [weight(a, 1)]),
        ("scaled and shifted", lambda y, p: y * p + p.amax(0), [weight(a, b)]),
        ("matmul", lambda y, p: (y @ p).tanh(), [weight(b, c)]),
        ("first and last row", lambda y: torch.stack([y[..., 0, :], y[..., -1, :]], -2), []),
        ("tanh of the first row", lambda y: torch.cat([y[..., :1, :].tanh(), y[..., 1:, :]], -2), []),
        ("rows scaled", lambda y: torch.cat([r.unsqueeze(-2) * k for k, r in enumerate(y.unbind(-2), 1)], -2), []),
        ("rows stacked", lambda y: torch.stack([r.tanh() if k else r for k, r in enumerate(y.unbind(-2))], -2), []),
        ("rows reversed", lambda y: torch.stack(y.unbind(-2)[::-1], -2), []),
        ("product of rows", lambda y: (y[..., 0, :] * y[..., -1, :].tanh()).unsqueeze(-2), []),
        ("units by unit", lambda y: torch.stack([u * k for k, u in enumerate(y.unbind(-1), 1)], -1), []),
        ("unbind", lambda y: torch.cat([y.unbind(-2)[0], *(r.tanh() for r in y.unbind(-2)[1:])], -1).unsqueeze(-2), []),
        ("picks", lambda y, p: y[..., 0, :].unsqueeze(-2) @ p + y[..., -1, :1].unsqueeze(-2), [weight(b, c)]),
        ("rows rolled", lambda y: y.tanh() * y.roll(1, -2), []),
        ("rows flipped", lambda y: y + y.flip(-2).tanh(), []),
        ("flipped within", lambda y: y + y.flip(-1), []),
        ("rows looked up", lambda y: y[..., torch.tensor([a - 1, 0]), :], []),
        ("rows doubled", lambda y: y.unsqueeze(-2).expand(*y.shape[:-1], 2, b).flatten(-3, -2), []),
        ("rows interleaved", lambda y: y.repeat_interleave(2, -2), []),
        ("rows repeated", lambda y: y.repeat(*(1 for _ in y.shape[:-2]), 2, 1), []),
        ("gram within", lambda y: y.mT @ y, []),
        ("gram of rows", lambda y: y @ y.mT, []),
        ("stacked", lambda y: torch.stack([y, y.tanh()], -1).amax(-1), []),
        ("stacked rows", lambda y: torch.stack([y, y.tanh()], -3).flatten(-3, -2), []),
        ("padded rows", lambda y: F.pad(y, (0, 0, 1, 0)), []),
        ("cumulative rows", lambda y: y.cumsum(-2), []),
        ("tril", lambda y: y.tril(), []),
    ]


def _steps(pick: Pick, shape: Shape) -> list[nn.Module]:
    """One to three steps over rows and units, the sizes kept small."""
    steps: list[nn.Module] = []
    for _ in range(pick([1, 1, 2, 3])):
        says, function, parts = pick(_rows(*shape[-2:], pick(WIDTHS[:4])))
        steps.append(do(says, function, *parts))
        shape = shape_after(steps[-1], shape)
        if shape[-1] * shape[-2] > 36:
            break
    return steps


@keeping(2, 3, 4)
def regrouped(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    """The units seen as a rows of b, and something done to the rows or within them."""
    d, w = len(shape) - 1 if len(shape) < 4 else 1, width(shape)
    a = pick(divisors(w))

    def run(x: Tensor, *steps: nn.Module) -> Tensor:
        y = x.movedim(d, -1).unflatten(-1, (a, w // a))
        for step in steps:
            y = step(y)
        return y.flatten(-2).movedim(-1, d)

    return do(f"as {a}·{w // a}", run, *_steps(pick, (*shape[:1], a, w // a)))


@keeping(2, 3)
def readers(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    """The units made into a·b·c, read in several ways whose sum goes on."""
    a, b, c = sizes = pick([2, 3]), pick([2, 3]), pick([2, 3])
    out, parts = pick(WIDTHS), [nn.Linear(shape[-1], a * b * c)]
    orders = [(0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1), (1, 2, 0), (2, 1, 0)]
    lead = len(shape) - 1
    for _ in range(pick([1, 2, 3])):
        order = pick(orders)
        turned = do(f"turned {order}", lambda y, o=order: y.permute(*range(lead), *(lead + k for k in o)))
        k = pick([None, *range(sizes[order[0]])])
        chosen = [] if k is None else [do(f"[{k}]", lambda y, k=k: y[(slice(None),) * lead + (k,)])]
        steps = [turned, *chosen]
        steps += _steps(pick, shape_after(Chain(*steps), (*shape[:-1], *sizes)))
        last = do("flatten", lambda y: y.flatten(lead))
        size = shape_after(Chain(*steps, last), (*shape[:-1], *sizes))[-1]
        if size <= 60:
            parts.append(Chain(*steps, last, nn.Linear(size, out)))

    def run(x: Tensor, lift: nn.Module, *ways: nn.Module) -> Tensor:
        y = lift(x)
        return sum(way(y.unflatten(-1, sizes)) for way in ways) if ways else y

    return do(f"read {a}·{b}·{c}", run, *parts)


@keeping(2, 3)
def with_parameters(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    w, c = shape[-1], pick(WIDTHS)
    k = pick([2, 3, w])
    positions = weight(shape[1], w) if len(shape) == 3 else weight(w)
    rank_one = do("low rank", lambda x, u, v: x @ (u @ v), weight(w, k), weight(k, c))
    return pick([
        do("scaled", lambda x, p: x * p, weight(w)),
        do("plus positions", lambda x, p: x + p, positions),
        do("plus row 1", lambda x, p: x * p[0] + p[-1], weight(k, w)),
        do("plus looked-up rows", lambda x, p: x + p[torch.tensor([k - 1, 0])].sum(0), weight(k, w)),
        do("plus column 0", lambda x, p: x + p[:, 0], weight(w, k)),
        do("tied", lambda x, inner: F.linear(inner(x).relu(), inner.weight.t()), nn.Linear(w, k)),
        do("twice", lambda x, p: (x @ p).tanh() @ p, weight(w, w)),
        do("einsum", lambda x, p: torch.einsum("...i,io->...o", x, p), weight(w, c)),
        do("bilinear", lambda x, p: torch.einsum("...i,...j,ijo->...o", x.tanh(), x, p), weight(w, w, c)),
        do("hyper", lambda x, p: torch.einsum("...i,...io->...o", x, p(x).unflatten(-1, (w, 2))), nn.Linear(w, 2 * w)),
        do("arange", lambda x: x * torch.arange(1.0, w + 1)),
        do("gates of memory", lambda x, p: (x @ p.t()).softmax(-1) @ p, weight(k, w)),
        rank_one,
    ])  # fmt: skip


# -- attention and tokens ------------------------------------------------------------------------------------------


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


@keeping(3)
def attention(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    _, t, w = shape
    heads, size = pick([1, 2, 3]), pick([2, 3, 4])
    inner, out = heads * size, pick(WIDTHS)
    style = pick(["separate", "chunk", "unbind", "per head", "strided"])
    qk_norm = pick([None, "layer", "unit", "rotary"])
    mix = pick(["sdpa", "causal", "softmax", "masked", "learned bias", "sigmoid"])

    def rotated(x: Tensor) -> Tensor:
        angle = torch.arange(t).to(x.dtype)[:, None] * torch.ones(size)
        half = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1)
        return x * angle.cos() + half * angle.sin()

    def attend(x: Tensor, lift: nn.Module, last: nn.Module, norm: nn.Module, bias: Tensor) -> Tensor:
        y = lift(x)
        if style == "separate" or style == "chunk":
            q, k, v = (_heads(part, heads) for part in y.chunk(3, -1))
        elif style == "unbind":
            q, k, v = y.unflatten(-1, (3, heads, size)).permute(2, 0, 3, 1, 4).unbind(0)
        elif style == "per head":
            q, k, v = y.unflatten(-1, (heads, 3 * size)).transpose(1, 2).chunk(3, -1)
        else:  # query, key and value innermost
            q, k, v = (part.transpose(1, 2) for part in y.unflatten(-1, (heads, size, 3)).unbind(-1))
        if qk_norm == "layer":
            q, k = norm(q), norm(k)
        elif qk_norm == "unit":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        elif qk_norm == "rotary" and size % 2 == 0:
            q, k = rotated(q), rotated(k)
        if mix in ("sdpa", "causal"):
            z = F.scaled_dot_product_attention(q, k, v, is_causal=mix == "causal")
        elif mix == "learned bias":
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = q @ k.mT
            if mix == "masked":
                scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), float("-inf"))
            z = (scores.sigmoid() if mix == "sigmoid" else scores.softmax(-1)) @ v
        return last(z.transpose(1, 2).flatten(2))

    lift: nn.Module = nn.Linear(w, 3 * inner)
    if style == "separate":
        three = [nn.Linear(w, inner, bias=pick([True, False])) for _ in range(3)]
        lift = do("three", lambda x, q, k, v: torch.cat([q(x), k(x), v(x)], -1), *three)
    bias = weight(*pick([(t, t), (heads, t, t), (heads, 1, 1), (1, t)]))
    says = f"attention {style}, {heads} heads of {size}, {qk_norm}, {mix}"
    return do(says, attend, lift, nn.Linear(inner, out), nn.LayerNorm(size), bias)


@keeping(3)
def grouped_query_attention(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    w, kv, ratio, size = shape[-1], pick([1, 2, 3]), pick([1, 2, 3]), pick([2, 3])
    style = pick(["expand", "interleave", "repeat", "enable_gqa"])

    def attend(x: Tensor, q: nn.Module, k: nn.Module, v: nn.Module, last: nn.Module) -> Tensor:
        queries, keys, values = _heads(q(x), kv * ratio), _heads(k(x), kv), _heads(v(x), kv)
        if style == "expand":
            keys, values = (z[:, :, None].expand(-1, -1, ratio, -1, -1).reshape(queries.shape) for z in (keys, values))
        elif style == "interleave":
            keys, values = (z.repeat_interleave(ratio, 1) for z in (keys, values))
        elif style == "repeat":
            keys, values = (z.repeat(1, ratio, 1, 1) for z in (keys, values))
        z = F.scaled_dot_product_attention(queries, keys, values, enable_gqa=style == "enable_gqa")
        return last(z.transpose(1, 2).flatten(2))

    lifts = [nn.Linear(w, h * size) for h in (kv * ratio, kv, kv)]
    return do(f"{style}: {kv}×{ratio} heads of {size}", attend, *lifts, nn.Linear(kv * ratio * size, pick(WIDTHS)))


@keeping(3)
def cross_attention(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    w, inner = shape[-1], pick([2, 3, 4])

    def attend(x: Tensor, q: nn.Module, kv: nn.Module) -> Tensor:
        keys, values = kv(x[:, :2]).chunk(2, -1)
        return (q(x) @ keys.mT).softmax(-1) @ values

    def latent(x: Tensor, q: Tensor, kv: nn.Module, read: nn.Module) -> Tensor:
        keys, values = kv(x).chunk(2, -1)
        short = (q @ keys.mT).softmax(-1) @ values  # (n, 3, inner)
        return (read(x) @ short.mT).softmax(-1) @ short

    mha = nn.MultiheadAttention(w, pick(divisors(w)), batch_first=True)
    return pick([
        do("cross-attention", attend, nn.Linear(w, inner), nn.Linear(w, 2 * inner)),
        do("latents", latent, weight(3, inner), nn.Linear(w, 2 * inner), nn.Linear(w, inner)),
        do("torch attention", lambda x, inner: inner(x, x[:, :2], x[:, :2], need_weights=False)[0], mha),
    ])  # fmt: skip


@keeping(3)
def over_tokens(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    _, t, w = shape
    k = pick(WIDTHS)
    mix = Chain(nn.Linear(t, k), nn.GELU(), nn.Linear(k, t))
    return pick([
        do("mix tokens", _transposed, mix),
        do("convolve tokens", _transposed, nn.Conv1d(w, k, 3, padding=1)),
        do("depthwise over tokens", _transposed, nn.Conv1d(w, w, 3, padding=1, groups=w)),
        do("minus the maximum token", lambda x: x - x.max(1, keepdim=True)[0]),
        do("plus the first token", lambda x: x + x[:, :1]),
        do("shifted tokens", lambda x: F.pad(x, (0, 0, 1, 0))[:, :-1] * x.sigmoid()),
        do("rolled tokens", lambda x: x.roll(1, 1) + x),
        do("softmax over tokens", lambda x: x.softmax(1) * x),
        do("gate by the mean token", lambda x, lift: x * lift(x.mean(1, keepdim=True)).sigmoid(), nn.Linear(w, w)),
        do("first token to the end", lambda x: torch.cat([x[:, 1:], x[:, :1].tanh()], 1)),
    ])  # fmt: skip


@changing(3)
def shorter(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    _, t, w = shape
    token = do("class token", lambda x, p: torch.cat([p.expand(len(x), -1, -1), x], 1), weight(1, 1, w))
    repeated = do("class tokens", lambda x, p: torch.cat([x, p.repeat(len(x), 2, 1)], 1), weight(1, 1, w))
    pooled = do("pool tokens", _transposed, nn.AdaptiveMaxPool1d(2))
    return pick([token, repeated, pooled, nn.Flatten(), do("merge tokens", lambda x: x.reshape(len(x), 1, t * w))])


@changing(3, 4)
def pooled(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    """To vectors."""
    if len(shape) == 4:
        mean = do("mean over space", lambda x: x.mean((2, 3)))
        most = do("max over space", lambda x: x.flatten(2).max(-1)[0])
        return pick([mean, most, nn.Flatten(), do("first place", lambda x: x[:, :, 0, 0])])
    return pick([
        do("mean token", lambda x: x.mean(1)),
        do("max token", lambda x: x.amax(1)),
        do("first token", lambda x: x[:, 0]),
        do("two tokens", lambda x: x[:, 0] * x[:, -1].tanh()),
        do("attention pool", lambda x, q: (x * q(x).softmax(1)).sum(1), nn.Linear(shape[-1], 1)),
        do("gram", lambda x: (x.mT @ x).flatten(1)),
        do("sorted places", lambda x: x.flatten(1).sort(-1)[0]),
    ])  # fmt: skip


@changing(4)
def to_tokens(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    rows = do("rows as tokens", lambda x: x.permute(0, 2, 1, 3).flatten(2))
    units = do("units as tokens", lambda x: x.flatten(2))
    return pick([do("tokens", lambda x: x.flatten(2).transpose(1, 2)), rows, units])


@changing(2)
def vector_to_tokens(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    a = pick(divisors(shape[-1]))
    outer = do("outer product", lambda x: x[:, :, None] * x.tanh()[:, None, :])
    return pick([do(f"{a} tokens", lambda x: x.view(len(x), a, -1)), outer, do("one unit", lambda x: x.unsqueeze(-1))])


# -- networks inside networks --------------------------------------------------------------------------------------


def _inside(pick: Pick, shape: Shape, depth: int, out: int | None = None) -> nn.Module:
    return network(pick, shape, depth, most=2, free=False, out=out)


@nesting(2, 3, 4)
def residual(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    body = _inside(pick, shape, depth, width(shape))
    return do("residual", lambda x, body: x + body(x), body)


@nesting(2, 3, 4)
def projected_residual(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    body = _inside(pick, shape, depth)
    skip = project(shape, width(shape_after(body, shape)), bias=False)
    return do("residual", lambda x, body, skip: F.relu(skip(x) + body(x)), body, skip)


@nesting(2, 3, 4)
def parallel(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    """Branches over one stream."""
    w, d = width(shape), unit_dim(shape)
    out = pick([w, *WIDTHS])
    a, b = _inside(pick, shape, depth, out), _inside(pick, shape, depth, out)
    options = [
        do("sum", lambda x, a, b: a(x) + b(x), a, b),
        do("product", lambda x, a, b: a(x).tanh() * b(x), a, b),
        do("maximum", lambda x, a, b: torch.maximum(a(x), b(x)), a, b),
        do("stack mean", lambda x, a, b: torch.stack([a(x), b(x)]).mean(0), a, b),
        do("where", lambda x, a, b: torch.where(a(x) > 0, b(x), a(x)), a, b),
        do("one after the other", lambda x, a, b: b(x) if out != w else b(a(x)), a, b),
        do("concatenated", lambda x, a, b: torch.cat([a(x), b(x)], d), a, b),
    ]
    if out == w:
        options.append(do("both added", lambda x, a, b: x + a(x) + b(x), a, b))
    return pick(options)


@nesting(2, 3, 4)
def dense(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    """The stream beside what branches make of it."""
    d = unit_dim(shape)
    bodies = [_inside(pick, shape, depth) for _ in range(pick([1, 2]))]
    return do("dense", lambda x, *bodies: torch.cat([x, *(body(x) for body in bodies)], d), *bodies)


@nesting(2, 3, 4)
def shared(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    """One network used twice."""
    body = _inside(pick, shape, depth, width(shape))
    return pick([
        do("twice", lambda x, body: body(body(x).tanh()), body),
        do("of both signs", lambda x, body: body(x) - body(-x), body),
        do("siamese", lambda x, body: body(x) * body(x.flip(0)), body),
        do("both ways", lambda x, body: body(x) + body(x.flip(-1)), body),
    ])  # fmt: skip


@nesting(2, 3, 4)
def each_part(pick: Pick, shape: Shape, depth: int) -> nn.Module:
    """Another network for each part of the units."""
    d, w = unit_dim(shape), width(shape)
    if w < 2:
        return residual(pick, shape, depth)
    at = pick([w // 2, pick(range(1, w))])
    first, second = ((*shape[:1], n, *shape[2:]) if d == 1 else (*shape[:-1], n) for n in (at, w - at))
    a, b = _inside(pick, first, depth), _inside(pick, second, depth)

    def run(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
        left, right = x.split([at, w - at], d)
        return torch.cat([a(left), b(right)], d)

    kept = do(f"first {at} kept", lambda x, b: torch.cat([x.narrow(d, 0, at), b(x.narrow(d, at, w - at))], d), b)
    return pick([do(f"split at {at}", run, a, b), kept])


# -- whole networks ------------------------------------------------------------------------------------------------


def whole(pick: Pick, family: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A random network on "vectors", "tokens", "words" or "images", and inputs for it."""
    n, w = pick([2, 3, 4, 5]), pick(WIDTHS)
    stem: nn.Module
    if family == "images":
        inputs = torch.randn(n, 3, *pick([(4, 4), (3, 5), (6, 4)]))
        stem, shape = nn.Conv2d(3, w, pick([1, 3]), padding=pick([0, 1])), None
    elif family == "words":
        inputs = torch.rand(n, 7).argsort(1)[:, : pick([2, 3, 4])]  # no word twice: their difference would be rounding
        stem, shape = nn.Embedding(7, w), (*inputs.shape, w)
    else:
        inputs = torch.randn(n, 3) if family == "vectors" else torch.randn(n, pick([2, 3, 4, 6]), 3)
        stem, shape = nn.Linear(3, w), (*inputs.shape[:-1], w)
    shape = shape or shape_after(stem, tuple(inputs.shape))
    tied = family == "words" and pick([True, False])
    body = network(pick, shape, 2, most=4, free=not tied, out=w if tied else None)
    shape = shape_after(body, shape)
    inner = (*shape[:1], 7, *shape[2:]) if len(shape) == 4 else (7,)
    tail = Chain(
        project(shape, 7), nn.ReLU(), project(inner, w if tied else 2)
    )  # a plain hidden layer before the outputs

    def run(s: Written, x: Tensor) -> Tensor:
        y = s.tail(s.body(s.stem(x)))
        return F.linear(y, s.stem.weight) if tied else y

    says = f"{said(stem)} > {body!r} > {tail!r}{' > tied head' if tied else ''}"
    return Written(run, says=says, stem=stem, body=body, tail=tail), (inputs,)
