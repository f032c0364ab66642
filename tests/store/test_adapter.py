"""An adapter on its base is the product that is merged, as written here by hand; what does not fit is refused."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmccheck import load_pair
from lmccheck.errors import CheckpointError
from lmccheck.store.checkpoint import look_at, open_checkpoint

GIVEN = {"base": "base", "adapter": "ad"}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q", "k"], "base_model_name_or_path": None}
PREFIX = "base_model.model."


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BASE = {
    "l.0.q.weight": drawn(4, 3, seed=1), "l.0.q.bias": drawn(4, seed=2), "l.0.k.weight": drawn(4, 4, seed=3),
    "emb.weight": drawn(7, 3, seed=4), "c.weight": drawn(5, 3, 2, 2, seed=5), "head.weight": drawn(2, 4, seed=6),
}  # fmt: skip
Q, K = (drawn(2, 3, seed=7), drawn(4, 2, seed=8)), (drawn(2, 4, seed=9), drawn(4, 2, seed=10))


def factors(module: str, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {f"{PREFIX}{module}.lora_A.weight": pair[0], f"{PREFIX}{module}.lora_B.weight": pair[1]}


PLAIN = {**factors("l.0.q", Q), **factors("l.0.k", K)}


def written(folder: Path, tensors: dict[str, Tensor] = PLAIN, base: dict[str, Tensor] = BASE, **config: Any) -> Path:
    """Write a base's folder and an adapter's, and return the folder of both."""
    for name in ("base", "ad"):
        (folder / name).mkdir(exist_ok=True)
    save_file(base, folder / "base" / "model.safetensors", {"format": "pt"})
    save_file(tensors, folder / "ad" / "adapter_model.safetensors")
    (folder / "ad" / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def product(folder: Path, *args: Any, **config: Any) -> dict[str, Tensor]:
    """Return the merged model, after checking that one tensor at a time gives the same, as the headers say."""
    found = look_at(GIVEN, written(folder, *args, **config), "a")
    state = found.read()
    assert state.keys() == found.tensors.keys()
    for name, tensor in state.items():
        assert torch.equal(found.get(name), tensor)
        assert (tuple(tensor.shape), str(tensor.dtype)[6:]) == (
            found.tensors[name].shape,
            found.tensors[name].torch_dtype,
        )
    return state


def by_hand(scale: float, pair: tuple[Tensor, Tensor]) -> Tensor:
    """s·BA, written out as a sum."""
    a, b = pair[0].double(), pair[1].double()
    return scale * torch.stack([torch.stack([sum(row * a[:, j]) for j in range(a.shape[1])]) for row in b])


def near(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 3.0), (True, 6 / math.sqrt(2))])
def test_lora(tmp_path: Path, rslora: bool, scale: float) -> None:
    """W + s·BA with s = α/r, with rsLoRA α/√r; what is not targeted stays, bit for bit."""
    state = product(tmp_path, use_rslora=rslora)
    assert near(state["l.0.q.weight"], BASE["l.0.q.weight"].double() + by_hand(scale, Q))
    assert near(state["l.0.k.weight"], BASE["l.0.k.weight"].double() + by_hand(scale, K))
    assert all(torch.equal(state[n], BASE[n]) for n in ("l.0.q.bias", "emb.weight", "c.weight", "head.weight"))


def test_dora(tmp_path: Path) -> None:
    """m·(W + s·BA)/‖W + s·BA‖, the norm over each output's weights."""
    m = drawn(4, seed=11).abs()
    tensors = {**factors("l.0.q", Q), f"{PREFIX}l.0.q.lora_magnitude_vector": m}
    state = product(tmp_path, tensors, use_dora=True, target_modules=["q"])
    direction = BASE["l.0.q.weight"].double() + by_hand(3, Q)
    for k in range(4):
        assert near(state["l.0.q.weight"][k], m[k] * direction[k] / direction[k].square().sum().sqrt())


@pytest.mark.parametrize("dora", [False, True])
def test_weights_that_are_stored_transposed(tmp_path: Path, dora: bool) -> None:
    """As GPT-2's are, (in, out): told from shapes, of square ones from the others', whatever the config says."""
    base = {n: t.T.contiguous() if n in ("l.0.q.weight", "l.0.k.weight") else t for n, t in BASE.items()}
    m = {f"{PREFIX}l.0.{n}.lora_magnitude_vector": drawn(4, seed=k).abs() for k, n in enumerate("qk")} if dora else {}
    state = product(tmp_path, {**PLAIN, **m}, base, use_dora=dora)
    plain = product(tmp_path, {**PLAIN, **m}, BASE, use_dora=dora)
    for name in ("l.0.q.weight", "l.0.k.weight"):
        assert near(state[name].T, plain[name].double())


def test_only_square_weights_follow_the_config(tmp_path: Path) -> None:
    """Shapes cannot tell."""
    only = factors("l.0.k", K)
    given = {"target_modules": ["k"], "fan_in_fan_out": True}
    assert near(product(tmp_path, only, **given)["l.0.k.weight"], BASE["l.0.k.weight"].double() + by_hand(3, K).T)


def test_an_embedding(tmp_path: Path) -> None:
    """Its factors are (r, vocabulary) and (dim, r), and its product is transposed."""
    a, b = drawn(2, 7, seed=12), drawn(3, 2, seed=13)
    tensors = {f"{PREFIX}emb.lora_embedding_A": a, f"{PREFIX}emb.lora_embedding_B": b}
    state = product(tmp_path, tensors, target_modules=["emb"])
    assert near(state["emb.weight"], BASE["emb.weight"].double() + by_hand(3, (a, b)).T)


def test_a_convolution(tmp_path: Path) -> None:
    """The product of (r, in, h, w) and (out, r, 1, 1) is a sum over ranks at every place of the kernel."""
    a, b = drawn(2, 3, 2, 2, seed=14), drawn(5, 2, 1, 1, seed=15)
    state = product(tmp_path, factors("c", (a, b)), target_modules=["c"])
    change = torch.einsum("or,rihw->oihw", b[:, :, 0, 0].double(), a.double())
    assert near(state["c.weight"], BASE["c.weight"].double() + 3 * change)


def test_ranks_and_scales_by_module(tmp_path: Path) -> None:
    """``rank_pattern`` and ``alpha_pattern`` are of names as they end, or of patterns."""
    wide = (drawn(3, 4, seed=16), drawn(4, 3, seed=17))
    state = product(
        tmp_path,
        {**factors("l.0.q", Q), **factors("l.0.k", wide)},
        rank_pattern={"k": 3},
        alpha_pattern={r"l\.\d\.q": 1},
    )
    assert near(state["l.0.q.weight"], BASE["l.0.q.weight"].double() + by_hand(1 / 2, Q))
    assert near(state["l.0.k.weight"], BASE["l.0.k.weight"].double() + by_hand(6 / 3, wide))


def test_a_config_that_leaves_out_rank_and_scale_says_eight(tmp_path: Path) -> None:
    """PEFT's defaults, r = lora_alpha = 8."""
    eight = drawn(8, 3, seed=18), drawn(4, 8, seed=19)
    written(tmp_path, factors("l.0.q", eight))
    config = {"peft_type": "LORA", "target_modules": ["q"]}
    (tmp_path / "ad" / "adapter_config.json").write_text(json.dumps(config))
    state = look_at(GIVEN, tmp_path, "a").read()
    assert near(state["l.0.q.weight"], BASE["l.0.q.weight"].double() + by_hand(1, eight))


def test_modules_that_are_excluded_have_no_factors(tmp_path: Path) -> None:
    """And none are missed there."""
    state = product(tmp_path, factors("l.0.k", K), exclude_modules=["q"])
    assert torch.equal(state["l.0.q.weight"], BASE["l.0.q.weight"])
    written(tmp_path, PLAIN, exclude_modules=["q"])
    assert "got factors of module 'l.0.q', expected those of target_modules" in refused(tmp_path)


def test_a_convolution_of_single_places(tmp_path: Path) -> None:
    """Factors of 1 × 1 kernels: a product of matrices, scaled."""
    a, b, w = drawn(2, 3, 1, 1, seed=14), drawn(5, 2, 1, 1, seed=15), drawn(5, 3, 1, 1, seed=16)
    state = product(tmp_path, factors("c", (a, b)), {**BASE, "c.weight": w}, target_modules=["c"])
    change = by_hand(3, (a[:, :, 0, 0], b[:, :, 0, 0]))
    assert near(state["c.weight"][:, :, 0, 0], w[:, :, 0, 0].double() + change)


def test_double_precision_of_a_base_is_kept(tmp_path: Path) -> None:
    """The product is taken in float64."""
    base = {name: tensor.double() for name, tensor in BASE.items()}
    found = product(tmp_path, PLAIN, base)["l.0.q.weight"]
    assert torch.allclose(found, base["l.0.q.weight"] + by_hand(3, Q), rtol=0, atol=1e-14)


def test_an_embeddings_product_is_rounded_before_the_sum(tmp_path: Path) -> None:
    """As PEFT does: two roundings to bfloat16, bit for bit."""
    a, b = drawn(2, 7, seed=12), drawn(3, 2, seed=13)
    base = {name: tensor.bfloat16() for name, tensor in BASE.items()}
    tensors = {f"{PREFIX}emb.lora_embedding_A": a, f"{PREFIX}emb.lora_embedding_B": b}
    state = product(tmp_path, tensors, base, target_modules=["emb"])
    assert torch.equal(state["emb.weight"], base["emb.weight"] + (3.0 * (b @ a).T).bfloat16())


def test_biases_and_whole_modules(tmp_path: Path) -> None:
    """Stored as they are, in place of the base's; a bias of a factor is added to the bias, scaled."""
    whole = {f"{PREFIX}l.0.q.base_layer.bias": torch.ones(4), f"{PREFIX}head.weight": torch.ones(2, 4)}
    state = product(tmp_path, {**PLAIN, **whole}, bias="lora_only", modules_to_save=["head"])
    assert torch.equal(state["l.0.q.bias"], torch.ones(4))
    assert torch.equal(state["head.weight"], torch.ones(2, 4))
    own = {f"{PREFIX}l.0.q.lora_B.bias": torch.ones(4)}
    state = product(tmp_path, {**PLAIN, **own}, lora_bias=True)
    assert near(state["l.0.q.bias"], BASE["l.0.q.bias"].double() + 3)


def test_a_head_that_the_base_does_not_have(tmp_path: Path) -> None:
    """A module that is saved as a whole may be new, as a classifier's is."""
    state = product(tmp_path, {**PLAIN, f"{PREFIX}score.weight": torch.ones(3, 4)}, modules_to_save=["score"])
    assert torch.equal(state["score.weight"], torch.ones(3, 4))


TIED = {"embed_tokens.weight": drawn(5, 3, seed=11), "q.weight": drawn(3, 3, seed=12)}


class Tied(torch.nn.Module):
    """An embedding whose numbers are the head's as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.q = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 3, bias=False)
        self.lm_head = torch.nn.Linear(3, 5, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.q(self.embed_tokens(tokens)))


def pair_of_tied(folder: Path, prefix: str, tensors: dict[str, Tensor], saved: Any = (), *also: str) -> Any:
    """Load an adapter of q and of what is said on the tied network, and that network."""
    tensors = {**tensors, **factors("q", (drawn(2, 3), drawn(3, 2)))}
    config = {"modules_to_save": list(saved), "target_modules": ["q", *also]}
    base = {f"{prefix}{name}": tensor for name, tensor in TIED.items()}
    tokens = torch.arange(10).reshape(2, 5) % 5
    data = tokens, tokens
    folder = written(folder, tensors, base, **config)
    return load_pair(GIVEN, "base", model=Tied, data=data, loss="next_token", device="cpu", base=folder)


EMBEDDED = {
    f"{PREFIX}embed_tokens.lora_embedding_A": drawn(2, 5),
    f"{PREFIX}embed_tokens.lora_embedding_B": drawn(3, 2),
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        ({f"{PREFIX}embed_tokens.weight": drawn(5, 3)}, (["embed_tokens"],)),
        (EMBEDDED, ((), "embed_tokens")),
    ],
)
def test_one_of_two_tied_tensors_is_not_changed_alone(
    tmp_path: Path, prefix: str, tensors: dict[str, Tensor], config: tuple[Any, ...]
) -> None:
    """PEFT keeps the head as it was: written into both, it would be another model."""
    with pytest.raises(CheckpointError, match=r"'embed_tokens.weight' and not 'lm_head.weight', .* one tensor; .*mend"):
        pair_of_tied(tmp_path, prefix, tensors, *config)


def test_what_is_tied_and_changed_together_is_read(tmp_path: Path) -> None:
    """An embedding that was stored since it was resized is copied into the tied one; both saved alike are one."""
    whole = drawn(5, 3)
    stored = pair_of_tied(tmp_path, "", {f"{PREFIX}embed_tokens.weight": whole})
    assert all(torch.equal(stored.theta_a[name], whole) for name in ("embed_tokens.weight", "lm_head.weight"))
    both = {f"{PREFIX}{name}.weight": whole.clone() for name in ("embed_tokens", "lm_head")}
    saved = pair_of_tied(tmp_path, "", both, ["embed_tokens", "lm_head"])
    assert torch.equal(saved.theta_a["lm_head.weight"], whole)


def test_factors_of_what_is_tied_and_not_stored(tmp_path: Path) -> None:
    """One line that names the module, the tensor and the base."""
    head = factors("lm_head", (drawn(2, 3), drawn(5, 2)))
    said = r"got factors of module 'lm_head', expected a tensor .*lm_head\.weight' in"
    for prefix in ("", "module."):
        with pytest.raises(CheckpointError, match=said):
            pair_of_tied(tmp_path, prefix, head, (), "lm_head")


def test_the_product_has_the_dtype_of_the_base(tmp_path: Path) -> None:
    """W + s·BA in float32, rounded once to bfloat16."""
    base = {name: tensor.bfloat16() for name, tensor in BASE.items()}
    state = product(tmp_path, PLAIN, base)
    expected = (base["l.0.q.weight"].float() + (Q[1] @ Q[0]) * 3.0).bfloat16()
    assert torch.equal(state["l.0.q.weight"], expected)


def test_names_of_the_base_that_begin_otherwise(tmp_path: Path) -> None:
    """A base that is saved with a prefix of its own is found."""
    base = {f"transformer.{name}": tensor for name, tensor in BASE.items()}
    state = product(tmp_path, PLAIN, base)
    assert near(state["transformer.l.0.q.weight"], BASE["l.0.q.weight"].double() + by_hand(3, Q))


def test_what_is_said_of_it(tmp_path: Path) -> None:
    """Files, hash, home and facts are of base and adapter; a base's own file is never added to in memory."""
    written(tmp_path)
    found = look_at(GIVEN, tmp_path, "a")
    names = ["adapter_config.json", "adapter_model.safetensors", "model.safetensors"]
    assert sorted(file.name for file in found.files) == names
    assert found.home == tmp_path / "base"
    where = {"adapter_config.json": "ad", "adapter_model.safetensors": "ad", "model.safetensors": "base"}
    lines = [f"{hashlib.sha256((tmp_path / where[n] / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    pin = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert found.facts()["sha256"] == pin
    assert open_checkpoint(GIVEN, tmp_path, "a", pin).get("l.0.q.weight").shape == (4, 3)
    assert found.facts()["adapter"] == {"path": str(tmp_path / "ad"), "r": 2, "lora_alpha": 6, "base": None}
    state = {name: tensor.clone() for name, tensor in BASE.items()}
    look_at({"base": state, "adapter": "ad"}, tmp_path, "a").read()
    assert all(torch.equal(tensor, BASE[name]) for name, tensor in state.items())


@pytest.mark.parametrize("name", ["base/model.safetensors", "ad/adapter_model.safetensors", "ad/adapter_config.json"])
def test_no_file_may_change(tmp_path: Path, name: str) -> None:
    """Neither the base's nor the adapter's, its config included."""
    found = look_at(GIVEN, written(tmp_path), "a")
    found.read()
    found.require_unchanged()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=rf"{Path(name).name}: changed after it was loaded"):
        found.require_unchanged()


def test_products_are_compared_and_not_factors(tmp_path: Path) -> None:
    """An adapter is told from another by what is put together: the same files, or another scale of them."""
    written(tmp_path)
    found = look_at(GIVEN, tmp_path, "a")
    written(tmp_path / "copy" if (tmp_path / "copy").mkdir() is None else tmp_path)
    assert found.same_contents(look_at(GIVEN, tmp_path / "copy", "b"))
    assert not found.same_contents(look_at(GIVEN, written(tmp_path / "copy", lora_alpha=7), "b"))
    assert not found.same_contents(look_at("base", tmp_path, "b"))


def test_a_stack_of_adapters(tmp_path: Path) -> None:
    """An adapter that was trained on a merged one is added to the product."""
    written(tmp_path)
    state = look_at({"base": GIVEN, "adapter": "ad"}, tmp_path, "a").read()
    assert near(state["l.0.q.weight"], BASE["l.0.q.weight"].double() + by_hand(6, Q))


def without(end: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in PLAIN.items() if not name.endswith(end)}


@pytest.mark.parametrize(
    ("tensors", "config", "words"),
    [
        (PLAIN, {"peft_type": "IA3"}, 'peft_type: got "IA3" (a string), expected a LoRA adapter'),
        (PLAIN, {"peft_type": "LOHA"}, "peft_type: got"),
        (PLAIN, {"peft_type": None}, "peft_type: got null"),
        (PLAIN, {"use_qalora": True}, "use_qalora: got true (a boolean), expected a LoRA adapter"),
        (PLAIN, {"target_parameters": ["experts.up"]}, "target_parameters: got an array"),
        (PLAIN, {"layer_replication": [[0, 1]]}, "layer_replication: got an array"),
        (PLAIN, {"trainable_token_indices": [1]}, "trainable_token_indices: got an array"),
        (PLAIN, {"some_new_variant": {"x": 1}}, "some_new_variant: got a table"),
        (PLAIN, {"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        (PLAIN, {"r": 0}, "r: got 0, expected a rank"),
        (PLAIN, {"r": 4}, "and (4, 2) of module 'l.0.k', expected the rank r 4 of its config"),
        (PLAIN, {"rank_pattern": {"k": 1}}, "of module 'l.0.k', expected the rank r 1"),
        (PLAIN, {"rank_pattern": {"(": 1}}, "rank_pattern: got a table"),
        (PLAIN, {"lora_alpha": "6"}, 'lora_alpha: got "6" (a string), expected a number'),
        (PLAIN, {"bias": "some"}, "bias: got"),
        (PLAIN, {"target_modules": ["q"]}, "got factors of module 'l.0.k', expected those of target_modules"),
        (PLAIN, {"target_modules": ["q", "k", "head"]}, "got no factors of module 'head', expected those of all"),
        (PLAIN, {"target_modules": 3}, "target_modules: got 3"),
        (PLAIN, {"use_dora": True}, "got no magnitudes of module 'l.0.k', expected what use_dora = true"),
        (without("q.lora_B.weight"), {}, "got no tensor lora_B of module 'l.0.q', expected both factors"),
        (factors("l.0.q", Q), {}, "got no factors of module 'l.0.k', expected those of all target_modules"),
        (factors("l.9.q", Q), {"target_modules": ["q"]}, "is of tensor 'l.9.q.weight', which"),
        (factors("l.0.q", K), {"target_modules": ["q"]}, "do not fit tensor 'l.0.q.weight' of"),
        ({**PLAIN, f"{PREFIX}head.weight": torch.ones(2, 4)}, {}, "those of modules_to_save in its config only"),
        ({**PLAIN, f"{PREFIX}head.weight": torch.ones(3, 4)}, {"modules_to_save": ["head"]}, "has shape (3, 4), in"),
        (
            {**PLAIN, f"{PREFIX}emb.token_adapter.trainable_tokens_delta": torch.ones(1)},
            {},
            "factors of LoRA, magnitudes",
        ),
        ({**PLAIN, "l.0.q.weight": torch.ones(4, 3)}, {}, "expected names that begin with 'base_model.model.'"),
        ({}, {}, "got no tensors"),
        (
            {**PLAIN, **{f"{PREFIX}l.0.q.lora_magnitude_vector{end}": torch.ones(4) for end in ("", ".weight")}},
            {"use_dora": True},
            "got two tensors magnitude of module 'l.0.q', expected one",
        ),
        (
            {**factors("l.0.q", Q), f"{PREFIX}l.0.q.lora_magnitude_vector": torch.ones(3)},
            {"use_dora": True, "target_modules": ["q"]},
            "got magnitudes (3,) of module 'l.0.q', expected shape (4,)",
        ),
    ],
)
def test_what_is_no_adapter_of_this_base(
    tmp_path: Path, tensors: dict[str, Tensor], config: dict[str, Any], words: str
) -> None:
    """Is one line that names the key of the config, the module or the tensor."""
    written(tmp_path, tensors, **config)
    assert words in refused(tmp_path)


def refused(folder: Path, given: Any = GIVEN) -> str:
    with pytest.raises(CheckpointError) as error:
        look_at(given, folder, "a")
    text = str(error.value)
    assert "\n" not in text
    assert "mend: " in text
    return text


def test_factors_keep_no_other_base(tmp_path: Path) -> None:
    """The base that was trained on, where it still is, must be that which is given, or hold the same weights."""
    written(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    save_file(BASE, other / "model.safetensors")
    written(tmp_path, base_model_name_or_path=str(other))
    assert look_at(GIVEN, tmp_path, "a").tensors
    save_file({**BASE, "head.weight": torch.zeros(2, 4)}, other / "model.safetensors")
    assert "was trained on" in refused(tmp_path)
    written(tmp_path, base_model_name_or_path="somebody/on-the-hub")
    found = look_at(GIVEN, tmp_path, "a")
    assert found.about["adapter"]["base"] == "somebody/on-the-hub"
    assert "trained on 'somebody/on-the-hub' as its config says" in found.remarks[0]
    written(tmp_path, base_model_name_or_path="base")
    assert not look_at(GIVEN, tmp_path, "a").remarks


def config_gone(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def config_broken(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def config_deep(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[" * 50_000)


def config_twice(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"r": 1, "r": 2}')


def config_fifo(folder: Path) -> None:
    config_gone(folder)
    os.mkfifo(folder / "adapter_config.json")


def weights_pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def weights_cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (config_gone, "got a folder without adapter_config.json"), (config_broken, "not valid JSON"),
        (config_deep, "nested too deeply"), (config_twice, "the key 'r' occurs twice"), (config_fifo, "got a FIFO"),
        (weights_pickled, "an adapter that is a pickle, adapter_model.bin"), (weights_cut, "truncated or corrupt"),
    ],
)  # fmt: skip
def test_a_damaged_folder(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    """Is told by the file."""
    damage(written(tmp_path) / "ad")
    assert words in refused(tmp_path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"base": "base"}, "a: got no 'adapter', expected 'base' and 'adapter'"),
        ({"adapter": "ad"}, "a: got no 'base'"),
        ({**GIVEN, "scale": 2}, "a: got the key 'scale'"),
        ({"base": "base", "adapter": 3}, "a: adapter: got int"),
        ({"base": 3, "adapter": "ad"}, "a, base: got int"),
        ({"base": "ad", "adapter": "ad"}, "got adapter_config.json, an adapter"),
        ({"base": "gone", "adapter": "ad"}, "no such file"),
    ],
)
def test_what_is_given_of_another_form(tmp_path: Path, given: Any, words: str) -> None:
    """Names the key."""
    assert words in refused(written(tmp_path), given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_library_merges_to_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    """DoRA with rsLoRA, an embedding, ranks by pattern and a whole module, saved and merged by PEFT itself."""
    peft = pytest.importorskip("peft")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.q = torch.nn.Embedding(7, 6), torch.nn.Linear(6, 4)
            self.c, self.head = torch.nn.Conv1d(4, 5, 2), torch.nn.Linear(5, 3)

    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, use_dora=True, target_modules=["emb", "q", "c"], rank_pattern={"q": 3},
        modules_to_save=["head"],
    )  # fmt: skip
    base, net = Net().to(dtype), Net().to(dtype)
    net.load_state_dict(base.state_dict())
    written(tmp_path, PLAIN, base.state_dict())
    adapted = peft.get_peft_model(net, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "ad")
    expected = peft.PeftModel.from_pretrained(base, tmp_path / "ad").merge_and_unload().state_dict()
    found = look_at(GIVEN, tmp_path, "a").read()
    assert found.keys() == expected.keys() == load_file(tmp_path / "base" / "model.safetensors").keys()
    assert all(torch.equal(tensor, expected[name]) and tensor.dtype == dtype for name, tensor in found.items())
