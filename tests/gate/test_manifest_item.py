"""The item ``lmc.toml::manifest``: what the files' headers show before any network runs."""

from __future__ import annotations

import pytest


def run_manifest_item(project):
    return project.run("lmc.toml::manifest")


def test_sound_files_pass_without_a_row(project):
    """A manifest whose files fit passes, and its item needs no row in the table."""
    project.gate(good="0.01")
    result = run_manifest_item(project)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*= lmccheck =*")


@pytest.mark.parametrize("how", ["copy", "symbolic", "hard"])
def test_one_network_under_two_names_is_a_problem(project, checkpoint, how):
    """A copy with other metadata, a link of either kind: a pair of it compares nothing. In a set it may be."""
    project.manifest(project.pair("twin") + project.check("twin"))
    a, b = project.path / "twin-a.safetensors", project.path / "twin-b.safetensors"
    b.unlink()
    if how == "copy":
        checkpoint(b, {"epoch": "3"})
        raw, start = a.read_bytes(), 8 + int.from_bytes(a.read_bytes()[:8], "little")
        b.write_bytes(b.read_bytes()[:-8] + raw[start:])
        said = "hold the same weights, twin-a.safetensors and twin-b.safetensors; expected two networks"
    else:
        b.symlink_to(a) if how == "symbolic" else b.hardlink_to(a)
        said = "are the same file, twin-b.safetensors; expected two checkpoints"
    result = run_manifest_item(project)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"pair.twin: a and b {said}*"])


def test_every_problem_is_one_line(project, checkpoint):
    """All problems of all pairs show at once, each naming its pair, and the item has a row."""
    project.manifest(*(project.pair(name) + project.check(name) for name in ("gone", "torn", "wide", "twin")))
    (project.path / "gone-a.safetensors").unlink()
    (project.path / "torn-b.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    checkpoint(project.path / "wide-b.safetensors", shape=(3,))
    text = (project.path / "lmc.toml").read_text().replace("twin-b", "twin-a")
    (project.path / "lmc.toml").write_text(text)
    result = run_manifest_item(project)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "pair.gone.a: no file 'gone-a.safetensors' in *(did you mean 'gone-b.safetensors'?)",
            "pair.torn.b: *torn-b.safetensors: truncated or corrupt*",
            "pair.wide: w is (2,) in a and (3,) in b; expected the same shapes",
            "pair.twin: a and b are the same file, twin-a.safetensors; expected two checkpoints",
            "lmc.toml *manifest *error*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_missing_data_is_a_problem(project):
    """Evaluation and calibration files must be there."""
    project.gate(good="0.01")
    (project.path / "data.safetensors").unlink()
    run_manifest_item(project).stdout.fnmatch_lines(["pair.good.data: no file 'data.safetensors' in *"])


def test_a_missing_spec_of_symmetries_is_a_problem(project):
    """Like any other file the manifest names, relative to its folder; one that exists is none."""
    project.manifest(project.pair("good") + 'symmetry = "specs/good.toml"\n' + project.check("good"))
    folder = project.path / "specs"
    folder.mkdir()
    run_manifest_item(project).stdout.fnmatch_lines(["pair.good.symmetry: no file 'good.toml' in *specs"])
    (folder / "good.toml").touch()
    run_manifest_item(project).assert_outcomes(passed=1)


def test_a_spec_of_symmetries_reaches_the_pair(project):
    """As the manifest writes it, for ``load_pair`` to look up in the manifest's folder."""
    import json

    project.manifest(project.pair("good") + 'symmetry = "good.toml"\n' + project.check("good"))
    project.run("--lmc-models", "--lmc-report-json=report.json")
    assert json.loads((project.path / "report.json").read_text())["pairs"][0]["symmetry"] == "good.toml"


def test_two_widths_may_differ_in_shapes_and_in_nothing_else(project, checkpoint):
    """A pair with model_b is of two networks; their tensors must still be called alike."""
    project.manifest(project.pair("wide") + 'model_b = "models:narrow"\n' + project.check("wide", "fused_connectivity"))
    checkpoint(project.path / "wide-b.safetensors", shape=(3,))
    run_manifest_item(project).assert_outcomes(passed=1)
    text = (project.path / "wide-b.safetensors").read_bytes().replace(b'"w"', b'"v"')
    (project.path / "wide-b.safetensors").write_bytes(text)
    run_manifest_item(project).stdout.fnmatch_lines(["pair.wide: w in a only, expected the same tensors in b"])


@pytest.mark.parametrize("changed", [False, True])
def test_pins_are_checked(project, changed):
    """A file that differs from its sha256 pin is an error that shows both; one that agrees is not."""
    import hashlib

    pair = project.pair("good")
    pins = [hashlib.sha256((project.path / f"good-{side}.safetensors").read_bytes()).hexdigest() for side in "ab"]
    pin = f'sha256 = {{ a = "{pins[0].upper()}", b = "{"0" * 64 if changed else pins[1]}" }}\n'
    project.manifest(pair + pin + project.check("good"))
    result = run_manifest_item(project)
    assert result.ret == int(changed)
    if changed:
        result.stdout.fnmatch_lines([f"pair.good.sha256.b: good-b.safetensors has sha256 {pins[1]}, expected 000*"])


def test_its_problems_do_not_stop_the_pairs(project):
    """A missing file is the manifest item's failure; sound pairs run and pass."""
    project.gate(good="0.01", gone="0.01")
    (project.path / "gone-b.safetensors").unlink()
    result = project.run("--lmc-models")
    result.stdout.fnmatch_lines(["good *pass*"])


DAMAGED = {
    "two tensors of the same bytes": lambda b: b.replace(b'"data_offsets": [8, 16]', b'"data_offsets": [0, 8] '),
    "a byte more": lambda b: b + b"\0",
    "a byte less": lambda b: b[:-1],
    "an unknown dtype": lambda b: b.replace(b"F32", b"F33"),
    "a dtype of no weights": lambda b: b.replace(b"F32", b"C64").replace(b"[2]", b"[1]"),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["good-a", "good-b", "data"])
def test_what_loading_refuses_is_a_problem(project, checkpoint, damage, name):
    """Checkpoints and data alike: the item reads headers with the reader that loading uses."""
    project.gate(good="0.01")
    path = project.path / f"{name}.safetensors"
    checkpoint(path, names=("inputs", "targets") if name == "data" else ("v", "w"))
    damaged = DAMAGED[damage](path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    result = run_manifest_item(project)
    if damage == "a dtype of no weights" and name == "data":  # data may be complex
        result.assert_outcomes(passed=1)
        return
    result.assert_outcomes(failed=1)
    key = name.removeprefix("good-")
    result.stdout.fnmatch_lines([f"pair.good.{key}: *{name}.safetensors*"])


def test_data_that_cannot_be_loaded_is_a_problem(project, checkpoint):
    """A file without targets, or with more of one than of the other."""
    project.gate(good="0.01")
    checkpoint(project.path / "data.safetensors")
    run_manifest_item(project).stdout.fnmatch_lines(["pair.good.data: data.safetensors: has no tensor 'inputs'*"])


def test_a_spec_that_cannot_be_read_is_a_problem(project):
    """What it says is checked against the network, when there is one; that it is a file of TOML is checked here."""
    project.manifest(project.pair("good") + 'symmetry = "good.toml"\n' + project.check("good"))
    (project.path / "good.toml").write_bytes(b"schema = \xff")
    run_manifest_item(project).stdout.fnmatch_lines(["pair.good.symmetry: good.toml: line 1: got the byte 0xff*"])


def test_what_lies_beside_the_weights_is_compared(project, checkpoint):
    """A difference of configs is an error of the item; what is only remarked stands under the table."""
    from networks.beside import folder

    project.manifest("[pair.one]\n" + 'a = "a"\nb = "b"\naccept = ["hidden_act"]\n' + project.check("one"))
    for name, theta in (("a", 1e4), ("b", 5e5)):
        folder(project.path / name, rope_theta=theta)
        checkpoint(project.path / f"{name}.safetensors")  # of other numbers, for another name
        (project.path / f"{name}.safetensors").rename(project.path / name / "model.safetensors")
    result = run_manifest_item(project)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "pair.one: config.json: rope_theta is 10000.0 in a (*a) and 500000.0 in b (*b); mend: *",
            "manifest: pair.one.accept: 'hidden_act' meets no difference; mend: leave it out",
        ]
    )
    folder(project.path / "b", rope_theta=1e4)
    passed = run_manifest_item(project)
    passed.assert_outcomes(passed=1)
    passed.stdout.fnmatch_lines(["manifest: pair.one.accept: 'hidden_act' meets no difference*"])
