"""The traced graph computes what the module computes, on batches of any size, and may be looked into on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Written
from networks.quick import each
from torch import Tensor, nn

import lmccheck
from lmccheck.data.load import Batch, Data
from lmccheck.evaluate import graph as graph_module
from lmccheck.evaluate.graph import GraphRunner, Stop, even_batches
from lmccheck.modules.random_weights import randomised
from lmccheck.symmetry.rules import RULES
from lmccheck.symmetry.trace import Trace, trace

CPU = torch.device("cpu")
RUN = [
    "mlp", "vgg", "resnet", "mobilenet", "squeeze_excite", "convolution_1d", "encoder_separate", "decoder_causal",
    "language_model_tied", "llama", "cross_attention", "vision_transformer",
]  # fmt: skip


def case(name: str) -> tuple[nn.Module, dict[str, Tensor], tuple[Tensor, ...]]:
    """Return a network in float64 evaluation mode that holds random weights, the weights, and example inputs."""
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    weights = randomised(module, 1)
    module = module.double().eval()
    module.load_state_dict(weights)
    return module, weights, inputs


def of_size(inputs: tuple[Tensor, ...], samples: int) -> tuple[Tensor, ...]:
    """Return random inputs like the example's, in float64 where they are not indices."""
    generator = torch.Generator().manual_seed(samples)
    return tuple(
        torch.randn(samples, *x.shape[1:], generator=generator, dtype=torch.float64)
        if x.is_floating_point()
        else torch.randint(0, 11, (samples, *x.shape[1:]), generator=generator)
        for x in inputs
    )


def output_nodes(traced: Trace) -> list[str]:
    """Return the names of the nodes that feed the graph's output."""
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    return [node.name for node in output.all_input_nodes]


def looked_at(runner: GraphRunner, weights: dict[str, Tensor], inputs: object, watched: list[str]) -> dict[str, Tensor]:
    """Return the values of the watched nodes."""
    seen: dict[str, Tensor] = {}

    def look(name: str, value: Tensor) -> None:
        assert name not in seen
        seen[name] = value.clone()

    runner.run(runner.weights(weights), inputs, watched, look, "test")
    return seen


@pytest.mark.parametrize("name", each(RUN))
def test_the_graph_gives_what_the_module_gives(name: str) -> None:
    """On 2, 5 and 7 samples the output node's value is the module's own output, to float64 rounding."""
    module, weights, inputs = case(name)
    runner = GraphRunner(module, CPU, torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():  # the runner has a copy: what is given counts, not what the module holds
            parameter.zero_()
    watched = output_nodes(trace(module, of_size(inputs, 2), RULES))
    module.load_state_dict(weights)
    for samples in (2, 5, 7):
        given = of_size(inputs, samples)
        (value,) = looked_at(runner, weights, given, watched).values()
        with torch.no_grad():
            expected = module(*given)
        assert value.shape == expected.shape
        assert len(expected) == samples
        assert torch.allclose(value, expected, rtol=1e-12, atol=1e-12)
        assert expected.std() > 1e-3  # not a constant that anything would give


def test_every_inner_value_is_the_modules() -> None:
    """What the nodes of an MLP give are its layers' outputs, each seen once, in order."""
    module, weights, inputs = case("mlp")
    runner = GraphRunner(module, CPU, torch.float64)
    x = of_size(inputs, 3)
    names = ["linear", "tanh", "linear_1", "gelu", "linear_2"]
    seen = looked_at(runner, weights, x[0], names)  # a bare tensor will do where there is one input
    assert list(seen) == names
    value = x[0]
    for layer, name in zip(module, names, strict=True):
        value = layer(value)
        assert torch.allclose(seen[name], value, rtol=1e-13, atol=1e-13)


def test_what_look_returns_is_gone_on_with() -> None:
    """A replaced hidden value gives the output of the layers after it on that value; None changes nothing."""
    module, weights, inputs = case("mlp")
    runner = GraphRunner(module, CPU, torch.float64)
    x = of_size(inputs, 4)
    replacement = torch.randn(4, 7, dtype=torch.float64)
    seen: dict[str, Tensor] = {}

    def look(name: str, value: Tensor) -> Tensor | None:
        seen[name] = value
        return replacement if name == "tanh" else None

    runner.run(runner.weights(weights), x, {"tanh", "linear_2"}, look, "test")
    with torch.no_grad():
        assert torch.allclose(seen["tanh"], module[:2](x[0]), rtol=1e-13, atol=1e-13)
        assert torch.allclose(seen["linear_2"], module[2:](replacement), rtol=1e-13, atol=1e-13)
        assert not torch.allclose(seen["linear_2"], module(x[0]), atol=1e-3)


def test_an_input_may_be_replaced_too() -> None:
    """Placeholders are shown like other nodes: the graph goes on with the input it is handed."""
    module, weights, inputs = case("mlp")
    runner = GraphRunner(module, CPU, torch.float64)
    x, other = of_size(inputs, 4)[0], torch.randn(4, 5, dtype=torch.float64)
    name = next(n for n, p in trace(module, (x,), RULES).placeholders.items() if p.kind == "input")
    seen: dict[str, Tensor] = {}

    def look(name_: str, value: Tensor) -> Tensor | None:
        seen[name_] = value
        return other if name_ == name else None

    runner.run(runner.weights(weights), x, {name, "linear_2"}, look, "test")
    assert torch.equal(seen[name], x)
    assert torch.allclose(seen["linear_2"], module(other), rtol=1e-13, atol=1e-13)


def test_a_look_that_has_seen_enough_ends_the_run() -> None:
    """Stop ends a run without an error, and what comes later is not computed."""
    module, weights, inputs = case("mlp")
    runner = GraphRunner(module, CPU, torch.float64)
    seen = []

    def look(name: str, value: Tensor) -> None:
        seen.append(name)
        if name == "tanh":
            raise Stop

    runner.run(runner.weights(weights), of_size(inputs, 2), {"linear", "tanh", "gelu"}, look, "test")
    assert seen == ["linear", "tanh"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.zeros(4, 6), "mat1 and mat2 shapes cannot be multiplied"),
        (torch.zeros(4, 5, dtype=torch.int64), "must have the same dtype"),
        ((torch.zeros(4, 5), torch.zeros(4, 5)), "but 3 were given"),
        ({"input": torch.zeros(4, 5)}, "test: got inputs as a dict, expected a tensor or a tuple"),
    ],
    ids=["shape", "dtype", "too many", "dict"],
)
def test_inputs_that_do_not_fit_are_refused_in_one_line(wrong: object, said: str) -> None:
    """SourceError, whatever does not fit, with what torch says of it."""
    module, weights, _ = case("mlp")
    runner = GraphRunner(module, CPU, torch.float64)
    with pytest.raises(lmccheck.SourceError) as raised:
        looked_at(runner, weights, wrong, ["linear"])
    assert "\n" not in str(raised.value)
    assert said in str(raised.value)


def test_what_only_running_shows_names_the_data() -> None:
    """An error of an op at run time is a SourceError that begins with where the data comes from."""

    def solve(s: Written, x: Tensor) -> Tensor:
        return s.last(torch.linalg.cholesky(s.first(x) @ s.first(x).mT))

    torch.manual_seed(0)
    module = Written(
        solve, first=nn.Linear(4, 4), last=nn.Linear(4, 2)
    )  # its own weights give no error, those it is given do
    weights = {name: torch.zeros_like(value) for name, value in module.state_dict().items()}  # 0 is not definite
    inputs = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    runner = GraphRunner(module, CPU, torch.float64)
    with pytest.raises(lmccheck.SourceError) as raised:
        looked_at(runner, weights, inputs, ["linear"])
    assert str(raised.value).startswith("test: running the traced model raised")
    assert "not positive-definite" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_batch_that_cannot_be_traced_names_the_data() -> None:
    """As documented, the error begins with where the data comes from, not with "example inputs" nobody gave."""
    module, weights, _ = case("mlp")
    runner = GraphRunner(module, CPU, torch.float64)
    with pytest.raises(lmccheck.SourceError, match=r"^test: "):
        looked_at(runner, weights, torch.zeros(4, 6), ["linear"])


def test_an_index_that_is_no_token_is_refused_in_one_line() -> None:
    """Indices beyond an embedding are the data's fault: SourceError that says where they come from."""
    module, weights, _ = case("language_model_tied")
    runner = GraphRunner(module, CPU, torch.float64)
    with pytest.raises(lmccheck.SourceError, match=r"^test: "):
        looked_at(runner, weights, torch.full((2, 6), 11), ["add"])


def test_an_index_that_is_no_token_is_refused_in_a_later_batch_too() -> None:
    """When a batch of the same shape has run before, and nothing is traced anew."""
    module, weights, _ = case("language_model_tied")
    runner = GraphRunner(module, CPU, torch.float64)
    looked_at(runner, weights, torch.full((2, 6), 10), ["add"])
    with pytest.raises(lmccheck.SourceError, match=r"^test: "):
        looked_at(runner, weights, torch.full((2, 6), 11), ["add"])


def test_a_network_that_changes_with_the_batch_is_refused() -> None:
    """A node of the trace on two samples that larger batches do not have is UnsupportedArchitecture, not a KeyError."""

    def fickle(x: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
        y = first(x)
        return last(F.relu(y) if len(x) < 3 else torch.tanh(y))

    module = Written(fickle, nn.Linear(3, 4), nn.Linear(4, 2)).double()
    runner = GraphRunner(module, CPU, torch.float64)
    weights = dict(module.state_dict())
    assert list(looked_at(runner, weights, torch.ones(2, 3), ["relu"])) == ["relu"]
    with pytest.raises(lmccheck.UnsupportedArchitecture, match=r"^test: .*\(no 'relu'\)"):
        looked_at(runner, weights, torch.ones(5, 3), ["relu"])


def numbered(samples: int) -> Data:
    """Return data whose sample k holds the number k, in inputs and targets."""
    numbers = torch.arange(samples, dtype=torch.float32)
    return Data((Batch(numbers[:, None].expand(samples, 5).clone(), numbers.clone()),), "numbers", True)


@pytest.mark.parametrize("held", [1, 40, 300, 1 << 25])
@pytest.mark.parametrize("samples", [1, 2, 3, 7, 48, 97, 360, 1025, 2048])
def test_even_batches_cover_every_sample_once(samples: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, inputs with their targets, of at most two lengths, none empty, none beyond the memory bound."""
    monkeypatch.setattr(graph_module, "HELD", held)
    module, _, _ = case("mlp")
    traced = trace(module, (torch.zeros(min(2, samples), 5, dtype=torch.float64),), RULES)
    for most in (None, 1, samples // 2 + 1, samples, samples + 5):
        batches = even_batches(numbered(samples), traced, {"tanh", "gelu"}, most)
        covered = torch.cat([batch.targets for batch in batches])
        assert torch.equal(covered, torch.arange(min(samples, most or samples), dtype=torch.float32))
        assert torch.equal(torch.cat([batch.inputs for batch in batches])[:, 3], covered)
        sizes = [batch.samples for batch in batches]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1
        limit = max(1, min(1024, held // (7 + 6)))  # tanh and gelu of one sample: 7 and 6 numbers
        assert max(sizes) <= limit
        fewest = -(-len(covered) // limit)
        if any(len(covered) % k == 0 for k in range(fewest, 2 * fewest + 1)):
            assert len(set(sizes)) == 1  # one shape is traced, where up to twice as many batches allow it


def test_a_users_own_batches_are_left_as_they_are() -> None:
    """Whoever gave batches gets those."""
    module, _, inputs = case("mlp")
    batches = tuple(Batch(torch.randn(n, 5), torch.zeros(n)) for n in (3, 1, 4))
    traced = trace(module, of_size(inputs, 2), RULES)
    assert even_batches(Data(batches, "mine", False), traced, {"tanh"}, 2) == batches


def test_runners_of_a_network_share_its_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape is traced once per network and dtype, however many runners are made; another dtype is traced anew."""
    seen: list[torch.dtype] = []

    def counted(module: nn.Module, inputs: Any, known: Any, **settings: Any) -> Any:
        seen.append(inputs[0].dtype)
        return trace(module, inputs, known, **settings)

    monkeypatch.setattr("lmccheck.evaluate.graph.trace", counted)
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    weights, x = module.state_dict(), torch.ones(4, 3)
    network = lmccheck.load_pair(weights, weights, model=module, data=(x, x), loss="mse", device="cpu").network
    for dtype in (torch.float32, torch.float32, torch.float64, torch.float64):
        runner = GraphRunner.of(network, dtype, trace(module, (x,), RULES))
        runner.prepared(runner.weights(weights), x, [], "here")
    assert seen == [torch.float32, torch.float64]
