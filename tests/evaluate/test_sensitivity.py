"""What outputs feel of units: against finite differences, planted permutations, and where nothing can be felt."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS, Written
from networks.quick import each
from networks.registry import derived, discovered, seeded
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lmccheck
from lmccheck.alignment.contract import Problem
from lmccheck.alignment.matching.activations import ActivationSimilarity, observe_sensitivities
from lmccheck.alignment.methods._joint import SHARES
from lmccheck.alignment.methods.best import solve
from lmccheck.evaluate import sensitivity
from lmccheck.evaluate.graph import GraphRunner, Watching
from lmccheck.evaluate.sensitivity import NotDifferentiable, sensitivities
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of


@pytest.mark.parametrize("name", each(sorted(NETWORKS)))
def test_sensitivities_are_finite_differences(name: str) -> None:
    """⟨found, δ⟩ = d⟨v, outputs⟩/dε for a value moved by ε·δ, every layer by itself, in float64."""
    module, inputs = seeded(name)
    made = derived(name).made
    watched = {site.node for sites in made.values() for site in sites}
    graph = GraphRunner(module, torch.device("cpu"), torch.float64)
    weights = graph.weights(randomised(module, 1))
    found = sensitivities(graph, weights, inputs, watched, 5, "here")
    traced, given, nodes = graph.prepared(weights, inputs, watched, "here")
    assert watched or not made

    def felt(node: str, change: Tensor) -> float:
        def look(_: str, value: Tensor) -> Tensor:
            return value + change

        with torch.no_grad():
            outputs = pytree.tree_leaves(Watching(traced.module, {node: nodes[node]}, look).run(*given.values()))
        directions = sensitivity._directions(outputs, 5)
        return sum(float((a * b).sum()) for a, b in zip(outputs, directions, strict=True))

    step, rough = (1e-3, 2e-3) if name.startswith("llama") else (1e-6, 1e-4)  # which goes through float32 on its way
    for node in watched:
        generator = torch.Generator().manual_seed(0)
        gradient = found.get(node)
        shape = gradient if gradient is not None else next(n for n in traced.graph.nodes if n.name == node).meta["val"]
        delta = torch.randn(shape.shape, generator=generator, dtype=torch.float64)
        slope = (felt(node, step * delta) - felt(node, -step * delta)) / (2 * step)
        expected = float((gradient * delta).sum()) if gradient is not None else 0.0
        assert slope == pytest.approx(expected, rel=rough, abs=1e-6)


def samples_for(inputs: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """Return random inputs of these shapes, six samples; integers below the least that any network takes."""
    generator = torch.Generator().manual_seed(0)

    def like(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return torch.randint(0, 11, (6, *x.shape[1:]), generator=generator)
        return torch.randn((6, *x.shape[1:]), generator=generator, dtype=torch.float64)

    several = tuple(map(like, inputs))
    return several if len(several) > 1 else several[0]


@pytest.mark.parametrize("name", each(sorted(NETWORKS)))
def test_units_that_belong_together_are_felt_alike(name: str) -> None:
    """θ_A = π·θ_B: every unit of B and the one of A that is its copy have a cosine of 1, or 0 where nothing is felt."""
    module, inputs, spec = discovered(name)
    theta = randomised(module, 1)
    order = spec.moving(3)
    x = samples_for(inputs)
    data = x, torch.zeros(6)  # targets are not looked at
    pair = lmccheck.load_pair(
        spec.apply(theta, order), theta, model=module, data=data, calibration=data, loss="mse", device="cpu"
    )
    problem = Problem(pair)
    tables = {site: seen.similarity("cosine") for site, seen in observe_sensitivities(problem, "here").items()}
    assert bool(tables) == bool(problem.traced("here").made)
    for site, table in tables.items():
        for group in (spec.by_name[name] for name in site.groups if not spec.by_name[name].within):
            alone = ActivationSimilarity(spec, {group.name: (site,)}, tables)
            matched = alone.units(group, order)[0].diagonal()
            if any(group.name in other.within for other in spec.groups if other.name in site.groups):
                continue  # what is inside its units is not placed by ``order`` alone
            assert ((matched - matched.round()).abs() <= 1e-6).all()
            assert float(matched.max()) >= 1 - 1e-6 or not table.any()


def zeta(x: Tensor, first: nn.Module, second: nn.Module, head: nn.Module) -> Tensor:
    """Hurwitz's zeta function behind the second layer, which torch cannot differentiate."""
    hidden = second(torch.relu(first(x)))
    return head(torch.special.zeta(2 + hidden**2, torch.ones_like(hidden)))


def test_a_network_without_derivatives_is_matched_by_the_other_looks() -> None:
    """It is said, and weight matching and the joint match go on without; a planted permutation is found."""
    module = Written(zeta, nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3))
    x = torch.randn(64, 6)
    theta = randomised(module, 1)
    spec = lmccheck.discover_symmetry(module, (x[:2],))
    assert 8 in [group.size for group in spec.groups]
    y = outputs_of(module, theta, (x,), torch.float64)[0]
    hidden = spec.apply(theta, spec.moving(2))
    pair = lmccheck.load_pair(theta, hidden, model=module, data=(x, y), calibration=(x, y), loss="mse", device="cpu")
    problem = Problem(pair)
    with pytest.raises(NotDifferentiable, match=r"sensitivities of a: differentiating the traced model raised .*zeta"):
        observe_sensitivities(problem, "here")
    found = solve(problem, "together")
    assert len(found.facts["matches"]) == len(SHARES)
    assert "zeta" in found.facts["no_sensitivities"]
    assert "zeta" in solve(problem, "weight-matching").facts["no_sensitivities"]
    back = spec.apply(hidden, found.permutation)
    assert all(torch.equal(back[key], theta[key]) for key in theta)
