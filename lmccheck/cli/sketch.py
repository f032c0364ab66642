"""A network written down from the names and shapes of its tensors: a chain of layers, or why it is none; no torch here.

What no file says (which function follows each layer, padding, pooling, how maps become a vector) is a ``Choice``, which
data decide, or a person.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from lmccheck.store.header import TensorHeader

MOST_STEPS = 20_000  # of the search for an order
NORM = {"running_mean", "running_var"}
KNOWN = {"weight", "bias", "num_batches_tracked", *NORM}
ACTIVATIONS = ("nn.ReLU()", "nn.GELU()", "nn.SiLU()", "nn.Tanh()", "nn.Sigmoid()")
UNKNOWN = "ACTIVATION()"  # that of a network without data, for a person to say


class Unclear(Exception):
    """Why names and shapes do not say what the network is, in a clause."""


@dataclass(frozen=True)
class Layer:
    """A layer with tensors of its own: ``kind`` is Linear, Conv1d to Conv3d (of a ``kernel``) or BatchNorm."""

    name: str
    kind: str
    inputs: int
    outputs: int
    bias: bool
    kernel: tuple[int, ...] = ()

    @property
    def dims(self) -> int:
        """How many sides its maps have, 0 of vectors."""
        return len(self.kernel)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers in its name, by which layers of one stem are in order."""
        return tuple(map(int, re.findall(r"\d+", self.name)))

    @property
    def stem(self) -> str:
        """Its name without them."""
        return re.sub(r"\d+", "#", self.name)


@dataclass(frozen=True)
class Choice:
    """What no file says. ``same``: convolutions pad so that maps keep their size; ``pool``: halved after each block;
    ``average``: the last maps are averaged, in place of flattened; ``flat``: inputs are flattened first."""

    activation: str
    same: bool = True
    pool: bool = False
    average: bool = False
    flat: bool = False
    maps: bool = False  # whether there are convolutions, which all but the first and the last of these are about

    def __str__(self) -> str:
        """Return it in words.

        >>> str(Choice("nn.ReLU()")), str(Choice("nn.Tanh()", same=False, pool=True, maps=True))
        ('ReLU', 'Tanh, no padding, pooled, flattened')
        """
        parts = [self.activation.removeprefix("nn.").removesuffix("()")]
        if self.maps:
            parts += ["padded" if self.same else "no padding", *(["pooled"] if self.pool else [])]
            parts += ["averaged" if self.average else "flattened"]
        return ", ".join(parts)


def chain(tensors: Mapping[str, TensorHeader]) -> list[Layer]:
    """Return the layers of a network in the only order in which each fits the next. Raises Unclear."""
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, header in tensors.items():
        module, _, own = name.rpartition(".")
        modules.setdefault(module, {})[own] = header.shape
    layers = [_layer(name, own) for name, own in modules.items()]
    if not layers:
        raise Unclear("there are no tensors")
    orders = list(_orders(layers))
    if not orders:
        raise Unclear("its layers do not fit one another as a chain")
    if len(orders) > 1:
        raise Unclear(f"its layers fit one another in several orders ({_shown(orders[0])}; {_shown(orders[1])})")
    return orders[0]


def _shown(layers: Sequence[Layer]) -> str:
    return " → ".join(layer.name for layer in layers[:4]) + (" → …" if len(layers) > 4 else "")


def _layer(name: str, own: Mapping[str, tuple[int, ...]]) -> Layer:
    """Return the layer that a module's own tensors make. Raises Unclear."""
    if other := sorted(own.keys() - KNOWN):
        raise Unclear(f"tensor {f'{name}.{other[0]}'.lstrip('.')!r} is of no layer that has a weight and a bias only")
    if own.keys() >= NORM:
        size = own["running_mean"][0] if own["running_mean"] else 0
        return Layer(name, "BatchNorm", size, size, "weight" in own)
    weight = own.get("weight", ())
    if len(weight) < 2 or len(weight) > 5 or own.get("bias", weight[:1]) != weight[:1]:
        shapes = ", ".join(f"{tensor} {shape}" for tensor, shape in sorted(own.items()))
        raise Unclear(f"{name!r} with {shapes} is no Linear, no Conv and no BatchNorm")
    kind = "Linear" if len(weight) == 2 else f"Conv{len(weight) - 2}d"
    return Layer(name, kind, weight[1], weight[0], "bias" in own, weight[2:])


def _fits(first: Layer, last: Layer | None, layer: Layer) -> bool:
    """Whether a layer may follow ``first``; ``last`` is the one before that that is no BatchNorm."""
    if layer.kind == "BatchNorm":
        return first.kind != "BatchNorm" and layer.inputs == first.outputs
    before = first if first.kind != "BatchNorm" else last
    assert before is not None  # no chain begins with a BatchNorm
    if before.dims and not layer.dims:
        return layer.inputs % before.outputs == 0
    return before.dims == layer.dims and layer.inputs == before.outputs


def _orders(layers: list[Layer]) -> Iterator[list[Layer]]:
    """Yield at most two orders in which each layer fits the next and those of one stem are in their numbers' order."""
    steps = found = 0

    def extend(order: list[Layer], rest: list[Layer]) -> Iterator[list[Layer]]:
        nonlocal steps, found
        steps += 1
        if steps > MOST_STEPS:
            raise Unclear("too many orders of its layers are possible")
        if not rest:
            found += 1
            yield order
        for layer in rest:
            if found > 1:
                return
            earlier = any(other.stem == layer.stem and other.numbers < layer.numbers for other in rest)
            if earlier or (not order and layer.kind == "BatchNorm"):
                continue
            last = next((each for each in reversed(order) if each.kind != "BatchNorm"), None)
            if not order or _fits(order[-1], last, layer):
                yield from extend([*order, layer], [each for each in rest if each is not layer])

    yield from extend([], layers)


def choices(layers: Sequence[Layer], shape: tuple[int, ...] | None) -> list[Choice]:
    """Return what may be chosen; ``shape`` is that of a sample, None where there is no data to decide by."""
    hidden = any(_between(layers, k) != 0 for k in range(len(layers) - 1))
    activations = ACTIVATIONS if hidden else ACTIVATIONS[:1]
    if shape is None:
        activations = (UNKNOWN,) if hidden else activations
    conv = layers[0].dims > 0
    flat = not conv and shape is not None and len(shape) > 1 and prod(shape) == layers[0].inputs
    either = (True, False) if conv and shape is not None else (True,)
    maps = product(either, (False, True), (False, True)) if len(either) > 1 else [(True, False, False)]
    return [Choice(act, *of, flat=flat, maps=conv) for of in maps for act in activations]


def _between(layers: Sequence[Layer], k: int) -> int | None:
    """Return how many modules stand between layer k and the next, as numbered children; None where nothing says."""
    names = [layers[k].name.rpartition("."), layers[k + 1].name.rpartition(".")]
    (box, _, first), (other, _, second) = names
    if box != other or not (first.isdecimal() and second.isdecimal()):
        return 0 if layers[k + 1].kind == "BatchNorm" else None
    return int(second) - int(first) - 1


def source(layers: Sequence[Layer], choice: Choice) -> str:
    """Return the expression that builds the network. Raises Unclear where numbered children leave no room for it."""
    items: list[tuple[str, str]] = []
    head, _, first = layers[0].name.rpartition(".")
    before = int(first) if first.isdecimal() else None  # modules that stand in front of it
    if choice.flat and before == 0:
        raise Unclear("its first layer is a Sequential's first child, and inputs would have to be flattened before it")
    if choice.flat or (before and not layers[0].dims):
        items.append((_join(head, "flatten" if before is None else "0"), "nn.Flatten()"))
    last = layers[0]
    for k, layer in enumerate(layers):
        last = layer if layer.kind != "BatchNorm" else last
        items.append((layer.name, _expression(layer, last, choice)))
        if k + 1 < len(layers):
            items += _following(layers, k, last, choice)
    return _nested(items, 1)


def _following(layers: Sequence[Layer], k: int, last: Layer, choice: Choice) -> list[tuple[str, str]]:
    """Return the modules between layer k and the next, which have no tensors; ``last``: the layer that is no norm."""
    box, _, own = layers[k].name.rpartition(".")
    following, room = layers[k + 1], _between(layers, k)
    if room == 0 or (room is None and following.kind == "BatchNorm"):
        if last.dims and not following.dims and following.kind == "Linear":
            raise Unclear(f"{following.name!r} follows maps at once, with no module between that makes vectors of them")
        return []
    wanted = [choice.activation]
    if last.dims:
        wanted += [f"nn.MaxPool{last.dims}d(2)"] if choice.pool else []
        if following.kind == "Linear":
            wanted += [f"nn.AdaptiveAvgPool{last.dims}d(1)"] if choice.average else []
            wanted += ["nn.Flatten()"]
    if room is None:
        return [(_join(box, f"then_{own}_{n}"), each) for n, each in enumerate(wanted)]
    if len(wanted) > room:
        raise Unclear(f"{len(wanted)} modules do not fit between {layers[k].name!r} and {following.name!r}")
    return [(_join(box, str(int(own) + 1 + n)), each) for n, each in enumerate(wanted)]


def _expression(layer: Layer, last: Layer, choice: Choice) -> str:
    bias = "" if layer.bias else ", bias=False"
    if layer.kind == "BatchNorm":
        return f"nn.BatchNorm{last.dims or 1}d({layer.inputs}{'' if layer.bias else ', affine=False'})"
    if layer.kind == "Linear":
        return f"nn.Linear({layer.inputs}, {layer.outputs}{bias})"
    padding = tuple(side // 2 for side in layer.kernel) if choice.same else (0,) * layer.dims
    return f"nn.{layer.kind}({layer.inputs}, {layer.outputs}, {layer.kernel}, padding={padding}{bias})"


def _join(box: str, name: str) -> str:
    return f"{box}.{name}" if box else name


def _nested(items: Sequence[tuple[str, str]], depth: int) -> str:
    """Return nested Sequentials whose children have the items' names. Raises Unclear where these are scattered."""
    boxes: dict[str, list[tuple[str, str]]] = {}
    previous = None
    for name, expression in items:
        child, _, rest = name.partition(".")
        if child in boxes and child != previous:
            raise Unclear(f"layers of {child!r} are not one after the other")
        boxes.setdefault(child, []).append((rest, expression))
        previous = child
    pad = "    " * (depth + 1)
    lines = []
    for child, inner in boxes.items():
        plain = len(inner) == 1 and not inner[0][0]
        lines.append(f"{pad}({child!r}, {inner[0][1] if plain else _nested(inner, depth + 1)}),")
    close = "    " * depth
    return "nn.Sequential(OrderedDict([\n" + "\n".join(lines) + f"\n{close}]))"
