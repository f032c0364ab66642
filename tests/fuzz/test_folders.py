"""600 damaged folders, indexes and adapters: one clear line, or a checkpoint that reads as its headers say."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import NAMES, bytes_changed, outcome, values
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lmccheck.errors import CheckpointError
from lmccheck.manifest.preflight import problems
from lmccheck.manifest.read import load_manifest
from lmccheck.store.checkpoint import Checkpoint, look_at

ROUNDS, COUNT = 6, 100
BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError)
INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]
STRAY = [
    "model.safetensors", "pytorch_model.bin", "model-00004-of-00003.safetensors", "x.safetensors",
    "adapter_config.json", "adapter_model.bin", "config.json", "consolidated.safetensors",
    "diffusion_pytorch_model.safetensors",
]  # fmt: skip
PLACES = ["../m/" + SHARDS[0], "/etc/passwd", "https://x.org/a.safetensors", "..", ".", "", SHARDS[0].upper(), "a.bin"]
STATE = {
    "l.0.q.weight": (4, 3),
    "l.0.q.bias": (4,),
    "l.0.k.weight": (4, 4),
    "emb.weight": (7, 3),
    "head.weight": (2, 4),
}


def drawn(rng: random.Random) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return {name: torch.randn(*shape, generator=generator) for name, shape in STATE.items()}


def model(rng: random.Random, folder: Path) -> None:
    """Write a sound folder of shards."""
    folder.mkdir(parents=True)
    state = drawn(rng)
    placed = {name: rng.choice(SHARDS) for name in state}
    placed |= dict(zip(rng.sample(sorted(state), 3), SHARDS, strict=True))
    for shard in SHARDS:
        save_file({name: state[name] for name in state if placed[name] == shard}, folder / shard)
    size = sum(4 * tensor.numel() for tensor in state.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": placed}))


def adapter(rng: random.Random, folder: Path) -> None:
    """Write a sound adapter."""
    folder.mkdir(parents=True)
    r, dora = rng.choice([1, 2, 3]), rng.random() < 0.3
    tensors = {}
    for module, (outs, ins) in (("l.0.q", (4, 3)), ("l.0.k", (4, 4))):
        name = f"base_model.model.{module}.lora_"
        tensors |= {f"{name}A.weight": torch.randn(r, ins), f"{name}B.weight": torch.randn(outs, r)}
        tensors |= {f"{name}magnitude_vector": torch.rand(outs) + 0.5} if dora else {}
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {
        "peft_type": "LORA", "r": r, "lora_alpha": 4, "target_modules": ["q", "k"], "use_dora": dora, "bias": "none",
        "rank_pattern": {}, "alpha_pattern": {}, "base_model_name_or_path": None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(said))


def regular(folder: Path, end: str = "") -> list[Path]:
    """Return the files of a folder that can be read without waiting."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.endswith(end)]


def said_changed(rng: random.Random, folder: Path) -> None:
    """Change a value, a key or a place in one of the documents."""
    file = rng.choice(regular(folder, ".json"))
    said = json.loads(file.read_text())
    table = rng.choice([said, *(value for value in said.values() if isinstance(value, dict))])
    key = rng.choice([*table, rng.choice(NAMES)]) if table else rng.choice(NAMES)
    kind = rng.randrange(4)
    if kind == 0:
        table.pop(key, None)
    elif kind == 1:
        table[key] = rng.choice([*PLACES, *SHARDS])
    elif kind == 2:
        table[rng.choice(NAMES)] = table.pop(key, 1)
    else:
        table[key] = values(rng)
    file.write_text(json.dumps(said))


def text_changed(rng: random.Random, folder: Path) -> None:
    """Change a document's text."""
    file = rng.choice(regular(folder, ".json"))
    text = file.read_text()
    file.write_bytes(rng.choice([
        lambda: bytes_changed(rng, text.encode()), lambda: b"[" * 100_000, lambda: text.encode("utf-16"),
        lambda: text.replace("{", '{"r": 1, "r": 2, ', 1).encode(), lambda: b"", lambda: b"null", lambda: b"NaN",
    ])())  # fmt: skip


def tensors_changed(rng: random.Random, folder: Path) -> None:
    """Rename, drop, add, reshape or copy a tensor of one file."""
    file = rng.choice(regular(folder, ".safetensors"))
    tensors = load_file(file)
    name = rng.choice(sorted(tensors)) if tensors else "w"
    tensor = tensors.pop(name, torch.zeros(1))
    kind = rng.randrange(5)
    if kind == 0:
        tensors[rng.choice([*(n for n in NAMES if "\ud800" not in n and n != "__metadata__"), *STATE])] = tensor
    elif kind == 1:
        tensors[name] = tensor.reshape(-1)
    elif kind == 2:
        tensors[name] = tensor.to(rng.choice([torch.int64, torch.bfloat16, torch.float64, torch.bool]))
    elif kind == 3:
        tensors |= {name: tensor, rng.choice(sorted(STATE)): torch.ones(2)}
    save_file(tensors, file)


def file_changed(rng: random.Random, folder: Path) -> None:
    """Change a file's bytes, or what lies in its place."""
    file = rng.choice(regular(folder))
    kind = rng.randrange(6)
    if kind == 0:
        file.write_bytes(bytes_changed(rng, file.read_bytes()))
        return
    file.unlink()
    if kind == 1:
        os.mkfifo(file)
    elif kind == 2:
        file.mkdir()
    elif kind == 3:
        file.symlink_to(rng.choice([file.name, "gone", "..", *SHARDS]))


def file_added(rng: random.Random, folder: Path) -> None:
    """Put something beside."""
    path = folder / rng.choice(STRAY)
    if not path.exists():
        path.write_bytes(rng.choice([b"", b"\x80\x04", regular(folder, ".safetensors")[0].read_bytes(), b"{}"]))


def as_it_is(rng: random.Random, folder: Path) -> None:
    pass


DAMAGES: list[Callable[[random.Random, Path], None]] = [
    said_changed, said_changed, text_changed, tensors_changed, file_changed, file_added, as_it_is,
]  # fmt: skip


def damaged(rng: random.Random, folder: Path) -> None:
    for _ in range(rng.choice([1, 1, 2])):
        try:
            rng.choice(DAMAGES)(rng, folder)
        except BROKEN:
            return  # the first damage left nothing to change


def by_reference(folder: Path) -> bool:
    """Whether a folder of shards is one model, by the words of the format alone and with the library's own reader."""
    try:
        assert (folder / INDEX).is_file()
        raw = (folder / INDEX).read_bytes().decode("utf-8-sig")
        said = dict(json.loads(raw, object_pairs_hook=lambda pairs: pairs))
        assert len(said) == len(json.loads(raw, object_pairs_hook=lambda pairs: pairs))
        pairs = said["weight_map"]
        placed = dict(pairs)
        assert len(placed) == len(pairs) > 0
        assert all((folder / name).is_file() for name in placed.values())
        files = {name: load_file(folder / name) for name in set(placed.values()) if "/" not in name}
        held = [(tensor, name) for name, tensors in files.items() for tensor in tensors]
        assert sorted(held) == sorted(placed.items())
        size = sum(t.numel() * t.element_size() for tensors in files.values() for t in tensors.values())
        total = dict(said.get("metadata") or ()).get("total_size", size)
        assert total is None or (total == size and not isinstance(total, bool))
        assert not any((folder / name).exists() for name in ("model.safetensors", STRAY[2], "adapter_config.json"))
    except Exception:
        return False
    return True


def reads(found: Checkpoint | None, what: str) -> None:
    """Whatever is accepted by its headers is read as they say, together and one by one."""
    if found is None:
        return
    state, said = outcome(what, found.read, CheckpointError)
    assert state is not None or "BOOL" in str(said), f"{what}: looked at, and not read: {said}"
    for name, tensor in (state or {}).items():
        header = found.tensors[name]
        assert (tuple(tensor.shape), str(tensor.dtype)[6:]) == (header.shape, header.torch_dtype), f"{what}: {name!r}"
        assert torch.equal(found.get(name).nan_to_num(), tensor.nan_to_num()) or tensor.dtype == torch.bool
    found.require_unchanged()
    assert found.sha256 is not None


MANIFEST = """
schema = 1
[pair.p]
a = "good"
b = {b}
model = "m:m"
data = "m:d"
check.linear_connectivity.limit = 1
"""


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_damaged_folders(tmp_path: Path, seed: int) -> None:
    """No traceback, no wait; what the manifest item says is what loading says; shards by the reference's judgement."""
    rng = random.Random(seed)
    model(rng, tmp_path / "good")
    sound = 0
    for number in range(COUNT):
        what, kind = f"seed {seed}, folder {number}", rng.choice(["model", "adapter"])
        folder = tmp_path / "m"
        shutil.rmtree(folder, ignore_errors=True)
        (model if kind == "model" else adapter)(rng, folder)
        damaged(rng, folder)
        given: Any = "m" if kind == "model" else {"base": "good", "adapter": "m"}
        found, said = outcome(what, lambda given=given: look_at(given, tmp_path, "b"), CheckpointError)
        sound += found is not None
        if kind == "model" and by_reference(folder) != (found is not None):
            assert found is None, f"{what}: accepted, and no model"
            assert any(name in str(said) for name in STRAY), f"{what}: refused, and a model: {said}"
        reads(found, what)
        table = '"m"' if kind == "model" else '{ base = "good", adapter = "m" }'
        (tmp_path / "lmc.toml").write_text(MANIFEST.format(b=table))
        listed = problems(load_manifest(tmp_path / "lmc.toml"))
        assert all(line.isprintable() and len(line) <= 500 for line in listed), what
        assert found is not None or listed, f"{what}: green before, refused after: {said}"
    assert COUNT // 10 <= sound <= COUNT // 2, "damages of both kinds"
