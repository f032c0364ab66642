"""What ``lmccheck init`` is about to write, as it is found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lmccheck.store.checkpoint import Checkpoint
from lmccheck.store.folders import CONFIG

MANIFEST, MODELS = "lmc.toml", "models.py"


@dataclass
class Draft:
    """What is to be written, as it is found; ``said`` is what the user is told, a line each."""

    folder: Path
    named: list[str]  # paths of checkpoints, relative to the folder
    found: list[Checkpoint]
    data: str | None = None
    calibration: str | None = None
    texts: dict[str, str] = field(default_factory=dict)  # [data.NAME] and its file of text
    tokenizer: str | None = None
    loss: str | None = None
    model: str | None = None  # None where folders say it
    models: str = ""  # the text of models.py, empty where none is needed
    repair: str = ""
    said: list[str] = field(default_factory=list)

    @property
    def folders(self) -> bool:
        """Whether a config.json says the network."""
        return all(each.home is not None and (each.home / CONFIG).is_file() for each in self.found)
