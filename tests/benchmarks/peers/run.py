"""Run other packages' alignments in interpreters of their own.

Two of them install a module of one name, ``rebasin``, so each needs a virtual environment:

    python -m venv A && A/bin/pip install torch safetensors rebasin
    python -m venv B && B/bin/pip install torch safetensors sinkhorn-rebasin
    LMC_PEER_REBASIN=A/bin/python LMC_PEER_SINKHORN=B/bin/python pytest tests/benchmarks -s

A peer whose variable is not set is left out, and the table says so.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = {  # name: (environment variable with its interpreter, script)
    "rebasin": ("LMC_PEER_REBASIN", "align_rebasin.py"),
    "sinkhorn-rebasin": ("LMC_PEER_SINKHORN", "align_sinkhorn.py"),
}
LIMIT = 300.0  # seconds for one pair


def interpreter(peer: str) -> str | None:
    """Return the Python that has this peer, or None: leave it out."""
    return os.environ.get(PEERS[peer][0]) or None


def peer_alignment(python: str, script: str, net: str, cache: Path) -> tuple[dict[str, Any], Path | None]:
    """Align the cached pair of ``net`` by a peer's script: what it reports, and b aligned (None: it failed).

    The facts are ``peer``, ``version``, ``seconds`` and ``cpu_seconds`` of the alignment alone, ``peak_rss_mb`` of its
    process, ``error`` and ``remark``; of a script that died or took too long, ``peer`` and ``error`` only.
    """
    peer = next(name for name, (_, file) in PEERS.items() if file == script)
    out = cache / "peers" / f"{net}-{peer}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    pair = [str(cache / f"{net}-seed{seed}.safetensors") for seed in (0, 1)]
    command = [python, str(HERE / script), net, *pair, str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {"peer": peer, "error": f"no result within {LIMIT:g} s"}, None
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        return {"peer": peer, "error": f"exit {done.returncode}: {last}"}, None
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts, out if facts["error"] is None else None
