"""A folder against the weights beside it: tokens that have no row, and a stated dtype that rounds what is stored."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from lmccheck.beside.configs import canonical
from lmccheck.beside.difference import brief
from lmccheck.beside.folder import CONFIG, Folder
from lmccheck.beside.vocabulary import vocabulary_of
from lmccheck.store.header import TensorHeader

EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings?|embed_in|shared|tok_embeddings|token_embedding|embed_tokens_extend"
    r"|embeddings\.tok_embeddings)\.weight$"
)
HOLDS = {  # dtypes whose every number one of the key's is, too
    "float64": ("float64", "float32", "float16", "bfloat16"),
    "float32": ("float32", "float16", "bfloat16"),
    "float16": ("float16",),
    "bfloat16": ("bfloat16",),
}

Fault = tuple[str, tuple[str, ...]]  # what is wrong, and the names it may be accepted by


Largest = tuple[str, str, int]  # a file that lists tokens, and the token of the highest id in it


def largest_of(tokenizer: Folder) -> Largest | None:
    """Return the token of the highest id, None where there is none. Raises CheckpointError."""
    vocabulary = vocabulary_of(tokenizer)
    if vocabulary is None or not vocabulary.ids:
        return None
    token, place = vocabulary.largest
    return vocabulary.file_of(token), token, place


def faults(
    folder: Folder, largest: Callable[[], Largest | None], tensors: Mapping[str, TensorHeader]
) -> Iterator[Fault]:
    """Yield what does not fit the tensors of a checkpoint: its config.json, or its tokenizer's ``largest`` token."""
    yield from rows(folder, largest, tensors)
    config = folder.config
    declared = canonical(config, {}).get("dtype") if config is not None else None
    counts: Counter[str] = Counter()
    for header in tensors.values():
        if header.is_floating_point:
            counts[header.torch_dtype] += header.numbers
    if counts and isinstance(declared, str):
        stored = counts.most_common(1)[0][0]
        if stored not in HOLDS.get(declared, (stored,)):
            text = (
                f"{CONFIG}: dtype is {brief(declared)}, and the weights are stored as {stored}, which loading rounds; "
                f'mend: state the stored dtype, or store the weights as {declared}, or accept = ["dtype"]'
            )
            yield text, ("dtype", "torch_dtype")


def rows(folder: Folder, largest: Callable[[], Largest | None], tensors: Mapping[str, TensorHeader]) -> Iterator[Fault]:
    """Yield what has no row in the embedding: tokens of a tokenizer, or of a stated size."""
    sizes = {name: h.shape[0] for name, h in tensors.items() if len(h.shape) == 2 and EMBEDDING.search(name)}
    if not sizes:
        return
    name = max(sizes, key=lambda each: sizes[each])
    config = folder.config or {}
    within = config.get("text_config")
    for table in (config, within if isinstance(within, dict) else {}):
        size = table.get("vocab_size")
        if isinstance(size, int) and not isinstance(size, bool) and size > sizes[name]:
            text = f"{CONFIG}: vocab_size is {size}, and {name} has {sizes[name]} rows"
            yield f"{text}; mend: save config and weights of one model", ("vocab_size",)
    if (last := largest()) is None or last[2] < sizes[name]:
        return
    file, token, place = last
    few = f"{name} has {sizes[name]} rows, {place + 1 - sizes[name]} too few"
    mend = 'resize the embedding to the tokenizer and train it, or accept = ["vocabulary"]'
    yield f"{file}: token {brief(token)} has id {place}, and {few}; mend: {mend}", ("vocabulary", "tokenizer")
