"""The zoo: architectures people use, found sound and free. A representative part runs in CI, all of it by hand.

``pytest -m zoo tests/zoo -s`` runs all of both zoos and prints their tables.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import pytest

if not (find_spec("torchvision") and find_spec("transformers")):
    pytest.skip("the zoo needs torchvision and transformers: pip install -e '.[zoo]'", allow_module_level=True)

import run
import stability
import torchvision_zoo
import transformers_zoo
from measure import Row, measure

TORCHVISION = {  # name: least number of groups, least share of the parameters that evaluation reads
    "vgg11_bn": (10, 0.999),
    "resnet18": (12, 0.999),
    "resnext50_32x4d": (53, 0.999),
    "densenet121": (120, 0.999),
    "mobilenet_v3_small": (27, 0.999),
    "efficientnet_b0": (40, 0.999),
    "regnet_y_400mf": (69, 0.999),
    "convnext_tiny": (22, 0.999),
    "shufflenet_v2_x0_5": (60, 0.999),
    "googlenet": (57, 0.999),
    "inception_v3": (94, 0.999),
    "mnasnet0_5": (25, 0.999),
    "squeezenet1_1": (25, 0.999),
    "swin_t": (52, 0.998),
}
LARGE = {
    "vgg11_bn",
    "resnext50_32x4d",
    "densenet121",
    "googlenet",
    "inception_v3",
}  # slow; smaller ones of their kind stay
# Feed-forward groups of 40 units in every network with feed-forward layers; head groups where heads are alike.
HEADS = {
    "BERT": 4,
    "RoBERTa": 4,
    "DistilBERT": 4,
    "GPT-2": 4,
    "GPT-NeoX": 4,
    "Llama": 2,  # key-value heads, each with the (2, 2) query heads inside it
    "Mistral": 2,
    "Qwen2": 2,
    "Qwen3": 2,
    "Gemma": 2,
    "Phi": 2,
    "T5": 4,
    "ViT": 4,
    "CLIP": 4,
    "Whisper encoder": 4,
    "Mixtral": 2,
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    warnings.simplefilter("ignore")  # what the libraries warn of while building is not ours


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in TORCHVISION])
def test_a_torchvision_network_is_sound_and_free(name: str) -> None:
    """The function is kept to 1e-9, no op is without a rule, and what is there is found."""
    row = measure(name, *torchvision_zoo.build(name), trials=2)
    groups, share = TORCHVISION[name]
    assert row.deviation is not None, row.refusal
    assert row.deviation <= 1e-9
    assert not row.unruled
    assert row.groups >= groups
    assert row.free >= share * (1 - row.unread)


@pytest.mark.parametrize("name", [*HEADS, "Mamba"])
def test_a_transformers_network_is_sound_and_its_heads_are_free(name: str) -> None:
    """The function is kept to 1e-9; feed-forward groups are free in all, head groups where the architecture has
    them."""
    row = measure(name, *transformers_zoo.build(name), trials=2)
    assert row.deviation is not None, row.refusal
    assert row.deviation <= 1e-9
    if name in HEADS:
        assert HEADS[name] in row.sizes
        assert [size[0] if isinstance(size, tuple) else size for size in row.sizes].count(40) >= 2  # some in experts
    assert row.free >= 0.6


@pytest.mark.zoo
def test_all_of_torchvision() -> None:
    """80 of 80 traced or refused with a reason, none unsound, at least 76 with free groups."""
    found = run.rows("torchvision", torchvision_zoo.names())
    print("\n" + run.table(found))
    assert len(found) == 80
    _assert_totals(found, least=76)


@pytest.mark.zoo
def test_all_of_transformers() -> None:
    """Every architecture traced or refused with a reason, none unsound, all with free groups."""
    found = run.rows("transformers", transformers_zoo.NAMES)
    print("\n" + run.table(found))
    _assert_totals(found, least=len(found))


def _assert_totals(found: list[Row], least: int) -> None:
    assert not [row.name for row in found if not row.sound]
    assert sum(row.groups > 0 for row in found) >= least
    assert all(row.reasons for row in found if row.deviation is not None)


@pytest.mark.zoo
@pytest.mark.parametrize("name", transformers_zoo.NAMES)
def test_noise_stability_is_measured_on_every_transformer(name: str) -> None:
    """Gaussian noise needs no units and no trace: no architecture is refused."""
    (answer,) = stability.answers(*transformers_zoo.build(name), ["noise_stability, gaussian"])
    assert not answer.refusal
    assert answer.known.startswith("sampled: ")
