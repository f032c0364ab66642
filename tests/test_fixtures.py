"""The shipped fixtures are what they say: real data, disjoint splits, accurate networks, small files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmccheck.data.model import build_module

FOLDER = Path(__file__).parents[1] / "fixtures"
ACCURACY = {
    "mlp-seed0": 0.95, "mlp-seed1": 0.95, "cnn-seed0": 0.95, "cnn-seed1": 0.95, "transformer-half0": 0.93,
    "transformer-half1": 0.93, "transformer-seed0": 0.93, "transformer-seed1": 0.93,
}  # fmt: skip


@pytest.mark.parametrize(("name", "least"), ACCURACY.items())
def test_accuracy_on_the_test_images(name: str, least: float) -> None:
    """Every gated network is a good one; a gate between bad networks shows nothing."""
    module = build_module(f"models:{name.split('-')[0]}", FOLDER)
    module.load_state_dict(load_file(str(FOLDER / f"{name}.safetensors")))
    data = load_file(str(FOLDER / "digits-test.safetensors"))
    with torch.no_grad():
        assert (module.eval()(data["inputs"]).argmax(1) == data["targets"]).float().mean() >= least


def test_data_is_scikit_learns_digits_and_disjoint() -> None:
    """Train and test together are the 1797 digits, none in both, with the dtypes a manifest expects."""
    from sklearn.datasets import load_digits

    train, test = (load_file(str(FOLDER / f"digits-{part}.safetensors")) for part in ("train", "test"))
    for part in (train, test):
        assert (part["inputs"].dtype, part["targets"].dtype) == (torch.float32, torch.int64)

    def rows(inputs: torch.Tensor, targets: torch.Tensor) -> list[tuple[float, ...]]:
        return [(*row, float(t)) for row, t in zip(inputs.tolist(), targets.tolist(), strict=True)]

    digits = load_digits()
    everything = rows(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
    assert sorted(rows(**train) + rows(**test)) == sorted(everything)
    assert not set(rows(**train)) & set(rows(**test))


def test_the_fixtures_are_small() -> None:
    """Everything a newcomer clones to try the gate is under 4 MB; folders of models are 6 MB more at most."""
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    hub = sum(size for path, size in sizes.items() if "hub" in path.parts)
    assert hub < 6_000_000
    assert sum(sizes.values()) - hub < 4_000_000


def test_readme_and_ci_run_the_same_commands() -> None:
    """The two commands of the README are in .ci/run word for word."""
    root = FOLDER.parent
    script = (root / ".ci" / "run").read_text()
    readme = (root / "README.md").read_text()
    for command in (
        "pip install -c constraints.txt -e . && pytest --lmc-models fixtures/",
        "pip install -c constraints.txt -e '.[test,hf,lora,mergekit,data]' && pytest",
    ):
        assert command in script
        assert command in readme
