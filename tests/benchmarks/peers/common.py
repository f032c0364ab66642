"""What the scripts of all peers share: arguments, networks, clock, and one line of JSON at the end."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fashion

SHAPE = (1, 1, 28, 28)  # of the input that peers trace a network with

Align = Callable[[nn.Module, nn.Module], tuple[dict[str, Tensor], str]]


def peak_rss() -> float | None:
    """Return this process's peak memory in MiB (None away from Linux); unlike ``getrusage``, free of its parent's."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def main(peer: str, align: Align) -> None:
    """Align as the command line says: network, a, b and output file; ``align`` returns b's new state and a remark."""
    net, a, b, out = sys.argv[1:]
    modules = []
    for path in (a, b):
        module = getattr(fashion, net)()
        module.load_state_dict(load_file(path))
        modules.append(module.eval())
    torch.manual_seed(0)
    aligned, remark, error = None, "", None
    begin, cpu = time.perf_counter(), time.process_time()
    try:
        aligned, remark = align(*modules)
    except Exception as caught:
        place = traceback.extract_tb(caught.__traceback__)[-1]
        error = f"{type(caught).__name__}: {str(caught) or place.line} ({Path(place.filename).name}, {place.name})"
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    if aligned is not None:
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in aligned.items()}, out)
    facts = {"peer": peer, "version": version(peer), "seconds": seconds, "cpu_seconds": cpu, "peak_rss_mb": peak_rss()}
    print(json.dumps({**facts, "error": error, "remark": remark}))
