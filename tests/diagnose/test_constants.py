"""The constants of section 4 (Kuditipudi et al. 2019) against dense Jacobians written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Written
from networks.noise import cnn, mlp, pair_of
from torch import Tensor, nn

import lmccheck
from lmccheck.diagnose.chain import Chain, Stage, chain_of
from lmccheck.diagnose.constants import T_SMOOTH
from lmccheck.diagnose.cushions import cushions
from lmccheck.diagnose.jacobian import Jacobian, dense, spectral_norms
from lmccheck.evaluate.graph import GraphRunner
from lmccheck.properties.noise_stability import noise_stability

# Constants of section 4


def chain_at(
    build: Callable[[], nn.Module], shape: tuple[int, ...], scale: float = 1.5
) -> tuple[lmccheck.ModelPair, Chain]:
    """Return a network's chain at its first endpoint, on its data."""
    pair = pair_of(build, shape, 12, scale)
    structure = pair.network.structure("a test")
    stages = chain_of(structure)
    assert not isinstance(stages, str)
    graph = GraphRunner(pair.module, pair.torch_device, torch.float64)
    return pair, Chain(stages, graph, pair.theta_a, pair.data.batches[0].inputs, "a test")


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

    def run(s: Written, x: Tensor) -> Tensor:
        x = s.stem(x)
        return s.head(x + s.down(F.relu(s.up(x))))

    def stream() -> nn.Module:
        widths = {"stem": (5, 6), "up": (6, 7), "down": (7, 6), "head": (6, 3)}
        return Written(run, **{name: nn.Linear(*sizes) for name, sizes in widths.items()}).double()

    result = noise_stability(pair_of(stream, (5,)), masks=5, diagnostics=True)
    assert "chain" in result.details["diagnostics"]["why"]
    assert set(result.details["gaussian"]["a"]) == {"stem", "up"}
