"""Containers of tensors: what is in them is found, changed and compared, whatever holds it."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch

from lmccheck.data.load import Batch
from lmccheck.data.trees import equal, input_tensors, mapped, moved, only_tensors, positional, take_samples, tensors_in
from lmccheck.errors import SourceError


class Named(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Encoding(UserDict):
    """A mapping that is no dict and holds more than its items, as transformers' BatchEncoding does."""

    def __init__(self, data, encodings=None):
        super().__init__(data)
        self.encodings = encodings


class Best(dict):
    """A dict that notes one of its items beside them."""

    def __init__(self, items):
        super().__init__(items)
        self.best = items["x"]


@dataclass
class Output:
    logits: torch.Tensor
    others: tuple[torch.Tensor, ...]


X, Y = torch.arange(6.0).reshape(3, 2), torch.arange(3)
TREES = [
    X,
    (X, Y),
    [X, Y],
    Named(X, Y),
    {"x": X, "y": Y},
    OrderedDict(x=X, y=Y),
    Encoding({"x": X, "y": Y}, ["more"]),
    ((X, [Y]), {"rest": Named(X, Y)}),
]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: type(tree).__name__)
def test_samples_are_taken_from_every_tensor_and_containers_keep_their_type(tree):
    """A range and a choice of rows give the same samples, in containers like those they came in."""
    some = take_samples(tree, slice(1, 3))
    assert type(some) is type(tree)
    assert [len(t) for t in input_tensors(some)] == [2] * len(input_tensors(tree))
    assert equal(some, take_samples(tree, torch.tensor([1, 2])))
    assert not equal(some, take_samples(tree, torch.tensor([2, 1])))
    assert [len(t) for t in input_tensors(tree)] == [3] * len(input_tensors(tree))  # the original stays as it was


def test_a_mapping_keeps_what_it_holds_beside_its_items():
    """A tokeniser's encoding is rebuilt with its other attributes."""
    assert take_samples(Encoding({"x": X}, ["more"]), slice(1)).encodings == ["more"]


def test_only_floating_tensors_change_their_dtype_when_moved():
    """Token numbers stay integers."""
    x, y = moved((X, Y), torch.device("cpu"), torch.float64)
    assert (x.dtype, y.dtype) == (torch.float64, torch.int64)


def test_floating_tensors_of_an_output_come_in_a_stable_order_from_whatever_holds_them():
    """Dataclasses, mappings and objects with logits are opened; numbers and integer tensors are left out."""

    class Holder:
        logits = X

    a, b, c = X, X + 1, X + 2
    assert [t is u for t, u in zip(tensors_in(Output(a, (b, Y, c))), (a, b, c), strict=True)] == [True] * 3
    assert tensors_in({"loss": 3.0, "out": [a, Holder()]})[1] is X
    assert tensors_in(Y) == tensors_in("text") == []


def test_only_floating_tensors_in_containers_that_are_mapped_are_all_that_can_be_read():
    """Whole numbers, plain numbers, objects, and what a container holds beside its items are more than that."""
    more = Encoding({"x": X}, ["text"])
    for tree in (X, (X, [X]), {"a": X, "b": None, "c": "text"}, [], more):
        assert only_tensors(tree)
    held = Encoding({"x": X}, [object()])
    beside = Best({"x": X})
    assert beside.best is beside["x"]
    assert not only_tensors(beside), "a copy of it keeps the best of another"
    assert not only_tensors(Encoding({"x": X}, [X]))
    for tree in (Y, (X, Y), {"a": 1}, [True], Output(X, (X,)), object(), held, MappingProxyType({"a": X}), (X, {X})):
        assert not only_tensors(tree)


def test_other_things_stay_as_they_are_in_a_mapped_tree():
    """Flags and None pass through; what is no container is handed on unopened."""
    thing = object()
    assert mapped(torch.neg, (True, None, thing)) == (True, None, thing)


def test_trees_of_different_make_are_not_equal():
    """Keys, lengths, dtypes and shapes count; the kind of sequence does not."""
    assert equal((X, Y), [X, Y])
    for other in ((X,), {"x": X, "y": Y}, (X, Y.double()), (X[:2], Y), X):
        assert not equal((X, Y), other)


def test_a_batch_of_keyword_arguments_keeps_inputs_and_targets_together():
    """Rows drawn at random are the same rows of every input and of the targets."""
    some = Batch({"x": Y * 10, "y": Y}, Y).take(torch.tensor([2, 0]))
    assert some.inputs["x"].tolist() == [20, 0]
    assert some.inputs["y"].tolist() == some.targets.tolist() == [2, 0]


def test_positional_inputs_are_asked_for_where_a_dict_came():
    """A traced network takes positional inputs; the message says whose are not."""
    assert positional(X, "data") == (X,)
    assert positional([X, Y], "data") == (X, Y)
    with pytest.raises(SourceError, match=r"^data: got inputs as a dict"):
        positional({"x": X}, "data")
