"""What the gate costs, as ratios against plain PyTorch and a textbook matching in the same run.

Run by hand: ``pytest tests/benchmarks -s``. Nothing here asserts a time; every row is a median over repetitions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment.methods.weight_matching import match
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.points import interpolate

ROWS: list[list[str]] = []


def median(run: Callable[[], object], repeat: int = 5) -> float:
    """Return the median seconds of ``run``."""
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def note(what: str, ours: float, yardstick: float, against: str) -> None:
    """Keep a row of the table."""
    ROWS.append([what, f"{ours:.3f} s", f"{yardstick:.3f} s", f"{ours / yardstick:.2f}", against])


@pytest.fixture(scope="module", autouse=True)
def table() -> object:
    """Print the table after the last benchmark."""
    yield
    print("\n" + tabulate(ROWS, ["what", "lmccheck", "yardstick", "ratio", "yardstick is"], disable_numparse=True))


def mlp() -> nn.Module:
    """784-512-512-512-10, the MLP of the published comparisons."""
    widths = [784, 512, 512, 512]
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(512, 10))


def cnn() -> nn.Module:
    """Two convolutions with BatchNorm, flatten, two linear layers on 28×28 images."""
    convolutions = [nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3)]
    head = [nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1600, 128), nn.ReLU()]
    return nn.Sequential(*convolutions, *head, nn.Linear(128, 10))


def states(build: Callable[[], nn.Module]) -> list[dict[str, Tensor]]:
    """Return two random state dicts."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(build().state_dict())
    return found


@pytest.mark.parametrize(("build", "shape"), [(mlp, (10_000, 784)), (cnn, (2_000, 1, 28, 28))], ids=["mlp", "cnn"])
def test_one_point_of_a_curve(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """Evaluating one point costs about what the forward passes cost (BatchNorm: twice, for re-estimation)."""
    a, b = states(build)
    inputs, targets = torch.randn(shape), torch.randint(0, 10, shape[:1])
    pair = lmccheck.load_pair(a, b, model=build, data=(inputs, targets), calibration=(inputs, targets), device="cpu")
    evaluator = Evaluator(pair.network, pair.theta_a, pair.theta_b)
    first, second = evaluator.weights(a), evaluator.weights(b)
    module = build().eval()

    def plain() -> None:
        with torch.no_grad():
            for x, y in zip(inputs.split(1000), targets.split(1000), strict=True):
                F.cross_entropy(module(x), y)

    ours = median(lambda: evaluator.measure(interpolate(first, second, 0.5), reestimate=True, label=""))
    note(f"one point, {build.__name__}, {shape[0]} samples", ours, median(plain), "a bare forward loop over the data")


def test_weight_matching() -> None:
    """Matching by the derived spec against a textbook implementation written for this MLP, one descent each."""
    a, b = states(mlp)
    spec = lmccheck.discover_symmetry(mlp(), (torch.zeros(2, 784),))

    def textbook() -> None:
        left, right = ({k: v.double().numpy() for k, v in x.items()} for x in (a, b))
        names = ["0", "2", "4", "6"]
        permutations = {n: list(range(512)) for n in names[:3]}
        for _ in range(sweeps):
            for k, name in enumerate(names[:3]):
                after = names[k + 1]
                rows = right[f"{name}.weight"] if k == 0 else right[f"{name}.weight"][:, permutations[names[k - 1]]]
                columns = right[f"{after}.weight"] if k == 2 else right[f"{after}.weight"][permutations[after]]
                score = left[f"{name}.weight"] @ rows.T + left[f"{after}.weight"].T @ columns
                score += left[f"{name}.bias"][:, None] * right[f"{name}.bias"][None]
                permutations[name] = linear_sum_assignment(score, maximize=True)[1].tolist()

    sweeps = len(match(spec, a, b, starts=1).best.objectives) - 1
    ours = median(lambda: match(spec, a, b, starts=1), 3)
    note(f"weight matching, mlp, {sweeps} sweeps", ours, median(textbook, 3), "hand-written matching, as many sweeps")


def test_discovery_and_verification() -> None:
    """What soundness costs: export, analysis and float64 verification against one forward pass over 1,000 images."""
    module = cnn().eval()
    example = (torch.randn(2, 1, 28, 28),)
    images = torch.randn(1000, 1, 28, 28)

    def forward() -> None:
        with torch.no_grad():
            module(images)

    ours = median(lambda: lmccheck.discover_symmetry(module, example).verify(module, example))
    note("discover and verify, cnn", ours, median(forward), "one forward pass over 1,000 images")
