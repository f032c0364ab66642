"""The faults of this folder are such that running them says something: ``run.py`` does that, by hand."""

from __future__ import annotations

import ast

import pytest

from mutants.run import HERE, ROOT, faults, rooms


def test_there_are_enough_faults_and_all_differ() -> None:
    """At least 150, none twice, in every room of the core."""
    every = [fault for room in rooms() for fault in faults(room)]
    assert len(every) >= 150
    assert len({(fault.file, fault.old, fault.new) for fault in every}) == len(every)
    core = {"store", "network", "modules", "evaluate", "alignment", "paths", "dropping", "properties", "manifest"}
    assert core | {"data", "gate", "report", "symmetry"} <= set(rooms())


@pytest.mark.parametrize("room", rooms())
def test_every_fault_still_applies(room: str) -> None:
    """Its old text stands exactly once in its file, what becomes of it is Python, and its tests are there."""
    for fault in faults(room):
        ast.parse(fault.applied(ROOT), filename=fault.means)
        missing = [test for test in fault.tests if not (HERE.parent / test.partition("::")[0]).exists()]
        assert fault.tests, fault.means
        assert not missing, f"{fault.means}: no such tests: {missing}"
