"""uniform, fedavg and greedy_soup, each against its definition written out."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks.small import seeded, small_batchnorm, small_mlp
from safetensors.torch import load_file
from torch import Tensor

import lmccheck
from lmccheck.errors import LmcError, SourceError
from lmccheck.merging.contract import read_recipe
from lmccheck.store.checkpoint import look_at

State = dict[str, Tensor]
DATA = (torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3)
PARENTS = {f"m{k}": seeded(small_mlp, k) for k in range(5)}


def answers(state: State, inputs: Tensor) -> Tensor:
    module = small_mlp()
    module.load_state_dict(state)
    with torch.no_grad():
        found: Tensor = module(inputs)
    return found


INPUTS = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
VALIDATION = (INPUTS, answers(PARENTS["m1"], INPUTS).argmax(1))


def merge_of(recipe: Any, parents: dict[str, State] = PARENTS, **more: Any) -> lmccheck.Merge:
    return lmccheck.load_merge(parents, recipe, model=small_mlp, data=DATA, sources={"val": VALIDATION}, **more)


def mean(states: list[State], weights: list[float]) -> State:
    total = sum(weights)
    return {
        n: (sum(w * s[n].double() for w, s in zip(weights, states, strict=True)) / total).float() for n in states[0]
    }


def near(found: State, expected: State) -> bool:
    return all(torch.allclose(found[n], t, rtol=2e-7, atol=0) for n, t in expected.items())


def test_uniform_is_the_mean() -> None:
    """Of all parents, each alike; of equal parents the parent, bit for bit."""
    assert near(merge_of("uniform").merged.theta, mean(list(PARENTS.values()), [1.0] * 5))
    same = dict.fromkeys(("x", "y", "z"), PARENTS["m0"])
    assert all(torch.equal(t, PARENTS["m0"][n]) for n, t in merge_of("uniform", same).merged.theta.items())
    with pytest.raises(LmcError, match=r"recipe.uniform: got False, expected true"):
        merge_of({"uniform": False})


def test_fedavg_weighs_clients_by_their_samples(tmp_path: Path) -> None:
    """From a table or a JSON file; the order of clients changes no bit."""
    counts = {"m0": 10, "m1": 0, "m2": 300, "m3": 7, "m4": 1}
    (tmp_path / "samples.json").write_text(json.dumps(counts))
    found = merge_of({"fedavg": counts}).merged.theta
    assert near(found, mean(list(PARENTS.values()), list(map(float, counts.values()))))
    again = merge_of({"fedavg": "samples.json"}, dict(reversed(PARENTS.items())), base=tmp_path).merged.theta
    assert all(torch.equal(tensor, again[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"m0": 1, "m1": 2}, "nothing is said of parent 'm2'"),
        ({**dict.fromkeys(PARENTS, 1), "m9": 1}, r"fedavg.m9: no such parent \(did you mean 'm4'\?\)|no such parent"),
        ({**dict.fromkeys(PARENTS, 1), "m1": 0.5}, "fedavg.m1: got 0.5, expected how many samples it saw"),
        ({**dict.fromkeys(PARENTS, 9), "m1": -1}, "fedavg.m1: got -1, expected how many samples it saw"),
        (dict.fromkeys(PARENTS, 0), "every count is 0"),
        ("clients.json", "clients.json: no such file|clients.json"),
        (3, "fedavg: got 3, expected a table of sample counts by parent"),
    ],
)
def test_counts_that_are_none_are_told(counts: Any, said: str, tmp_path: Path) -> None:
    """Whether they stand in the recipe or in its file."""
    (tmp_path / "c.json").write_text(json.dumps(counts))
    for given in [counts] if not isinstance(counts, dict) else [counts, "c.json"]:
        with pytest.raises(LmcError, match=said):
            _ = merge_of({"fedavg": given}, base=tmp_path).merged


def loss_of(state: State) -> float:
    return float(torch.nn.functional.cross_entropy(answers(state, INPUTS), VALIDATION[1]))


def noisy(state: State, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {n: 4 * t + 0.6 * torch.randn(t.shape, generator=generator) for n, t in state.items()}


def test_a_greedy_soup_keeps_what_does_not_make_it_worse() -> None:
    """Wortsman et al. 2022, Recipe 1, written out; the list that was taken is in the report."""
    parents = {f"n{k}": noisy(PARENTS["m1"], k) for k in range(1, 8)}
    order = sorted(parents, key=lambda name: loss_of(parents[name]))
    taken, best = [order[0]], loss_of(parents[order[0]])
    for name in order[1:]:
        states = [parents[n] for n in [*taken, name]]
        if (loss := loss_of(mean(states, [1.0] * len(states)))) <= best:
            taken, best = [*taken, name], loss
    merge = merge_of({"greedy_soup": "val"}, parents)
    result = lmccheck.merged_loss(merge, limit=9.0)
    made = result.details["made"]
    assert (made["order"], made["taken"]) == (order, taken)
    assert 1 < len(taken) < 7  # else the test says little
    assert made["validation_loss"] == pytest.approx(best, abs=1e-6)
    assert near(merge.merged.theta, mean([parents[n] for n in taken], [1.0] * len(taken)))
    assert any(note.startswith(f"the greedy soup took {len(taken)} of 7 parents") for note in result.notes)


def test_a_soup_of_numbers_takes_what_is_taken_by_hand(tmp_path: Path) -> None:
    """The loss is the number itself, below 0 none: 1, 1 as good, 3 worse (the mean is 5/3), then what has no loss."""
    numbers = {"a": -9.0, "b": 3.0, "c": 1.0, "d": 1.0}
    parents = {name: look_at({"w": torch.tensor([number])}, tmp_path, name) for name, number in numbers.items()}
    recipe = read_recipe({"greedy_soup": "val"}, tuple(parents), tmp_path)
    made = recipe.make(parents, None, tmp_path / "out", measure=lambda data: number_or_nan)
    assert (made.facts["order"], made.facts["taken"]) == (["c", "d", "b", "a"], ["c", "d"])
    assert [step["taken"] for step in made.facts["steps"]] == [True, True, False, False]
    assert [step["loss"] for step in made.facts["steps"]] == pytest.approx([1, 1, 5 / 3, math.nan], nan_ok=True)
    assert load_file(made.path)["w"].tolist() == [1.0]


def number_or_nan(state: Mapping[str, Tensor]) -> float:
    return value if (value := float(state["w"])) >= 0 else math.nan


def test_a_soup_is_chosen_once_of_what_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aligned and unaligned parents are two soups to compare; the one that is kept is not made a third time."""
    made: list[Path] = []
    own = lmccheck.Merge.__dict__["_make"]
    monkeypatch.setattr(lmccheck.Merge, "_make", lambda self, given, target, *seed: made.append(target) or own(
        self, given, target, *seed
    ))  # fmt: skip
    merge = merge_of({"greedy_soup": "val"}, align="weight-matching", calibration=VALIDATION)
    found = lmccheck.merged_loss(merge, limit=9.0).details
    assert merge.alignments
    assert len(made) == 2
    assert merge.product.made.path.parts[: len(made[0].parts)] in [path.parts for path in made]
    plain = merge_of({"greedy_soup": "val"}, align="weight-matching", calibration=VALIDATION)
    object.__setattr__(plain, "tried", type("Forgets", (dict,), {"__setitem__": lambda *_: None})())
    again = lmccheck.merged_loss(plain, limit=9.0).details
    assert len(made) == 5
    assert found["made"] == again["made"]
    assert all(torch.equal(tensor, plain.merged.theta[name]) for name, tensor in merge.merged.theta.items())


def test_a_soup_is_not_judged_by_the_data_that_chose_it() -> None:
    """All of the evaluation data among the validation data is an error, some of it a note."""
    merge = merge_of({"greedy_soup": DATA})
    with pytest.raises(SourceError, match=r"greedy_soup chose by .*, and all 60 samples of .* mend: give other valid"):
        lmccheck.merged_loss(merge, limit=9.0)
    both = tuple(torch.cat(parts) for parts in zip(DATA, VALIDATION, strict=True))
    found = lmccheck.merged_loss(merge_of({"greedy_soup": "val"}), data=both, limit=9.0)
    assert any("40 samples are among the 40 of val, by which the recipe chose" in note for note in found.notes)


def test_weights_that_do_not_sum_to_one_are_told() -> None:
    """The sum is as written, and said."""
    parents = {name: PARENTS[name] for name in ("m0", "m1")}
    table = {"linear": {"m0": 0.5, "m1": 0.7}}
    one, more = ({"linear": {"m0": 0.5, "m1": weight}} for weight in (0.5, 0.7))
    claims = [read_recipe(said, ("m0", "m1"), Path()).claims for said in (one, more)]
    assert claims[0] - claims[1] == {"equal"}  # which only weights that sum to one give back
    said = "the weights sum to 1.2 and are used as written; normalize = true would divide by it"
    assert said in lmccheck.merged_loss(merge_of(table, parents), limit=9.0).notes
    assert said not in lmccheck.merged_loss(merge_of({**table, "normalize": True}, parents), limit=9.0).notes


def test_parents_are_aligned_before_they_are_averaged() -> None:
    """A permuted copy of a network and the network itself: their mean is the network again, if aligned."""
    first = PARENTS["m0"]
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    moved = {**first, "0.weight": first["0.weight"][order], "0.bias": first["0.bias"][order]}
    moved["2.weight"] = first["2.weight"][:, order]
    parents = {"x": first, "y": moved}
    as_they_are = merge_of("uniform", parents).merged.theta
    assert not torch.equal(as_they_are["0.weight"], first["0.weight"])
    merge = merge_of("uniform", parents, align="weight-matching")
    assert all(torch.equal(tensor, first[name]) for name, tensor in merge.merged.theta.items())
    result = lmccheck.merged_loss(merge, limit=1e-6)
    assert result.passed
    assert result.details["alignment"]["parents"].keys() == {"y"}


def jumbled() -> dict[str, State]:
    """A network, and its copy with permuted units and a little noise, so that aligned they are near, not equal."""
    first, generator = PARENTS["m0"], torch.Generator().manual_seed(3)
    order = torch.randperm(6, generator=generator)
    moved = {**first, "0.weight": first["0.weight"][order], "0.bias": first["0.bias"][order]}
    moved["2.weight"] = first["2.weight"][:, order]
    return {"x": first, "y": {n: t + 0.001 * torch.randn(t.shape, generator=generator) for n, t in moved.items()}}


def _far_has_none(outputs: Tensor, targets: Tensor) -> Tensor:
    far = (outputs - targets).square().sum(1)
    return torch.where(far < 0.001, far, torch.nan)


@pytest.mark.parametrize("loss", [None, _far_has_none])
def test_an_alignment_that_makes_the_merge_better_is_kept(loss: Any) -> None:
    """By its loss on calibration data; that nothing moved has no loss at all is worse than any."""
    parents, own = jumbled(), answers(PARENTS["m0"], INPUTS)
    data = (INPUTS, own.argmax(1) if loss is None else own)
    given: dict[str, Any] = {"model": small_mlp, "data": [data], "calibration": [data], "loss": loss}
    merge = lmccheck.load_merge(parents, "uniform", align="weight-matching", **given)
    assert all(torch.allclose(t, PARENTS["m0"][n], atol=0.01) for n, t in merge.merged.theta.items())
    compared = merge.alignments["y"].facts["compared"]
    assert compared["kept"] == "aligned"
    assert compared["identity"] > compared["aligned"] + 0.01
    assert math.isinf(compared["identity"]) == (loss is not None)


def test_a_soup_is_chosen_with_the_statistics_that_it_ships() -> None:
    """BatchNorm's are averaged as every tensor is; no calibration data make them better than they are."""
    parents = {f"m{k}": seeded(small_batchnorm, k) for k in range(3)}
    generator = torch.Generator().manual_seed(5)
    images = 2 + torch.randn(40, 1, 4, 4, generator=generator)
    sets = [(part, torch.arange(len(part)) % 3) for part in images.split(20)]
    merge = lmccheck.load_merge(
        parents,
        {"greedy_soup": "val"},
        model=small_batchnorm,
        data=sets[0],
        sources={"val": sets[1]},
        calibration=sets[1],
    )
    made = merge.product.made.facts
    taken: list[str] = []
    for name, step in zip(made["order"], made["steps"], strict=True):
        module = small_batchnorm().eval()
        module.load_state_dict(mean([parents[each] for each in (*taken, name)], [1.0] * (len(taken) + 1)))
        with torch.no_grad():
            expected = float(torch.nn.functional.cross_entropy(module(sets[1][0]), sets[1][1]))
        assert step["loss"] == pytest.approx(expected, abs=1e-5)
        taken += [name] if step["taken"] else []
    assert taken == made["taken"]


@pytest.mark.parametrize("recipe", ["uniform", {"linear": {"x": 0.5, "y": 0.5}, "dtype": "float32"}])
def test_parents_that_alignment_drives_apart_are_merged_as_they_are(recipe: Any) -> None:
    """An input that data never has, on whose weights alone matching goes; decided on calibration data, and said."""
    first = PARENTS["m0"]
    parents = {name: {n: t.clone() for n, t in first.items()} for name in ("x", "y")}
    parents["x"]["0.weight"][:, 3] = 50 * torch.arange(6.0)
    parents["y"]["0.weight"][:, 3] = 50 * torch.arange(6.0).flip(0)
    inputs = INPUTS * torch.tensor([3.0, 3.0, 3.0, 0.0])
    data = inputs, answers(first, inputs).argmax(1)
    given: dict[str, Any] = {"model": small_mlp, "data": [data], "align": "weight-matching"}
    merge = lmccheck.load_merge(parents, recipe, calibration=[data], **given)
    assert near(merge.merged.theta, mean(list(parents.values()), [1.0, 1.0]))
    result = lmccheck.merged_loss(merge, limit=1e-6)
    assert result.passed
    own = float(torch.nn.functional.cross_entropy(answers(first, inputs), data[1]))
    said = "weight-matching was worse than moving nothing (loss of the merge on calibration data "
    assert [note.startswith(said) and f"unaligned {own:.4g})" in note for note in result.notes].count(True) == 1
    compared = result.details["alignment"]["parents"]["y"]["compared"]
    assert compared["kept"] == "identity"
    assert compared["identity"] == pytest.approx(own, abs=1e-6)
    without = lmccheck.load_merge(parents, recipe, **given)  # by weights alone it is better aligned
    assert lmccheck.merged_loss(without, limit=9.0).details["merged"]["loss"] == pytest.approx(
        compared["aligned"], abs=1e-6
    )


def test_without_calibration_the_objective_keeps_parents_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a method that lowers its own objective nothing is taken."""

    def worse(pair: Any, method: str, seed: int) -> lmccheck.Alignment:
        found = lmccheck.align(pair, method, seed=seed)
        return replace(found, facts={**found.facts, "objective_before": found.objective + 1}).made_of(found.inputs)

    monkeypatch.setattr(sys.modules[lmccheck.Merge.__module__], "align_pair", worse)
    parents = {name: PARENTS[name] for name in ("m0", "m1")}
    merge = merge_of("uniform", parents, align="weight-matching")
    assert near(merge.merged.theta, mean(list(parents.values()), [1.0, 1.0]))
    assert any("was worse than moving nothing (objective" in note for note in merge.product.made.notes)


@pytest.mark.parametrize(
    ("recipe", "align", "said"),
    [
        ({"call": lambda parents: parents["m0"]}, "best", "align = 'best': call gets the parents as they are"),
        ("uniform", "weight-maching", "align = 'weight-maching'.*did you mean 'weight-matching'"),
    ],
)
def test_an_alignment_that_cannot_be_is_told(recipe: Any, align: str, said: str) -> None:
    """Only what is a weighted mean of parents may be aligned for it."""
    with pytest.raises(LmcError, match=said):
        merge_of(recipe, align=align)
