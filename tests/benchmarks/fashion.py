"""Pairs of networks trained apart on Fashion-MNIST, made once and kept in a cache outside the repository.

``python tests/benchmarks/fashion.py [network ...]`` trains whatever is missing, about an hour on one core.
Environment: ``LMC_FASHION`` is the folder of the four ``.gz`` files (default: where Debian's package
``dataset-fashion-mnist`` puts them), ``LMC_BENCH_CACHE`` the cache (default: ``~/.cache/lmccheck-benchmarks``). The
networks are model sources: ``fashion:mlp``. Only torch and safetensors are imported, so that peers can build them too.
"""

from __future__ import annotations

import gzip
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SOURCE = Path(os.environ.get("LMC_FASHION", "/usr/share/datasets/fashion-mnist"))
CACHE = Path(os.environ.get("LMC_BENCH_CACHE", "~/.cache/lmccheck-benchmarks")).expanduser()
SEEDS = (0, 1)


def perceptron(bias: bool) -> nn.Module:
    """Return 784-512-512-512-10 with ReLU."""
    hidden = [nn.Linear(784, 512, bias), nn.ReLU(), nn.Linear(512, 512, bias), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(512, 512, bias), nn.ReLU(), nn.Linear(512, 10, bias))


def convolutions(norm: bool) -> nn.Module:
    """Return four convolutions (32, 64, 128, 128 channels), flatten, two linear layers."""
    layers: list[nn.Module] = []
    for before, after, pool in [(1, 32, False), (32, 64, True), (64, 128, True), (128, 128, True)]:
        layers += [nn.Conv2d(before, after, 3, padding=1), *([nn.BatchNorm2d(after)] if norm else []), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1152, 256), nn.ReLU(), nn.Linear(256, 10))


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside an identity, or beside a 1×1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, three residual blocks (32, 64, 128 channels), global average pool, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, 2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.blocks = nn.Sequential(Residual(32, 32, 1), Residual(32, 64, 2), Residual(64, 128, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.stem(x))))
        return self.head(self.pool(x).flatten(1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-LayerNorm attention (4 heads, fused qkv) and a GELU feed-forward layer."""

    def __init__(self, width: int = 128, heads: int = 4, inner: int = 256) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """The 28 rows of an image as tokens, learned positions, two blocks, mean over tokens, linear."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Linear(28, width)
        self.positions = nn.Parameter(0.02 * torch.randn(28, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.squeeze(1)) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))  # type: ignore[no-any-return]


def mlp() -> nn.Module:
    """784-512-512-512-10 with biases."""
    return perceptron(bias=True)


def mlpnb() -> nn.Module:
    """784-512-512-512-10 without biases."""
    return perceptron(bias=False)


def cnn() -> nn.Module:
    """Four convolutions and two linear layers."""
    return convolutions(norm=False)


def cnnbn() -> nn.Module:
    """The same with BatchNorm after every convolution."""
    return convolutions(norm=True)


def resnet() -> nn.Module:
    """Three residual blocks with BatchNorm, 308,000 parameters."""
    return ResNet()


def tfm() -> nn.Module:
    """A transformer of two blocks over the rows of the image."""
    return Transformer()


class Recipe(NamedTuple):
    """How a network is made and trained: so many passes over the first so many training images."""

    build: Callable[[], nn.Module]
    epochs: int
    images: int


RECIPES = {
    "mlp": Recipe(mlp, 10, 60_000),
    "resnet": Recipe(resnet, 3, 30_000),
    "tfm": Recipe(tfm, 3, 30_000),
    "cnn": Recipe(cnn, 3, 60_000),
    "mlpnb": Recipe(mlpnb, 8, 60_000),
    "cnnbn": Recipe(cnnbn, 3, 60_000),
}


def read(part: str) -> tuple[Tensor, Tensor]:
    """Return the normalised images and the labels of ``train`` or ``t10k``."""

    def values(name: str, header: int) -> Tensor:
        with gzip.open(SOURCE / f"{part}-{name}-ubyte.gz") as file:
            return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8, offset=header)

    images = values("images-idx3", 16).view(-1, 1, 28, 28).float() / 255
    return (images - 0.2860) / 0.3530, values("labels-idx1", 8).long()


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    temporary.replace(path)


def write_data() -> None:
    """Write the missing data files."""
    for name, part, count in [("test", "t10k", 10_000), ("test4k", "t10k", 4_000), ("calibration", "train", 5_000)]:
        path = CACHE / f"fashion-{name}.safetensors"
        if not path.exists():
            inputs, targets = read(part)
            save({"inputs": inputs[:count].clone(), "targets": targets[:count].clone()}, path)


def train(recipe: Recipe, seed: int, inputs: Tensor, targets: Tensor) -> nn.Module:
    """Train one network; the seed draws its weights and the order of the data."""
    torch.manual_seed(seed)
    module = recipe.build().train()
    batches = [-(-recipe.images // 256)] * recipe.epochs
    optimizer = torch.optim.Adam(module.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=sum(batches))
    for _ in batches:
        for chosen in torch.split(torch.randperm(recipe.images), 256):
            optimizer.zero_grad()
            F.cross_entropy(module(inputs[chosen]), targets[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return module.eval()


@torch.no_grad()
def score(module: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    logits = torch.cat([module(x) for x in torch.split(inputs, 1000)])
    return F.cross_entropy(logits, targets).item(), (logits.argmax(1) == targets).float().mean().item()


def main(names: list[str]) -> None:
    """Train what is missing, and say how good it is."""
    write_data()
    inputs, targets = read("train")
    test = load_file(CACHE / "fashion-test.safetensors")
    for name in names or RECIPES:
        for seed in SEEDS:
            path = CACHE / f"{name}-seed{seed}.safetensors"
            if path.exists():
                continue
            begin = time.perf_counter()
            module = train(RECIPES[name], seed, inputs, targets)
            loss, accuracy = score(module, test["inputs"], test["targets"])
            save(module.state_dict(), path)
            took = time.perf_counter() - begin
            print(f"{path.name}: test loss {loss:.4f}, accuracy {accuracy:.2%}, trained in {took:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
