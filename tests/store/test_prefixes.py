"""Names that differ by a prefix are told so, from either side; tied weights may be stored once or twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import CheckpointError
from lmccheck.manifest.preflight import problems
from lmccheck.manifest.read import load_manifest
from lmccheck.store.prefixes import prefix_problem


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Tied(nn.Module):
    """An embedding that is the head as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.mid = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mid(self.embed(x)).relu())


DATA = torch.zeros(2, 3), torch.tensor([0, 1])
TOKENS = torch.zeros(2, 4).long()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def refused(a: Any, b: Any, model: Any = Net) -> str:
    with pytest.raises(CheckpointError) as error:
        lmccheck.load_pair(a, b, model=model, data=DATA, device="cpu")
    text = str(error.value)
    assert "\n" not in text
    assert "mend: " in text
    return text


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("module.", "names begin with 'module.' (as DataParallel saves them), those of model Net do not"),
        ("_orig_mod.", "names begin with '_orig_mod.' (as torch.compile saves them)"),
        ("module._orig_mod.", "names begin with 'module._orig_mod.' (as DataParallel saves them)"),
        ("ema.", "names begin with 'ema.', those of model Net do not; mend: strip it from every name"),
        ("student.backbone.", "names begin with 'student.backbone.', those of model Net do not"),
    ],
)
def test_a_prefix_in_both_checkpoints(prefix: str, words: str) -> None:
    """Is named with who saves such names, and the mend."""
    a, b = (prefixed(Net().state_dict(), prefix) for _ in "ab")
    assert words in refused(a, b)
    assert words in refused({**a, "steps": torch.zeros(1)}, {**b, "steps": torch.zeros(1)})


def test_a_prefix_in_one_checkpoint() -> None:
    """Of two checkpoints the one that has it is named, or the one that lacks it."""
    plain = Net().state_dict()
    text = refused(plain, prefixed(plain, "module."))
    assert "state dict b: names begin with 'module.'" in text
    assert "those of state dict a do not" in text
    assert "state dict b: names lack the prefix 'ema.' of those of state dict a" in refused(
        prefixed(plain, "ema."), plain
    )


def test_a_prefix_of_the_model() -> None:
    """Which the checkpoints lack, or have another one in place of."""
    plain = Net().state_dict()
    assert "names lack the prefix 'model.' of those of model Wrapped; mend: build the inner" in refused(
        plain, plain, Wrapped
    )
    other = prefixed(plain, "net.")
    assert "names begin with 'net.', those of model Wrapped with 'model.'; mend: replace" in refused(
        other, other, Wrapped
    )


def test_two_sets_in_one_file() -> None:
    """Weights and their running mean: both prefixes are named, since either may be meant."""
    plain = Net().state_dict()
    both = {**prefixed(plain, "ema."), **prefixed(plain, "model.")}
    text = refused(both, both)
    assert "names begin with 'ema.' or 'model.'" in text
    assert "the file holds 2 such sets; mend: keep one" in text


def test_a_wrapper_in_the_middle() -> None:
    """torch.compile of one part of a network stands in the middle of its names."""
    names = ["body.0.weight", "body.0.bias", "body.1.weight", "head.weight"]
    compiled = [name.replace("body.", "body._orig_mod.") for name in names]
    said = prefix_problem(compiled, names, "model m")
    assert said is not None
    assert "'_orig_mod' (of torch.compile)" in said


def test_names_that_merely_differ() -> None:
    """No prefix is made up where something else is wrong; what is missing is named as before."""
    plain = Net().state_dict()
    assert prefix_problem(plain, plain, "x") is None
    less = {name: tensor for name, tensor in plain.items() if name != "second.bias"}
    assert "tensor 'second.bias' is missing" in refused(less, less)
    assert prefix_problem(["x.weight", "y.weight", "z.weight"], ["weight", "a", "b"], "x") is None
    many = [f"block.{k}.weight" for k in range(20_000)]
    started = time.perf_counter()
    assert prefix_problem([f"module.{name}" for name in many], many, "x") is not None
    assert prefix_problem(many, [f"other{k}" for k in range(20_000)], "x") is None
    assert time.perf_counter() - started < 5


def tied(seed: int, **more: Tensor) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = {name: tensor.clone() for name, tensor in Tied().state_dict().items() if name != "head.weight"}
    return {**state, **more}


def test_a_tied_twin_in_one_file_only() -> None:
    """Is folded where it equals its twin; the pair is that of the files that store it once."""
    a, b = tied(1), tied(2)
    given = {"model": Tied, "data": (TOKENS, TOKENS), "loss": "next_token", "device": "cpu"}
    once = lmccheck.load_pair(a, b, **given)
    twice = lmccheck.load_pair({**a, "head.weight": a["embed.weight"].clone()}, b, **given)
    for one, other in ((once.theta_a, twice.theta_a), (once.theta_b, twice.theta_b)):
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    head = {name: tensor for name, tensor in b.items() if name != "embed.weight"} | {"head.weight": b["embed.weight"]}
    assert torch.equal(lmccheck.load_pair(a, head, **given).theta_b["embed.weight"], b["embed.weight"])


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_tied_twin_that_differs(side: str) -> None:
    """Is refused with both names; so is a second tensor that the model does not tie."""
    a, b = tied(1), tied(2)
    wrong = {**(a if side == "a" else b), "head.weight": torch.ones(5, 4)}
    given = {"model": Tied, "data": (TOKENS, TOKENS), "loss": "next_token", "device": "cpu"}
    with pytest.raises(CheckpointError, match=r"tensors 'embed.weight' and 'head.weight' differ"):
        lmccheck.load_pair(*((wrong, b) if side == "a" else (a, wrong)), **given)


MANIFEST = """
schema = 1
[pair.x]
a = "a.safetensors"
b = "b.safetensors"
model = "m:f"
data = "m:d"
check.linear_connectivity = { limit = 1.0 }
"""


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (tied(1), tied(2, **{"head.weight": tied(2)["embed.weight"]}), []),
        (tied(1), tied(2, **{"head.weight": torch.ones(5, 4)}), ["head.weight in b only"]),
        (tied(1), prefixed(tied(2), "module."), ["pair.x.b: names begin with 'module.'"]),
        (prefixed(tied(2), "ema."), tied(1), ["pair.x.b: names lack the prefix 'ema.'"]),
    ],
)
def test_the_manifest_item_says_so_too(tmp_path: Path, a: Any, b: Any, said: list[str]) -> None:
    """A twin that equals another tensor of its file is no difference; a prefix is one line, not two lists of names."""
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    (tmp_path / "lmc.toml").write_text(MANIFEST)
    found = problems(load_manifest(tmp_path / "lmc.toml"))
    assert len(found) == len(said)
    assert all(words in line for words, line in zip(said, found, strict=True))
