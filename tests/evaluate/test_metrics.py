"""Metrics against slow loops in float64, and where they must differ; what is no metric is one line."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import nn

from lmccheck import SourceError, linear_connectivity, load_pair
from lmccheck.data.load import Batch, Data
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.metrics import BUILT_IN, metric
from lmccheck.evaluate.slices import slices
from lmccheck.properties.settings import METRICS

WORDS, LONG = 6, 9
LENGTHS = (9, 3, 5, 2)


class Words(nn.Module):
    """What follows a word depends on the word."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WORDS)

    def forward(self, tokens):
        return self.table(tokens)


@pytest.fixture(scope="module")
def text():
    """A pair, and rows of 9, 3, 5 and 2 tokens."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(WORDS, (len(LENGTHS), LONG), generator=generator)
    targets = tokens.clone()
    for k, length in enumerate(LENGTHS):
        targets[k, length:] = -100
    ends = [{"table.weight": 2 * torch.randn(WORDS, WORDS, generator=generator)} for _ in range(2)]
    data = Data((Batch(tokens, targets),), "data", True, columns={"task": ("x", "y", "x", "y")})
    return load_pair(*ends, model=Words, data=data, loss="next_token", device="cpu"), tokens, ends


def by_hand(tokens, weights):
    """(loss, wrong) of every token that is predicted, a list for each row."""
    table = weights["table.weight"].double()
    found = []
    for row, length in zip(tokens.tolist(), LENGTHS, strict=True):
        each = []
        for t in range(length - 1):
            logits = table[row[t]].tolist()
            total = math.log(sum(math.exp(x) for x in logits))
            each.append((total - logits[row[t + 1]], 100.0 * (max(range(WORDS), key=logits.__getitem__) != row[t + 1])))
        found.append(each)
    return found


def scored(pair, theta, name):
    evaluator = Evaluator(pair.network, theta)
    found = evaluator.measure(evaluator.weights(theta), reestimate=False, label="a")
    return metric(name).scores(evaluator, theta, found)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_a_metric_of_the_users_own_gets_the_weights_that_are_scored(text):
    """Not those that were measured last."""
    pair, tokens, ends = text

    def first_number(model, batches):
        return torch.full((len(tokens),), float(model.table.weight[0, 0]))

    evaluator = Evaluator(pair.network, ends[0])
    measured = [evaluator.measure(evaluator.weights(end), reestimate=False, label="a") for end in ends]
    values = [
        metric(first_number).scores(evaluator, end, found).value for end, found in zip(ends, measured, strict=True)
    ]
    assert values == pytest.approx([float(end["table.weight"][0, 0]) for end in ends])


def test_every_metric_is_what_a_loop_over_tokens_gives(text):
    """Means of rows, means of tokens, and the exponential of the latter."""
    pair, tokens, ends = text
    rows = by_hand(tokens, ends[0])
    flat = [token for row in rows for token in row]
    expected = {
        "loss": mean(mean(loss for loss, _ in row) for row in rows),
        "token-loss": mean(loss for loss, _ in flat),
        "perplexity": math.exp(mean(loss for loss, _ in flat)),
        "error": mean(mean(wrong for _, wrong in row) for row in rows),
        "accuracy": 100 - mean(mean(wrong for _, wrong in row) for row in rows),
    }
    for name, value in expected.items():
        assert scored(pair, pair.theta_a, name).value == pytest.approx(value, rel=1e-6), name
    assert abs(expected["loss"] - expected["token-loss"]) > 0.05
    assert tuple(BUILT_IN) == METRICS
    assert [metric(name).unit for name in METRICS] == ["nats", "nats", "perplexity", "points", "points"]


def test_two_rows_of_different_lengths_in_closed_form():
    """One row of one prediction at loss ln 2 and one of three at ln 8: mean ln 4, by token (ln 2 + 3 ln 8)/4."""
    table = torch.full((3, 3), -60.0)
    table[0] = torch.tensor([0.0, 0.0, -60.0])  # ½ each
    table[2] = torch.tensor([0.0, math.log(7.0), -60.0])  # ⅛ for 0

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = nn.Parameter(table[0].clone()), nn.Parameter(table[2].clone())

        def forward(self, tokens):
            return torch.where((tokens[:, :1] == 0).unsqueeze(-1), self.first, self.rest).expand(
                -1, tokens.shape[1], -1
            )

    tokens = torch.tensor([[0, 0, 0, 0], [2, 0, 0, 0]])
    targets = torch.tensor([[0, 1, -100, -100], [2, 0, 0, 0]])
    end = Three().state_dict()
    pair = load_pair(end, end, model=Three, data=(tokens, targets), loss="next_token", device="cpu")
    assert scored(pair, pair.theta_a, "loss").value == pytest.approx(math.log(4), rel=1e-6)
    assert scored(pair, pair.theta_a, "token-loss").value == pytest.approx(
        (math.log(2) + 3 * math.log(8)) / 4, rel=1e-6
    )
    assert scored(pair, pair.theta_a, "perplexity").value == pytest.approx(2 ** (10 / 4), rel=1e-6)
    result = linear_connectivity(pair, align="none", points=3)
    assert result.details["tokens"]["a"] == pytest.approx({"loss": 2.5 * math.log(2), "perplexity": 2**2.5}, rel=1e-6)
    said = "where each token weighs the same, not each sample: a 1.733 nats (perplexity 5.657), b 1.733 nats"
    assert sum(note.startswith(said) for note in result.details["notes"]) == 1


def test_nothing_is_said_of_tokens_where_there_are_none():
    """Classes of samples have no perplexity."""
    end = nn.Linear(2, 3).state_dict()
    data = (torch.randn(8, 2), torch.arange(8) % 3)
    pair = load_pair(end, end, model=lambda: nn.Linear(2, 3), data=data, device="cpu")
    result = linear_connectivity(pair, align="none", points=3)
    assert "tokens" not in result.details
    assert not any("token" in note for note in result.details["notes"])


def lengths(model, batches):
    """A metric of a user's own: the sum of the largest logits."""
    return [float(row.max(-1).values.sum()) for inputs, _ in batches for row in model(inputs)]


lengths.higher_is_better = True
lengths.unit = "logits"


def test_a_function_of_model_and_batches_is_a_metric(text):
    """It gets the module with the weights that are asked about; attributes say its unit and its direction."""
    pair, tokens, ends = text
    made = metric(lengths)
    assert (made.unit, made.higher_is_better, made.worse_by(1.0, 3.0)) == ("logits", True, 2.0)
    for theta, weights in ((pair.theta_a, ends[0]), (pair.theta_b, ends[1])):
        by_rows = [sum(float(weights["table.weight"][t].max()) for t in row) for row in tokens.tolist()]
        assert scored(pair, theta, lengths).value == pytest.approx(mean(by_rows), rel=1e-5)


def test_a_metric_may_write_into_what_it_is_given(text):
    """Weights, inputs and targets that it overwrites are those of its call alone."""
    pair, tokens, ends = text

    def careless(model, batches):
        found = lengths(model, batches)
        for tensor in (*model.parameters(), *(tensor for batch in batches for tensor in batch)):
            tensor.zero_()
        return found

    before = [end["table.weight"].clone() for end in ends], tokens.clone()
    evaluator, made = Evaluator(pair.network, pair.theta_a), metric(careless)
    for theta in (pair.theta_a, pair.theta_b, pair.theta_a):
        weights = evaluator.weights(theta)
        found = evaluator.measure(weights, reestimate=False, label="an end")
        by_rows = [sum(float(theta["table.weight"][t].max()) for t in row) for row in before[1].tolist()]
        assert made.scores(evaluator, weights, found).value == pytest.approx(mean(by_rows), rel=1e-5)
        assert torch.equal(evaluator.measure(weights, reestimate=False, label="an end").losses, found.losses)
    assert torch.equal(tokens, before[1])
    assert all(torch.equal(end["table.weight"], own) for end, own in zip(ends, before[0], strict=True))


def test_a_metric_that_draws_is_refused(text):
    """Two calls on one batch differ, whichever source of random numbers is asked; a seed of its own is no such case."""
    pair, _, _ = text
    for draw in (random.random, lambda: float(torch.rand(())), itertools.count().__next__):
        with pytest.raises(SourceError, match=r"gives .* and then .* for the same model and sample \(sample 0\)"):
            scored(pair, pair.theta_a, lambda model, batches, draw=draw: [draw() for _, t in batches for _ in t])
    seeded = scored(
        pair, pair.theta_a, lambda model, batches: [random.Random(0).random() for _, t in batches for _ in t]
    )
    assert seeded.value == pytest.approx(random.Random(0).random())


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda model, batches: 1 / 0, r"calling it raised ZeroDivisionError"),
        (lambda model, batches: 0.5, r"returned shape \(\), expected \(4,\), one number a sample; mend: no mean"),
        (lambda model, batches: [0.5], r"returned shape \(1,\), expected \(4,\)"),
        (lambda model, batches: ["a"] * 4, r"returned list, expected 4 numbers"),
        (lambda model, batches: None, r"expected"),
        (lambda model, batches: [math.nan] * 4, r"returned nan for sample 0, expected finite"),
    ],
)
def test_a_function_that_gives_something_else_is_one_line(text, function, said):
    """What it returned, and what was expected."""
    pair, _, _ = text
    with pytest.raises(SourceError, match=said):
        scored(pair, pair.theta_a, function)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("perplexty", r"metric 'perplexty': unknown \(did you mean 'perplexity'\?\); expected one of loss, token-loss"),
        ({"task": "x"}, "metric {'task': 'x'}: unknown; expected one of loss"),
        ({"lm_eval": "no/such.yaml"}, "metric lm_eval 'no/such.yaml': no such file, expected the YAML of a task"),
        ("nowhere:metric", "metric 'nowhere:metric': no module 'nowhere'"),
    ],
)
def test_what_is_no_metric_is_one_line(given, said):
    """With the nearest name."""
    with pytest.raises(SourceError, match=said):
        metric(given)


def test_a_loss_without_errors_has_no_accuracy():
    """Of a regression nothing is right or wrong."""
    end = nn.Linear(2, 1).state_dict()
    data = (torch.randn(8, 2), torch.randn(8, 1))
    pair = load_pair(end, end, model=lambda: nn.Linear(2, 1), data=data, loss="mse", device="cpu")
    with pytest.raises(SourceError, match=r"metric 'error': the loss mse has no 0-1 errors"):
        scored(pair, pair.theta_a, "accuracy")


def test_parts_are_those_of_a_column_or_of_classes(text):
    """Means of each, against a loop; samples that count nothing are in none of them."""
    pair, tokens, ends = text
    parts = slices(pair.data, "task")
    found = scored(pair, pair.theta_a, "perplexity")
    rows = by_hand(tokens, ends[0])
    expected = {
        name: math.exp(mean(loss for k, row in enumerate(rows) for loss, _ in row if k % 2 == odd))
        for odd, name in enumerate("xy")
    }
    assert parts.each(lambda which: found.of(which).value) == pytest.approx(expected, rel=1e-6)
    assert parts.counts == [2, 2]
    losses = torch.arange(4.0)
    assert parts.means(losses).tolist() == [1.0, 2.0]
    images = Data((Batch(torch.zeros(5, 1), torch.tensor([7, 0, 7, 7, 0])),), "data", True)
    assert (slices(images, "class").names, slices(images, "class").counts) == (("0", "7"), [2, 3])


@pytest.mark.parametrize(
    ("columns", "by", "said"),
    [
        (
            {"task": ("x", "y")},
            "tasks",
            r"by = 'tasks': no such column \(did you mean 'task'\?\); expected one of task",
        ),
        ({"task": ("x", "x")}, "task", r"by = 'task': all 2 samples are one part, 'x', expected two or more"),
        ({"task": ("x", None)}, "task", r"^t.jsonl:9: no 'task', by which samples are told apart"),
        ({"task": ("x", "y")}, "class", r"by = 'class': targets of shape \(2, 3\) are no classes of samples"),
    ],
)
def test_what_tells_no_parts_is_one_line(columns, by, said):
    """No such column, one part only, a row without it, targets that are no classes."""
    zeros = torch.zeros(2, 3, dtype=torch.int64)
    data = Data((Batch(zeros, zeros),), "data", True, columns=columns, places=("t.jsonl:1", "t.jsonl:9"))
    with pytest.raises(SourceError, match=said):
        slices(data, by)


def test_parts_are_in_the_order_of_their_numbers_and_no_figure_is_the_worst():
    """Class 2 comes before class 10; by a metric of which more or less is better, no number is infinitely worse."""
    data = Data((Batch(torch.zeros(4, 1), torch.tensor([10, 2, 2, 10])),), "d", True)
    found = slices(data, "class")
    assert (found.names, found.index.tolist()) == (("2", "10"), [1, 0, 0, 1])
    for name in ("loss", "accuracy"):
        assert metric(name).worse_by(math.nan, 1.0) == math.inf
