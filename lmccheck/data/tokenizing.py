"""A tokenizer from a folder: text to ids, and which characters each id stands for. Nothing is fetched, no code is run.

Read by transformers (extra ``hf``), or by the library tokenizers where there is a tokenizer.json and no transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmccheck.data.extras import extra
from lmccheck.data.imports import say
from lmccheck.errors import SourceError, shown_path
from lmccheck.shown import one_line
from lmccheck.store.disk import Held, hashed

EXPECTED = "a folder with a tokenizer, as save_pretrained writes it, or a tokenizer.json"
FILES = re.compile(
    r"(tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt|spiece\.model"
    r"|sentencepiece.*\.model|chat_template.*|config\.json)"
)
MOST_LENGTH = 10**9  # a longer model_max_length is transformers' way to say that none is known
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Tokens of a text: ids, and the characters that each stands for, None where the tokenizer cannot say."""

    ids: list[int]
    spans: list[Span] | None


@one_line(lambda one: f"{one.where}")
@dataclass(frozen=True)
class Tokenizer:
    """What is known of a tokenizer. ``where`` is its path, ``held`` the files that it was read from.

    ``encode(text, special)``: its own special tokens are added where ``special``. ``chat``: None where it has no chat
    template; else ``chat(messages, generate)``, the text of a conversation, with the header of a reply at its end where
    ``generate``. ``spans(messages)``: a text, and which of its characters its template says are generated; None
    where it does not tell. ``longest``: the most tokens that it says its model takes. ``special``: ids of no text.
    """

    where: str
    held: tuple[Held, ...] = field(repr=False)
    encode: Callable[[str, bool], Encoded] = field(repr=False)
    size: int
    eos: int | None = None
    pad: int | None = None
    longest: int | None = None
    mask: int | None = None
    special: frozenset[int] = frozenset()
    chat: Callable[[Sequence[Mapping[str, Any]], bool], str] | None = field(default=None, repr=False)
    spans: Callable[[Sequence[Mapping[str, Any]]], tuple[str, list[Span]] | None] = field(
        default=lambda _: None, repr=False
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a folder, or of a tokenizer.json. Raises SourceError."""
    where = f"tokenizer {shown_path(path)}"
    require_tokenizer(path)
    names = [path] if path.is_file() else sorted(p for p in path.iterdir() if FILES.fullmatch(p.name) and p.is_file())
    try:
        held = tuple(map(hashed, names))
    except ValueError as error:
        raise SourceError(f"{where}: {error}") from None
    if path.is_file():
        return _of_file(path, where, held)
    try:
        library = extra("transformers", "hf", where)
    except SourceError:
        if not (path / "tokenizer.json").is_file():
            raise
        return _of_file(path / "tokenizer.json", where, held)
    return _of_transformers(library, path, where, held)


def require_tokenizer(path: Path) -> None:
    """Raise SourceError unless a path is a folder with files of a tokenizer, or a tokenizer.json; nothing is read."""
    where = f"tokenizer {shown_path(path)}"
    if path.is_dir():
        if not any(FILES.fullmatch(each.name) and each.name != "config.json" for each in path.iterdir()):
            raise SourceError(
                f"{where}: a folder without a tokenizer, expected {EXPECTED}; mend: tokenizer.save_pretrained"
            )
    elif not path.exists():
        raise SourceError(f"{where}: no such folder, expected {EXPECTED}, on this disk; mend: correct the path")
    elif path.suffix != ".json":
        raise SourceError(f"{where}: got a file, expected {EXPECTED}; mend: name the folder")


def _of_transformers(library: Any, path: Path, where: str, held: tuple[Held, ...]) -> Tokenizer:
    try:
        made = library.AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise SourceError(
            f"{where}: transformers cannot read it: {say(error)}; expected {EXPECTED}; mend: tokenizer.save_pretrained"
        ) from None
    if not isinstance(made, library.PreTrainedTokenizerBase):
        raise SourceError(
            f"{where}: transformers gave {type(made).__name__}, expected a tokenizer; mend: save it alone"
        )

    def encode(text: str, special: bool) -> Encoded:
        options = {"return_offsets_mapping": True} if made.is_fast else {}
        found = made(text, add_special_tokens=special, verbose=False, **options)
        return Encoded(list(found["input_ids"]), _spans(found.get("offset_mapping")))

    template = made.chat_template if isinstance(made.chat_template, str) else None
    return Tokenizer(
        where,
        held,
        encode,
        len(made),
        made.eos_token_id,
        made.pad_token_id,
        made.model_max_length if made.model_max_length < MOST_LENGTH else None,
        made.mask_token_id,
        frozenset(made.all_special_ids),
        _chat(made, where) if made.chat_template else None,
        _generated(made, template) if template and GENERATION.search(template) else lambda _: None,
    )


def _chat(made: Any, where: str) -> Callable[[Sequence[Mapping[str, Any]], bool], str]:
    def chat(messages: Sequence[Mapping[str, Any]], generate: bool) -> str:
        extra("jinja2", "hf", f"{where}: a chat template")
        try:
            return str(made.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generate))
        except Exception as error:
            raise SourceError(f"its chat template refuses the messages: {say(error)}") from None

    return chat


def _generated(made: Any, template: str) -> Callable[[Sequence[Mapping[str, Any]]], tuple[str, list[Span]] | None]:
    """Return what asks a template which characters lie between its own marks of what is generated.

    The text in which they do is returned beside them.
    """
    render = extra("transformers.utils.chat_template_utils", "hf", "chat template").render_jinja_template

    def spans(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Span]]:
        texts, found = render(
            conversations=[list(messages)],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **made.special_tokens_map,
        )
        return str(texts[0]), [(int(start), int(stop)) for start, stop in found[0]]

    return spans


def _of_file(path: Path, where: str, held: tuple[Held, ...]) -> Tokenizer:
    library = extra("tokenizers", "hf", where)
    try:
        made = library.Tokenizer.from_file(str(path))
        made.no_truncation()
        made.no_padding()
    except Exception as error:
        raise SourceError(f"{where}: {path.name} cannot be read: {say(error)}; expected {EXPECTED}") from None

    def encode(text: str, special: bool) -> Encoded:
        found = made.encode(text, add_special_tokens=special)
        return Encoded(list(found.ids), _spans(found.offsets))

    known = (made.token_to_id(text) for text in ("</s>", "<|endoftext|>", "<eos>", "[SEP]", "<|im_end|>"))
    masks = (made.token_to_id(text) for text in ("[MASK]", "<mask>"))
    added = frozenset(number for number, token in made.get_added_tokens_decoder().items() if token.special)
    return Tokenizer(
        where,
        held,
        encode,
        made.get_vocab_size(),
        next((one for one in known if one is not None), None),
        mask=next((one for one in masks if one is not None), None),
        special=added,
    )


def _spans(offsets: Any) -> list[Span] | None:
    """Return characters by token; what a tokenizer trimmed to nothing, white space, is what lies before it."""
    if offsets is None:
        return None
    found: list[Span] = []
    end = 0
    for start, stop in offsets:
        if start == stop:
            start = min(end, stop)
        found.append((start, stop))
        end = max(end, stop)
    return found
