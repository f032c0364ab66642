"""``lmc.toml`` to a plan: what is accepted, and the one line that every mistake gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmccheck.errors import ManifestError
from lmccheck.finding import LIMIT
from lmccheck.manifest.plan import CheckPlan
from lmccheck.manifest.read import load_manifest
from lmccheck.manifest.tables import FILE, MODELS
from lmccheck.properties.registry import properties_of
from lmccheck.properties.settings import MEAN_WEIGHTS

SOUND = """\
schema = 1

[defaults]
model = "models:mlp"
data = "data.safetensors"
calibration = "train.safetensors"

[pair.one]
a = "a.safetensors"
b = "b.safetensors"

[pair.one.check.linear_connectivity]
limit = 0.05
"""
WITHOUT_LIMIT = SOUND.removesuffix("limit = 0.05\n")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Write a manifest and load it from its own folder, so that messages begin with its bare name."""
    monkeypatch.chdir(tmp_path)

    def load(text):
        path = tmp_path / "lmc.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_manifest(path)

    return load


def test_pairs_inherit_defaults_and_may_override_them(load):
    """A pair's own value wins; what neither states is None."""
    plan = load(
        SOUND + '[pair.two]\na = "c"\nb = "d"\nmodel = "m:f"\nloss = "mse"\ncheck.linear_connectivity.limit = 1\n'
    )
    one, two = plan.pairs
    assert (one.model, one.data, one.calibration, one.loss) == (
        "models:mlp",
        "data.safetensors",
        "train.safetensors",
        None,
    )
    assert (two.model, two.data, two.calibration, two.loss) == ("m:f", "data.safetensors", "train.safetensors", "mse")


def test_a_spec_of_symmetries_is_a_source_like_the_others(load):
    """A file for all pairs or for one; None where the network is to be traced."""
    text = SOUND.replace("[defaults]", '[defaults]\nsymmetry = "all.json"')
    own = text.replace("[pair.one]", '[pair.one]\nsymmetry = "specs/one.toml"')
    assert [load(each).pairs[0].symmetry for each in (SOUND, text, own)] == [None, "all.json", "specs/one.toml"]


def test_only_stated_settings_are_passed_on(load):
    """Defaults belong to the property, which may let them depend on the profile."""
    alone = {"limit": 0.05}
    assert load(SOUND).pairs[0].checks == (CheckPlan("linear_connectivity", "linear_connectivity", "fail", alone),)
    stated = WITHOUT_LIMIT + 'limit = 1\nalign = "none"\npoints = 11\nseverity = "warn"\nendpoints = "any"\n'
    settings = {"align": "none", "endpoints": "any", "limit": 1.0, "points": 11}
    assert load(stated).pairs[0].checks == (CheckPlan("linear_connectivity", "linear_connectivity", "warn", settings),)


@pytest.mark.parametrize("limit", ["0", "0.05", "3", '"5%"', '"0.5%"'])
def test_limits(load, limit):
    """A number of nats, zero included, or a percentage."""
    assert load(WITHOUT_LIMIT + f"limit = {limit}").pairs[0].checks[0].settings["limit"] == (
        limit.strip('"') if "%" in limit else float(limit)
    )


def test_several_checks_of_one_property(load):
    """A check of any name may say which property it is."""
    text = SOUND + '[pair.one.check.unaligned-1]\nproperty = "linear_connectivity"\nalign = "none"\nlimit = 1\n'
    assert [(check.name, check.property) for check in load(text).pairs[0].checks] == [
        ("linear_connectivity", "linear_connectivity"),
        ("unaligned-1", "linear_connectivity"),
    ]


def test_pins_are_lower_case(load):
    """Tools print hashes in either case."""
    pin = "AB" * 32
    text = SOUND.replace('b = "b.s', f'sha256 = {{ b = "{pin}" }}\nb = "b.s')
    assert load(text).pairs[0].sha256 == {"b": pin.lower()}


@pytest.mark.parametrize(
    ("header", "line"),
    [("[pair.one]", 8), ('[pair."one"]', 8), ("[ pair . 'one' ]  # note", 8)],
)
def test_a_pair_knows_its_line(load, header, line):
    """Annotations of a failure land on the pair's header, however it is quoted."""
    assert load(SOUND.replace("[pair.one]", header)).pairs[0].line == line


def test_an_inline_pair_has_the_first_line(load):
    """Without a header of its own a pair points at the top of the file."""
    text = 'schema = 1\npair.x = { a = "a", b = "b", check = { linear_connectivity = { limit = 1 } } }\n'
    assert load(text).pairs[0].line == 1


@pytest.mark.parametrize("prefix", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_editors_do_to_files_is_harmless(load, prefix, newline):
    """A byte-order mark and Windows line ends change nothing."""
    assert load((prefix + SOUND).replace("\n", newline)).pairs[0].name == "one"


AT_LEAST = "at least one [pair.NAME], [model.NAME], [set.NAME] or [merge.NAME]"
PROPERTIES = ", ".join(properties_of("pair"))
CHECK = "pair.one.check.linear_connectivity"
ALIGN = (
    '"none", "activation-matching", "best", "incoming", "learned", "transport", "transport-both" or "weight-matching"'
)
SETTINGS = (
    "endpoints, decide, confidence, property, severity, align, limit, points, repair, beyond, by, explain, certify, "
    "early_fail"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"the file is empty, expected schema = 1 and {AT_LEAST}"),
        (
            "# nothing\n",
            f"the file is empty, expected schema = 1 and {AT_LEAST}",
        ),
        (
            "schema = 1\n",
            f"no pairs, no models, no sets and no merges, expected {AT_LEAST}",
        ),
        (SOUND.replace("schema = 1\n", ""), "schema: missing, expected 1"),
        (SOUND.replace("schema = 1", "schema = 2"), "schema: got 2, expected 1"),
        (SOUND.replace("schema = 1", "schema = true"), "schema: got true (a boolean), expected 1"),
        (SOUND.replace("schema = 1", "schema = 1.0"), "schema: got 1.0, expected 1"),
        (SOUND.replace("schema = 1", 'schema = "1"'), 'schema: got "1" (a string), expected 1'),
        (
            "pairs = 3\n" + SOUND,
            "pairs: unknown key (did you mean 'pair'?), expected one of schema, defaults, data, pair, model, set, "
            "merge",
        ),
        (
            SOUND.replace("[pair.one]", '[pair.one]\nendpoints = "any"'),
            "pair.one.endpoints: unknown key (it is one of a check: check.PROPERTY = { endpoints = … }), expected one "
            "of model, data, calibration, loss, symmetry, accept, a, b, model_b, untie, sha256, check",
        ),
        (
            SOUND + "[pair.one.noise_stability]\n",
            "pair.one.noise_stability: unknown key (it is a check: [….check.noise_stability]), expected one of model, "
            "data, calibration, loss, symmetry, accept, a, b, model_b, untie, sha256, check",
        ),
        (
            SOUND.replace("[defaults]", '[defaults]\ndecide = "population"'),
            "defaults.decide: unknown key (it is one of a check: check.PROPERTY = { decide = … }), expected one of "
            "model, data, calibration, loss, symmetry, accept",
        ),
        (
            SOUND + "[defaults.v1.5]\n",
            'defaults.v1: unknown key (a name with a dot is quoted, as in [pair."v1.5"]), expected one of model, data, '
            "calibration, loss, symmetry, accept",
        ),
        (
            SOUND.replace("model =", "modle ="),
            "defaults.modle: unknown key (did you mean 'model'?), expected one of model, data, calibration, loss, "
            "symmetry, accept",
        ),
        (
            SOUND.replace("models:mlp", "models.mlp"),
            'defaults.model: got "models.mlp" (a string), expected "module:callable", '
            "the callable returning a torch.nn.Module",
        ),
        (
            SOUND.replace("data.safetensors", "data.npz"),
            'defaults.data: got "data.npz" (a string), expected a path ending ".safetensors", "module:callable" or '
            "the name of a [data.NAME]",
        ),
        (
            SOUND.replace("[pair.one]", '[pair.one]\nloss = "cross-entropy"'),
            'pair.one.loss: got "cross-entropy" (a string), expected "cross_entropy", "mse", "next_token", '
            '"token_cross_entropy" or "module:callable" (did you mean \'cross_entropy\'?)',
        ),
        (
            SOUND.replace("[pair.one]", '[pair.one]\nsymmetry = "m:spec"'),
            'pair.one.symmetry: got "m:spec" (a string), expected a path ending ".toml" or ".json"',
        ),
        (SOUND.replace('a = "a.safetensors"', ""), f"pair.one.a: missing, expected {FILE}"),
        (
            SOUND.replace('"a.safetensors"', "3"),
            f"pair.one.a: got 3, expected {FILE}",
        ),
        (
            SOUND.replace("[pair.one]", '[pair.one]\nsha256 = { a = "ab" }'),
            'pair.one.sha256.a: got "ab" (a string), expected 64 hexadecimal digits',
        ),
        *(
            (
                SOUND.replace("pair.one", f'pair."{name}"'),
                f"pair.{name}: the name '{name}' is that of a folder, expected another",
            )
            for name in (".", "..")
        ),
        (
            SOUND.replace("pair.one", 'pair."on e"'),
            "pair.\"on e\": expected a name of letters, digits, '.', '_' and '-' only",
        ),
        (
            SOUND.replace("pair.one", "pair.manifest"),
            "pair.manifest: the name 'manifest' is taken by the manifest's own item, expected another",
        ),
        (SOUND.split("[pair.one.check")[0], "pair.one: no checks, expected at least one [pair.one.check.PROPERTY]"),
        ("schema = 1\npair.x = 3\n", "pair.x: got 3, expected a table"),
        (
            SOUND.replace("linear_connectivity", "linear_conectivity"),
            'pair.one.check.linear_conectivity: got "linear_conectivity" (a string), expected a property '
            f"({PROPERTIES}) (did you mean 'linear_connectivity'?); a check of another name says which with "
            'property = "…"',
        ),
        (SOUND + "property = 3", f"{CHECK}.property: got 3, expected a property ({PROPERTIES})"),
        (SOUND + "limits = 1", f"{CHECK}.limits: unknown key (did you mean 'limit'?), expected one of {SETTINGS}"),
        (WITHOUT_LIMIT, f"{CHECK}.limit: missing, expected {LIMIT}"),
        (
            SOUND + 'endpoints = "good"',
            f'{CHECK}.endpoints: got "good" (a string), expected "useful" (each better than a constant answer) or '
            '"any"',
        ),
        (WITHOUT_LIMIT + "limit = true", f"{CHECK}.limit: got true (a boolean), expected {LIMIT}"),
        (WITHOUT_LIMIT + "limit = -0.1", f"{CHECK}.limit: got -0.1, expected {LIMIT}"),
        (WITHOUT_LIMIT + "limit = nan", f"{CHECK}.limit: got nan, expected {LIMIT}"),
        (WITHOUT_LIMIT + "limit = inf", f"{CHECK}.limit: got inf, expected {LIMIT}"),
        (WITHOUT_LIMIT + 'limit = "5"', f'{CHECK}.limit: got "5" (a string), expected {LIMIT}'),
        (WITHOUT_LIMIT + 'limit = "-5%"', f'{CHECK}.limit: got "-5%" (a string), expected {LIMIT}'),
        (SOUND + 'points = "25"', f'{CHECK}.points: got "25" (a string), expected a whole number from 3 to 10001'),
        (SOUND + "points = 25.0", f"{CHECK}.points: got 25.0, expected a whole number from 3 to 10001"),
        (SOUND + "points = 2", f"{CHECK}.points: got 2, expected a whole number from 3 to 10001"),
        (SOUND + "align = [1]", f"{CHECK}.align: got an array, expected {ALIGN}"),
        (SOUND + 'align = "wieght"', f'{CHECK}.align: got "wieght" (a string), expected {ALIGN}'),
        (SOUND + "repair = true", f'{CHECK}.repair: got true (a boolean), expected "none", "bn" or "repair"'),
        (SOUND + 'severity = "warning"', f'{CHECK}.severity: got "warning" (a string), expected "fail" or "warn"'),
        ("schema 1", "not valid TOML: Expected '=' after a key in a key/value pair (at line 1, column 8)"),
        (b"schema = 1\n# \xe9\n", "line 2: got the byte 0xe9, expected UTF-8 text; save the file as UTF-8"),
    ],
)
def test_a_mistake_is_one_line(load, text, message):
    """File, key, got, expected, and the nearest valid name where there is one."""
    with pytest.raises(ManifestError) as caught:
        load(text)
    assert str(caught.value) == f"lmc.toml: {message}"


SET = """\
schema = 1
[defaults]
model = "models:mlp"
data = "data.safetensors"

[set.three]
models = ["a.safetensors", "b.safetensors", "c.safetensors"]

[set.three.check.set_connectivity]
limit = 0.05
"""
WIDTHS = SOUND.replace("[pair.one]", '[pair.one]\nmodel_b = "models:narrow"').replace("linear_", "fused_")
OF_SET = "set.three.check.set_connectivity"


def test_what_is_said_of_new_data_to_no_effect_is_refused(load):
    """A confidence that nothing is decided by, and a fail that is settled before new data are judged."""
    lines = {
        "confidence = 0.99": 'confidence: it decides nothing without decide = "population", expected both or neither',
        'decide = "data"\nconfidence = 0.99': "confidence: it decides nothing without",
        'decide = "population"\nearly_fail = 1e-6': "early_fail: it stops once these data decide, expected none beside",
    }
    for said, line in lines.items():
        with pytest.raises(ManifestError, match=f"pair.one.check.linear_connectivity.{line}"):
            load(f"{SOUND}{said}\n")
    both = load(SOUND + 'decide = "population"\nconfidence = 0.99\nearly_fail = false\n').pairs[0].checks[0].settings
    assert (both["decide"], both["confidence"]) == ("population", 0.99)


def test_a_set_inherits_and_overrides_as_a_pair_does(load):
    """Models in order, pins in lower case and in their order, the line of its header."""
    pins = ", ".join(f'"{digit * 64}"' for digit in "ABC")
    plan = load(SET.replace("models = [", f'loss = "mse"\nsha256 = [{pins}]\nmodels = [') + "reference = 2\n")
    (three,) = plan.sets
    assert plan.comparisons == plan.sets
    assert three.models == ("a.safetensors", "b.safetensors", "c.safetensors")
    assert (three.model, three.data, three.loss) == ("models:mlp", "data.safetensors", "mse")
    assert three.pins == {"models[0]": "a" * 64, "models[1]": "b" * 64, "models[2]": "c" * 64}
    assert three.line == 6
    assert three.checks == (CheckPlan("set_connectivity", "set_connectivity", "fail", {"limit": 0.05, "reference": 2}),)


def test_pairs_and_sets_share_a_manifest(load):
    """Pairs come first; each has the line of its own header."""
    plan = load(SET + SOUND.split("[defaults]")[1].split("\n", 4)[4].replace("one", "thre"))
    assert [item.name for item in plan.comparisons] == ["thre", "three"]
    assert [item.line for item in plan.comparisons] == [12, 6]


def test_a_pair_of_two_widths_has_a_network_of_its_own_for_b(load):
    """And is asked for fused_connectivity; a spec of [defaults] is not about two networks."""
    text = WIDTHS.replace("[defaults]", '[defaults]\nsymmetry = "s.toml"') + 'norm = "weights"\n'
    pair = load(text).pairs[0]
    assert (pair.model, pair.model_b, pair.symmetry) == ("models:mlp", "models:narrow", None)
    assert pair.checks == (
        CheckPlan("fused_connectivity", "fused_connectivity", "fail", {"limit": 0.05, "norm": "weights"}),
    )


def test_a_pattern_is_replaced_by_what_it_matches(tmp_path: Path) -> None:
    """Beside the manifest, in natural order, alone or among paths; what matches fewer than two files is refused."""
    for k in (10, 2, 1):
        (tmp_path / f"client-{k}.safetensors").touch()
    file, listed = tmp_path / "lmc.toml", '["a.safetensors", "b.safetensors", "c.safetensors"]'
    file.write_text(SET.replace(listed, '"client-*.safetensors"'))
    (found,) = load_manifest(file).sets
    clients = tuple(f"client-{k}.safetensors" for k in (1, 2, 10))
    assert found.models == clients
    assert found.matched == (f"client-*.safetensors matches 3: {', '.join(clients)}",)
    file.write_text(SET.replace(listed, '["client-1*.safetensors", "a.safetensors"]'))
    assert load_manifest(file).sets[0].models == (clients[0], clients[2], "a.safetensors")
    for pattern, message in (
        ("round-*", "set.three.models: no file matches 'round-*' in"),
        ("*-10.safetensors", 'got "*-10.safetensors" (a string), and *-10.safetensors matches 1: client-10.safe'),
        ("one.safetensors", 'set.three.models: got "one.safetensors" (a string), expected an array of two'),
    ):
        file.write_text(SET.replace(listed, f'"{pattern}"'))
        with pytest.raises(ManifestError) as raised:
            load_manifest(file)
        assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SET.replace('["a.safetensors", "b.safetensors", "c.safetensors"]', '["a.safetensors"]'),
            f"set.three.models: got an array, expected {MODELS}",
        ),
        (SET.replace('"b.safetensors"', "3"), f"set.three.models[1]: got 3, expected {FILE}"),
        (
            SET.replace("models =", "model ="),
            'set.three.model: got an array, expected "module:callable", the callable returning a torch.nn.Module\n'
            f"lmc.toml: set.three.models: missing, expected {MODELS}",
        ),
        (
            SET.replace("models =", f'sha256 = ["{"0" * 64}"]\nmodels ='),
            "set.three.sha256: got 1 hash, expected one for each of the 3 models, in order",
        ),
        (
            SET.replace("models =", f'sha256 = ["{"0" * 64}", "ab", "{"0" * 64}"]\nmodels ='),
            'set.three.sha256[1]: got "ab" (a string), expected 64 hexadecimal digits',
        ),
        (SET.split("[set.three.check")[0], "set.three: no checks, expected at least one [set.three.check.PROPERTY]"),
        (
            SET.replace("three", "manifest"),
            "set.manifest: the name 'manifest' is taken by the manifest's own item, expected another",
        ),
        (SET + "reference = 3", f"{OF_SET}.reference: got 3, expected the place of one of the 3 models, from 0 to 2"),
        (
            SET + "reference = -1",
            f"{OF_SET}.reference: got -1, expected the place of one of the models, counted from 0",
        ),
        (SET + 'method = "merge"', f'{OF_SET}.method: got "merge" (a string), expected "merge-many" or "reference"'),
        (SET + 'align = "non"', f'{OF_SET}.align: got "non" (a string), expected {ALIGN}'),
        (SET + "weights = [1, -2, 1]", f"{OF_SET}.weights: got an array, expected {MEAN_WEIGHTS}"),
        (
            SET.replace("set_connectivity", "set_conectivity"),
            'set.three.check.set_conectivity: got "set_conectivity" (a string), expected a property '
            "(set_connectivity) (did you mean 'set_connectivity'?); a check of another name says which with "
            'property = "…"',
        ),
        (
            SET.replace("set_connectivity", "linear_connectivity"),
            'set.three.check.linear_connectivity: got "linear_connectivity" (a string), which is a property of a pair '
            "without model_b, expected one of a set (set_connectivity); mend: ask it of a [pair.NAME]",
        ),
        (
            SOUND.replace("linear_connectivity", "set_connectivity"),
            'pair.one.check.set_connectivity: got "set_connectivity" (a string), which is a property of a set, '
            f"expected one of a pair without model_b ({PROPERTIES}); mend: ask it of a [set.NAME]",
        ),
        (
            WIDTHS.replace("fused_", "linear_"),
            'pair.one.check.linear_connectivity: got "linear_connectivity" (a string), which is a property of a pair '
            "without model_b, expected one of a pair with model_b, of two widths (fused_connectivity); mend: ask it of "
            "a [pair.NAME]",
        ),
        (
            WIDTHS.replace("models:narrow", "narrow"),
            'pair.one.model_b: got "narrow" (a string), expected "module:callable", the callable returning a '
            "torch.nn.Module",
        ),
        (
            WIDTHS.replace("[pair.one]", '[pair.one]\nsymmetry = "s.toml"'),
            "pair.one.symmetry: not read where model_b says another network, expected none",
        ),
        (
            WIDTHS + 'norm = "l2"',
            'pair.one.check.fused_connectivity.norm: got "l2" (a string), expected "activations" or "weights"',
        ),
    ],
)
def test_a_mistake_in_a_set_or_in_two_widths_is_one_line(load, text, message):
    """As for a pair; what belongs to another kind of table is told so."""
    with pytest.raises(ManifestError) as caught:
        load(text)
    assert str(caught.value) == f"lmc.toml: {message}"


def test_a_pair_and_a_set_of_one_name_are_refused(load):
    """Their checks would have the same node ids."""
    with pytest.raises(ManifestError, match=r"set\.one: the name 'one' is taken by a pair, expected another"):
        load(SOUND + SET.split("\n\n", 1)[1].replace("three", "one"))


def test_all_mistakes_show_at_once(load):
    """One line each, so that a file is mended in one go."""
    text = SOUND.replace("model =", "modle =").replace('b = "b', 'c = "b') + "severity = 3\n"
    with pytest.raises(ManifestError) as caught:
        load(text)
    keys = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert keys == ["defaults.modle", "pair.one.b", "pair.one.c"]  # a broken pair's checks are not looked at
    with pytest.raises(ManifestError) as caught:
        load(WITHOUT_LIMIT + "severity = 3\n")
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_is_told(tmp_path):
    """Also when it vanishes between collection and reading."""
    with pytest.raises(ManifestError, match=r"gone\.lmc\.toml: no such file, expected a TOML file"):
        load_manifest(tmp_path / "gone.lmc.toml")
