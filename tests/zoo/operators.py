"""torchvision's two operators that PyTorch must know of before torchvision can be imported."""

from __future__ import annotations

import torch

_held: list[torch.library.Library] = []


def declare_operators() -> None:
    """Declare them where torchvision's compiled part, which does, does not fit the installed torch (a CPU build's).

    They are declared without an implementation: no classification network uses them.
    """
    try:
        import torchvision  # noqa: F401  # it is imported to see whether it can be
    except RuntimeError:  # operator torchvision::nms does not exist
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _held.append(library)
