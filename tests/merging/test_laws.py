"""Each law holds of a method that keeps it and is seen broken of one that does not, at the right entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from lmccheck.merging.drawn import Drawn, acted, networks, tried
from lmccheck.merging.laws import ALWAYS, LAWS, broken
from lmccheck.merging.mixture import mixture
from lmccheck.merging.trial import Made, Setting, Trial, rounding_of
from lmccheck.store.checkpoint import Checkpoint, look_at

State = dict[str, Tensor]
CLAIMED = ("unit", "equal", "order", "scale", "equivariant", "linear")


def opened(state: Mapping[str, Tensor]) -> Checkpoint:
    return look_at(dict(state), Path(), "a")


def states(dtype: torch.dtype = torch.float32) -> tuple[dict[str, State], State]:
    generator = torch.Generator().manual_seed(0)

    def state() -> State:
        w, v = torch.randn(3, 2, generator=generator), torch.randn(2, 3, generator=generator)
        found = {"fc1": w, "fc2": v, "tied": w.clone()}
        return {**{k: t.to(dtype) for k, t in found.items()}, "mask": torch.ones(3).to(dtype), "ids": torch.arange(3)}

    return {"x": state(), "y": state()}, state()


Merge = Callable[[dict[str, State], State | None, Mapping[str, float]], State]
W = {"x": 0.7, "y": 0.7}


def mean(parents: dict[str, State], base: State | None, w: Mapping[str, float]) -> State:
    """The normalised weighted sum, which keeps all laws."""
    total = sum(w.values())

    def one(name: str) -> Tensor:
        first = parents["x"][name]
        if not first.is_floating_point():
            return first
        return sum(w[k] / total * parents[k][name].double() for k in w).to(first.dtype)  # type: ignore[union-attr]

    return {name: one(name) for name in parents["x"]}


def trial(merge: Merge, stored: torch.dtype = torch.float32, base: bool = False, **more: object) -> Trial:
    """A merge of two small parents, by a function of states."""
    parents, origin = states(stored)
    order = torch.tensor([2, 0, 1])

    def make(setting: Setting) -> Made:
        read = {
            name: one.read() if one.path else {n: one.get(n) for n in one.tensors}
            for name, one in setting.parents.items()
        }
        own = None if setting.base is None else {n: setting.base.get(n) for n in setting.base.tensors}
        weights = dict(setting.weights or {name: W[name] for name in read})
        total = sum(weights.values())
        return Made(opened(merge(read, own, weights)), {"weights": {k: w / total for k, w in weights.items()}})

    def moved(name: str, value: Tensor) -> Tensor:
        return value[:, order] if name == "fc2" else value if name == "ids" else value[order]

    setting = Setting({name: opened(state) for name, state in parents.items()}, opened(origin) if base else None)
    told = {"weighted": True, "buffers": frozenset({"mask"}), "act": lambda one: acted(one, moved), **more}
    return Trial(make, setting, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_normalised_sum_keeps_every_law(dtype: torch.dtype) -> None:
    """To the rounding of whatever dtype."""
    assert broken(trial(mean, dtype), LAWS) == []


def test_base_and_differences_are_equal_to_the_rounding_of_bfloat16() -> None:
    """bf16 base + (x − base) misses x by a unit in the last place in some entries, which breaks no law."""

    def task(parents: dict[str, State], base: State | None, w: Mapping[str, float]) -> State:
        assert base is not None
        found = mean(parents, base, w)
        for name in ("fc1", "fc2"):
            found[name] = base[name] + sum(w[k] / sum(w.values()) * (parents[k][name] - base[name]) for k in w)
        return {**found, "tied": found["fc1"].clone()}

    assert broken(trial(task, torch.bfloat16, base=True), ("unit", "equal", "order", "equivariant")) == []


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Merge:
    return lambda parents, base, w: {n: change(t) if n == name else t for n, t in mean(parents, base, w).items()}


def drawn_once(parents: dict[str, State], base: State | None, w: Mapping[str, float]) -> State:
    """Noise that no seed repeats."""
    return {n: t + 0.01 * torch.randn(t.shape) if n == "fc1" else t for n, t in mean(parents, base, w).items()}


def first_heavier(parents: dict[str, State], base: State | None, w: Mapping[str, float]) -> State:
    """One in which the parent that comes first counts twice."""
    first = next(iter(w))
    return mean(parents, base, {k: (2 if k == first else 1) * v for k, v in w.items()})


def first_in_place(parents: dict[str, State], base: State | None, w: Mapping[str, float]) -> State:
    """One that takes more of the parent that is given first, whatever the order of the weights."""
    return mean(parents, base, {k: (2 if k == next(iter(parents)) else 1) * w[k] for k in w})


def wrong_for_y(parents: dict[str, State], base: State | None, w: Mapping[str, float]) -> State:
    """One that gives another network than y where y is all that it is made of."""
    return changed("fc2", lambda t: t * (1.01 if set(w) == {"y"} else 1))(parents, base, w)


def plain_sum(parents: dict[str, State], base: State | None, w: Mapping[str, float]) -> State:
    """Weights as they are: not normalised."""
    found = mean(parents, base, w)
    return {n: t * sum(w.values()) if t.is_floating_point() and n != "mask" else t for n, t in found.items()}


def sign_of_first_row(parents: dict[str, State], base: State | None, w: Mapping[str, float]) -> State:
    """One that looks at where a unit stands."""
    found = mean(parents, base, w)
    found["fc1"][0] *= 1.5
    return {**found, "tied": found["fc1"].clone()}


@pytest.mark.parametrize(
    ("law", "merge", "tensor"),
    [
        ("names", lambda p, b, w: {n: t for n, t in mean(p, b, w).items() if n != "fc2"}, None),
        ("names", lambda p, b, w: {**mean(p, b, w), "more": torch.ones(1)}, None),
        ("names", changed("fc2", lambda t: t.T.contiguous()), None),
        ("dtypes", changed("fc1", torch.Tensor.double), None),
        ("dtypes", changed("ids", torch.Tensor.float), None),
        ("ties", changed("tied", lambda t: t + 1), "tied"),
        ("integers", changed("ids", lambda t: t + 1), "ids"),
        ("constants", changed("mask", lambda t: t * 1.4), "mask"),
        ("seed", drawn_once, "fc1"),
        ("unit", changed("fc2", lambda t: t * 1.01), "fc2"),
        ("unit", changed("fc2", lambda t: t * torch.nan), "fc2"),
        ("unit", wrong_for_y, "fc2"),
        ("equal", plain_sum, "fc1"),
        ("order", first_heavier, "fc1"),
        ("order", first_in_place, "fc1"),
        ("scale", plain_sum, "fc1"),
        ("equivariant", sign_of_first_row, "fc1"),
        ("linear", changed("fc2", lambda t: t * (1 + 1e-5)), "fc2"),
    ],
)
def test_a_broken_law_is_seen(law: str, merge: Merge, tensor: str | None) -> None:
    """The law, and the tensor, of a method that breaks it."""
    found = LAWS[law](trial(merge))
    assert found is not None
    assert (found.law, found.tensor) == (law, tensor)


def weighted(merge: Merge, **weights: float) -> Trial:
    """A merge of which weights are said."""
    one = trial(merge)
    return replace(one, setting=replace(one.setting, weights=weights))


def with_tensors(merge: Merge, **more: Callable[[str], Tensor]) -> Trial:
    """A merge of parents that have more, or other, tensors, each made from a parent's name."""
    one, (parents, _) = trial(merge), states()
    opened_parents = {k: opened({**state, **{n: make(k) for n, make in more.items()}}) for k, state in parents.items()}
    return replace(one, setting=replace(one.setting, parents=opened_parents))


def test_weights_that_are_said_are_scaled_and_follow_their_parents() -> None:
    """A sum that is not normalised is three times as much; alone a parent has the weight one, of all weights."""
    assert LAWS["scale"](weighted(mean, x=0.5, y=0.5)) is None
    found = LAWS["scale"](weighted(plain_sum, x=0.5, y=0.5))
    assert found is not None
    assert found.got == pytest.approx(3 * found.expected)
    assert LAWS["order"](weighted(mean, x=0.7, y=0.3)) is None
    assert LAWS["order"](weighted(first_heavier, x=0.7, y=0.3)) is not None
    assert LAWS["unit"](trial(plain_sum)) is None
    assert LAWS["unit"](trial(wrong_for_y, most=1)) is None
    assert rounding_of(weighted(mean, x=5.0, y=-4.0)).size == 9


def test_the_dtype_that_was_promised_is_held_to() -> None:
    """Of parents in float32: bfloat16 where it is promised, and integers stay integers."""
    half = lambda p, b, w: {n: t.bfloat16() if t.is_floating_point() else t for n, t in mean(p, b, w).items()}  # noqa: E731  # a merge
    assert LAWS["dtypes"](trial(half, dtype="bfloat16")) is None
    late = LAWS["dtypes"](trial(mean, dtype="bfloat16"))
    assert late is not None
    assert "is float32, the recipe promises bfloat16" in late.said
    table = LAWS["dtypes"](trial(changed("ids", torch.Tensor.float), dtype="float32"))
    assert table is not None
    assert "tensor 'ids' is float32, in parent x it is int64" in table.said


def test_integers_may_be_those_of_any_parent() -> None:
    """Of two that differ the first one's."""
    both = with_tensors(mean, ids=lambda name: torch.arange(3) + (name == "y"))
    assert LAWS["integers"](both) is None


def test_tensors_without_numbers_of_their_own_are_no_ties() -> None:
    """Two tensors of ones, and two of nothing, are equal in all parents; the merge may tell them apart."""
    ones, nothing = (lambda _: torch.ones(3)), (lambda _: torch.zeros(0))
    assert LAWS["ties"](with_tensors(changed("gain", lambda t: 2 * t), gain=ones, a=nothing, b=nothing)) is None


def test_a_base_is_permuted_with_its_parents() -> None:
    """Half of the base in every merge: the whole is permuted as its parts are."""

    def halved(parents: dict[str, State], base: State | None, w: Mapping[str, float]) -> State:
        assert base is not None
        found = mean(parents, base, w)
        return {n: (t + base[n]) / 2 if t.is_floating_point() else t for n, t in found.items()}

    assert LAWS["equivariant"](trial(halved, base=True)) is None


def test_a_drawn_permutation_leaves_the_function() -> None:
    """Of parents and base, whatever their dtype: W₂·relu(W₁x + b) by hand, units permuted and not."""

    def function(one: Checkpoint) -> Tensor:
        w1, b, w2 = (one.get(name).double() for name in ("fc1.weight", "fc1.bias", "fc2.weight"))
        return w2 @ torch.relu(w1 @ torch.linspace(-1, 1, w1.shape[1], dtype=torch.float64) + b)

    @settings(max_examples=10, database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(networks(("x", "y"), True, None))
    def look(drawn: Drawn) -> None:
        setting = drawn.prepare(Path())
        assert drawn.act is not None
        assert setting.base is not None
        for one in (*setting.parents.values(), setting.base):
            assert torch.allclose(function(drawn.act(one)), function(one), atol=1e-12)

    look()


def test_the_entry_that_breaks_a_law_is_told_with_both_numbers() -> None:
    """Of the first tensor that does, the entry that is furthest beyond rounding."""
    found = LAWS["unit"](trial(changed("fc2", lambda t: t + torch.tensor([[0, 0, 0], [0, 0.5, 0]]))))
    assert found is not None
    value = float(states()[0]["x"]["fc2"][1, 1])
    assert found.index == (1, 1)
    assert (found.got, found.expected, found.apart) == pytest.approx((value + 0.5, value, 0.5), abs=1e-6)
    assert "M({x: 1}) ≠ x: tensor 'fc2' (1, 1)" in found.words


def by(merge: Merge) -> Callable[[Setting, Path], Made]:
    """Make a merge of drawn networks by a function of states."""

    def make(setting: Setting, folder: Path) -> Made:
        states = {name: {n: one.get(n) for n in one.tensors} for name, one in setting.parents.items()}
        weights = dict(setting.weights or dict.fromkeys(states, 0.5))
        total = sum(weights.values())
        first = next(iter(states.values()))
        found = {
            n: merge({k: {n: s[n]} for k, s in states.items()}, None, weights)[n] if t.is_floating_point() else t
            for n, t in first.items()
        }
        return Made(opened(found), {"weights": {k: w / total for k, w in weights.items()}})

    return make


def summed(parents: dict[str, State], base: State | None, w: Mapping[str, float]) -> State:
    total = sum(w.values())
    return {
        n: sum(w[k] / total * parents[k][n].double() for k in w).to(t.dtype)  # type: ignore[union-attr]
        for n, t in next(iter(parents.values())).items()
    }


def test_drawn_networks_break_no_law_of_the_sum() -> None:
    """All laws on drawn networks of all dtypes, ties and sizes."""
    seen, drawn = tried(
        networks(("x", "y"), False, None), by(summed), (*ALWAYS, *CLAIMED), {"weighted": True}, examples=20, start=0
    )
    assert (seen, drawn) == ({}, 20)


def test_a_broken_law_shrinks_to_a_smallest_example() -> None:
    """A method that takes the larger of two numbers breaks linearity; one entry of one network shows it."""

    def largest(parents: dict[str, State], base: State | None, w: Mapping[str, float]) -> State:
        names = next(iter(parents.values()))
        return {n: torch.stack([parents[k][n] for k in w]).amax(0) for n in names}

    seen, _ = tried(networks(("x", "y"), False, None), by(largest), CLAIMED, {"weighted": True}, examples=20, start=0)
    assert set(seen) == {"linear"}
    found, words = seen["linear"]
    assert found.apart > 0
    numbers = words.replace("[", " ").replace("]", " ").split()
    assert sum(part.strip(",;") not in ("0.0", "-0.0", "0") and part[0] in "-0123456789" for part in numbers) == 1


def test_drawn_permutations_move_units() -> None:
    """A method that looks at a unit's place breaks equivariance on drawn networks."""

    def first_row(parents: dict[str, State], base: State | None, w: Mapping[str, float]) -> State:
        found = summed(parents, base, w)
        return {
            n: t * torch.linspace(1, 2, len(t), dtype=t.dtype).reshape(-1, *[1] * (t.ndim - 1))
            for n, t in found.items()
        }

    seen, _ = tried(networks(("x", "y"), False, None), by(first_row), ["equivariant"], {}, examples=20, start=0)
    assert "M(π·θ) ≠ π·M(θ)" in seen["equivariant"][0].words


def noise(scale: float, base: State, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {k: v + scale * torch.randn(v.shape, generator=generator) for k, v in base.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("coefficients", "said"),
    [
        ((0.7, 0.7, 0), "the weighted sum (0.7·x, 0.7·y), not divided by the weights' sum"),
        ((0.5, 0.5, 0), "the sum divided by the weights' sum (a normalised sum)"),
        ((1, 0, 0), "parent x itself"),
        ((0, 0, 1), "the base itself"),
        ((0.7, 0.7, -0.4), "the base plus the weighted differences from it (0.7·x, 0.7·y)"),
        ((1, 1, -1), "the base plus the sum of all differences from it"),
        ((0.9, 0.1, 0), "0.9·x + 0.1·y"),
    ],
)
def test_a_sum_is_recognised(coefficients: tuple[float, float, float], said: str, dtype: torch.dtype) -> None:
    """By its name where it is one that is taken for another, else by its weights."""
    base = noise(1.0, {"w": torch.zeros(12, 9), "v": torch.zeros(9)}, 0)
    x, y = noise(0.2, base, 1), noise(0.2, base, 2)
    got = {k: sum(c * s[k] for c, s in zip(coefficients, (x, y, base), strict=True)).to(dtype) for k in base}
    assert mixture(opened(got), {"x": opened(x), "y": opened(y)}, opened(base), W, list(base)) == said


def test_a_sum_that_is_near_the_mean_is_told_from_it() -> None:
    """And the weight of the first is found where there is no base to compare with."""
    base = noise(1.0, {"w": torch.zeros(12, 9), "v": torch.zeros(9)}, 0)
    x, y = noise(0.2, base, 1), noise(0.2, base, 2)
    for a, b in ((0.503, 0.497), (0.9, 0.1)):
        got = {k: a * x[k] + b * y[k] for k in base}
        said = mixture(opened(got), {"x": opened(x), "y": opened(y)}, None, W, list(base))
        assert said == f"{a}·x + {b}·y"


def test_what_is_no_sum_is_called_none() -> None:
    """Noise of its own is no mixture of the parents."""
    base = noise(1.0, {"w": torch.zeros(12, 9)}, 0)
    parents = {name: opened(noise(0.2, base, k)) for k, name in enumerate("xy", 1)}
    assert mixture(opened(noise(0.2, base, 3)), parents, opened(base), W, ["w"]) is None
