"""Networks with experts, one with them in another order: every method returns them to where they were, bit for bit."""

from __future__ import annotations

import pytest
import torch
from networks.experts import Dispatched, Lists, Soft, Tensors, TopTwo, exchanged
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment.experts import lifted

ORDER = [2, 3, 1, 0]


def data(samples: int = 64) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 5), torch.randint(0, 3, (samples,))


def pair_of(
    kind: type[nn.Module], a: dict[str, Tensor], b: dict[str, Tensor], *, seen: bool = False
) -> lmccheck.ModelPair:
    torch.manual_seed(1)
    calibration = data() if seen else None
    return lmccheck.load_pair(
        a, b, model=kind, data=data(), calibration=calibration, loss="cross_entropy", device="cpu"
    )


def weights_of(kind: type[nn.Module]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: tensor.clone() for name, tensor in kind().state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (Soft, "weight-matching"),
        (TopTwo, "activation-matching"),
        *(pytest.param(TopTwo, method, marks=pytest.mark.slow) for method in ("weight-matching", "transport")),
    ],
)
def test_planted_experts_come_back(kind: type[nn.Module], method: str) -> None:
    """Soft routing, and the two best by one-hot masks; experts by hand in another order, their units reversed."""
    a = weights_of(kind)
    pair = pair_of(kind, a, exchanged(a, ORDER), seen=method == "activation-matching")
    found = lmccheck.align(pair, method)
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in a.items())
    assert found.facts["experts"] == {"experts": torch.tensor(ORDER).argsort().tolist()}
    again = found.spec.apply(pair.theta_b, found.permutation)
    assert all(torch.equal(again[name], tensor) for name, tensor in a.items())


@pytest.mark.parametrize("kind", [pytest.param(Dispatched, marks=pytest.mark.slow), Lists, Tensors])
def test_other_mixtures_come_back(kind: type[nn.Module]) -> None:
    """Dispatched by rows, in several lists, stacked in tensors: a random element of the group is undone."""
    a = weights_of(kind)
    spec = lmccheck.discover_symmetry(kind(), (torch.randn(2, 5),))
    pair = pair_of(kind, a, spec.apply(a, spec.moving(3)))
    found = lmccheck.align(pair)
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in a.items())


@pytest.mark.slow
def test_sets_are_put_in_order_too() -> None:
    """Three networks, each with its experts elsewhere, in the frame of the first."""
    a = weights_of(TopTwo)
    models = [a, exchanged(a, ORDER), exchanged(a, [1, 0, 3, 2])]
    found = lmccheck.align_many(models, model=TopTwo, data=data(), loss="cross_entropy", device="cpu")
    assert all(torch.equal(weights[name], tensor) for weights in found.weights for name, tensor in a.items())
    assert found.cycle_error() == 0


def test_lifting_keeps_what_a_permutation_does() -> None:
    """A permutation of the network as it was traced does the same as one in which experts could have moved."""
    a = weights_of(TopTwo)
    network = pair_of(TopTwo, a, a).network
    plain, whole = network.spec, network.whole_spec
    permutation = plain.random(1)
    one, other = plain.apply(a, permutation), whole.apply(a, lifted(whole, plain, permutation))
    assert all(torch.equal(one[name], other[name]) for name in a)
    assert whole.groups != plain.groups


def test_experts_too_large_to_match_stay_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four experts of eight units are (4·8)² = 1,024 pairs: one fewer allowed, and they stay; the row says so."""
    a = weights_of(Soft)
    monkeypatch.setattr("lmccheck.symmetry.experts.MOST_PAIRS", 1024)
    assert "experts" in lmccheck.align(pair_of(Soft, a, exchanged(a, ORDER))).facts
    monkeypatch.setattr("lmccheck.symmetry.experts.MOST_PAIRS", 1023)
    found = lmccheck.linear_connectivity(pair_of(Soft, a, exchanged(a, ORDER)), limit=100.0)
    assert "experts" not in found.witness.facts
    said = [note for note in found.notes if note.endswith("they stay in place")]
    assert len(said) == 1
    assert said[0].startswith("the order of 4 experts in 'experts' is a symmetry, but to match all their units")
