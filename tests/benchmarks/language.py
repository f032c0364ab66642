"""What each kind of map brings between two language models: barriers on text no model was trained on, and CPU seconds.

    python tests/benchmarks/language.py [--cache FOLDER] [--sequences 512 8000]

Two models like GPT-2 (4 layers, width 128, LayerNorm with biases, a head apart) are trained once from seeds on the text
of ``fixtures/lm``, some minutes on one core, into a cache outside the repository. One row per kind of map in closed
form, then one for maps learned on each number of calibration sequences, all from weight matching. Barriers are over 21
points, in nats per character.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tabulate import tabulate
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment.beyond import learn
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.points import interpolate

LM = Path(__file__).parents[2] / "fixtures" / "lm"
sys.path.insert(0, str(LM))
import models  # noqa: E402  # beside the fixture's files
import train  # noqa: E402  # likewise

CACHE = Path.home() / ".cache" / "lmccheck-language"
STEPS, RATE, POINTS = 500, 3e-3, 21
CLOSED = {"head maps": ["head-maps"], "stream rotation": ["stream-rotation"], "all kinds": "all"}


def build() -> nn.Module:
    """Return the model: 4 layers of width 128, 4 heads, its head tied to the embedding until it is untied."""
    return models.Gpt(width=128, heads=4, depth=4)


def trained(cache: Path) -> None:
    """Train both models into ``cache`` unless they are there."""
    cache.mkdir(parents=True, exist_ok=True)
    tokens, held_out = train.text()
    train.FOLDER = cache
    for seed in (0, 1):
        if not (cache / f"mid-seed{seed}.safetensors").exists():
            model = train.trained(build, tokens, seed=seed, steps=STEPS, rate=RATE)
            train.save_trained(f"mid-seed{seed}", model, held_out[: 128 * models.LENGTH].view(128, models.LENGTH))


def pair_of(cache: Path, sequences: int) -> lmccheck.ModelPair:
    """Return the pair with so many sequences of the training text as calibration data."""
    calibration = cache / f"calibration-{sequences}.safetensors"
    if not calibration.exists():
        windows = train.windows(train.text()[0], sequences, torch.Generator().manual_seed(5)).to(torch.int16)
        save_file({"inputs": windows, "targets": windows.clone()}, calibration)
    files = [cache / f"mid-seed{seed}.safetensors" for seed in (0, 1)]
    return lmccheck.load_pair(
        *files, model=build, data=LM / "test.safetensors", calibration=calibration, loss="next_token", untie=True
    )


def barrier(pair: lmccheck.ModelPair, weights: dict[str, Tensor]) -> float:
    """Return max over 21 points of the loss above the chord."""
    evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
    a, b = evaluator.weights(pair.theta_a), evaluator.weights(weights)
    ts = [k / (POINTS - 1) for k in range(POINTS)]
    losses = [evaluator.measure(interpolate(a, b, t), reestimate=False, label="benchmark").loss for t in ts]
    return max(loss - (1 - t) * losses[0] - t * losses[-1] for t, loss in zip(ts, losses, strict=True))


def main() -> None:
    """Print the rows as they are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--sequences", type=int, nargs="*", default=[512, 8000])
    options = parser.parse_args()
    trained(options.cache)

    def show(*row: Any) -> None:
        print(tabulate([row], tablefmt="plain", floatfmt=("", ".4f", ".0f")), flush=True)

    def measure(name: str, sequences: int, steps: int, beyond: Any) -> None:
        pair, learn.STEPS = pair_of(options.cache, sequences), steps
        begin = time.process_time()
        alignment = lmccheck.align(pair, "weight-matching", beyond=beyond)
        show(name, barrier(pair, alignment.weights), time.process_time() - begin)

    steps, pair = learn.STEPS, pair_of(options.cache, 512)
    show("as they are", barrier(pair, pair.theta_b), 0)
    measure("permutation", 512, 0, ())
    for name, kinds in CLOSED.items():
        measure(f"+ {name}, closed form", 512, 0, kinds)
    for sequences in options.sequences:
        measure(f"+ all kinds, learned on {sequences} sequences", sequences, steps, "all")


if __name__ == "__main__":
    main()
