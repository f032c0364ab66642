"""The best assignment of a large matrix, on priced candidate lists: certified, and without a copy of the matrix.

A price is kept per column and, per row, the few columns of highest profit (similarity less price). Rows are assigned on
these lists alone: first by an auction without ε (Bertsekas 1988; the augmenting row reduction of Jonker & Volgenant
1987), then along shortest augmenting paths (Hungarian method, all free rows at once). Prices only rise meanwhile, so
that a list's last profit bounds all that it leaves out. A pass over the whole matrix then says how far from the optimum
the assignment can be at most, by linear programming duality, and renews the lists. Differs from both in its first
prices, those of an annealed entropic transport (Sinkhorn; Kosowsky & Yuille 1994), and in a noise of 1e-11 of the
matrix's range that sets ties apart, for which the bound accounts.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LIST = 16  # columns in a row's list
NOISE = 1e-11  # of the matrix's range
ROUNDING = 64 * float(np.finfo(np.float64).eps)  # of the largest magnitude: what counts as equal
PASSES = 24  # over the whole matrix, after which the search gives up: as long as scipy takes for an easy matrix
BIDS, STALL = 200, 50  # rounds of the auction: at most, and without fewer free rows
WIDENINGS = 8  # of the lists in one round


def buffer(similarity: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an empty (rows, n) tensor for a chunk of ``similarity``, (n, n): as large as a cache, or 2^25 on a GPU."""
    n = len(similarity)
    rows = max(1, (1 << (25 if similarity.is_cuda else 18)) // n)
    return torch.empty(min(rows, n), n, dtype=dtype, device=similarity.device)


def annealed_prices(similarity: Tensor) -> Floats:
    """Return column prices, (n,), at which soft choices of the rows of ``similarity``, (n, n), fill every column alike.

    Sinkhorn's iteration, one per temperature, halved until half of the rows spread over fewer than 8 columns or no
    longer sharpen; while choices are soft, a sample of the rows says enough. In float32 on the matrix's device.
    """
    n = len(similarity)
    temperature = float(similarity[:: max(1, n // 256)].float().std(1).median()) / 2
    prices = torch.zeros(n, device=similarity.device)
    work = buffer(similarity, torch.float32)
    spread = float(n)
    for _ in range(40):
        if not temperature > 0:
            break
        rows = similarity[:: max(1, min(int(spread / 128), n // 256))]
        filled = torch.zeros_like(prices)
        spreads = []
        for begin in range(0, len(rows), len(work)):
            chunk = rows[begin : begin + len(work)]
            choice = torch.sub(chunk, prices, out=work[: len(chunk)])
            choice.sub_(choice.amax(1, keepdim=True)).mul_(1 / temperature).clamp_(min=-30).exp_()  # −30: no denormals
            share = 1 / choice.sum(1)
            filled.addmv_(choice.T, share)
            spreads.append((torch.linalg.vector_norm(choice, dim=1) * share) ** -2)
        prices += temperature * torch.log((filled * (n / len(rows))).clamp_(min=1e-3))
        before, spread = spread, float(torch.cat(spreads).median())
        if spread < 8 or spread > 0.98 * before:
            break
        temperature /= 2
    return prices.double().cpu().numpy()


class Search:
    """A search for the best assignment of ``similarity``, (n, n) with n > 1, that lies between ``low`` and ``high``.

    ``profit[u, i]`` is the similarity, noise included, of row u and column ``lists[u, i]``, (n, k); a row's best profit
    net of ``prices``, (n,), is ``best``, (n,), and no column outside its list nets it more than ``floor``, (n,).
    ``column`` of a row and ``row`` of a column, (n,), are −1 where free; assigned pairs are always best for their row.
    """

    def __init__(self, similarity: Tensor, low: float, high: float) -> None:
        n = len(similarity)
        self.similarity = similarity
        self.size = n
        self.low = low
        self.noise = NOISE * (high - low)
        self.equal = ROUNDING * max(abs(low), abs(high))
        noise = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * self.noise
        self.ring = torch.cat([noise, noise])  # the noise of row u and column v is ring[u + v]: no matrix of its own
        self.on_device = torch.as_strided(self.ring.to(similarity.device), (n, n), (1, 1))
        self.work = buffer(similarity, torch.float64)
        self.column = np.full(n, -1)
        self.row = np.full(n, -1)
        self.passes = 0.0
        self.prices = np.zeros(n)

    def run(self, tolerance: float) -> tuple[Tensor, float, float] | None:
        """Return permutation, value and gap, as ``assign`` promises it; None if that takes more than ``PASSES``."""
        n = self.size
        annealed = annealed_prices(self.similarity)
        bound = self.renew(annealed)
        unpriced = float(self.similarity.amax(1).double().sum())
        if not bound < unpriced:  # as where similarities are tied, which annealing only blurs
            bound = self.renew(np.zeros(n))
        while True:
            self.free_worse()
            self.bid()
            self.augment()
            if self.passes > PASSES:
                return None
            bound = self.renew(self.prices)
            if (self.column >= 0).all():
                permutation = torch.from_numpy(self.column)
                value = float(self.similarity[torch.arange(n), permutation].double().sum())
                gap = max(bound - value, 0.0)
                scale = min(abs(value), value - n * self.low)
                if gap <= max(tolerance * scale, n * (self.noise + self.equal)):
                    return permutation, value, gap

    def scan(self, prices: Floats, rows: Ints | None = None) -> tuple[Floats, Ints]:
        """Return the ``LIST`` highest profits net of ``prices``, (n,), of each of ``rows``, (m,), and their columns."""
        count = self.size if rows is None else len(rows)
        keep = min(LIST, self.size - int(np.isinf(prices).sum()))
        self.passes += count / self.size
        device = self.similarity.device
        net = torch.empty(count, keep, dtype=torch.float64, device=device)
        lists = torch.empty(count, keep, dtype=torch.int64, device=device)
        price = torch.from_numpy(prices).to(device)
        chosen = None if rows is None else torch.from_numpy(rows).to(device)
        for begin in range(0, count, len(self.work)):
            chunk = slice(begin, min(begin + len(self.work), count))
            some = chunk if chosen is None else chosen[chunk]
            work = torch.sub(self.similarity[some], price, out=self.work[: chunk.stop - begin])
            work += self.on_device[some]
            torch.topk(work, keep, dim=1, out=(net[chunk], lists[chunk]))
        return net.cpu().numpy(), lists.cpu().numpy()

    def renew(self, prices: Floats) -> float:
        """Renew every list at ``prices``, (n,), and return the upper bound of any assignment's value they prove."""
        net, self.lists = self.scan(prices)
        self.prices = prices
        self.profit = net + prices[self.lists]
        self.best = net[:, 0].copy()
        self.floor = net[:, -1].copy() if net.shape[1] < self.size else np.full(self.size, -np.inf)
        return float(prices.sum() + self.best.sum())

    def free_worse(self) -> None:
        """Free the rows that would rather have another column at the prices of now."""
        taken = np.flatnonzero(self.column >= 0)
        columns = self.column[taken]
        pairs = self.similarity[torch.from_numpy(taken), torch.from_numpy(columns)].double().cpu().numpy()
        net = pairs + self.ring.numpy()[taken + columns] - self.prices[columns]
        worse = self.best[taken] - net > self.equal
        self.row[columns[worse]] = -1
        self.column[taken[worse]] = -1

    def bid(self) -> None:
        """Auction: each free row bids what makes its best column no better than its second; the highest bid takes it.

        A row whose second best may lie outside its list bids up to the list's last, and then waits for its renewal.
        """
        lists, profit, prices = self.lists, self.profit, self.prices
        winner = np.empty(self.size, dtype=np.int64)
        fewest, stalled = self.size + 1, 0
        for _ in range(BIDS):
            free = np.flatnonzero(self.column < 0)
            stalled = 0 if len(free) < 0.98 * fewest else stalled + 1
            fewest = min(fewest, len(free))
            net = profit[free] - prices[lists[free]]
            at = np.arange(len(free)), net.argmax(1)
            first = net[at]
            net[at] = -np.inf
            bids = first - np.maximum(net.max(1), self.floor[free])
            order = np.argsort(bids, kind="stable")
            order = order[bids[order] > 0]
            if stalled > STALL or not len(order):
                break
            wanted = lists[free][at]
            winner[wanted[order]] = order  # the last to be written is the highest bid
            columns = np.unique(wanted[order])
            bidder = winner[columns]
            losers = self.row[columns]
            self.column[losers[losers >= 0]] = -1
            prices[columns] += bids[bidder]
            self.row[columns] = free[bidder]
            self.column[free[bidder]] = columns
        self.best = np.maximum((profit - prices[lists]).max(1), self.floor)

    def augment(self) -> None:
        """Assign free rows along shortest paths of lost profit, many at once, while more are won than put in doubt.

        A path longer than a row's way to its list's last profit puts that row in doubt: a shorter one may leave it
        outside its list. Where no path is worth that, the lists of all rows within reach are widened.
        """
        n = self.size
        widened: list[tuple[Floats, float]] = []  # a floor under the columns within reach, and the reach
        begun = False
        while (free := np.flatnonzero(self.column < 0)).size:
            distance, before, origin = self.paths(free)
            reach = distance[:n]
            doubt = np.sort((reach + np.maximum(self.best - self.floor, 0.0))[np.isfinite(reach)])
            ends = np.flatnonzero((self.row < 0) & np.isfinite(distance[n:]))
            ends = ends[np.argsort(distance[n + ends], kind="stable")]
            ends = ends[np.sort(np.unique(origin[n + ends], return_index=True)[1])]  # each free row's nearest column
            won = np.arange(1, len(ends) + 1) - np.searchsorted(doubt, distance[n + ends] - self.equal)
            if len(ends) and won.max() > 0:
                ends = ends[: len(won) - int(won[::-1].argmax())]
                length = distance[n + ends[-1]]
            elif begun and not widened:
                return
            elif len(widened) < WIDENINGS and self.passes <= PASSES:
                widened.append(self.widen(reach, doubt[0] + 4 * self.noise))
                continue
            else:
                ends, length = ends[:0], doubt[0]  # no path, but prices that bring columns into reach
            fall = np.maximum(length - reach, 0.0)
            taken = self.column >= 0
            self.best -= fall
            self.prices[self.column[taken]] += fall[taken]
            free_columns = np.flatnonzero(self.row < 0)
            self.prices[free_columns] += np.maximum(length - distance[n + free_columns], 0.0)
            for floor, within in widened:
                self.floor = np.maximum(self.floor, floor - max(length - within, 0.0))
            widened = []
            for end in ends:
                column, row = end, before[n + end]
                while column >= 0:
                    self.column[row], self.row[column], column = column, row, self.column[row]
                    row = before[row]
            begun = True
            if not len(ends):
                return

    def paths(self, free: Ints) -> tuple[Floats, Ints, Ints]:
        """Return the distance, the predecessor and the free row of origin of n rows and then n free columns, (2 n,).

        An edge leads from a row to the row that has the column in its list, or to the column if it is free; it is as
        long as the profit lost to the row.
        """
        n, width = self.lists.shape
        lost = np.maximum(self.best[:, None] - (self.profit - self.prices[self.lists]), 0.0)
        owner = self.row[self.lists]
        target = np.where(owner >= 0, owner, self.lists + n).astype(np.int32)
        starts = np.minimum(np.arange(2 * n + 1), n).astype(np.int32) * width
        graph = csr_array((lost.ravel(), target.ravel(), starts), shape=(2 * n, 2 * n))
        distance, before, origin = dijkstra(graph, indices=free, min_only=True, return_predecessors=True)
        return distance, before.astype(np.int64), origin.astype(np.int64)

    def widen(self, reach: Floats, within: float) -> tuple[Floats, float]:
        """Add to the lists of the rows no further than ``within`` the best columns beyond; ``reach``: distances, (n,).

        Return their former floors, (n,), which still hold under the columns within reach, and ``within``.
        """
        rows = np.flatnonzero(reach <= within)
        inside = np.zeros(self.size, dtype=bool)
        inside[self.column[rows][self.column[rows] >= 0]] = True
        net, lists = self.scan(np.where(inside, np.inf, self.prices), rows)
        shape = self.size, net.shape[1]
        more, columns = np.full(shape, -np.inf), np.zeros(shape, dtype=np.int64)
        more[rows], columns[rows] = net + self.prices[lists], lists
        self.profit[rows] = np.where(inside[self.lists[rows]], self.profit[rows], -np.inf)  # the others are listed anew
        self.profit = np.concatenate([self.profit, more], axis=1)
        self.lists = np.concatenate([self.lists, columns], axis=1)
        former = np.full(self.size, -np.inf)
        former[rows] = self.floor[rows]
        self.floor[rows] = net[:, -1] if net.shape[1] < self.size - inside.sum() else -np.inf
        return former, within
