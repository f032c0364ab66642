"""Fixtures: what a check runs on, for a conftest to override, and the ``lmc`` facade for ordinary tests."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmccheck.errors import LmcError, SourceError, nearest
from lmccheck.gate import python_tests
from lmccheck.gate.options import options_of

if TYPE_CHECKING:
    from lmccheck.gate.core import Core
    from lmccheck.merging.merge import Merge
    from lmccheck.network.pair import ModelPair
    from lmccheck.network.single import SingleModel
    from lmccheck.result import Result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a failed assertion on a result say what the result says, and a report carry the rows its test added."""
    report = yield
    if report.failed:
        from lmccheck.gate.assertions import explain_results

        explain_results(report, call)
    if python_tests.WORST in item.stash and report.when == "call":
        report.sections.append(("lmccheck: the worst that Hypothesis found", item.stash[python_tests.WORST]))
    if not hasattr(report, "lmc") and (payload := python_tests.payload_of(item, report)) is not None:
        report.lmc = payload  # type: ignore[attr-defined]  # extra attributes travel with a report
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that ask for ``lmc_pair`` for the pairs of a manifest."""
    python_tests.parametrise(metafunc)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let fixtures that live as long as the session ask for what the fixtures of the test that runs say."""
    names = getattr(item, "fixturenames", None)
    if isinstance(names, list) and python_tests.NAMED.intersection(names) and "_lmc_request" not in names:
        names.insert(0, "_lmc_request")
    python_tests.mark_parametrised(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Keep the worst that a test under ``@given`` finds."""
    with python_tests.searched(item):
        return (yield)


@pytest.fixture
def _lmc_request(request: pytest.FixtureRequest) -> Iterator[None]:
    """The request of the test that runs."""
    yield from python_tests.keep_request(request)


def _planned(request: pytest.FixtureRequest, key: str) -> Any:
    """Return what the manifest says for the check that asks, or None in an ordinary test."""
    of = python_tests.planned_for(request) or getattr(request.node, "pair", None)
    return getattr(getattr(of, "plan", None), key, None)


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

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @property
    def _request(self) -> pytest.FixtureRequest:
        return python_tests.current_request(self._config, "lmc")

    @property
    def _device(self) -> str:
        return str(self._request.getfixturevalue("lmc_device"))

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

    @property
    def _core(self) -> Core:
        from lmccheck.gate.core import core_of

        return core_of(self._config)

    def load_pair(self, a: Any, b: Any, **options: Any) -> ModelPair:
        """Load a pair as ``lmccheck.load_pair`` does; model, data and loss default to the fixtures of that name."""
        return self._core.load_pair(a, b, **self._sources("load_pair", a, options))

    def load_model(self, checkpoint: Any, **options: Any) -> SingleModel:
        """Load one as ``lmccheck.load_model`` does; model, data and loss default to the fixtures of that name."""
        return self._core.load_model(checkpoint, **self._sources("load_model", checkpoint, options))

    def load_merge(self, parents: Any, recipe: Any, **options: Any) -> Merge:
        """Load a merge as ``lmccheck.load_merge`` does; model, data and loss default to the fixtures of that name."""
        first = next(iter(parents.values())) if isinstance(parents, Mapping) and parents else parents
        merge: Merge = self._core.load_merge(parents, recipe, **self._sources("load_merge", first, options))
        return merge

    def __getattr__(self, name: str) -> Callable[..., Result]:
        """Return a property as a method; what it loads itself has the run's device and the test's folder, too."""
        from lmccheck.properties.registry import PROPERTIES

        if name.startswith("_") or name not in PROPERTIES:
            raise AttributeError(f"lmc has no {name!r}{nearest(name, dir(self))}")
        call = partial(self._core.call, name)
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


@pytest.fixture(scope="session")
def lmc(pytestconfig: pytest.Config) -> Facade:
    """The public functions: ``lmc.load_pair(…)``, ``lmc.linear_connectivity(pair, …)``.

    It lives as long as the session, so that a test under ``@given`` may use it; device, folder and sources are those
    of the test that runs.
    """
    return Facade(pytestconfig)


@pytest.fixture(scope="session")
def lmc_pair(request: pytest.FixtureRequest) -> Any:
    """A pair of a manifest, loaded: the test runs once for each, with the pair's name as its parameter.

    The manifest is the nearest lmc.toml at or above the test; ``@pytest.mark.lmc(manifest="gates/x.lmc.toml")`` names
    another, relative to the test, and ``@pytest.mark.lmc("one", "two")`` some of its pairs; ``-m lmc`` selects what is
    so marked. ``lmc_model_factory``, ``lmc_data``, ``lmc_loss`` and ``lmc_device`` override what the manifest says. It
    lives as long as tests ask for it, and may be used under ``@given``.
    """
    planned = getattr(request, "param", None)
    if not isinstance(planned, python_tests.PlannedPair):
        raise LmcError("lmc_pair: asked for by name only, so that no pair was chosen; mend: make it an argument")
    from lmccheck.gate.core import Sources, core_of

    value = python_tests.current_request(request.config, "lmc_pair").getfixturevalue
    keys = ("model_factory", "data", "loss", "device")
    sources = Sources(*(value(f"lmc_{key}") for key in keys))
    return core_of(request.config).load(planned.manifest.folder, planned.plan, sources)


@pytest.fixture(scope="session")
def lmc_record(pytestconfig: pytest.Config) -> Callable[..., None]:
    """Add a row to the terminal table and the reports: ``lmc_record(result, name=…, pair=…)``.

    The row stands under the test's id and ``name``, by default the property's; a second of one name replaces it, as
    under ``@given`` the last call does. ``pair`` is what was measured, by default the pair that the test runs for. The
    test's own outcome decides: a row that does not pass fails nothing by itself.
    """

    def record(result: Result, *, name: str | None = None, pair: str | None = None) -> None:
        request = python_tests.current_request(pytestconfig, "lmc_record")
        planned = python_tests.planned_for(request)
        python_tests.add_record(request.node, result, name, pair or (planned.plan.name if planned else None))

    return record
