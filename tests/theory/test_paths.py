"""Paths of Kuditipudi et al. 2019: kinds, counts, invariants of every segment, and what is certified of the loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.paths import ACTIVATIONS, all_levels, bare_structure, masked, mlp, mlp_pair, random_state, structure_for
from networks.quick import slowly

import lmccheck
from lmccheck.errors import CheckpointError, LmcError
from lmccheck.network.pair import ModelPair
from lmccheck.paths.certify import certify
from lmccheck.paths.path import Path, Segment, load_path, save_path
from lmccheck.paths.theorems import _room, dropout_path_between, path_through, require_alike, ten_segments
from lmccheck.symmetry.structure import Structure

WIDTHS = [
    [6, 8, 8, 4], [6, 9, 7, 11, 5, 4], [5, 4, 3], [5, 7, 3], [5, 3, 3, 2], [4, 5, 7, 9, 3], [4, 8, 8, 8, 8, 8, 8, 3],
    [3, 2, 2, 2, 2], [4, 1, 3], [4, 6, 1, 5, 3],
]  # fmt: skip


def first_theorem(pair: ModelPair, form: str) -> tuple[Structure, Path]:
    structure = structure_for(pair)
    theta_a, theta_b = structure.canonical(pair.theta_a), structure.canonical(pair.theta_b)
    a, b = all_levels(structure, pair.theta_a, 1), all_levels(structure, pair.theta_b, 2)
    return structure, dropout_path_between(structure, theta_a, theta_b, a, b, form)


def second_theorem(pair: ModelPair, form: str, keep: float = 0.5) -> tuple[Structure, Path]:
    structure = structure_for(pair)
    theta_a, theta_b = structure.canonical(pair.theta_a), structure.canonical(pair.theta_b)
    a, b = (masked(structure, theta, 0, seed, keep) for seed, theta in ((3, pair.theta_a), (4, pair.theta_b)))
    return structure, ten_segments(structure, theta_a, theta_b, a, b, form)


def plain_forward(weights: dict[str, torch.Tensor], x: torch.Tensor, activation: str) -> torch.Tensor:
    """An independent forward pass of a perceptron from its state dict."""
    act = {"relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu, "sigmoid": torch.sigmoid, "silu": F.silu}[activation]
    names = sorted({int(name.split(".")[0]) for name in weights})
    for k, layer in enumerate(names):
        x = x @ weights[f"{layer}.weight"].T
        if f"{layer}.bias" in weights:
            x = x + weights[f"{layer}.bias"]
        if k < len(names) - 1:
            x = act(x)
    return x


def sampled_maximum(pair: ModelPair, path: Path, activation: str, points: int = 200) -> float:
    """The largest loss at ``points`` places on every segment, by the independent forward pass."""
    batch = pair.data.batches[0]
    worst = 0.0
    for number in range(len(path.segments)):
        for k in range(points + 1):
            logits = plain_forward(path.between(number, k / points), batch.inputs, activation)
            worst = max(worst, float(F.cross_entropy(logits, batch.targets)))
    return worst


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_kinds_and_counts(widths: list[int]) -> None:
    """T1: 8d − 4 segments in the paper's form, at most 4d − 1 in the short one; ten, at most seven, for any depth."""
    pair = mlp_pair(widths)
    d = len(widths) - 1
    kinds = first_theorem(pair, "paper")[1].kinds
    assert len(kinds) == 8 * d - 4
    fall = "a" + "babc" * (d - 2) + "b"
    assert kinds == fall + "babbcbcb" + fall[::-1]
    short = first_theorem(pair, "short")[1].kinds
    assert len(short) <= 4 * d - 1
    assert short.startswith("a" + "ba" * (d - 2))
    assert short.endswith("ab" * (d - 2) + "a")
    assert second_theorem(pair, "paper")[1].kinds == "dbabbcbcbd"
    assert second_theorem(pair, "short")[1].kinds in ("dbabcbd", "dbabd")


def test_the_kinds_of_the_paper() -> None:
    """T1: the strings of depths 2 and 3."""
    assert first_theorem(mlp_pair([5, 4, 3]), "paper")[1].kinds == "abbabbcbcbba"
    assert first_theorem(mlp_pair([6, 8, 8, 4]), "paper")[1].kinds == "ababcb" + "babbcbcb" + "bcbaba"


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("widths", WIDTHS[:3] + WIDTHS[-3:], ids=str)
@pytest.mark.parametrize("form", ["paper", "short"])
def test_certified_is_sampled(widths: list[int], activation: str, form: str) -> None:
    """T2, T3, T6, T7: segments hold their claims, ends are exact, and no sample lies above the certified maximum."""
    pair = mlp_pair(widths, activation)
    structure, path = first_theorem(pair, form)
    found = certify(pair, structure, path)
    assert found.exact
    assert found.deviation <= 1e-10
    assert found.evaluations <= 2 * (len(widths) - 1) + 2
    assert sampled_maximum(pair, path, activation, 20) <= found.largest + 1e-9
    for t, theta in ((0.0, pair.theta_a), (1.0, pair.theta_b)):
        assert all(torch.equal(tensor, theta[name]) for name, tensor in path.at(t).items())


@pytest.mark.parametrize("form", ["paper", "short"])
@pytest.mark.parametrize("bias", [True, False])
def test_breakpoints_are_the_dropped_networks(form: str, bias: bool) -> None:
    """T5: breakpoint losses are those of θ_i computed with units masked in an independent forward pass."""
    widths = [6, 9, 7, 5, 4]
    pair = mlp_pair(widths, "tanh", bias)
    structure, path = first_theorem(pair, form)
    batch = pair.data.batches[0]
    expected = []
    for theta, seed in ((pair.theta_a, 1), (pair.theta_b, 2)):
        losses = []
        for level, goal in all_levels(structure, theta, seed).items():
            x = batch.inputs
            for layer in range(len(widths) - 1):
                x = x @ theta[f"{2 * layer}.weight"].T + (theta[f"{2 * layer}.bias"] if bias else 0)
                if layer < len(widths) - 2:
                    x = torch.tanh(x)
                    if layer >= level:
                        kept = torch.zeros(widths[layer + 1], dtype=torch.float64)
                        kept[goal.keep[str(2 * layer)]] = 2.0
                        x = x * kept
            losses.append(float(F.cross_entropy(x, batch.targets)))
        expected.append(losses)
    found = certify(pair, structure, path)
    a_moves = [segment for segment in found.segments if segment.kind == "a"]
    measured = [segment.end for segment in a_moves]
    assert measured[: len(expected[0])] == pytest.approx(expected[0][::-1], abs=1e-10)
    assert measured[len(expected[0]) : -1] == pytest.approx(
        [*expected[1]][: len(measured) - len(expected[0]) - 1], abs=1e-10
    )
    assert found.excess == pytest.approx(
        max(*expected[0], *expected[1], found.loss_a, found.loss_b) - max(found.loss_a, found.loss_b), abs=1e-10
    )


@pytest.mark.parametrize("count", [10, slowly(25)])
def test_any_perceptron(count: int) -> None:
    """T1–T3, T6–T8 for drawn depths 2 to 7, widths 1 to 12, biases and activations."""

    @settings(max_examples=count, deadline=None)
    @given(
        widths=st.lists(st.integers(1, 12), min_size=3, max_size=8).filter(lambda w: w[-1] > 1),
        activation=st.sampled_from(sorted(ACTIVATIONS)),
        bias=st.booleans(),
        form=st.sampled_from(["paper", "short"]),
        seed=st.integers(0, 1000),
    )
    def holds(widths: list[int], activation: str, bias: bool, form: str, seed: int) -> None:
        pair = mlp_pair(widths, activation, bias, seed)
        for structure, path in (first_theorem(pair, form), second_theorem(pair, form)):
            found = certify(pair, structure, path, profile="dev")
            constant = [s for s in found.segments if s.how == "constant"]
            assert found.deviation <= 1e-10
            assert all(s.start == s.end for s in constant)
            assert found.excess >= 0
            if "d" not in path.kinds:
                assert sampled_maximum(pair, path, activation, 5) <= found.largest + 1e-9

    holds()


@pytest.mark.parametrize("keep", [0.5, 0.3])
def test_ten_segments_cross_at_the_convex_one(keep: float) -> None:
    """Theorem 2: breakpoints L(A), L(A_1) twice, L(B_1) seven times, L(B); only segments 1 and 10 are sampled."""
    pair = mlp_pair([6, 9, 10, 11, 4])
    structure, path = second_theorem(pair, "paper", keep)
    found = certify(pair, structure, path)
    losses = [found.segments[0].start, *(s.end for s in found.segments)]
    assert losses[1] == losses[2]
    assert len(set(losses[3:10])) == 1
    assert [s.number for s in found.segments if s.how == "sampled"] == [1, 10]
    assert found.segments[2].how == "convex"


def test_a_tampered_segment_is_refused() -> None:
    """A claim that the weights do not bear out is an error that names the segment, for each kind."""
    from lmccheck.errors import SymmetryError

    pair = mlp_pair([6, 8, 8, 4])
    structure, path = first_theorem(pair, "paper")
    for kind in "abc":
        number = path.kinds.index(kind) + 1
        points = list(path.points)
        name = "0.weight" if kind != "b" else "4.weight"
        other = dict(points[number])
        other[name] = other[name] + 0.1
        points[number] = other
        with pytest.raises(SymmetryError, match=rf"segment {number} is not of kind {kind}"):
            certify(pair, structure, Path(tuple(points), path.segments, path.tied))


def test_saved_and_verified_again(tmp_path) -> None:
    """A path read from its file is the same path, bit for bit, and is certified anew without any search."""
    pair = mlp_pair([6, 9, 7, 5, 4])
    structure, path = first_theorem(pair, "paper")
    again = load_path(save_path(path, tmp_path / "path.safetensors"))
    assert again.kinds == path.kinds
    for one, other in zip(path.points, again.points, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert certify(pair, structure, again).largest == certify(pair, structure, path).largest


def test_through_a_narrow_network() -> None:
    """Theorem 3: 13 segments; between the d segments the loss is at most the largest of A_1, θ* and B_1."""
    pair = mlp_pair([6, 9, 10, 11, 4])
    structure = structure_for(pair)
    small = mlp([6, 3, 1, 4, 4]).double()
    narrow = bare_structure(small, 6)
    star = narrow.canonical(random_state(small, 9))
    a, b = (masked(structure, theta, 0, seed) for seed, theta in ((3, pair.theta_a), (4, pair.theta_b)))
    path = path_through(
        structure, structure.canonical(pair.theta_a), structure.canonical(pair.theta_b), a, b, star, narrow
    )
    assert path.kinds == "d" + "babbcbcb" + "bab" + "d"
    found = certify(pair, structure, path)
    batch = pair.data.batches[0]
    losses = [
        float(F.cross_entropy(plain_forward(weights, batch.inputs, "relu"), batch.targets))
        for weights in (a.weights, star, b.weights)
    ]
    inner = [s.largest for s in found.segments[1:-1]]
    assert max(inner) == pytest.approx(max(losses), abs=1e-10)
    assert found.segments[3].end == pytest.approx(losses[1], abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoints_of_lower_precision(dtype: torch.dtype) -> None:
    """T19: the path is built in float64 from stored numbers, ends at them, and is certified as in float64 to 1e-4."""
    wide = mlp_pair([6, 9, 10, 11, 4])
    states = [{n: t.to(dtype) for n, t in theta.items()} for theta in (wide.theta_a, wide.theta_b)]
    batch = wide.data.batches[0]
    module = mlp([6, 9, 10, 11, 4])
    pairs = [
        lmccheck.load_pair(*given, model=module, data=(batch.inputs.float(), batch.targets), device="cpu")
        for given in (states, [{n: t.double() for n, t in state.items()} for state in states])
    ]
    found = []
    for pair in pairs:
        structure, path = first_theorem(pair, "paper")
        assert all(torch.equal(t.to(dtype), states[0][n]) for n, t in path.at(0.0).items())
        assert all(torch.equal(t.to(dtype), states[1][n]) for n, t in path.at(1.0).items())
        found.append((certify(pair, structure, path), certify(pair, *second_theorem(pair, "paper"))))
    for one, other in zip(*found, strict=True):
        assert one.largest == pytest.approx(other.largest, rel=1e-4)


def test_a_loss_that_is_not_known_to_be_convex_is_sampled() -> None:
    """With a loss of the user's own the head segments are sampled and say so; declared convex, they are certified."""

    def bounded(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 1 - torch.softmax(outputs, 1)[torch.arange(len(targets)), targets]

    def declared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    declared.convex = True  # type: ignore[attr-defined]  # how a function says so
    wide = mlp_pair([6, 9, 8, 4])
    for loss, how in ((bounded, "sampled"), (declared, "convex")):
        pair = lmccheck.load_pair(
            wide.theta_a, wide.theta_b, model=wide.module, loss=loss, device="cpu",
            data=(wide.data.batches[0].inputs, wide.data.batches[0].targets),
        )  # fmt: skip
        found = certify(pair, *first_theorem(pair, "paper"), profile="dev")
        assert {segment.how for segment in found.segments if segment.kind == "a"} == {how}
        assert found.exact == (how == "convex")


def test_a_path_is_checked_by_the_network_s_own_names(tmp_path) -> None:
    """Decoy tensors that a file ties the network's names to are refused: what is certified is what is on the path."""
    pair = mlp_pair([6, 8, 4])
    structure = structure_for(pair)
    theta_a, theta_b = (structure.canonical(theta) for theta in (pair.theta_a, pair.theta_b))
    decoys = {f"x/{name}": tensor for name, tensor in theta_a.items()}
    forged = Path(({**theta_a, **decoys}, {**theta_b, **decoys}), (Segment("d", ""),), {n: f"x/{n}" for n in theta_a})
    with pytest.raises(LmcError, match=r"breakpoint 0: tensor 'x/0\.weight': got .*, expected no such tensor"):
        lmccheck.verify_path(pair, forged, epsilon=0.1)
    with pytest.raises(CheckpointError, match=r"tensor '0\.weight' of its breakpoints is that of no name in 'tied'"):
        load_path(save_path(forged, tmp_path / "forged.safetensors"))
    redirected = Path((theta_a, theta_b), (Segment("d", ""),), dict.fromkeys(theta_a, "0.bias"))
    with pytest.raises(CheckpointError, match=r"'tied' says that '0\.weight' is '0\.bias', in the network it is '0\.w"):
        lmccheck.verify_path(pair, redirected)
    honest = Path((theta_a, theta_b), (Segment("d", ""),), {name: name for name in theta_a})
    assert lmccheck.verify_path(pair, honest, epsilon=100.0).passed


@pytest.mark.parametrize("path", [None, 5])
def test_what_is_no_path_is_said_to_be_none(path: object) -> None:
    """One line, no traceback of Python's."""
    with pytest.raises(LmcError, match="expected a Path, or a file"):
        lmccheck.verify_path(mlp_pair([6, 8, 4]), path)  # type: ignore[arg-type]  # the point of the test


def test_theorem_3_wants_the_same_network_narrower() -> None:
    """A θ* of other layers, without biases, or of another activation is refused with the reason."""
    pair = mlp_pair([6, 9, 10, 4])
    batch = pair.data.batches[0]
    pair = lmccheck.load_pair(
        pair.theta_a, pair.theta_b, model=pair.module, data=(batch.inputs, batch.targets),
        calibration=(batch.inputs, batch.targets), device="cpu",
    )  # fmt: skip
    wrong = {
        "last layer of one": mlp([6, 3, 3, 2, 4]),
        "only in the pair": mlp([6, 3, 3, 4], bias=False),
        "has shape": mlp([5, 3, 3, 4]),
        "other outputs": mlp([6, 3, 3, 4], "tanh"),
    }
    for why, module in wrong.items():
        star = random_state(module.double(), 3)
        with pytest.raises(LmcError, match=why if why != "has shape" else "through"):
            lmccheck.dropout_path(pair, through=star, through_model=module, profile="dev")
    module = mlp([6, 3, 3, 4]).double()
    result = lmccheck.dropout_path(pair, through=random_state(module, 3), through_model=module, epsilon=100.0)
    assert result.passed
    assert result.details["kinds"] == "dbabbcbcbbabd"


def test_a_narrow_network_is_refused_by_its_shapes_and_where_it_does_not_fit() -> None:
    """Five inputs for six; four units where three are free, while three fit exactly."""
    structure = bare_structure(mlp([6, 7, 4]).double(), 6)
    with pytest.raises(LmcError, match=r"tensor '.*' has shape \(3, 5\), in the pair \(7, 6\)"):
        require_alike(structure, bare_structure(mlp([5, 3, 4]).double(), 5))
    (group,) = structure.groups
    taken = torch.tensor([0, 2, 4, 6])
    assert _room(structure, group, taken, 3).tolist() == [1, 3, 5]
    with pytest.raises(LmcError, match=r"θ\* has 4 units of .*, only 3 are free"):
        _room(structure, group, taken, 4)
