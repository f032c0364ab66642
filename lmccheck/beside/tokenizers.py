"""Tokenizers compared, from their files alone: which token an id is, how text is cut, and what is put around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lmccheck.beside import pipeline
from lmccheck.beside.configs import names
from lmccheck.beside.difference import MISSING, Difference, brief, first_leaf, same
from lmccheck.beside.folder import Folder
from lmccheck.beside.pipeline import ALL
from lmccheck.beside.vocabulary import FAST, OTHERS, PIECES, Vocabulary, added_beside, vocabulary_of

CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
FILES = (FAST, "vocab.json", "vocab.txt", *PIECES, *OTHERS)  # any of which makes a tokenizer
HARMLESS_KEYS = """
name_or_path tokenizer_file special_tokens_map_file added_tokens_decoder tokenizer_class processor_class auto_map
backend is_local local_files_only use_fast from_slow model_input_names max_length stride pad_to_multiple_of
pad_token_type_id padding truncation truncation_strategy vocab_file merges_file spm_file sp_model_kwargs
chat_template spaces_between_special_tokens trust_remote_code verbose vocab_size return_token_type_ids device_map
"""
HARMLESS = frozenset(HARMLESS_KEYS.split())
NOTED = ("padding_side", "truncation_side", "model_max_length", "clean_up_tokenization_spaces")
SWITCHES = {
    "do_lower_case": True,
    "do_basic_tokenize": True,
    "tokenize_chinese_chars": True,
    "use_default_system_prompt": False,
}
PLURAL = ("additional_special_tokens", "extra_special_tokens")
BOTH = "; to compare all of it, write both by AutoTokenizer.from_pretrained(…).save_pretrained(…)"
FACETS = (ALL, "vocabulary", "scores", "merges", "added_tokens", "chat_template", "special_tokens", *pipeline.PARTS)


def exists(folder: Folder) -> bool:
    """Whether a folder has a tokenizer."""
    return any(map(folder.has, FILES))


def differences(a: Folder, b: Folder) -> Iterator[Difference]:
    """Yield what two folders' tokenizers differ in, a tokenizer in one of them only included."""
    there = exists(a), exists(b)
    if there[0] != there[1]:
        yield Difference("tokenizer", "it", tuple("there" if each else "not" for each in there), (ALL,))  # type: ignore[arg-type]  # two of them
    if not all(there):
        return
    yield from text_differences(a, b)
    yield from _special(a, b)
    yield from _templates(a, b)
    yield from _settings(a, b)


def text_differences(a: Folder, b: Folder) -> Iterator[Difference]:
    """Yield what makes two tokenizers turn one text into other ids, but for what is put around it."""
    if _unchanged(a, b, (FAST,)) and a.has(FAST) and added_beside(a) == added_beside(b):
        return
    mine, theirs = vocabulary_of(a), vocabulary_of(b)
    if mine is not None and theirs is not None and (mine.file in PIECES) != (theirs.file in PIECES):
        yield from _across(mine, theirs)
        return
    if mine is None or theirs is None:
        shown = [_file(folder, found) for folder, found in ((a, mine), (b, theirs))]
        if mine is not None or theirs is not None or not _unchanged(a, b, OTHERS):
            yield Difference(
                "tokenizer", "its file, which cannot be compared,", (shown[0], shown[1]), (ALL, "vocabulary"), more=BOTH
            )
        return
    yield from _ids(mine, theirs)
    if mine.scores and theirs.scores and len(mine.scores) == len(theirs.scores) and mine.scores != theirs.scores:
        place = next(n for n, (one, other) in enumerate(zip(mine.scores, theirs.scores, strict=True)) if one != other)
        told = [
            brief([part.hex() if isinstance(part, bytes) else part for part in end.scores[place]])
            for end in (mine, theirs)
        ]
        yield Difference(mine.file, f"the score of id {place}", (told[0], told[1]), ("scores", "vocabulary", ALL))
    one, other = (
        {**(folder.table(FAST) or {}), "added_tokens": found.added} if found.file == FAST else None
        for folder, found in ((a, mine), (b, theirs))
    )
    yield from _merges(_merged(a, one), _merged(b, other))
    if one is not None and other is not None:
        files = " and ".join(dict.fromkeys([FAST, *mine.beside.values(), *theirs.beside.values()]))
        for each in pipeline.differences((one, other), [_texts(special_tokens(folder)) for folder in (a, b)]):
            yield replace(each, file=files) if each.names[0] == "added_tokens" else each


def _across(mine: Vocabulary, theirs: Vocabulary) -> Iterator[Difference]:
    """Yield how a SentencePiece model differs from another list of tokens: by the ids that both give a token.

    Tokens that one of them lacks may be added by its class; where all others are shifted alike, so may that shift be
    (fairseq's). How text is cut is in no file that both have.
    """
    ids = {token: (place, theirs.ids[token]) for token, place in mine.ids.items() if token in theirs.ids}
    moved = {token: pair for token, pair in ids.items() if pair[0] != pair[1]}
    files = (mine.file, theirs.file)
    shifts = Counter(other - one for one, other in ids.values())
    shift, count = shifts.most_common(1)[0] if shifts else (0, 0)
    if shift and 2 * count > len(ids):
        more = f": the ids of {count} tokens lie {abs(shift)} apart, as a class may shift them{BOTH}"
        yield Difference("tokenizer", "its file", files, (ALL, "vocabulary"), more=more)
    elif moved or not ids:
        token, pair = min(moved.items(), key=lambda item: item[1]) if moved else ("", (0, 0))
        what = f"the id of {brief(token)}" if moved else "its list, which share no token,"
        told = (str(pair[0]), str(pair[1])) if moved else files
        more = f" ({len(moved) - 1} more ids differ)" if len(moved) > 1 else ""
        yield Difference(" and ".join(files), what, (told[0], told[1]), ("vocabulary", ALL), more=more)
    else:
        only = len(mine.ids) + len(theirs.ids) - 2 * len(ids)
        more = (
            f": {len(ids)} tokens have the same ids, {only} are in one of them; how text is cut is not compared{BOTH}"
        )
        yield Difference("tokenizer", "its file", files, (ALL, "vocabulary"), note=True, more=more)


def _ids(mine: Vocabulary, theirs: Vocabulary) -> Iterator[Difference]:
    """Yield the first id that is another token, with how many are."""
    if mine.ids == theirs.ids:
        return
    one, other = mine.tokens(), theirs.tokens()
    unlike = sorted({place for place, _ in one.items() ^ other.items()})
    if not unlike:  # two tokens of one id
        one, other = ({n: t for t, n in reversed(list(end.ids.items()))} for end in (mine, theirs))
        unlike = sorted({place for place, _ in one.items() ^ other.items()}) or [0]
    first = unlike[0]
    more = f" ({len(unlike) - 1} more ids differ)" if len(unlike) > 1 else ""
    file = " and ".join(dict.fromkeys(each.file_of(end.get(first)) for each, end in ((mine, one), (theirs, other))))
    told = [brief(end.get(first, MISSING)) for end in (one, other)]
    yield Difference(file, f"id {first}", (told[0], told[1]), ("vocabulary", ALL), more=more)


def _merged(folder: Folder, fast: Mapping[str, Any] | None) -> list[Any] | None:
    """Return the merges of a BPE model, in their order; None where it has none."""
    if fast is not None:
        model = fast.get("model")
        found = model.get("merges") if isinstance(model, dict) else None
        return found if isinstance(found, list) else None
    text = folder.text("merges.txt")
    return None if text is None else [line for line in text.splitlines() if line and not line.startswith("#version")]


def _merges(one: list[Any] | None, other: list[Any] | None) -> Iterator[Difference]:
    if one is None or other is None or one == other:
        return
    first, second = (
        [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) if isinstance(m, list) else m for m in end]
        for end in (one, other)
    )
    if first == second:
        return
    place = next(
        (n for n, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), min(len(first), len(second))
    )
    told = [brief(end[place] if place < len(end) else MISSING) for end in (first, second)]
    yield Difference("merges", f"number {place}", (told[0], told[1]), ("merges", ALL))


def special_tokens(folder: Folder) -> dict[str, Any]:
    """Return the texts of a tokenizer's special tokens by role: bos_token, eos_token, pad_token …"""
    found: dict[str, Any] = {}
    legacy = not isinstance((folder.table(CONFIG) or {}).get("added_tokens_decoder"), dict)  # else the map is not read
    for name in (CONFIG, SPECIAL) if legacy else (CONFIG,):
        for key, value in (folder.table(name) or {}).items():
            if key in PLURAL:
                listed = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
                found.setdefault("special_tokens", set()).update(map(_content, listed))
            elif key.endswith("_token") and not isinstance(value, bool) and value is not None:
                found[key] = _content(value)
    return found


def _texts(special: Mapping[str, Any]) -> set[str]:
    """Return the texts of special tokens, whatever their roles."""
    return {
        text
        for held in special.values()
        for text in (held if isinstance(held, set) else {held})
        if isinstance(text, str)
    }


def _special(a: Folder, b: Folder) -> Iterator[Difference]:
    mine, theirs = special_tokens(a), special_tokens(b)
    for key in [*mine, *(key for key in theirs if key not in mine)]:
        ends = [sorted(map(str, v)) if isinstance(v := each.get(key, MISSING), set) else v for each in (mine, theirs)]
        if ends[0] != ends[1] and not all(end in (MISSING, []) for end in ends):
            place = "the list of special tokens" if key == "special_tokens" else key
            yield Difference(
                CONFIG if all(key not in (each.table(SPECIAL) or {}) for each in (a, b)) else f"{CONFIG} or {SPECIAL}",
                place,
                (brief(ends[0]), brief(ends[1])),
                (key, *(PLURAL if key == "special_tokens" else ()), "special_tokens", ALL),
            )


def _content(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else brief(text)


def templates(folder: Folder) -> dict[str, str]:
    """Return the chat templates of a folder by name."""
    if (text := folder.text(TEMPLATES[0])) is not None:
        return {"default": text}
    stated = (folder.table(TEMPLATES[1]) or folder.table(CONFIG) or {}).get("chat_template")
    if isinstance(stated, list):
        return {str(each.get("name")): str(each.get("template")) for each in stated if isinstance(each, dict)}
    return {"default": stated} if isinstance(stated, str) else {}


def _templates(a: Folder, b: Folder) -> Iterator[Difference]:
    mine, theirs = templates(a), templates(b)
    for key in [*mine, *(key for key in theirs if key not in mine)]:
        one, other = mine.get(key), theirs.get(key)
        if one is not None and other is not None and one.rstrip("\n") == other.rstrip("\n"):
            continue
        what = "chat_template" if key == "default" else f"chat_template {key}"
        place = 0
        if one is not None and other is not None:
            place = next(
                (n for n, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other))
            )
            what += f" from character {place} on"
        told = [brief(MISSING if text is None else text[place : place + 45]) for text in (one, other)]
        yield Difference(CONFIG, what, (told[0], told[1]), ("chat_template", ALL))


def _settings(a: Folder, b: Folder) -> Iterator[Difference]:
    """Yield what tokenizer_config.json says differently beside tokens and templates."""
    one, other = a.table(CONFIG) or {}, b.table(CONFIG) or {}
    fast = a.has(FAST) and b.has(FAST)
    for key in [*one, *(key for key in other if key not in one)]:
        if key in HARMLESS or key in PLURAL or (key.endswith("_token") and not key.startswith("add_")):
            continue
        if fast and key in ("legacy", "split_special_tokens", "errors"):
            continue
        ends = [table.get(key, _assumed(key, table)) for table in (one, other)]
        if not same(*ends) and not all(end in (None, False, [], {}) for end in ends):
            place, *values, more = first_leaf(one.get(key, MISSING), other.get(key, MISSING), key)
            noted = key in NOTED
            yield Difference(CONFIG, place, (brief(values[0]), brief(values[1])), (*names(place), ALL), noted, more)


def _assumed(key: str, table: Mapping[str, Any]) -> Any:
    """Return what a tokenizer does where its settings say nothing."""
    if key == "add_bos_token":
        return str(table.get("tokenizer_class")).startswith(("Llama", "Gemma", "CodeLlama"))
    return SWITCHES.get(key)


def _unchanged(a: Folder, b: Folder, files: tuple[str, ...]) -> bool:
    return all(a.sha256(name) == b.sha256(name) for name in files)


def _file(folder: Folder, found: Vocabulary | None) -> str:
    return found.file if found is not None else next((name for name in FILES if folder.has(name)), "none")
