"""What a sample says of where it came from: shares, quantiles, means. Numbers only, no torch."""

from __future__ import annotations

from lmccheck.stats.betting import at_least, settled_after
from lmccheck.stats.shares import MOST_TRIALS, clopper_pearson, quantile_interval, quantile_of, trials_to_settle

__all__ = [
    "MOST_TRIALS",
    "at_least",
    "clopper_pearson",
    "quantile_interval",
    "quantile_of",
    "settled_after",
    "trials_to_settle",
]
