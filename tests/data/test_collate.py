"""Samples in whatever users hold them: the same numbers, or one line with the type and the mend."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lmccheck.data.load import Data, load_data
from lmccheck.errors import SourceError

INPUTS = torch.arange(12.0).reshape(4, 3)
TARGETS = torch.tensor([0, 2, 1, 0])
PAIRS = list(zip(INPUTS, TARGETS, strict=True))


class Samples(Dataset):
    """A map-style data set: single samples by number."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, k: int) -> Any:
        return self.items[k]


class Stream(IterableDataset):
    """Single samples in order."""

    def __iter__(self):
        return iter(PAIRS)


class Indexed:
    """Like a data set, of no library."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, k: int) -> Any:
        if not 0 <= k < 4:
            raise IndexError(k)
        return INPUTS[k].numpy(), int(TARGETS[k])


class Columns(Indexed):
    """As the library datasets has them: columns, rows that are dictionaries, and an iterator over rows."""

    column_names = ("x", "label")

    def __getitem__(self, k: int) -> Any:
        return {"x": INPUTS[k].tolist(), "label": int(TARGETS[k])}

    def __iter__(self):
        return (self[k] for k in range(4))


class Encoding(UserDict):
    """As a tokenizer returns it: a mapping that is no dict."""


def tensors(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """All samples in order, whatever the batches; a network of one input."""
    parts = [next(iter(b.inputs.values())) if isinstance(b.inputs, dict) else b.inputs for b in data.batches]
    return torch.cat(parts), torch.cat([batch.targets for batch in data.batches])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16, np.uint8, np.uint16, np.uint32, np.uint64])
def test_targets_of_any_whole_type(dtype: Any) -> None:
    """numpy's integers, of which torch computes with some only, are class indices."""
    data = load_data((INPUTS.numpy(), TARGETS.numpy().astype(dtype)))
    assert torch.equal(tensors(data)[1].long(), TARGETS)
    torch.nn.functional.cross_entropy(torch.randn(4, 3), data.batches[0].targets.long())


GOOD = {
    "tensors": (INPUTS, TARGETS),
    "arrays": (INPUTS.numpy(), TARGETS.numpy()),
    "lists": (INPUTS.tolist(), TARGETS.tolist()),
    "array of the other byte order": (INPUTS.numpy().astype(">f4"), TARGETS.numpy().astype(">i8")),
    "read-only": (np.broadcast_to(INPUTS.numpy(), (4, 3)), TARGETS.numpy()),
    "list of scalars": (INPUTS, list(TARGETS)),
    "a dictionary": {"inputs": INPUTS, "targets": TARGETS},
    "arrays by name": {"x": INPUTS.numpy(), "labels": TARGETS.tolist()},
    "an encoding": Encoding({"x": INPUTS, "labels": TARGETS}),
    "batches": [(INPUTS[:3], TARGETS[:3]), (INPUTS[3:], TARGETS[3:])],
    "batches of arrays": [(INPUTS[:3].numpy(), TARGETS[:3].numpy()), (INPUTS[3:].numpy(), TARGETS[3:].tolist())],
    "batches of dictionaries": [{"x": INPUTS[:1], "label": TARGETS[:1]}, {"x": INPUTS[1:], "label": TARGETS[1:]}],
    "samples": PAIRS,
    "samples of numbers": [(INPUTS[k].tolist(), int(TARGETS[k])) for k in range(4)],
    "samples of arrays": [(INPUTS[k].numpy(), TARGETS.numpy()[k]) for k in range(4)],
    "samples of dictionaries": [{"x": INPUTS[k], "label": int(TARGETS[k])} for k in range(4)],
    "a data set": Samples(PAIRS),
    "torch's data set": TensorDataset(INPUTS, TARGETS),
    "a stream": Stream(),
    "indexed": Indexed(),
    "columns": Columns(),
    "a loader": DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=3),
    "a loader of dictionaries": DataLoader(Samples([{"x": x, "label": y} for x, y in PAIRS]), batch_size=3),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_same_samples_in_other_containers(name: str) -> None:
    """In order, each once, as tensors; also where a function returns them."""
    for source in (GOOD[name], lambda: GOOD[name]):
        inputs, targets = tensors(load_data(source))
        assert torch.equal(inputs.float(), INPUTS)
        assert torch.equal(targets.long(), TARGETS)


def test_a_generator_works_once_and_says_so() -> None:
    """The second time it gives nothing, which is said to be so; a function that makes one works every time."""

    def batches():
        yield INPUTS, TARGETS

    once = batches()
    assert load_data(once).samples == 4
    with pytest.raises(SourceError, match=r"the generator gave nothing; it can be read once only.*mend: give a list"):
        load_data(once)
    assert load_data(batches).samples == load_data(batches).samples == 4


def test_several_inputs_go_together() -> None:
    """A tuple or a dictionary of arguments, arrays among them, flags as they are."""
    batch = load_data([((INPUTS.numpy(), TARGETS), TARGETS)]).batches[0]
    assert [type(part) for part in batch.inputs] == [torch.Tensor, torch.Tensor]
    batch = load_data({"x": INPUTS, "flag": True, "nothing": None, "labels": TARGETS}).batches[0]
    assert (batch.inputs["flag"], batch.inputs["nothing"]) == (True, None)
    pairs = Samples([((x, x), y) for x, y in PAIRS])
    assert [tuple(part.shape) for part in load_data(pairs).batches[0].inputs] == [(4, 3), (4, 3)]


TOKENS = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
COUNTED = [[5, 6, 7, -100], [8, 9, -100, -100]]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (TOKENS, TOKENS.tolist()),
        (TOKENS.numpy(), TOKENS.tolist()),
        ((TOKENS, None), TOKENS.tolist()),
        ((TOKENS,), TOKENS.tolist()),
        ([TOKENS], TOKENS.tolist()),
        ([[TOKENS]], TOKENS.tolist()),
        (TensorDataset(TOKENS), TOKENS.tolist()),
        (Samples(list(TOKENS)), TOKENS.tolist()),
        ({"input_ids": TOKENS}, TOKENS.tolist()),
        ({"input_ids": TOKENS, "attention_mask": MASK}, COUNTED),
        (Encoding({"input_ids": TOKENS.tolist(), "attention_mask": MASK.tolist()}), COUNTED),
        ([{"input_ids": TOKENS, "attention_mask": MASK.bool()}], COUNTED),
        ({"input_ids": TOKENS, "attention_mask": MASK, "labels": TOKENS}, TOKENS.tolist()),
        (Samples([{"input_ids": t, "attention_mask": m} for t, m in zip(TOKENS, MASK, strict=True)]), COUNTED),
    ],
)
def test_tokens_are_their_own_targets(source: Any, expected: list[list[int]]) -> None:
    """Those that the mask leaves out do not count; labels that are given stay as they are."""
    data = load_data(source, tokens=True)
    assert torch.cat([batch.targets for batch in data.batches]).tolist() == expected
    assert data.samples == 2


def test_a_file_of_tokens_needs_no_targets(tmp_path: Path) -> None:
    """With any other loss it does."""
    save_file({"inputs": TOKENS}, tmp_path / "tokens.safetensors")
    assert load_data("tokens.safetensors", tmp_path, tokens=True).batches[0].targets.tolist() == TOKENS.tolist()
    with pytest.raises(SourceError, match="has no tensor 'targets'"):
        load_data("tokens.safetensors", tmp_path)


BAD = [
    ((INPUTS, TARGETS, torch.ones(4)), False, "is a tuple of 3, expected (inputs, targets); mend: several inputs are"),
    ([(INPUTS, TARGETS, torch.ones(4))], False, "batch 0 is a tuple of 3"),
    (Samples([(x, y, 1.0) for x, y in PAIRS]), False, "sample 0 is a tuple of 3"),
    (
        {"input_ids": TOKENS, "attention_mask": MASK},
        False,
        "no targets, keys ['input_ids', 'attention_mask']",
    ),
    ([{"x": INPUTS}], False, "batch 0: no targets, keys ['x']"),
    (INPUTS, False, "no targets, expected (inputs, targets)"),
    ([INPUTS, TARGETS], False, "batch 0: no targets, expected (inputs, targets)"),
    (INPUTS, True, "no targets, and no inputs that are tokens, (n, T) integers"),
    ((TOKENS, MASK), True, "targets hold nothing but 0 and 1, inputs tokens up to 9: an attention mask is no target"),
    (
        {"input_ids": TOKENS, "attention_mask": MASK[:, :2]},
        True,
        "'attention_mask' has shape (2, 2), 'input_ids' (2, 4)",
    ),
    (["some", "text"], False, "batch 0 is str, expected (inputs, targets)"),
    ((["some", "text"], TARGETS[:2]), False, "inputs are list without a tensor"),
    (
        (INPUTS, ["cat", "dog", "cat", "dog"]),
        False,
        "targets are list, expected a tensor, an array",
    ),
    ((INPUTS, np.array(["cat"] * 4)), False, "targets: an array of <U3, expected numbers"),
    ((np.array([[None] * 3] * 4), TARGETS), False, "inputs: an array of object, expected numbers"),
    (([[1.0, 2.0], [1.0]], [0, 1]), False, "inputs: lists of different lengths, expected one length; mend: pad them"),
    ([(INPUTS, 3), (INPUTS, TARGETS)], False, "batch 0: targets are int, expected a tensor"),
    (
        Samples([(INPUTS[0], 0), (INPUTS[0, :2], 1)]),
        False,
        "sample 1 has shape (2,), sample 0 (3,); expected",
    ),
    (Samples([("text", 0)]), False, "inputs of sample 0: str, expected numbers; mend: a transform"),
    (Samples([{"x": INPUTS[0], "name": "n", "label": 1}]), False, "key 'name' of sample 0: str, expected numbers"),
    (Samples([{"x": INPUTS[0], "label": 1}, {"label": 1}]), False, "samples with different keys, expected ['x']"),
    (Samples([(INPUTS[0], 0), (INPUTS[0],)]), False, "sample 1 has no targets, others have"),
    (Samples([]), False, "got 0 samples"),
    (7, False, "got int, expected a .safetensors path, 'module:callable', (inputs, targets), a dictionary"),
    (None, False, "got NoneType, expected"),
    (iter(["column"]), False, "batch 0 of the list_iterator is str, expected (inputs, targets)"),
]


@pytest.mark.parametrize(("source", "tokens", "words"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_read_is_named(source: Any, tokens: bool, words: str) -> None:
    """One line: which batch or sample, its type, what is expected, and the mend."""
    with pytest.raises(SourceError) as error:
        load_data(source, tokens=tokens)
    text = str(error.value)
    assert words in text
    assert "mend: " in text
    assert "\n" not in text
    assert len(text) < 500


def test_a_data_set_that_raises_is_the_users() -> None:
    """Its own message is in the line."""

    class Broken(Samples):
        def __getitem__(self, k: int) -> Any:
            raise KeyError("the disk is gone")

    with pytest.raises(SourceError, match="raised KeyError: 'the disk is gone'"):
        load_data(Broken([1]))
