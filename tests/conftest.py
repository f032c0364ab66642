"""Tests of the plugin run pytest inside pytest; most others have a folder with a tiny pair of checkpoints."""

from __future__ import annotations

import gc
import os
import sys
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.pytester import SysModulesSnapshot
from networks import sets
from networks.small import seeded, small_mlp
from safetensors.torch import save_file
from torch.export import exported_program

import lmccheck
from lmccheck.alignment.many import ManyAlignment

pytest_plugins = ["pytester"]
if "PYTEST_XDIST_WORKER" in os.environ:
    import torch._dynamo  # which the first network that is traced would import, to be frozen below
gc.freeze()  # what is imported is no garbage, nor a place where a network keeps something: it need not be looked at
gc.set_threshold(7000, 10, 60)  # torch and transformers are a million objects, looked at in full 0.15 s each time

TOGETHER = {  # files whose tests stay on one worker of pytest-xdist, since they share what is expensive to make
    "all networks, traced once": (
        "symmetry/test_compose.py symmetry/test_droppable.py symmetry/test_mutant_sites.py symmetry/test_mutants.py "
        "symmetry/test_spec_file.py symmetry/test_symmetry.py symmetry/test_uncommon_networks.py"
    ),
    "maps beyond permutations": (
        "alignment/test_beyond.py alignment/test_beyond_align.py alignment/test_beyond_fit.py "
        "alignment/test_beyond_freedoms.py"
    ),
    "the digit set, aligned once": "alignment/test_barriers.py theory/test_many.py",
    "pairs that are traced once for all methods": "theory/test_methods_planted.py",
    "trained networks of two widths": "fusion/test_trained.py",
    "a browser": "report/test_html_in_a_browser.py",
    "files of the house, read once": "test_house.py",
}


INSTALLED = sysconfig.get_path("platlib")
_snapshot: Callable[..., None] = SysModulesSnapshot.__init__


def _keeps_what_is_installed(snapshot: SysModulesSnapshot, preserve: Callable[[str], bool] = lambda _: False) -> None:
    """Let libraries stay imported after a run inside a test: parts of torch may be imported once in a process."""
    _snapshot(snapshot, lambda name: preserve(name) or _file(name).startswith(INSTALLED))


def _composites_sought_once() -> None:
    """Let torch look for its composite ops once, not at every decomposition: 0.05 s each time."""
    name = "_collect_all_valid_cia_ops"
    seek = getattr(exported_program, name, None)
    if seek is not None:
        setattr(exported_program, name, cache(seek))


def _file(name: str) -> str:
    return str(getattr(sys.modules[name], "__file__", ""))


_composites_sought_once()
SysModulesSnapshot.__init__ = _keeps_what_is_installed  # type: ignore[assignment]  # there is no other way in


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those that ask for one: numbers are compared with those of a CPU, bit for bit."""
    if "not gpu" in config.option.markexpr or "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


_blocks = 0  # of memory, when the heap was frozen last


def pytest_collection_finish() -> None:
    """Freeze what test files have, as well: thousands of tests are a larger heap than what any of them makes."""
    _freeze(0)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Freeze libraries that tests import, and what they share, once there is much of it."""
    _freeze(_blocks + 200_000)


def _freeze(beyond: int) -> None:
    global _blocks
    if sys.getallocatedblocks() > beyond:
        gc.collect()
        gc.freeze()
        _blocks = sys.getallocatedblocks()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal out tests one by one, those of ``TOGETHER`` to one worker. Marks of groups do nothing under pytest 9.2."""
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    groups = {f"tests/{file}": name for name, files in TOGETHER.items() for file in files.split()}

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return groups.get(nodeid.partition("::")[0], nodeid)

        def _pending_of(self, workload: dict[str, dict[str, bool]]) -> int:
            """Count tests to be run, without going through thousands that were, after each of thousands."""
            for scope in [scope for scope, tests in workload.items() if all(tests.values())]:
                del workload[scope]
            return int(super()._pending_of(workload))

    return Together(config, log)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.safetensors, b.safetensors, data.safetensors and models.py:mlp in one folder."""
    save_file(seeded(small_mlp, 0), str(tmp_path / "a.safetensors"), metadata={"format": "pt", "note": "a"})
    save_file(seeded(small_mlp, 1), str(tmp_path / "b.safetensors"), metadata={"format": "pt", "note": "b"})
    torch.manual_seed(9)
    save_file({"inputs": torch.randn(20, 4), "targets": torch.randint(0, 3, (20,))}, str(tmp_path / "data.safetensors"))
    (tmp_path / "models.py").write_text(
        "from torch import nn\n\ndef mlp():\n"
        "    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))\n"
    )
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Callable[..., Any]:
    """Load the folder's pair, with any argument replaced."""

    def load(**changes: Any) -> lmccheck.ModelPair:
        arguments = {
            "a": "a.safetensors",
            "b": "b.safetensors",
            "model": "models:mlp",
            "data": "data.safetensors",
            "base": folder,
            **changes,
        }
        return lmccheck.load_pair(arguments.pop("a"), arguments.pop("b"), **arguments)

    return load


@pytest.fixture(scope="session")
def digit_set() -> ManyAlignment:
    """Trained digit networks in one frame, aligned once."""
    return sets.digit_set()
