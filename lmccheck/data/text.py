"""Text as tokens, and which of them count: rows of text, of prompts with completions, or of conversations.

Beginnings and ends are the tokenizer's: what special tokens it adds to a text (BOS, EOS) are added once to each row,
none to a conversation, whose template writes them; nothing else is added but, with ``pack``, an EOS between documents.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmccheck.data.collate import UNCOUNTED
from lmccheck.data.described import DataSpec
from lmccheck.data.rows import KINDS, Row, columns_of, kind_of
from lmccheck.data.tokenizing import Encoded, Tokenizer, load_tokenizer
from lmccheck.errors import SourceError, shown_path
from lmccheck.store.disk import Held
from lmccheck.store.documents import shown

AT_ONCE = 2**25  # numbers of logits that one batch may have: 128 MB in float32
MOST_TOKENS = 2**15  # and tokens
NO_TEMPLATE = "has no chat template, expected one for {'messages': […]}; mend: a tokenizer that was saved with its own"


@dataclass(frozen=True)
class Read:
    """Data as they were read: inputs and targets of n samples, a column of n values by name, and what is to be said.

    ``places`` is where each sample is from ("math.jsonl:12"); ``most`` how many samples fit into a batch.
    """

    inputs: Any
    targets: Tensor
    kind: str | None
    held: tuple[Held, ...]
    columns: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    places: tuple[str, ...] = ()
    most: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """A sample: ids, which of them count, where it is from, and how many of all rows it is made of."""

    ids: list[int]
    counted: list[bool]
    place: str
    torn: bool = False  # whether one token holds the prompt's end and the completion's beginning
    cut: bool = False
    hidden: dict[int, int] = field(default_factory=dict)  # what the tokens are that are masked, by their place

    @property
    def counts(self) -> bool:
        """Whether anything is predicted in it: unless it is masked, the first token never is."""
        return bool(self.hidden) or any(self.counted[1:])


def read_text(spec: DataSpec, rows: Sequence[Row], held: tuple[Held, ...], folder: Path) -> Read:
    """Return rows as tokens. Raises SourceError with the file and line of the first row that cannot be used."""
    kind = kind_of(rows, spec.column)
    if spec.count == "completion" and kind == "text":
        raise rows[0].wrong("count = 'completion', and a text has none; mend: count = 'all', or rows of prompts")
    tokenizer = load_tokenizer(folder / str(spec.tokenizer))
    tokenized = [_tokens(row, kind, tokenizer, spec) for row in rows]
    for row, one in zip(rows, tokenized, strict=True):
        if spec.target is None and not one.counts:
            raise row.wrong(_nothing(one, kind))
    if tokenizer.size and (over := next((t for t in tokenized if max(t.ids, default=0) >= tokenizer.size), None)):
        raise SourceError(f"{over.place}: token {max(over.ids)}, {tokenizer.where} has {tokenizer.size} tokens")
    notes = _torn_note(tokenized)
    read = {*(KINDS[kind] if spec.column is None else [spec.column]), *([] if spec.target is None else [spec.target])}
    columns = columns_of(rows, read)
    if spec.pack:
        samples, columns = packed(tokenized, int(spec.max_length or 0), tokenizer), {}
    else:
        samples = [_cut(one, spec.max_length) for one in tokenized]
        notes += _cut_notes(samples, spec)
    if over := next((one for one in samples if len(one.ids) > (tokenizer.longest or len(one.ids))), None):
        raise SourceError(
            f"{over.place}: {len(over.ids)} tokens, {tokenizer.where} says that its model takes {tokenizer.longest}; "
            f"mend: max_length = {tokenizer.longest}, which cuts rows, or shorter rows"
        )
    if spec.mask is not None:
        samples = [_masked(one, spec.mask, tokenizer) for one in samples]
    kept = [k for k, one in enumerate(samples) if spec.target is not None or one.counts]
    if not kept:
        raise SourceError(
            f"{shown_path(held[0].path)}: cut to {spec.max_length} tokens, no row has a token that counts"
        )
    samples = [samples[k] for k in kept]
    columns = {name: tuple(values[k] for k in kept) for name, values in columns.items()}
    inputs, targets = _padded(samples, next((p for p in (tokenizer.pad, tokenizer.eos) if p is not None), 0))
    if spec.target is not None:
        targets = _classes([rows[k] for k in kept], spec.target)
    budget = min(MOST_TOKENS, max(1, AT_ONCE // max(1, tokenizer.size)))
    return Read(
        inputs,
        targets,
        "text" if spec.target is None else "labels",
        (*held, *tokenizer.held),
        columns,
        tuple(one.place for one in samples),
        max(1, budget // targets.shape[1]) if spec.target is None else max(1, budget // len(samples[0].ids)),
        tuple(notes),
    )


def _tokens(row: Row, kind: str, tokenizer: Tokenizer, spec: DataSpec) -> Tokens:
    every = spec.count == "all" or kind == "text"
    if kind == "messages":
        return _conversation(row, tokenizer, every)
    if kind == "text":
        found = tokenizer.encode(str(row.values[spec.column or "text"]), True)
        return Tokens(found.ids, [True] * len(found.ids), row.place)
    prompt, completion = str(row.values["prompt"]), str(row.values["completion"])
    found = tokenizer.encode(prompt + completion, True)
    first, torn = _completion(row, found, prompt, completion, tokenizer)
    return Tokens(found.ids, [every or k >= first for k in range(len(found.ids))], row.place, torn and not every)


def _completion(row: Row, found: Encoded, prompt: str, completion: str, tokenizer: Tokenizer) -> tuple[int, bool]:
    """Return which token is the first that holds a character of the completion, and whether it holds others, too.

    What follows it counts, with what the tokenizer adds at the end.
    """
    if not completion:
        return len(found.ids), False
    border = len(prompt)
    if found.spans is not None:
        first = next((k for k, (_, stop) in enumerate(found.spans) if stop > border), len(found.ids))
        return first, first < len(found.ids) and found.spans[first][0] < border
    alone = tokenizer.encode(prompt, False).ids
    whole = tokenizer.encode(prompt + completion, False).ids
    if whole[: len(alone)] != alone:
        raise row.wrong(
            f"the tokens of the prompt are not the first of those of prompt and completion, and {tokenizer.where} does "
            "not say which characters a token is; mend: end the prompt where a word ends"
        )
    added = next((k for k in range(len(found.ids)) if found.ids[k : k + len(whole)] == whole), 0)
    return added + len(alone), False


def _conversation(row: Row, tokenizer: Tokenizer, every: bool) -> Tokens:
    """Return a conversation as the template writes it; the replies count, with the mark that ends each."""
    if tokenizer.chat is None:
        raise row.wrong(f"{tokenizer.where} {NO_TEMPLATE}")
    messages = row.values["messages"]
    try:
        text = tokenizer.chat(messages, False)
        found = tokenizer.encode(text, False)
        if every:
            return Tokens(found.ids, [True] * len(found.ids), row.place)
        if found.spans is None:
            raise SourceError(f"{tokenizer.where} does not say which characters a token is; mend: a fast tokenizer")
        spans = _replies(messages, text, tokenizer)
    except SourceError as error:
        raise row.wrong(str(error)) from None
    return Tokens(found.ids, [any(a < end and b > start for a, b in spans) for start, end in found.spans], row.place)


def _replies(messages: Sequence[Any], text: str, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Return which characters of a conversation are generated: as its template says, or else by its beginnings.

    A reply is what comes between the conversation before it, with the header of a reply, and the conversation up to it.
    """
    if (said := tokenizer.spans(messages)) is not None:
        if said[0] != text:
            raise SourceError(
                "its chat template gives two texts for one conversation; mend: take what varies out of it"
            )
        return said[1]
    assert tokenizer.chat is not None
    found = []
    for k, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        plain, before = (tokenizer.chat(messages[:k], generate) for generate in (False, True)) if k else ("", "")
        upto = tokenizer.chat(messages[: k + 1], False)
        if not (text.startswith(upto) and upto.startswith(before)):
            raise SourceError(
                f"the chat template does not tell what of message {k} is generated: what it writes of the first "
                f"{k + 1 if upto.startswith(before) else k} messages is not how the whole begins; mend: "
                "{% generation %} around the reply in the template, or count = 'all'"
            )
        if plain == before and not upto[len(before) :].lstrip().startswith(message["content"].strip()[:20]):
            raise SourceError(
                f"the chat template does not tell where the reply of message {k} begins: it writes the same with and "
                "without add_generation_prompt; mend: {% generation %} around the reply in the template, or count = "
                "'all'"
            )
        found.append((len(before), len(upto)))
    return found


def _nothing(one: Tokens, kind: str) -> str:
    counts = {"completion": "a completion", "messages": "an assistant's turn", "text": "two tokens or more"}[kind]
    return f"no token counts, of {len(one.ids)}; expected {counts}; mend: take the row out, or complete it"


def _cut(one: Tokens, longest: int | None) -> Tokens:
    if longest is None or len(one.ids) <= longest:
        return one
    return Tokens(one.ids[:longest], one.counted[:longest], one.place, one.torn, True)


def _cut_notes(samples: Sequence[Tokens], spec: DataSpec) -> list[str]:
    cut = [one for one in samples if one.cut]
    if not cut:
        return []
    left = sum(not one.counts for one in cut) if spec.target is None else 0
    out = f"; {left} of them are left out: nothing that counts is left in them" if left else ""
    return [f"{len(cut)} of {len(samples)} rows are cut to {spec.max_length} tokens, the first in {cut[0].place}{out}"]


def _torn_note(samples: Sequence[Tokens]) -> list[str]:
    torn = [one for one in samples if one.torn]
    if not torn:
        return []
    return [
        f"{len(torn)} of {len(samples)} rows have a token that holds the prompt's end and the completion's beginning, "
        f"and counts, the first in {torn[0].place}"
    ]


def packed(documents: Sequence[Tokens], length: int, tokenizer: Tokenizer) -> list[Tokens]:
    """Return documents one after the other in rows of ``length`` tokens, an EOS between them.

    What counts is what counts in each document by itself, less what begins a row: neither the EOS nor the first token
    of a document does, which nothing predicts. Later documents of a row see earlier ones, as in training on such rows.
    """
    if tokenizer.eos is None:
        raise SourceError(
            f"{tokenizer.where} has no EOS token, expected one between packed documents; mend: pack = false"
        )
    ids: list[int] = []
    counted: list[bool] = []
    places: list[str] = []
    for one in documents:
        ends = [] if one.ids and one.ids[-1] == tokenizer.eos else [tokenizer.eos]
        ids += [*one.ids, *ends]
        counted += [False, *one.counted[1:], *([False] * len(ends))]
        places += [one.place] * (len(one.ids) + len(ends))
    starts = range(0, len(ids), length)
    return [Tokens(ids[k : k + length], counted[k : k + length], places[k]) for k in starts]


def _masked(one: Tokens, share: float, tokenizer: Tokenizer) -> Tokens:
    """Return a sample with a share of what counts in it hidden, one token at least, and only those counted.

    Which ones depends on nothing but the sample's own tokens, so that every model is asked the same.
    """
    if tokenizer.mask is None:
        raise SourceError(f"{tokenizer.where} has no token of a mask, expected one; mend: leave `mask` out")
    places = [k for k, i in enumerate(one.ids) if one.counted[k] and i not in tokenizer.special]
    drawn = sorted(random.Random(repr(one.ids)).sample(places, max(1, round(share * len(places))))) if places else []
    ids = [tokenizer.mask if k in set(drawn) else i for k, i in enumerate(one.ids)]
    hidden = {k: one.ids[k] for k in drawn}
    return replace(one, ids=ids, counted=[k in hidden for k in range(len(ids))], hidden=hidden)


def _padded(samples: Sequence[Tokens], pad: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return inputs by name and targets, (n, T) int64, padded behind: positions are those of a row by itself."""
    width = max(len(one.ids) for one in samples)
    ids = torch.full((len(samples), width), pad, dtype=torch.int64)
    mask = torch.zeros((len(samples), width), dtype=torch.int64)
    targets = torch.full((len(samples), width), UNCOUNTED, dtype=torch.int64)
    for k, one in enumerate(samples):
        ids[k, : len(one.ids)] = torch.tensor(one.ids, dtype=torch.int64)
        mask[k, : len(one.ids)] = 1
        wanted = torch.tensor([one.hidden.get(t, i) for t, i in enumerate(one.ids)], dtype=torch.int64)
        targets[k, : len(wanted)] = wanted.where(torch.tensor(one.counted, dtype=torch.bool), UNCOUNTED)
    return {"input_ids": ids, "attention_mask": mask}, targets


def _classes(rows: Sequence[Row], target: str) -> Tensor:
    """Return the classes of rows, (n,) int64. Raises SourceError for the first that is no whole number from 0."""
    for row in rows:
        value = row.values.get(target)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            got = shown(value) if target in row.values else "none"
            raise row.wrong(f"{target!r}: got {got}, expected a class, a whole number from 0")
    return torch.tensor([row.values[target] for row in rows], dtype=torch.int64)
