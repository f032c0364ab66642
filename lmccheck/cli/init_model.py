"""Which network checkpoints are of: that of their folders, one of a models.py that is there, or an inferred one."""

from __future__ import annotations

import ast
import math
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmccheck.cli.draft import MODELS, Draft
from lmccheck.cli.sketch import UNKNOWN, Choice, Layer, Unclear, chain, choices, source
from lmccheck.errors import LmcError, SourceError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLES = 1024  # that decide what no file says
CLEAR = 0.8  # of the loss of the next best, that of the best at most
LISTED = 12  # tensors that a stub names


@dataclass(frozen=True)
class Tried:
    """A choice with what came of it: the losses of the checkpoints."""

    choice: Choice
    losses: tuple[float, ...]
    outputs: Tensor


def settle_model(draft: Draft, named: str | None) -> None:
    """Say which network it is, or write a stub that says in one line that a person must. Raises LmcError."""
    normed = any(name.endswith("running_mean") for name in draft.found[0].tensors)
    draft.repair = "none" if normed and draft.calibration is None else ""
    if named is not None:
        draft.model = named
        draft.said.append(f"model: {named}")
        return
    if draft.folders:
        draft.said.append("model: as the config.json of each folder says")
    elif (draft.folder / MODELS).is_file():
        draft.model = _of_module(draft)
        draft.said.append(f"model: {draft.model}, whose tensors are those of the checkpoints")
    else:
        draft.model = f"{Path(MODELS).stem}:model"
        draft.models = inferred(draft)
    if draft.data is None:
        if (draft.folder / MODELS).is_file():
            raise SourceError("init: no file of samples beside the checkpoints, expected one; mend: say --data FILE")
        draft.models += ("\n\n" if draft.models else HEAD) + NO_DATA
        draft.said.append(f"data: none found; mend: return them in {MODELS}, or name a file in the manifest")


def _of_module(draft: Draft) -> str:
    """Return the callable of a models.py that builds a network with these tensors. Raises SourceError."""
    from lmccheck.data.model import build_module
    from lmccheck.modules.stored import stored_tensors

    expected = {name: header.shape for name, header in draft.found[0].tensors.items()}
    fitting, tried = [], []
    for name in _callables(draft.folder / MODELS):
        tried.append(name)
        try:
            module = build_module(f"{Path(MODELS).stem}:{name}", draft.folder)
            shapes = {key: tuple(tensor.shape) for key, tensor in stored_tensors(module).items()}
        except LmcError:
            continue
        if shapes == expected:
            fitting.append(name)
    if len(fitting) != 1:
        got = f"{', '.join(fitting)} all have" if fitting else f"none of {', '.join(tried) or 'no callables'} has"
        raise SourceError(
            f"{MODELS}: {got} the tensors of {draft.named[0]}, expected one callable; mend: say --model models:NAME"
        )
    return f"{Path(MODELS).stem}:{fitting[0]}"


def _callables(path: Path) -> Iterator[str]:
    """Yield what a file defines that may be called without arguments: its public functions and classes."""
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError) as error:
        raise SourceError(f"{MODELS}: cannot be read: {error}; mend: correct it, or say --model") from None
    for node in body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            if len(node.args.args) <= len(node.args.defaults) and None not in node.args.kw_defaults:
                yield node.name
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


HEAD = '"""What a gate runs that lmccheck init wrote; yours from now on."""\n\n'
NO_DATA = '''\
def data():
    """Return batches of (inputs, targets): what verdicts are measured on."""
    raise NotImplementedError("models.py: no file of samples was found; mend: return [(inputs, targets)] in data()")
'''


def inferred(draft: Draft) -> str:
    """Return the text of a models.py: the network that names and shapes say, or a stub."""
    tensors = draft.found[0].tensors
    try:
        layers = chain(tensors)
        told, expression = decided(draft, layers)
    except Unclear as error:
        draft.said.append(f"model: not inferred: {error}; mend: return it in {MODELS}")
        listed = [f"    # {name} {header.shape}" for name, header in list(tensors.items())[:LISTED]]
        more = [f"    # and {len(tensors) - LISTED} more"] if len(tensors) > LISTED else []
        text = f"{MODELS}: which network the checkpoints are of is not known ({error}); mend: return it in model()"
        told, lines = "Return the network that has these tensors.", [HEAD.rstrip(), ""]
        body = [*map(one_line_of, (*listed, *more)), f"    raise NotImplementedError({text!r})", ""]
        return "\n".join([*lines, "", "def model():", f'    """{told}"""', *body])
    lines = [HEAD.rstrip(), "", "from collections import OrderedDict", "", "from torch import nn", ""]
    body = [one_line_of(f"    # {told}"), f"    return {expression}", ""]
    if UNKNOWN in expression:
        text = f"{MODELS}: no file says which function follows each layer; mend: say ACTIVATION = nn.ReLU, or another"
        lines += ["ACTIVATION = None  # nn.ReLU, nn.GELU, nn.Tanh …: no file says it", ""]
        body = ["    if ACTIVATION is None:", f"        raise NotImplementedError({text!r})", *body]
    draft.said.append(f"model: inferred from names and shapes; {told}")
    doc = '    """Return the network that names and shapes of its tensors say."""'
    return "\n".join([*lines, "", "def model():", doc, *body])


def one_line_of(text: str) -> str:
    """Return a comment that no name of a file or of a tensor can leave."""
    indent = text[: len(text) - len(text.lstrip())]
    return indent + one_line(text.lstrip())


def decided(draft: Draft, layers: Sequence[Layer]) -> tuple[str, str]:
    """Return how what no file says was decided, in a clause, and the expression. Raises Unclear where it was not."""
    samples = (
        None if draft.data is None or draft.texts or draft.loss not in ("cross_entropy", "mse") else _samples(draft)
    )
    options = choices(layers, None if samples is None else tuple(samples[0].shape[1:]))
    if samples is None:
        told = (
            "which function follows each layer is left to you"
            if options[0].activation == UNKNOWN
            else "nothing is open"
        )
        if layers[0].dims:
            raise Unclear("padding and pooling of convolutions are in no file, and there are no samples to tell by")
        return told, source(layers, options[0])
    tried, why = [], "none of what was tried runs on the samples"
    for choice in options:
        try:
            tried.append(_tried(draft, source(layers, choice), choice, samples))
        except Unclear as error:
            why = str(error)
        except (RuntimeError, ValueError, IndexError) as error:
            why = f"it does not run on the samples: {str(error).splitlines()[0]}"
    if not tried:
        raise Unclear(why)
    best, *others = sorted(tried, key=lambda each: sum(each.losses))
    different = [each for each in others if not _alike(each.outputs, best.outputs)]
    if any(loss >= constant for loss, constant in zip(best.losses, _constant(draft, samples), strict=True)):
        raise Unclear(f"of {len(tried)} networks that fit none answers better than a constant")
    close = [each for each in different if sum(best.losses) > CLEAR * sum(each.losses)]
    if close:
        two = "; ".join(f"{each.choice} {sum(each.losses):.4g}" for each in (best, close[0]))
        if {replace(each.choice, activation="") for each in (best, *close)} != {replace(best.choice, activation="")}:
            raise Unclear(f"two networks fit the samples about as well: {two}")
        told = f"which function follows each layer is left to you, since losses do not tell them apart: {two}"
        return told, source(layers, replace(best.choice, activation=UNKNOWN))
    of = draft.calibration if samples[2] else draft.data
    beside = f", the next {different[0].choice} {sum(different[0].losses):.3g}" if different else ""
    told = f"{best.choice} has the lowest loss of {len(tried)} tried on {of}: {sum(best.losses):.3g}{beside}"
    return told if len(options) > 1 else "nothing is open", source(layers, best.choice)


def _samples(draft: Draft) -> tuple[Tensor, Tensor, bool]:
    """Return inputs and targets that decide: of calibration data, on which they were trained, where there are some."""
    from lmccheck.store.files import load

    calibrates = draft.calibration is not None
    tensors = load(draft.folder / str(draft.calibration if calibrates else draft.data))
    return tensors["inputs"][:SAMPLES], tensors["targets"][:SAMPLES], calibrates


def _tried(draft: Draft, expression: str, choice: Choice, samples: tuple[Tensor, Tensor, bool]) -> Tried:
    """Return what a network that was written down gives with each checkpoint's weights."""
    import torch
    from torch import nn
    from torch.nn import functional

    inputs, targets, _ = samples
    module: nn.Module = eval(
        expression, {"nn": nn, "OrderedDict": OrderedDict}
    )  # which is ours, from numbers and names
    losses, outputs = [], []
    for checkpoint in draft.found:
        module.load_state_dict(checkpoint.read(), strict=False)
        module.double().eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes that are broadcast: such a loss is none that is best
            output = module(inputs.double())
            if draft.loss == "mse":
                loss = functional.mse_loss(output.reshape(targets.shape), targets.double())
            else:
                loss = functional.cross_entropy(output, targets.long())
        losses.append(float(loss) if math.isfinite(float(loss)) else math.inf)
        outputs.append(output)
    return Tried(choice, tuple(losses), torch.cat([each.flatten() for each in outputs]))


def _alike(one: Tensor, other: Tensor) -> bool:
    import torch

    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def _constant(draft: Draft, samples: tuple[Tensor, Tensor, bool]) -> list[float]:
    """Return the loss of the best constant answer, for each checkpoint: Σ −p log p of the classes, or the variance."""
    import torch

    targets = samples[1]
    if draft.loss == "mse":
        loss = float((targets.double() - targets.double().mean(dim=0)).square().mean())
    else:
        shares = torch.bincount(targets.long()).double() / len(targets)
        loss = float(-(shares[shares > 0] * shares[shares > 0].log()).sum())
    return [loss] * len(draft.found)
