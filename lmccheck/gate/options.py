"""What the command line and the ini file ask for, checked once and frozen."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmccheck.errors import nearest
from lmccheck.report.formats import formats

if TYPE_CHECKING:
    from lmccheck.manifest.plan import Plan

PROFILES = ("dev", "ci", "thorough")
DEFAULT_PROFILE = "ci"


@dataclass(frozen=True)
class Options:
    """The settings of one run; paths are absolute."""

    models: bool
    device: str
    seed: int
    profile: str
    report_only: bool
    table: str
    reports: Mapping[str, Path]  # by the name of the format
    aligned_dir: Path | None
    witness_dir: Path | None
    baseline: Path | None = None
    update_baseline: bool = False
    history: Path | None = None
    curves_dir: Path | None = None

    @property
    def reproducing_flags(self) -> list[str]:
        """The flags that a command needs to repeat a measurement of this run; defaults are left out."""
        flags = []
        if self.device != "auto":
            flags.append(f"--lmc-device={self.device}")
        if self.seed != 0:
            flags.append(f"--lmc-seed={self.seed}")
        if self.profile != DEFAULT_PROFILE:
            flags.append(f"--lmc-profile={self.profile}")
        return flags


OPTIONS = pytest.StashKey[Options]()
# the manifests whose nodes were collected, not merely seen in a folder, with what they ask for where they are sound
MANIFESTS: pytest.StashKey[dict[Path, Plan | None]] = pytest.StashKey()
USAGE_ERROR = pytest.StashKey[str]()  # that of an xdist worker, which the controller has to end with
REFUSED = pytest.StashKey[set[Path]]()  # reports that may not be written where they were asked for


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest, by its name."""
    return path.name == "lmc.toml" or path.name.endswith(".lmc.toml")


def options_of(config: pytest.Config) -> Options:
    """Return the options of this run, read and checked at the first call.

    Raises ``pytest.UsageError`` (exit status 4) for a value that cannot be meant.
    """
    if OPTIONS not in config.stash:
        config.stash[OPTIONS] = Options(
            models=bool(config.getoption("lmc_models")),
            device=_device(_value(config, "lmc_device") or "auto"),
            seed=_seed(_value(config, "lmc_seed") or _of_hypothesis(config, "seed") or 0),
            profile=_one_of(
                "--lmc-profile",
                _value(config, "lmc_profile") or _of_hypothesis(config, "profile") or DEFAULT_PROFILE,
                PROFILES,
            ),
            report_only=bool(config.getoption("lmc_report_only")),
            table=_table_format(_value(config, "lmc_table") or "simple"),
            reports={each.name: path for each in formats() if (path := _path(config, each.key))},
            aligned_dir=_path(config, "lmc_aligned_dir"),
            witness_dir=_path(config, "lmc_witness_dir"),
            baseline=_path(config, "lmc_baseline"),
            update_baseline=bool(config.getoption("lmc_update_baseline")),
            history=_path(config, "lmc_history"),
            curves_dir=_path(config, "lmc_curves"),
        )
    return config.stash[OPTIONS]


def _value(config: pytest.Config, name: str) -> Any:
    """The command line wins over the ini file."""
    given = config.getoption(name)
    return config.getini(name) if given is None else given


def _of_hypothesis(config: pytest.Config, what: str) -> str | None:
    """Return the seed or the profile that was given to Hypothesis, where it is one that lmccheck has, too."""
    given = config.getoption(f"--hypothesis-{what}", default=None)
    if given is None or (what == "profile" and given not in PROFILES):
        return None
    return str(given) if str(given).lstrip("-").isdecimal() or what == "profile" else str(zlib.crc32(given.encode()))


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise pytest.UsageError(f"--lmc-device: got {text!r}, expected auto, cpu, cuda or cuda:N")
    return text


def _seed(value: str | int) -> int:
    try:
        return int(value)
    except ValueError:
        raise pytest.UsageError(f"--lmc-seed: got {value!r}, expected a whole number") from None


def _one_of(option: str, value: str, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise pytest.UsageError(f"{option}: got {value!r}, expected {', '.join(valid)}{nearest(value, valid)}")
    return value


def _table_format(value: str) -> str:
    if value == "simple":  # the default costs no import
        return value
    from tabulate import tabulate_formats

    return _one_of("--lmc-table", value, tuple(tabulate_formats))


def _path(config: pytest.Config, name: str) -> Path | None:
    """A path on the command line is relative to where the command was typed, one in the ini file to that file."""
    given, stored = config.getoption(name), config.getini(name)
    if given:
        return config.invocation_params.dir / str(given)
    if stored:
        return (config.inipath.parent if config.inipath else config.rootpath) / str(stored)
    return None
