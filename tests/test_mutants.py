"""The list of mutations fits the code that it changes."""

import pytest

from tests.commands import ROOT
from tests.mutants.changes import CHANGES, changed


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_each_change_can_be_made(change):
    text = (ROOT / change.file).read_text()
    assert changed(text, change) != text
    compile(changed(text, change), change.file, "exec")
    for test in change.tests:
        assert (ROOT / test).exists(), test


def test_names_are_unique():
    names = [change.name for change in CHANGES]
    assert len(set(names)) == len(names)
