"""Maps beyond permutations: found where they exist and nowhere else, undone where they were planted, never a change."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from networks import NETWORKS, Attention, Written, residual
from safetensors.torch import load_file
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment.beyond import api
from lmccheck.alignment.beyond.fit import balance, best_scale, polar
from lmccheck.alignment.beyond.freedoms import KINDS, Freedom, Trial, find_freedoms, random_matrix
from lmccheck.alignment.beyond.mix import mix_group
from lmccheck.alignment.beyond.stream import Stream, find_streams
from lmccheck.alignment.methods.learned import train
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of
from lmccheck.symmetry.discover import Derived, derive

Weights = dict[str, Tensor]
Case = tuple[nn.Module, tuple[Tensor, ...]]


def perceptron(activation: Callable[[], nn.Module], depth: int = 1, width: int = 12) -> Case:
    """Return 6-width-…-width-3."""
    layers: list[nn.Module] = [nn.Linear(6, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 3)), (torch.randn(4, 6),)


def plain() -> nn.Module:
    """Attention of two heads without any bias."""

    def attend(s: Written, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (2, 8)).transpose(1, 2) for part in (s.q, s.k, s.v))
        y = (q @ k.mT / 8**0.5).softmax(-1) @ v
        return s.out(y.transpose(1, 2).flatten(2))

    return Written(attend, **{name: nn.Linear(16, 16, bias=False) for name in ("q", "k", "v", "out")})


def block(attention: Callable[[], nn.Module], inputs: int = 20, final: bool = True, after: bool = False) -> Case:
    """Return a pre-norm block of width 16 on 5 tokens, with or without a final norm (or a post-norm one)."""
    inner = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 16))
    if after:
        parts = [residual(attention()), nn.LayerNorm(16), residual(inner), nn.LayerNorm(16)]
    else:
        parts = [
            residual(nn.Sequential(nn.LayerNorm(16), attention())),
            residual(nn.Sequential(nn.LayerNorm(16), inner)),
        ]
    last = [nn.LayerNorm(16)] if final else []
    net = nn.Sequential(nn.Linear(inputs, 16), *parts, *last, Written(lambda x: x.mean(1)), nn.Linear(16, 3))
    return net, (torch.randn(2, 5, inputs),)


BUILD: dict[str, Callable[[], Case]] = {
    **NETWORKS,
    "relu": lambda: perceptron(nn.ReLU),
    "relu deep": lambda: perceptron(nn.ReLU, 3),
    "leaky": lambda: perceptron(lambda: nn.LeakyReLU(0.1), 2),
    "tanh": lambda: perceptron(nn.Tanh),
    "tanh deep": lambda: perceptron(nn.Tanh, 3),
    "gelu": lambda: perceptron(nn.GELU, 2),
    "sigmoid": lambda: perceptron(nn.Sigmoid, 2),
    "linear": lambda: perceptron(nn.Identity, 1),
    "attention": lambda: block(lambda: Attention(16, 2, "separate")),
    "attention without biases": lambda: block(plain),
    "few inputs": lambda: block(lambda: Attention(16, 2, "separate"), inputs=5),
    "final norm": lambda: block(lambda: Attention(16, 2, "chunk")),
    "no final norm": lambda: block(lambda: Attention(16, 2, "chunk"), final=False),
    "post norm": lambda: block(lambda: Attention(16, 2, "chunk"), after=True, final=False),
}


@cache
def found_in(name: str) -> tuple[nn.Module, Derived, tuple[Freedom, ...], tuple[Stream, ...], dict[str, str]]:
    """Return a network, its trace, and every map that is found for it, each kind looked for alone."""
    torch.manual_seed(0)
    module, inputs = BUILD[name]()
    derived, trial = derive(module, inputs), Trial(module, inputs)
    freedoms = [f for kind in KINDS[:3] for f in find_freedoms(derived, trial, (kind,))]
    streams, refused = find_streams(derived, trial)
    return module, derived, tuple(freedoms), tuple(streams), refused


def groups_with(name: str, kind: str) -> set[str]:
    return {f.group for f in found_in(name)[2] if f.kind == kind}


# closed forms


@pytest.mark.parametrize("shape", [(4, 4), (3, 5, 5), (1, 1)])
def test_polar_is_scipys_procrustes(shape: tuple[int, ...]) -> None:
    """The rotation nearest to a cross-moment Aᵀ·B is scipy's, matrix by matrix, and orthogonal."""
    generator = torch.Generator().manual_seed(len(shape))
    a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    found = polar(a.mT @ b).reshape(-1, *shape[-2:])
    for k, (x, y) in enumerate(zip(a.reshape(found.shape), b.reshape(found.shape), strict=True)):
        expected, _ = orthogonal_procrustes(x.numpy(), y.numpy())
        assert torch.allclose(found[k], torch.from_numpy(expected), atol=1e-10)
        assert torch.allclose(found[k].T @ found[k], torch.eye(len(x), dtype=torch.float64), atol=1e-12)


def test_best_scale_is_scipys_minimum() -> None:
    """‖a_in − s·b_in‖² + ‖a_out − b_out/s‖² is as small as scipy's bounded search from many brackets makes it."""
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(40, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    b, d = b * torch.logspace(-0.7, 0.7, 40).double()[:, None], d * torch.logspace(0.7, -0.7, 40).double()[:, None]
    found = best_scale((a * b).sum(1), (b * b).sum(1), (c * d).sum(1), (d * d).sum(1))
    for k in range(40):

        def cost(log: float, k: int = k) -> float:
            s = torch.tensor(log, dtype=torch.float64).exp()
            return float(((a[k] - s * b[k]) ** 2).sum() + ((c[k] - d[k] / s) ** 2).sum())

        edges = torch.linspace(-2.5, 2.5, 11).tolist()
        searched = [
            minimize_scalar(cost, bounds=ends, method="bounded", options={"xatol": 1e-10})
            for ends in itertools.pairwise(edges)
        ]
        best = min(searched, key=lambda result: result.fun)
        assert cost(float(found[k].log())) <= best.fun + 1e-9
        assert cost(float(found[k].log())) == pytest.approx(best.fun, abs=1e-9)


def test_a_planted_scale_is_found() -> None:
    """a_in = s·b_in and a_out = b_out/s for s from 0.1 to 10: found to 1e-7, the cost's zero."""
    scales = torch.logspace(-1, 1, 21, dtype=torch.float64)
    ones = torch.ones(21, dtype=torch.float64)
    found = best_scale(5 * scales, 5 * ones, 2 / scales, 2 * ones)
    assert torch.allclose(found, scales, rtol=1e-7)


def test_mixing_is_multiplying_rows_and_dividing_columns() -> None:
    """A diagonal D: D·W₁, D·b₁ and W₂·D⁻¹, nothing else; the same by a full matrix, with M⁻ᵀ for what reads."""
    module, derived, freedoms, _, _ = found_in("relu")
    (freedom,) = freedoms
    assert freedom.kind == "rescaling"
    weights = randomised(module, 3)
    group = derived.spec.by_name[freedom.group]
    scale = torch.linspace(0.3, 3, 12, dtype=torch.float64)
    expected = {
        "0.weight": weights["0.weight"] * scale[:, None],
        "0.bias": weights["0.bias"] * scale,
        "2.weight": weights["2.weight"] / scale,
        "2.bias": weights["2.bias"],
    }
    for matrix in (scale[None], torch.diag(scale)[None]):
        mixed = mix_group(derived.spec, group, weights, freedom.forward, freedom.backward, matrix)
        assert all(torch.allclose(mixed[k], expected[k], rtol=1e-12) for k in weights)
    full = torch.randn(1, 12, 12, dtype=torch.float64)
    mixed = mix_group(derived.spec, group, weights, freedom.forward, freedom.backward, full)
    assert torch.allclose(mixed["0.weight"], full[0] @ weights["0.weight"], rtol=1e-12)
    assert torch.allclose(mixed["2.weight"], weights["2.weight"] @ torch.linalg.inv(full[0]), rtol=1e-9)


def test_head_maps_act_head_by_head() -> None:
    """Queries of head h by M_h, keys by M_h⁻ᵀ; values by M_h, the output map by M_h⁻¹ from the right: by hand."""
    module, derived, freedoms, _, _ = found_in("attention without biases")
    weights = randomised(module, 3)
    maps = [f for f in freedoms if f.kind == "head-maps"]
    assert len(maps) == 2
    for freedom in maps:
        group = derived.spec.by_name[freedom.group]
        matrix = random_matrix(group, "head-maps")
        mixed = mix_group(derived.spec, group, weights, freedom.forward, freedom.backward, matrix)
        touched = {slot.tensor.rsplit(".", 2)[-2]: slot.tensor for slot in (*freedom.forward, *freedom.backward)}
        assert set(touched) in ({"q", "k"}, {"v", "out"})
        for head, m in enumerate(matrix):
            rows, back = slice(8 * head, 8 * head + 8), torch.linalg.inv(m)
            if "v" in touched:
                assert torch.allclose(mixed[touched["v"]][rows], m @ weights[touched["v"]][rows], rtol=1e-9)
                assert torch.allclose(
                    mixed[touched["out"]][:, rows], weights[touched["out"]][:, rows] @ back, rtol=1e-9
                )
            else:
                first = next(slot.tensor for slot in freedom.forward)
                second = next(slot.tensor for slot in freedom.backward)
                assert torch.allclose(mixed[first][rows], m @ weights[first][rows], rtol=1e-9)
                assert torch.allclose(mixed[second][rows], back.T @ weights[second][rows], rtol=1e-9)


def test_balance_makes_what_makes_and_what_reads_as_large() -> None:
    """Of one hidden layer: row and column norms agree unit by unit, and products of weights are what they were."""
    module, derived, freedoms, _, _ = found_in("relu")
    weights = randomised(module, 3)
    weights["0.weight"] = weights["0.weight"] * torch.logspace(-2, 2, 12).double()[:, None]
    result = balance(derived.spec, list(freedoms), weights)
    made = (result["0.weight"] ** 2).sum(1) + result["0.bias"] ** 2
    assert torch.allclose(made, (result["2.weight"] ** 2).sum(0), rtol=1e-9)
    before = weights["2.weight"][:, :, None] * weights["0.weight"][None]
    assert torch.allclose(result["2.weight"][:, :, None] * result["0.weight"][None], before, rtol=1e-9)


@pytest.mark.parametrize("name", ["relu deep", "vgg"])
def test_balance_forgets_the_scales_a_network_came_with(name: str) -> None:
    """Two networks that differ by rescaling alone are the same network once balanced."""
    module, derived, freedoms, _, _ = found_in(name)
    weights = other = randomised(module, 3)
    rescaling = [f for f in freedoms if f.kind == "rescaling"]
    for freedom in rescaling:
        group = derived.spec.by_name[freedom.group]
        other = mix_group(
            derived.spec, group, other, freedom.forward, freedom.backward, random_matrix(group, "rescaling")
        )
    one, two = (balance(derived.spec, rescaling, w) for w in (weights, other))
    assert all(torch.allclose(one[k], two[k], rtol=1e-6) for k in one if one[k].is_floating_point())


# which are found

EXPECTED: dict[str, dict[str, set[str]]] = {
    "relu deep": {"rescaling": {"0", "2", "4"}, "sign-flips": set()},
    "leaky": {"rescaling": {"0", "2"}, "sign-flips": set()},
    "tanh deep": {"rescaling": set(), "sign-flips": {"0", "2", "4"}},
    "gelu": {"rescaling": set(), "sign-flips": set()},
    "sigmoid": {"rescaling": set(), "sign-flips": set()},
    "linear": {"rescaling": {"0"}, "sign-flips": {"0"}},
    "mlp": {"rescaling": set(), "sign-flips": {"0"}},
    "glu": {"rescaling": {"0"}, "sign-flips": {"0"}},
    "vgg": {"rescaling": {"0", "3", "8"}, "sign-flips": set()},
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_rescaling_and_flips_exist_as_the_activation_says(name: str) -> None:
    """ReLU is positively homogeneous, tanh odd, the identity both, GELU and sigmoid neither; no heads, no stream."""
    for kind, groups in EXPECTED[name].items():
        assert groups_with(name, kind) == groups
    assert not groups_with(name, "head-maps")
    assert not found_in(name)[3]


def test_a_gated_unit_is_scaled_by_its_linear_half_alone() -> None:
    """SwiGLU: up and down, never the gate, whose SiLU is neither odd nor homogeneous."""
    for name in ("llama", "llama_without_rotary"):
        for freedom in found_in(name)[2]:
            if freedom.group == "gate":
                assert {slot.tensor for slot in freedom.forward} == {"up.weight", "up.bias"}
                assert {slot.tensor for slot in freedom.backward} == {"down.weight"}
        assert {f.kind for f in found_in(name)[2] if f.group == "gate"} == {"rescaling", "sign-flips"}


def test_head_maps_exist_where_nothing_lies_between_the_two_sides() -> None:
    """Queries and keys, values and output map, with biases or without; under rotary positions values alone."""
    for name in ("attention", "attention without biases", "final norm"):
        heads = {group.name for group in found_in(name)[1].spec.groups if group.within}
        assert len(heads) == 2
        assert groups_with(name, "head-maps") == heads
    assert groups_with("llama", "head-maps") == {"v/1"}
    assert groups_with("llama_without_rotary", "head-maps") == {"v/1", "q/2"}
    kept = groups_with("query_key_norm", "head-maps")  # queries and keys are normalised: their maps are not free
    assert kept == {"1.part0/1#2"}


def test_streams_are_found_behind_norms_and_elsewhere_refused_with_a_reason() -> None:
    """Behind LayerNorm, with a final one or not: centred; RMSNorm: not; post-norm or tied: why not is said."""
    for name, readers in (("final norm", 3), ("no final norm", 3), ("encoder_chunk", 5)):
        (stream,) = found_in(name)[3]
        assert stream.centred
        assert stream.group.name == "0"
        assert len(stream.readers) == readers
    for name in ("llama", "llama_without_rotary"):
        (stream,) = found_in(name)[3]
        assert not stream.centred
        assert stream.group.name == "embed"
        assert {reader.gain for reader in stream.readers} == {"norm1.weight", "norm2.weight", None}
    for name in ("post norm", "torch_encoder_post_norm", "language_model_tied"):
        _, _, _, streams, refused = found_in(name)
        assert streams == ()
        assert refused
        assert all(len(why) > 10 and "\n" not in why for why in refused.values())
    assert any("tied" in why for why in found_in("language_model_tied")[4].values())
    assert found_in("gelu")[4] == {}


@pytest.mark.parametrize("name", [*sorted(BUILD.keys() - NETWORKS.keys()), "llama", "llama_without_rotary", "glu"])
def test_what_is_found_keeps_the_function_of_any_weights(name: str) -> None:
    """Every map of every group, with matrices and weights of other seeds than it was verified with, to 1e-9."""
    module, derived, freedoms, streams, _ = found_in(name)
    spec, weights, like = derived.spec, randomised(module, 77), randomised(module, 78)
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(1)
    inputs = BUILD[name]()[1]
    before = outputs_of(module, weights, inputs, torch.float64)[0]

    def check(changed: Weights) -> None:
        after = outputs_of(module, changed, inputs, torch.float64)[0]
        assert float((after - before).abs().max() / (1 + before.abs().max())) <= 1e-9
        assert any(not torch.allclose(changed[k], weights[k], atol=1e-3) for k in weights)

    for freedom in freedoms:
        group = spec.by_name[freedom.group]
        noise = torch.randn(group.copies, group.size, generator=generator, dtype=torch.float64)
        matrix = {"rescaling": noise.exp(), "sign-flips": noise.sign()}.get(freedom.kind)
        if matrix is None:
            matrix = torch.randn(group.copies, group.size, group.size, generator=generator, dtype=torch.float64)
        elif freedom.kind == "sign-flips":
            matrix[:, 0] = -1
        check(mix_group(spec, group, weights, freedom.forward, freedom.backward, matrix))
    for stream in streams:
        check(stream.rotated(spec, weights, like, turn(stream)))


def turn(stream: Stream, seed: int = 5) -> Tensor:
    """Return a random rotation of a stream."""
    size = stream.free_basis().shape[1]
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return stream.embed(torch.linalg.qr(noise).Q)


def test_a_rotated_stream_has_the_gains_of_the_other_network() -> None:
    """rotated(): its norms' gains are those handed in; R is orthogonal and, where LayerNorm centres, keeps all ones."""
    for name in ("final norm", "llama"):
        module, derived, _, (stream,), _ = found_in(name)
        weights, like = randomised(module, 1), randomised(module, 2)
        rotation = turn(stream)
        assert torch.allclose(rotation @ rotation.T, torch.eye(16, dtype=torch.float64), atol=1e-12)
        if stream.centred:
            assert torch.allclose(rotation.sum(0), torch.ones(16, dtype=torch.float64), atol=1e-12)
        rotated = stream.rotated(derived.spec, weights, like, rotation)
        gains = [reader.gain for reader in stream.readers if reader.gain]
        assert gains
        assert all(torch.equal(rotated[gain], like[gain]) for gain in gains)


# planted


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fitted in closed form has to do: learning is cut short."""
    monkeypatch.setattr(api, "train", partial(train, steps=10))


def plant(
    name: str, kind: str, *, orthogonal: bool = True, only: str = "", strength: float = 0.0
) -> tuple[Weights, Weights]:
    """Return θ and a copy of it under random maps of one kind, then a random permutation: one function, both."""
    module, derived, freedoms, streams, _ = found_in(name)
    theta = randomised(module, 1)
    other = dict(theta)
    for freedom in freedoms:
        if freedom.kind != kind or (only and freedom.group != only):
            continue
        group = derived.spec.by_name[freedom.group]
        matrix = random_matrix(group, kind)
        if kind == "head-maps" and orthogonal:
            matrix = torch.linalg.qr(matrix).Q
        if kind == "rescaling" and strength:
            matrix = (strength * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(3))).double().exp()
        other = mix_group(derived.spec, group, other, freedom.forward, freedom.backward, matrix)
    for stream in streams:
        if kind == "stream-rotation":
            other = stream.rotated(derived.spec, other, randomised(module, 2), turn(stream))
    return theta, derived.spec.apply(other, derived.spec.moving(7))


def pair_of(name: str, theta: Weights, other: Weights, calibrated: bool = True) -> lmccheck.ModelPair:
    """Return the pair with random data of θ's own outputs."""
    module, _, _, _, _ = found_in(name)
    torch.manual_seed(2)
    inputs = BUILD[name]()[1][0]
    shape = (512, *inputs.shape[1:])
    x = torch.randn(shape) if inputs.is_floating_point() else torch.randint(0, 11, shape)
    y = outputs_of(module, theta, (x,), torch.float64)[0]
    data = (x[:64], y[:64])
    return lmccheck.load_pair(
        theta, other, model=copy.deepcopy(module), data=data, calibration=(x, y) if calibrated else None, loss="mse",
        device="cpu",
    )  # fmt: skip


def barrier(pair: lmccheck.ModelPair, weights: Weights) -> float:
    """Return the largest mean squared error on the way from θ_A; both ends have none."""
    batch = pair.data.batches[0]
    worst = 0.0
    for t in (0.0, 0.25, 0.5, 0.75, 1.0):
        merged = {k: torch.lerp(v.double(), weights[k].double(), t) for k, v in pair.theta_a.items()}
        output = outputs_of(pair.module, merged, (batch.inputs,), torch.float64)[0]
        worst = max(worst, float(((output - batch.targets) ** 2).mean()))
    return worst


def undone(name: str, kind: str, method: str, calibrated: bool = True, **how: object) -> float:
    """Align a planted pair with maps of its kind, check what always holds, and return how far θ_B is from θ_A."""
    theta, other = plant(name, kind, **how)
    pair = pair_of(name, theta, other, calibrated)
    alignment = lmccheck.align(pair, method, beyond=kind)
    assert alignment.function_deviation <= 1e-9
    assert alignment.beyond == (kind,)
    assert all(value.dtype == torch.float64 for value in alignment.weights.values() if value.is_floating_point())
    plain = lmccheck.align(pair, method)
    assert barrier(pair, plain.weights) > 1e-5  # a permutation alone does not do it
    assert barrier(pair, alignment.weights) <= 1e-6
    return max(float((alignment.weights[k] - theta[k]).abs().max()) for k in theta)


METHOD = pytest.mark.parametrize("method", ["weight-matching", "activation-matching"])
CALIBRATED = pytest.mark.parametrize(
    ("method", "calibrated"),
    [("weight-matching", True), ("activation-matching", True), ("weight-matching", False)],
    ids=["weights", "activations", "weights, no data"],
)


@CALIBRATED
def test_planted_scales_of_one_layer_are_undone(method: str, calibrated: bool, few_steps: None) -> None:
    """θ_B = π(D·θ_A): the barrier vanishes and the weights come back to 1e-6, also for scales from 0.1 to 10."""
    assert undone("relu", "rescaling", method, calibrated) <= 1e-6
    assert undone("relu", "rescaling", method, calibrated, strength=0.8) <= 1e-6


@CALIBRATED
@pytest.mark.parametrize("name", ["relu deep", "leaky"])
def test_planted_scales_of_several_layers_are_undone(name: str, method: str, calibrated: bool, few_steps: None) -> None:
    """Scales of neighbouring layers are fitted together: weights back to 1e-6."""
    assert undone(name, "rescaling", method, calibrated, strength=0.8) <= 1e-6


@CALIBRATED
@pytest.mark.parametrize("name", ["tanh", "tanh deep"])
def test_planted_flips_are_undone(name: str, method: str, calibrated: bool, few_steps: None) -> None:
    """θ_B = π(±θ_A): the weights come back to 1e-6, layer behind layer."""
    assert undone(name, "sign-flips", method, calibrated) <= 1e-6


@CALIBRATED
def test_planted_flips_of_gated_units_are_undone(method: str, calibrated: bool, few_steps: None) -> None:
    """Of a gated unit only the linear half flips: its sign is found from activations, and from weights."""
    assert undone("glu", "sign-flips", method, calibrated) <= 1e-6


def test_flips_inside_heads_do_not_hide_those_outside(few_steps: None) -> None:
    """θ_B flipped in its feed-forward units alone, heads moved: the flips are undone all the same."""
    assert undone("llama", "sign-flips", "weight-matching", only="gate") <= 1e-6


@CALIBRATED
@pytest.mark.parametrize("name", ["attention", "attention without biases"])
def test_planted_head_rotations_are_undone(name: str, method: str, calibrated: bool, few_steps: None) -> None:
    """A random rotation of each head's queries and keys, and of its values: the barrier vanishes."""
    undone(name, "head-maps", method, calibrated)


@METHOD
def test_head_rotations_are_fitted_where_activations_span_little(method: str, few_steps: None) -> None:
    """Five inputs to heads of 8: Procrustes on second moments, means included, is exact on what the data shows."""
    undone("few inputs", "head-maps", method)


def test_any_planted_head_map_is_undone() -> None:
    """An invertible map that is no rotation is learned where it cannot be fitted: the barrier is 1e-6 at most."""
    undone("attention", "head-maps", "weight-matching", orthogonal=False)


@CALIBRATED
def test_planted_rotations_of_the_stream_are_undone(method: str, calibrated: bool, few_steps: None) -> None:
    """Other gains and a random rotation behind LayerNorm: the barrier vanishes."""
    undone("final norm", "stream-rotation", method, calibrated)


@pytest.mark.parametrize("calibrated", [True, False])
def test_planted_rotations_behind_rms_norm_are_undone(calibrated: bool, few_steps: None) -> None:
    """No mean is subtracted, nothing is lost: the weights come back to 1e-6."""
    assert undone("llama", "stream-rotation", "weight-matching", calibrated) <= 1e-6


@pytest.mark.parametrize("name", ["relu deep", "tanh", "llama", "final norm", "vgg"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_between_any_two_networks_the_function_is_kept(name: str, calibrated: bool, few_steps: None) -> None:
    """All kinds at once on unrelated weights: f(θ_B) to 1e-9, by plain forward passes too; the best on calibration."""
    module = found_in(name)[0]
    pair = pair_of(name, randomised(module, 1), randomised(module, 2), calibrated)
    alignment = lmccheck.align(pair, beyond="all")
    inputs = (pair.data.batches[0].inputs,)
    before, after = (outputs_of(module, w, inputs, torch.float64)[0] for w in (pair.theta_b, alignment.weights))
    assert float((after - before).abs().max() / (1 + before.abs().max())) <= 1e-9
    assert alignment.function_deviation <= 1e-9
    assert alignment.beyond == KINDS
    assert alignment.weights.keys() == pair.theta_b.keys()
    facts = alignment.facts["maps"]
    assert {kind for kind in KINDS if facts["groups"][kind]} >= {"relu deep": {"rescaling"}}.get(name, set())
    if "calibration_barriers" in facts:
        barriers = facts["calibration_barriers"]
        assert list(barriers) == ["permutation", "fitted", "learned"]
        assert barriers[facts["kept"]] == min(barriers.values())


# through align()


def small(dtype: torch.dtype = torch.float32, name: str = "relu deep") -> lmccheck.ModelPair:
    """Return a pair of unrelated weights in a dtype."""
    module = found_in(name)[0]
    a, b = ({k: v.to(dtype) for k, v in randomised(module, seed).items()} for seed in (1, 2))
    return pair_of(name, a, b, calibrated=False)


@pytest.mark.parametrize("wrong", ["rotation", ("rescaling", "flips"), "rescalin"])
def test_an_unknown_kind_is_refused_in_one_line(wrong: str | tuple[str, ...]) -> None:
    """LmcError that names it, what there is, and the nearest."""
    with pytest.raises(lmccheck.LmcError, match="align: beyond = ") as raised:
        lmccheck.align(small(), beyond=wrong)
    said = str(raised.value)
    assert "\n" not in said
    assert all(kind in said for kind in KINDS)
    if wrong == "rescalin":
        assert "did you mean 'rescaling'" in said


def test_without_maps_an_alignment_is_the_permutation_alone() -> None:
    """beyond=() is what align() without it gives, bit for bit: θ_B's own numbers in its own dtype, permuted."""
    for dtype in (torch.float32, torch.float16, torch.float64):
        pair = small(dtype)
        plain, empty = lmccheck.align(pair), lmccheck.align(small(dtype), beyond=())
        expected = plain.spec.apply(pair.theta_b, plain.permutation)
        for alignment in (plain, empty):
            assert alignment.beyond == ()
            assert alignment.facts.keys() == plain.facts.keys()
            for name, value in alignment.weights.items():
                assert value.dtype == dtype
                assert torch.equal(value, expected[name])
        assert "maps" not in plain.facts


def test_where_there_is_no_map_the_permutation_is_kept() -> None:
    """A GELU network has none: beyond="all" gives the plain permutation's weights, in float64."""
    pair = small(name="gelu")
    plain, alignment = lmccheck.align(pair), lmccheck.align(pair, beyond="all")
    assert alignment.facts["maps"]["kept"] == "permutation"
    assert all(torch.equal(alignment.permutation[k], plain.permutation[k]) for k in plain.permutation)
    assert all(torch.equal(alignment.weights[k], v.double()) for k, v in plain.weights.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_saved_has_the_dtypes_of_b(dtype: torch.dtype, tmp_path: Path) -> None:
    """Weights are float64 in memory and rounded to θ_B's dtype in the file, to nearest."""
    alignment = lmccheck.align(small(dtype), beyond="rescaling")
    assert {value.dtype for value in alignment.weights.values()} == {torch.float64}
    written = load_file(lmccheck.save_aligned(alignment, tmp_path / "b.safetensors"))
    assert written.keys() == alignment.weights.keys()
    for name, value in written.items():
        assert value.dtype == dtype
        assert torch.equal(value, alignment.weights[name].to(dtype))
    assert (tmp_path / "b.permutation.safetensors").exists()


def test_the_order_and_form_of_kinds_do_not_matter() -> None:
    """A name, a list, any order, twice: one alignment, found once."""
    pair = small()
    first = lmccheck.align(pair, beyond=["sign-flips", "rescaling", "rescaling"])
    assert first.beyond == ("rescaling", "sign-flips")
    assert lmccheck.align(pair, beyond=("rescaling", "sign-flips")) is first
    assert lmccheck.align(pair, beyond="all") is not first


def test_a_given_symmetry_has_no_maps() -> None:
    """Maps are verified on the traced network; without one UnsupportedArchitecture says so in one line."""
    pair = small()
    spec = lmccheck.discover_symmetry(pair.module, pair.example_inputs())
    given = lmccheck.load_pair(pair.theta_a, pair.theta_b, model=pair.module, data=pair.data, loss="mse", symmetry=spec)
    with pytest.raises(lmccheck.UnsupportedArchitecture, match="given, not traced") as raised:
        lmccheck.align(given, beyond="all")
    assert "\n" not in str(raised.value)
