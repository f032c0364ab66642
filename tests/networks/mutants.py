"""Networks that exist to catch one wrong rule each, with as little around what they are about as can be.

Most are a linear layer whose units are seen as a tensor of some shape, one function of it, and a linear layer that
reads every number that comes out: whatever the rule of that function forgets then moves units that must not move.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.registry import network
from networks.written import Written, param


def built(function: Callable[..., Tensor], shapes: tuple[tuple[int, ...], ...], parts: list[Any]) -> nn.Module:
    """read(flatten(function(view(lift(x)), *parts))): ``shapes`` are those the lifted units are seen as."""
    lifts = [nn.Linear(5, prod(shape)) for shape in shapes]

    def flat(x: Tensor, *lifts_and_parts: Any) -> Tensor:
        views = [lift(x).view(len(x), *shape) for lift, shape in zip(lifts_and_parts, shapes, strict=False)]
        return function(*views, *lifts_and_parts[len(shapes) :]).to(x.dtype).flatten(1)

    with torch.no_grad():
        size = Written(flat, *lifts, *parts)(torch.randn(4, 5)).shape[-1]
    return Written(lambda x, read, *others: read(flat(x, *others)), nn.Linear(size, 2), *lifts, *parts)


def seen(name: str, *shapes: tuple[int, ...], parts: Callable[[], list[Any]] = list) -> Callable[..., Any]:
    """Register the network of a function of units seen as the given shapes."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        network(kind="mutant", name=name)(lambda: (built(function, shapes, parts()).eval(), (torch.randn(4, 5),)))
        return function

    return register


def norm(width: int) -> Callable[[], list[Any]]:
    return lambda: [nn.LayerNorm(width)]


# -- positions that are told apart: shifted, cut, looked up ---------------------------------------------------------

seen("tril", (3, 4))(lambda z: z.tril())
seen("cummax", (6,))(lambda z: z.cummax(-1)[0])
seen("argsort", (6,))(lambda z: z.argsort(-1))
seen("rolled", (6,))(lambda z: z.roll(1, -1))
seen("windows", (6,))(lambda z: z.unfold(1, 3, 1))
seen("every_third_of_seven", (7,))(lambda z: z[:, ::3])
seen("reflected", (1, 6))(lambda z: F.pad(z, (2, 1), mode="reflect"))
seen("torn", (4, 3))(lambda z: z.softmax(1).reshape(-1, 6, 2).amax(2))
seen("torn_at_a_unit", (6, 4))(lambda z: z.softmax(1).reshape(-1, 4, 6).amax(2))
seen("every_other_across_units", (4, 3))(lambda z: z.softmax(1).flatten(1)[:, ::2])
seen("cut_in_a_unit", (3, 4))(lambda z: z.softmax(1).flatten(1)[:, :5])
seen("split_in_a_unit", (3, 4))(lambda z: z.softmax(1).flatten(1).split([5, 7], 1)[1])
seen("narrow_in_a_unit", (3, 4))(lambda z: torch.narrow(z.softmax(1).flatten(1), 1, 0, 5))
seen("diagonal", (3, 3))(lambda z: z.diagonal(0, 1, 2))
seen("off_diagonal", (3, 3))(lambda z: z.diagonal(1, 1, 2))
seen("spectrum_of_units", (6,))(lambda z: torch.fft.rfft(z).abs())
seen("real_and_imaginary", (4, 2))(lambda z: torch.view_as_real(torch.view_as_complex(z) ** 2).sum(1))
seen("complex_of_two", (6,), (6,))(lambda a, b: torch.complex(a, b).abs())
seen("angle", (4,), (4,))(lambda a, b: torch.complex(a, b).angle())
seen("indexed_by_a_table", (6,))(lambda z: z.index_select(1, torch.tensor([5, 0, 3])))
seen("class_of_units", (4, 3))(lambda z: F.one_hot(z.argmax(-1), 3))
seen("class_is_looked_up", (4, 3), parts=lambda: [param(3, 2)])(lambda z, table: table[z.argmax(-1)])
seen("class_is_embedded", (4, 3), parts=lambda: [nn.Embedding(3, 2)])(lambda z, table: table(z.argmax(-1)))
seen("buckets", (6,), parts=lambda: [param(4)])(lambda z, borders: torch.bucketize(z, borders))
seen("histogram", (6,))(lambda z: torch.histc(z, 5, -1, 1) * z.sum(1, keepdim=True))
seen("gathered_by_a_table", (6,))(lambda z: z.gather(1, torch.tensor([[5, 0, 3]]).repeat(len(z), 1)))
seen("gathered_from_the_first", (3, 4))(lambda z: z.gather(1, torch.tensor([[[2, 1, 0]]]).repeat(len(z), 1, 1)))
seen("scattered", (4,))(lambda z: torch.zeros(len(z), 6).scatter(1, torch.tensor([[5, 0, 3, 1]]).repeat(len(z), 1), z))
seen("median_place", (6,))(lambda z: F.one_hot(z.median(-1)[1], 6))
seen("sorted_place", (6,))(lambda z: z.sort(-1)[1])
seen("median", (3, 4))(lambda z: z.median(-1)[0] * z.median())
seen("dealt_out", (6,))(lambda z: z.masked_scatter(z > 0, torch.arange(1.0, 1.0 + z.numel()).view_as(z).to(z.dtype)))
seen("added_at_places", (6,))(lambda z: z.index_add(1, torch.tensor([4, 1]), torch.ones_like(z[:, :2])))
seen("one_place_replaced", (3, 4))(lambda z: torch.select_scatter(z, torch.ones(len(z), 4), 1, 1))
seen("slice_replaced_in_a_unit", (3, 4))(
    lambda z: torch.slice_scatter(z.softmax(1).flatten(1), torch.ones(len(z), 5), 1, 0, 5)
)
seen("every_third_replaced", (7,))(lambda z: torch.slice_scatter(z, torch.ones(len(z), 3), 1, 0, 7, 3))
seen("first_rows_replaced", (3, 4), (2, 4))(lambda z, w: torch.slice_scatter(z, w, 1, 0, 2))


@seen("added_from_units", (4,))
def _(z: Tensor) -> Tensor:
    return torch.zeros(len(z), 6, dtype=z.dtype).index_add(1, torch.tensor([4, 1, 0, 2]), z)


@seen("put_into_units", (6,))
def _(z: Tensor) -> Tensor:
    z = z.clone()
    z[:, torch.tensor([4, 1])] = torch.ones(len(z), 2, dtype=z.dtype)
    return z


@seen("units_are_put", (2,))
def _(z: Tensor) -> Tensor:
    y = torch.arange(24.0).view(4, 6).to(z.dtype)
    y[:, torch.tensor([4, 1])] = z
    return y


@seen("gathered_rows_go_different_ways", (2, 4), parts=lambda: [nn.Linear(4, 3), nn.Linear(4, 3)])
def _(z: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    a, b = z.gather(1, (z > 0).long()).unbind(1)
    return first(a).tanh() + second(b)


@seen("places_found", (6,))
def _(z: Tensor) -> Tensor:
    return z.sum(1, keepdim=True) * torch.where(z > 0)[1].sum()


@seen("places_not_zero", (6,))
def _(z: Tensor) -> Tensor:
    return z.sum(1, keepdim=True) * (z > 0).nonzero().sum(0)


FOUND = torch.tensor([1.0, -1.0, 2.0, 3.0, -2.0, 0.5])
seen("joined_with_what_was_found", (6,), parts=lambda: [FOUND])(
    lambda z, c: torch.cat([z.sum(0), c[c > 0]])[:3].expand(len(z), 3)
)
seen("split_of_what_was_found", (2,), parts=lambda: [FOUND, nn.Linear(2, 2)])(
    lambda z, c, read: z * read(c[c > 0].split([2, 2])[0])
)


# -- picked positions -----------------------------------------------------------------------------------------------


@seen("picked_after_a_norm", (2, 4), parts=norm(4))
def _(z: Tensor, norm: nn.Module) -> Tensor:
    return norm(z)[:, 1]


@seen("unbound_after_a_norm", (2, 4), parts=norm(4))
def _(z: Tensor, norm: nn.Module) -> Tensor:
    return norm(z).unbind(1)[1]


@seen("every_other_after_a_scale", (6, 2), parts=lambda: [param(6, 1)])
def _(z: Tensor, scale: Tensor) -> Tensor:
    return (z * scale).flatten(1)[:, ::2]


@seen("picked_from_two_axes", (2, 3, 4), parts=lambda: [nn.Linear(4, 3), nn.Linear(4, 3)])
def _(z: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    return first(z[:, 0].relu()).sum(1) + second(z[:, :, 1].relu()).sum(1)


@seen("flipped_then_unbound", (2, 4), parts=lambda: [nn.Linear(4, 3), nn.Linear(4, 3)])
def _(z: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    a, b = (z + z.flip(1)).tanh().unbind(1)
    return first(a) + second(b)


@seen("same_units_stacked_by_cat", (4,))
def _(z: Tensor) -> Tensor:
    return torch.cat([z[:, None], z[:, None].tanh()], 1)


@seen("rows_of_two_layers", (4,), (8,), parts=norm(4))
def _(a: Tensor, b: Tensor, norm: nn.Module) -> Tensor:
    return norm(torch.cat([a, b], 1).view(-1, 3, 4))


# -- what is matched ------------------------------------------------------------------------------------------------

seen("clamped_by_units", (6,), (6,))(lambda a, b: torch.clamp(a, min=b))
seen("norm_over_two", (3, 4), parts=lambda: [nn.LayerNorm((3, 4))])(lambda z, norm: norm(z))
seen("larger_of_two", (6,), (6,))(lambda a, b: torch.max(a, b))
seen("where_of_three", (6,), (6,), (6,))(lambda a, b, c: torch.where(a > 0, b, c))
seen("scattered_beside", (2, 4), (2, 4))(lambda a, b: a.scatter(1, torch.zeros(len(a), 2, 4).long(), b))
seen("product_added", (6,), parts=lambda: [param(6, 4), param(4)])(lambda z, w, b: torch.addmm(b, z, w))
seen("bags_are_mixed", (3,), parts=lambda: [nn.EmbeddingBag(5, 6)])(
    lambda z, bags: z * bags(torch.tensor([[0, 1], [2, 3], [4, 0]])).T.sum(0)
)
seen("bags_are_read", (3,), parts=lambda: [nn.EmbeddingBag(5, 6), nn.Linear(3, 6)])(
    lambda z, bags, mix: z.sum(1, keepdim=True) * mix(bags(torch.tensor([[0, 1], [2, 3], [4, 0]])).T).mean(0)
)
seen("distances_by_head", (2, 3, 4), parts=lambda: [param(2, 5, 4)])(lambda z, p: torch.cdist(z, p))
seen("live_batch_norm", (6,), parts=lambda: [param(6), param(6)])(
    lambda z, w, b: torch.ops.aten._native_batch_norm_legit.no_stats(z, w, b, True, 0.1, 1e-5)[0]
)
seen("memory", (2, 4), parts=lambda: [param(3, 4), param(3, 6), param(3)])(
    lambda z, k, v, bias: F.scaled_dot_product_attention(z, k[None], v[None], attn_mask=bias)
)
seen("causal_memory", (2, 4), parts=lambda: [param(3, 4), param(3, 6)])(
    lambda z, k, v: F.scaled_dot_product_attention(z, k[None], v[None], is_causal=True)
)
seen("strided_convolution_by_name", (3, 4), parts=lambda: [param(5, 3, 2)])(
    lambda z, w: torch.convolution(z, w, None, [2], [0], [1], False, [0], 1)
)
seen("unpooled", (2, 4, 4), (2, 2, 2))(lambda a, b: F.max_unpool2d(b, F.max_pool2d(a, 2, return_indices=True)[1], 2))


@seen("sampled_by_unit", (4, 3, 3))
def _(z: Tensor) -> Tensor:
    grid = torch.sin(torch.arange(32.0)).view(4, 2, 2, 2).to(z.dtype)
    return torch.stack([F.grid_sample(image[:, None], grid, align_corners=False) for image in z])


# -- units as positions in space ------------------------------------------------------------------------------------

seen("convolved_units", (1, 6), parts=lambda: [nn.Conv1d(1, 2, 3)])(lambda z, conv: conv(z))
seen("pooled_units", (1, 6))(lambda z: F.avg_pool1d(z, 2))
seen("pooled_units_and_places", (1, 6))(lambda z: F.adaptive_max_pool1d(z, 3, return_indices=True)[0])
seen("unpooled_units", (1, 2, 2))(
    lambda z: F.max_unpool2d(z, torch.tensor([[[[0, 3], [9, 14]]]]).repeat(len(z), 1, 1, 1), 2)
)
seen("upsampled_units", (1, 3))(lambda z: F.interpolate(z, scale_factor=2))
seen("shuffled_pixels", (4, 2, 3))(lambda z: F.pixel_shuffle(z, 2))
seen("unshuffled_pixels", (1, 4, 6))(lambda z: F.pixel_unshuffle(z, 2))
seen("patches", (1, 3, 4))(lambda z: F.unfold(z, 2))
seen("folded", (8, 4))(lambda z: F.fold(z, (3, 3), 2))
seen("sampled", (1, 3, 3))(
    lambda z: F.grid_sample(
        z, torch.sin(torch.arange(8.0)).view(1, 2, 2, 2).to(z.dtype).expand(len(z), -1, -1, -1), align_corners=False
    )
)
seen("shuffled_across_units", (3, 4))(lambda z: F.channel_shuffle(z.softmax(1).flatten(1)[:, :, None, None], 2))

# -- sizes of one that is many: what one position does must not depend on another ------------------------------------

seen("linear_residual", (3, 4), parts=lambda: [nn.Linear(4, 4)])(lambda z, w: z + w(z))
seen("matmul_residual", (3, 4), parts=lambda: [param(4, 4)])(lambda z, w: z + z @ w)
seen("convolution_residual", (3, 4), parts=lambda: [nn.Conv1d(3, 3, 1)])(lambda z, w: z + w(z))
seen("grouped_residual", (4, 5), parts=lambda: [nn.Conv1d(4, 4, 1, groups=2)])(lambda z, w: z + w(z))
seen("grouped_transposed_residual", (4, 5), parts=lambda: [nn.ConvTranspose1d(4, 4, 1, groups=2)])(
    lambda z, w: z + w(z)
)
seen("bilinear_residual", (3, 4), parts=lambda: [nn.Bilinear(4, 4, 4)])(lambda z, w: z + w(z, z))
seen("attention_without_weights", (3, 4), (3, 5))(lambda a, b: F.scaled_dot_product_attention(a, a, b))
seen("distances_among_rows", (3, 4))(lambda z: torch.cdist(z, z))
seen("normed_rows", (3, 4), parts=norm(4))(lambda z, norm: norm(z))
seen("normed_rows_by_name", (3, 4), parts=lambda: [param(4), param(4)])(
    lambda z, w, b: torch.native_layer_norm(z, [4], w, b, 1e-5)[0]
)
seen("rms_rows", (3, 4), parts=lambda: [nn.RMSNorm(4)])(lambda z, norm: norm(z))
seen("rms_rows_fused", (3, 4), parts=lambda: [param(4)])(
    lambda z, w: torch.ops.aten._fused_rms_norm(z, [4], w, 1e-5)[0]
)
seen("group_norm_of_shuffled", (3, 2), parts=lambda: [nn.GroupNorm(2, 6)])(
    lambda z, norm: norm(z.transpose(1, 2).reshape(-1, 6))
)
seen("instance_norm_of_columns", (3, 4), parts=lambda: [nn.InstanceNorm1d(4)])(lambda z, norm: norm(z.transpose(1, 2)))
seen("batch_norm_of_columns", (3, 4), parts=lambda: [nn.BatchNorm1d(4, affine=False, track_running_stats=False)])(
    lambda z, norm: norm(z.transpose(1, 2))
)
seen("batch_statistics_of_columns", (3, 4))(lambda z: F.batch_norm(z.transpose(1, 2), None, None, training=True))
seen("live_batch_norm_of_columns", (3, 4))(
    lambda z: torch.ops.aten._native_batch_norm_legit.no_stats(z.transpose(1, 2), None, None, True, 0.1, 1e-5)[0]
)
seen("spread", (3, 4))(lambda z: z.std(-1))
seen("lengths", (3, 4))(lambda z: torch.norm(z, dim=-1) + torch.linalg.vector_norm(z, dim=-1))
seen("largest_of_all", (3, 4))(lambda z: z * z.max())
seen("moved_axis", (3, 4))(lambda z: z.movedim(1, 2).softmax(-1))
seen("turned_matrix", (3, 4), parts=lambda: [param(4, 3)])(lambda z, w: z.mT.softmax(-1) @ w.t().mT.mT)
