"""A project to run pytest in: a folder with a manifest, tiny checkpoints, and the fake core."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

# pytester forgets modules that a run in this process imports: what is slow to import, or may be imported only once, is
# imported here
import hypothesis  # noqa: F401 - see above
import pydantic  # noqa: F401 - see above
import pytest
import safetensors  # noqa: F401 - see above
import tabulate  # noqa: F401 - see above
import torch
from networks.small import seeded, small_mlp

HERE = Path(__file__).parent
IN_ORDER = ("-p", "no:randomly")  # where that is installed: test_beside_other_plugins.py runs with it


def write_checkpoint(
    path: Path, metadata: dict[str, str] | None = None, shape: tuple[int, ...] = (2,), names: tuple[str, ...] = ("w",)
) -> Path:
    """Write a safetensors file of one float32 tensor ``w``, by hand: the format is a length, JSON, and bytes.

    Files of different names hold different numbers: no pair of theirs is one network twice.
    """
    size = 4
    for side in shape:
        size *= side
    header = {
        name: {"dtype": "F32", "shape": list(shape), "data_offsets": [k * size, (k + 1) * size]}
        for k, name in enumerate(names)
    }
    if metadata:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    number = struct.pack("<f", 1 + zlib.crc32(path.name.encode()) / 2**32)
    path.write_bytes(struct.pack("<Q", len(text)) + text + number * (size * len(names) // 4))
    return path


class Project:
    """A pytester project with manifests; ``run`` calls pytest in this process with the fake core in place."""

    alone = ("-p", "no:hypothesispytest", "-p", "no:benchmark", "-p", "no:anyio")  # half of what a process imports

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path

    def pair(self, name: str, folder: str = ".", **metadata: str) -> str:
        """Write a pair's two checkpoints; return its part of a manifest, without checks."""
        home = self.path / folder
        home.mkdir(parents=True, exist_ok=True)
        write_checkpoint(home / f"{name}-a.safetensors", metadata)
        write_checkpoint(home / f"{name}-b.safetensors", {"side": f"b of {name}"})
        return f'\n[pair.{name}]\na = "{name}-a.safetensors"\nb = "{name}-b.safetensors"\n'

    def set(self, name: str, count: int = 3, **metadata: str) -> str:
        """Write a set's checkpoints, NAME-0 and so on; return its part of a manifest, without checks."""
        files = [f"{name}-{k}.safetensors" for k in range(count)]
        for k, file in enumerate(files):
            write_checkpoint(self.path / file, {**metadata, "model": str(k)} if k else metadata)
        return f"\n[set.{name}]\nmodels = {json.dumps(files)}\n"

    def check(self, pair: str, name: str = "linear_connectivity", *, kind: str = "pair", **settings: object) -> str:
        """Return a check's part of a manifest; it has a limit unless it says None."""
        limited = {"limit": 0.05, **settings}
        lines = [f"{key} = {json.dumps(value)}" for key, value in limited.items() if value is not None]
        return "\n".join([f"[{kind}.{pair}.check.{name}]", *lines, ""])

    def set_check(self, name: str, **settings: object) -> str:
        """Return the part of a manifest that checks a set."""
        return self.check(name, "set_connectivity", kind="set", **settings)

    def manifest(self, *parts: str, name: str = "lmc.toml", defaults: str | None = None) -> Path:
        """Write a manifest; its data file exists, its model is never imported."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path.parent / "data.safetensors", names=("inputs", "targets"))
        sources = defaults if defaults is not None else 'model = "models:mlp"\ndata = "data.safetensors"\n'
        path.write_text("\n".join(["schema = 1", "[defaults]", sources, *parts]), encoding="utf-8")
        return path

    def gate(self, *, name: str = "lmc.toml", **values: str) -> Path:
        """Write a manifest of pairs with one check each: ``gate(good="0.01", bad="2")``."""
        folder = str(Path(name).parent)
        return self.manifest(
            *(self.pair(pair, folder, value=value) + self.check(pair, limit=0.05) for pair, value in values.items()),
            name=name,
        )

    def run(self, *arguments: str | Path) -> pytest.RunResult:
        """Run pytest in this process, every warning an error, items in the order of the manifest."""
        return self.pytester.runpytest_inprocess("-p", "fakecore", *IN_ORDER, "-W", "error", *arguments)

    def run_subprocess(self, *arguments: str | Path) -> pytest.RunResult:
        """Run pytest in a fresh process, every warning an error, without plugins that take long to import."""
        return self.pytester.runpytest_subprocess("-p", "fakecore", *IN_ORDER, *self.alone, "-W", "error", *arguments)


@pytest.fixture(autouse=True)
def _calm_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own CI must not see the reports of the runs inside them, nor change what these print."""
    for name in ("GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS", "CI", "BUILD_NUMBER", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="session")
def real_core() -> None:
    """The real core, all of it imported, for runs inside this process that use it.

    Pytester forgets what a run inside this process imports, and torch cannot import some of its parts twice. A process
    of its own would take four seconds to import them before it measures anything.
    """
    import lmccheck

    for found in walk_packages(lmccheck.__path__, "lmccheck."):
        if not found.name.endswith("__main__"):
            import_module(found.name)
    states = [seeded(small_mlp, seed) for seed in (0, 1)]
    data = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    pair = lmccheck.load_pair(*states, model=small_mlp, data=data, device="cpu")
    lmccheck.linear_connectivity(pair, limit=100.0, points=5)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty project beside the fake core."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    return Project(pytester)


@pytest.fixture
def checkpoint() -> Callable[..., Path]:
    """The function that writes a checkpoint."""
    return write_checkpoint
