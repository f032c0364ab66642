"""Fixtures: what a check runs on, for a conftest to override, and the ``lmc`` facade for ordinary tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmccheck.errors import SourceError
from lmccheck.gate.options import options_of

if TYPE_CHECKING:
    from lmccheck.network.pair import ModelPair
    from lmccheck.result import Result


def _planned(request: pytest.FixtureRequest, key: str) -> Any:
    """Return what the manifest says for the check that asks, or None in an ordinary test."""
    plan = getattr(getattr(request.node, "pair", None), "plan", None)
    return getattr(plan, key, None)


@pytest.fixture
def lmc_device(request: pytest.FixtureRequest) -> str:
    """The device to evaluate on: auto, cpu or cuda[:N], from --lmc-device or the ini key lmc_device."""
    return options_of(request.config).device


@pytest.fixture
def lmc_model_factory(request: pytest.FixtureRequest) -> Any:
    """The model of the pair or set under test, "module:callable"; override it with any callable giving a module."""
    return _planned(request, "model")


@pytest.fixture
def lmc_data(request: pytest.FixtureRequest) -> Any:
    """The evaluation data of the pair or set under test; override it to return (inputs, targets) or batches of them."""
    return _planned(request, "data")


@pytest.fixture
def lmc_loss(request: pytest.FixtureRequest) -> Any:
    """The loss of the pair or set under test; override it to return a name or a callable giving per-sample losses."""
    return _planned(request, "loss") or "cross_entropy"


class Facade:
    """The public functions with the run's device, and paths relative to the test's own folder."""

    def __init__(self, request: pytest.FixtureRequest, device: str) -> None:
        self._request = request
        self._device = device

    def load_pair(self, a: Any, b: Any, **options: Any) -> ModelPair:
        """Load a pair as ``lmccheck.load_pair`` does; model, data and loss default to the fixtures of that name."""
        for key, fixture in (("model", "lmc_model_factory"), ("data", "lmc_data"), ("loss", "lmc_loss")):
            if options.get(key) is None:
                options[key] = self._request.getfixturevalue(fixture)
            if options[key] is None:
                raise SourceError(f"lmc.load_pair: no {key}; say {key}=… or override the fixture {fixture}")
        folder: Path = self._request.path.parent
        from lmccheck.gate.core import core_of  # here: a run without manifests must not pay for it

        return core_of(self._request.config).load_pair(a, b, **{"device": self._device, "base": folder, **options})

    def linear_connectivity(self, pair: ModelPair, **settings: Any) -> Result:
        """Measure the loss barrier between the two checkpoints: see ``lmccheck.linear_connectivity``."""
        from lmccheck.gate.core import core_of  # here: a run without manifests must not pay for it

        return core_of(self._request.config).call("linear_connectivity", pair, **settings)

    def dropout_stability(self, pair: ModelPair, **settings: Any) -> Result:
        """Measure what dropping units costs: see ``lmccheck.dropout_stability``."""
        from lmccheck import dropout_stability

        return dropout_stability(pair, **settings)

    def noise_stability(self, pair: ModelPair, **settings: Any) -> Result:
        """Measure what random dropout masks cost on the way: see ``lmccheck.noise_stability``."""
        from lmccheck import noise_stability

        return noise_stability(pair, **settings)

    def ten_segment_path(self, pair: ModelPair, **settings: Any) -> Result:
        """Measure the largest loss on the ten-segment path: see ``lmccheck.ten_segment_path``."""
        from lmccheck import ten_segment_path

        return ten_segment_path(pair, **settings)

    def dropout_path(self, pair: ModelPair, **settings: Any) -> Result:
        """Measure the largest loss on the path of Theorem 1: see ``lmccheck.dropout_path``."""
        from lmccheck import dropout_path

        return dropout_path(pair, **settings)

    def verify_dropout(self, pair: ModelPair, witness: Any, **settings: Any) -> Result:
        """Measure saved dropped networks anew: see ``lmccheck.verify_dropout``."""
        from lmccheck import verify_dropout

        return verify_dropout(pair, witness, **settings)

    def verify_path(self, pair: ModelPair, path: Any, **settings: Any) -> Result:
        """Certify a saved path anew: see ``lmccheck.verify_path``."""
        from lmccheck import verify_path

        return verify_path(pair, path, **settings)

    def set_connectivity(self, models: Sequence[Any], **settings: Any) -> Result:
        """Measure all barriers among several checkpoints: see ``lmccheck.set_connectivity``."""
        from lmccheck import set_connectivity

        return set_connectivity(models, **{"device": self._device, "base": self._request.path.parent, **settings})

    def fused_connectivity(self, a: Any, b: Any, **settings: Any) -> Result:
        """Measure the barrier between checkpoints of two widths: see ``lmccheck.fused_connectivity``."""
        from lmccheck import fused_connectivity

        return fused_connectivity(a, b, **{"device": self._device, "base": self._request.path.parent, **settings})


@pytest.fixture
def lmc(request: pytest.FixtureRequest, lmc_device: str) -> Facade:
    """The public functions: ``lmc.load_pair(…)``, ``lmc.linear_connectivity(pair, …)``."""
    return Facade(request, lmc_device)
