"""The registry of alignment methods: what a file declares is what is known, asked for, and checked before it runs."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable

import pytest
import torch
from networks.small import seeded, small_mlp

import lmccheck
from lmccheck.alignment import methods
from lmccheck.alignment.contract import Problem
from lmccheck.alignment.methods import INNER, METHODS, declared, starts
from lmccheck.alignment.methods.best import solve
from lmccheck.evaluate.calibration import CalibrationBarrier

EVERY = (*METHODS.names(), *INNER.names())


@pytest.fixture
def problem() -> Problem:
    """A traced pair with calibration data."""
    a, b = (seeded(small_mlp, seed) for seed in (0, 1))
    module = small_mlp()
    x = torch.randn(8, next(iter(a.values())).shape[1], generator=torch.Generator().manual_seed(0))
    y = torch.zeros(8, dtype=torch.int64)
    pair = lmccheck.load_pair(a, b, model=module, data=(x, y), calibration=(x, y), device="cpu")
    return Problem(pair)


def test_every_file_declares_a_method_and_nothing_else_does() -> None:
    """Adding a file is all that adding a method takes: the modules of the package are those of the methods."""
    files = {f"{methods.__name__}.{found.name}" for found in pkgutil.iter_modules(methods.__path__)}
    assert {declared(name).run.__module__ for name in EVERY} == files


@pytest.mark.parametrize("name", EVERY)
def test_a_method_says_what_it_does(name: str) -> None:
    """In one sentence, for the documentation; and needs nothing that is not known."""
    found = declared(name)
    assert found.name == name
    assert found.description.endswith(".")
    assert set(found.needs) <= {"calibration", "traced"}


@pytest.mark.parametrize("name", EVERY)
def test_what_a_method_needs_is_asked_for_under_its_name(name: str, problem: Problem) -> None:
    """Where calibration data, or the traced network, is missing: one line before anything is run, or none is needed."""
    pair = problem.pair
    without = Problem(pair.measured_on(pair.data, None))
    sources = {"model": pair.module, "data": pair.data, "calibration": pair.calibration, "symmetry": problem.spec}
    given = Problem(lmccheck.load_pair(pair.theta_a, pair.theta_b, **sources))
    cases = (("calibration", without, lmccheck.SourceError), ("traced", given, lmccheck.UnsupportedArchitecture))
    for need, poor, error in cases:
        if need in declared(name).needs:
            with pytest.raises(error, match=f"align = '{name}' "):
                solve(poor, name)
        else:
            poor.spec.check(solve(poor, name).permutation)


def test_the_order_of_starts_is_declared() -> None:
    """Of equal barriers the first wins: leaving the units as they are comes before everything else."""
    assert starts() == ("identity", "weight-matching", "together", "activation-matching", "transport", "transport-both")


def test_an_inner_method_cannot_be_chosen_by_name(problem: Problem) -> None:
    """It is tried by others; the message lists those that can."""
    assert not set(INNER.names()) & set(METHODS.names())
    with pytest.raises(lmccheck.LmcError, match=r"unknown method 'together'.*weight-matching"):
        lmccheck.align(problem.pair, "together")


def of_loss(problem: Problem, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Problem:
    """The same networks under another loss."""
    pair = problem.pair
    x, y = pair.data.batches[0].inputs, pair.data.batches[0].targets
    given = {"model": pair.module, "data": (x, y), "calibration": (x, y), "loss": loss, "device": "cpu"}
    return Problem(lmccheck.load_pair(pair.theta_a, pair.theta_b, **given))


def errors_of(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A count of errors, which has no gradient."""
    return (outputs.argmax(1) != targets).double()


def counted_by_numpy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same by NumPy, which refuses numbers that autograd follows."""
    return torch.from_numpy((outputs.numpy().argmax(1) != targets.numpy()).astype("float64"))


def test_a_loss_that_autograd_cannot_follow_is_one_line(problem: Problem) -> None:
    """Learning is refused with what to do, not by torch's own error."""
    with pytest.raises(lmccheck.SourceError, match=r"align = 'learned' differentiates the loss.*mend: make model and"):
        solve(of_loss(problem, errors_of), "learned")


def whole_numbers(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same as integers, of which torch takes no mean."""
    return (outputs.argmax(1) != targets).long()


@pytest.mark.parametrize("loss", [errors_of, counted_by_numpy, whole_numbers])
def test_the_best_of_a_loss_without_gradient_is_the_best_of_what_needs_none(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], problem: Problem
) -> None:
    """Nothing is learned, of orders and of maps beyond them, and the row says so with the reason."""
    errors = of_loss(problem, loss)
    found = solve(errors, "best")
    tried = [candidate["method"] for candidate in found.facts["candidates"]]
    assert "learned" not in tried
    assert tried[: len(tried)] == list(starts())[: len(tried)]
    line = lmccheck.linear_connectivity(errors.pair, align="best", beyond="all", points=3, limit=1.0)
    (said,) = (note for note in line.details["notes"] if "learned" in note)
    assert re.match(r"nothing was learned by gradients: .*(differentiates the loss|numpy).*; mend: ", said)
    maps = line.details["alignment"]["maps"]
    assert list(maps["calibration_barriers"]) == ["permutation", "fitted", "permutation alone"]
    alone = errors.spec.apply(errors.pair.theta_b, found.permutation)
    assert maps["calibration_barriers"]["permutation alone"] == CalibrationBarrier(errors.pair)(alone)
    assert maps["calibration_barriers"][maps["kept"]] == min(maps["calibration_barriers"].values())


def of_two_samples(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss that autograd follows on two samples and no more."""
    if outputs.requires_grad and len(outputs) > 2:
        raise RuntimeError("too large for autograd")
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")


def test_a_loss_that_fails_only_while_it_is_learned_from_ends_nothing(problem: Problem) -> None:
    """What was asked on two samples held; the rest is tried all the same, and the row says what failed."""
    line = lmccheck.linear_connectivity(
        of_loss(problem, of_two_samples).pair, align="best", beyond="all", points=3, limit=9.0
    )
    said = [note for note in line.details["notes"] if "nothing was learned" in note]
    assert len(said) == 1
    assert "too large for autograd" in said[0]
    assert "learned" not in line.details["alignment"]["maps"]["calibration_barriers"]


def test_nothing_is_said_of_learning_where_nothing_else_was_tried(problem: Problem) -> None:
    """Networks of one initialisation without a barrier stay as they are, whatever their loss."""
    pair = of_loss(problem, errors_of).pair
    near = {name: tensor * 1.001 for name, tensor in pair.theta_a.items()}
    found = solve(Problem(pair.with_weights(pair.theta_a, near)), "best")
    assert [candidate["method"] for candidate in found.facts["candidates"]] == ["identity"]
    assert "not_learned" not in found.facts


def test_where_a_gradient_is_no_number_learning_keeps_what_it_has_met(problem: Problem) -> None:
    """√ of the distance to the largest logit has an infinite slope at 0; the order found is still one."""

    def slope(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.amax(1) - outputs.gather(1, outputs.argmax(1, keepdim=True))[:, 0]).sqrt() + outputs[:, 0] ** 2

    odd = of_loss(problem, slope)
    found = solve(odd, "learned")
    odd.spec.check(found.permutation)
    assert found.facts["best_step"] == 0
