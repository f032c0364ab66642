"""A prefix of all names is taken off and told; others are named with the mend; tied weights may be stored twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import CheckpointError
from lmccheck.manifest.preflight import problems
from lmccheck.manifest.read import load_manifest
from lmccheck.store.prefixes import prefix_problem, shared_prefix


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


WRAPPED = [
    ("module.", "names are taken without their prefix 'module.' (as DataParallel saves them)"),
    ("_orig_mod.", "names are taken without their prefix '_orig_mod.' (as torch.compile saves them)"),
    ("module._orig_mod.", "names are taken without their prefix 'module._orig_mod.' (as DataParallel saves them)"),
    ("ema.", "names are taken without their prefix 'ema.'"),
    ("student.backbone.", "names are taken without their prefix 'student.backbone.'"),
]


@pytest.mark.parametrize(("prefix", "words"), WRAPPED)
@pytest.mark.parametrize("sides", ["ab", "a", "b"])
def test_a_prefix_of_all_names(prefix: str, words: str, sides: str) -> None:
    """In both checkpoints or in one: taken off for loading, and told with every result."""
    plain = {side: Net().state_dict() for side in "ab"}
    given = [prefixed(state, prefix) if side in sides else state for side, state in plain.items()]
    pair = lmccheck.load_pair(*given, model=Net, data=DATA, device="cpu")
    for theta, state in ((pair.theta_a, plain["a"]), (pair.theta_b, plain["b"])):
        assert theta.keys() == state.keys()
        assert all(torch.equal(theta[name], tensor) for name, tensor in state.items())
    notes = lmccheck.linear_connectivity(pair, align="none", limit=1e9).details["notes"]
    assert [note for note in notes if "prefix" in note] == [f"{side}: {words}" for side in sides]
    assert pair.description["files"]["a"].get("remarks") == ([words] if "a" in sides else None)
    origin = pair.origins["ab".index(sides[0])]
    assert all(torch.equal(origin.get(name), tensor) for name, tensor in plain[sides[0]].items())


@pytest.mark.parametrize(("prefix", "words"), WRAPPED)
def test_a_prefix_of_most_names(prefix: str, words: str) -> None:
    """Where one name has it not it is not taken off; it is named with who saves such names, and the mend."""
    a, b = ({**prefixed(Net().state_dict(), prefix), "steps": torch.zeros(1)} for _ in "ab")
    by = words.removeprefix("names are taken without their prefix ")
    assert f"names begin with {by}, those of model Net do not; mend: strip it from every name" in refused(a, b)


def test_files_without_a_tensor_have_no_prefix(tmp_path: Path) -> None:
    """An empty file beside another is told of as any that lacks tensors."""
    save_file({}, tmp_path / "a.safetensors")
    save_file(Net().state_dict(), tmp_path / "b.safetensors")
    (tmp_path / "lmc.toml").write_text(
        'schema = 1\n[pair.one]\na = "a.safetensors"\nb = "b.safetensors"\nmodel = "m:n"\ndata = "m:d"\n'
        "check.linear_connectivity = { limit = 1 }\n"
    )
    assert any("first.bias" in problem for problem in problems(load_manifest(tmp_path / "lmc.toml")))


def test_an_averaged_model() -> None:
    """torch.optim.swa_utils.AveragedModel adds a prefix and a counter, which is no weight."""
    averaged = torch.optim.swa_utils.AveragedModel(Net())
    plain = Net().state_dict()
    pair = lmccheck.load_pair(averaged.state_dict(), plain, model=Net, data=DATA, device="cpu")
    assert all(torch.equal(pair.theta_a[name], t) for name, t in averaged.module.state_dict().items())


def test_the_merge_of_prefixed_files_has_the_names_of_the_network(tmp_path: Path) -> None:
    """What is written is what was measured."""
    for side in "ab":
        save_file(prefixed(Net().state_dict(), "module."), tmp_path / f"{side}.safetensors")
    pair = lmccheck.load_pair("a.safetensors", "b.safetensors", model=Net, data=DATA, device="cpu", base=tmp_path)
    written = lmccheck.save_merged(pair, None, tmp_path / "m.safetensors", t=0.5)
    expected = {name: (tensor + pair.theta_b[name]) / 2 for name, tensor in pair.theta_a.items()}
    assert {n.removeprefix("module."): t for n, t in load_file(written).items()}.keys() == expected.keys()
    for name, tensor in load_file(written).items():
        assert torch.allclose(tensor, expected[name.removeprefix("module.")])


def test_names_that_the_network_has_stay(tmp_path: Path) -> None:
    """A prefix that the model itself has is none."""
    plain = prefixed(Net().state_dict(), "model.")
    pair = lmccheck.load_pair(plain, prefixed(Net().state_dict(), "model."), model=Wrapped, data=DATA, device="cpu")
    assert pair.theta_a.keys() == plain.keys()
    assert not pair.a.checkpoint.remarks


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
    assert shared_prefix(["x.weight", "x.b", "x.c"], ["weight", "a", "d"]) == ""
    assert shared_prefix(["x.weight", "x.b", "x.c"], ["weight", "b", "d"]) == "x."
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
        (tied(1), prefixed(tied(2), "module."), []),
        (prefixed(tied(2), "ema."), tied(1), []),
        (prefixed(tied(2), "ema."), tied(2), ["pair.x: a and b hold the same weights"]),
        (tied(1), {**prefixed(tied(2), "module."), "x": DATA[0]}, ["pair.x.b: names begin with 'module.'"]),
        (prefixed(tied(1), "ema."), prefixed(tied(2), "module."), []),
    ],
)
def test_the_manifest_item_says_so_too(tmp_path: Path, a: Any, b: Any, said: list[str]) -> None:
    """A twin that equals another tensor of its file is no difference, nor is a prefix that loading takes off."""
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    (tmp_path / "lmc.toml").write_text(MANIFEST)
    found = problems(load_manifest(tmp_path / "lmc.toml"))
    assert len(found) == len(said)
    assert all(words in line for words, line in zip(said, found, strict=True))
