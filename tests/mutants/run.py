"""Which small faults do the tests catch? Run by hand: ``python tests/mutants/run.py [ROOM…] [--jobs N] [--grep TEXT]``.

Faults are data, one TOML file per room beside this script. A table is a file of ``lmccheck``; ``tests`` are those that
are run for its faults, from the folder ``tests``, and each of ``faults`` says what text becomes what, and what that
means; ``equivalent`` says why nothing can tell the fault from the original. A fault stands in a temporary copy of the
package only while its tests run there. ``test_apply.py`` holds that every fault still applies.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import count
from multiprocessing import get_context
from pathlib import Path

from tabulate import tabulate

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COPIED = ("lmccheck", "tests", "fixtures", "pyproject.toml", "README.md", "CHANGELOG.md", ".github")
ROOM, SLOWER = 20.0, 4.0  # seconds, and times as long as without a fault, that tests may take with one
CAUGHT = {1: "caught", 2: "caught", -1: "caught (hangs)"}  # by exit status of pytest; any other is a mistake here
SLOW_TO_IMPORT = (
    "torch", "torch.export", "torch._dynamo", "torch.testing", "scipy.optimize", "scipy.stats", "scipy.sparse.csgraph",
    "ot", "pytest", "pydantic", "safetensors.torch", "tabulate",
)  # fmt: skip
OPTIONS = (
    "-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:anyio", "-p", "no:benchmark", "-p", "no:xdist",
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """``old``, which stands exactly once in ``file``, becomes ``new``; ``tests`` should then fail."""

    room: str
    file: str
    old: str
    new: str
    means: str
    tests: tuple[str, ...]
    equivalent: str = ""

    def applied(self, root: Path) -> str:
        """Return the text of the faulty file. Raises ValueError where ``old`` does not stand there exactly once."""
        text = (root / "lmccheck" / self.file).read_text(encoding="utf-8")
        if (found := text.count(self.old)) != 1 or self.new == self.old:
            raise ValueError(
                f"{self.room}: {self.file}: {self.means!r}: the old text is found {found} times, expected 1"
            )
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Outcome:
    """What became of a fault: caught, survived, equivalent, or an error in the list itself."""

    fault: Fault
    said: str
    seconds: float


def rooms() -> list[str]:
    """Return the rooms that have faults."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


def faults(room: str) -> list[Fault]:
    """Return the faults of a room."""
    tables = tomllib.loads((HERE / f"{room}.toml").read_text(encoding="utf-8"))
    return [
        Fault(room, file, **{"tests": table["tests"], **entry, **_split(entry.get("tests", table["tests"]))})
        for file, table in tables.items()
        for entry in table["faults"]
    ]


def _split(tests: str) -> dict[str, tuple[str, ...]]:
    return {"tests": tuple(tests.split())}


@cache
def copy_of_package() -> Path:
    """Return this process's own copy of what the tests need."""
    root = Path(tempfile.mkdtemp(prefix="mutants-"))
    ignored = shutil.ignore_patterns("__pycache__", ".*cache")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=ignored)
        elif source.exists():
            shutil.copy2(source, root / name)
    return root


_TICKS = count(1)


def put(path: Path, text: str) -> None:
    """Write a source file with a time of its own, so that no compiled file of another text passes for it."""
    path.write_text(text, encoding="utf-8")
    when = time.time() + 10 * next(_TICKS)
    os.utime(path, (when, when))


def run_tests(root: Path, tests: Sequence[str], longest: float = 600.0) -> int:
    """Return pytest's exit status in a fork of this process, which has imported what is slow; −1 for one that hangs."""
    child = os.fork()
    if child == 0:
        os._exit(_in_child(root, tests))
    end = time.monotonic() + longest
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def _in_child(root: Path, tests: Sequence[str]) -> int:
    os.setsid()
    os.chdir(root)
    log = os.open(root / "log.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    temporary = root.with_name(f"{root.name}-temporary")  # else pytest's runs at one time clear away one another's
    temporary.mkdir(exist_ok=True)
    os.environ.update(PYTHONPATH=str(root), OMP_NUM_THREADS="1", PYTEST_DEBUG_TEMPROOT=str(temporary))
    for name in ("PYTEST_ADDOPTS", "PYTHONDONTWRITEBYTECODE"):
        os.environ.pop(name, None)
    sys.dont_write_bytecode = False  # else every fork compiles the package and its tests again: seconds each
    sys.path[:] = [str(root), *(entry for entry in sys.path if not Path(entry or ".").resolve().is_relative_to(ROOT))]
    try:
        import pytest

        named = ["-m", "not zoo and not gpu"] if any("::" in test for test in tests) else []  # slow ones, too
        status = int(pytest.main([*OPTIONS, *named, "--rootdir", str(root), *(f"tests/{test}" for test in tests)]))
        import lmccheck

        return status if Path(lmccheck.__file__).is_relative_to(root) else 99
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 98
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@cache
def unharmed(tests: tuple[str, ...]) -> tuple[int, float]:
    """Return the exit status of tests without any fault, and their seconds: only what passes then can catch one."""
    start = time.monotonic()
    return run_tests(copy_of_package(), tests), time.monotonic() - start


def tried(fault: Fault) -> Outcome:
    """Put a fault into this process's copy, run its tests, and take it out again."""
    start, root = time.monotonic(), copy_of_package()
    path = root / "lmccheck" / fault.file
    try:
        faulty = fault.applied(root)
    except (OSError, ValueError) as error:
        return Outcome(fault, f"error: {error}", 0.0)
    status, usual = unharmed(fault.tests)
    if status:
        return Outcome(
            fault, f"error: the tests give {status} without the fault:\n{_tail(root)}", time.monotonic() - start
        )
    before = path.read_text(encoding="utf-8")
    put(path, faulty)
    status = run_tests(root, fault.tests, ROOM + SLOWER * usual)
    put(path, before)
    said = "survived" if status == 0 else CAUGHT.get(status, f"error: pytest's exit status is {status}:\n{_tail(root)}")
    if said == "survived" and fault.equivalent:
        said = "equivalent"
    return Outcome(fault, said, time.monotonic() - start)


def _tail(root: Path) -> str:
    return "\n".join((root / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-3:])


def outcomes(wanted: Sequence[Fault], jobs: int) -> Iterable[Outcome]:
    """Try all faults, those of the same tests after one another, and say how each went."""
    for name in SLOW_TO_IMPORT:
        __import__(name)
    gc.freeze()  # what is imported is no garbage: looking at it would copy its memory in every fork
    assert not any(name.split(".")[0] == "lmccheck" for name in sys.modules)
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        for outcome in pool.map(tried, wanted):
            print(
                f"{outcome.said:10} {outcome.seconds:5.1f} s  {outcome.fault.file}: {outcome.fault.means}", flush=True
            )
            yield outcome
        for _ in range(jobs):
            pool.submit(_clean)


def _clean() -> None:
    root = copy_of_package()
    for folder in (root, root.with_name(f"{root.name}-temporary")):
        shutil.rmtree(folder, ignore_errors=True)


def table(found: Sequence[Outcome]) -> str:
    """Return, per room, how many faults there are, how many were caught and how long that took."""
    words = ("caught", "equivalent", "survived", "error")
    rows = []
    for room in (*sorted({outcome.fault.room for outcome in found}), "all"):
        own = [outcome for outcome in found if room in (outcome.fault.room, "all")]
        counts = [sum(outcome.said.startswith(word) for outcome in own) for word in words]
        share = counts[0] / max(1, len(own) - counts[1])
        rows.append([room, len(own), *counts, f"{share:.1%}", f"{sum(outcome.seconds for outcome in own):.0f} s"])
    return tabulate(rows, ["room", "faults", *words, "share", "time"])


def main() -> int:
    """Try the faults of some rooms, or of all; the exit status is 0 where every one is caught or equivalent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"by default all: {', '.join(rooms())}")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--grep", default="", help="only faults whose 'file: meaning' this pattern finds")
    given = parser.parse_args()
    wanted = [fault for room in given.rooms or rooms() for fault in faults(room)]
    wanted = [fault for fault in wanted if re.search(given.grep, f"{fault.file}: {fault.means}")]
    found = list(outcomes(wanted, given.jobs))
    print(f"\n{table(found)}")
    return int(any(outcome.said.startswith(("survived", "error")) for outcome in found))


if __name__ == "__main__":
    sys.exit(main())
