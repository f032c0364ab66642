"""Networks that are no function of their checkpoint, or are made over, are refused with the right blame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

import lmccheck
from lmccheck.errors import UnsupportedArchitecture

X = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (16,), generator=torch.Generator().manual_seed(1))


def chain(first: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> nn.Module:
    return nn.Sequential(first(nn.Linear(5, 8)), nn.ReLU(), nn.Linear(8, 3))


class Two(nn.Module):
    """Two layers, between which a subclass does as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(torch.tanh(self.a(x))))


class Averaging(Two):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("run", torch.zeros(8))

    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.run.mul_(0.9).add_(h.mean(0) * 0.1)
        return h - self.run


class Noisy(Two):
    def between(self, h: Tensor) -> Tensor:
        return F.dropout(h, 0.5, training=True)


class Drawn(Two):
    def __init__(self) -> None:
        super().__init__()
        self.features = torch.randn(8)

    def between(self, h: Tensor) -> Tensor:
        return h * self.features.to(h)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "scripted": (lambda: chain(torch.jit.script), "submodule '0': got a TorchScript module"),
    "compiled": (lambda: chain(torch.compile), "submodule '0': got what torch.compile returns"),
    "quantised": (lambda: torch.ao.quantization.quantize_dynamic(chain(), {nn.Linear}), "got a quantised module"),
    "updates a buffer": (Averaging, "changes its stored tensor 'run' in evaluation mode"),
    "draws numbers": (Noisy, "gives two outputs for the same weights and inputs"),
    "was drawn when built": (Drawn, "attribute features holds other numbers; it is drawn when the model is built"),
}


def states(build: Callable[[], nn.Module]) -> list[dict[str, Tensor]]:
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        found.append({name: tensor.detach().clone() for name, tensor in build().state_dict().items()})
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_the_blame_is_the_models_and_there_is_a_mend(kind: str) -> None:
    """One line that names the part, says what it is, and what its user can do; lmccheck takes no blame."""
    build, said = REFUSED[kind]
    a, b = states(chain if kind in ("scripted", "compiled", "quantised") else build)
    with pytest.raises(UnsupportedArchitecture) as raised:
        lmccheck.load_pair(a, b, model=build, data=(X, Y), device="cpu")
    text = str(raised.value)
    assert said in text
    assert "mend: " in text
    assert "defect" not in text
    assert "\n" not in text


def pruned() -> nn.Module:
    return chain(lambda layer: prune.random_unstructured(layer, "weight", 0.5) and layer)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.d = nn.Linear(8, 8)
        self.d.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.d(torch.tanh(self.b(torch.tanh(self.a(x)))))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.LSTM(1, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x[:, :, None])[0][:, -1])


HONEST: dict[str, Callable[[], nn.Module]] = {
    "old weight_norm": lambda: chain(weight_norm),
    "weight_norm": lambda: chain(parametrizations.weight_norm),
    "orthogonal": lambda: chain(parametrizations.orthogonal),
    "spectral_norm": lambda: chain(parametrizations.spectral_norm),
    "pruned": pruned,
    "tied": Tied,
    "recurrent": Recurrent,
    "batch norm": lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
    "compiled in place": lambda: (module := chain()).compile() or module,
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", HONEST)
def test_honest_networks_are_measured(kind: str) -> None:
    """The endpoints' losses are those of a freshly built module that loaded them, and b aligned computes what b did."""
    build = HONEST[kind]
    a, b = states(build)
    if kind == "pruned":
        b["0.weight_mask"] = a["0.weight_mask"]
    pair = lmccheck.load_pair(a, b, model=build, data=(X, Y), calibration=(X, Y), device="cpu")
    found = lmccheck.linear_connectivity(pair, align="weight-matching", points=3, limit=9.0)
    if kind != "batch norm":  # whose ends on the line have statistics taken afresh
        ends = found.details["losses"][0], found.details["losses"][-1]
        assert ends == pytest.approx((own(build, a), own(build, b)), abs=1e-5)
    assert own(build, found.witness.weights) == pytest.approx(own(build, b), abs=1e-5)


def own(build: Callable[[], nn.Module], weights: Any) -> float:
    torch.manual_seed(7)
    module = build()
    for part in module.modules():
        part._compiled_call_impl = None
    module.load_state_dict(weights)
    with torch.no_grad():
        return float(F.cross_entropy(module.eval()(X), Y))


def test_what_transformers_collect_is_whole() -> None:
    """Hidden states and attentions that a run has handed out stay as they were when other weights are loaded."""
    transformers = pytest.importorskip("transformers")
    from lmccheck.modules.runner import Runner

    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, output_hidden_states=True, output_attentions=True,
        attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    try:
        module = transformers.GPT2LMHeadModel(config).eval()
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch
        pytest.skip(f"transformers cannot be imported: {error}")
    tokens = torch.arange(8)[None] % 11
    runner = Runner(module)
    states = [{k: v + 0.1 * k_ for k, v in module.state_dict().items()} for k_ in (0, 1)]
    handed_out = []
    for state in (*states, states[0]):
        runner.load(state)
        handed_out.append(runner(tokens, "here"))
    twin = transformers.GPT2LMHeadModel(config).eval()
    for state, output in zip((*states, states[0]), handed_out, strict=True):
        twin.load_state_dict(state)
        with torch.no_grad():
            expected = twin(tokens)
        assert len(output.hidden_states) == len(expected.hidden_states) == 3
        assert len(output.attentions) == 2
        for mine, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
            assert torch.allclose(mine, theirs, atol=1e-5)
