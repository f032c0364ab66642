"""``lmccheck doctor``: what can be asked of a network, how it would be known, and why not where it cannot."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lmccheck.cli.command import BROKEN, HELD, table_format
from lmccheck.cli.symmetry import SHAPE, Input, drawn, example, stored_inputs, verified
from lmccheck.errors import SourceError, UnsupportedArchitecture

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lmccheck.network.hub.folder import FolderModel
    from lmccheck.symmetry.structure import Structure

SIDES = (32, 28, 224, 64, 16, 8, 96, 128, 256)  # of images that a network of convolutions may expect
REPEATS = 1e-4  # of an output: the same network on the same inputs again, in whatever order it sums
LENGTH = 16  # of a sequence, and of a text
KINDS = {"Conv1d": 1, "Conv2d": 2, "Conv3d": 3}  # layers, and how many sides their inputs have
CONFIGURED = "by its config.json"
Given: TypeAlias = Input | Path  # a described input, or a file of samples
SAY = f"say --input {SHAPE}, such as 2,3,224,224, or the file of samples"


@dataclass(frozen=True)
class Patient:
    """A network that ran: the inputs it took, where they are from, and what it answered."""

    title: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    origin: str
    outputs: str


HELP = "what can be asked of a network?"
DESCRIPTION = (
    "Run a network, trace it, and say what can be asked of it: how each property would be known, and "
    "why not where it cannot. Exit status: 0 fine, 1 it cannot be traced or its symmetries do not keep what it "
    "computes, 2 an error."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add = command.add_argument
    add("model", metavar="MODEL", help='"module:callable", importable from here, or a folder with a config.json')
    add(
        "--input",
        metavar="INPUT",
        action="append",
        default=[],
        help=f"{SHAPE} of a random example input, such as 2,3,224,224 or 2,16:int64:50257 (repeat it for a network of "
        "several), or a .safetensors file with a tensor `inputs`; by default what its first layer takes",
    )
    add("--table", metavar="FMT", default="simple", help="any tabulate format (default: simple)")
    add("--seed", metavar="N", type=int, default=0, help="seed of everything random (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Examine the network and print what was found."""
    table = table_format(options.table)
    given = [_given(text) for text in options.input]
    import torch

    from lmccheck.modules.precision import own_settings
    from lmccheck.report.symmetry import capabilities_table, groups_table
    from lmccheck.symmetry.capabilities import capabilities, untraced
    from lmccheck.symmetry.discover import derive
    from lmccheck.symmetry.user_spec import enough_trials
    from lmccheck.symmetry.verify import TOLERANCE

    torch.manual_seed(options.seed)
    patient = examined(options.model, given, options.seed)
    print(f"{patient.title}: {sum(p.numel() for p in patient.module.parameters()):,} parameters")
    print(f"inputs: {patient.origin}\nruns: yes, outputs {patient.outputs}")
    try:
        with own_settings():
            traced = derive(patient.module, patient.inputs)
    except UnsupportedArchitecture as error:
        print(f"traced: no: {error}\n")
        print(capabilities_table(untraced(str(error)), table))
        return BROKEN
    spec = traced.spec
    worst = spec.verify(patient.module, patient.inputs, trials=enough_trials(spec), seed=options.seed)
    broken = not worst <= TOLERANCE
    print(f"traced: yes, {verified(worst, broken)}")
    if broken:
        print("this is a defect of lmccheck; mend: report the model; lmccheck symmetry says where they differ")
        return BROKEN
    structure = traced.droppable
    print(f"units: {_units(structure, len(spec.groups))}; {100 * spec.free_share:.4g} % of its numbers may be permuted")
    asked = capabilities(structure)
    paths = ", ".join(f"{name} {asked[name].how}" for name in ("dropout_path", "ten_segment_path"))
    print(f"paths: {paths}\n")
    parts = [capabilities_table(asked, table)]
    parts += [groups_table(spec, table, structure=structure)] if spec.groups else []
    print("\n\n".join(parts))
    return HELD


def _units(structure: Structure, groups: int) -> str:
    held = sum(structure.sizes.values())
    whole = f", {len(structure.whole)} left whole" if structure.whole else ""
    return f"{groups} groups, {len(structure.sizes)} of them droppable ({held} units{whole})"


def _given(text: str) -> Given:
    """Return the input that was described, or the file that has some."""
    if text.endswith(".safetensors") or Path(text).is_file():
        return Path(text)
    try:
        return example(text)
    except argparse.ArgumentTypeError as error:
        raise SourceError(f"--input: {error}, or a .safetensors file with a tensor `inputs`") from None


def examined(model: str, given: list[Given], seed: int) -> Patient:
    """Return the network with inputs on which it runs. Raises SourceError where it runs on none."""
    from lmccheck.data.model import build_module
    from lmccheck.network.hub.folder import folder_model

    if model.endswith(".safetensors"):
        raise SourceError(
            f"{model}: weights, expected a network: module:callable, or a folder with a config.json; mend: lmccheck "
            "init writes one from two such files where their names and shapes say it"
        )
    title, named = model, None
    if Path(model).is_dir():
        named = folder_model(Path(model), "MODEL")
        title = named.label
    module = build_module(model if named is None else named, Path.cwd()).eval()
    candidates = [(given, "as given")] if given else list(guessed(module, named))
    why = "nothing says what it takes"
    for inputs, origin in candidates:
        try:
            tensors = _tensors(inputs, module, seed)
            outputs = _ran(module, tensors, title, samples=None if given else 2)
        except SourceError as error:
            if given:
                raise
            why = str(error).partition("; mend: ")[0]
            continue
        shapes = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors)
        return Patient(title, module, tensors, f"{shapes}, {origin}", outputs)
    raise SourceError(f"{title}: no --input, and of {len(candidates)} guesses none runs: {why}; mend: {SAY}")


def _tensors(inputs: list[Given], module: nn.Module, seed: int) -> tuple[Tensor, ...]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return tuple(
        tensor
        for each in inputs
        for tensor in ([drawn(each, module, generator)] if isinstance(each, Input) else stored_inputs(each, module))
    )


def _ran(module: nn.Module, inputs: tuple[Tensor, ...], title: str, samples: int | None) -> str:
    """Return the shapes of what a network answers. Raises SourceError where it does not run, or answers at random.

    Of inputs that are guessed it must answer one for each of the ``samples``: some shapes run by chance.
    """
    import torch

    from lmccheck.data.trees import tensors_in
    from lmccheck.modules.runner import TWO_OUTPUTS, run_module

    first = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    found, again = (tensors_in(run_module(module, inputs, title, first.device, first.dtype)) for _ in range(2))
    if not found:
        raise SourceError(f"{title}: answers no floating tensor; mend: {SAY}")
    if samples is not None and (not found[0].ndim or len(found[0]) != samples):
        raise SourceError(f"{title}: answers {tuple(found[0].shape)} to {samples} samples; mend: {SAY}")
    if not all(
        torch.allclose(one, two, rtol=REPEATS, atol=REPEATS, equal_nan=True)
        for one, two in zip(found, again, strict=True)
    ):
        raise UnsupportedArchitecture(f"{title}: {TWO_OUTPUTS}")
    return ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in found[:3])


def guessed(module: nn.Module, named: FolderModel | None = None) -> Iterator[tuple[list[Given], str]]:
    """Yield inputs that a network may take, likeliest first: by its config if it has one, else by its first layer."""
    config: Any = None if named is None else named.config
    if config is not None:
        channels, side = getattr(config, "num_channels", None), getattr(config, "image_size", None)
        if channels and isinstance(side, int):
            yield [Input((2, channels, side, side))], CONFIGURED
        if vocabulary := getattr(config.get_text_config(), "vocab_size", None):
            yield [Input((2, LENGTH), "int64", vocabulary)], CONFIGURED
    for name, layer in module.named_modules():
        shapes = list(_shapes(layer)) if any(True for _ in layer.parameters(recurse=False)) else []
        for shape in shapes:
            yield [shape], f"guessed from {name or 'its layer'!r} (say --input where it takes others)"
        if shapes:
            return


def _shapes(layer: nn.Module) -> Iterator[Input]:
    """Yield the inputs that a layer takes, likeliest first."""
    kind = type(layer).__name__
    if kind == "Embedding":
        yield Input((2, LENGTH), "int64", int(layer.num_embeddings))  # type: ignore[arg-type]  # of a module, by name
    elif kind in KINDS:
        channels = int(layer.in_channels)  # type: ignore[arg-type]  # of a module, by name
        yield from (Input((2, channels, *(side,) * KINDS[kind])) for side in SIDES)
    else:
        width = getattr(layer, "in_features", None) or getattr(layer, "input_size", None)
        if isinstance(width, int):
            yield from (Input((2, width)), Input((2, LENGTH, width)))
