"""Noise stability: the loss with units dropped at random, against plain loops, closed forms and dense Jacobians."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import lmccheck
from lmccheck.diagnose.chain import Chain, Stage, chain_of
from lmccheck.diagnose.constants import T_SMOOTH, readers
from lmccheck.diagnose.cushions import cushions
from lmccheck.diagnose.jacobian import Jacobian, dense, spectral_norms
from lmccheck.dropping.masks import dropout_mask, toward
from lmccheck.errors import LmcError, UnsupportedArchitecture
from lmccheck.evaluate.graph import GraphRunner
from lmccheck.properties.low_loss_path import structure_for
from lmccheck.properties.noise_stability import noise_stability


def mlp(bias: bool = True) -> nn.Module:
    """5-8-7-6-3 ReLU."""
    widths = [5, 8, 7, 6, 3]
    layers: list[nn.Module] = []
    for read, made in pairwise(widths):
        layers += [nn.Linear(read, made, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def cnn() -> nn.Module:
    """Convolutions with padding and stride, BatchNorm, pooling, flatten, two linear layers."""
    layers = [nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(20, 6), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(6, 3)).double()


def state(build: Callable[[], nn.Module], seed: int, scale: float = 1.5) -> dict[str, Tensor]:
    """Return seeded weights, statistics of BatchNorm perturbed."""
    torch.manual_seed(seed)
    found = {}
    for name, tensor in build().state_dict().items():
        statistic = "running" in name
        moved = tensor + 0.3 * torch.rand_like(tensor) if statistic else tensor * scale
        found[name] = moved if tensor.is_floating_point() else tensor
    return found


def pair_of(
    build: Callable[[], nn.Module], shape: tuple[int, ...], samples: int = 40, scale: float = 1.5
) -> lmccheck.ModelPair:
    """Return a pair of two seeds of a network, on random data."""
    torch.manual_seed(7)
    data = torch.randn(samples, *shape).double(), torch.randint(0, 3, (samples,))
    return lmccheck.load_pair(state(build, 0, scale), state(build, 1, scale), model=build, data=data)


# What is measured


def test_nothing_dropped_costs_nothing() -> None:
    """p = 0: every mask is the network itself, every q_k is exactly 0, and it passes at ε = 0."""
    result = noise_stability(pair_of(mlp, (5,)), p=0.0, epsilon=0.0)
    assert result.details["a"]["q"] == result.details["b"]["q"] == [0.0] * 20
    assert (result.verdict, result.value, result.interval) == ("pass", 0.0, (0.0, 0.0))


@pytest.mark.parametrize(
    ("build", "shape", "outgoing"),
    [
        (mlp, (5,), {"0": ("2.weight", 1), "2": ("4.weight", 1), "4": ("6.weight", 1)}),
        (cnn, (2, 8, 8), {"0": ("4.weight", 1), "4": ("7.weight", 4), "7": ("9.weight", 1)}),
    ],
)
def test_q_equals_a_plain_loop(
    build: Callable[[], nn.Module], shape: tuple[int, ...], outgoing: Mapping[str, tuple[str, int]]
) -> None:
    """Every loss equals the module's own with columns multiplied by 1 + t·(m − 1), and q and quantile follow."""
    pair = pair_of(build, shape)
    result = noise_stability(pair, p=0.4, masks=9)
    module = build().eval()
    inputs, targets = pair.data.batches[0].inputs, pair.data.batches[0].targets

    def loss(weights: Mapping[str, Tensor]) -> float:
        return float(F.cross_entropy(torch.func.functional_call(module, dict(weights), (inputs,)), targets))

    values = []
    for end, theta in (("a", pair.theta_a), ("b", pair.theta_b)):
        own, costs = loss(theta), []
        for k in range(9):
            mask = result.witness.multipliers(k)
            assert set(mask) == set(outgoing)
            row = []
            for t in (0.25, 0.5, 0.75, 1.0):
                weights = dict(theta)
                for group, (name, block) in outgoing.items():
                    factors = 1 + t * (mask[group] - 1)
                    line = torch.tensor([factors[u] for u in range(len(factors)) for _ in range(block)])
                    weights[name] = weights[name] * line.reshape(1, -1, *[1] * (weights[name].ndim - 2))
                row.append(loss(weights))
            assert result.witness.losses[end][k] == pytest.approx(row, abs=1e-10)
            costs.append(max(row) - own)
        assert result.details[end]["q"] == pytest.approx(costs, abs=1e-10)
        values.append(sorted(costs)[2])  # the third of nine: at least a quarter of them are no larger
    assert result.value == pytest.approx(max(values), abs=1e-10)
    assert result.evaluations == 2 + 2 * 9 * 4


def test_a_single_unit_has_two_outcomes() -> None:
    """y = a·w·x with targets y: the loss at t is (a·w)²·E[x²]·t²·(m−1)², and m is 0 or 1/(1−p)."""
    build = lambda: nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()  # noqa: E731  # a builder
    x = torch.linspace(-1, 1, 11).double()[:, None]
    weights = {"0.weight": torch.tensor([[2.0]]).double(), "1.weight": torch.tensor([[1.5]]).double()}
    pair = lmccheck.load_pair(weights, weights, model=build, data=(x, 3.0 * x), loss="mse")
    result = noise_stability(pair, p=0.2, epsilon=1.0, masks=400)
    size = 9 * float((x**2).mean())
    dropped, kept = size, size * 0.25**2
    q = result.details["a"]["q"]
    assert sum(abs(v - dropped) < 1e-9 or abs(v - kept) < 1e-9 for v in q) == 400
    assert result.value == pytest.approx(kept)
    assert kept < 1.0 < dropped
    low, high = result.details["a"]["interval"]
    assert low < 0.8 < high  # the true share of masks that keep the unit
    assert result.passed


# Verdicts


def fragile() -> nn.Module:
    """2-24-2 ReLU."""
    return nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 2)).double()


def test_a_fragile_network_fails() -> None:
    """Large outgoing weights that cancel in pairs of equal units: dropping one of a pair ruins the output."""
    torch.manual_seed(0)
    rows = torch.randn(12, 2).double()
    out = 300 * torch.randn(2, 12).double()
    weights = {"0.weight": torch.cat([rows, rows]), "0.bias": torch.ones(24).double()}
    weights |= {"2.weight": torch.cat([out, -out], 1), "2.bias": torch.zeros(2).double()}
    data = torch.randn(50, 2).double(), torch.randint(0, 2, (50,))
    pair = lmccheck.load_pair(weights, weights, model=fragile, data=data)
    result = noise_stability(pair, p=0.5)
    assert result.verdict == "fail"
    assert result.details["loss_a"] == pytest.approx(math.log(2))
    assert result.value > 10
    lines = result.details["failure"]
    assert len(lines) == 5
    assert "not noise stable" in lines[0]
    assert "limit 0.05 nats" in lines[1]
    assert "of 20 masks hold, 95 % interval" in lines[1]
    assert lines[2].startswith("where: endpoint a, mask ")
    assert lines[4].startswith("endpoint losses: a 0.6931, b 0.6931 nats")


def test_in_between_it_is_not_settled_and_says_what_would_settle_it() -> None:
    """A limit between the masks' costs: neither a quarter of all masks nor fewer are shown to hold."""
    pair = pair_of(mlp, (5,))
    costs = noise_stability(pair).details
    limit = max(0.0, sorted(costs["a"]["q"])[5], sorted(costs["b"]["q"])[5])
    result = noise_stability(pair, epsilon=limit)
    assert result.verdict == "inconclusive"
    assert "of 20 masks hold, 95 % interval [" in result.details["failure"][0]
    assert "need ≥ 0.25: " in result.details["failure"][0]
    assert not result.passed


def test_profile_dev_can_pass_and_cannot_fail() -> None:
    """Of 8 masks none may hold: the interval still reaches over a quarter. Nothing is explained unasked."""
    pair = pair_of(mlp, (5,))
    assert noise_stability(pair, epsilon=1e6, profile="dev").verdict == "pass"
    none = noise_stability(pair, epsilon=0.0, p=0.9, profile="dev")
    assert none.verdict in ("inconclusive", "pass")
    assert len(none.details["a"]["q"]) == 8
    assert none.details["gaussian"] is none.details["diagnostics"] is None


def test_seeds_are_repeatable() -> None:
    """One seed gives the same masks and numbers again, another one others."""
    pair = pair_of(mlp, (5,))
    first, again, other = (noise_stability(pair, seed=s).details["a"]["q"] for s in (3, 3, 4))
    assert first == again
    assert first != other


def test_the_witness_is_saved_with_its_masks(tmp_path: Path) -> None:
    """The file holds every q_k, the worst and best masks as multipliers, and the facts that remake all of them."""
    result = noise_stability(pair_of(cnn, (2, 8, 8)), masks=5, seed=11)
    json.dumps(result.details)
    witness = result.witness
    path = witness.save(tmp_path / "noise.safetensors")
    with safe_open(str(path), framework="pt") as file:
        facts = json.loads(file.metadata()["lmccheck"])
        assert file.get_tensor("q.b").tolist() == result.details["b"]["q"]
        assert file.get_tensor("losses.a").shape == (5, 4)
        for group in facts["sizes"]:
            stored = file.get_tensor(f"worst.b.{group}")
            assert torch.equal(stored, witness.multipliers(witness.worst["b"])[group])
    remade = dropout_mask(facts["sizes"], facts["p"], facts["mask_seeds"][2])
    assert all(torch.equal(remade[g], m) for g, m in witness.multipliers(2).items())
    assert witness.q["a"][witness.worst["a"]] == max(result.details["a"]["q"])
    with pytest.raises(LmcError, match="mask 5; expected 0 to 4"):
        witness.multipliers(5)


def test_masks_are_those_of_algorithm_1() -> None:
    """Multipliers are 0 or 1/(1−p), of mean one, and lie on a line between one and themselves."""
    mask = dropout_mask({"x": 20_000, "y": 3}, 0.2, 5)
    assert set(mask["x"].tolist()) == {0.0, 1.25}
    assert float((mask["x"] == 0).double().mean()) == pytest.approx(0.2, abs=0.01)
    assert torch.equal(toward(mask["x"], 0.0), torch.ones(20_000).double())
    assert torch.equal(toward(mask["x"], 1.0), mask["x"])


# Refusals


def test_units_under_a_layer_norm_are_refused() -> None:
    """A norm across units sees the dropped ones: one clear line names the group."""
    build = lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).double()  # noqa: E731  # a builder
    with pytest.raises(UnsupportedArchitecture, match="noise_stability: units of group '0' cannot be dropped"):
        noise_stability(pair_of(build, (5,)))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"epsilon": -1}, "epsilon = -1; expected a number"),
        ({"p": 1.0}, "p = 1.0"),
        ({"quantile": 0.0}, "quantile = 0.0"),
        ({"masks": 0}, "masks = 0"),
        ({"noise": "a lot"}, "noise = 'a lot'"),
        ({"seed": 0.5}, "seed = 0.5"),
        ({"profile": "nightly"}, "profile = 'nightly'"),
    ],
)
def test_settings_are_checked(setting: dict[str, object], said: str) -> None:
    """Each wrong setting is named with its value."""
    with pytest.raises(LmcError, match=said):
        noise_stability(pair_of(mlp, (5,)), **setting)  # type: ignore[arg-type]  # wrong on purpose


# Gaussian noise


def test_an_orthogonal_head_neither_attenuates_nor_amplifies() -> None:
    """Noise ‖η‖ = 0.1‖x‖ before an orthogonal matrix: ‖Δ‖/‖f‖ is 0.1 for every sample, so ψ is one."""
    build = lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6, bias=False)).double()  # noqa: E731  # a builder
    weights = state(build, 0)
    weights["2.weight"] = torch.linalg.qr(torch.randn(6, 6).double()).Q
    data = torch.randn(20, 3).double(), torch.randint(0, 6, (20,))
    pair = lmccheck.load_pair(weights, weights, model=build, data=data)
    found = noise_stability(pair, masks=1, noise=0.1, diagnostics=True).details["gaussian"]["a"]["0"]
    assert found["output_attenuation"] == pytest.approx(1.0, abs=1e-12)
    assert found["output_error"] == pytest.approx(0.01, abs=1e-14)
    assert found["errors"] == {}


def test_noise_reaches_later_groups_only() -> None:
    """In a chain each group's noise is seen in the groups after it; with none, nothing changes."""
    pair = pair_of(cnn, (2, 8, 8))
    found = noise_stability(pair, masks=1, diagnostics=True).details["gaussian"]["b"]
    assert {group: sorted(facts["errors"]) for group, facts in found.items()} == {"0": ["4", "7"], "4": ["7"], "7": []}
    still = noise_stability(pair, masks=1, noise=0.0, diagnostics=True).details["gaussian"]["b"]
    assert all(facts["output_error"] == 0.0 == facts["loss_change"] for facts in still.values())


def test_readers_are_where_units_are_read() -> None:
    """A flattened channel is read at all its places by the linear layer, at one by the convolution."""
    structure = structure_for(pair_of(cnn, (2, 8, 8)), "a test")
    found = readers(structure)
    assert found["4"]["7.weight"].tolist() == list(range(20))
    assert found["0"]["4.weight"].tolist() == list(range(4))


# Constants of section 4


def chain_at(
    build: Callable[[], nn.Module], shape: tuple[int, ...], scale: float = 1.5
) -> tuple[lmccheck.ModelPair, Chain]:
    """Return a network's chain at its first endpoint, on its data."""
    pair = pair_of(build, shape, 12, scale)
    structure = structure_for(pair, "a test")
    stages = chain_of(structure)
    assert not isinstance(stages, str)
    graph = GraphRunner(pair.module, pair.torch_device, torch.float64)
    return pair, Chain.at(stages, graph, pair.theta_a, pair.data.batches[0].inputs, "a test")


def weights_of(pair: lmccheck.ModelPair) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias (zero without one) of every linear layer of the MLP."""
    theta = pair.theta_a
    return [(theta[f"{k}.weight"], theta.get(f"{k}.bias", theta[f"{k}.weight"].new_zeros(()))) for k in (0, 2, 4, 6)]


def later(layers: list[tuple[Tensor, Tensor]], i: int, j: int) -> Callable[[Tensor], Tensor]:
    """Return M^{i,j}, xⁱ -> xʲ of one sample, written out."""

    def function(z: Tensor) -> Tensor:
        for weight, bias in layers[i:j]:
            z = weight @ F.relu(z) + bias
        return z

    return function


def augmented(pair: lmccheck.ModelPair) -> list[tuple[Tensor, Tensor]]:
    """Return Ā_i = [[A_i, b_i], [0, 1]], the last without its last row, as layers without biases."""
    found = []
    for k, (weight, bias) in enumerate(weights_of(pair)):
        whole = torch.cat([weight, bias.expand(len(weight))[:, None]], 1)
        if k < 3:
            last = torch.zeros(1, whole.shape[1]).double()
            last[0, -1] = 1.0
            whole = torch.cat([whole, last])
        found.append((whole, torch.zeros(()).double()))
    return found


@pytest.mark.parametrize("bias", [False, True])
def test_constants_equal_dense_jacobians_of_the_network_written_out(bias: bool) -> None:
    """μ_i, μ_{i,j}, μ_{i→}, c, ρ and ε equal those of plain matrices (augmented where there are biases)."""
    pair, chain = chain_at(lambda: mlp(bias), (5,))
    layers = augmented(pair) if bias else weights_of(pair)
    inputs = pair.data.batches[0].inputs
    if bias:
        inputs = torch.cat([inputs, torch.ones(len(inputs), 1).double()], 1)
    made = [inputs @ layers[0][0].T]
    for weight, _ in layers[1:]:
        made.append(F.relu(made[-1]) @ weight.T)
    torch.manual_seed(5)
    mask = {f"{k}.weight": torch.tensor([0.0, 1.25, 1.25, 1.25]).double()[torch.randint(0, 4, (n,))]
            for k, n in ((2, 8), (4, 7), (6, 6))}  # fmt: skip
    found = cushions(chain, masks=[mask], t=T_SMOOTH, loss="cross_entropy", seed=0, steps=3000)

    read = [inputs, *(F.relu(x) for x in made[:-1])]
    layer = [
        float((m.norm(dim=1) / (w.norm() * r.norm(dim=1))).min())
        for m, r, (w, _) in zip(made, read, layers, strict=True)
    ]
    assert found["layer_cushion"] == pytest.approx(layer, rel=1e-10)
    jacobians, inter = {}, {}
    for i in range(1, 5):
        inter[i, i] = 1.0
        for j in range(i + 1, 5):
            whole = torch.stack([torch.func.jacrev(later(layers, i, j))(x) for x in made[i - 1]])
            jacobians[i, j] = whole
            norms = torch.linalg.matrix_norm(whole, 2)
            inter[i, j] = float((made[j - 1].norm(dim=1) / (norms * made[i - 1].norm(dim=1))).min())
            assert torch.allclose(torch.einsum("nij,nj->ni", whole, made[i - 1]), made[j - 1], rtol=0, atol=1e-12)
    assert found["interlayer_cushion"] == pytest.approx({f"{i},{j}": v for (i, j), v in inter.items()}, rel=1e-4)
    minimal = [min(inter[i, j] for j in range(i, 5)) for i in range(1, 5)]
    assert found["minimal_interlayer_cushion"] == pytest.approx(minimal, rel=1e-4)
    contraction = max(float((made[k].norm(dim=1) / read[k + 1].norm(dim=1)).max()) for k in range(3))
    assert found["contraction"] == pytest.approx(contraction, rel=1e-12)

    smooth = math.inf
    for t in T_SMOOTH:
        state = made[0]
        for i in (2, 3):
            weight = layers[i - 1][0]
            line = mask[f"{2 * (i - 1)}.weight"]
            line = torch.cat([line, torch.ones(1).double()]) if bias else line  # the constant is never dropped
            whole = F.relu(state) @ weight.T
            state = (F.relu(state) * (t + (1 - t) * line)) @ weight.T
            for z in (whole, state):
                x = made[i - 1]
                if torch.equal(z, x):
                    continue
                for j in range(i + 1, 5):
                    gone = torch.stack([later(layers, i, j)(row) for row in z])
                    rest = (gone - torch.einsum("nij,nj->ni", jacobians[i, j], z)).norm(dim=1)
                    ratio = (z - x).norm(dim=1) * made[j - 1].norm(dim=1) / (x.norm(dim=1) * rest)
                    # differences at rounding are no nonlinearity
                    smooth = min(smooth, float(ratio[rest > 1e-12].min()) if bool((rest > 1e-12).any()) else smooth)
    assert found["smoothness"] == pytest.approx(smooth, rel=1e-6)
    least = min(layer[i] * minimal[i] for i in (1, 2, 3))
    formal = math.sqrt(2) * contraction * 8 * float(made[-1].norm(dim=1).max()) / (math.sqrt(6) * least)
    assert found["formal_epsilon"] == pytest.approx(formal, rel=1e-4)
    assert ("augmented" in found["form"]) == bias


@pytest.mark.parametrize(("build", "shape"), [(mlp, (5,)), (lambda: mlp(False), (5,)), (cnn, (2, 8, 8))])
def test_sanity_of_the_constants(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """T16: M(x) = Jx to 1e-12 for ReLU networks; every cushion is in (0, 1], μ_{i,i} = 1, and c is at least 1."""
    _, chain = chain_at(build, shape)
    found = cushions(chain, masks=[], t=T_SMOOTH, loss="mse", seed=0)
    assert found["homogeneity_error"] <= 1e-12
    inter = found["interlayer_cushion"]
    for value in (*found["layer_cushion"], *inter.values(), *found["minimal_interlayer_cushion"]):
        assert 0 < value <= 1 + 1e-12
    assert all(inter[f"{i},{i}"] == 1.0 for i in range(1, chain.depth + 1))
    assert found["contraction"] >= 1
    assert found["formal_epsilon"] is None  # the squared error is not Lipschitz


def test_other_activations_are_not_homogeneous() -> None:
    """tanh: M(x) = Jx does not hold, and the report says by how much."""
    build = lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()  # noqa: E731  # a builder
    _, chain = chain_at(build, (5,))
    assert cushions(chain, masks=[], t=(), loss="mse", seed=0)["homogeneity_error"] > 1e-3


def test_a_convolution_counts_as_its_matrix() -> None:
    """Frobenius norms of padded and strided convolutions, BatchNorm folded in, equal those of the dense operator."""
    pair, chain = chain_at(cnn, (2, 8, 8))
    theta, module = pair.theta_a, cnn().eval()
    module.load_state_dict(theta)

    def operator(first: int, last: int, read: Tensor) -> tuple[Tensor, Tensor]:
        """Return the matrix and the shift of modules ``first`` to ``last``, affine in what they read."""
        part = module[first : last + 1]
        flat = lambda z: part(z.reshape(1, *read.shape[1:])).flatten()  # noqa: E731  # for jacrev
        zero = torch.zeros(read[0].numel()).double()
        return torch.func.jacrev(flat)(zero).detach(), flat(zero).detach()

    for i, (first, last) in enumerate(((0, 1), (4, 4), (7, 7), (9, 9)), 1):
        stage: Stage = chain.stages[i - 1]
        matrix, shift = operator(first, last, chain.read(i))
        plain = stage.frobenius(chain.weights, chain.read(i), chain.made(i), False, i == 4)
        whole = stage.frobenius(chain.weights, chain.read(i), chain.made(i), True, i == 4)
        assert plain == pytest.approx(float(matrix.norm()), rel=1e-12)
        expected = math.sqrt(float(matrix.square().sum() + shift.square().sum()) + (i < 4))
        assert whole == pytest.approx(expected, rel=1e-12)
        assert torch.allclose(
            chain.read(i).flatten(1) @ matrix.T + shift, chain.made(i).flatten(1).detach(), atol=1e-12
        )


def test_products_with_the_jacobian_equal_the_dense_one() -> None:
    """Jv and Jᵀu of a convolution, pool and BatchNorm, by jacrev of the modules; power iteration finds its norm."""
    pair, chain = chain_at(cnn, (2, 8, 8))
    module = cnn().eval()
    module.load_state_dict(pair.theta_a)
    jacobian = Jacobian(chain.between(1, 2), chain.made(1))
    function = lambda z: module[2:5](z[None])[0]  # noqa: E731  # for jacrev
    whole = torch.stack([torch.func.jacrev(function)(x) for x in chain.made(1)]).flatten(1, 3).flatten(2)
    v, u = torch.randn_like(chain.made(1)), torch.randn_like(chain.made(2))
    assert torch.allclose(jacobian.times(v).flatten(1), torch.einsum("nij,nj->ni", whole, v.flatten(1)), atol=1e-12)
    back = jacobian.transposed(u).flatten(1)
    assert torch.allclose(back, torch.einsum("nij,ni->nj", whole, u.flatten(1)), atol=1e-12)
    assert torch.allclose(dense(jacobian, False, False), whole, atol=1e-12)


def test_power_iteration_finds_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per sample, with and without the constant unit, to what it says it still moves by."""
    _, chain = chain_at(mlp, (5,))
    for pair in ((1, 2), (1, 3), (2, 4)):
        jacobian = Jacobian(chain.between(*pair), chain.made(pair[0]))
        for form in (False, True):
            last = pair[1] == 4
            exact = torch.linalg.matrix_norm(dense(jacobian, form, last), 2)
            monkeypatch.setattr("lmccheck.diagnose.jacobian.DENSE", 0)
            norms, change = spectral_norms(jacobian, form, last, 5000, 0, 1e-13)
            monkeypatch.undo()
            assert torch.allclose(norms, exact, rtol=1e-5)
            assert change < 1e-6


def test_no_chain_no_constants() -> None:
    """A residual network is measured all the same, and the report says why it has no cushions."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.down(F.relu(self.up(x))))

    result = noise_stability(pair_of(lambda: Stream().double(), (5,)), masks=5, diagnostics=True)
    assert "chain" in result.details["diagnostics"]["why"]
    assert set(result.details["gaussian"]["a"]) == {"stem", "up"}
