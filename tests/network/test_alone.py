"""What a network keeps, wherever that is: where it was never run it computes something else, and is refused."""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lmccheck
from lmccheck.errors import UnsupportedArchitecture
from lmccheck.modules.forked import Forked
from lmccheck.network.alone import Alone

pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="no processes of their own there")

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(1))
NETWORK = """
import functools
import torch
from torch import nn

{kept}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = nn.Linear(5, 3)

    def forward(self, x):
        return self.read(x) / scale(float(self.read.weight.detach().norm()))
"""
KEPT = {  # of which a run keeps the first, or the least, where no list of kinds of places has it
    "a running minimum": "K = 1e9\ndef scale(n):\n    global K\n    K = min(K, n)\n    return K",
    "a sentinel": "K = [-1.0]\ndef scale(n):\n    if K[0] < 0: K[0] = n\n    return K[0]",
    "no number yet": "K = torch.tensor([float('nan')])\ndef scale(n):\n    if K.isnan(): K.fill_(n)\n    return K",
    "a computed name": "def scale(n):\n    return globals().setdefault('norm'.upper(), n)",
    "an attribute by a name": "def scale(n):\n    k = f'_k{1}'\n    if not hasattr(Net, k): setattr(Net, k, n)\n"
    "    return getattr(Net, k)",
    "a singleton": "class Q:\n    v = None\n    def __init__(self, n):\n        if Q.v is None: Q.v = n\n\n"
    "def scale(n):\n    Q(n)\n    return Q.v",
    "a property of an object": "class Q:\n    @functools.cached_property\n    def v(self): return self.n\nQ = Q()\n\n"
    "def scale(n):\n    Q.n = n\n    return Q.v",
    "one read before the next": "K = [1.0]\ndef scale(n):\n    K.append(n)\n    return K[-2]",
}
REFUSED = "keeps what it computed from weights in |two modules built afresh compute different things|gives two outputs"
SEEDED = torch.Generator().manual_seed(2)
ENDS = [
    {"read.weight": torch.randn(3, 5, generator=SEEDED) * k, "read.bias": torch.randn(3, generator=SEEDED)}
    for k in (1.0, 9.0)
]


def load(folder: Path, kept: str, *ends: dict[str, Tensor]) -> lmccheck.ModelPair | lmccheck.SingleModel:
    (folder / "models.py").write_text(NETWORK.format(kept=kept))
    if len(ends) == 1:
        return lmccheck.load_model(*ends, model="models:Net", data=(X, Y), base=folder, device="cpu")
    return lmccheck.load_pair(*ends, model="models:Net", data=(X, Y), base=folder, device="cpu")


@pytest.mark.parametrize("place", KEPT)
@pytest.mark.parametrize("ends", [ENDS, ENDS[:1]], ids=["pair", "model"])
def test_what_is_kept_in_any_place_is_refused(tmp_path: Path, place: str, ends: list[dict[str, Tensor]]) -> None:
    """Twice: what the first loading left in the file is not taken for what the file says."""
    for _ in range(2):
        with pytest.raises(UnsupportedArchitecture, match=REFUSED) as caught:
            load(tmp_path, KEPT[place], *ends)
        assert "\n" not in str(caught.value)


def test_a_callable_is_compared_as_well() -> None:
    """What a closure of a test keeps: no file is imported again, but nothing was run where it is compared."""
    least = 1e9

    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal least
            least = min(least, float(self.weight.detach().norm()))
            return super().forward(x) / least

    ends = [{name.removeprefix("read."): tensor for name, tensor in end.items()} for end in ENDS]
    with pytest.raises(UnsupportedArchitecture, match=REFUSED):
        lmccheck.load_pair(*ends, model=lambda: Net(5, 3), data=(X, Y), device="cpu")


def test_what_depends_on_nothing_that_was_run_is_measured(tmp_path: Path) -> None:
    """The values are those computed by hand; a table by the shape of inputs is nobody's weights."""
    pair = load(tmp_path, "@functools.cache\ndef one(k):\n    return k\n\ndef scale(n):\n    return n * one(1)", *ENDS)
    losses = lmccheck.linear_connectivity(pair, align="none", points=3, limit=9.0).details["losses"]
    for loss, end in ((losses[0], ENDS[0]), (losses[-1], ENDS[1])):
        by_hand = F.linear(X, end["read.weight"], end["read.bias"]) / end["read.weight"].norm()
        assert loss == pytest.approx(float(F.cross_entropy(by_hand, Y)), abs=1e-6)


def test_a_process_that_cannot_answer_is_said(tmp_path: Path) -> None:
    """Code that ends wherever it is not at home: nothing is refused, and nothing is silent."""
    here = os.getpid()
    pair = load(tmp_path, f"import os\ndef scale(n):\n    return n if os.getpid() == {here} else os._exit(0)", *ENDS)
    notes = lmccheck.linear_connectivity(pair, align="none", points=3, limit=9.0).details["notes"]
    said = r"model models:Net: what it computes .* is not compared with .* alone: a process of its own ended early"
    assert [note for note in notes if re.fullmatch(said, note)]


def test_a_process_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system has no memory for it: the pair is measured, and the row says what was not compared."""
    monkeypatch.setattr(os, "fork", lambda: os.open("/nowhere/at/all", os.O_RDONLY))
    pair = load(tmp_path, "def scale(n):\n    return n", *ENDS)
    notes = lmccheck.linear_connectivity(pair, align="none", points=3, limit=9.0).details["notes"]
    assert [note for note in notes if note.endswith("alone: no process of its own: No such file or directory")]


LIBRARY = """
K = {{}}

def keep(n):
    return K.setdefault("k", (n,))[0]
"""


def test_what_was_refused_once_is_not_measured_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed library keeps the first value: it is there for the second pair, where nothing would show."""
    library = tmp_path / "lib" / "site-packages"
    library.mkdir(parents=True)
    (library / "kept_by_a_library.py").write_text(LIBRARY.format())
    monkeypatch.setattr(sys, "path", [*sys.path, str(library)])
    for _ in range(3):
        with pytest.raises(UnsupportedArchitecture, match=REFUSED):
            load(tmp_path, "import kept_by_a_library\n\ndef scale(n):\n    return kept_by_a_library.keep(n)", *ENDS)
    del sys.modules["kept_by_a_library"]


def test_a_file_that_a_conftest_ran_is_imported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has kept something before the first pair is loaded, in memory that only itself can read."""
    kept = (
        "import mmap\nK = mmap.mmap(-1, 32)\n\ndef scale(n):\n"
        "    if not K[0]:\n        K[:] = repr(n).ljust(32).encode()\n    return float(K[:])"
    )
    (tmp_path / "models.py").write_text(NETWORK.format(kept=kept))
    monkeypatch.syspath_prepend(str(tmp_path))
    earlier = importlib.import_module("models").Net()
    earlier.load_state_dict(ENDS[0])
    earlier(X)
    try:
        with pytest.raises(UnsupportedArchitecture, match=REFUSED):
            load(tmp_path, kept, *ENDS)
    finally:
        del sys.modules["models"]


def test_a_thread_that_a_network_asks_lives_on(tmp_path: Path) -> None:
    """Queues that a thread of the file waits at are not taken apart: the losses are right, and nothing waits."""
    kept = (
        "import queue\nimport threading\nASKED, TOLD = queue.Queue(), queue.Queue()\n\ndef run():\n    while True:\n"
        "        TOLD.put(ASKED.get())\n        ASKED.task_done()\n\n"
        "threading.Thread(target=run, daemon=True).start()\n\n"
        "def scale(n):\n    ASKED.put(n)\n    return TOLD.get(timeout=20)"
    )
    pair = load(tmp_path, kept, *ENDS)
    result = lmccheck.linear_connectivity(pair, align="none", points=3, limit=9.0)
    by_hand = F.linear(X, ENDS[1]["read.weight"], ENDS[1]["read.bias"]) / ENDS[1]["read.weight"].norm()
    assert result.details["losses"][-1] == pytest.approx(float(F.cross_entropy(by_hand, Y)), abs=1e-6)


def test_what_is_torchs_own_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is made for it; one is for a hook, a forward of its own and a class of the user's."""
    made: list[int] = []
    enter = Forked.__enter__
    monkeypatch.setattr(Forked, "__enter__", lambda self: (made.append(1), enter(self))[1])

    def build(change: str) -> nn.Module:
        module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
        if change == "hook":
            module[1].register_forward_hook(lambda part, given, output: output * 1)
        if change == "forward":
            module[1].forward = torch.relu
        if change == "class":
            module[1] = type("Own", (nn.ReLU,), {"__module__": __name__})()
        return module

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for change in ("", "hook", "forward", "class"):
            ends = [build(change).state_dict() for _ in range(2)]
            lmccheck.load_pair(*ends, model=lambda change=change: build(change), data=(X, Y), device="cpu")
            assert len(made) == bool(change), change
            made.clear()


def test_outputs_here_are_those_there() -> None:
    """The comparison itself: of an honest network there is none."""
    pair = lmccheck.load_pair(
        *({k.removeprefix("read."): v for k, v in end.items()} for end in ENDS),
        model=lambda: type("Own", (nn.Linear,), {"__module__": __name__})(5, 3),
        data=(X, Y),
        device="cpu",
    )
    with Alone(pair.network, [lambda module: pair.theta_a], torch.float32, X) as alone:
        assert alone.there
        assert alone.differs() is None


def test_a_file_that_names_its_functions_is_loaded(tmp_path: Path) -> None:
    """Assigning ``__name__`` writes to what every function and module has: no library loses its own for it."""
    kept = "def scale(n):\n    scale.__name__ = 'scaled'\n    return n"
    pair = load(tmp_path, kept, *ENDS)
    assert lmccheck.linear_connectivity(pair, align="none", points=3, limit=9.0).value < 9
