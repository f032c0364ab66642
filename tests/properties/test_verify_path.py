"""verify_path: twenty forged paths, none of which passes; files of witnesses measured by an independent oracle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as FilePath

import pytest
import torch
import torch.nn.functional as F
from networks.paths import mlp_pair, random_state, structure_for
from networks.quick import slowly
from networks.witnesses import at, ten
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import CheckpointError, LmcError
from lmccheck.paths import certify as certify_module
from lmccheck.paths.certify import certify
from lmccheck.paths.ends import require_network
from lmccheck.paths.path import Path, Segment, load_path, save_path

PAIR, STRUCTURE, PATH = ten()


def relabelled(path: Path, number: int, kind: str) -> Path:
    """Return a path with one segment of another kind."""
    segments = list(path.segments)
    segments[number] = replace(segments[number], kind=kind)
    return replace(path, segments=tuple(segments))


def without(path: Path, number: int) -> Path:
    """Return a path that leaves one breakpoint out."""
    points, segments = list(path.points), list(path.segments)
    del points[number], segments[number]
    return replace(path, points=tuple(points), segments=tuple(segments))


def dropping(path: Path, name: str) -> Path:
    points = tuple({n: t for n, t in point.items() if n != name} for point in path.points)
    return replace(path, points=points, tied={n: o for n, o in path.tied.items() if n != name})


def twins(path: Path, pairs: list[list[int]]) -> Path:
    number = path.kinds.index("c")
    segments = list(path.segments)
    segments[number] = replace(segments[number], twins={g: torch.tensor(pairs) for g in segments[number].twins})
    return replace(path, segments=tuple(segments))


OTHER = {n: t + 0.1 for n, t in PATH.points[0].items()}
FORGERIES: dict[str, tuple[Path, str]] = {
    "a name tied to another": (replace(PATH, tied={**PATH.tied, "2.bias": "0.bias"}), "'tied' says that '2.bias'"),
    "a name that is lost": (
        replace(PATH, tied={n: o for n, o in PATH.tied.items() if n != "4.weight"}), "'4.weight' is no tensor"
    ),
    "a name too many": (replace(PATH, tied={**PATH.tied, "x": "0.bias"}), "'tied' says that 'x' is '0.bias'"),
    "a tensor that is lost": (dropping(PATH, "4.bias"), "tensor '4.bias': got nothing"),
    "a tensor too many": (
        replace(PATH, points=tuple({**p, "x": torch.ones(1)} for p in PATH.points)), "tensor 'x': got .* no such tensor"
    ),
    "another shape": (at(PATH, 3, "2.weight", lambda w: w.T.contiguous()), r"point 3: tensor '2.weight': got \(9, 7\)"),
    "another dtype": (at(PATH, 3, "2.weight", lambda w: w.float()), "got .*float32"),
    "NaN where nothing reads": (at(PATH, 4, "0.bias", lambda b: b * math.nan), "'0.bias' is not finite"),
    "infinity at one breakpoint": (at(PATH, 5, "2.weight", lambda w: w + math.inf), "'2.weight' is not finite"),
    "another beginning": (replace(PATH, points=(OTHER, *PATH.points[1:])), "does not begin at a"),
    "an end one unit of rounding off": (
        at(PATH, 10, "4.bias", lambda b: torch.nextafter(b, b + 1)), "does not end at b: tensor '4.bias'"
    ),
    "a drop said to be constant": (relabelled(PATH, 0, "b"), "segment 1 is not of kind b"),
    "a drop said to be convex": (relabelled(PATH, 0, "a"), "segment 1 is not of kind a"),
    "a drop said to be a move": (relabelled(PATH, 0, "c"), "segment 1 is not of kind c"),
    "the crossing said to be constant": (relabelled(PATH, 2, "b"), "segment 3 is not of kind b"),
    "a step left out": (without(PATH, 3), "segment 3 is not of kind"),
    "the head moved on the sly": (at(PATH, 5, "4.bias", lambda b: b + 1e-6), "segment 5 is not of kind b"),
    "a unit that is read moved": (at(PATH, 1, "0.weight", lambda w: w + 1e-6), "segment 2 is not of kind b"),
    "no twins": (twins(PATH, []), "changes by more than outgoing weights"),
    "twins of none": (twins(PATH, [[0, 99]]), "are no pairs of its units"),
    "twins that differ": (twins(PATH, [[0, 1], [2, 3]]), "segment 6 is not of kind c"),
}  # fmt: skip


def saved(path: Path, file: FilePath) -> FilePath:
    """Write a path as an adversary would: with the hash of what he wrote."""
    return save_path(path, file)


@pytest.mark.parametrize("forgery", FORGERIES)
def test_no_forged_path_passes(forgery: str, tmp_path: FilePath) -> None:
    """Names, ties, shapes, dtypes, numbers, ends, kinds and twins: a path, and the file of it, is refused in a line."""
    path, why = FORGERIES[forgery]
    with pytest.raises(CheckpointError, match=why) as caught:
        lmccheck.verify_path(PAIR, path, epsilon=100.0)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError) as caught:
        lmccheck.verify_path(PAIR, saved(path, tmp_path / "forged.safetensors"), epsilon=100.0)
    assert "\n" not in str(caught.value)


def test_the_honest_path_passes_with_its_own_limit(tmp_path: FilePath) -> None:
    """A file remembers epsilon; a limit that is given wins; without either it is .05, and that is said."""
    file = save_path(PATH, tmp_path / "path.safetensors")
    result = lmccheck.verify_path(PAIR, file)
    assert result.passed
    assert (result.limit, result.details["limit_from"]) == (100.0, "witness")
    assert lmccheck.verify_path(PAIR, file, epsilon=0.0).verdict == "fail"
    old = lmccheck.verify_path(PAIR, save_path(replace(PATH, facts={}), file))
    assert (old.limit, old.details["limit_from"]) == (0.05, "default")
    assert any("mend: give epsilon" in note for note in old.details["notes"])


@pytest.mark.parametrize("name", ["ten_segment_path", "dropout_path"])
def test_properties_write_what_was_asked(name: str, tmp_path: FilePath) -> None:
    """The witness of a path property verifies from its file alone, with the same value and limit."""
    pair = mlp_pair([4, 6, 6, 3])
    found = getattr(lmccheck, name)(pair, epsilon="700%", refit=False, profile="dev")
    again = lmccheck.verify_path(pair, found.witness.save(tmp_path / "p.safetensors"), profile="dev")
    assert again.value == pytest.approx(found.value, abs=1e-12)
    assert (again.limit, again.details["limit_given"]) == (found.limit, "700%")


def by_hand(file: FilePath, segment: int, s: float, x: Tensor) -> Tensor:
    """Logits of a ReLU perceptron at s of one segment, from the bytes of the file alone."""
    held = {name: tensor.numpy() for name, tensor in load_file(file).items()}
    raw = file.read_bytes()
    facts = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["lmccheck.path"])
    first, second = facts["points"][segment], facts["points"][segment + 1]
    layers = sorted({int(name.split(".")[0]) for name in first})
    value = x.numpy()
    for k, layer in enumerate(layers):
        w, b = ((1 - s) * held[first[f"{layer}.{p}"]] + s * held[second[f"{layer}.{p}"]] for p in ("weight", "bias"))
        value = value @ w.T + b
        value = value.clip(min=0) if k + 1 < len(layers) else value
    return torch.from_numpy(value)


@pytest.mark.parametrize("name", ["ten_segment_path", slowly("dropout_path")])
def test_an_independent_oracle_finds_nothing_higher(name: str, tmp_path: FilePath) -> None:
    """NumPy, from the file, at 200 points a segment: nothing above the certified maximum of any segment; it is met."""
    pair = mlp_pair([4, 6, 5, 3])
    found = getattr(lmccheck, name)(pair, epsilon=100.0, refit=False, profile="dev")
    file = found.witness.save(tmp_path / "path.safetensors")
    known = lmccheck.verify_path(pair, file).details["segments"]
    batch = pair.data.batches[0]
    worst = -math.inf
    for number, segment in enumerate(known):
        each = [float(F.cross_entropy(by_hand(file, number, k / 200, batch.inputs), batch.targets)) for k in range(201)]
        worst = max(worst, *each)
        assert max(each) <= segment["max"] + (1e-3 if segment["known"] == "sampled" else 1e-10)
        if segment["known"] == "constant":
            assert max(each) - min(each) <= 1e-10
        if segment["known"] == "convex":
            assert all(2 * y <= x + z + 1e-10 for x, y, z in zip(each, each[1:], each[2:], strict=False))
    assert worst == pytest.approx(found.details["certified_max"], abs=1e-3)


def test_overflow_of_a_late_sample_is_seen() -> None:
    """Rows of units that nothing reads may be anything finite; where they overflow on sample 190, 0·∞ is no number."""
    inputs = torch.randn(200, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs[190] *= 1e150
    wide = mlp_pair([6, 9, 7, 4])
    pair = lmccheck.load_pair(
        wide.theta_a, wide.theta_b, model=wide.module, data=(inputs, torch.arange(200) % 4), device="cpu"
    )
    _, structure, path = ten(pair)
    dead = structure.others("0", path.points[2]["2.weight"].abs().sum(0).nonzero().flatten())[0]
    huge = at(path, 2, "0.weight", lambda w: w.index_fill(0, dead, 1e200))
    huge = at(huge, 3, "0.weight", lambda w: w.index_fill(0, dead, 1e200))
    with pytest.raises(CheckpointError, match="breakpoint 2: the network's output is not finite on all samples"):
        lmccheck.verify_path(pair, huge, epsilon=1e300)


LINE = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))


def line_pair(dtype: torch.dtype, target: float, a: tuple[float, float], b: tuple[float, float], loss: object = "mse"):
    """Networks z = v·relu(w·x) of one unit, on x = 1 and one target."""
    ends = [
        {"0.weight": torch.tensor([[w]], dtype=dtype), "2.weight": torch.tensor([[v]], dtype=dtype)} for w, v in (a, b)
    ]
    data = torch.ones(4, 1, dtype=dtype), torch.full((4, 1), target, dtype=dtype)
    return lmccheck.load_pair(*ends, model=LINE.to(dtype), data=data, loss=loss, device="cpu")


def straight(pair: lmccheck.ModelPair, kind: str) -> Path:
    structure = structure_for(pair)
    ends = tuple(structure.canonical(theta) for theta in (pair.theta_a, pair.theta_b))
    return Path(ends, (Segment(kind, "straight"),), {name: name for name in ends[0]})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_interior_maximum_half_a_percent_above_the_ends_counts(dtype: torch.dtype) -> None:
    """w: 1 → 2 and v: 2 → 1 give z = 2 + t − t²; with target −100 the ends have 102², the middle 102.25²."""
    pair = line_pair(dtype, -100.0, (1.0, 2.0), (2.0, 1.0))
    result = lmccheck.verify_path(pair, straight(pair, "d"), epsilon=1.0)
    assert result.verdict == "fail"
    assert result.value == pytest.approx(102.25**2 - 102.0**2, abs=1e-3)


def bump(outputs: Tensor, targets: Tensor) -> Tensor:
    """1/(1 + z²): no convex function, whatever it says."""
    return 1 / (1 + outputs[:, 0] ** 2)


def late(outputs: Tensor, targets: Tensor) -> Tensor:
    """z², but for the last sample, which has the bump."""
    values = outputs[:, 0] ** 2
    return torch.cat([values[:-1], 1 / (1 + values[-1:])])


def steep(outputs: Tensor, targets: Tensor) -> Tensor:
    """|z|³ in float32: convex, computed roughly."""
    return outputs[:, 0].float().abs() ** 3


for function in (bump, late, steep):
    function.convex = True  # type: ignore[attr-defined]  # how a loss says so


@pytest.mark.parametrize(("loss", "excess"), [(bump, 0.5), (late, 0.0), (steep, 0.0)])
def test_a_claim_to_be_convex_is_tried(loss: Callable[[Tensor, Tensor], Tensor], excess: float) -> None:
    """Head from v = −1 to 1: z = −1 + 2t. The bump is ½ at both ends and 1 in the middle; it is sampled, and found."""
    pair = line_pair(torch.float64, 0.0, (1.0, -1.0), (1.0, 1.0), loss)
    result = lmccheck.verify_path(pair, straight(pair, "a"), epsilon=0.1)
    segment = result.details["segments"][0]
    said = " ".join(result.details["notes"])
    assert result.value == pytest.approx(excess, abs=1e-6)
    if loss is steep:
        assert (result.verdict, segment["known"], result.details["exact"]) == ("pass", "convex", True)
        assert "is its author's claim: tried on 4 samples along 1 segments, 15 points each" in said
        assert "does not prove it" in said
        assert "the maximum is known, not sampled, if the loss is convex as it says" in said
        return
    assert (segment["known"], result.details["exact"]) == ("sampled", False)
    assert "says it is convex and is not: on sample" in said
    assert result.verdict == ("fail" if loss is bump else "pass")


def waves(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 + sin²(8π(z + 1)): 1 wherever −1 ≤ z ≤ 1 is divided into sixteen equal parts, and 2 between."""
    return 1 + torch.sin(8 * torch.pi * (outputs[:, 0] + 1)) ** 2


waves.convex = True  # type: ignore[attr-defined]  # it says so


def test_no_period_of_a_loss_hides_from_the_points_at_which_it_is_tried() -> None:
    """Waves that vanish at all equal steps of the segment are seen, and the segment is sampled."""
    pair = line_pair(torch.float64, 0.0, (1.0, -1.0), (1.0, 1.0), waves)
    result = lmccheck.verify_path(pair, straight(pair, "a"), epsilon=0.1)
    assert (result.verdict, result.details["segments"][0]["known"]) == ("fail", "sampled")
    assert result.value > 0.9


def test_a_built_in_loss_is_known_to_be_convex() -> None:
    """Nothing is tried, nothing is said, and no evaluation is spent on it."""
    result = lmccheck.verify_path(PAIR, PATH)
    assert result.details["convexity"] is None
    assert {s["known"] for s in result.details["segments"] if s["kind"] == "a"} == {"convex"}


@pytest.mark.parametrize(("shift", "refused"), [(2e-9, True), (1e-12, False)])
def test_constant_is_constant_to_rounding(shift: float, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the check on the weights switched off, a head bias that moves by 2e-9 in a constant segment is seen."""
    monkeypatch.setattr(certify_module, "violation", lambda *given: None)
    wide = mlp_pair([6, 9, 7, 4])
    theta = structure_for(wide).canonical(wide.theta_a)
    moved = {**theta, "4.bias": theta["4.bias"] + shift}
    pair = wide.with_weights(theta, moved)
    path = Path((theta, moved), (Segment("b", "says it is constant"),), {name: name for name in theta})
    if refused:
        with pytest.raises(LmcError, match="the output is not constant: off by"):
            certify(pair, STRUCTURE, path)
    else:
        assert certify(pair, STRUCTURE, path).deviation <= 1e-10


def test_the_case_of_a_remapped_name(tmp_path: FilePath) -> None:
    """hidden2.bias said to be hidden1.bias, and the head's weight lost: the file is refused, the honest one is read."""
    pair = mlp_pair([6, 8, 8, 4])
    _, _, path = ten(pair)
    good = save_path(path, tmp_path / "good.safetensors")
    raw = good.read_bytes()
    told = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    facts = json.loads(told["lmccheck.path"])
    facts["tied"]["2.bias"] = "0.bias"
    facts["tied"].pop("4.weight")
    bad = tmp_path / "bad.safetensors"
    save_file(load_file(good), bad, metadata={"lmccheck.path": json.dumps(facts)})
    assert load_path(good).kinds == path.kinds
    for read in (load_path, lambda file: lmccheck.verify_path(pair, file)):
        with pytest.raises(CheckpointError, match="the stored path is damaged"):
            read(bad)


def test_ties_of_the_network_are_ties_of_the_path() -> None:
    """A network whose state dict knows one tensor by two names: a path in which they are two is refused."""
    pair = mlp_pair([6, 8, 4])
    structure = structure_for(pair)
    theta = random_state(pair.module, 3)
    named = Path((theta, theta), (Segment("d", ""),), {**{n: n for n in theta}, "0.weight": "2.weight"})
    with pytest.raises(CheckpointError, match=r"'tied' says that '0\.weight' is '2\.weight'"):
        require_network(pair, named, structure.canonical(pair.theta_a), structure.trace.tied)
