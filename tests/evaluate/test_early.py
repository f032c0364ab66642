"""Fails that are settled on some samples: as seldom wrong as they say over all places and parts, and cheap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmccheck.data.load import Batch, Data
from lmccheck.errors import SourceError
from lmccheck.evaluate.early import FIRST, SHARE, Asked, Gate, Order, Place, Tried, settle
from lmccheck.evaluate.evaluator import Measured
from lmccheck.stats import settled_after


class Table:
    """An evaluator of networks whose losses stand in a table, (n, networks); weights say which of them it is."""

    def __init__(self, losses: Tensor, sizes: Sequence[int] = ()) -> None:
        rows = torch.arange(len(losses))
        parts = rows.split(list(sizes)) if sizes else (rows,)
        self.losses, self.batches = losses.double(), tuple(Batch(part, part) for part in parts)
        data = Data(self.batches, "table", rebatch=not sizes)
        self.network: Any = SimpleNamespace(data=data, loss=SimpleNamespace(name="tabled"))
        self.seen: list[tuple[int, list[int]]] = []

    def measure(self, weights: Mapping[str, Tensor], *, drawn: Sequence[Batch], **_: Any) -> Measured:
        which = torch.cat([batch.inputs for batch in drawn])
        self.seen.append((int(weights["network"]), which.tolist()))
        return Measured(self.losses[which, int(weights["network"])], None)


def places(allowed: Sequence[Sequence[float]]) -> list[Place]:
    return [Place(f"at {k}", lambda k=k: {"network": torch.tensor(k)}, each) for k, each in enumerate(allowed)]


def tried(table: Table, allowed: Sequence[Sequence[float]], gates: Sequence[Tensor] = (), **more: Any) -> Tried:
    settings = {"error": 1e-6, "seed": 0, "passes": 27.0, **more}
    seed, passes = settings.pop("seed"), settings.pop("passes")
    weights = gates or [torch.ones(len(table.losses), dtype=torch.float64)]
    asked = Asked(lambda found: found.losses, [Gate(each) for each in weights], **settings)
    return settle(table, places(allowed), asked, seed, passes)  # type: ignore[arg-type]  # all that it uses of one


def wrong_gates(gates: int, samples: int, error: float) -> int:
    """How many of so many gates fail, each of seven networks whose losses are exactly at the boundary; heavy tails."""
    rng, wrong = np.random.default_rng(0), 0
    for number in range(gates):
        tails = (rng.pareto(1.2, (samples, 7)), rng.lognormal(0, 1.5, (samples, 7)), rng.exponential(size=(samples, 7)))
        losses = torch.from_numpy(tails[number % 3])
        found = tried(Table(losses), [[mean] for mean in losses.mean(0).tolist()], error=error, seed=number)
        wrong += found.settled is not None
    return wrong


def test_gates_of_seven_networks_are_wrong_at_most_at_the_nominal_rate_together() -> None:
    """100 gates at 50 %, a rate that no bet is far from by itself: the error is shared by all that are tried."""
    assert wrong_gates(100, 400, 0.5) <= 50


@pytest.mark.slow
def test_ten_thousand_gates_are_wrong_at_most_at_one_percent() -> None:
    """Each of seven networks at the boundary, losses Pareto, lognormal and exponential in turn."""
    assert wrong_gates(10_000, 1000, 0.01) <= 100


def test_a_barrier_of_five_limits_is_settled_on_a_twentieth_of_the_samples_between_the_ends() -> None:
    """Five limits high and as high as the endpoints' loss, N = 10,000, 1e-6: wherever of the seven it is, any tail."""
    rng = np.random.default_rng(0)
    for k in range(7):
        for x in (rng.exponential(size=10_000), rng.lognormal(0, 1.3, 10_000), rng.pareto(2.5, 10_000)):
            losses = torch.from_numpy(x / x.mean())[:, None] * torch.tensor([2.0 if j == k else 1.0 for j in range(7)])
            table = Table(losses)
            found = tried(table, [[1.2]] * 7)
            assert found.settled is not None
            assert found.settled.place.label == f"at {k}"
            assert found.samples == sum(len(rows) for _, rows in table.seen) <= 0.05 * 23 * 10_000


@pytest.mark.parametrize("height", [1.0, 1.19, 1.2, 1.21])
def test_a_close_one_costs_at_most_a_tenth_more(height: float) -> None:
    """What is drawn in vain is at most SHARE of what measuring everything takes."""
    losses = torch.from_numpy(np.random.default_rng(0).exponential(size=(10_000, 1))) * height
    table = Table(losses.expand(-1, 7))
    found = tried(table, [[1.2]] * 7)
    assert found.samples == sum(len(rows) for _, rows in table.seen) <= SHARE * 27 * 10_000


def test_what_preparing_a_network_takes_counts() -> None:
    """With 20,000 calibration samples at each visit, a tenth of the passes is worth few visits of few networks."""
    table = Table(torch.rand(10_000, 7, generator=torch.Generator().manual_seed(0)))
    found = tried(table, [[0.5]] * 7, setup=20_000)
    assert found.places == 2
    assert found.samples == sum(20_000 + len(rows) for _, rows in table.seen) <= SHARE * 27 * 30_000


def test_the_order_depends_on_the_seed_alone_and_no_sample_is_drawn_twice() -> None:
    """Networks see the same samples in the same order; other losses change nothing of it, another seed does."""
    one, other = Table(torch.ones(500, 1)), Table(torch.rand(500, 1) * 2)
    for table in (one, other):
        tried(table, [[1.0]])
    drawn = [[row for _, rows in table.seen for row in rows] for table in (one, other)]
    shorter = min(map(len, drawn))
    assert shorter >= FIRST
    assert drawn[0][:shorter] == drawn[1][:shorter]
    assert len(set(drawn[0])) == len(drawn[0])
    again = Table(torch.ones(500, 1))
    tried(again, [[1.0]], seed=1)
    assert [row for _, rows in again.seen for row in rows][:20] != drawn[0][:20]


def test_an_estimate_and_its_interval_are_those_of_what_was_drawn() -> None:
    """The mean of the samples that were drawn; they are numbered as they lie in the data."""
    table = Table(torch.arange(1000)[:, None] / 1000 + 1)
    settled = tried(table, [[0.1]]).settled
    assert settled is not None
    (_, rows), *_ = table.seen
    assert settled.mean == pytest.approx(sum(rows) / len(rows) / 1000 + 1)
    assert settled.after <= settled.drawn == len(rows) < settled.of == 1000
    assert 1.2 < settled.interval[0] < settled.mean < settled.interval[1] == math.inf


def test_values_with_a_bound_have_an_interval_with_two_ends() -> None:
    """Shares of errors: the bet is on what is right, too. The true mean lies between."""
    wrong = torch.zeros(5000, 1)
    wrong[::2] = 100.0
    settled = tried(Table(wrong), [[20.0]], largest=100.0).settled
    assert settled is not None
    assert 20 < settled.interval[0] < 50 < settled.interval[1] < 90


def test_a_part_of_the_samples_is_judged_by_itself() -> None:
    """One class of ten is ruined: over all samples the mean is allowed, over it the mean is not."""
    index = torch.arange(2000) % 10
    losses = torch.where(index == 3, 5.0, 0.1)[:, None]
    parts = [(index == k).double() for k in range(10)]
    assert tried(Table(losses), [[1.0]]).settled is None
    settled = tried(Table(losses), [[1.0] * 10], parts).settled
    assert settled is not None
    assert (settled.gate, settled.of, settled.mean) == (3, 200, 5.0)
    assert settled.after <= settled.drawn < 200


def test_weights_of_samples_are_those_of_their_mean() -> None:
    """Tokens: long samples weigh more. Over tokens the loss is 1.9, over samples 1."""
    long = torch.arange(4000) % 10 == 0
    losses, tokens = torch.where(long, 2.2, 0.87)[:, None], torch.where(long, 40.0, 1.0).double()
    mean = float((losses[:, 0] * tokens).sum() / tokens.sum())
    assert tried(Table(losses), [[mean]], [tokens], error=0.05).settled is None
    settled = tried(Table(losses), [[1.2]], [tokens], error=0.05).settled
    assert settled is not None
    assert settled.interval[0] < mean


def test_batches_of_the_users_own_are_drawn_whole() -> None:
    """Of unequal sizes: each is a unit that weighs what its samples do."""
    sizes = [5, 40] * 100
    losses = torch.repeat_interleave(torch.rand(200, generator=torch.Generator().manual_seed(0)), torch.tensor(sizes))
    table = Table(4 * losses[:, None], sizes)
    settled = tried(table, [[1.0]]).settled
    assert settled is not None
    edges = np.cumsum([0, *sizes])
    (_, rows), *_ = table.seen
    begins = [row for row in rows if row in edges]
    assert sorted(rows) == sorted(row for k in np.searchsorted(edges, begins) for row in range(edges[k], edges[k + 1]))
    assert FIRST <= len(rows) < FIRST + 40
    assert tried(Table(4 * losses[:, None], sizes), [[4 * float(losses.mean())]], error=0.05).settled is None


def test_a_negative_loss_is_an_error() -> None:
    losses = torch.ones(1000, 1)
    losses[::7] = -0.5
    with pytest.raises(SourceError, match=r"loss 'tabled' on table: -0\.5 at at 0, expected none below 0.*early_fail"):
        tried(Table(losses), [[1.0]])


def test_what_is_clearly_low_is_left_after_the_first_look() -> None:
    """Nothing more is drawn of it."""
    table = Table(torch.rand(10_000, 7))
    found = tried(table, [[5.0]] * 7)
    assert (found.settled, found.samples) == (None, 7 * FIRST)


def test_an_order_holds_every_sample_once() -> None:
    for sizes in ((), (3, 4, 5)):
        table: Any = Table(torch.ones(12, 1), sizes)
        order = Order(table, 3)
        drawn = torch.cat([batch.inputs for batch in order.batches(0, len(order.edges) - 1)])
        assert drawn.tolist() == order.index.tolist() != list(range(12))
        assert sorted(drawn.tolist()) == list(range(12))


def test_a_part_is_wrong_at_most_at_the_nominal_rate() -> None:
    """Twelve parts of one network, each at the boundary: the error is shared by them, too. 100 gates at 50 %."""
    rng, wrong, index = np.random.default_rng(0), 0, torch.arange(240) % 12
    parts = [(index == k).double() for k in range(12)]
    for number in range(100):
        losses = torch.from_numpy(rng.lognormal(0, 1.5, (240, 1)))
        allowed = [[float(losses[index == k].mean()) for k in range(12)]]
        wrong += tried(Table(losses), allowed, parts, error=0.5, seed=number, passes=99.0).settled is not None
    assert wrong <= 50


@pytest.mark.parametrize("count", [1, 7])
def test_a_fail_is_settled_when_the_bet_at_its_share_of_the_error_is(count: int) -> None:
    """Of the samples in order, by a bet at the error over the number of networks that were tried."""
    losses = torch.from_numpy(np.random.default_rng(0).exponential(size=5000))
    table = Table(1.6 * losses[:, None].expand(-1, count))
    found = tried(table, [[1.2]] * count)
    assert found.settled is not None
    order = [row for network, rows in table.seen for row in rows if network == int(found.settled.place.label[3:])]
    assert found.settled.after == settled_after((1.6 * losses[order]).numpy(), 5000, 1.2, 1e-6 / count)
