"""merged_loss: the merge as it is made against its parents, by any metric, on several data sets and their parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from networks.small import seeded, small_mlp
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import LmcError
from lmccheck.properties import run
from lmccheck.properties.registry import PROPERTIES

State = dict[str, Tensor]
HALF = {"linear": {"x": 0.5, "y": 0.5}}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(weight: Tensor) -> State:
    return {"weight": weight, "bias": torch.zeros(len(weight))}


def head() -> nn.Module:
    """Three inputs that are the scores of three classes."""
    return nn.Linear(3, 3)


ONE_HOT = torch.eye(3).repeat(20, 1)
CLASSES = torch.arange(3).repeat(20)
GOOD = linear(8 * torch.eye(3))
BLIND = linear(8 * torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))  # takes class 2 for class 1


def merge_of(recipe: Any, parents: dict[str, State], *, model: Any = head, data: Any = None, **more: Any) -> Any:
    return lmccheck.load_merge(parents, recipe, model=model, data=data or (ONE_HOT, CLASSES), **more)


def test_a_merge_that_loses_a_class_passes_on_the_mean_and_fails_by_class() -> None:
    """One third of errors is within 50 points; every sample of class 2 is one."""
    merge = merge_of({"call": lambda parents: BLIND}, {"x": GOOD, "y": linear(7 * torch.eye(3))})
    whole = lmccheck.merged_loss(merge, metric="error", limit=50.0)
    assert (whole.passed, whole.value, whole.unit) == (True, pytest.approx(100 / 3), "points")
    found = lmccheck.merged_loss(merge, metric="error", by="class", limit=50.0)
    assert (found.verdict, found.value, str(found.finding.where)) == ("fail", 100.0, "on=class 2")
    parts = next(iter(found.details["data"].values()))["parts"]
    assert {name: part["worse_by"] for name, part in parts.items()} == {"0": 0.0, "1": 0.0, "2": 100.0}
    assert parts["2"]["samples"] == 20
    assert any("the worst of 3 parts by 'class' is judged, class 2 (20 samples)" in note for note in found.notes)


def test_more_is_better_for_accuracy() -> None:
    """Errors and accuracies give the same difference in points."""
    merge = merge_of({"call": lambda parents: BLIND}, {"x": GOOD, "y": BLIND | linear(BLIND["weight"] * 0.9)})
    assert lmccheck.merged_loss(merge, metric="accuracy", limit=1.0).value == pytest.approx(100 / 3)
    assert lmccheck.merged_loss(merge, metric="accuracy", against="worse-parent", limit=1.0).value == pytest.approx(0)
    found = lmccheck.merged_loss(merge, metric="accuracy", limit="20%")
    assert (found.limit, found.details["reference"]) == (pytest.approx(20.0), "x")


def test_the_worst_part_is_the_one_furthest_above_its_own_limit() -> None:
    """Half of what the reference loses: log(1 + 2e⁻⁸) of class 0, where log(1 + 2e⁻⁵) is too much; much of log 3."""
    parents = {"x": linear(torch.diag(torch.tensor([8.0, 0.0, 8.0]))), "y": linear(torch.eye(3))}
    merge = merge_of({"call": lambda _: linear(torch.diag(torch.tensor([5.0, -0.2, 8.0])))}, parents)
    found = lmccheck.merged_loss(merge, by="class", against="x", limit="50%")
    own = math.log(1 + 2 * math.exp(-8))
    assert (found.verdict, str(found.finding.where)) == ("fail", "on=class 0")
    assert found.value == pytest.approx(math.log(1 + 2 * math.exp(-5)) - own, rel=1e-4)
    assert found.limit == pytest.approx(0.5 * own, rel=1e-3)  # of the reference, not of the worse parent
    alone = merge_of({"call": lambda _: BLIND}, {"x": GOOD}, base_model=linear(torch.eye(3)))
    said = lmccheck.merged_loss(alone, limit=0.0).details["failure"][0]
    assert "the merge is worse than x" in said
    assert "parents" not in said


def test_a_share_of_nothing_is_nothing() -> None:
    """A reference without an error leaves no room in percent, and is no mistake."""
    merge = merge_of({"call": lambda parents: BLIND}, {"x": GOOD, "y": BLIND})
    found = lmccheck.merged_loss(merge, metric="error", limit="10%")
    assert (found.verdict, found.limit) == ("fail", 0.0)


def test_what_is_no_limit_is_told_of_the_reference() -> None:
    """A merge has a reference; the worse endpoint is that of a line."""
    merge = merge_of(HALF, {"x": GOOD, "y": BLIND})
    with pytest.raises(LmcError, match=r"limit = -1; .* percentage of the reference's figure") as raised:
        lmccheck.merged_loss(merge, limit=-1)
    assert "endpoint" not in str(raised.value)
    assert "percentage of the reference's figure" in PROPERTIES.get("merged_loss").expected["limit"]


@pytest.mark.parametrize(
    ("recipe", "noted"),
    [
        ({"linear": {"x": 1.0, "y": 0.0}}, True),
        ({"linear": {"x": 0.5, "y": 0.0}}, True),
        ({"fedavg": {"x": 100, "y": 0}}, True),
        (HALF, False),
    ],
)
def test_a_merge_of_one_parent_is_said_to_be_that(recipe: Any, noted: bool) -> None:
    """Weight 0 of all others leaves nothing of them."""
    merge = merge_of(recipe, {"x": GOOD, "y": BLIND})
    said = "the recipe takes parent x alone: nothing of the other parents is in the merge"
    assert (said in lmccheck.merged_loss(merge).notes) is noted
    assert (said in lmccheck.merge_laws(merge, examples=1).notes) is noted


def test_a_metric_of_the_users_own_is_measured_on_merge_and_parents() -> None:
    """Margins, of which more is better: written out by hand."""

    def margin(model: nn.Module, batches: Any) -> Tensor:
        outputs = torch.cat([model(inputs) for inputs, _ in batches])
        return outputs.max(1).values - outputs.median(1).values

    margin.higher_is_better = True  # type: ignore[attr-defined]  # as a user says it
    merge = merge_of(HALF, {"x": GOOD, "y": linear(2 * torch.eye(3))})
    found = lmccheck.merged_loss(merge, metric=margin, limit=1.0)
    assert (found.value, found.details["reference"], found.verdict) == (pytest.approx(3.0), "x", "fail")


def test_an_unknown_column_is_told() -> None:
    """With those that there are."""
    with pytest.raises(LmcError, match="by = 'kind': no such column; expected one of class"):
        lmccheck.merged_loss(merge_of(HALF, {"x": GOOD, "y": BLIND}), by="kind", limit=1.0)


class Normed(nn.Module):
    """A layer, BatchNorm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.norm(self.first(x))))
        return out


def normed(seed: int, inputs: Tensor) -> State:
    """A network whose statistics are those of its own activations."""
    torch.manual_seed(seed)
    module = Normed()
    with torch.no_grad():
        module.head.weight.mul_(20.0)
        hidden = module.first(inputs)
        module.norm.running_mean.copy_(hidden.mean(0))
        module.norm.running_var.copy_(hidden.var(0))
    return dict(module.state_dict())


def test_averaged_batchnorm_statistics_are_measured_as_they_are() -> None:
    """The loss is that of the file; re-estimated it is another, which is said, with calibration data or without."""
    inputs = draw(0, 200, 4)
    x = normed(0, inputs)
    y = {**x, "norm.running_mean": x["norm.running_mean"] - 18}  # one client's statistics are off, and so is the mean
    module = Normed()
    module.load_state_dict(x)
    module.eval()
    targets = module(inputs).argmax(1)
    data = inputs[:100], targets[:100]
    given = {"parents": {"x": x, "y": y}, "model": Normed, "data": data}
    merge = merge_of("uniform", **given, calibration=(inputs[100:], targets[100:]))
    found = lmccheck.merged_loss(merge, limit=0.3)
    module.load_state_dict(merge.merged.theta)
    with torch.no_grad():
        as_it_is = float(nn.functional.cross_entropy(module(inputs[:100]), targets[:100]))
    assert found.details["merged"]["loss"] == pytest.approx(as_it_is, abs=1e-5)
    assert found.verdict == "fail"
    note = next(note for note in found.notes if "BatchNorm re-estimated on 100 calibration samples" in note)
    assert note.endswith("within the limit")
    assert any(text.startswith("re-estimating BatchNorm in what is published") for text in found.details["next"])
    without = lmccheck.merged_loss(merge_of("uniform", **given), limit=0.3)
    assert any("1 BatchNorm layer(s) have the statistics that the recipe made" in note for note in without.notes)


def gated(merge: Any, **settings: Any) -> Any:
    """Run it as a manifest does: endpoints must be useful."""
    return run("merged_loss", merge, limit=9.0, **settings)


SHIFTED = linear(8 * torch.eye(3)[[1, 2, 0]])  # answers each class wrongly: good on data whose classes are shifted
OTHER = (ONE_HOT, (CLASSES + 2) % 3)


def test_a_parent_of_no_use_makes_the_verdict_inconclusive() -> None:
    """Here data that only one parent understands, as when it is read with the other's tokenizer."""
    found = gated(merge_of(HALF, {"x": GOOD, "y": SHIFTED}))
    assert found.verdict == "inconclusive"
    assert "y answers no better than the class frequencies" in found.lines[0]
    assert gated(merge_of(HALF, {"x": GOOD, "y": SHIFTED}), endpoints="any").verdict == "pass"


def test_a_parent_need_not_be_of_use_on_the_other_parents_data() -> None:
    """It is on its own; where it is what the merge is compared with, it must be."""
    merge = merge_of(HALF, {"x": GOOD, "y": SHIFTED}, sources={"a": (ONE_HOT, CLASSES), "b": OTHER})
    own = gated(merge, data={"x": "a", "y": "b"})
    assert own.verdict == "pass"
    assert sum("and on other data it does" in note for note in own.notes) == 2
    assert gated(merge, data=["a", "b"]).verdict == "pass"
    crossed = gated(merge, data={"x": "b", "y": "a"})
    assert crossed.verdict == "inconclusive"
    assert gated(merge, data=["a", "b"], against="worse-parent").verdict == "inconclusive"


def test_too_large_a_step_from_the_base_is_explained() -> None:
    """Task arithmetic with weight 6: how far that is, the figure, and smaller weights as what to try."""
    base = seeded(small_mlp, 0)
    tuned = {n: t + 0.05 * draw(len(n), *t.shape) for n, t in base.items()}
    inputs = draw(5, 300, 4)
    module = small_mlp()
    module.load_state_dict(tuned)
    data = inputs, module(inputs).argmax(1)
    six = {"call": lambda parents, base: {n: base[n] + 60 * (parents["x"][n] - base[n]) for n in base}}
    merge = merge_of(six, {"x": tuned}, model=small_mlp, data=data, base_model=base)
    found = lmccheck.merged_loss(merge, limit=0.1)
    text = "\n".join(found.lines)
    assert found.verdict == "fail"
    assert math.isclose(found.value, found.details["merged"]["loss"] - found.finding.endpoints[0].loss)
    assert "the merge lies 60 times as far from the base as its parents do" in text
    assert "smaller weights" in text.splitlines()[-1]


def test_the_layer_that_a_merge_spoils_is_named() -> None:
    """One layer drawn anew: taken back from the better parent, the merge is as good as it."""
    x = {n: 3 * t for n, t in seeded(small_mlp, 1).items()}
    inputs = draw(6, 200, 4)
    module = small_mlp()
    module.load_state_dict(x)
    data = inputs, module(inputs).argmax(1)
    y = {n: 0.9 * t for n, t in x.items()}
    spoilt = {**x, "2.weight": -x["2.weight"]}
    merge = merge_of({"call": lambda parents: spoilt}, {"x": x, "y": y}, model=small_mlp, data=data)
    found = lmccheck.merged_loss(merge, limit=0.01)
    line = next(line for line in found.lines if line.startswith("layers that matter most"))
    assert f"each taken from x: 2: {found.finding.endpoints[0].loss:.4g}" in line
    why = found.details["explanation"]
    assert (why["from"], why["minimal_layers"], why["layers"]) == ("x", ["2"], 1)
    assert all(group["share"] == pytest.approx(1.0, abs=1e-6) for group in why["groups"])  # both hold all of it


def test_the_layers_that_a_merge_needs_to_be_too_bad_are_named() -> None:
    """Two layers spoilt, of which the limit allows each alone; the samples that carry half are those of a pass by hand.

    Without explain nothing of it is measured, and a pass is explained in its notes where that is asked.
    """
    x = {n: 3 * t for n, t in seeded(small_mlp, 1).items()}
    module, inputs = small_mlp(), draw(6, 200, 4)

    def losses(weights: State) -> Tensor:
        module.load_state_dict(weights)
        with torch.no_grad():
            return nn.functional.cross_entropy(module(inputs), classes, reduction="none").double()

    module.load_state_dict(x)
    classes = module(inputs).argmax(1)
    noise = {name: draw(8 + k, *x[name].shape) for k, name in enumerate(("2.weight", "4.weight", "0.bias"))}
    one, two, both = (
        {**x, **{n: x[n] + 0.4 * noise[n] for n in names}}
        for names in (["2.weight"], ["4.weight"], ["2.weight", "4.weight"])
    )
    spoilt = {**both, "0.bias": x["0.bias"] + 1e-4 * noise["0.bias"]}
    own, alone, together = (float(losses(w).mean()) for w in (x, one, spoilt))
    alone = max(alone, float(losses(two).mean()))
    assert alone < together
    y = {n: 0.9 * t for n, t in x.items()}
    merge = merge_of({"call": lambda parents: spoilt}, {"x": x, "y": y}, model=small_mlp, data=(inputs, classes))
    limit = (alone + together) / 2 - own
    found = lmccheck.merged_loss(merge, limit=limit)
    why = found.details["explanation"]
    assert why["minimal_layers"] == ["2", "4"]
    line = "enough to fail: 2, 4 alone, the other layer as in x; without either of them the limit holds"
    assert line in [told.strip() for told in found.lines]
    lost = (losses(spoilt) - losses(x)).sort(descending=True)
    few = int((lost.values.cumsum(0) < lost.values.sum() / 2).sum()) + 1
    assert why["samples"]["indices"] == lost.indices[:few].tolist()
    assert why["parent"] == "x"
    off = lmccheck.merged_loss(merge, limit=limit, explain=False)
    assert "explanation" not in off.details
    assert off.evaluations < found.evaluations <= off.evaluations + (off.evaluations + 12) // 2
    passed = lmccheck.merged_loss(merge, limit=99, explain=True)
    assert any(note.startswith("samples:") for note in passed.notes)
    assert passed.details["explanation"]["minimal_layers"] == []


def test_a_permuted_parent_is_diagnosed() -> None:
    """The line between the parents is high, aligned it is not, and aligning them is what to try."""
    x = {n: 4 * t for n, t in seeded(small_mlp, 2).items()}
    order, other = torch.tensor([3, 0, 5, 1, 2, 4]), torch.tensor([4, 2, 0, 1, 3])
    y = {**x, "0.weight": x["0.weight"][order], "0.bias": x["0.bias"][order], "2.bias": x["2.bias"][other]}
    y |= {"2.weight": x["2.weight"][other][:, order], "4.weight": x["4.weight"][:, other]}
    inputs = draw(7, 200, 4)
    module = small_mlp()
    module.load_state_dict(x)
    merge = merge_of(HALF, {"x": x, "y": y}, model=small_mlp, data=(inputs, module(inputs).argmax(1)))
    found = lmccheck.merged_loss(merge, limit=0.01)
    assert any("above its chord, 0 after weight-matching" in line or "e-" in line for line in found.lines)
    assert 'align = "weight-matching"' in found.details["next"]
