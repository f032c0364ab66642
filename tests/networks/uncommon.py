"""Networks that use what few networks use: each one the smallest that needs a certain rule."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from networks.registry import Case, network
from networks.written import Written, param

ROWS, TOKENS, IMAGES = (
    torch.linspace(-2, 2, 10).view(2, 5),
    torch.sin(torch.arange(70.0)).view(2, 7, 5),
    torch.cos(torch.arange(384.0) ** 1.1).view(2, 3, 8, 8),
)


uncommon = partial(network, kind="uncommon")


@uncommon([6])
def lstm() -> Case:
    return Written(lambda s, x: s.o(s.r(x)[0][:, -1]), r=nn.LSTM(5, 6, batch_first=True), o=nn.Linear(6, 2)), (TOKENS,)


@uncommon([6, 6, 6, 6])
def lstm_two_directions() -> Case:
    return Written(
        lambda s, x: s.o(s.r(x)[0][:, -1]),
        r=nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True),
        o=nn.Linear(12, 2),
    ), (TOKENS,)


@uncommon([6])
def gru() -> Case:
    return Written(lambda s, x: s.o(s.r(x)[0][:, -1]), r=nn.GRU(5, 6, batch_first=True), o=nn.Linear(6, 2)), (TOKENS,)


@uncommon([6])
def elman() -> Case:
    return Written(lambda s, x: s.o(s.r(x)[0].mean(1)), r=nn.RNN(5, 6, batch_first=True), o=nn.Linear(6, 2)), (TOKENS,)


@uncommon([6])
def lstm_cell() -> Case:
    def f(s, x):
        h = x.new_zeros(2, 6)
        c = x.new_zeros(2, 6)
        for t in range(3):
            h, c = s.r(x[:, t], (h, c))
        return s.o(h)

    return Written(f, r=nn.LSTMCell(5, 6), o=nn.Linear(6, 2)), (TOKENS,)


@uncommon([6])
def without_gradients() -> Case:
    def f(s, x):
        h = s.a(x).relu()
        with torch.no_grad():
            g = s.b(h).sigmoid()
        return s.o(h * g)

    return Written(f, a=nn.Linear(5, 6), b=nn.Linear(6, 6), o=nn.Linear(6, 2)), (ROWS,)


@uncommon([6])
def without_autocast() -> Case:
    def f(s, x):
        h = s.a(x).relu()
        with torch.autocast("cpu", enabled=False):
            g = s.b(h).sigmoid()
        return s.o(h * g)

    return Written(f, a=nn.Linear(5, 6), b=nn.Linear(6, 6), o=nn.Linear(6, 2)), (ROWS,)


@uncommon([6, 4, 7])
def bilinear_layer() -> Case:
    return Written(
        lambda s, x: s.o(s.b(s.a(x).relu(), s.c(x).tanh())),
        a=nn.Linear(5, 6),
        c=nn.Linear(5, 4),
        b=nn.Bilinear(6, 4, 7),
        o=nn.Linear(7, 2),
    ), (ROWS,)


@uncommon([6])
def weight_standardised_by_batch_norm() -> Case:
    def f(s, x):
        w = s.c.weight
        w = F.batch_norm(w.reshape(1, 6, -1), None, None, training=True).reshape(w.shape)
        return s.o(F.conv2d(x, w, s.c.bias, padding=1).relu().mean((2, 3)))

    return Written(f, c=nn.Conv2d(3, 6, 3), o=nn.Linear(6, 2)), (IMAGES,)


@uncommon([7, 6])
def weight_standardised() -> Case:
    def f(s, x):
        w = s.d.weight
        v, m = torch.var_mean(w, [1, 2, 3], keepdim=True)
        w = (w - m) / (v + 1e-5).sqrt()
        return s.o(F.conv2d(s.c(x).relu(), w, s.d.bias, padding=1).relu().mean((2, 3)))

    return Written(f, c=nn.Conv2d(3, 6, 3), d=nn.Conv2d(6, 7, 3), o=nn.Linear(7, 2)), (IMAGES,)


@uncommon([4, 2, 3])
def zero_padded_channels() -> Case:
    def f(s, x):
        h = s.a(x).relu()
        g = s.b(h).relu()
        return s.o((g + F.pad(h, (0, 0, 0, 0, 2, 3))).mean((2, 3)))

    return Written(f, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 9, 1), o=nn.Linear(9, 2)), (IMAGES,)


@uncommon([6])
def every_other_unit() -> Case:
    return Written(lambda s, x: s.o(s.a(x).relu()[:, ::2] * s.a(x)[:, 1::2]), a=nn.Linear(5, 12), o=nn.Linear(6, 2)), (
        ROWS,
    )


@uncommon([6])
def embedding_bag() -> Case:
    return Written(lambda s, x: s.o(s.e(x)), e=nn.EmbeddingBag(9, 6), o=nn.Linear(6, 2)), (torch.randint(0, 9, (2, 4)),)


@uncommon([6])
def spectrum() -> Case:
    return Written(
        lambda s, x: s.o(torch.fft.rfft2(s.a(x)).abs().mean((2, 3))), a=nn.Conv2d(3, 6, 1), o=nn.Linear(6, 2)
    ), (IMAGES,)


@uncommon([6])
def global_filter() -> Case:
    def f(s, x):
        h = torch.fft.rfft2(s.a(x), norm="ortho")
        h = h * torch.view_as_complex(s.w)
        return s.o(torch.fft.irfft2(h, s=(8, 8), norm="ortho").mean((2, 3)))

    return Written(f, a=nn.Conv2d(3, 6, 1), w=param(6, 8, 5, 2), o=nn.Linear(6, 2)), (IMAGES,)


@uncommon([6])
def gathered_tokens() -> Case:
    return Written(
        lambda s, x: s.o(torch.gather(s.a(x), 1, s.i.expand(2, 3, 6)).mean(1)),
        a=nn.Linear(5, 6),
        i=torch.randint(0, 7, (1, 3, 1)),
        o=nn.Linear(6, 2),
    ), (TOKENS,)


@uncommon([6])
def top_values() -> Case:
    return Written(lambda s, x: s.o(s.a(x).topk(3, dim=1).values.mean(1)), a=nn.Linear(5, 6), o=nn.Linear(6, 2)), (
        TOKENS,
    )


@uncommon([6, 4, 6, 6])
def routed_experts() -> Case:
    def f(s, x):
        g = s.g(x).softmax(-1)
        v, i = g.topk(2, -1)
        w = torch.zeros_like(g).scatter(-1, i, v)
        y = torch.stack([e(x) for e in s.e], -1)
        return s.o((y * w.unsqueeze(-2)).sum(-1))

    return Written(
        f,
        g=nn.Linear(5, 3),
        e=nn.ModuleList(nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 4)) for _ in range(3)),
        o=nn.Linear(4, 2),
    ), (ROWS,)


@uncommon([3, (8, 3), 6])
def soft_experts() -> Case:
    def f(s, x):
        g = s.g(x).softmax(-1)
        h = torch.einsum("bd,edf->bef", x, s.w1).relu()
        y = torch.einsum("bef,efd->bed", h, s.w2)
        return s.o((y * g.unsqueeze(-1)).sum(1))

    return Written(f, g=nn.Linear(5, 3), w1=param(3, 5, 8), w2=param(3, 8, 6), o=nn.Linear(6, 2)), (ROWS,)


@uncommon([6, (2, 6)])
def maxout_by_maximum() -> Case:
    return Written(lambda s, x: s.o(s.a(x).view(2, 6, 2).amax(-1)), a=nn.Linear(5, 12), o=nn.Linear(6, 2)), (ROWS,)


@uncommon([4])
def pixel_shuffled() -> Case:
    return Written(lambda s, x: s.o(F.pixel_shuffle(s.a(x), 2).relu()), a=nn.Conv2d(3, 16, 3), o=nn.Conv2d(4, 2, 1)), (
        IMAGES,
    )


@uncommon([6])
def pixel_unshuffled() -> Case:
    return Written(
        lambda s, x: s.o(F.pixel_unshuffle(s.a(x).relu(), 2)), a=nn.Conv2d(3, 6, 3, padding=1), o=nn.Conv2d(24, 2, 1)
    ), (IMAGES,)


@uncommon([3, (4, 3)])
def channel_shuffled() -> Case:
    return Written(
        lambda s, x: s.o(F.channel_shuffle(s.a(x).relu(), 3)), a=nn.Conv2d(3, 12, 1), o=nn.Conv2d(12, 2, 1)
    ), (IMAGES,)


@uncommon([6])
def patches_by_unfold() -> Case:
    return Written(
        lambda s, x: s.o(F.unfold(s.a(x).relu(), 2, stride=2).transpose(1, 2)), a=nn.Conv2d(3, 6, 1), o=nn.Linear(24, 2)
    ), (IMAGES,)


@uncommon([6])
def involution() -> Case:
    def f(s, x):
        h = s.a(x)
        u = F.unfold(h, 3, padding=1).view(2, 6, 9, 8, 8)
        k = s.k(x).view(2, 1, 9, 8, 8)
        return s.o((u * k).sum(2).relu())

    return Written(f, a=nn.Conv2d(3, 6, 1), k=nn.Conv2d(3, 9, 1), o=nn.Conv2d(6, 2, 1)), (IMAGES,)


@uncommon([6])
def folded_patches() -> Case:
    def f(s, x):
        h = F.unfold(s.a(x), 2, stride=2)
        y = F.fold(h, (8, 8), 2, stride=2)
        return s.o(y.relu())

    return Written(f, a=nn.Conv2d(3, 6, 1), o=nn.Conv2d(6, 2, 1)), (IMAGES,)


@uncommon([6])
def windows_by_unfold() -> Case:
    return Written(lambda s, x: s.o(s.a(x).unfold(1, 3, 2).mean(-1).mean(1)), a=nn.Linear(5, 6), o=nn.Linear(6, 2)), (
        TOKENS,
    )


@uncommon([3, 5, 3])
def slice_assigned() -> Case:
    def f(s, x):
        h = s.a(x)
        h = h.clone()
        h[:, :3] = s.b(x)
        return s.o(h.relu())

    return Written(f, a=nn.Linear(5, 8), b=nn.Linear(5, 3), o=nn.Linear(8, 2)), (ROWS,)


@uncommon([8])
def tokens_assigned() -> Case:
    def f(s, x):
        h = s.a(x).clone()
        h[:, 0] = s.t
        h[:, 2:4] = h[:, 2:4] * 2
        return s.o(h.relu()).mean(1)

    return Written(f, a=nn.Linear(5, 8), t=param(8), o=nn.Linear(8, 2)), (TOKENS,)


@uncommon([4, (3, 4), (2, 4)])
def grouped_transposed_convolution() -> Case:
    return Written(
        lambda s, x: s.o(s.b(s.a(x).relu()).relu()),
        a=nn.Conv2d(3, 12, 1),
        b=nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4),
        o=nn.Conv2d(8, 2, 1),
    ), (IMAGES,)


@uncommon([6, 8])
def pointwise_convolutions() -> Case:
    return Written(
        lambda s, x: s.o(s.b(s.a(x).relu()).relu().mean(-1)),
        a=nn.Conv1d(7, 6, 1),
        b=nn.Conv1d(6, 8, 1),
        o=nn.Linear(8, 2),
    ), (TOKENS,)


@uncommon([9, 6, 7])
def tokens_mixed_by_convolution() -> Case:
    def f(s, x):
        h = s.e(x)
        return s.o(s.b(s.a(h).relu()).mean(1))

    return Written(f, e=nn.Linear(5, 9), a=nn.Conv1d(7, 6, 1), b=nn.Conv1d(6, 7, 1), o=nn.Linear(9, 2)), (TOKENS,)


@uncommon([6])
def shared_layer_three_times() -> Case:
    def f(s, x):
        h = s.a(x)
        for _ in range(3):
            h = (s.b(h) + s.a(x)).tanh()
        return s.o(h)

    return Written(f, a=nn.Linear(5, 6), b=nn.Linear(6, 6), o=nn.Linear(6, 2)), (ROWS,)


@uncommon([6])
def cosine_of_two() -> Case:
    return Written(
        lambda s, x: F.cosine_similarity(s.a(x).relu(), s.b(x).relu(), dim=-1), a=nn.Linear(5, 6), b=nn.Linear(5, 6)
    ), (ROWS,)


@uncommon([6, 4])
def radial_basis() -> Case:
    return Written(
        lambda s, x: s.o((-torch.cdist(s.a(x).relu(), s.p)).exp()), a=nn.Linear(5, 6), p=param(4, 6), o=nn.Linear(4, 2)
    ), (ROWS,)


@uncommon([6, 7])
def spline_basis() -> Case:
    def f(s, x):
        g = torch.linspace(-1, 1, 5)
        b = torch.exp(-((s.a(x).unsqueeze(-1) - g) ** 2))
        return s.o((b.flatten(1) @ s.w).relu())

    return Written(f, a=nn.Linear(5, 6), w=param(30, 7), o=nn.Linear(7, 2)), (ROWS,)


@uncommon([6, 7])
def spectral_norm() -> Case:
    return nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(5, 6)),
        nn.ReLU(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 7)),
        nn.ReLU(),
        nn.Linear(7, 2),
    ), (ROWS,)


@uncommon([6, 7])
def weight_norm() -> Case:
    return nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(5, 6)),
        nn.ReLU(),
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 7)),
        nn.ReLU(),
        nn.Linear(7, 2),
    ), (ROWS,)


@uncommon([8, 2, (4, 2), (4, 2), 12, 2, (4, 2), (4, 2), 2, (4, 2), (4, 2), 12])
def torch_transformer() -> Case:
    m = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)
    return Written(lambda s, x, y: s.o(s.m(s.e(x), s.e(y))), m=m, e=nn.Linear(5, 8), o=nn.Linear(8, 2)), (
        TOKENS,
        TOKENS,
    )


@uncommon([8, 2, (4, 2), (4, 2), 2, (4, 2), (4, 2), 12, 2, (4, 2), (4, 2), 2, (4, 2), (4, 2), 12])
def torch_decoder() -> Case:
    return Written(
        lambda s, x: s.o(s.m(s.e(x), s.e(x))),
        m=nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, batch_first=True), 2),
        e=nn.Linear(5, 8),
        o=nn.Linear(8, 2),
    ), (TOKENS,)


@uncommon([8, 2, (4, 2), (4, 2), 8])
def torch_attention() -> Case:
    return Written(
        lambda s, x: s.o(s.m(s.e(x), s.e(x), s.e(x))[0]),
        m=nn.MultiheadAttention(8, 2, batch_first=True),
        e=nn.Linear(5, 8),
        o=nn.Linear(8, 2),
    ), (TOKENS,)


@uncommon([8, 2, (4, 2), (4, 2)])
def torch_attention_weights() -> Case:
    return Written(
        lambda s, x: s.m(s.e(x), s.e(x), s.e(x), need_weights=True),
        m=nn.MultiheadAttention(8, 2, batch_first=True, kdim=8, vdim=8, add_bias_kv=True),
        e=nn.Linear(5, 8),
    ), (TOKENS,)


@uncommon([])
def local_response_norm() -> Case:
    return Written(lambda s, x: s.o(F.local_response_norm(s.a(x), 3)), a=nn.Conv2d(3, 6, 1), o=nn.Conv2d(6, 2, 1)), (
        IMAGES,
    )


@uncommon([6, 4])
def hypernetwork() -> Case:
    def f(s, x):
        w = s.h(x.mean(0)).view(4, 5)
        return s.o((x @ w.t()).relu())

    return Written(f, h=nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 20)), o=nn.Linear(4, 2)), (ROWS,)


@uncommon([4, 8, 6])
def dynamic_convolution() -> Case:
    def f(s, x):
        w = (s.w * s.g(x.mean((2, 3))).softmax(-1).mean(0).view(4, 1, 1, 1, 1)).sum(0)
        return s.o(F.conv2d(s.a(x), w).relu())

    return Written(f, a=nn.Conv2d(3, 6, 1), g=nn.Linear(3, 4), w=param(4, 8, 6, 1, 1), o=nn.Conv2d(8, 2, 1)), (IMAGES,)


@uncommon([6])
def vector_quantised() -> Case:
    def f(s, x):
        h = s.a(x).relu()
        i = torch.cdist(h, s.c).argmin(-1)
        return s.o(F.embedding(i, s.c))

    return Written(f, a=nn.Linear(5, 6), c=param(4, 6), o=nn.Linear(6, 2)), (ROWS,)


@uncommon([6])
def gated_linear_unit() -> Case:
    return nn.Sequential(nn.Linear(5, 12), nn.GLU(), nn.Linear(6, 2)), (ROWS,)


@uncommon([3, 8])
def low_rank_product() -> Case:
    return Written(lambda s, x: s.o((x @ (s.u @ s.v)).relu()), u=param(5, 3), v=param(3, 8), o=nn.Linear(8, 2)), (ROWS,)


@uncommon([8, 3])
def low_rank_update() -> Case:
    return Written(
        lambda s, x: s.o((s.a(x) + s.q(s.p(x)) * 2).relu()),
        a=nn.Linear(5, 8),
        p=nn.Linear(5, 3, bias=False),
        q=nn.Linear(3, 8, bias=False),
        o=nn.Linear(8, 2),
    ), (ROWS,)


@uncommon([6])
def factorisation_machine() -> Case:
    def f(s, x):
        e = x.unsqueeze(-1) * s.v
        return s.w(x) + 0.5 * (e.sum(1) ** 2 - (e**2).sum(1)).sum(-1, keepdim=True)

    return Written(f, v=param(5, 6), w=nn.Linear(5, 1)), (ROWS,)


@uncommon([6])
def feature_interactions() -> Case:
    def f(s, x):
        z = torch.stack([s.a(x).relu(), s.b(x).relu(), s.c(x)], 1)
        d = z @ z.transpose(1, 2)
        i, j = torch.triu_indices(3, 3, 1)
        return s.o(torch.cat([d[:, i, j], z[:, 0]], 1))

    return Written(f, a=nn.Linear(5, 6), b=nn.Linear(5, 6), c=nn.Linear(5, 6), o=nn.Linear(9, 2)), (ROWS,)


@uncommon([2, (4, 2), (4, 2)])
def linear_attention() -> Case:
    def f(s, x):
        q, k, v = s.qkv(x).view(2, 7, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        q = q.softmax(-1)
        k = k.softmax(-2)
        c = k.transpose(-1, -2) @ v
        y = (q @ c).transpose(1, 2).reshape(2, 7, 8)
        return s.o(y)

    return Written(f, qkv=nn.Linear(5, 24), o=nn.Linear(8, 2)), (TOKENS,)


@uncommon([6, 4])
def state_space() -> Case:
    def f(s, x):
        u = s.a(x)
        A = -s.A.exp()
        h = u.new_zeros(2, 6, 4)
        ys = []
        for t in range(3):
            h = h * torch.exp(A) + u[:, t].unsqueeze(-1) * s.B(u[:, t]).unsqueeze(1)
            ys.append((h * s.C(u[:, t]).unsqueeze(1)).sum(-1))
        return s.o(torch.stack(ys, 1))

    return Written(f, a=nn.Linear(5, 6), A=param(6, 4), B=nn.Linear(6, 4), C=nn.Linear(6, 4), o=nn.Linear(6, 2)), (
        TOKENS,
    )


@uncommon([6])
def graph_network() -> Case:
    def f(s, x, i):
        h = s.a(x).relu()
        m = torch.zeros_like(h).index_add(0, i[1], h[i[0]])
        return s.o((s.b(m) + h).relu())

    return Written(f, a=nn.Linear(5, 6), b=nn.Linear(6, 6), o=nn.Linear(6, 2)), (
        torch.randn(4, 5),
        torch.tensor([[0, 1, 2], [1, 2, 3]]),
    )


@uncommon([4, (3, 4)])
def repeated_units() -> Case:
    return Written(
        lambda s, x: s.o(s.a(x).repeat_interleave(3, -1) * s.b(x)),
        a=nn.Linear(5, 4),
        b=nn.Linear(5, 12),
        o=nn.Linear(12, 2),
    ), (ROWS,)


@uncommon([6])
def several_outputs() -> Case:
    return Written(
        lambda s, x: {"a": s.o(s.a(x).relu()), "b": (s.p(s.a(x).relu()),)},
        a=nn.Linear(5, 6),
        o=nn.Linear(6, 2),
        p=nn.Linear(6, 1),
    ), (ROWS,)


@uncommon([6])
def sorted_units() -> Case:
    return Written(lambda s, x: s.o(s.a(x).sort(-1).values), a=nn.Linear(5, 6), o=nn.Linear(6, 2)), (ROWS,)


@uncommon([6])
def antialiased_resize() -> Case:
    return Written(
        lambda s, x: s.o(F.interpolate(s.a(x).relu(), size=(5, 5), mode="bilinear", antialias=True)),
        a=nn.Conv2d(3, 6, 1),
        o=nn.Conv2d(6, 2, 1),
    ), (IMAGES,)


@uncommon([6])
def spatial_transformer() -> Case:
    def f(s, x):
        g = F.affine_grid(s.t(x.mean((2, 3))).view(2, 2, 3), [2, 6, 8, 8], align_corners=False)
        return s.o(F.grid_sample(s.a(x), g, align_corners=False).relu())

    return Written(f, a=nn.Conv2d(3, 6, 1), t=nn.Linear(3, 6), o=nn.Conv2d(6, 2, 1)), (IMAGES,)


@uncommon([4, 6])
def mixed_along_an_axis() -> Case:
    def f(s, x):
        h = s.a(x).view(2, 7, 4, 6)  # (B,L,f,p)
        h = h + s.m(h).tanh()  # linear over p with residual
        h = h * s.w
        return s.o(h.flatten(2))

    return Written(f, a=nn.Linear(5, 24), m=nn.Linear(6, 6), w=param(4, 6), o=nn.Linear(24, 2)), (TOKENS,)


@uncommon([4, 6])
def mixed_by_a_product() -> Case:
    def f(s, x):
        h = s.a(x).view(2, 7, 4, 6)
        h = h + (h @ s.m).tanh()
        return s.o(h.flatten(2))

    return Written(f, a=nn.Linear(5, 24), m=param(6, 6), o=nn.Linear(24, 2)), (TOKENS,)


@uncommon([4, 6])
def mixed_by_a_convolution() -> Case:
    def f(s, x):
        h = s.a(x.mean(1)).view(2, 4, 6)
        h = h + s.c(h).tanh()
        return s.o(h.flatten(1))

    return Written(f, a=nn.Linear(5, 24), c=nn.Conv1d(4, 4, 1), o=nn.Linear(24, 2)), (TOKENS,)


@uncommon([4])
def rolled_with_a_skip() -> Case:
    def f(s, x):
        h = s.a(x.mean(1)).view(2, 4, 6)
        h = h + h.roll(1, 2).tanh()
        return s.o(h.flatten(1))

    return Written(f, a=nn.Linear(5, 24), o=nn.Linear(24, 2)), (TOKENS,)


@uncommon([6])
def rows_found_by_a_condition() -> Case:
    def f(s, x):
        h = s.a(x).relu()
        rows = (x[:, 0] > 0).nonzero().squeeze(-1)
        return s.o(torch.zeros_like(h).index_add(0, rows, s.b(h[rows])) + h)

    return Written(f, a=nn.Linear(5, 6), b=nn.Linear(6, 6), o=nn.Linear(6, 2)), (ROWS,)


@uncommon([6])
def rows_chosen_by_a_mask() -> Case:
    def f(s, x):
        h = s.a(x).relu()
        mask = x[:, 0] > 0
        changed = h.clone()
        changed[mask] = s.b(h[mask])
        return s.o(changed)

    return Written(f, a=nn.Linear(5, 6), b=nn.Linear(6, 6), o=nn.Linear(6, 2)), (ROWS,)


@uncommon([4, 6, 4, 4])
def experts_in_a_loop() -> Case:
    def f(s, x):
        value, chosen = s.g(x).softmax(-1).topk(1, -1)
        y = torch.zeros(2, 6)
        for k, expert in enumerate(s.e):
            rows, _ = torch.where(chosen == k)
            y.index_add_(0, rows, expert(x[rows]) * value[rows])
        return s.o(y)

    experts = nn.ModuleList(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6)) for _ in range(3))
    return Written(f, g=nn.Linear(5, 3), e=experts, o=nn.Linear(6, 2)), (ROWS,)


@uncommon([6])
def scaled_by_a_number() -> Case:
    return Written(
        lambda s, x: s.o(s.a(x).relu()) * x.sum().item() + s.o(s.a(x)), a=nn.Linear(5, 6), o=nn.Linear(6, 2)
    ), (ROWS,)


@uncommon([4])
def image_without_a_batch() -> Case:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(0), nn.Linear(256, 2)), (IMAGES[0],)


@uncommon([6])
def quantised_per_unit() -> Case:
    return Written(
        lambda s, x: s.o((s.a(x) / s.q.abs()).round().clamp(-8, 7) * s.q.abs()),
        a=nn.Linear(5, 6),
        q=param(6),
        o=nn.Linear(6, 2),
    ), (ROWS,)


@uncommon([4])
def complex_parameter() -> Case:
    """A complex tensor is not permuted, so what it multiplies stays too."""
    return Written(
        lambda s, x: s.o((s.a(x).to(torch.complex64) * s.w).abs()) + s.p(s.b(x).relu()),
        a=nn.Linear(5, 6),
        w=nn.Parameter(torch.randn(6, dtype=torch.complex64)),
        o=nn.Linear(6, 2),
        b=nn.Linear(5, 4),
        p=nn.Linear(4, 2),
    ), (ROWS,)


@uncommon([6])
def weighted_bags() -> Case:
    """Weights made of units, one for each looked-up row: their order matters."""
    return Written(
        lambda s, x, i: s.o(s.e(i, per_sample_weights=s.a(x)).relu()),
        a=nn.Linear(5, 4),
        e=nn.EmbeddingBag(7, 6, mode="sum"),
        o=nn.Linear(6, 2),
    ), (ROWS, torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]]))


@uncommon([])
def weighted_counts() -> Case:
    """Units added up by class: each goes with the class at its place."""
    return Written(
        lambda s, x, i: s.o(torch.bincount(i, weights=s.a(x), minlength=6)[:6].to(x.dtype)),
        a=nn.Linear(5, 4),
        o=nn.Linear(6, 2),
    ), (ROWS[0], torch.tensor([0, 1, 5, 3]))
