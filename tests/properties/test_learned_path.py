"""form = "learned": chains of trained bends, measured by hand from their files; forged ones; what is said of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks.paths import mlp_pair
from networks.written import Written
from safetensors.torch import load_file
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import CheckpointError, LmcError, SourceError
from lmccheck.network.pair import ModelPair
from lmccheck.paths import learned as learned_module
from lmccheck.paths.chain import sampled_chain
from lmccheck.paths.path import Path, Segment, save_path

State = dict[str, Tensor]


def stream() -> nn.Module:
    """Tokens through a LayerNorm and a feed-forward block; the head is the embedding: tied, no path by construction."""

    def run(s: Written, x: Tensor) -> Tensor:
        h = s.embed(x)
        h = h + s.down(F.gelu(s.up(s.norm(h))))
        return F.linear(h, s.embed.weight).transpose(1, 2)

    parts = {"embed": nn.Embedding(7, 6), "norm": nn.LayerNorm(6), "up": nn.Linear(6, 9), "down": nn.Linear(9, 6)}
    return Written(run, **parts)


def by_hand(state: State, x: Tensor) -> Tensor:
    """The same, from tensors alone."""
    h = state["embed.weight"][x]
    centred = h - h.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    u = (normed * state["norm.weight"] + state["norm.bias"]) @ state["up.weight"].T + state["up.bias"]
    u = u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))
    return (h + u @ state["down.weight"].T + state["down.bias"]) @ state["embed.weight"].T


def trained(build: Callable[[], nn.Module], seed: int, x: Tensor, y: Tensor, steps: int = 150) -> State:
    torch.manual_seed(seed)
    module = build().train()
    optimiser = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        optimiser.step()
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    """Two small language models, float32, that learned x -> 3x + 2 mod 7, most of the time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(7, (256, 5), generator=generator)
    y = torch.where(torch.rand(x.shape, generator=generator) < 0.1, 0, (3 * x + 2) % 7)
    a, b = (trained(stream, seed, x[:128], y[:128]) for seed in (0, 1))
    data, calibration = (x[192:], y[192:]), (x[:192], y[:192])
    return lmccheck.load_pair(
        a, b, model=stream, data=data, calibration=calibration, loss=per_sample, device="cpu", name="toy"
    )


def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none").mean(1)


@pytest.fixture(scope="module")
def found(pair: ModelPair) -> Any:
    return lmccheck.ten_segment_path(pair, epsilon=0.2, profile="dev")


def facts_of(file: FilePath) -> dict[str, Any]:
    raw = file.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    facts: dict[str, Any] = json.loads(header["__metadata__"]["lmccheck.path"])
    return facts


def from_file(file: FilePath, number: int, s: float) -> State:
    """The weights at s of a segment, float64, read without lmccheck."""
    held, facts = load_file(file), facts_of(file)
    first, second = (facts["points"][number + k] for k in (0, 1))
    return {n: (1 - s) * held[first[n]].double() + s * held[second[n]].double() for n in first}


def loss_by_hand(pair: ModelPair, state: State) -> float:
    batch = pair.data.batches[0]
    return float(F.cross_entropy(by_hand(state, batch.inputs).flatten(0, 1), batch.targets.flatten()))


def test_auto_trains_where_the_theory_has_none_and_says_why(pair: ModelPair, found: Any) -> None:
    """A tied LayerNorm stream: learned, why, what is known, the line it began with; ``ten`` is refused as ever."""
    details = found.details
    assert (details["form"], details["kinds"], details["theorem"]) == ("learned", "l" * 10, None)
    assert details["why_learned"]
    assert any("no construction applies" in note for note in details["notes"])
    assert details["known"].startswith("sampled: ")
    assert not details["exact"]
    assert details["search"]["budget"] == learned_module.STEPS["dev"]
    assert found.value < details["aligned_line"]["excess"]
    with pytest.raises(lmccheck.UnsupportedArchitecture):
        lmccheck.ten_segment_path(pair, form="ten")


def test_auto_is_the_construction_where_there_is_one() -> None:
    """The value of ``auto`` is that of ``ten``, to the last bit, and its kinds are the theorem's."""
    one, other = (
        lmccheck.ten_segment_path(mlp_pair([4, 6, 6, 3]), epsilon=9.0, profile="dev", form=form)
        for form in ("auto", "ten")
    )
    assert one.value == other.value
    assert one.details["form"] == other.details["form"] == "ten"


def test_bends_measured_by_hand_agree(pair: ModelPair, found: Any, tmp_path: FilePath) -> None:
    """From the file alone, interpolated and run in float64 by other code: every stated loss, to 1e-9."""
    file = found.witness.save(tmp_path / "path.safetensors")
    segments = found.details["segments"]
    for number, segment in enumerate(segments):
        assert loss_by_hand(pair, from_file(file, number, 0.0)) == pytest.approx(segment["loss_start"], abs=1e-9)
        assert loss_by_hand(pair, from_file(file, number, segment["worst"])) == pytest.approx(segment["max"], abs=1e-9)
    ends = [{n: t.double() for n, t in theta.items()} for theta in (pair.theta_a, pair.theta_b)]
    losses = [loss_by_hand(pair, end) for end in ends]
    assert max(segment["max"] for segment in segments) - max(losses) == pytest.approx(found.value, abs=1e-9)


def test_a_saved_chain_is_measured_anew_without_training(
    pair: ModelPair, found: Any, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verify_path gives the same value and limit from the file, trains nothing and needs no symmetry."""
    file = found.witness.save(tmp_path / "path.safetensors")
    monkeypatch.setattr(learned_module, "learn", lambda *given, **named: pytest.fail("trained"))
    monkeypatch.setattr(type(pair.network), "structure", lambda *given: pytest.fail("structure"))
    again = lmccheck.verify_path(pair, file, profile="dev")
    assert (again.value, again.limit, again.verdict) == (found.value, 0.2, found.verdict)
    assert again.details["known"] == found.details["known"]


def test_ends_are_the_checkpoints_and_bends_keep_what_is_tied(pair: ModelPair, found: Any) -> None:
    """θ_A to the last bit, at the end a copy that computes what θ_B does; float32 bends; tied names one tensor."""
    path = found.witness
    assert all(torch.equal(path.points[0][n], pair.theta_a[n]) for n in path.points[0])
    x = pair.data.batches[0].inputs
    end, b = (by_hand({n: t.double() for n, t in s.items()}, x) for s in (path.at(1.0), pair.theta_b))
    assert float((end - b).abs().max()) < 1e-9
    assert {t.dtype for point in path.points[1:-1] for t in point.values()} == {torch.float32}
    line = path.points[0]["up.weight"].lerp(path.points[-1]["up.weight"], 0.5)
    assert not torch.allclose(path.points[5]["up.weight"], line)


def test_the_same_seed_gives_the_same_bends(pair: ModelPair, found: Any) -> None:
    """Twice the same bends to the last bit with one seed, others with another."""
    same = lmccheck.ten_segment_path(pair.with_weights(pair.theta_a, pair.theta_b), epsilon=0.2, profile="dev")
    for one, other in zip(found.witness.points, same.witness.points, strict=True):
        assert all(torch.equal(one[n], other[n]) for n in one)


def bent(path: Path, number: int, change: Callable[[State], State]) -> Path:
    points = list(path.points)
    points[number] = {**points[number], **change(points[number])}
    return replace(path, points=tuple(points))


FORGERIES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "another beginning": (lambda p: bent(p, 0, lambda s: {"up.bias": s["up.bias"] + 1e-6}), "does not begin at a"),
    "another end": (lambda p: bent(p, 10, lambda s: {"down.bias": s["down.bias"] + 1e-4}), "neither at b nor at"),
    "an end in a's place": (lambda p: bent(p, 10, lambda s: dict(p.points[0])), "neither at b nor at"),
    "a bend of no number": (lambda p: bent(p, 4, lambda s: {"up.bias": s["up.bias"] * math.nan}), "'up.bias' is not"),
    "a bend that overflows": (
        lambda p: bent(p, 4, lambda s: {n: s[n].double() * 1e300 for n in ("down.weight", "embed.weight")}),
        "output is not finite",
    ),
    "another shape": (lambda p: bent(p, 4, lambda s: {"up.weight": s["up.weight"].T.contiguous()}), "'up.weight'"),
    "whole numbers": (lambda p: bent(p, 4, lambda s: {"up.bias": s["up.bias"].long()}), "'up.bias': got .*int64"),
    "a name too many": (lambda p: replace(p, tied={**p.tied, "x": "up.bias"}), "'tied' says that 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
def test_no_forged_chain_passes(forgery: str, pair: ModelPair, found: Any, tmp_path: FilePath) -> None:
    """Ends, numbers, shapes, names: the chain, and its file, is refused in one line."""
    forge, why = FORGERIES[forgery]
    path = forge(found.witness)
    with pytest.raises(CheckpointError, match=why) as caught:
        lmccheck.verify_path(pair, path, epsilon=100.0, profile="dev")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError):
        lmccheck.verify_path(pair, save_path(path, tmp_path / "forged.safetensors"), epsilon=100.0, profile="dev")


def test_a_chain_has_no_other_kinds_and_one_segment_less_than_breakpoints(found: Any) -> None:
    """Kinds that say another number of segments, or that mix claims with none, are no path."""
    path = found.witness
    with pytest.raises(LmcError, match="11 breakpoints for 9 segments"):
        replace(path, segments=path.segments[:-1])
    with pytest.raises(LmcError, match="no other kind beside l"):
        replace(path, segments=(*path.segments[:-1], Segment("b", "")))


def test_without_calibration_it_says_what_is_missing(pair: ModelPair) -> None:
    """One line, with the mend."""
    bare = pair.measured_on(pair.data, None)
    with pytest.raises(SourceError, match=r"form = 'learned'.*mend: give `calibration`") as caught:
        lmccheck.ten_segment_path(bare, form="learned")
    assert "\n" not in str(caught.value)


def test_calibration_labels_out_of_range_are_named(pair: ModelPair) -> None:
    """As those of evaluation data are: which label, of how many, and the mend; not what indexing raises."""
    (batch,) = pair.data.batches
    wrong = torch.full_like(batch.targets, 9)
    bad = lmccheck.load_pair(
        dict(pair.theta_a), dict(pair.theta_b), model=stream, data=(batch.inputs, batch.targets),
        calibration=(batch.inputs, wrong), device="cpu",
    )  # fmt: skip
    with pytest.raises(SourceError, match="7 outputs; mend: ") as caught:
        lmccheck.ten_segment_path(bad, form="learned", align="none", profile="dev", epsilon=1.0)
    assert "IndexError" not in str(caught.value)


def test_what_is_good_on_calibration_data_only_fails(pair: ModelPair) -> None:
    """Calibration data of four tokens, evaluation data of seven: low on the one, the verdict is about the other."""
    x, y = (torch.cat([getattr(b, k) for b in pair.calibration.batches]) for k in ("inputs", "targets"))
    narrow = (x % 4, (3 * (x % 4) + 2) % 7)
    other = lmccheck.load_pair(
        pair.theta_a, pair.theta_b, model=stream, data=(x, y), calibration=narrow, loss=per_sample, device="cpu"
    )
    result = lmccheck.ten_segment_path(other, epsilon=0.2, profile="dev")
    on_calibration = lmccheck.verify_path(
        other.measured_on(other.calibration, None), result.witness, epsilon=0.2, profile="dev"
    )
    assert on_calibration.passed
    assert result.verdict == "fail"
    with pytest.raises(AssertionError, match=r"within this budget \(dev: 200 of 200 steps, seed 0\)"):
        result.raise_for_verdict()


def test_endpoints_may_lie_above_all_of_a_chain() -> None:
    """Stored BatchNorm statistics that are bad, re-estimated ones on the path: the excess is 0, and no endpoint's."""

    def normed() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3))

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 4, generator=generator)
    y = x[:, :3].argmax(1)
    a, b = (trained(normed, seed, x[:80], y[:80], 60) for seed in (0, 1))
    for state in (a, b):
        state["1.running_mean"] += 3.0
    pair = lmccheck.load_pair(
        a, b, model=normed, data=(x[80:], y[80:]), calibration=(x[:80], y[:80]), loss="cross_entropy", device="cpu"
    )
    result = lmccheck.ten_segment_path(pair, epsilon=0.0, profile="dev")
    assert (result.value, result.verdict) == (0.0, "pass")
    segments = result.details["segments"]
    assert max(segment["max"] for segment in segments) < result.details["loss_a"]
    assert any("BatchNorm re-estimated at every point" in note for note in result.details["notes"])
    bend = result.witness.points[5]
    hidden = x[:80] @ bend["0.weight"].T + bend["0.bias"]
    assert torch.allclose(hidden.mean(0), bend["1.running_mean"], atol=1e-5)


class Quantised(nn.Module):
    """A linear layer whose weights are int8 with one scale."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("q", torch.randint(-50, 50, (3, 4), dtype=torch.int8))
        self.scale = nn.Parameter(torch.tensor(0.02))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.q.to(x.dtype) * self.scale)


def test_whole_numbers_that_differ_are_no_path(tmp_path: FilePath) -> None:
    """Between int8 weights a chain would jump: it is refused when it is asked for, and when a file is verified."""
    torch.manual_seed(0)
    a, b = Quantised().state_dict(), Quantised().state_dict()
    data = torch.randn(40, 4), torch.arange(40) % 3
    pair = lmccheck.load_pair(a, b, model=Quantised, data=data, calibration=data, loss="cross_entropy")
    said = r"whole numbers in 'q' differ between a and b.*no path joins them"
    with pytest.raises(lmccheck.UnsupportedArchitecture, match=said):
        lmccheck.ten_segment_path(pair, form="learned", profile="dev")
    middle = [{"scale": a["scale"], "q": a["q"] if k < 5 else b["q"]} for k in range(1, 10)]
    tied = {"scale": "scale", "q": "q"}
    jumping = Path((dict(a), *middle, dict(b)), tuple(Segment("l", "jumps") for _ in range(10)), tied)
    with pytest.raises(lmccheck.UnsupportedArchitecture, match=said):
        lmccheck.verify_path(pair, save_path(jumping, tmp_path / "jump.safetensors"), epsilon=9.0)


def test_a_narrow_bump_within_a_segment_is_found() -> None:
    """A loss of 1 at w = 0.237 that is gone .02 away, on w from 0 to 1: no lower than on a refined line."""

    def line() -> nn.Module:
        return nn.Linear(1, 1, bias=False)

    def bump(outputs: Tensor, targets: Tensor) -> Tensor:
        y = outputs[:, 0]
        return torch.exp(-((y - 0.237) ** 2) / (2 * 0.004**2)) + 1e-6 * y**2  # 0.0094 wide at half its height

    a, b = ({"weight": torch.full((1, 1), w)} for w in (0.0, 1.0))
    ones = torch.ones(8, 1)
    pair = lmccheck.load_pair(
        a, b, model=line, data=(ones, ones), calibration=(ones, ones), loss=bump, device="cpu", name="bump"
    )
    points = tuple({"weight": torch.full((1, 1), k / 10)} for k in range(11))
    path = Path(points, tuple(Segment("l", "") for _ in range(10)), {"weight": "weight"})
    straight = lmccheck.linear_connectivity(pair, align="none", limit=10.0)
    known = sampled_chain(pair, path)
    assert known.largest >= straight.value > 0
    assert known.largest > 0.5
    assert known.worst.number == 3
    assert known.worst.how == "sampled"
