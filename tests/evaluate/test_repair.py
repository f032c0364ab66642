"""REPAIR against an oracle: forward hooks that give every layer's output its statistics, on plain modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import Written
from networks.quick import slowly
from networks.sets import shipped
from networks.small import seeded, small_batchnorm, small_mlp
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import LmcError, SourceError, UnsupportedArchitecture
from lmccheck.evaluate.points import interpolate
from lmccheck.evaluate.repair import Repair, live_norms

State = dict[str, Tensor]
Build = Callable[[], nn.Module]


def plain_convolutions() -> nn.Module:
    """Convolutions without BatchNorm, one of them grouped, and linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 2, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 9, 7), nn.Tanh(), nn.Linear(7, 3),
    )  # fmt: skip


def mixed(inplace: bool = False) -> nn.Module:
    """BatchNorm after a layer, BatchNorm after an activation, and layers without it before and after them."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 2), nn.ReLU(inplace), nn.Conv2d(5, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace),
        nn.BatchNorm2d(6, affine=False), nn.Flatten(), nn.Linear(6 * 9, 8), nn.ReLU(inplace), nn.Linear(8, 3),
    )  # fmt: skip


def mixed_in_place() -> nn.Module:
    """The same, writing in place: its graph is functionalised, with another op for BatchNorm."""
    return mixed(inplace=True)


NETWORKS: dict[str, tuple[Build, tuple[int, ...], tuple[str, ...]]] = {
    "mlp": (small_mlp, (4,), ("0", "2")),
    "convolutions": (plain_convolutions, (1, 6, 6), ("0", "2", "5")),
    "mixed": (mixed, (1, 6, 6), ("0", "7")),
    "mixed in place": (mixed_in_place, (1, 6, 6), ("0", "7")),
}


def pair_of(
    build: Build, shape: tuple[int, ...], samples: int = 50, dtype: torch.dtype = torch.float64
) -> lmccheck.ModelPair:
    """Return a pair of networks from two seeds; one batch is all of the calibration data."""
    states = [{k: v.to(dtype) if v.is_floating_point() else v for k, v in seeded(build, s).items()} for s in (0, 1)]
    torch.manual_seed(5)
    data, calibration = (
        (torch.randn(samples, *shape, dtype=torch.float64), torch.randint(0, 3, (samples,))) for _ in range(2)
    )
    return lmccheck.load_pair(*states, model=build, data=data, calibration=calibration, device="cpu")


def repair_of(pair: lmccheck.ModelPair, theta_b: State | None = None) -> Repair:
    """Return the repair of a pair."""
    return Repair(pair.network, pair.network.traced, pair.theta_a, pair.theta_b if theta_b is None else theta_b)


def moments(value: Tensor, linear: bool) -> tuple[Tensor, Tensor]:
    """Return the means and deviations of units over everything else."""
    dims = [d for d in range(value.ndim) if d != (value.ndim - 1 if linear else 1)]
    return value.mean(dims), value.var(dims, correction=0).sqrt()


class Hooked:
    """A network of its own, its BatchNorm in training mode, that records (and may set) its layers' statistics."""

    def __init__(self, build: Build, state: State, names: tuple[str, ...], inputs: Tensor) -> None:
        self.module = build().to(inputs.dtype).eval()
        self.module.load_state_dict(state)
        self.names, self.inputs = names, inputs
        for part in self.module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.train()

    def run(self, targets: dict[str, tuple[Tensor, Tensor]] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Return each layer's means and deviations before they are set to ``targets``."""
        found = {}

        def hook(name: str) -> Callable[..., Tensor | None]:
            def see(module: nn.Module, _: object, value: Tensor) -> Tensor | None:
                found[name] = moments(value, isinstance(module, nn.Linear))
                if targets is None:
                    return None
                shape = [1, -1] if isinstance(module, nn.Linear) else [1, -1, 1, 1]
                mean, deviation, aim, spread = (x.view(shape) for x in (*found[name], *targets[name]))
                return (value - mean) / deviation * spread + aim

            return see

        handles = [self.module.get_submodule(name).register_forward_hook(hook(name)) for name in self.names]
        with torch.no_grad():
            self.module(self.inputs)
        for handle in handles:
            handle.remove()
        return found


@pytest.mark.parametrize(("dtype", "t"), [(torch.float64, 0.2), (torch.float32, 0.5)], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_oracle_gets_the_same_weights_and_the_targets_are_met(network: str, dtype: torch.dtype, t: float) -> None:
    """Weights as hooks make them, statistics as asked for, tensors of other layers as they were."""
    build, shape, names = NETWORKS[network]
    pair = pair_of(build, shape, dtype=dtype)
    assert pair.calibration is not None
    inputs = pair.calibration.batches[0].inputs.to(dtype)
    merged = interpolate(pair.theta_a, pair.theta_b, t)
    repair = repair_of(pair)
    repaired = repair(merged, t)
    assert tuple(layer.weight for layer in repair.layers) == tuple(f"{name}.weight" for name in names)

    a, b = (Hooked(build, theta, names, inputs).run() for theta in (pair.theta_a, pair.theta_b))
    targets = {n: tuple((1 - t) * x + t * y for x, y in zip(a[n], b[n], strict=True)) for n in names}
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    met = Hooked(build, repaired, names, inputs).run()
    for name in names:
        for got, aim in zip(met[name], targets[name], strict=True):
            assert (got - aim).abs().max() < tolerance, name

    before = Hooked(build, merged, names, inputs).run(targets)
    expected = dict(merged)
    for name in names:
        mean, deviation = before[name]
        scale = targets[name][1] / deviation
        weight = merged[f"{name}.weight"]
        expected[f"{name}.weight"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        expected[f"{name}.bias"] = scale * (merged[f"{name}.bias"] - mean) + targets[name][0]
    for name, tensor in expected.items():
        assert torch.allclose(repaired[name].to(tensor.dtype), tensor, atol=tolerance, rtol=tolerance), name
        if name.split(".")[0] not in names:
            assert torch.equal(repaired[name], tensor), name


def test_both_batchnorm_ops_are_run_live() -> None:
    """The networks above have both."""
    ops = {}
    for build in (mixed, mixed_in_place):
        pair = pair_of(build, (1, 6, 6))
        traced = pair.network.traced.trace
        assert len(live_norms(traced)) == 2
        ops[build] = {str(node.target) for node in traced.graph.nodes if "batch_norm" in str(node.target)}
    assert ops[mixed] != ops[mixed_in_place]


@pytest.mark.parametrize("network", NETWORKS)
def test_the_ends_and_their_neighbourhood_need_no_repair(network: str) -> None:
    """At t = 0 and 1 nothing is done; just beside them the correction is the identity."""
    build, shape, _ = NETWORKS[network]
    pair = pair_of(build, shape)
    repair = repair_of(pair)
    for t, near in ((0.0, 1e-9), (1.0, 1 - 1e-9)):
        end = interpolate(pair.theta_a, pair.theta_b, t)
        assert all(torch.equal(end[name], tensor) for name, tensor in repair(end, t).items())
        for name, tensor in repair(end, near).items():
            assert torch.allclose(tensor, end[name], atol=1e-7), name


def test_equal_networks_stay_as_they_are_whatever_the_batches() -> None:
    """The statistics of all batches together are those of the data, so that nothing is left to correct."""
    state = {k: v.double() for k, v in seeded(small_mlp, 0).items()}
    batches = [(torch.randn(n, 4), torch.randint(0, 3, (n,))) for n in (40, 31, 1)]
    pair = lmccheck.load_pair(state, state, model=small_mlp, data=batches[0], calibration=batches, device="cpu")
    repaired = repair_of(pair)(pair.theta_a, 0.5)
    assert torch.allclose(repaired["0.weight"], state["0.weight"], atol=1e-12)
    assert torch.allclose(repaired["0.bias"], state["0.bias"], atol=1e-12)
    assert torch.allclose(repaired["2.weight"], state["2.weight"], rtol=0.3)  # its inputs were mended batch by batch


def test_batches_of_one_sample_are_corrected_by_all_before_them() -> None:
    """Their own statistics would make every sample alike; the result is near that of one batch."""
    pair = pair_of(small_mlp, (4,), samples=400)
    assert pair.calibration is not None
    whole = pair.calibration.batches[0]
    single = [(x.unsqueeze(0), y.unsqueeze(0)) for x, y in zip(whole.inputs, whole.targets, strict=True)]
    parts = lmccheck.load_pair(
        pair.theta_a, pair.theta_b, model=small_mlp, data=single, calibration=single, device="cpu"
    )
    merged = interpolate(pair.theta_a, pair.theta_b, 0.5)
    one, many = repair_of(pair)(merged, 0.5), repair_of(parts)(merged, 0.5)
    assert torch.allclose(one["0.weight"], many["0.weight"], atol=1e-12)
    assert (many["2.weight"] - one["2.weight"]).norm() < 0.2 * (one["2.weight"] - merged["2.weight"]).norm()


def test_a_unit_that_never_varies_is_shifted_not_scaled() -> None:
    """Its weights stay zero and its bias becomes the target mean; the others are finite."""
    pair = pair_of(small_mlp, (4,))
    merged = interpolate(pair.theta_a, pair.theta_b, 0.5)
    merged["0.weight"] = merged["0.weight"].clone()
    merged["0.weight"][2] = 0
    repair = repair_of(pair)
    repaired = repair(merged, 0.5)
    first = repair.layers[0].node
    assert torch.equal(repaired["0.weight"][2], torch.zeros(4, dtype=torch.float64))
    target = (repair.a[first].mean[2] + repair.b[first].mean[2]) / 2
    assert repaired["0.bias"][2].item() == pytest.approx(target.item(), abs=1e-12)
    assert all(tensor.isfinite().all() for tensor in repaired.values())


@pytest.mark.parametrize("wide", [0, 1])
def test_either_endpoint_may_need_float64(wide: int) -> None:
    """REPAIR observes both ends in the dtype of the wider one, and what is merged is in it."""
    pair = pair_of(small_mlp, (4,))
    states = [theta if k == wide else {n: t.float() for n, t in theta.items()} for k, theta in enumerate(ends(pair))]
    result = lmccheck.linear_connectivity(pair.with_weights(*states), align="none", points=3, repair="repair")
    assert result.details["precision"] == "float64"
    repair = repair_of(pair.with_weights(*states))
    middle = interpolate(*({n: t.double() for n, t in state.items()} for state in states), 0.5)
    assert {tensor.dtype for tensor in repair(middle, 0.5).values()} == {torch.float64}


def ends(pair: lmccheck.ModelPair) -> tuple[State, State]:
    """Return both endpoints' weights."""
    return pair.theta_a, pair.theta_b


def test_a_unit_that_stands_still_on_calibration_data_keeps_its_weights() -> None:
    """It reads a feature that is constant there, and nothing else: what it says where that varies is not erased."""
    pair = pair_of(small_mlp, (4,))
    assert pair.calibration is not None
    pair.calibration.batches[0].inputs[:, 3] = 2.0
    states = [dict(theta) for theta in ends(pair)]
    for state, weight in zip(states, (0.75, -1.5), strict=True):
        state["0.weight"] = state["0.weight"].clone()
        state["0.weight"][2] = torch.tensor([0.0, 0.0, 0.0, weight])
    pair = pair.with_weights(*states)
    merged = interpolate(*states, 0.25)
    repaired = repair_of(pair)(merged, 0.25)
    expected = torch.tensor([0.0, 0.0, 0.0, 0.75 * 0.75 - 0.25 * 1.5], dtype=torch.float64)
    assert torch.equal(repaired["0.weight"][2], expected)
    means = [2 * state["0.weight"][2, 3] + state["0.bias"][2] for state in states]
    target = 0.75 * means[0] + 0.25 * means[1]
    assert 2 * expected[3] + repaired["0.bias"][2] == pytest.approx(float(target), abs=1e-12)


def left() -> nn.Module:
    """One layer of each kind that is left."""

    def run(s: Written, x: Tensor) -> Tensor:
        x = s.twice(s.twice(x).relu()).relu()
        x = s.norm(s.followed(s.bare(x).relu())).relu()
        return s.head(s.two(s.one(s.mended(x).relu()).relu()).relu())

    first = {"twice": nn.Linear(4, 4), "bare": nn.Linear(4, 6, bias=False), "followed": nn.Linear(6, 5)}
    then = {"norm": nn.BatchNorm1d(5), "mended": nn.Linear(5, 6), "one": nn.Linear(6, 5), "two": nn.Linear(5, 5)}
    then["two"].bias = then["one"].bias
    return Written(run, **first, **then, head=nn.Linear(5, 3))


def test_what_is_left_is_named_with_its_reason() -> None:
    """Weights used twice, no bias, shared biases, a BatchNorm behind, the output; the pair's facts are plain."""
    facts = repair_of(pair_of(left, (4,), samples=20)).facts()
    assert facts["layers"] == ["mended.weight"]
    assert facts["left"] == {
        "twice.weight": "its weight is used more than once",
        "bare.weight": "it has no bias, so the mean cannot be set",
        "followed.weight": "a BatchNorm follows, whose statistics are re-estimated",
        "one.weight": "its bias is used more than once",
        "two.weight": "its bias is used more than once",
        "head.weight": "its units are outputs of the network, or frozen",
    }
    assert (facts["samples"], facts["batches"]) == (20, 1)


def test_a_network_without_such_layers_is_left_alone() -> None:
    """A convolution with its BatchNorm and a head: REPAIR is re-estimation, and runs nothing."""
    data = torch.randn(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)
    states = [seeded(small_batchnorm, k) for k in (0, 1)]
    results = [
        lmccheck.linear_connectivity(
            lmccheck.load_pair(*states, model=small_batchnorm, data=data, calibration=data), points=3, repair=repair
        )
        for repair in ("bn", "repair")
    ]
    assert results[0].details["losses"] == results[1].details["losses"]
    assert results[1].details["repair"]["layers"] == []


@pytest.mark.parametrize(("kind", "naive"), [("mlp", 0.717), slowly("cnn", 0.884)])
def test_the_barrier_of_the_shipped_pairs_falls(kind: str, naive: float) -> None:
    """To less than a third unaligned, and still further after alignment."""
    pair = shipped(kind)
    found = {r: lmccheck.linear_connectivity(pair, points=3, profile="dev", repair=r) for r in ("bn", "repair")}
    assert found["bn"].details["barrier_naive"] == pytest.approx(naive, abs=0.001)
    assert found["repair"].details["barrier_naive"] < naive / 3
    assert found["repair"].value < 0.7 * found["bn"].value
    assert found["repair"].details["losses"][::2] == found["bn"].details["losses"][::2]  # the ends
    note = next(note for note in found["repair"].details["notes"] if note.startswith("REPAIR of "))
    assert "between the ends, on 1297 calibration samples" in note
    assert found["repair"].details["repair"]["method"] == "repair"
    assert found["bn"].details["repair"] == {"method": "bn"}
    unaligned = lmccheck.linear_connectivity(pair, align="none", points=3, profile="dev", repair="repair")
    assert unaligned.value == found["repair"].details["barrier_naive"]


def test_none_leaves_interpolated_statistics() -> None:
    """It needs no calibration data, says so, and is worse than re-estimating them."""
    pair = shipped("cnn")
    none, bn = (
        lmccheck.linear_connectivity(pair, align="none", points=3, profile="dev", repair=repair)
        for repair in ("none", "bn")
    )
    assert none.value > bn.value
    said, triage = none.details["notes"]
    assert said == "interpolated BatchNorm statistics are used, not re-estimated ones (repair = 'none')"
    assert triage.startswith("triage: independent initialisations")
    assert none.details["barrier_reestimated"] is None
    assert none.details["batchnorm"] == {"layers": 2, "method": "statistics interpolated like weights"}
    data = torch.randn(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)
    bare = lmccheck.load_pair(*(seeded(small_batchnorm, k) for k in (0, 1)), model=small_batchnorm, data=data)
    assert math.isfinite(lmccheck.linear_connectivity(bare, points=3, repair="none").value)


def test_mistakes(load: Callable[..., lmccheck.ModelPair], folder: Path) -> None:
    """Each is one line that says how to mend it."""
    pair = load()
    with pytest.raises(LmcError, match=r"linear_connectivity: repair = 'repiar' \(did you mean 'repair'\?\); expected"):
        lmccheck.linear_connectivity(pair, repair="repiar")
    with pytest.raises(LmcError, match=r'repair = None; expected "none", "bn" or "repair"'):
        lmccheck.linear_connectivity(pair, repair=None)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="repair = 'repair' needs calibration data and none is given; mend: give"):
        lmccheck.linear_connectivity(pair, repair="repair")
    spec = pair.network.spec
    with pytest.raises(UnsupportedArchitecture, match="symmetry is given, not traced; mend: use repair = 'bn'"):
        lmccheck.linear_connectivity(load(symmetry=spec, calibration="data.safetensors"), repair="repair")
    alone = torch.randn(1, 4), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(SourceError, match="gives a hidden unit a single value, expected at least two; mend: give more"):
        lmccheck.linear_connectivity(load(calibration=alone), repair="repair")
