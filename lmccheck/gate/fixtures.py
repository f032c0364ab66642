"""Fixtures: what a check runs on, for a conftest to override, and the ``lmc`` facade for ordinary tests."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmccheck.errors import LmcError, SourceError, nearest
from lmccheck.gate.options import options_of

if TYPE_CHECKING:
    from lmccheck.merging.merge import Merge
    from lmccheck.network.pair import ModelPair
    from lmccheck.network.single import SingleModel
    from lmccheck.result import Result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a failed assertion on a result say what the result says."""
    report = yield
    if report.failed:
        from lmccheck.gate.assertions import explain_results

        explain_results(report, call)
    return report


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
    """The network of what is under test, "module:callable"; override it with any callable giving a module."""
    return _planned(request, "model")


@pytest.fixture
def lmc_data(request: pytest.FixtureRequest) -> Any:
    """The evaluation data of what is under test; override it to return (inputs, targets) or batches of them."""
    return _planned(request, "data")


@pytest.fixture
def lmc_loss(request: pytest.FixtureRequest) -> Any:
    """The loss of what is under test; override it to return a name or a callable giving per-sample losses."""
    from lmccheck.gate.core import default_loss

    return _planned(request, "loss") or default_loss(_planned(request, "model"), _planned(request, "data"))


class Facade:
    """``load_pair`` and its like, and every property, on the run's device, paths relative to the test's folder."""

    def __init__(self, request: pytest.FixtureRequest, device: str) -> None:
        self._request = request
        self._device = device

    def _sources(self, what: str, first: Any, options: dict[str, Any]) -> dict[str, Any]:
        from lmccheck.gate.core import default_loss, described  # here: a run without manifests pays for none of it

        folder: Path = self._request.path.parent
        for key, fixture in (("model", "lmc_model_factory"), ("data", "lmc_data"), ("loss", "lmc_loss")):
            if options.get(key) is None:
                options[key] = self._request.getfixturevalue(fixture)
            if key == "loss":
                options[key] = options[key] or default_loss(options["model"], options["data"])
                continue
            own = False
            if key == "model" and options[key] is None:
                with suppress(LmcError):
                    own = described(first, folder)
            if options[key] is None and not own:
                raise SourceError(f"lmc.{what}: no {key}; say {key}=… or override the fixture {fixture}")
        return {"device": self._device, "base": folder, **options}

    def load_pair(self, a: Any, b: Any, **options: Any) -> ModelPair:
        """Load a pair as ``lmccheck.load_pair`` does; model, data and loss default to the fixtures of that name."""
        from lmccheck.gate.core import core_of

        return core_of(self._request.config).load_pair(a, b, **self._sources("load_pair", a, options))

    def load_model(self, checkpoint: Any, **options: Any) -> SingleModel:
        """Load one as ``lmccheck.load_model`` does; model, data and loss default to the fixtures of that name."""
        from lmccheck.gate.core import core_of

        return core_of(self._request.config).load_model(checkpoint, **self._sources("load_model", checkpoint, options))

    def load_merge(self, parents: Any, recipe: Any, **options: Any) -> Merge:
        """Load a merge as ``lmccheck.load_merge`` does; model, data and loss default to the fixtures of that name."""
        from lmccheck.gate.core import core_of

        first = next(iter(parents.values())) if isinstance(parents, Mapping) and parents else parents
        sources = self._sources("load_merge", first, options)
        merge: Merge = core_of(self._request.config).load_merge(parents, recipe, **sources)
        return merge

    def __getattr__(self, name: str) -> Callable[..., Result]:
        """Return a property as a method; what it loads itself has the run's device and the test's folder, too."""
        from lmccheck.gate.core import core_of
        from lmccheck.properties.registry import PROPERTIES

        if name.startswith("_") or name not in PROPERTIES:
            raise AttributeError(f"lmc has no {name!r}{nearest(name, dir(self))}")
        call = partial(core_of(self._request.config).call, name)
        if not PROPERTIES.get(name).loads:
            return call
        sources = {"device": self._device, "base": self._request.path.parent}

        def loading(*given: Any, **settings: Any) -> Result:
            loaded = bool(given) and hasattr(given[0], "network")
            return call(*given, **(settings if loaded else {**sources, **settings}))

        return loading

    def __dir__(self) -> list[str]:
        from lmccheck.properties.registry import PROPERTIES

        return ["load_merge", "load_model", "load_pair", *PROPERTIES.names()]


@pytest.fixture
def lmc(request: pytest.FixtureRequest, lmc_device: str) -> Facade:
    """The public functions: ``lmc.load_pair(…)``, ``lmc.linear_connectivity(pair, …)``."""
    return Facade(request, lmc_device)
