"""Stability of units inside blocks: dropped networks and masks recomputed from activations, by the modules' own code.

The oracle multiplies what units give, in the module's forward, and knows nothing of columns: a unit that is dropped
gives nothing, wherever it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks.quick import slowly
from networks.streams import LEVELS, STREAMS, WHOLE, Attention, Block, Experts, Recurrent, pair_of
from torch import Tensor, nn

import lmccheck
from lmccheck.dropping.masks import toward
from lmccheck.dropping.stability import StabilityWitness
from lmccheck.errors import WitnessError

NAMES = [slowly(name) if name == "gru" else name for name in STREAMS]
Factors = Mapping[str, Tensor]  # per group, what each unit is multiplied by


def in_sequence(module: nn.Module, x: Tensor, factors: Factors) -> Tensor:
    """A Sequential whose activations (in front of the next layer) are multiplied, channel by channel."""
    group = None
    for name, layer in module.named_children():
        if group in factors and isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Flatten):
            x = x * factors[group].reshape(-1, *[1] * (x.ndim - 2))
            group = None
        group = name if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) else group
        x = layer(x)
    return x


def gated(module: nn.Module, x: Tensor, factors: Factors) -> Tensor:
    h = module.first(x)
    for number, block in enumerate(module.blocks):
        assert isinstance(block, Block)
        shared = block is module.blocks[0]
        y = block.norm(h)
        made = F.silu(block.gate(y)) * block.up(y)
        h = h + block.down(made * factors.get(f"blocks.{0 if shared else number}.gate", torch.ones(8)))
    return module.head(h)


def experts(module: Experts, x: Tensor, factors: Factors) -> Tensor:
    h = module.first(x)
    for up, down, factor in zip(module.up, module.down, factors["up"], strict=True):
        h = h + factor * (torch.relu(module.norm(module.first(x)) @ up) @ down)
    return module.head(h)


def attention(module: Attention, words: Tensor, factors: Factors) -> Tensor:
    x = module.embed(words)
    q, k, v = (t.unflatten(-1, (4, 2)) for t in module.qkv(module.norm1(x)).chunk(3, -1))  # (n, length, heads, 2)
    weights = (torch.einsum("nqhd,nkhd->nhqk", q, k) / 2**0.5).softmax(-1)
    given = torch.einsum("nhqk,nkhd->nqhd", weights, v) * factors.get("qkv/0", torch.ones(4))[:, None]
    x = x + module.out(given.flatten(2))
    x = x + module.down(F.gelu(module.up(module.norm2(x))) * factors.get("up", torch.ones(12)))
    return x.mean(1) @ module.embed.weight.T


def recurrent(module: Recurrent, words: Tensor, factors: Factors) -> Tensor:
    """Cell by cell; what other units, the next layer and the head see of a state is multiplied, its memory is not."""
    x = module.embed(words) * factors.get("embed", torch.ones(4))
    state = {name: tensor.detach() for name, tensor in module.rnn.named_parameters()}
    lstm = isinstance(module.rnn, nn.LSTM)
    for layer, group in enumerate(("rnn", "rnn#2")):
        factor = factors.get(group, torch.ones(6))
        h, c, given = torch.zeros(len(x), 6).double(), torch.zeros(len(x), 6).double(), []
        weights = [state[f"{kind}_l{layer}"] for kind in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
        for t in range(x.shape[1]):
            i, s = F.linear(x[:, t], *weights[:2]), F.linear(h * factor, *weights[2:])
            if lstm:
                gates = (i + s).chunk(4, 1)
                c = gates[1].sigmoid() * c + gates[0].sigmoid() * gates[2].tanh()
                h = gates[3].sigmoid() * c.tanh()
            else:
                (ir, iz, new), (sr, sz, old) = i.chunk(3, 1), s.chunk(3, 1)
                keep = (iz + sz).sigmoid()
                h = (1 - keep) * (new + (ir + sr).sigmoid() * old).tanh() + keep * h
            given.append(h * factor)
        x = torch.stack(given, 1)
    return module.head(x[:, -1])


ORACLES: dict[str, Callable[..., Tensor]] = {
    "layer norm": in_sequence, "group norm": in_sequence, "transposed": in_sequence, "gated": gated,
    "shared block": gated, "experts": experts, "attention": attention, "lstm": recurrent, "gru": recurrent,
}  # fmt: skip


def loss(name: str, pair: lmccheck.ModelPair, state: Mapping[str, Tensor], factors: Factors) -> float:
    """Return the loss on the evaluation data by the oracle."""
    module = STREAMS[name][0]().double()
    module.load_state_dict(state)
    (batch,) = pair.data.batches
    with torch.no_grad():
        outputs = ORACLES[name](module, batch.inputs, {g: f.double() for g, f in factors.items()})
    return float(F.cross_entropy(outputs, batch.targets))


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_those_of_units_that_give_nothing(name: str) -> None:
    """Every mask's loss, at every t, is that of the module's own code with what its units give multiplied."""
    pair = pair_of(name)
    result = lmccheck.noise_stability(pair, masks=2, epsilon=100.0, profile="dev")
    assert sorted(result.details["whole"]) == WHOLE[name]
    for k in range(2):
        multipliers = result.witness.multipliers(k)
        assert sorted(multipliers) == sorted(group for level in LEVELS[name] for group in level)
        for end, theta in (("a", pair.theta_a), ("b", pair.theta_b)):
            for t, found in zip(result.witness.t, result.witness.losses[end][k], strict=True):
                expected = loss(name, pair, theta, {g: toward(m, t) for g, m in multipliers.items()})
                assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_dropped_networks_are_recomputed_and_verified(name: str) -> None:
    """θ_i reads the kept units alone: with the others at zero it computes the same; its witness is accepted."""
    pair = pair_of(name)
    result = lmccheck.dropout_stability(pair, epsilon=100.0, profile="dev")
    details, witness = result.details, result.witness
    assert details["levels"] == LEVELS[name]
    for end, levels in witness.found.items():
        for i, dropped in levels.items():
            kept = {g: torch.zeros(pair.network.droppable("a test").sizes[g]).index_fill(0, u, 1.0)
                    for g, u in dropped.keep.items()}  # fmt: skip
            assert set(kept) == {group for level in LEVELS[name][i:] for group in level}
            stored = pair.network.droppable("a test").stored(dropped.weights)
            assert details["losses"][end][i] == pytest.approx(loss(name, pair, stored, kept), abs=1e-9)
    again = lmccheck.verify_dropout(pair, witness)
    for end, costs in again.details["epsilon"].items():
        assert costs == pytest.approx(details["epsilon"][end], abs=1e-12)
    assert again.details["known"] == details["known"]


@pytest.mark.parametrize("name", ["layer norm", "attention", slowly("lstm"), "experts"])
def test_a_witness_that_changes_anything_else_is_refused(name: str) -> None:
    """A number of the stream, of a norm or of incoming weights: θ_i may change what reads dropped units, no more."""
    pair = pair_of(name)
    witness = lmccheck.dropout_stability(pair, epsilon=100.0, profile="dev").witness
    last = len(LEVELS[name]) - 1
    dropped = witness.found["a"][last]
    frozen = {"layer norm": "1.weight", "attention": "embed.weight", "lstm": "embed.weight", "experts": "up"}[name]
    wrong = {**dropped.weights, frozen: dropped.weights[frozen] + 1e-3}
    found = {**witness.found, "a": {**witness.found["a"], last: replace(dropped, weights=wrong)}}
    with pytest.raises(WitnessError, match=frozen):
        lmccheck.verify_dropout(pair, StabilityWitness(found, witness.theta, witness.keep))


def test_a_pass_says_what_was_left_whole() -> None:
    """In its row, with the reason and how much of the network can be dropped in a note, and that no path follows."""
    result = lmccheck.dropout_stability(pair_of("layer norm"), epsilon=100.0, profile="dev")
    assert result.details["known"] == "inner: '0' left whole, 61% of the numbers droppable"
    (note,) = (note for note in result.details["notes"] if note.startswith("left whole"))
    held = 6 * 8 + 8 + 8 * 3  # incoming weights and biases of 8 units, and their outgoing weights
    assert f"hold {held / (5 * 6 + 6 + 12 + 6 * 8 + 8 + 8 * 3 + 3):.0%} of the numbers" in note
    assert "layer_norm" in note
    assert "no path between networks follows" in note
    with pytest.raises(lmccheck.UnsupportedArchitecture, match="'0' cannot be dropped one by one"):
        lmccheck.dropout_path(pair_of("layer norm"))


def test_sequences_of_several_lengths_are_masked_alike() -> None:
    """Nodes of longer sequences have other names: layers are found by their weights. Refits want one length."""
    torch.manual_seed(0)
    build = lambda: Recurrent(nn.LSTM).double()  # noqa: E731  # a builder
    states = [{k: v.clone() for k, v in build().state_dict().items()} for _ in range(2)]
    batches = [(torch.randint(0, 16, (12, length)), torch.randint(0, 3, (12,))) for length in (2, 4, 3)]
    pair = lmccheck.load_pair(*states, model=build(), data=batches, calibration=batches, device="cpu")
    result = lmccheck.noise_stability(pair, masks=1, epsilon=100.0)
    factors = result.witness.multipliers(0)
    module = build()
    module.load_state_dict(pair.theta_b)
    with torch.no_grad():
        expected = [F.cross_entropy(recurrent(module, x, factors), y) for x, y in batches]
    assert result.witness.losses["b"][0][-1] == pytest.approx(float(torch.stack(expected).mean()), abs=1e-9)
    with pytest.raises(lmccheck.UnsupportedArchitecture, match=r"computes something else .*mend: give batches of one"):
        lmccheck.dropout_stability(pair, profile="dev")


def test_a_loss_of_several_outputs_gets_all_of_them() -> None:
    """Two heads in a tuple: masks are measured with the loss that takes both."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.one, self.two = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.relu(self.first(x))
            return self.one(h), self.two(h)

    def both(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0], targets, reduction="none") + outputs[1].square().squeeze(1)

    torch.manual_seed(0)
    states = [{k: v.double() for k, v in Heads().state_dict().items()} for _ in range(2)]
    data = torch.randn(20, 5).double(), torch.randint(0, 3, (20,))
    pair = lmccheck.load_pair(*states, model=Heads().double(), data=data, loss=both, device="cpu")
    result = lmccheck.noise_stability(pair, masks=1, epsilon=100.0)
    factor = result.witness.multipliers(0)["first"]
    a = states[0]
    h = torch.relu(data[0] @ a["first.weight"].T + a["first.bias"]) * factor
    outputs = h @ a["one.weight"].T + a["one.bias"], h @ a["two.weight"].T + a["two.bias"]
    assert result.witness.losses["a"][0][-1] == pytest.approx(float(both(outputs, data[1]).mean()), abs=1e-12)


def test_a_share_of_what_is_left_whole_is_refused() -> None:
    """With the reason why its units cannot be dropped."""
    with pytest.raises(lmccheck.LmcError, match=r"keep: 'embed' is left whole: .*norm.*mend: leave it out"):
        lmccheck.dropout_stability(pair_of("attention"), keep={"embed": 0.5})
