"""torchvision's two operators that PyTorch must know of before torchvision can be imported."""

from __future__ import annotations

import torch

_held: list[torch.library.Library] = []


def declare_operators() -> None:
    """Declare them where torchvision's compiled part does not fit the installed torch (a CPU build, for example).

    They are declared without an implementation: no classification network uses them.
    """
    if _held:
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    _held.append(library)
