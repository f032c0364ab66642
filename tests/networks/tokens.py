"""A tokenizer of a few words, made from nothing, and rows of text to read with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LINES = (
    "the cat sat on the mat",
    "a dog ran to the cat",
    "two and two are four",
    "the dog sat and the cat ran",
)
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_THAT_TELLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def word_tokenizer() -> Any:
    """A token for each word and each mark; unknown words are <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = dict.fromkeys(word for line in LINES for word in line.split())
    names = [*SPECIAL, *words, "system", "user", "assistant", ".", "="]
    made = Tokenizer(models.WordLevel({name: k for k, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(SPECIAL)
    return made


def byte_tokenizer(size: int = 300) -> Any:
    """Byte-level BPE, whose tokens begin with the space before a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return made


def write_tokenizer(folder: Path, made: Any = None, **config: Any) -> Path:
    """Write a tokenizer as save_pretrained does, with what ``config`` says beside; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (made or word_tokenizer()).save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as lines of JSON; return the file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
