"""Which functions of torch and which modules are layers, that read what is computed from the inputs."""

from __future__ import annotations

from torch import Tensor, nn


def _names(said: str) -> frozenset[str]:
    return frozenset(said.split())


PRODUCTS = _names(  # of something computed from the inputs with weights
    "linear bilinear matmul __matmul__ mm bmm mv addmm addmv baddbmm addbmm einsum tensordot inner grouped_mm "
    "_grouped_mm multi_head_attention_forward lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"
)
RIGHT = _names("matmul __matmul__ mm bmm mv addmm addmv baddbmm addbmm")  # whose second factor is read by columns
SUMMANDS = _names("addmm addmv baddbmm addbmm")  # whose first argument is added to the product
FUSED = _names("lstm gru rnn_tanh rnn_relu")  # all steps of a sequence in one call
ATTENTION = "multi_head_attention_forward"
CONVOLUTIONS = frozenset(f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3))
POSITIONS = _names("layer_norm rms_norm")  # norms of what is at one position
MAPS = _names("batch_norm group_norm instance_norm")  # and of whole maps
ELEMENTWISE = _names("mul __mul__ __rmul__ multiply mul_ __imul__")  # products that no layer is known by
LOOKUPS = _names("embedding embedding_bag")  # whose inputs are integers: what they give gets the noise
LAYERS = PRODUCTS | CONVOLUTIONS | POSITIONS | MAPS
MOVES = _names(  # of numbers that stay as they are
    "__get__ __getitem__ view reshape view_as reshape_as flatten unflatten ravel permute transpose swapaxes swapdims "
    "movedim moveaxis t contiguous clone detach to type type_as float double half bfloat16 cpu cuda squeeze unsqueeze "
    "expand expand_as narrow chunk split tensor_split unbind select index_select gather take_along_dim roll pad unfold "
    "repeat_interleave _pack_padded_sequence dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout"
)
MADE = _names(  # of a shape that may have been computed, and nothing else
    "zeros ones empty full eye arange zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full"
)


def is_one_layer(part: nn.Module) -> bool:
    """Whether a module of the user's own holds tensors and no module; torch's own run by functions known here."""
    return not is_torchs(part) and not any(part.children()) and bool(held_by(part))


def is_plain(part: nn.Module) -> bool:
    """Whether what a module holds is one layer's, which bears its name: a weight and a bias, or whatever torch has."""
    names = {name for name, _ in part.named_children()}
    if names == {"parametrizations"}:  # which compute its weights
        return True
    return not names and bool(held_by(part)) and (is_torchs(part) or len(held_by(part)) <= 2)


def is_torchs(part: nn.Module) -> bool:
    """Whether a module is one of torch's, or built on one."""
    return any(kind.__module__.startswith("torch.") and kind is not nn.Module for kind in type(part).__mro__)


def held_by(part: nn.Module) -> list[Tensor]:
    """Return the floating tensors that a module itself adds to the state dict."""
    kept = [
        *part._parameters.values(),
        *(b for n, b in part._buffers.items() if n not in part._non_persistent_buffers_set),
    ]
    return [tensor for tensor in kept if tensor is not None and tensor.is_floating_point()]


def reads_maps(name: str, value: Tensor) -> bool:
    """Whether a function mixes the places of what it is given, (n, channels, *places)."""
    return (name in MAPS and value.ndim > 1) or (name in CONVOLUTIONS and value.ndim == int(name[-2]) + 2)


def holds_for_maps(part: nn.Module, value: Tensor) -> bool:
    """Whether what a module of the user's own holds fits the channels of a map, and not its last dimension."""
    sizes = {size for tensor in held_by(part) for size in tensor.shape}
    return value.ndim > 2 and value.shape[-1] not in sizes and value.shape[1] in sizes
