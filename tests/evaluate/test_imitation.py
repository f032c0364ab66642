"""How far outputs are from the line between both ends: by hand, in float64, and where outputs go straight."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lmccheck
from lmccheck.data.load import Batch
from lmccheck.evaluate import imitation
from lmccheck.evaluate.gradient import Gradient
from lmccheck.evaluate.imitation import Imitation

State = dict[str, Tensor]


class Words(nn.Module):
    """Logits of the next of three tokens, a row for each."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x)  # type: ignore[no-any-return]


def seeded(module: nn.Module, seed: int) -> State:
    """Return normal weights in float64."""
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=generator, dtype=torch.float64) for k, v in module.state_dict().items()}


def at(module: nn.Module, loss: str, x: Tensor, y: Tensor, theta: State, t: float) -> float:
    """Return the distance of the outputs at ``theta`` from the line between those of seeds 1 and 2."""
    ends = seeded(module, 1), seeded(module, 2)
    pair = lmccheck.load_pair(*ends, model=module, data=[(x, y)], calibration=[(x + 0, y)], loss=loss)
    gradient = Gradient(pair.network, *ends)
    a, b, own = (gradient.weights(state) for state in (*ends, theta))
    return float(Imitation(gradient, a, b)(own, t, Batch(x, y)))


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(tokens: Tensor, counted: Tensor, t: float) -> float:
    """Mean over samples of the mean over counted places of Σ p·log(p/q), with a loop over places."""
    tables = [seeded(Words(), seed)["table.weight"].numpy() for seed in (1, 2, 3)]
    total = []
    for row, which in zip(tokens.tolist(), counted.tolist(), strict=True):
        places = []
        for token, counts in zip(row, which, strict=True):
            p = softmax((1 - t) * tables[0][token] + t * tables[1][token])
            q = softmax(tables[2][token])
            places.append(sum(p[k] * (math.log(p[k]) - math.log(q[k])) for k in range(3)) if counts else None)
        kept = [place for place in places if place is not None]
        total.append(sum(kept) / len(kept))
    return sum(total) / len(total)


def test_the_divergence_of_token_losses_equals_a_plain_loop_over_what_counts() -> None:
    """Of next tokens the last place predicts nothing, and targets of −100 do not count; samples weigh the same."""
    x = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1], [1, 0, 0, 2]])
    y = x.clone()
    y[1, 2:] = -100
    own = seeded(Words(), 3)
    counted = y[:, 1:] != -100
    assert at(Words(), "next_token", x, y, own, 0.3) == pytest.approx(by_hand(x[:, :-1], counted, 0.3), abs=1e-12)
    whole = y != -100
    assert at(Words(), "token_cross_entropy", x, y, own, 0.7) == pytest.approx(by_hand(x, whole, 0.7), abs=1e-12)


def test_of_classes_it_is_a_divergence_and_of_regression_the_mean_square() -> None:
    """Against NumPy, on a linear layer."""
    x, y = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), torch.arange(5) % 3
    net = nn.Linear(4, 3)
    first, second, own = ((x @ s["weight"].T + s["bias"]).numpy() for s in (seeded(net, k) for k in (1, 2, 3)))
    line = 0.75 * first + 0.25 * second
    p, q = softmax(line), softmax(own)
    expected = (p * (np.log(p) - np.log(q))).sum(1).mean()
    assert at(net, "cross_entropy", x, y, seeded(net, 3), 0.25) == pytest.approx(expected, abs=1e-12)
    square = ((own - line) ** 2).mean()
    assert at(net, "mse", x, torch.zeros(5, 3), seeded(net, 3), 0.25) == pytest.approx(square, abs=1e-12)


def test_outputs_that_go_straight_are_at_no_distance() -> None:
    """A network linear in its weights: at every t the interpolated weights are the line itself."""
    x, y = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), torch.arange(6) % 3
    net = nn.Linear(4, 3)
    first, second = seeded(net, 1), seeded(net, 2)
    for t in (0.0, 0.4, 1.0):
        between = {k: torch.lerp(first[k], second[k], t) for k in first}
        assert at(net, "cross_entropy", x, y, between, t) == pytest.approx(0, abs=1e-12)
    assert at(net, "cross_entropy", x, y, first, 1.0) > 0.1


def test_outputs_are_kept_for_as_many_batches_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ends of 2 × 3 numbers have room once: the second batch is run anew every time, with the same result."""
    net = nn.Linear(4, 3)
    ends = seeded(net, 1), seeded(net, 2)
    x, y = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), torch.arange(4) % 3
    pair = lmccheck.load_pair(*ends, model=net, data=[(x, y)], calibration=[(x + 0, y)], loss="cross_entropy")
    gradient = Gradient(pair.network, *ends)
    a, b, own = (gradient.weights(state) for state in (*ends, seeded(net, 3)))
    batches = [Batch(x[:2], y[:2]), Batch(x[2:], y[2:])]
    roomy = [float(Imitation(gradient, a, b)(own, 0.5, batch)) for batch in batches]
    runs: list[int] = []
    run = gradient.outputs
    monkeypatch.setattr(gradient, "outputs", lambda weights, batch: runs.append(0) or run(weights, batch))
    monkeypatch.setattr(imitation, "HELD", 12)
    tight = Imitation(gradient, a, b)
    for _ in range(3):
        assert [float(tight(own, 0.5, batch)) for batch in batches] == roomy
    assert len(runs) == 2 + 3 * 2


class RulesOut(nn.Module):
    """A linear layer whose class 3 is ruled out for every sample, and class 0 for those with x₀ > 0 by some weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        never = torch.tensor([False, False, False, True])
        sometimes = (x[:, :1] > 0) & (self.linear.bias[0] > 0) & (torch.arange(4) == 0)
        return self.linear(x).masked_fill(never | sometimes, -torch.inf)  # type: ignore[no-any-return]


@pytest.mark.parametrize("which", [(1, 1, 1), (-1, -1, 1), (-1, -1, -1), (1, -1, -1)])
def test_classes_that_are_ruled_out_leave_the_divergence_of_the_others(which: tuple[int, int, int]) -> None:
    """Logits of −∞ at both ends, one, or in between alone: by a loop over what is left, and gradients are numbers."""
    x, y = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), torch.ones(6).long()
    net = RulesOut()
    states = [seeded(net, seed) for seed in (1, 2, 3)]
    for state, sign in zip(states, which, strict=True):
        state["linear.bias"][0] = sign
    first, second, own = ((x @ s["linear.weight"].T + s["linear.bias"]).tolist() for s in states)
    total = 0.0
    for k in range(6):
        dead = [{3} | ({0} if sign > 0 and x[k, 0] > 0 else set()) for sign in which]
        taught = [c for c in range(4) if c not in dead[0] | dead[1] | dead[2]]
        mine = [c for c in range(4) if c not in dead[2]]
        p = {c: math.exp(0.6 * first[k][c] + 0.4 * second[k][c]) for c in taught}
        q = {c: math.exp(own[k][c]) for c in mine}
        for c in taught:
            share = p[c] / sum(p.values())
            total += share * math.log(share / (q[c] / sum(q.values())))
    pair = lmccheck.load_pair(*states[:2], model=net, data=[(x, y)], calibration=[(x + 0, y)], loss="cross_entropy")
    gradient = Gradient(pair.network, *states[:2])
    a, b, own_weights = (gradient.weights(state) for state in states)
    own_weights["linear.weight"].requires_grad_()
    loss = Imitation(gradient, a, b)(own_weights, 0.4, Batch(x, y))
    assert float(loss.detach()) == pytest.approx(total / 6, abs=1e-12)
    loss.backward()  # type: ignore[no-untyped-call]
    assert own_weights["linear.weight"].grad.isfinite().all()


def test_a_batch_too_small_for_batchnorm_is_told_with_the_mend() -> None:
    """torch raises that it expects more than one value; what to do is said beside."""
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    theta = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    batches = [(torch.full((1, 4), float(k)), torch.tensor([k % 3])) for k in range(3)]
    other = {name: tensor + 1 for name, tensor in theta.items()}
    pair = lmccheck.load_pair(theta, other, model=net, data=batches, calibration=batches, loss="cross_entropy")
    gradient = Gradient(pair.network, theta, other)
    with pytest.raises(lmccheck.SourceError, match=r"more than 1 value per channel.*; mend: batches of two samples"):
        gradient.loss(gradient.weights(theta), pair.data.batches[0])
