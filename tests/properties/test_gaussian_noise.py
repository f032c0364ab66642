"""Noise stability by Gaussian noise: against closed forms, and against hooks on modules with the same noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks.noise import cnn, mlp, pair_of
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import LmcError, UnsupportedArchitecture
from lmccheck.evaluate.noise_witness import GaussianWitness
from lmccheck.properties.noise_stability import noise_stability

DIM, HEADS, TOKENS, CLASSES = 8, 2, 6, 5


class Block(nn.Module):
    """A block of a transformer with a norm before each branch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.up, self.down = nn.Linear(DIM, 12), nn.Linear(12, DIM)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (part.view(n, length, HEADS, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, DIM))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Tokens and positions, two blocks, a norm, a tied head on the last token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(CLASSES, DIM), nn.Parameter(torch.randn(TOKENS, DIM))
        self.blocks, self.norm = nn.ModuleList([Block(), Block()]), nn.LayerNorm(DIM)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x)[:, -1], self.embed.weight)


def transformer() -> nn.Module:
    """A tiny transformer in float64."""
    return Transformer().double()


def drawn(build: Callable[[], nn.Module], seed: int) -> dict[str, Tensor]:
    """Weights of a network by its own initialisation, biases and norms' scales moved."""
    torch.manual_seed(seed)
    return {n: t + 0.1 * torch.randn_like(t) for n, t in build().state_dict().items()}


def text_pair() -> lmccheck.ModelPair:
    """Two transformers on random tokens."""
    torch.manual_seed(3)
    data = torch.randint(0, CLASSES, (14, TOKENS)), torch.randint(0, CLASSES, (14,))
    return lmccheck.load_pair(drawn(transformer, 0), drawn(transformer, 1), model=transformer, data=data)


def noisy_value(value: Tensor, witness: GaussianWitness, draw: int, layer: str, *, whole: bool = False) -> Tensor:
    """x + size·‖x‖·z/‖z‖ of the first call of a layer, (n, …): over its last dimension, or over all of a sample."""
    n = len(value)
    z = witness.normals(draw, layer, 0, n, value[0].numel()).reshape(value.shape)
    if whole:
        lengths = [t.flatten(1).norm(dim=1).reshape(n, *[1] * (value.ndim - 1)) for t in (value, z)]
    else:
        lengths = [t.norm(dim=-1, keepdim=True) for t in (value, z)]
    return value + witness.size * lengths[0] / lengths[1] * z


@contextmanager
def hooked(module: nn.Module, change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Change what linear layers, convolutions and norms are given."""
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)):
            handles.append(part.register_forward_pre_hook(lambda _, args, name=name: (change(name, args[0]),)))
    yield
    for handle in handles:
        handle.remove()


def own_forward(model: Any, tokens: Tensor, noise: Callable[[str, Tensor], Tensor]) -> Tensor:
    """The transformer's forward written out, the stream itself changed where a norm reads it."""
    x = noise("embed", model.embed(tokens)) + model.position[: tokens.shape[1]]
    for k, block in enumerate(model.blocks):
        n, length, _ = x.shape
        x = noise(f"blocks.{k}.norm1", x)
        q, key, v = (
            part.view(n, length, HEADS, -1).transpose(1, 2)
            for part in block.qkv(noise(f"blocks.{k}.qkv", block.norm1(x))).chunk(3, dim=-1)
        )
        scores = torch.softmax(q @ key.transpose(-1, -2) / math.sqrt(DIM // HEADS), -1)
        mixed = (scores @ v).transpose(1, 2).reshape(n, length, DIM)
        x = noise(f"blocks.{k}.norm2", x + block.out(noise(f"blocks.{k}.out", mixed)))
        inner = F.gelu(block.up(noise(f"blocks.{k}.up", block.norm2(x))))
        x = x + block.down(noise(f"blocks.{k}.down", inner))
    x = noise("norm", x)
    return noise("embed.weight", model.norm(x)[:, -1]) @ model.embed.weight.T


# Against independent forward passes


def test_a_transformers_losses_are_those_of_a_forward_written_out() -> None:
    """With the witness's noise in the stream, in norms' outputs, heads and inner units: every loss to 1e-9."""
    pair = text_pair()
    result = noise_stability(pair, noise="gaussian", size=0.2, masks=5, seed=4)
    tokens, targets = pair.data.batches[0].inputs, pair.data.batches[0].targets
    model = transformer().eval()
    for end, theta in (("a", pair.theta_a), ("b", pair.theta_b)):
        model.load_state_dict(theta)
        with torch.no_grad():
            own = float(F.cross_entropy(own_forward(model, tokens, lambda _, x: x), targets))
            for k in range(5):
                seen: list[str] = []

                def noise(layer: str, x: Tensor, k: int = k, seen: list[str] = seen) -> Tensor:
                    seen.append(layer)
                    return noisy_value(x, result.witness, k, layer)

                loss = float(F.cross_entropy(own_forward(model, tokens, noise), targets))
                assert result.details[end]["losses"][k] == pytest.approx(loss, abs=1e-9)
                assert result.details[end]["q"][k] == pytest.approx(loss - own, abs=1e-9)
        assert list(result.details["gaussian"][end]) == seen == list(result.witness.layers)


def test_a_convolutional_networks_losses_are_those_of_hooks() -> None:
    """Noise over whole maps before convolutions and BatchNorm, over vectors before linear layers; each layer alone."""
    pair = pair_of(cnn, (2, 8, 8))
    result = noise_stability(pair, noise="gaussian", size=0.3, masks=3)
    inputs, targets = pair.data.batches[0].inputs, pair.data.batches[0].targets
    model = cnn().eval()
    model.load_state_dict(pair.theta_b)
    layers = list(result.details["gaussian"]["b"])
    assert layers == ["0", "1", "4", "7", "9"]
    with torch.no_grad():
        clean = model(inputs)

    def outputs(draw: int, which: list[str]) -> Tensor:
        def change(name: str, x: Tensor) -> Tensor:
            return noisy_value(x, result.witness, draw, name, whole=x.ndim > 2) if name in which else x

        with torch.no_grad(), hooked(model, change):
            return model(inputs)

    for k in range(3):
        assert result.details["b"]["losses"][k] == pytest.approx(
            float(F.cross_entropy(outputs(k, layers), targets)), abs=1e-9
        )
    for layer in layers:
        facts, moved = result.details["gaussian"]["b"][layer], outputs(0, [layer])
        error = ((moved - clean).square().sum(1) / clean.square().sum(1)).mean()
        change = F.cross_entropy(moved, targets) - F.cross_entropy(clean, targets)
        assert facts["output_error"] == pytest.approx(float(error), abs=1e-10)
        assert facts["output_attenuation"] == pytest.approx(float(error) / 0.09, abs=1e-9)
        assert facts["loss_change"] == pytest.approx(float(change), abs=1e-10)


# Closed forms


def linear(weight: Tensor) -> Callable[[], nn.Module]:
    """One linear layer without a bias, double."""
    return lambda: nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()


def attenuation(weight: Tensor, x: Tensor, **settings: Any) -> dict[str, Any]:
    """What is found of one linear layer in float64."""
    theta = {"weight": weight}
    pair = lmccheck.load_pair(theta, theta, model=linear(weight), data=(x, x @ weight.T), loss="mse")
    return noise_stability(pair, noise="gaussian", **settings).details


def test_an_orthogonal_layer_passes_noise_as_it_is() -> None:
    """ψ = 1 exactly, and the error is size² for every draw and sample; one whose output is zero does not count."""
    torch.manual_seed(0)
    x = torch.randn(30, 6).double()
    x[3] = 0
    found = attenuation(torch.linalg.qr(torch.randn(6, 6).double()).Q, x, size=0.3)
    facts = (
        found["gaussian"]["a"]["network"] if "network" in found["gaussian"]["a"] else found["gaussian"]["a"]["weight"]
    )
    assert facts["output_attenuation"] == pytest.approx(1, abs=1e-12)
    assert found["a"]["output_error"] == pytest.approx([0.09] * 20, abs=1e-13)


def test_a_linear_layers_loss_has_its_closed_form() -> None:
    """η uniform on a sphere of radius r = size·‖x‖ in d dimensions: E‖Wη‖² = r²‖W‖²_F/d, which mse averages."""
    torch.manual_seed(1)
    weight, x = torch.randn(4, 7).double(), torch.randn(400, 7).double()
    found = attenuation(weight, x, size=0.5, masks=40, epsilon=1e3)
    expected = 0.25 * float(x.square().sum(1).mean()) * float(weight.square().sum()) / 7 / 4
    losses = torch.tensor(found["a"]["losses"])
    assert float(losses.mean()) == pytest.approx(expected, rel=5 * float(losses.std()) / expected / 40**0.5)
    assert float(losses.std()) < 0.1 * expected


def test_an_inactive_unit_lets_no_noise_through() -> None:
    """Hidden units that ReLU holds at zero: noise before them is gone, and where they are read there is none."""
    build = lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()  # noqa: E731  # a builder
    theta = {"0.weight": torch.eye(4, 3).double(), "0.bias": torch.full((4,), -100.0).double()}
    theta |= {"2.weight": torch.ones(2, 4).double(), "2.bias": torch.tensor([1.0, -1.0]).double()}
    data = torch.randn(9, 3).double(), torch.randint(0, 2, (9,))
    pair = lmccheck.load_pair(theta, theta, model=build, data=data)
    result = noise_stability(pair, noise="gaussian", epsilon=0.0)
    assert result.details["gaussian"]["a"]["0"]["output_attenuation"] == 0.0
    assert result.details["gaussian"]["a"]["2"]["silent"] == 1.0
    assert (result.verdict, result.value) == ("pass", 0.0)
    assert any(
        "a: no noise in 2: what is read there is zero on all samples" in note for note in result.details["notes"]
    )


@pytest.mark.parametrize("build", [mlp, transformer])
def test_little_noise_changes_little(build: Callable[[], nn.Module]) -> None:
    """‖η‖ = 1e-6·‖x‖, the least that may be asked for, moves some output, none by more than a multiple of that."""
    pair = pair_of(mlp, (5,)) if build is mlp else text_pair()
    result = noise_stability(pair, noise="gaussian", size=1e-6)
    errors = [each for side in "ab" for each in result.details[side]["output_error"]]
    assert max(errors) > 0
    assert max(errors) < 1e-8
    assert "noise of size 1e-06" in result.details["notes"][0]
    assert result.details["known"] == "sampled: 20 draws of noise 1e-06, 95 %"


# What it does not depend on


def test_batches_change_nothing() -> None:
    """The same samples in batches of 14, of 1, 5 and 8, with noise known by sample."""
    pair = text_pair()
    batch = pair.data.batches[0]
    parts = [(batch.inputs[s], batch.targets[s]) for s in (slice(0, 1), slice(1, 6), slice(6, 14))]
    split = lmccheck.load_pair(pair.theta_a, pair.theta_b, model=transformer, data=parts)
    one, other = (noise_stability(p, noise="gaussian", masks=4).details["a"]["losses"] for p in (pair, split))
    assert one == pytest.approx(other, abs=1e-12)


def test_layers_written_in_another_way_get_the_same_noise() -> None:
    """Two networks of one function, by modules and by functions on weights: as many layers, equally long noise."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2 = nn.Parameter(torch.randn(5, 8).double()), nn.Parameter(torch.randn(8, 3).double())

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bi,ij->bj", torch.relu(x @ self.w1), self.w2)

    torch.manual_seed(0)
    theta = Functional().state_dict()
    data = torch.randn(20, 5).double(), torch.randint(0, 3, (20,))
    result = noise_stability(lmccheck.load_pair(theta, theta, model=Functional, data=data), noise="gaussian", size=0.5)
    assert dict(result.witness.layers) == {"w1": 1, "w2": 1}
    x, targets = data
    inner = torch.relu(noisy_value(x, _with(result, 0.5), 0, "w1") @ theta["w1"])
    loss = F.cross_entropy(noisy_value(inner, _with(result, 0.5), 0, "w2") @ theta["w2"], targets)
    assert result.details["a"]["losses"][0] == pytest.approx(float(loss), abs=1e-12)


def _with(result: lmccheck.Result, size: float) -> GaussianWitness:
    witness: GaussianWitness = result.witness
    assert witness.size == size
    return witness


# Verdicts, settings, witnesses


def test_a_network_that_noise_ruins_fails_and_names_the_layer() -> None:
    """Two large weights that cancel: the layer that amplifies noise is named first."""
    build = lambda: nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()  # noqa: E731
    theta = {"0.weight": torch.tensor([[1.0, 0.0], [1.0, 1e-6]]).double()}
    theta["1.weight"] = torch.tensor([[1e3, -1e3], [0.0, 1.0]]).double()
    torch.manual_seed(0)
    x = torch.randn(50, 2).double()
    pair = lmccheck.load_pair(theta, theta, model=build, data=(x, torch.zeros(50, 2).double()), loss="mse")
    result = noise_stability(pair, noise="gaussian")
    lines = result.details["failure"]
    assert result.verdict == "fail"
    assert result.details["worst_layer"] == "1"
    assert "endpoint a loses too much with noise of 0.1 of what each layer reads" in lines[0]
    assert lines[-1].startswith("noise in one layer alone costs most in: 1 +")
    assert result.details["known"] == "sampled: 20 draws of noise 0.1, 95 %"


def test_a_limit_between_the_draws_is_not_settled() -> None:
    """Half of 20 draws hold: the interval reaches over one half."""
    pair = pair_of(mlp, (5,))
    q = noise_stability(pair, noise="gaussian").details["a"]["q"]
    limit = max(sorted(noise_stability(pair, noise="gaussian").details[end]["q"])[9] for end in "ab")
    result = noise_stability(pair, noise="gaussian", epsilon=max(0.0, limit))
    assert len(q) == 20
    assert result.verdict == "inconclusive"
    assert "draws would settle it" in result.details["failure"][0] or "hardly settle" in result.details["failure"][0]


def test_too_much_noise_fails() -> None:
    """Noise of a million times what is read is measured like any other; what is no number costs more than any."""
    pair = pair_of(cnn, (2, 8, 8))
    assert noise_stability(pair, noise="gaussian", size=1e6).verdict == "fail"
    assert noise_stability(pair, noise="gaussian", size=1e30, masks=8).verdict == "fail"


def test_a_witness_is_saved(tmp_path: Any) -> None:
    """The file holds q, losses, and what draws are made of."""
    from safetensors import safe_open

    result = noise_stability(text_pair(), noise="gaussian", masks=4, seed=9)
    with safe_open(result.witness.save(tmp_path / "noise.safetensors"), "pt") as file:
        assert file.get_tensor("q.a").tolist() == result.details["a"]["q"]
        assert '"seed": 9' in file.metadata()["lmccheck"]
        assert '"blocks.1.down": 1' in file.metadata()["lmccheck"]
    with pytest.raises(LmcError, match=r"draw 4; expected 0 to 3"):
        result.witness.normals(4, "norm", 0, 1, 1)
    with pytest.raises(LmcError, match="layer 'nothing'; expected one of embed"):
        result.witness.normals(0, "nothing", 0, 1, 1)


def test_a_number_as_noise_is_the_size_of_the_diagnostics_noise() -> None:
    """As scripts say it that are older than ``size``: masks decide, and noise of that size explains."""
    pair = pair_of(mlp, (5,))
    older = noise_stability(pair, masks=2, noise=0.3, diagnostics=True).details
    newer = noise_stability(pair, masks=2, size=0.3, diagnostics=True).details
    assert older["gaussian"]["size"] == 0.3
    assert older["gaussian"] == newer["gaussian"]
    assert older["a"]["q"] == newer["a"]["q"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"noise": "gauss"}, r"noise = 'gauss' \(did you mean 'gaussian'\?\); expected \"masks\""),
        ({"noise": "gaussian", "p": 0.2}, 'p = 0.2 is of masks, and noise = "gaussian"; mend: leave p out'),
        ({"size": 0, "noise": "gaussian"}, "size = 0; expected a number from 1e-6 to 1e30"),
        ({"size": math.nan}, "size = nan; expected a number from 1e-6"),
        ({"size": 0.2}, 'size = 0.2 is of Gaussian noise; mend: say noise = "gaussian", or leave size out'),
    ],
)
def test_settings_of_noise_are_checked(setting: Mapping[str, Any], said: str) -> None:
    """Each wrong setting is named with its value."""
    with pytest.raises(LmcError, match=said):
        noise_stability(pair_of(mlp, (5,)), **setting)


def test_a_network_without_layers_is_refused() -> None:
    """A scale on every input multiplies nothing that it could mix: there is no layer to speak of."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x

    theta = {"scale": torch.tensor([1.0, 2.0, 3.0]).double()}
    data = torch.randn(9, 3).double(), torch.randint(0, 3, (9,))
    pair = lmccheck.load_pair(theta, theta, model=Scale, data=data)
    with pytest.raises(UnsupportedArchitecture, match="no layer of Scale was seen to read anything"):
        noise_stability(pair, noise="gaussian")


class WrittenOut(nn.Module):
    """x·W₁ᵀ as a product by numbers that is summed, then a linear layer; a gain for each unit."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(6, 4))
        self.gain = nn.Parameter(torch.randn(6))
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu((x[:, None] * self.first).sum(-1)) * self.gain)


def test_weights_that_no_layer_is_seen_by_are_named() -> None:
    """Such weights get no noise, which a note says; gains are no weights of a layer, nor is one where all are seen."""
    torch.manual_seed(0)
    data = torch.randn(20, 4), torch.arange(20) % 3
    notes = [
        noise_stability(lmccheck.load_model(net().state_dict(), model=net, data=data), noise="gaussian").details[
            "notes"
        ]
        for net in (WrittenOut, lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)))
    ]
    assert [note for note in notes[0] if note.startswith("no noise in what 'first' multiply number by number")]
    assert "1 layer reads" in notes[0][0]
    assert not [note for note in notes[1] if "number by number" in note]
