"""Weight matching at the width of a 7B language model: time and peak memory, in a process of its own.

python tests/benchmarks/llama_block.py [BLOCKS [DTYPE]]: blocks of hidden width 4096 and FFN width 11008 with a planted
permutation and 10 % weight noise. Prints the peak memory over the two checkpoints' own size, and whether the planted
permutation was found. On a GPU the similarities and assignments are computed there.
"""

from __future__ import annotations

import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmccheck.alignment.methods.weight_matching import match
from lmccheck.symmetry.compose import compose
from lmccheck.symmetry.discover import derive
from lmccheck.symmetry.sites import Layer
from lmccheck.symmetry.spec import PermutationSpec

WIDTH, HEADS, HIDDEN = 4096, 32, 11008


class Block(nn.Module):
    """Pre-RMSNorm attention with rotary positions, and a SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (layer(h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(_turned(q), _turned(k), v, is_causal=True)
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def _turned(x: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021)."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(x.shape[-2]), 1e4 ** (-torch.arange(half) / half))
    cos, sin = angles.cos().repeat(1, 2).to(x), angles.sin().repeat(1, 2).to(x)
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Blocks(nn.Module):
    """A stack of blocks between a small vocabulary and its logits."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 64, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(tokens))))


def derived(blocks: int) -> tuple[PermutationSpec, tuple[Layer, ...]]:
    """Return the permutation spec and the layers of a stack of blocks."""
    found = derive(Blocks(blocks).eval(), (torch.zeros(2, 8, dtype=torch.int64),))
    return found.spec, found.layers


def main(blocks: int, dtype: torch.dtype) -> None:
    """Match a planted pair and print what it took."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as aside:  # its memory is not matching's
        spec, layers = aside.submit(derived, blocks).result()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    first = {k: (torch.randn(v) * 0.02).to(dtype) for k, v in spec.shapes.items()}
    planted = spec.random(1)
    second = {}
    for name, value in first.items():
        noisy = value + (0.1 * 0.02 * torch.randn(value.shape)).to(dtype)
        spec.move_(name, noisy, planted)
        second[name] = noisy
    size = 2 * sum(value.numel() * value.element_size() for value in first.values()) / 2**30
    a, b = ({k: v.to(device) for k, v in weights.items()} for weights in (first, second))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    begin = time.perf_counter()
    found = match(spec, a, b, layers=layers)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sweeps = len(found.best.objectives) - 1
    print(f"{blocks} block(s) of {dtype}, two checkpoints {size:.2f} GiB, on {device}, torch {torch.__version__}")
    print(f"matched in {seconds:.0f} s, {sweeps} sweeps, converged: {found.best.converged}, gap {found.best.gap:.1e}")
    print(f"peak of the process {peak:.2f} GiB (before matching {before:.2f}), {peak / size:.2f} x the two checkpoints")
    if device == "cuda":
        print(f"peak on the GPU {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    print(f"found the planted permutation: {_recovered(spec, planted, found.permutation)}")


def _recovered(spec: PermutationSpec, planted: dict[str, Tensor], found: dict[str, Tensor]) -> bool:
    """Whether the found permutation undoes the planted one."""
    undone = compose(spec, planted, found)
    return all(torch.equal(p, torch.arange(p.shape[-1]).expand_as(p)) for p in undone.values())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1, getattr(torch, sys.argv[2] if len(sys.argv) > 2 else "float32"))
