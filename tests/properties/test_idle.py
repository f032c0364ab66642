"""Units that nothing depends on are stable for no reason of theirs: a pass says so."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lmccheck


class Scaled(nn.Module):
    """Two residual branches, each times a scale; the scale of the second is 0, as where training begins."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.up = nn.ModuleList(nn.Linear(6, 8) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(8, 6) for _ in range(2))
        self.scale = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for up, down, scale in zip(self.up, self.down, self.scale.unbind(), strict=True):
            h = h + scale * down(torch.relu(up(h)))
        return self.head(h)


def scaled(**changed: Tensor) -> lmccheck.SingleModel:
    torch.manual_seed(0)
    module = Scaled().double()
    data = (torch.randn(40, 5).double(), torch.randint(0, 3, (40,)))
    state = {**module.state_dict(), **changed}
    return lmccheck.load_model(state, model=module, data=data, calibration=data, device="cpu")


def notes_on_effect(result: lmccheck.Result) -> list[str]:
    return [note for note in result.details["notes"] if "says nothing" in note]


def test_a_branch_times_zero_is_said_to_have_no_effect() -> None:
    """By dropout, its witness, and masks, in the row, the notes and the details; the branch times 1 is not named."""
    model = scaled()
    dropped = lmccheck.dropout_stability(model, epsilon=100.0, profile="dev", refit=False)
    masked = lmccheck.noise_stability(model, epsilon=100.0, masks=2)
    for result in (dropped, masked, lmccheck.verify_dropout(model, dropped.witness)):
        assert result.details["without_effect"] == {"model": ["up.1"]}
        assert result.details["known"].endswith("; 1 of 3 groups without effect")
        (note,) = notes_on_effect(result)
        assert note.startswith("dropping all of 'up.1' changes no loss")


def test_layers_of_a_branch_times_zero_are_said_to_pass_for_nothing() -> None:
    """Gaussian noise in down.1 alone changes no output; what up.1 reads is the stream, which keeps its noise."""
    (note,) = notes_on_effect(lmccheck.noise_stability(scaled(), noise="gaussian", epsilon=100.0, masks=2))
    assert note.startswith("noise in down.1 alone changes no output")


def test_a_small_effect_is_one() -> None:
    """A scale of 1e-6 in place of 0: nothing is said."""
    model = scaled(scale=torch.tensor([1.0, 1e-6]).double())
    result = lmccheck.noise_stability(model, epsilon=100.0, masks=2)
    assert result.details["without_effect"] == {"model": []}
    assert "without effect" not in result.details["known"]
    assert not notes_on_effect(result)
