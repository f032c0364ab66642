"""One table of what is known of ops beside their rules: which are layers and norms, and what others leave alone.

Rules say how an op carries axes; this table says what else a reader of the graph must know. An op that is not in it is
taken to be none of these things. Numbers are places among a call's positional arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from lmccheck.symmetry.trace import op_name


@dataclass(frozen=True)
class LayerFacts:
    """A linear layer or convolution: where its arguments are, and the dimensions that hold its output units.

    ``out`` is the weight's such dimension, ``units`` the output's; ``window`` are the places of a convolution's stride,
    padding and dilation.
    """

    source: int = 0
    weight: int = 1
    bias: int = 2
    out: int = 0
    units: int = -1
    window: tuple[int, int, int] | None = None
    groups: int | None = None


@dataclass(frozen=True)
class BatchNormFacts:
    """A BatchNorm, whose arguments begin with x, weight, bias, mean, variance.

    ``training`` is the place of the flag that makes it use its batch's statistics, None where it never does;
    ``several`` says that it gives more than the normalised value, which is the first.
    """

    epsilon: int
    training: int | None
    several: bool


@dataclass(frozen=True)
class Facts:
    """What is known of an op.

    ``elementwise``: a function of every number of its first argument by itself. ``unitwise``: what it gives of a unit
    depends on that unit alone. ``linear``: linear in its first argument; ``scales``: so where the second is a number.
    ``copies``: gives the numbers that it takes. ``views``: gives them in another shape, of the same memory.
    ``affine`` are the places of the gain and the shift of a norm over units.
    """

    layer: LayerFacts | None = None
    batch_norm: BatchNormFacts | None = None
    affine: tuple[int, ...] = ()
    elementwise: bool = False
    unitwise: bool = False
    linear: bool = False
    scales: bool = False
    copies: bool = False
    views: bool = False


def _alike(names: str, facts: Facts) -> dict[str, Facts]:
    return dict.fromkeys((f"aten.{name}" for name in names.split()), facts)


FACTS: dict[str, Facts] = {
    "aten.linear": Facts(LayerFacts()),
    "aten.addmm": Facts(LayerFacts(source=1, weight=2, bias=0, out=1)),
    **_alike("conv1d conv2d conv3d", Facts(LayerFacts(units=1, window=(3, 4, 5), groups=6))),
    "aten.batch_norm": Facts(batch_norm=BatchNormFacts(7, 5, several=False), unitwise=True),
    "aten._native_batch_norm_legit_no_training": Facts(batch_norm=BatchNormFacts(6, None, several=True), unitwise=True),
    **_alike(
        "_native_batch_norm_legit _native_batch_norm_legit_functional native_batch_norm",
        Facts(batch_norm=BatchNormFacts(7, 5, several=True)),
    ),
    "aten.layer_norm": Facts(affine=(2, 3)),
    "aten.rms_norm": Facts(affine=(2,)),
    **_alike(
        "relu relu6 gelu silu sigmoid tanh elu selu celu leaky_relu hardtanh hardswish hardsigmoid softplus "
        "mish log_sigmoid threshold hardshrink softshrink rrelu clamp clamp_min clamp_max nan_to_num "
        "abs neg positive sign sgn signbit reciprocal square sqrt rsqrt exp exp2 expm1 log log1p log2 log10 logit "
        "sin cos tan asin acos atan sinh cosh asinh acosh atanh sinc deg2rad rad2deg floor ceil round trunc frac "
        "erf erfc erfinv lgamma digamma i0 special_expit special_erf special_log_ndtr "
        "logical_not bitwise_not isnan isinf isfinite isposinf isneginf "
        "type_as lift_fresh lift_fresh_copy alpha_dropout feature_dropout feature_alpha_dropout",
        Facts(elementwise=True, unitwise=True),
    ),
    "aten.dropout": Facts(elementwise=True, unitwise=True, linear=True),
    **_alike(
        "contiguous clone alias detach to _to_copy",
        Facts(elementwise=True, unitwise=True, linear=True, copies=True),
    ),
    **_alike("mul div", Facts(scales=True)),
    **_alike("view _unsafe_view", Facts(linear=True, views=True)),
    "aten.flatten": Facts(linear=True, unitwise=True),
    **_alike(
        "reshape unflatten permute transpose t movedim squeeze unsqueeze expand select slice narrow mean sum",
        Facts(linear=True),
    ),
    **_alike("max_pool1d max_pool2d max_pool3d", Facts(unitwise=True)),
    **_alike(
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
        Facts(unitwise=True, linear=True),
    ),
}
_UNKNOWN = Facts()


def facts_of(target: Any) -> Facts:
    """Return what is known of the op that a node of the graph calls (``node.target``)."""
    return FACTS.get(op_name(target), _UNKNOWN)


def elementwise() -> Iterator[str]:
    """Yield the names of the functions of every number by itself, as rules take them."""
    yield from (name for name, facts in FACTS.items() if facts.elementwise)


def evaluated_norm(target: Any, arguments: Sequence[Any]) -> BatchNormFacts | None:
    """Return the facts of a call that is a BatchNorm with its running statistics, None for any other call."""
    norm = facts_of(target).batch_norm
    return None if norm is None or (norm.training is not None and arguments[norm.training]) else norm


def result_of(node: fx.Node) -> fx.Node | None:
    """Return the node of what a BatchNorm makes of its first argument; None where nothing reads that."""
    norm = facts_of(node.target).batch_norm
    if norm is None or not norm.several:
        return node
    return next((user for user in node.users if op_name(user.target) == "getitem" and user.args[1] == 0), None)
