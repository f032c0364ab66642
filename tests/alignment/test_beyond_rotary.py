"""Planes of rotary attention: found in every form it comes in, undone where maps were planted, refused elsewhere."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from networks.planted import problem_of
from networks.quick import slowly
from networks.rotary import FORMS, LONE, NORMED, Form, RotaryNet, multiplied
from scipy.optimize import minimize
from torch import Tensor

import lmccheck
from lmccheck.alignment.beyond import learn
from lmccheck.alignment.beyond.fit import plane_factors
from lmccheck.alignment.beyond.freedoms import Freedom, Trial, find_freedoms
from lmccheck.alignment.beyond.heads import order_heads
from lmccheck.alignment.beyond.maps import Maps
from lmccheck.alignment.beyond.rotary import Planes
from lmccheck.alignment.matching.activations import ActivationSimilarity, observe
from lmccheck.modules.random_weights import randomised
from lmccheck.modules.runner import outputs_of
from lmccheck.symmetry.compose import compose
from lmccheck.symmetry.discover import Traced, derive

ALL = {**FORMS, **NORMED, **LONE}
FULL = {**FORMS, **LONE}


@cache
def traced(form: Form) -> tuple[RotaryNet, Traced, Trial, tuple[Freedom, ...]]:
    """Return a network of a form, its trace, what tries maps on it, and the planes that are found."""
    torch.manual_seed(0)
    module, inputs = RotaryNet(form), (torch.randint(0, 11, (2, 6)),)
    derived, trial = derive(module, inputs), Trial(module, inputs)
    return module, derived, trial, tuple(find_freedoms(derived, trial, ("rotary-planes",)))


def factors_of(form: Form, seed: int = 3) -> Tensor:
    """Return random complex numbers, one per key head and plane; of length 1 behind a norm, signs behind gains."""
    generator = torch.Generator().manual_seed(seed)
    size, angle = torch.rand(2, form.keys, form.turned // 2, generator=generator, dtype=torch.float64)
    if form.norm == "gains":
        return torch.where(angle < 0.5, -1.0, 1.0).to(torch.complex128)
    return torch.polar(torch.ones_like(size) if form.norm else 0.5 + size, 6.3 * angle)


def pair_of(form: Form, theta: dict[str, Tensor], other: dict[str, Tensor], calibrated: bool) -> lmccheck.ModelPair:
    """Return the pair with random tokens, whose targets are θ's own outputs."""
    module, x = traced(form)[0], torch.randint(0, 11, (256, 6), generator=torch.Generator().manual_seed(1))
    y = outputs_of(module, theta, (x,), torch.float64)[0]
    data, calibration = (x[:32], y[:32]), (x, y) if calibrated else None
    return lmccheck.load_pair(
        theta, other, model=copy.deepcopy(module), data=data, calibration=calibration, loss="mse", device="cpu"
    )


@pytest.mark.parametrize("name", [name if name == "partial, interleaved" else slowly(name) for name in FULL])
def test_the_planes_are_those_that_positions_turn(name: str) -> None:
    """One freedom, of all key heads, scaled and turned; M of it is what complex numbers by hand make of the rows."""
    form = FULL[name]
    module, derived, _, (found,) = traced(form)
    assert found.planes is not None
    assert found.planes.scaled
    assert found.units.copies == form.keys
    assert found.planes.count * 2 == form.turned
    assert len(found.sites) == 2
    weights, factors = randomised(module, 7), factors_of(form)
    mixed = found.mix(derived.spec, weights, factors)
    by_hand = [multiplied(form, weights, c) for c in (factors, 1 / factors.conj())]  # keys or queries are first
    assert any(all(torch.allclose(mixed[k], other[k], atol=1e-12) for k in weights) for other in by_hand)


@pytest.mark.parametrize("calibrated", [True, slowly(False)])
@pytest.mark.parametrize("name", [name if name == "qwen2" else slowly(name) for name in ALL])
def test_planted_factors_are_undone(name: str, calibrated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """θ_B is θ_A with every plane multiplied, then permuted: weights come back to 1e-6, by data and without."""
    monkeypatch.setattr(learn, "STEPS", 0)
    form = ALL[name]
    module, derived, _, _ = traced(form)
    theta, spec = randomised(module, 1), derived.spec
    other = spec.apply(multiplied(form, theta, factors_of(form)), spec.moving(5))
    alignment = lmccheck.align(pair_of(form, theta, other, calibrated), beyond=("head-maps", "rotary-planes"))
    assert alignment.function_deviation <= 1e-9
    assert max(float((alignment.weights[k] - theta[k]).abs().max()) for k in theta) <= 1e-6


def test_a_norm_of_queries_and_keys_leaves_turns_or_half_turns() -> None:
    """RMSNorm commutes with a turn and undoes a scale; with gains of its own, one per coordinate, with signs alone."""
    (found,) = traced(NORMED["norm"])[3]
    assert found.planes is not None
    assert not found.planes.scaled
    assert found.planes.turned
    assert torch.allclose(found.drawn().abs(), torch.ones(2, 2, dtype=torch.float64))
    for pairs in ("half", "interleaved"):
        form = replace(NORMED["norm with gains"], pairs=pairs)
        (found,) = traced(form)[3]
        assert found.planes is not None
        assert not found.planes.turned
        assert [list(found.planes.first), list(found.planes.second)] == list(form.planes)
        assert set(found.drawn().flatten().tolist()) == {-1, 1}


@pytest.mark.parametrize("name", [slowly("llama"), "partial, interleaved"])
def test_wrong_planes_are_refused(name: str) -> None:
    """Coordinates paired as the other form has them change the outputs; so does one side alone."""
    form = FORMS[name]
    _, derived, trial, (found,) = traced(form)
    spec = derived.spec
    other = replace(form, pairs="half" if form.pairs == "interleaved" else "interleaved")
    first, second = map(tuple, other.planes)
    wrong = [replace(found, planes=Planes(first, second)), replace(found, backward=())]
    values = found.drawn()
    assert trial.deviation([found.mix(spec, w, values) for w in trial.draws]) <= 1e-9
    assert all(trial.deviation([one.mix(spec, w, values) for w in trial.draws]) > 1e-3 for one in wrong)


@pytest.mark.parametrize("name", ["qwen2", slowly("norm")])
def test_learned_planes_keep_the_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps between unrelated weights move every plane, outputs stay to 1e-9; behind a norm nothing is scaled."""
    monkeypatch.setattr(learn, "STEPS", 5)
    monkeypatch.setattr(learn, "EVERY", 1)
    form = ALL[name]
    module, _, _, (freedom,) = traced(form)
    pair = pair_of(form, *(randomised(module, seed) for seed in (1, 2)), calibrated=True)
    problem = problem_of(pair)
    maps = Maps(pair.network.spec, [freedom], [])
    learn._Descent(maps).step(maps.apply(pair.theta_b, pair.theta_a)[form.places("k", 0)[0] + ".weight"].sum(), 1.0)
    moved = maps.matrices()[0][0].detach()
    size = learn.RATE if freedom.planes.scaled else 0.0
    assert float(moved.abs().log().abs().max()) <= size + 1e-12
    assert bool((moved[0] != 1).all())
    learn.learn_maps(problem, pair.network.spec.identity(), maps)
    mapped = {k: v.detach() for k, v in maps.apply(pair.theta_b, pair.theta_a).items()}
    inputs = (pair.data.batches[0].inputs,)
    before, after = (outputs_of(pair.module, w, inputs, torch.float64)[0] for w in (pair.theta_b, mapped))
    assert float((after - before).abs().max() / (1 + before.abs().max())) <= 1e-9


@pytest.mark.parametrize("name", ["qwen2", slowly("no groups"), slowly("one key")])
def test_heads_come_back_though_nothing_else_is_known(name: str) -> None:
    """θ_B is θ_A multiplied, its heads and the queries that share a key in another order: that is undone at once."""
    form = FULL[name]
    module, derived, trial, (freedom,) = traced(form)
    theta, spec = randomised(module, 1), derived.spec
    queries = {name for site in freedom.sites for name in site.groups[:-1]}
    moved = {k: p.flip(-1) if k in queries else p for k, p in spec.identity().items()}
    assert sum(spec.by_name[k].shape[-1] for k in queries) == {"qwen2": 5, "no groups": 3, "one key": 4}[name]
    pair = pair_of(form, theta, spec.apply(multiplied(form, theta, factors_of(form)), moved), calibrated=True)
    moments = observe(problem_of(pair), "a test", None, freedom.sites)
    alike = ActivationSimilarity.of(spec, derived.sites, moments, "cross-moment")
    maps = [*find_freedoms(derived, trial, ("head-maps",)), freedom]
    found = compose(spec, moved, order_heads(spec, maps, alike, moments, spec.identity()))
    assert all(torch.equal(found[k], spec.identity()[k]) for k in queries)


def test_factors_are_scipys_minimum() -> None:
    """‖k_A − c·k_B‖²/‖k_A‖² + ‖q_A − q_B/c̄‖²/‖q_A‖² of unrelated weights: no c that scipy finds is better."""
    form = FORMS["qwen2"]
    module, _, _, (freedom,) = traced(form)
    assert freedom.planes is not None
    a, b = (randomised(module, seed) for seed in (1, 2))
    found = plane_factors(freedom, freedom.planes, a, b, None)
    first = {slot.tensor.partition(".")[0] for slot in freedom.forward}  # c is on these, and 1/c̄ on the others

    def rows(weights: dict[str, Tensor], which: str, heads: list[int], j: int) -> Tensor:
        full = torch.cat([weights[f"{which}.weight"], weights[f"{which}.bias"][:, None]], 1)
        places = [form.places(which, head)[1] for head in heads]
        x, y = ([full[p[side[j]]] for p in places] for side in form.planes)
        return torch.complex(torch.cat(x), torch.cat(y))

    for g in range(form.keys):
        for j in range(form.turned // 2):
            sides = {"k": [g], "q": [2 * g, 2 * g + 1]}
            pairs = {s: (rows(a, s, heads, j), rows(b, s, heads, j)) for s, heads in sides.items()}

            def cost(c: complex, pairs: dict[str, tuple[Tensor, Tensor]] = pairs) -> float:
                total = 0.0
                for which, (of_a, of_b) in pairs.items():
                    moved = of_b * (c if which in first else 1 / c.conjugate())
                    total += float((of_a - moved).abs().square().sum() / of_a.abs().square().sum())
                return total

            starts = [(0.5, 0.5), (-0.5, 0.5), (0.5, -0.5), (-0.5, -0.5)]
            best = min(minimize(lambda z: cost(complex(*z)), start, tol=1e-12).fun for start in starts)
            assert cost(complex(found[g, j])) <= best + 1e-6


SMALL = {
    "vocab_size": 23, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OF_TRANSFORMERS = {
    "Llama": (Form(size=8, turned=8), {"num_key_value_heads": 2}, "model.layers.{}.self_attn.{}_proj"),
    "Qwen2": (Form(size=8, turned=8), {"num_key_value_heads": 2}, "model.layers.{}.self_attn.{}_proj"),
    "Gemma": (Form(4, 1, 8, 8), {"num_key_value_heads": 1, "head_dim": 8}, "model.layers.{}.self_attn.{}_proj"),
    "Phi": (Form(4, 4, 8, 4), {"partial_rotary_factor": 0.5}, "model.layers.{}.self_attn.{}_proj"),
    "GPTNeoX": (
        Form(4, 4, 8, 4, layers="per head"),
        {"rotary_pct": 0.5},
        "gpt_neox.layers.{}.attention.query_key_value",
    ),
}


class Logits(torch.nn.Module):
    """A model of transformers that gives logits alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, index: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=index, use_cache=False).logits
        return logits


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_planes_planted_in_models_of_transformers_are_undone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers multiplied by hand; by all kinds together weights come back to 1e-6, and so do outputs half-way."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(learn, "STEPS", 0)
    form, settings, pattern = OF_TRANSFORMERS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL, **settings)
    module = Logits(getattr(transformers, f"{name}ForCausalLM")(config)).eval()
    theta = other = randomised(module, 1)
    for layer in range(2):
        names = {which: "model." + pattern.format(layer, which) for which in ("q", "k", "v", "qkv")}
        other = multiplied(form, other, factors_of(form, layer), names)
    x = torch.randint(3, 23, (64, 8), generator=torch.Generator().manual_seed(1))
    y = outputs_of(module, theta, (x,), torch.float64)[0]
    pair = lmccheck.load_pair(
        theta, other, model=module, data=(x[:8], y[:8]), calibration=(x, y), loss="mse", device="cpu"
    )
    alignment = lmccheck.align(pair, beyond="all")
    assert len(alignment.facts["maps"]["groups"]["rotary-planes"]) == 2
    assert max(float((alignment.weights[k] - theta[k]).abs().max()) for k in theta) <= 1e-6
    for weights, low, high in ((other, 1e-3, 1e9), (alignment.weights, 0, 1e-6)):
        merged = {k: torch.lerp(v.double(), weights[k].double(), 0.5) for k, v in theta.items()}
        assert low <= float((outputs_of(module, merged, (x[:8],), torch.float64)[0] - y[:8]).square().mean()) <= high
