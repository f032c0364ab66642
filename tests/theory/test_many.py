"""Three networks and more in one frame: planted copies coincide, maps are consistent, barriers are those of pairs."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS
from safetensors.torch import load_file, save_file
from small import seeded, small_batchnorm, small_mlp
from torch import Tensor

import lmccheck
from lmccheck.alignment.barriers import measure_barriers
from lmccheck.alignment.many import ManyAlignment, merge_many
from lmccheck.alignment.matching.norms import counted
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of
from lmccheck.network.set import load_set
from lmccheck.properties.set_connectivity import table
from lmccheck.store.checkpoint import read_header, sha256_of
from lmccheck.symmetry.compose import compose, inverse

FIXTURES = Path(__file__).parents[2] / "fixtures"
DIGITS = {
    "model": "models:mlp",
    "data": "digits-test.safetensors",
    "calibration": "digits-train.safetensors",
    "base": FIXTURES,
}
SMALL: dict[str, Any] = {
    "model": small_mlp,
    "data": (
        torch.randn(40, 4, generator=torch.Generator().manual_seed(0)),
        torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1)),
    ),
}


def planted(name: str, count: int, seed: int = 0) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """Return ``count`` permuted copies of a random network in float64, and what else align_many needs."""
    torch.manual_seed(seed)
    module, inputs = NETWORKS[name]()
    spec = lmccheck.discover_symmetry(module, inputs)
    theta = randomised(module, seed)
    samples = torch.randn(24, *inputs[0].shape[1:])
    targets = outputs_of(module, theta, (samples,), torch.float64)[0]  # θ's own outputs: every copy has loss zero
    data = samples, targets
    copies = [spec.apply(theta, spec.random(seed + k)) for k in range(count)]
    return copies, {"model": module, "data": data, "calibration": data, "loss": "mse"}


def noisy(weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: v + 0.2 * v.std() * torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in weights.items()}


def equal_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def objective(many: ManyAlignment) -> float:
    """Σ_{i<j}⟨θ_i, θ_j⟩ over learned tensors with slots, written out; for networks without BatchNorm."""
    learned = {s.tensor for g in many.spec.groups for s in g.slots if s.learned}
    return sum(float((a[k].double() * b[k].double()).sum()) for a, b in combinations(many.weights, 2) for k in learned)


@pytest.fixture(scope="module")
def digits() -> ManyAlignment:
    """Both trained digit networks and a permuted noisy copy of the first."""
    first = load_file(FIXTURES / "mlp-seed0.safetensors")
    spec = lmccheck.align(lmccheck.load_pair("mlp-seed0.safetensors", "mlp-seed1.safetensors", **DIGITS)).spec
    copy = spec.apply(noisy(first, 0), spec.random(1))
    return lmccheck.align_many(["mlp-seed0.safetensors", "mlp-seed1.safetensors", copy], **DIGITS)


@pytest.mark.parametrize("name", ["mlp", "resnet", "encoder_chunk"])
@pytest.mark.parametrize("method", ["merge-many", "reference"])
def test_permuted_copies_coincide_in_one_frame(name: str, method: str) -> None:
    """Four copies become equal bit for bit, in the reference's own frame, and no barrier is left between them."""
    copies, given = planted(name, 4)
    many = lmccheck.align_many(copies, **given, method=method, reference=2)
    assert all(equal_bits(weights, copies[2]) for weights in many.weights)
    assert all(deviation <= 1e-9 for deviation in many.function_deviations)
    assert many.cycle_error() == 0
    found = measure_barriers(many, points=5)
    over_ends = found.aligned if found.reestimated is None else found.reestimated  # BatchNorm is estimated from little
    assert max(map(max, over_ends)) <= 1e-9
    assert min(found.naive[i][j] for i, j in combinations(range(4), 2)) > 1e-3
    if found.reestimated is None:
        assert found.mean_loss <= 1e-9
        assert found.mean_loss_naive > 1e-3


@pytest.mark.parametrize("name", ["mlp", "encoder_chunk"])
def test_maps_between_models_do_not_depend_on_the_way(name: str) -> None:
    """π_ik = π_jk then π_ij, exactly, and π_ij takes model j as given to where model i as given lies."""
    copies, given = planted(name, 3, seed=5)
    many = lmccheck.align_many(copies, **given)
    for i, j in [(0, 1), (1, 0), (2, 1), (1, 1)]:
        assert equal_bits(many.spec.apply(copies[j], many.pairwise(i, j)), copies[i])
    direct = many.pairwise(0, 2)
    around = compose(many.spec, many.pairwise(1, 2), many.pairwise(0, 1))
    assert all(torch.equal(around[group], direct[group]) for group in direct)
    assert many.facts["cycle_error"] == many.cycle_error() == 0


def test_a_permutation_is_in_the_frame_of_the_reference(digits: ManyAlignment) -> None:
    """Weights are the originals permuted, and the reference's own stay where they are."""
    for original, permutation, weights in zip(digits.originals, digits.permutations, digits.weights, strict=True):
        assert equal_bits(digits.spec.apply(original, permutation), weights)
    assert equal_bits(digits.weights[0], digits.originals[0])
    assert digits.names == ("mlp-seed0", "mlp-seed1", "model 2")


def test_a_noisy_copy_returns_to_its_original(digits: ManyAlignment) -> None:
    """Among networks trained apart, too: its permutation undoes the planted one."""
    planted = inverse(digits.spec, digits.spec.random(1))
    assert all(torch.equal(permutation, planted[name]) for name, permutation in digits.permutations[2].items())


def test_the_matrix_of_barriers_is_that_of_pairs(digits: ManyAlignment) -> None:
    """Symmetric, zero on the diagonal, and each entry what linear_connectivity measures on the same grid."""
    found = measure_barriers(digits, points=5)
    for matrix in (found.aligned, found.naive):
        assert matrix == [list(column) for column in zip(*matrix, strict=True)]
        assert all(matrix[k][k] == 0 for k in range(3))
    for i, j in combinations(range(3), 2):
        for states, matrix in ((digits.weights, found.aligned), (digits.originals, found.naive)):
            pair = lmccheck.load_pair(states[i], states[j], **DIGITS)
            one = lmccheck.linear_connectivity(pair, align="none", points=5, profile="dev")
            assert matrix[i][j] == pytest.approx(one.value, abs=1e-6)
    assert found.aligned[0][1] < 0.07 < found.naive[0][1]
    assert found.mean_loss < found.mean_loss_naive / 2
    assert found.evaluations == 3 + 2 * (3 + 3 * 3) + 2  # endpoints; ends and inner points, twice; both means
    assert lmccheck.barrier_matrix(digits) == found.aligned
    assert lmccheck.barrier_matrix(digits, naive=True) == found.naive


def test_the_matrix_with_batchnorm_is_that_of_pairs() -> None:
    """Statistics are re-estimated at every point, over the chord between the models' own losses."""
    samples = torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    given = {"model": small_batchnorm, "data": (samples, torch.arange(30) % 3)}
    states = [seeded(small_batchnorm, seed) for seed in range(3)]
    with pytest.raises(lmccheck.SourceError, match="no calibration data is given"):
        lmccheck.barrier_matrix(lmccheck.align_many(states, **given))
    given["calibration"] = given["data"]
    many = lmccheck.align_many(states, **given)
    found = measure_barriers(many, points=4)
    for i, j in combinations(range(3), 2):
        pair = lmccheck.load_pair(many.weights[i], many.weights[j], **given)
        one = lmccheck.linear_connectivity(pair, align="none", points=4, profile="dev")
        assert found.aligned[i][j] == pytest.approx(one.value, abs=1e-6)
        assert found.reestimated is not None
        assert found.reestimated[i][j] == pytest.approx(one.details["barrier_reestimated"], abs=1e-6)


@pytest.mark.parametrize("build", [small_mlp, small_batchnorm])
@pytest.mark.parametrize("repair", ["none", "repair"])
def test_networks_between_are_mended_as_those_of_pairs(build: Any, repair: str) -> None:
    """Each entry is what linear_connectivity measures, for every way of mending and not only re-estimation."""
    shape = (30, 1, 4, 4) if build is small_batchnorm else (30, *SMALL["data"][0].shape[1:])
    samples = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    given = {"model": build, "data": (samples, torch.arange(30) % 3)}
    given["calibration"] = given["data"]
    size = 1 if build is small_batchnorm else 5  # large enough for a barrier
    states = [{name: size * tensor for name, tensor in seeded(build, seed).items()} for seed in range(3)]
    many = lmccheck.align_many(states, **given)
    found = measure_barriers(many, points=4, repair=repair)
    assert (found.reestimated is None) == (repair == "none" or build is small_mlp)
    if repair == "repair" or build is small_batchnorm:
        assert found.naive != measure_barriers(many, points=4, repair="none" if repair == "repair" else "bn").naive
    for i, j in combinations(range(3), 2):
        for weights, matrix in ((many.weights, found.aligned), (many.originals, found.naive)):
            pair = lmccheck.load_pair(weights[i], weights[j], **given)
            one = lmccheck.linear_connectivity(pair, align="none", points=4, profile="dev", repair=repair)
            assert matrix[i][j] == pytest.approx(one.value, abs=1e-6)


def test_mending_that_cannot_be_done_is_said() -> None:
    """An unknown way at once; REPAIR without calibration data, or without a traced network."""
    states = [seeded(small_mlp, seed) for seed in range(3)]
    with pytest.raises(lmccheck.LmcError, match=r"repair = 'repiar' \(did you mean 'repair'\?\)"):
        lmccheck.set_connectivity([], **SMALL, repair="repiar")
    with pytest.raises(lmccheck.SourceError, match="needs calibration data and none is given"):
        lmccheck.set_connectivity(states, **SMALL, repair="repair")
    spec = lmccheck.align_many(states, **SMALL).spec
    with pytest.raises(lmccheck.UnsupportedArchitecture, match="is given, not traced; mend: use repair = 'bn'"):
        lmccheck.set_connectivity(states, **SMALL, calibration=SMALL["data"], symmetry=spec, repair="repair")


def test_a_member_is_written_as_an_aligned_pair_is(tmp_path: Path) -> None:
    """Its own numbers, permuted, with its file's metadata, and the permutation beside it."""
    files = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for k, file in enumerate(files):
        save_file(seeded(small_mlp, k), file, {"made": str(k)})
    many = lmccheck.align_many(files, **SMALL, reference=1)
    for k in range(3):
        path = lmccheck.save_aligned(many.member(k), tmp_path / f"{k}-aligned.safetensors")
        assert equal_bits(load_file(path), many.weights[k])
        assert read_header(path).metadata == {"made": str(k)}
        assert equal_bits(load_file(tmp_path / f"{k}-aligned.permutation.safetensors"), dict(many.permutations[k]))
    assert many.member(1).is_identity


def test_a_pin_of_any_model_is_checked(tmp_path: Path) -> None:
    """In the order of the models."""
    files = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for k, file in enumerate(files):
        save_file(seeded(small_mlp, k), file)
    pins = [sha256_of(file) for file in files]
    assert load_set(files, sha256=pins, **SMALL).names == ("0", "1", "2")
    for wrong in range(3):
        with pytest.raises(lmccheck.CheckpointError, match=rf"{wrong}\.safetensors: sha256 is {pins[wrong]}, the pin"):
            load_set(files, sha256=[*pins[:wrong], "0" * 64, *pins[wrong + 1 :]], **SMALL)


def test_the_mean_of_all_is_measured() -> None:
    """Its loss equals that of the mean written out."""
    states = [seeded(small_mlp, seed) for seed in range(3)]
    many = lmccheck.align_many(states, **SMALL)
    found = measure_barriers(many)
    module = small_mlp()
    for weights, loss in ((many.weights, found.mean_loss), (states, found.mean_loss_naive)):
        mean = {k: sum(w[k] for w in weights) / 3 for k in states[0]}
        outputs = torch.func.functional_call(module, mean, (SMALL["data"][0],))
        assert loss == pytest.approx(torch.nn.functional.cross_entropy(outputs, SMALL["data"][1]).item(), abs=1e-6)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), count=st.integers(2, 4))
def test_merging_never_lowers_its_objective(seed: int, count: int) -> None:
    """It rises with every step, ends at or above the reference's, comes to rest, and is the one reported."""
    states = [seeded(small_mlp, seed + k) for k in range(count)]
    many = lmccheck.align_many(states, **SMALL, seed=seed)
    aligned = lmccheck.align_many(states, **SMALL, seed=seed, method="reference")
    rising = many.facts["objectives"]
    assert all(later > earlier for earlier, later in pairwise(rising))
    assert rising[0] == aligned.objective == many.facts["objective_reference"]
    assert many.objective == rising[-1] >= aligned.objective >= aligned.facts["objective_before"]
    assert many.facts["converged"]
    assert many.objective == pytest.approx(objective(many), rel=1e-9)
    assert aligned.objective == pytest.approx(objective(aligned), rel=1e-9)
    assert many.cycle_error() == aligned.cycle_error() == 0


def test_merging_improves_on_a_reference() -> None:
    """Alignment to one model leaves the others unaligned with one another; with no start at all it is found as well."""
    states = [seeded(small_mlp, seed) for seed in range(5)]
    many = lmccheck.align_many(states, **SMALL)
    assert many.objective > 1.02 * many.facts["objective_reference"]
    from_nothing = merge_many(many.spec, [counted(many.spec, state) for state in states], [many.spec.identity()] * 5)
    assert from_nothing.objectives[0] == pytest.approx(many.facts["objective_before"])
    assert from_nothing.objectives[-1] > many.facts["objective_reference"]


def test_the_same_seed_gives_the_same_alignment() -> None:
    """Permutations are equal; only the order of visits is random."""
    states = [seeded(small_mlp, seed) for seed in range(3)]
    first, second = (lmccheck.align_many(states, **SMALL, seed=7) for _ in range(2))
    for p, q in zip(first.permutations, second.permutations, strict=True):
        assert all(torch.equal(p[name], q[name]) for name in p)


def test_half_precision_keeps_its_numbers() -> None:
    """Aligned weights are the stored ones, moved; the models may differ in dtype."""
    states = [seeded(small_mlp, seed) for seed in range(3)]
    states[1] = {name: tensor.half() for name, tensor in states[1].items()}
    states[2] = {name: tensor.double() for name, tensor in states[2].items()}
    many = lmccheck.align_many(states, **SMALL)
    for original, weights in zip(states, many.weights, strict=True):
        for name, tensor in weights.items():
            assert tensor.dtype == original[name].dtype
            assert torch.equal(tensor.flatten().sort().values, original[name].flatten().sort().values)
    assert all(map(torch.isfinite, torch.tensor(lmccheck.barrier_matrix(many)).flatten()))


def test_a_set_passes_and_fails_by_its_worst_pair() -> None:
    """Verdict, value, details; a share of the loss is that of each pair's worse model."""
    models = ["mlp-seed0.safetensors", "mlp-seed1.safetensors"]
    result = lmccheck.set_connectivity(models, **DIGITS, limit=0.07)
    assert result.passed
    assert result.property == "set_connectivity"
    assert result.unit == "nats"
    details = result.details
    assert result.value == max(map(max, details["matrix"])) == pytest.approx(0.0329, abs=1e-3)
    assert details["worst_pair"] == details["names"] == ["mlp-seed0", "mlp-seed1"]
    assert details["cycle_error"] == 0
    assert details["matrix_naive"][0][1] > 0.5
    assert details["mean_loss"] < details["mean_loss_naive"]
    assert details["table"].splitlines()[0].split() == details["names"]
    assert "failure" not in details

    failed = lmccheck.set_connectivity(models, **DIGITS, limit="10%")
    assert failed.verdict == "fail"
    assert failed.limit == pytest.approx(0.1 * max(failed.details["losses"]))
    lines = failed.details["failure"]
    assert "mlp-seed0 and mlp-seed1: not linearly connected after merge-many" in lines[0]
    assert lines[1].startswith("barrier 0.03293 nats, limit 0.0076")
    assert lines[3].endswith("; 1 of 1 pairs above the limit")


def test_the_worst_pair_is_named() -> None:
    """Of two copies and a stranger, the stranger."""
    first = load_file(FIXTURES / "mlp-seed0.safetensors")
    spec = lmccheck.align(lmccheck.load_pair(first, first, **DIGITS)).spec
    models = [first, "mlp-seed1.safetensors", spec.apply(first, spec.random(3))]
    result = lmccheck.set_connectivity(models, **DIGITS, limit=0.01)
    assert result.verdict == "fail"
    assert "mlp-seed1" in result.details["worst_pair"]
    assert result.details["matrix"][0][2] == pytest.approx(0, abs=1e-6)
    assert "2 of 3 pairs above the limit" in result.details["failure"][3]


def test_a_table_of_names() -> None:
    """Columns are named as rows are."""
    assert table(["a", "b"], [[0.0, 0.25], [0.25, 0.0]]).splitlines()[2].split() == ["a", "0", "0.25"]


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By their paths; by their place where even these are equal."""
    for folder in "xy":
        (tmp_path / folder).mkdir()
        save_file(seeded(small_mlp, ord(folder)), tmp_path / folder / "m.safetensors")
    many = lmccheck.align_many(["x/m.safetensors", "y/m.safetensors"], **SMALL, base=tmp_path)
    assert many.names == ("x/m.safetensors", "y/m.safetensors")
    twice = lmccheck.align_many(["x/m.safetensors", "x/m.safetensors"], **SMALL, base=tmp_path)
    assert twice.names == ("x/m.safetensors (0)", "x/m.safetensors (1)")


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([], {}, r"align_many: got 0 model\(s\), expected at least two; mend"),
        ([0], {}, r"align_many: got 1 model\(s\), expected at least two"),
        ("a.safetensors", {}, "align_many: got models as str, expected a list"),
        ([0, 1], {"method": "merge"}, r"method = 'merge'.*expected one of \['merge-many', 'reference'\]"),
        ([0, 1], {"align": "weight-macthing"}, r"align = 'weight-macthing' \(did you mean 'weight-matching'\?\)"),
        ([0, 1], {"reference": 2}, "reference = 2; expected an integer from 0 to 1"),
        ([0, 1], {"seed": 0.5}, r"seed = 0\.5; expected an integer"),
        ([0, 1, None], {}, r"model 0 \(a\) and model 2 \(b\): b: got NoneType, expected a \.safetensors path"),
        ([0, 1, {}], {}, r"model 0 \(a\) and model 2 \(b\): state dict b: tensor '0\.weight' is missing"),
        ([0, 1, "bn"], {}, r"model 0 \(a\) and model 2 \(b\): state dict b: tensor '0\.weight' has shape \(4, 1, 3"),
    ],
)
def test_what_cannot_be_aligned_is_said_in_one_line(models: Any, options: dict[str, Any], message: str) -> None:
    """Numbers stand for networks of that seed."""
    other = {name: tensor for name, tensor in seeded(small_batchnorm, 0).items() if name == "0.weight"}
    if isinstance(models, list):
        models = [
            seeded(small_mlp, m) if isinstance(m, int) else {**seeded(small_mlp, 0), **other} if m == "bn" else m
            for m in models
        ]
    with pytest.raises(lmccheck.LmcError, match=message) as caught:
        lmccheck.align_many(models, **SMALL, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 2}, "set_connectivity: points = 2; expected a whole number from 3 to 10001"),
        ({"limit": -1}, "set_connectivity: limit = -1; expected a number"),
        ({"limit": "5"}, "set_connectivity: limit = '5'; expected a number"),
    ],
)
def test_what_cannot_be_checked_is_said_before_anything_is_done(options: dict[str, Any], message: str) -> None:
    """Models are not looked at."""
    with pytest.raises(lmccheck.LmcError, match=message):
        lmccheck.set_connectivity([], **SMALL, **options)


def test_a_model_whose_loss_is_not_finite_is_named() -> None:
    """As linear_connectivity names an endpoint."""
    states = [seeded(small_mlp, seed) for seed in range(3)]
    states[1] = {name: tensor * (1e25 if "weight" in name else 1) for name, tensor in states[1].items()}
    many = lmccheck.align_many(states, **SMALL)
    with pytest.raises(lmccheck.SourceError, match=r"model 1: its cross_entropy on data .* is nan at sample"):
        lmccheck.barrier_matrix(many)
    with pytest.raises(lmccheck.LmcError, match="barrier_matrix: points = True"):
        lmccheck.barrier_matrix(many, points=True)
