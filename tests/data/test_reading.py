"""Data that a user's code yields: said to go on, and ended where they do not end."""

from __future__ import annotations

import itertools
import logging
import time

import pytest
import torch

from lmccheck.data import reading
from lmccheck.data.load import load_data
from lmccheck.errors import SourceError


def endless():
    x, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    while True:
        yield x, y


@pytest.mark.parametrize(("cap", "most"), [("MOST_BATCHES", 50), ("MOST_BYTES", 50 * (24 + 16))])
def test_what_does_not_end_is_ended(monkeypatch, cap, most):
    """After a million batches, or more bytes than there may be: 51 batches of 24 + 16 bytes against a cap of 50."""
    monkeypatch.setattr(reading, cap, most)
    for source in (endless, endless()):
        with pytest.raises(SourceError, match=r"data.*: no end after 51 batches .* mend: let it end") as caught:
            load_data(source)
        assert "itertools.islice" in str(caught.value)


def test_at_the_cap_all_is_well(monkeypatch):
    """Fifty batches of fifty that may be."""
    monkeypatch.setattr(reading, "MOST_BATCHES", 50)
    monkeypatch.setattr(reading, "MOST_BYTES", 50 * (24 + 16))
    assert load_data(itertools.islice(endless(), 50)).samples == 100


def test_the_caps_are_generous():
    """A million batches and 64 GiB: a validation set fits many times over."""
    assert reading.MOST_BATCHES >= 1_000_000
    assert reading.MOST_BYTES >= 2**36


def test_long_reading_is_said(monkeypatch, caplog):
    """Also while the user's code does not come back: how far it is, by the logger lmccheck."""
    monkeypatch.setattr(reading, "EVERY", 0.05)

    def slow():
        yield next(endless())
        time.sleep(0.3)

    with caplog.at_level(logging.INFO, logger="lmccheck"):
        load_data(slow)
    assert any("still reading, 1 batches" in record.getMessage() for record in caplog.records)
    assert all(record.name == "lmccheck" for record in caplog.records)


def test_short_reading_says_nothing(caplog):
    """Nothing is logged of data that are there at once."""
    load_data(itertools.islice(endless(), 3))
    assert caplog.records == []
