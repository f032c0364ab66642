"""Everything that belongs to checkpoints beside their weights, compared; what is accepted is taken out by its name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmccheck.beside import adapters, configs, fit, generation, processors, tokenizers
from lmccheck.beside.difference import Difference
from lmccheck.beside.folder import CONFIG, Folder
from lmccheck.beside.vocabulary import ADDED, FAST
from lmccheck.errors import CheckpointError, nearest, one_line
from lmccheck.store.checkpoint import Checkpoint
from lmccheck.store.header import TensorHeader

DEEP = "JSON nested too deeply, expected what save_pretrained writes; mend: save the model again"
MOST = 12  # lines of one comparison
MOST_ACCEPTED = 3  # told in full
STAND_ALONE = ("dtype", "vocabulary", "vocab_size", *adapters.BASE)
Open = Callable[[Path], Folder]  # a folder by its path: the same one each time, where many compare with it


@dataclass(frozen=True)
class Side:
    """One checkpoint by the name that messages call it.

    ``adapter`` is the folder of an adapter on its base, ``facts`` what that says. Of one that is ``made``, its folder
    is not told. ``meant`` are the names of what differs in it by its kind.
    """

    name: str
    home: Path | None
    tensors: Mapping[str, TensorHeader]
    adapter: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    made: bool = False
    meant: Collection[str] = ()

    @classmethod
    def of(cls, name: str, checkpoint: Checkpoint) -> Side:
        """Return the side of an open checkpoint."""
        told = checkpoint.about.get("adapter")
        path = Path(told["path"]) if isinstance(told, Mapping) else None
        facts = told if isinstance(told, Mapping) else {}
        return cls(name, checkpoint.home, checkpoint.tensors, path, facts)


@dataclass
class Compared:
    """A line for each difference that is not accepted, and for each that is only said.

    ``accepted`` says what would be a problem, had its name not been accepted. ``unmet`` are the accepted names that met
    no difference, ``unknown`` those that can meet none, with a line each.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    unmet: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    def told_accepted(self) -> tuple[str, ...]:
        """Return what a report says of differences that were accepted, the first in full."""
        lines = [f"accepted: {one_line(line)}" for line in dict.fromkeys(self.accepted)]
        more = len(lines) - MOST_ACCEPTED
        return *lines[:MOST_ACCEPTED], *([f"accepted: {more} more differences"] if more > 0 else [])


def compare(
    sides: Sequence[Side], accept: Iterable[str] = (), opened: Open = Folder, data: Mapping[str, Path] | None = None
) -> Compared:
    """Compare the folders of several checkpoints with the first that has one, and each with its own weights.

    ``accept`` are the names that a user accepts; ``data`` the folders of the tokenizers that data are read with.
    """
    found, accepted = Compared(), _Accepted(accept)
    known = [_Opened(side, opened) for side in sides if side.home is not None]
    bare = [side.name for side in sides if side.home is None]
    bare += [side.side.name for side in known if not side.folder.has(CONFIG)]
    if bare and len(bare) < len(sides):
        found.notes.append(f"{', '.join(bare[:3])}: no config.json beside the weights, so that none is compared")
    largest = _Largest()
    for side in known:
        _faults(found, side, accepted, largest)
        side.forget()
    for other in known[1:]:
        if (known[0].folder.path, known[0].tokenizer.path) != (other.folder.path, other.tokenizer.path):
            _differences(found, known[0], other, accepted)
            other.forget()
    _adapters(found, sides, accepted, opened)
    for name, path in (data or {}).items():
        for side in known:
            _read_with(found, (name, opened(path)), side, accepted)
    for side in known[:1]:
        side.forget()
    accepted.tell([folder for side in known for folder in (side.folder, side.tokenizer)], found)
    return found


class _Opened:
    """A side with its folders."""

    def __init__(self, side: Side, opened: Open) -> None:
        assert side.home is not None
        self.side = side
        self.folder = opened(side.home)
        own = None if side.adapter is None else opened(side.adapter)
        self.tokenizer = own if own is not None and tokenizers.exists(own) else self.folder
        self.label = side.name if side.made else f"{side.name} ({self.folder})"

    def forget(self) -> None:
        """Let go of what was read of large files."""
        self.folder.forget()
        self.tokenizer.forget()

    def name(self, difference: Difference) -> str:
        """Return what a difference calls it: with the folder that the file lies in."""
        folder = self.folder if difference.file in (CONFIG, generation.FILE) else self.tokenizer
        return self.side.name if self.side.made else f"{self.side.name} ({folder})"


class _Largest:
    """The largest token of each tokenizer, which is parsed once however many folders have it."""

    def __init__(self) -> None:
        self.known: dict[tuple[str | None, ...], fit.Largest | None] = {}

    def of(self, tokenizer: Folder) -> fit.Largest | None:
        key = tuple(map(tokenizer.sha256, (FAST, ADDED, tokenizers.CONFIG)))
        if key[0] is None:
            return fit.largest_of(tokenizer)
        if key not in self.known:
            self.known[key] = fit.largest_of(tokenizer)
        return self.known[key]


class _Accepted:
    """Names that a user accepts, and which of them met a difference."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = dict.fromkeys(names)
        self.met: set[str] = set()

    def takes(self, names: Iterable[str]) -> bool:
        """Whether one of a difference's names is accepted."""
        hit = self.names.keys() & set(names)
        self.met |= hit
        return bool(hit)

    def tell(self, folders: Sequence[Folder], found: Compared) -> None:
        """Say which names met no difference, and which are none."""
        rest = [name for name in self.names if name not in self.met]
        valid = sorted(set(known_names(folders))) if rest else []
        for name in rest:
            if name in valid:
                found.unmet[name] = f"accept: {name!r} meets no difference; mend: leave it out"
            else:
                found.unknown[name] = (
                    f"accept: got {name!r}, expected a key of {CONFIG} or a part of a tokenizer{nearest(name, valid)}"
                )


def known_names(folders: Iterable[Folder]) -> Iterator[str]:
    """Yield every name that a difference of some folders could be accepted by."""
    yield from (spelling for family in configs.FAMILIES for spelling in family)
    yield from (
        *tokenizers.FACETS,
        *tokenizers.NOTED,
        *tokenizers.SWITCHES,
        processors.ALL,
        generation.ALL,
        *STAND_ALONE,
    )
    for folder in folders:
        for name in (CONFIG, tokenizers.CONFIG, tokenizers.SPECIAL, generation.FILE, *processors.FILES):
            with suppress(CheckpointError):  # of a damaged file, which is told where it is compared
                yield from _keys(folder.table(name) or {}, "", 3)


def _keys(table: Mapping[str, object], above: str, depth: int) -> Iterator[str]:
    for key, value in table.items():
        yield from {f"{above}{key}", key}
        if isinstance(value, dict) and depth:
            yield from _keys(value, f"{above}{key}.", depth - 1)


def _faults(found: Compared, side: _Opened, accepted: _Accepted, largest: _Largest) -> None:
    """Add what does not fit in one checkpoint by itself."""
    lines: list[str] = []
    try:
        for text, names in fit.faults(side.folder, lambda: largest.of(side.tokenizer), side.side.tensors):
            told = found.accepted if accepted.takes(names) else lines
            told.append(f"{side.label}: {text}")
    except CheckpointError as error:
        lines.append(str(error))
    except RecursionError:
        lines.append(f"{side.label}: {DEEP}")
    _add(found.problems, lines, side.label)


def _differences(found: Compared, one: _Opened, other: _Opened, accepted: _Accepted) -> None:
    lines, meant = Compared(), {*one.side.meant, *other.side.meant}
    for differences, ends in (
        (configs.differences, (one.folder, other.folder)),
        (generation.differences, (one.folder, other.folder)),
        (processors.differences, (one.folder, other.folder)),
        (tokenizers.differences, (one.tokenizer, other.tokenizer)),
    ):
        try:
            for each in differences(*ends):
                taken, names = accepted.takes(each.names), (one.name(each), other.name(each))
                if not meant.isdisjoint(each.names):
                    continue
                if taken:
                    lines.accepted += [] if each.note else [each.said(*names)]
                else:
                    (lines.notes if each.note else lines.problems).append(each.line(*names))
        except CheckpointError as error:
            lines.problems.append(str(error))
        except RecursionError:
            lines.problems.append(f"{one.label} or {other.label}: {DEEP}")
    both = f"{one.label} and {other.label}"
    _add(found.problems, lines.problems, both)
    _add(found.notes, lines.notes, both)
    _add(found.accepted, lines.accepted, both)


def _read_with(found: Compared, data: tuple[str, Folder], side: _Opened, accepted: _Accepted) -> None:
    """Add what makes data mean other tokens than they are to a checkpoint's own tokenizer, or have none of its rows."""
    (name, folder), lines = data, []
    if not tokenizers.exists(folder) or folder.path.resolve() == side.tokenizer.path.resolve():
        return
    try:
        if tokenizers.exists(side.tokenizer):
            for each in tokenizers.text_differences(folder, side.tokenizer):
                ends = f"{name} ({folder})", side.name(each)
                if accepted.takes(each.names):
                    found.accepted.append(each.said(*ends))
                else:
                    lines.append(each.line(*ends))
        else:
            for text, names in fit.rows(side.folder, lambda: fit.largest_of(folder), side.side.tensors):
                told = found.accepted if accepted.takes(names) else lines
                told.append(f"{side.label}, {name}: {text}")
    except CheckpointError as error:
        lines = [str(error)]
    except RecursionError:
        lines = [f"{name} ({folder}): {DEEP}"]
    _add(found.problems, lines[:1], side.label)


def _adapters(found: Compared, sides: Sequence[Side], accepted: _Accepted, opened: Open) -> None:
    """Add what is to be said of adapters: of other bases than they were trained on, and of scales that differ."""
    tuned = [side for side in sides if side.adapter is not None]
    for side in tuned:
        line, certain = adapters.other_base(side.name, side.adapter, side.facts.get("base"), side.home, opened)
        if line and accepted.takes(adapters.BASE):
            found.accepted += [line.partition("; mend: ")[0]] if certain else []
        elif line:
            _add(found.problems if certain else found.notes, [line], side.name)
    _add(found.notes, adapters.scales({side.name: side.facts for side in tuned}), "adapters")


def _add(told: list[str], lines: Iterable[str], between: str) -> None:
    """Add lines that were not told yet, of very many the first ones."""
    new = [line for line in dict.fromkeys(map(one_line, lines)) if line not in told]
    told += new[:MOST]
    if len(new) > MOST:
        told.append(one_line(f"{len(new) - MOST} more differences of {between}"))
