"""Files that are written whole or not at all, and tables as CSV."""

import csv
import os

import jax
import pytest

from dft_jax.runtime import errors, files

ROWS = [{"run": "a", "score": 1}, {"run": "b, c", "note": "x"}]


def test_a_csv_has_the_columns_of_all_rows_in_the_order_of_their_first_use(tmp_path):
    files.write_csv(ROWS, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_bytes() == b'run,score,note\na,1,\n"b, c",,x\n'


def test_a_csv_has_the_columns_that_are_asked_for():
    assert files.csv_text(ROWS, ["note", "score", "run"]).startswith("note,score,run\n,1,a\n")
    with pytest.raises(ValueError, match="note"):
        files.csv_text(ROWS, ["run", "score"])


@pytest.mark.parametrize("cell", ["a\rb", "\r", "\r\n", "a\n", '"\r'])
def test_a_csv_keeps_cells_with_ends_of_lines(cell, tmp_path):
    """A token may be a carriage return, which ends a line where no quotes are around it."""
    files.write_csv([{"token": cell, "count": "1"}, {"token": "b", "count": "2"}], tmp_path / "t")
    with open(tmp_path / "t", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert rows == [{"token": cell, "count": "1"}, {"token": "b", "count": "2"}]


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    files.write_csv(ROWS, tmp_path / "table.csv")
    files.write_json(tmp_path / "value.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "state.json"
    files.write_atomically(file, "old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_what_a_user_names_may_be_nothing_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("")
    for path in ("~/file", "~/none", "~/file/below"):
        assert files.named(path) == tmp_path / path[2:]
    for path, why in {"a" * 300: "name too long", "~nobody-here/a": "home directory"}.items():
        with pytest.raises(errors.UserError, match=f"^{path}: nothing there can be read .*{why}"):
            files.named(path)
