"""The gate on the real core: single models, from the manifest to every report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lmccheck

MODELS = """
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))

def other():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
"""
HEAD = 'schema = 1\n[defaults]\nmodel = "models:mlp"\ndata = "data.safetensors"\ncalibration = "train.safetensors"\n'
MANIFEST = f"""{HEAD}
[model.good]
checkpoint = "good.safetensors"
check.dropout_stability = {{ epsilon = 0.05 }}
check.noise_stability = {{ epsilon = "500%", p = 0.1 }}
check.gauss = {{ property = "noise_stability", noise = "gaussian", epsilon = 0.5, size = 0.01 }}
"""
FAILING = f"""{HEAD}
[model.bad]
checkpoint = "good.safetensors"
check.dropout_stability = {{ epsilon = 0, keep = 0.1, refit = false }}
check.noise_stability = {{ epsilon = 0, p = 0.9, severity = "warn" }}

[model.random]
checkpoint = "random.safetensors"
check.dropout_stability = {{ epsilon = 9 }}

[model.torn]
checkpoint = "torn.safetensors"
check.dropout_stability = {{ epsilon = 9 }}
"""


@pytest.fixture(scope="module", autouse=True)
def _traced_before() -> None:
    """Import what tracing imports, some of which can be imported only once: pytester forgets what a run in it does."""
    lmccheck.discover_symmetry(torch.nn.Sequential(torch.nn.Linear(2, 2)), (torch.ones(2, 2),))


@pytest.fixture
def folder(pytester: pytest.Pytester) -> Path:
    """A network that finds its targets and has every hidden unit twice, a random one, and a torn file."""
    generator = torch.Generator().manual_seed(0)
    half = {"w": 3 * torch.randn(6, 6, generator=generator), "b": torch.randn(6, generator=generator)}
    out = 3 * torch.randn(3, 6, generator=generator)
    good = {
        "0.weight": half["w"].repeat(2, 1), "0.bias": half["b"].repeat(2), "2.weight": out.repeat(1, 2),
        "2.bias": torch.randn(3, generator=generator),
    }  # fmt: skip
    for name, samples in (("data", 60), ("train", 200)):
        inputs = torch.randn(samples, 6, generator=generator)
        hidden = torch.relu(inputs @ good["0.weight"].T + good["0.bias"])
        targets = (hidden @ good["2.weight"].T + good["2.bias"]).argmax(1)
        save_file({"inputs": inputs, "targets": targets}, pytester.path / f"{name}.safetensors")
    save_file(good, pytester.path / "good.safetensors")
    shuffled = {name: 3 * torch.randn(tensor.shape, generator=generator) for name, tensor in good.items()}
    save_file(shuffled, pytester.path / "random.safetensors")
    whole = (pytester.path / "good.safetensors").read_bytes()
    (pytester.path / "torn.safetensors").write_bytes(whole[:-8])
    (pytester.path / "models.py").write_text(MODELS)
    (pytester.path / "lmc.toml").write_text(MANIFEST)
    return pytester.path


def test_a_manifest_of_models_alone_passes(folder: Path, pytester: pytest.Pytester) -> None:
    """No pair anywhere; the table, JSON, Markdown, the attestation and JUnit have its rows, witnesses are written."""
    written = ["--lmc-report-json=r.json", "--lmc-report-md=r.md", "--lmc-attest=s.json", "--junitxml=j.xml"]
    result = pytester.runpytest_inprocess("--lmc-models", "--lmc-witness-dir=w", "--lmc-aligned-dir=ship", *written)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        ["good*pass*", "*twins*", "good is a single model: --lmc-aligned-dir has nothing to write for it"],
        consecutive=False,
    )
    report = json.loads((folder / "r.json").read_text())
    assert [report[key] for key in ("pairs", "sets", "merges", "errors")] == [[], [], [], []]
    (described,) = report["models"]
    assert (described["name"], described["files"]["checkpoint"]["path"]) == ("good", "good.safetensors")
    checks = {check["check"]: check for check in report["checks"] if check["pair"]}
    assert {(check["kind"], check["verdict"]) for check in checks.values()} == {("model", "pass")}
    assert checks["dropout_stability"]["id"] == "lmc.toml::good::dropout_stability"
    assert checks["dropout_stability"]["details"]["epsilon"] == {"model": [pytest.approx(0, abs=1e-9)]}
    assert [end["name"] for end in checks["noise_stability"]["endpoints"]] == ["model"]
    assert len({check["seed"] for check in checks.values()}) == 3
    statement = json.loads((folder / "s.json").read_text())
    assert statement["predicate"]["result"] == "PASSED"
    assert [subject["name"] for subject in statement["subject"]] == ["good.safetensors"]
    assert 'name="lmc.loss_model"' in (folder / "j.xml").read_text()
    assert "| good " in (folder / "r.md").read_text()
    witnesses = sorted(path.name for path in (folder / "w").iterdir())
    assert witnesses == ["good-dropout_stability.safetensors", "good-gauss.safetensors",
                         "good-noise_stability.safetensors"]  # fmt: skip
    assert not (folder / "ship").exists()
    saved = 'check.verify_dropout = { witness = "w/good-dropout_stability.safetensors", epsilon = 1e-9 }'
    (folder / "lmc.toml").write_text(f'{HEAD}[model.again]\ncheckpoint = "good.safetensors"\n{saved}\n')
    pytester.runpytest_inprocess("--lmc-models").assert_outcomes(passed=2)


def test_what_does_not_pass_reads_well(folder: Path, pytester: pytest.Pytester) -> None:
    """A fail, a warning, an endpoint of no use, a torn file: each in words of one model, with its own command."""
    (folder / "lmc.toml").write_text(FAILING)
    result = pytester.runpytest_inprocess("--lmc-models", "--lmc-report-json=r.json")
    result.assert_outcomes(failed=4, passed=1, warnings=1)
    checks = {check["id"]: check for check in json.loads((folder / "r.json").read_text())["checks"]}
    bad = checks["lmc.toml::bad::dropout_stability"]["message"]
    assert bad.startswith("bad: the model is not dropout stable: units to keep were not found")
    assert bad.splitlines()[2].startswith("where: level 0 (0) and later, 1 of 12 in 0, found by ")
    assert bad.splitlines()[4].startswith("its own loss: ")
    assert bad.endswith("reproduce: pytest 'lmc.toml::bad::dropout_stability'")
    noisy = checks["lmc.toml::bad::noise_stability"]
    assert noisy["message"].startswith("bad: not noise stable: the model loses too much with units dropped at p = 0.9")
    assert (noisy["blocking"], noisy["verdict"]) == (False, "fail")
    useless = checks["lmc.toml::random::dropout_stability"]
    assert useless["verdict"] == "inconclusive"
    assert useless["message"].startswith("random: the model answers no better than the class frequencies (")
    assert "that says nothing about the model\n" in useless["message"]
    torn = checks["lmc.toml::torn::dropout_stability"]
    assert torn["verdict"] == "error"
    assert torn["message"].count("\n") == 0
    for check in checks.values():
        words = check["message"].replace('endpoints = "any"', "")  # a setting's name
        assert not re.search(r"\bendpoints?\b|\bboth\b|\bpairs?\b| of model\b", words), words


def test_fixtures_reach_a_single_model(folder: Path, pytester: pytest.Pytester) -> None:
    """Model, data and loss may come from a conftest; a fixture that skips leaves the check not measured, and red."""
    bare = 'schema = 1\n[model.good]\ncheckpoint = "good.safetensors"\ncheck.noise_stability = { epsilon = 9 }\n'
    (folder / "lmc.toml").write_text(bare)
    result = pytester.runpytest_inprocess("--lmc-models")
    result.stdout.fnmatch_lines(
        ["model.good.model: missing in the model and in [[]defaults], and no conftest.py beside the manifest*"]
    )
    given = """
import pytest
from models import mlp
@pytest.fixture
def lmc_model_factory(): return mlp
@pytest.fixture
def lmc_data(): return "data.safetensors"
@pytest.fixture
def lmc_loss(): {}
"""
    pytester.makeconftest(given.format('return "cross_entropy"'))
    pytester.syspathinsert()
    pytester.runpytest_inprocess("--lmc-models").assert_outcomes(passed=2)
    pytester.makeconftest(given.format('pytest.skip("no loss today")'))
    result = pytester.runpytest_inprocess("--lmc-models")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*good*not measured*", "*skipped: no loss today*"])


def test_tests_load_single_models(folder: Path, pytester: pytest.Pytester) -> None:
    """``lmc.load_model`` takes the fixtures' sources; a failed assertion says what the result says, of the model."""
    pytester.makepyfile(
        """
        SOURCES = dict(model="models:mlp", data="data.safetensors", calibration="train.safetensors")

        def test_holds(lmc):
            assert lmc.dropout_stability(lmc.load_model("good.safetensors", **SOURCES), epsilon=0.05).passed

        def test_fails(lmc):
            model = lmc.load_model("good.safetensors", **SOURCES)
            result = lmc.dropout_stability(model, epsilon=0.0, keep=0.1, refit=False, profile="dev")
            assert result.passed

        def test_wrong(lmc):
            lmc.linear_connectivity(lmc.load_model("good.safetensors", **SOURCES), limit=1.0)
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "dropout_stability: fail: good: the model is not dropout stable: *",
            "*TypeError: linear_connectivity(): got a single model, expected a pair; mend: lmccheck.load_pair(*",
        ]
    )


def test_a_property_of_ones_own_may_be_of_models(folder: Path, pytester: pytest.Pytester) -> None:
    """``of="model"`` in a conftest, or of pairs and models alike: what it looks at are the named endpoints."""
    pytester.makeconftest(
        """
from lmccheck.finding import Finding
from lmccheck.properties import check

@check(of="model", claim="‖θ‖ ≤ limit", quantifier="exactly", certifies="the norm of the file")
def norm(model, *, limit: float = 1.0) -> Finding:
    return Finding(sum(float(t.square().sum()) for t in model.theta.values()) ** 0.5, limit)

@check(of=("pair", "model"), claim="tensors ≤ limit", quantifier="exactly", certifies="their number")
def tensors(view, *, limit: float = 1.0) -> Finding:
    return Finding(max(len(end.theta) for end in view.named_endpoints.values()), limit)
"""
    )
    (folder / "lmc.toml").write_text(
        HEAD + '[model.good]\ncheckpoint = "good.safetensors"\ncheck.norm.limit = 100.0\ncheck.tensors.limit = 4.0\n'
        'check.none = { property = "norm", limit = 0.5 }\n'
        '[pair.two]\na = "good.safetensors"\nb = "random.safetensors"\n'
        'check.tensors = { limit = 4.0, endpoints = "any" }\n'
    )
    result = pytester.runpytest_subprocess("--lmc-models")
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["norm: fail for good", "measured *, limit 0.5"])


def test_a_model_and_a_pair_of_one_name_would_write_one_witness(folder: Path, pytester: pytest.Pytester) -> None:
    """In two manifests they are told apart by these, their witnesses are not: nothing is measured, nothing written."""
    two = f'{HEAD}[pair.good]\na = "good.safetensors"\nb = "random.safetensors"\n'
    (folder / "two.lmc.toml").write_text(f'{two}check.gauss = {{ property = "noise_stability", epsilon = 9 }}\n')
    result = pytester.runpytest_inprocess("--lmc-models", "--lmc-witness-dir=w")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --lmc-witness-dir: lmc.toml and two.lmc.toml both have something called 'good', a model and a pair, *"]
    )
    assert not (folder / "w").exists()
    result = pytester.runpytest_inprocess("--lmc-models", "--lmc-aligned-dir=ship", "-k", "gauss")
    result.stdout.fnmatch_lines(["good is a single model: --lmc-aligned-dir has nothing to write for it"])
