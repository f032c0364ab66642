"""A property is declared once: the manifest, Python calls, tables and pages follow from its signature."""

from __future__ import annotations

import inspect
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lmccheck
from lmccheck.errors import LmcError, ManifestError
from lmccheck.finding import End, Finding
from lmccheck.manifest.read import load_manifest
from lmccheck.network.model_set import load_set
from lmccheck.properties import check, docs, run
from lmccheck.properties.judge import judge
from lmccheck.properties.registry import PROPERTIES, Property, properties_of
from lmccheck.properties.settings import Limit, Points

BUILT_IN = PROPERTIES.names()
README = Path(lmccheck.__file__).parents[1] / "README.md"
MANIFEST = """\
schema = 1
[{table}.x]
{sources}
check.it = {{ {settings} }}
"""
SOURCES = {
    "pair": 'a = "a"\nb = "b"',
    "widths": 'a = "a"\nb = "b"\nmodel_b = "m:b"',
    "set": 'models = ["a", "b"]',
    "merge": 'parents = { x = "a", y = "b" }\nrecipe = { linear = { x = 0.5, y = 0.5 } }',
}
VALUES: dict[str, Any] = {  # one that is not the default, as TOML
    "align": '"learned"', "limit": '"5%"', "epsilon": "1", "points": "7", "repair": '"none"', "beyond": '"all"',
    "keep": "0.25", "refit": "false", "form": '"short"', "through": '"t.safetensors"', "through_model": '"m:f"',
    "p": "0.5", "masks": "3", "quantile": "0.5", "noise": "1", "diagnostics": "true", "method": '"reference"',
    "reference": "1", "norm": '"weights"', "path": '"p"', "witness": '"w"', "over": '"mean"', "weights": "[1, 0.5]",
    "against": '"x"', "data": '"m:data"', "tolerance": '"rounded"', "examples": "7",
    "size": "0.5", "explain": "true", "certify": '"never"', "by": '"class"', "metric": '"error"',
    "early_fail": "1e-6", "decide": '"data"',
}  # fmt: skip


def stated(tmp_path: Path, name: str, **settings: str) -> dict[str, Any]:
    """Return what a manifest that says these settings, as TOML, asks of a property."""
    kind = PROPERTIES.get(name).of[0]
    table = "pair" if kind == "widths" else kind
    said = ", ".join(f"{key} = {value}" for key, value in {"property": f'"{name}"', **settings}.items())
    path = tmp_path / "lmc.toml"
    path.write_text(MANIFEST.format(table=table, sources=SOURCES[kind], settings=said))
    return dict(load_manifest(path).comparisons[0].checks[0].settings)


@pytest.mark.parametrize("name", PROPERTIES.names())
def test_every_setting_may_be_said_in_a_manifest(name: str, tmp_path: Path) -> None:
    """All but seed and profile, which are the run's; what is not said is not passed on."""
    declared = PROPERTIES.get(name)
    needed = {key for key, p in declared.parameters.items() if p.default is p.empty} | declared.limits.keys()
    required = {key: VALUES[key] for key in needed}
    assert stated(tmp_path, name, **required).keys() == required.keys()
    every = {key: VALUES[key] for key in declared.parameters if key not in ("seed", "profile")}
    found = stated(tmp_path, name, **every)
    assert found.keys() == every.keys()
    assert declared.checked(found) == found
    with pytest.raises(ManifestError, match=r"it\.seed: unknown key"):
        stated(tmp_path, name, **every, seed="1")


@pytest.mark.parametrize("name", PROPERTIES.names())
def test_defaults_are_valid(name: str) -> None:
    """Nothing looks at them when a property is declared."""
    declared = PROPERTIES.get(name)
    defaults = {key: "file" if p.default is p.empty else p.default for key, p in declared.parameters.items()}
    assert declared.checked(defaults) == defaults


def test_what_is_expected_is_said_alike_in_a_manifest_and_in_python(tmp_path: Path) -> None:
    """One text per setting."""
    with pytest.raises(LmcError) as python:
        lmccheck.linear_connectivity(None, points=2)  # type: ignore[arg-type]  # settings are looked at first
    assert str(python.value) == "linear_connectivity: points = 2; expected a whole number from 3 to 10001"
    with pytest.raises(ManifestError) as manifest:
        stated(tmp_path, "linear_connectivity", points="2", limit="1")
    assert str(manifest.value).endswith(".points: got 2, expected a whole number from 3 to 10001")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"align": "lerned"},
            "align = 'lerned' (did you mean 'learned'?); expected \"none\", \"activation-matching\", ",
        ),
        ({"beyond": ["rotation"]}, "beyond = ['rotation']; expected \"all\" or a list of some of rescaling, "),
        ({"seed": True}, "seed = True; expected an integer"),
        ({"profile": "fast"}, 'profile = \'fast\'; expected "dev", "ci" or "thorough"'),
        ({"limit": float("nan")}, "limit = nan; expected a number ≥ 0 in the loss's unit, or a percentage of "),
    ],
)
def test_a_mistake_in_a_call_is_one_line(settings: dict[str, Any], message: str) -> None:
    """The property, the setting, its value, what is expected, and the nearest name where there is one."""
    with pytest.raises(LmcError) as caught:
        run("linear_connectivity", None, **settings)
    assert str(caught.value).startswith(f"linear_connectivity: {message}")
    assert "\n" not in str(caught.value)


def test_an_unknown_keyword_is_pythons_error_with_the_nearest_name() -> None:
    """As for any function; where no name is near, with all of them."""
    with pytest.raises(
        TypeError, match=r"linear_connectivity\(\) got an unexpected keyword argument 'limits' \(did you "
    ):
        lmccheck.linear_connectivity(None, limits=1)  # type: ignore[call-arg,arg-type]  # the point of the test
    with pytest.raises(TypeError, match=r"keyword argument 'epsilon'; expected some of \['align', 'limit', 'points', "):
        lmccheck.linear_connectivity(None, epsilon=1)  # type: ignore[call-arg,arg-type]  # the point of the test


@pytest.mark.parametrize(
    ("finding", "said"),
    [
        (3.0, "x: returned float, expected a Finding"),
        (Finding("0.0", 1.0), "x: its finding's value is '0.0', expected a number"),  # type: ignore[arg-type]  # the point
        (Finding(1.0, math.inf), "limit = inf; expected a number"),
        (Finding(1.0, "9" * 400 + "%", reference=1.0), "9%'; expected a number"),
        (Finding(-math.inf, 1.0), "value -inf, limit 1.0; expected finite numbers"),
        (Finding(1.0, "5%", reference=math.inf), "value 1.0, limit inf; expected finite numbers"),
        (Finding(1.0, "5 %", reference=1.0), "limit = '5 %'; expected a number"),
        (Finding(0.0, 1.0, verdict="PASSED"), "x: its finding's verdict is 'PASSED', expected one of"),  # type: ignore[arg-type]
        (Finding(0.0, 1.0, endpoints=(End("a", math.nan),)), "x: the loss of a is nan, expected a finite one"),
    ],
)
def test_a_finding_that_cannot_be_judged_is_an_error(finding: Any, said: str) -> None:
    """Never a verdict, whatever a property of somebody's returns."""
    with pytest.raises(LmcError, match=re.escape(said)):
        judge("x", finding, 0.0)


@pytest.mark.parametrize("value", [math.nan, 1.0000001, math.inf])
def test_a_property_cannot_pass_what_is_above_its_limit(value: float) -> None:
    """Whatever verdict it claims."""
    assert judge("x", Finding(value, 1.0, verdict="pass"), 0.0).verdict == "fail"
    assert judge("x", Finding(0.5, 1.0, verdict="inconclusive"), 0.0).verdict == "inconclusive"


def test_public_functions_show_what_they_take() -> None:
    """What is loaded inside is part of the signature; a wrong number of arguments is Python's own error."""
    sets = inspect.signature(lmccheck.set_connectivity).parameters
    assert list(sets)[:3] == ["models", "model", "data"]
    assert (sets["loss"].default, sets["points"].default) == (None, 5)
    assert "pair" in inspect.signature(lmccheck.linear_connectivity).parameters
    assert lmccheck.linear_connectivity.__doc__
    with pytest.raises(TypeError, match=r"linear_connectivity\(\): missing a required argument: 'pair'"):
        lmccheck.linear_connectivity()  # type: ignore[call-arg]  # the point of the test
    with pytest.raises(TypeError, match=r"set_connectivity\(\): missing a required argument: 'data'"):
        lmccheck.set_connectivity(["a", "b"])


def distance(pair, *, limit: Limit = 0.5, points: Points = 3, title: str = "x", any=None, seed: int = 0) -> Finding:  # type: ignore[no-untyped-def]  # as a user may write it
    """Assert that two numbers are near."""
    return Finding(abs(pair.a - pair.b), limit, "units", endpoints=(End("a", pair.a), End("b", pair.b)))


def test_a_property_of_plain_types_is_checked_too() -> None:
    """Seconds are taken, seed and profile passed on where they are asked for, and percentages understood."""
    declared = Property("distance", "pair", "|a − b| ≤ limit", "these", "exactly this", distance)
    assert declared.expected["title"] == "a text"
    result = declared(SimpleNamespace(a=1.0, b=1.25), limit="20%", any=object(), seed=3)
    assert (result.verdict, result.value, result.limit, result.unit) == ("pass", 0.25, 0.25, "units")
    assert result.details["loss_b"] == 1.25
    assert result.seconds > 0
    with pytest.raises(LmcError, match="distance: title = 3; expected a text"):
        declared(SimpleNamespace(a=1.0, b=1.25), title=3)


def test_a_setting_may_not_hide_what_every_check_says() -> None:
    """Told where it is declared, by name."""
    with pytest.raises(LmcError, match="property 'loud': setting 'severity' is one of every check; mend: rename it"):

        @check(of="pair", claim="", quantifier="", certifies="")
        def loud(pair: Any, *, severity: float = 1.0) -> Finding:
            return Finding(0.0, severity)


def test_a_set_that_is_loaded_is_measured_as_it_is(folder: Path) -> None:
    """With the numbers of one that is loaded inside."""
    files, given = (
        ["a.safetensors", "b.safetensors"],
        {"model": "models:mlp", "data": "data.safetensors", "base": folder},
    )
    inside = lmccheck.set_connectivity(files, points=3, **given)
    outside = lmccheck.set_connectivity(load_set(files, **given), points=3)
    assert inside.value == outside.value == run("set_connectivity", load_set(files, **given), points=3).value


CONFTEST = '''
import torch
from lmccheck.finding import Finding, Where
from lmccheck.properties import check

@check(of="pair", claim="‖θ_A − θ_B‖ ≤ limit", quantifier="these two", certifies="exactly this")
def weight_distance(pair, *, limit: float = 1.0) -> Finding:
    """Assert that the weights of a and b are near."""
    far = {name: float((tensor - pair.theta_b[name]).norm()) for name, tensor in pair.theta_a.items()}
    worst = max(far, key=far.get)
    return Finding(sum(x * x for x in far.values()) ** 0.5, limit, "norm", where=Where(layer=worst))
'''


def test_a_conftest_declares_a_property_and_every_report_has_its_row(folder: Path, pytester: pytest.Pytester) -> None:
    """Under 15 lines: in a manifest, in Python by the facade, on the terminal, in JSON and Markdown."""
    assert len(CONFTEST.strip().splitlines()) < 15
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "lmc.toml").write_text(
        'schema = 1\n[pair.x]\na = "a.safetensors"\nb = "b.safetensors"\nmodel = "models:mlp"\n'
        'data = "data.safetensors"\ncheck.weight_distance = { limit = 0.5 }\n'
        'check.wrong = { property = "weight_distance", limit = 100.0 }\n'
    )
    (folder / "test_it.py").write_text(
        'def test_it(lmc):\n    pair = lmc.load_pair("a.safetensors", "b.safetensors", model="models:mlp", '
        'data="data.safetensors")\n    assert "weight_distance" in dir(lmc)\n'
        "    assert lmc.weight_distance(pair, limit=100.0).passed\n"
    )
    reports = {"json": folder / "r.json", "md": folder / "r.md"}
    options = [f"--lmc-report-{name}={path}" for name, path in reports.items()]
    result = pytester.runpytest_subprocess("--lmc-models", "--rootdir", folder, folder, *options)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*weight_distance: fail for x", "measured * norm, limit 0.5 norm", "worst at layer=*"])
    for report in reports.values():
        assert "weight_distance" in report.read_text(encoding="utf-8")
    (folder / "lmc.toml").write_text((folder / "lmc.toml").read_text().replace("limit = 0.5", "limits = 0.5"))
    result = pytester.runpytest_subprocess("--lmc-models", "--rootdir", folder, folder / "lmc.toml")
    result.stdout.fnmatch_lines(["*weight_distance.limits: unknown key (did you mean 'limit'?), expected one of *"])


def test_the_readme_has_the_declarations_rows() -> None:
    """Word for word, as far as it has them."""
    lines = README.read_text(encoding="utf-8").splitlines()
    start = lines.index(docs.HEADER.splitlines()[0])
    rows = lines[start + 2 : lines.index("", start)]
    assert len(rows) >= 5
    assert set(rows) <= set(docs.table().splitlines())


@pytest.mark.parametrize("name", PROPERTIES.names())
def test_every_property_has_a_page(name: str) -> None:
    """With its sentence, its row, and every setting with what is expected and its default."""
    text = docs.page(name)
    assert all(f"`{limit}` must be given" in text for limit in PROPERTIES.get(name).limits)
    assert '`endpoints`: `"useful"`' in text
    declared = PROPERTIES.get(name)
    assert text.startswith(f"# {name}\n")
    assert docs.row(declared) in text
    assert "Assert that" in text
    assert all(f"| `{setting}` | {declared.expected[setting]} |" in text for setting in declared.parameters)


def test_properties_are_listed_by_what_they_are_of() -> None:
    """A pair, two widths or a set."""
    assert properties_of("set") == ["set_connectivity"]
    assert properties_of("widths") == ["fused_connectivity"]
    assert "verify_path" in properties_of("pair")
    assert properties_of("model") == ["dropout_stability", "noise_stability", "verify_dropout"]


def test_declarations_are_read_without_torch() -> None:
    """All files, all models, all pages: collecting a manifest must stay instant."""
    code = (
        "import sys\nfrom lmccheck.properties import docs\nfrom lmccheck.properties.registry import PROPERTIES\n"
        "print(len([docs.page(p.name) for p in PROPERTIES if p.table]), {'torch', 'scipy', 'numpy'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout == f"{len(BUILT_IN)} set()\n"


def test_a_property_says_what_it_takes_in_place_of_files() -> None:
    """Paths are what is at hand: the mend loads them."""
    with pytest.raises(TypeError, match=r"got str, expected a pair; mend: lmccheck\.load_pair\(a, b, "):
        lmccheck.linear_connectivity("a.safetensors", "b.safetensors")  # type: ignore[arg-type]
