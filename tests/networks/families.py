"""Small networks of every family the analysis must treat soundly; a builder returns (module, example inputs)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.registry import Case, network
from networks.written import Written, param, residual


@network([7, 6])
def mlp() -> Case:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.GELU(), nn.Linear(6, 3)), (torch.randn(4, 5),)


@network([4])
def mlp_width_one() -> Case:
    return nn.Sequential(nn.Linear(5, 1), nn.ReLU(), nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 3)), (torch.randn(4, 5),)


@network([7])
def mlp_in_place() -> Case:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.BatchNorm1d(7), nn.Linear(7, 3)), (
        torch.randn(4, 5),
    )


@network([6])
def mlp_weight_shared() -> Case:
    middle = nn.Linear(6, 6)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), middle, nn.ReLU(), middle, nn.ReLU(), nn.Linear(6, 2)), (
        torch.randn(4, 5),
    )


@network()
def autoencoder_tied() -> Case:
    def tied(x: Tensor, encoder: nn.Module) -> Tensor:
        return F.linear(F.relu(encoder(x)), encoder.weight.t())

    return Written(tied, nn.Linear(5, 8)), (torch.randn(4, 5),)


@network([4, 6, 9])
def vgg() -> Case:
    layers = [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
    ]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 3)]
    return nn.Sequential(*layers, *head), (torch.randn(2, 3, 8, 8),)


@network([4, 4, 6, 6, 6])
def resnet() -> Case:
    def block(width: int, out: int, stride: int) -> nn.Module:
        body = nn.Sequential(
            nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        skip = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if stride > 1 else None
        return residual(body, skip, nn.ReLU(inplace=True))

    stem = [nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    return nn.Sequential(*stem, block(4, 4, 1), block(4, 6, 2), block(6, 6, 1), *tail), (torch.randn(2, 3, 8, 8),)


@network([4, 8, (2, 8), 5])
def mobilenet() -> Case:
    layers = [
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.BatchNorm2d(4), nn.Hardswish(),
        nn.Conv2d(4, 8, 1), nn.Conv2d(8, 16, 3, groups=8), nn.SiLU(), nn.Conv2d(16, 5, 1),
    ]  # fmt: skip
    return nn.Sequential(*layers, Written(lambda x: x.mean((2, 3))), nn.Linear(5, 2)), (torch.randn(2, 3, 6, 6),)


@network([4, (2, 4), (3, 4), 5])
def grouped_convolution() -> Case:
    layers = [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(12, 5, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)), (torch.randn(2, 3, 6, 6),)


@network([4, (2, 4), 6])
def group_norm() -> Case:
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.GroupNorm(4, 8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.GroupNorm(1, 6),
        nn.ReLU(),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Linear(24, 2)), (torch.randn(2, 3, 6, 6),)


@network()
def instance_norm() -> Case:
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.InstanceNorm2d(8, affine=True),
        nn.PReLU(8),
        nn.Conv2d(8, 4, 3),
        nn.PReLU(),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Linear(16, 2)), (torch.randn(2, 3, 6, 6),)


@network([4, 3, 5])
def densenet() -> Case:
    def dense(x: Tensor, first: nn.Module, second: nn.Module, norm: nn.Module, third: nn.Module) -> Tensor:
        x = first(x)
        y = torch.cat([x, F.relu(second(x))], 1)
        z = torch.cat([y, F.relu(third(F.relu(norm(y))))], 1)
        return F.avg_pool2d(z, 2)

    parts = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(7), nn.Conv2d(7, 5, 1)
    return nn.Sequential(Written(dense, *parts), nn.Flatten(), nn.Linear(48, 2)), (torch.randn(2, 3, 4, 4),)


@network([6, 2, 4])
def squeeze_excite() -> Case:
    def gate(x: Tensor, down: nn.Module, up: nn.Module) -> Tensor:
        return x * torch.sigmoid(up(F.relu(down(x.mean((2, 3)))))).unsqueeze(-1).unsqueeze(-1)

    body = Written(gate, nn.Linear(6, 2), nn.Linear(2, 6))
    return nn.Sequential(nn.Conv2d(3, 6, 3), body, nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(64, 2)), (
        torch.randn(2, 3, 6, 6),
    )


@network()
def channel_shuffle() -> Case:
    def shuffle(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    layers = [
        nn.Conv2d(3, 8, 1),
        nn.ReLU(),
        Written(shuffle),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Linear(16, 2)), (torch.randn(2, 3, 4, 4),)


@network([4, 4, 4])
def split_in_halves() -> Case:
    def halves(x: Tensor, left: nn.Module, right: nn.Module) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([F.relu(left(a)), b * right(b).sigmoid()], 1)

    return nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), Written(halves, nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(8, 2)
    ), (torch.randn(4, 5),)


@network()
def uneven_slices() -> Case:
    def slices(x: Tensor) -> Tensor:
        return torch.cat([x[:, :3] * 2, x[:, 3:8].tanh(), x[:, 1:2]], 1)

    return nn.Sequential(nn.Linear(5, 8), Written(slices), nn.Linear(9, 2)), (torch.randn(4, 5),)


@network()
def transposed_convolution() -> Case:
    layers = [
        nn.Conv2d(3, 6, 3, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    ]
    return nn.Sequential(*layers), (torch.randn(2, 3, 7, 7),)


@network()
def convolution_1d() -> Case:
    layers = [
        nn.Conv1d(3, 6, 3),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(6, 4, 2),
        nn.Flatten(),
        nn.Linear(8, 2),
    ]
    return nn.Sequential(*layers), (torch.randn(2, 3, 8),)


@network()
def glu() -> Case:
    return nn.Sequential(nn.Linear(5, 12), nn.GLU(), nn.Linear(6, 2)), (torch.randn(4, 5),)


@network([6, (2, 6)])
def maxout() -> Case:
    return nn.Sequential(nn.Linear(5, 12), Written(lambda x: x.view(-1, 6, 2).amax(-1)), nn.Linear(6, 2)), (
        torch.randn(4, 5),
    )


@network()
def softmax_gating() -> Case:
    return nn.Sequential(nn.Linear(5, 6), nn.Softmax(-1), nn.LayerNorm(6), nn.Linear(6, 4), nn.LogSoftmax(-1)), (
        torch.randn(4, 5),
    )


@network([])
def order_matters() -> Case:
    return nn.Sequential(
        nn.Linear(5, 6),
        Written(lambda x: x.cumsum(-1)),
        nn.Linear(6, 4),
        Written(lambda x: x.flip(-1) + x),
        nn.Linear(4, 2),
    ), (torch.randn(4, 5),)


@network()
def constant_pattern() -> Case:
    return nn.Sequential(
        nn.Linear(5, 6),
        Written(lambda x: x * torch.arange(6.0)),
        nn.Linear(6, 4),
        Written(lambda x: x + 1.5),
        nn.Linear(4, 2),
    ), (torch.randn(4, 5),)


class Attention(nn.Module):
    """Multi-head self-attention written out, or fused in one of three ways people fuse it."""

    def __init__(self, width: int, heads: int, style: str, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.style, self.causal = heads, style, causal
        if style == "separate":
            self.q, self.k, self.v = (
                nn.Linear(width, width),
                nn.Linear(width, width, bias=False),
                nn.Linear(width, width),
            )
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        h = self.heads
        if self.style == "separate":
            q, k, v = (part(x).view(n, t, h, d // h).transpose(1, 2) for part in (self.q, self.k, self.v))
        elif self.style == "chunk":
            q, k, v = (part.view(n, t, h, d // h).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        elif self.style == "unbind":
            q, k, v = self.qkv(x).reshape(n, t, 3, h, d // h).permute(2, 0, 3, 1, 4).unbind(0)
        else:  # per head: heads outermost, then q, k, v
            q, k, v = self.qkv(x).view(n, t, h, 3 * (d // h)).transpose(1, 2).chunk(3, -1)
        if self.causal:
            scores = q @ k.transpose(-2, -1) / (d // h) ** 0.5
            scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), float("-inf"))
            y = scores.softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, d))


def _encoder(style: str, causal: bool = False) -> Case:
    def layer() -> nn.Module:
        attention = residual(nn.Sequential(nn.LayerNorm(8), Attention(8, 2, style, causal)))
        feed_forward = residual(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8)))
        return nn.Sequential(attention, feed_forward)

    return nn.Sequential(nn.Linear(5, 8), layer(), layer(), Written(lambda x: x.mean(1)), nn.Linear(8, 3)), (
        torch.randn(2, 6, 5),
    )


@network([8, 2, (4, 2), (4, 2), 10, 2, (4, 2), (4, 2), 10])
def encoder_separate() -> Case:
    return _encoder("separate")


@network([8, 2, (4, 2), (4, 2), 10, 2, (4, 2), (4, 2), 10])
def encoder_chunk() -> Case:
    return _encoder("chunk")


@network([8, 2, (4, 2), (4, 2), 10, 2, (4, 2), (4, 2), 10])
def encoder_unbind() -> Case:
    return _encoder("unbind")


@network([8, 2, (4, 2), (4, 2), 10, 2, (4, 2), (4, 2), 10])
def encoder_per_head() -> Case:
    return _encoder("per head")


@network()
def decoder_causal() -> Case:
    return _encoder("chunk", causal=True)


@network([8, 2, (4, 2), (4, 2), 12, 2, (4, 2), (4, 2), 12])
def torch_encoder_post_norm() -> Case:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(5, 8), encoder, Written(lambda x: x[:, 0]), nn.Linear(8, 3)), (torch.randn(2, 6, 5),)


@network()
def torch_encoder_pre_norm() -> Case:
    layer = nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(5, 8), encoder, Written(lambda x: x.mean(0)), nn.Linear(8, 3)), (
        torch.randn(6, 2, 5),
    )


class LanguageModel(nn.Module):
    """Token and position embeddings, a causal encoder, an output head tied to the token embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.block = residual(nn.Sequential(nn.LayerNorm(8), Attention(8, 2, "unbind", causal=True)))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, index: Tensor) -> Tensor:
        x = self.tokens(index) + self.positions(torch.arange(index.shape[1]))
        return self.head(self.norm(self.block(x)))


@network([8, 2, (4, 2), (4, 2)])
def language_model_tied() -> Case:
    return LanguageModel(), (torch.randint(0, 11, (2, 6)),)


class VisionTransformer(nn.Module):
    """Patches by convolution, a class token, learned positions, torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.randn(1, 10, 8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head(x[:, 0])


@network([8, 2, (4, 2), (4, 2)])
def vision_transformer() -> Case:
    return VisionTransformer(), (torch.randn(2, 3, 6, 6),)


class RMSNorm(nn.Module):
    """Root-mean-square norm as language models write it out, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Llama(nn.Module):
    """Grouped-query attention with rotary positions, RMSNorm, SwiGLU."""

    def __init__(self, rotary: bool = True) -> None:
        super().__init__()
        self.rotary, self.embed = rotary, nn.Embedding(11, 16)
        self.norm1, self.norm2 = RMSNorm(16), RMSNorm(16)
        self.q, self.k, self.v, self.o = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 16)
        self.gate, self.up, self.down = nn.Linear(16, 20), nn.Linear(16, 20), nn.Linear(20, 16)
        self.head = nn.Linear(16, 11)
        self.register_buffer("frequencies", 1 / 100 ** (torch.arange(0, 4, 2) / 4), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[2]).to(x.dtype), self.frequencies.to(x.dtype))
        angles = torch.cat([angles, angles], -1)
        half = torch.cat([-x[..., 2:], x[..., :2]], -1)
        return x * angles.cos() + half * angles.sin()

    def forward(self, index: Tensor) -> Tensor:
        x = self.embed(index)
        n, t, _ = x.shape
        y = self.norm1(x)
        q, k, v = (p(y).view(n, t, h, 4).transpose(1, 2) for p, h in ((self.q, 4), (self.k, 2), (self.v, 2)))
        if self.rotary:
            q, k = self.rotate(q), self.rotate(k)
        k, v = (z[:, :, None].expand(n, 2, 2, t, 4).reshape(n, 4, t, 4) for z in (k, v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(n, t, 16))
        y = self.norm2(x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


@network([16, 2, (2, 2), (4, 2), 20])
def llama() -> Case:
    return Llama(), (torch.randint(0, 11, (2, 5)),)


@network([16, 2, (2, 2), (4, 2), (4, 2), 20])
def llama_without_rotary() -> Case:
    return Llama(rotary=False), (torch.randint(0, 11, (2, 5)),)


@network()
def cross_attention() -> Case:
    def cross(s: Written, x: Tensor, y: Tensor) -> Tensor:
        x, y = s.a(x), s.b(y)
        return s.head(x + s.attention(x, y, y)[0])

    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    module = Written(cross, a=nn.Linear(5, 8), b=nn.Linear(3, 8), attention=attention, head=nn.Linear(8, 2))
    return module, (torch.randn(2, 4, 5), torch.randn(2, 6, 3))


@network()
def einsum_bilinear() -> Case:
    def bilinear(x: Tensor, a: nn.Module, core: Tensor, head: nn.Module) -> Tensor:
        x = a(x)
        return head(torch.einsum("bi,bj,ijk->bk", x, x, core))

    return Written(bilinear, nn.Linear(5, 6), param(6, 6, 4), nn.Linear(4, 2)), (torch.randn(3, 5),)


@network()
def gram_matrix() -> Case:
    def gram(x: Tensor) -> Tensor:
        return (x.transpose(1, 2) @ x).flatten(1)

    return nn.Sequential(nn.Linear(5, 4), Written(gram), nn.Linear(16, 2)), (torch.randn(3, 6, 5),)


@network()
def mlp_mixer() -> Case:
    def across(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
        return x + second(F.gelu(first(x.transpose(1, 2)))).transpose(1, 2)

    tokens = Written(across, nn.Linear(4, 6), nn.Linear(6, 4))
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), tokens, Written(lambda x: x.mean(1)), nn.Linear(8, 2)), (
        torch.randn(3, 4, 5),
    )


@network()
def pixel_shuffle() -> Case:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(2, 2, 3)), (
        torch.randn(2, 3, 4, 4),
    )


@network([6, 4])
def upsampled() -> Case:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Upsample(scale_factor=2), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(144, 2)
    ), (torch.randn(2, 3, 6, 6),)


@network([2, 3, 2])
def head_mixing() -> Case:
    """Talking heads: a linear map over the head axis, so head dimensions must move alike in every head."""

    def talk(x: Tensor, lift: nn.Module, mix: nn.Module, drop: nn.Module) -> Tensor:
        y = lift(x).view(-1, 2, 3)
        return drop(mix(y.transpose(1, 2)).transpose(1, 2).reshape(-1, 6))

    return Written(talk, nn.Linear(5, 6), nn.Linear(2, 2), nn.Linear(6, 2)), (torch.randn(4, 5),)


@network([3, (2, 3)])
def softmax_over_heads() -> Case:
    def over(x: Tensor, lift: nn.Module, drop: nn.Module) -> Tensor:
        return drop(lift(x).view(-1, 2, 3).softmax(1).reshape(-1, 6))

    return Written(over, nn.Linear(5, 6), nn.Linear(6, 2)), (torch.randn(4, 5),)


@network([8, 2, 4, (4, 2), 8])
def query_key_norm() -> Case:
    def attend(x: Tensor, qkv: nn.Module, norm: nn.Module, out: nn.Module) -> Tensor:
        n, t, _ = x.shape
        q, k, v = qkv(x).view(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return out(F.scaled_dot_product_attention(norm(q), norm(k), v).transpose(1, 2).reshape(n, t, 8))

    parts = nn.Linear(8, 24), nn.LayerNorm(4), nn.Linear(8, 8)
    return nn.Sequential(nn.Linear(5, 8), Written(attend, *parts), nn.Linear(8, 2)), (torch.randn(2, 6, 5),)


@network()
def lstm() -> Case:
    return nn.Sequential(nn.LSTM(5, 6, batch_first=True), Written(lambda x: x[0][:, -1]), nn.Linear(6, 2)), (
        torch.randn(2, 4, 5),
    )


@network()
def attention_grouped_queries_with_batched_heads() -> Case:
    """enable_gqa with units on a leading batch dimension too."""

    def attend(x: Tensor, lift: nn.Module, q: nn.Module, k: nn.Module, v: nn.Module, out: nn.Module) -> Tensor:
        x = lift(x)

        def heads(z: Tensor, count: int) -> Tensor:
            return z.view(len(x), 2, count, 3).permute(1, 2, 0, 3)

        y = F.scaled_dot_product_attention(heads(q(x), 4), heads(k(x), 2), heads(v(x), 2), enable_gqa=True)
        return out(y.permute(2, 0, 1, 3).reshape(len(x), -1))

    parts = nn.Linear(5, 7), nn.Linear(7, 24), nn.Linear(7, 12), nn.Linear(7, 12), nn.Linear(24, 3)
    return Written(attend, *parts), (torch.randn(6, 5),)


@network([8])
def weight_normalised() -> Case:
    first = nn.utils.parametrizations.weight_norm(nn.Linear(5, 8))
    return nn.Sequential(first, nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))), (torch.randn(4, 5),)


@network([8])
def class_token_repeated() -> Case:
    def run(x: Tensor, lift: nn.Module, token: Tensor, head: nn.Module) -> Tensor:
        x = torch.cat([token.repeat(len(x), 1, 1), lift(x)], 1)
        return head(x.max(1)[0].relu())

    return Written(run, nn.Linear(5, 8), param(1, 1, 8), nn.Linear(8, 2)), (torch.randn(3, 4, 5),)


@network([2, (4, 2), (4, 2)])
def relative_position_table() -> Case:
    def attend(x: Tensor, qkv: nn.Module, out: nn.Module, table: Tensor, places: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = qkv(x).view(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
        bias = table[places.view(-1)].view(t, t, 2).permute(2, 0, 1)
        scores = (q @ k.transpose(-2, -1) + bias).softmax(-1)
        return out((scores @ v).transpose(1, 2).reshape(n, t, 8))

    module = Written(attend, nn.Linear(5, 24), nn.Linear(8, 2), param(7, 2))
    module.register_buffer("part3", torch.arange(4)[:, None] - torch.arange(4)[None] + 3)  # saved, as libraries do
    module.unnamed.append("part3")
    return module, (torch.randn(2, 4, 5),)


@network([])
def argmax_is_read() -> Case:
    """The place of a maximum over hidden units is used, so they cannot move."""

    def winner(x: Tensor, lift: nn.Module, drop: nn.Module) -> Tensor:
        value, place = lift(x).max(-1)
        return drop(torch.stack([value, place.to(value.dtype)], -1))

    return Written(winner, nn.Linear(5, 6), nn.Linear(2, 2)), (torch.randn(4, 5),)
