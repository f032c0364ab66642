"""A path is its breakpoints and the straight lines between them, in memory and in its file."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path as FilePath

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmccheck.errors import CheckpointError, LmcError
from lmccheck.paths.path import Path, Segment, load_path, save_path
from lmccheck.store.files import read_header


def line(*values: float, kinds: str = "") -> Path:
    """Return a path of one number ``w``, beside a tensor that never changes and one under two names."""
    same, tied = torch.arange(3.0, dtype=torch.float64), torch.tensor([7.0], dtype=torch.float64)
    points = tuple({"w": torch.tensor([value], dtype=torch.float64), "same": same, "tied": tied} for value in values)
    segments = tuple(Segment(kind, f"step {kind}") for kind in kinds or "d" * (len(values) - 1))
    return Path(points, segments, {"w": "w", "same": "same", "tied": "tied", "alias": "tied"}, {"note": 1})


@pytest.mark.parametrize(
    ("t", "expected"), [(0, 1.0), (0.125, 1.5), (0.25, 2.0), (0.5, 3.0), (0.75, 1.0), (0.875, 0.0), (1, -1.0)]
)
def test_every_segment_takes_an_equal_share(t: float, expected: float) -> None:
    """θ(t) on 1 → 3 → −1: half of t each, straight between, exact at breakpoints."""
    assert line(1.0, 3.0, -1.0).at(t)["w"].item() == expected


def test_weights_come_by_every_name() -> None:
    """A tensor under two names is one tensor; what does not change is not copied."""
    path = line(1.0, 3.0)
    weights = path.at(0.5)
    assert weights["alias"] is weights["tied"]
    assert weights["same"] is path.points[0]["same"]


@pytest.mark.parametrize("t", [-0.01, 1.01, float("nan")])
def test_t_outside_the_path_is_refused(t: float) -> None:
    with pytest.raises(LmcError, match="expected a number from 0 to 1"):
        line(1.0, 3.0).at(t)


def test_a_path_has_one_breakpoint_more_than_segments() -> None:
    one = {"w": torch.zeros(1)}
    for points, segments in ((2, 2), (3, 1), (1, 0)):
        with pytest.raises(LmcError, match=f"path: {points} breakpoints for {segments} segments"):
            Path((one,) * points, (Segment("d", ""),) * segments, {"w": "w"})


def test_paths_are_joined_and_turned_round() -> None:
    """then needs a common end, bit for bit; reversed runs the same way back."""
    there = line(1.0, 3.0, kinds="a").then(line(3.0, -1.0, 0.0, kinds="bc"))
    assert there.kinds == "abc"
    back = there.reversed()
    assert back.kinds == "cba"
    for t in (0.0, 0.2, 0.5, 1.0):
        assert back.at(t)["w"].item() == pytest.approx(there.at(1 - t)["w"].item(), abs=1e-15)
    with pytest.raises(LmcError, match="the second part begins elsewhere \\(tensor 'w' differs\\)"):
        line(1.0, 3.0).then(line(3.1, 0.0))


def test_a_file_holds_the_path_bit_for_bit_and_each_tensor_once(tmp_path: FilePath) -> None:
    """Kinds, words, twins, ties and facts come back; the constant tensors are stored once for all breakpoints."""
    path = line(1.0, 3.0, 1.0, kinds="bc")
    twins = {"0": torch.tensor([[0, 2], [3, 1]])}
    path = Path(path.points, (path.segments[0], Segment("c", "between twins", twins)), path.tied, path.facts)
    again = load_path(save_path(path, tmp_path / "path.safetensors"))
    assert (again.kinds, again.tied, again.facts) == ("bc", path.tied, {"note": 1})
    assert [segment.does for segment in again.segments] == ["step b", "between twins"]
    assert torch.equal(again.segments[1].twins["0"], twins["0"])
    for one, other in zip(path.points, again.points, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
    held = load_file(tmp_path / "path.safetensors")
    assert sorted(held) == ["0/same", "0/tied", "0/w", "1/w"]  # the third breakpoint is the first again


def test_what_is_no_path_file_is_refused(tmp_path: FilePath) -> None:
    """A checkpoint, and a path whose facts are damaged: one line with what to do."""
    save_file({"w": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="no path is stored in it; expected a file written by save_path"):
        load_path(tmp_path / "plain.safetensors")
    good = {"points": [{"w": "0/w"}] * 2, "segments": [{"kind": "d", "does": "", "twins": {}}], "tied": {}, "facts": {}}
    damages = [
        "{",
        json.dumps({**good, "points": [{"w": "0/v"}] * 2}),
        json.dumps({**good, "points": [{"w": "0/w"}]}),
        json.dumps({**good, "segments": [{"kind": "e", "does": "", "twins": {}}]}),
        json.dumps({**good, "segments": [{"kind": "c", "does": "", "twins": {"0": [1, 2, 3]}}]}),
        json.dumps({key: value for key, value in good.items() if key != "tied"}),
    ]
    for text in damages:
        save_file({"0/w": torch.zeros(1)}, tmp_path / "damaged.safetensors", metadata={"lmccheck.path": text})
        with pytest.raises(CheckpointError, match=r"the stored path is damaged \(.*\); mend: write it again"):
            load_path(tmp_path / "damaged.safetensors")


def test_facts_that_are_no_json_are_one_line(tmp_path: FilePath) -> None:
    """A tensor among the facts cannot be written: said, and the file that was there stays."""
    file = save_path(line(1.0, 3.0), tmp_path / "p.safetensors")
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match=r"its facts are no JSON .*Tensor.*; mend: leave out"):
        save_path(replace(line(1.0, 2.0), facts={"w": torch.ones(1)}), file)
    assert file.read_bytes() == before


@pytest.mark.parametrize(("place", "value", "why"), [
    ("points", 5, "points: got 5, expected per breakpoint a table"),
    ("points", [{"w": "0/w"}, {"v": "0/w"}], "tensor 'v' is not at the first breakpoint, but is there at breakpoint 1"),
    ("points", [{"w": "0/w"}], "path: 1 breakpoints for 1 segments"),
    ("tied", {"w": "v"}, "'tied' names 'v', which no breakpoint has"),
    ("tied", {}, "tensor 'w' of its breakpoints is that of no name in 'tied'"),
    ("segments", [{"kind": "c", "does": "", "twins": {"0": [[-1, 2**64]]}}], "segments: got an array"),
    ("facts", {"epsilon": -1}, "limit = -1"),
    ("facts", None, "facts: got null, expected a table"),
])  # fmt: skip
def test_what_a_file_says_is_read_without_trust(tmp_path: FilePath, place: str, value: object, why: str) -> None:
    """Every part of the JSON is checked for its form, and that its parts fit one another."""
    segment = {"kind": "d", "does": "", "twins": {}}
    good = {"points": [{"w": "0/w"}] * 2, "segments": [segment], "tied": {"w": "w"}, "facts": {}}
    file, held = tmp_path / "p.safetensors", {"0/w": torch.zeros(2, dtype=torch.float64)}
    save_file(held, file, metadata={"lmccheck.path": json.dumps(good)})
    assert load_path(file).kinds == "d"
    save_file(held, file, metadata={"lmccheck.path": json.dumps({**good, place: value})})
    with pytest.raises(CheckpointError, match=re.escape(why)):
        load_path(file)


def test_numbers_that_are_none_and_tensors_of_nobody_are_refused(tmp_path: FilePath) -> None:
    """NaN, a shape that changes, and a tensor that no breakpoint speaks of."""
    file = save_path(line(1.0, 3.0), tmp_path / "p.safetensors")
    told, held = read_header(file).metadata["lmccheck.path"], load_file(file)
    for change, why in (
        ({"1/w": torch.tensor([float("nan")], dtype=torch.float64)}, "'w' is not finite at breakpoint 1"),
        (
            {"1/w": torch.ones(2, dtype=torch.float64)},
            r"'w': got \(2,\) float64, expected \(1,\) float64 at breakpoint 1",
        ),
        ({"2/w": torch.ones(1)}, "tensor '2/w' belongs to nothing in it"),
    ):
        save_file({**held, **change}, file, metadata={"lmccheck.path": told})
        with pytest.raises(CheckpointError, match=why):
            load_path(file)


def test_a_breakpoint_that_is_not_finite_is_refused_where_the_first_is_not_either(tmp_path: FilePath) -> None:
    """An infinity that all breakpoints hold is no number of a network that is measured."""
    path = line(1.0, 3.0)
    for point in path.points:
        point["same"] = torch.tensor([0.0, torch.inf, 2.0], dtype=torch.float64)
    with pytest.raises(LmcError, match="tensor 'same' is not finite at breakpoint 0"):
        load_path(save_path(path, tmp_path / "p.safetensors"))
