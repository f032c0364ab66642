"""``lmccheck symmetry``: which permutation symmetries a network has; derived, verified, shown, saved."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmccheck.cli.command import BROKEN, HELD, count, table_format
from lmccheck.cli.endpoints import require_unread
from lmccheck.errors import LmcError, SourceError, nearest

if TYPE_CHECKING:
    from torch import Generator, Tensor, dtype, nn

    from lmccheck.symmetry.spec import PermutationSpec

FLOATS = ("float32", "float64", "float16", "bfloat16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")
SHAPE = "SHAPE[:DTYPE[:BOUND]]"
EXAMPLES = 2  # samples taken from a file of inputs
BOUND = 2  # integers are 0 and 1 unless more may be meant: every vocabulary has those


@dataclass(frozen=True)
class Input:
    """One random example input: its shape, its dtype (None: the model's own float), the bound of its integers."""

    shape: tuple[int, ...]
    dtype: str | None = None
    bound: int = BOUND


HELP = "which permutation symmetries does a network have?"
DESCRIPTION = (
    "Derive a network's permutation symmetries, verify them, and show or save them. Exit status: 0 "
    "fine, 1 they change what the network computes, 2 an error."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add = command.add_argument
    add("model", metavar="MODEL", help='"module:callable" returning a torch.nn.Module, importable from this folder')
    given = command.add_mutually_exclusive_group()
    given.add_argument(
        "--input",
        metavar=SHAPE,
        type=example,
        action="append",
        default=[],
        dest="examples",
        help="a random example input, such as 2,3,224,224 or 2,16:int64:50257; repeat it for a network of several. "
        f"DTYPE: {', '.join((*FLOATS, *INTEGERS))}; by default the model's own float. Integers are drawn from 0 to "
        "BOUND − 1; BOUND is 2 by default",
    )
    given.add_argument("--inputs", metavar="FILE", help="a .safetensors file whose tensor `inputs` gives the examples")
    add("--spec", metavar="FILE", help="verify this spec file (.toml, .json) in place of a derived one")
    add("--output", metavar="FILE", help="write the spec to a .toml file, unless verification fails")
    add("--all", action="store_true", help="list every tensor, and every frozen dimension")
    add("--table", metavar="FMT", default="simple", help="any tabulate format (default: simple)")
    add("--no-verify", action="store_true", help="do not measure whether the spec keeps the function")
    add(
        "--trials",
        metavar="N",
        type=count,
        help="random permutations to verify with (default: 3, or more where groups are small)",
    )
    add("--seed", metavar="N", type=int, default=0, help="seed of everything random (default: 0)")


def example(text: str) -> Input:
    """Return the input that ``SHAPE[:DTYPE[:BOUND]]`` describes.

    >>> example("2,16:int64:100")
    Input(shape=(2, 16), dtype='int64', bound=100)
    """
    shape, *rest = text.split(":")
    sizes = shape.split(",")
    if not all(size.isdecimal() and int(size) for size in sizes) or len(rest) > 2:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {SHAPE}, such as 2,3,224,224 or 2,16:int64:100")
    known = (*FLOATS, *INTEGERS)
    dtype = rest[0] if rest else None
    if dtype is not None and dtype not in known:
        raise argparse.ArgumentTypeError(f"dtype {dtype!r}{nearest(dtype, known)}; expected one of {', '.join(known)}")
    if len(rest) == 2 and (dtype not in INTEGERS or not rest[1].isdecimal() or not int(rest[1])):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number as the bound of an integer dtype")
    return Input(tuple(map(int, sizes)), dtype, int(rest[1]) if len(rest) == 2 else BOUND)


def run(options: argparse.Namespace) -> int:
    """Derive or read a spec, verify it, print it, and write it where that was asked for."""
    table = table_format(options.table)
    if not (options.examples or options.inputs or (options.spec and options.no_verify)):
        raise LmcError("symmetry: no example inputs; mend: say --input SHAPE, such as 2,3,224,224, or --inputs FILE")
    import torch

    from lmccheck.data.model import build_module
    from lmccheck.modules.precision import own_settings
    from lmccheck.report.symmetry import describe
    from lmccheck.symmetry.discover import derive
    from lmccheck.symmetry.experts import with_experts
    from lmccheck.symmetry.spec_file import load_spec, require_toml, save_spec
    from lmccheck.symmetry.user_spec import enough_trials
    from lmccheck.symmetry.verify import TOLERANCE

    if options.output:
        require_toml(Path(options.output))
        require_unread(options, Path(options.output))
    torch.manual_seed(options.seed)
    module = build_module(options.model, Path.cwd())
    inputs = example_inputs(options, module)
    with own_settings():
        traced = None if options.spec else derive(module, inputs)
        spec = with_experts(traced.spec, traced.trace, module, inputs) if traced else load_spec(options.spec, module)
    trials = options.trials or enough_trials(spec)
    worst = None if options.no_verify else spec.verify(module, inputs, trials=trials, seed=options.seed)
    broken = worst is not None and not worst <= TOLERANCE
    title = f"{options.model}: {sum(p.numel() for p in module.parameters()):,} parameters"
    structure = None if traced is None or broken else traced.droppable
    print(describe(title, spec, verified(worst, broken), table, options.all, structure))
    if worst is not None and broken:
        print(f"lmccheck: {refused(options, spec, module, inputs, worst)}", file=sys.stderr)
        return BROKEN
    if options.output:
        print(f"\nwritten to {save_spec(spec, options.output, model=options.model)}")
    return HELD


def verified(worst: float | None, broken: bool) -> str:
    """Say what verification found, as the heading does."""
    if worst is None:
        return "not verified"
    return f"{'FAILED verification' if broken else 'verified'} in float64: outputs change by {worst:.1e}"


def refused(
    options: argparse.Namespace, spec: PermutationSpec, module: nn.Module, inputs: tuple[Any, ...], worst: float
) -> str:
    """Say what is wrong with a spec that changes the function; one that was derived is our mistake."""
    from lmccheck.symmetry.user_spec import refusal

    said = refusal(spec, module, inputs, worst, seed=options.seed)
    if options.spec:
        return f"{options.spec}: {said}"
    return f"{said.partition('; mend: ')[0]}; this is a defect of lmccheck; mend: report the model"


def example_inputs(options: argparse.Namespace, module: nn.Module) -> tuple[Tensor, ...]:
    """Return the inputs that were described, or those in a file, floats in the module's own dtype."""
    import torch

    if options.inputs:
        return stored_inputs(options.inputs, module)
    generator = torch.Generator().manual_seed(options.seed)
    return tuple(drawn(given, module, generator) for given in options.examples)


def stored_inputs(path: str | Path, module: nn.Module) -> tuple[Tensor, ...]:
    """Return the first samples of a file's tensor ``inputs``, floats in the module's own dtype. Raises SourceError."""
    from lmccheck.store import files

    tensors = files.load(path)
    if "inputs" not in tensors:
        raise SourceError(f"{path}: has no tensor 'inputs', got {sorted(tensors)}; mend: store the samples as 'inputs'")
    inputs = tensors["inputs"][:EXAMPLES] if tensors["inputs"].ndim else tensors["inputs"]
    return (inputs.to(_own(module)) if inputs.is_floating_point() else inputs,)


def drawn(given: Input, module: nn.Module, generator: Generator) -> Tensor:
    """Return a random input as it was described, a float of no other dtype in the module's own."""
    import torch

    dtype = _own(module) if given.dtype is None else getattr(torch, given.dtype)
    if given.dtype in INTEGERS:
        return torch.randint(0, given.bound, given.shape, generator=generator).to(dtype)
    return torch.randn(given.shape, generator=generator).to(dtype)


def _own(module: nn.Module) -> dtype:
    import torch

    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
