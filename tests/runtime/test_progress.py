"""The one progress bar: who sees it, and when it is silent."""

import sys
import threading

import jax
import pytest

from dft_jax.runtime import processes, progress


@pytest.fixture
def terminal(monkeypatch):
    """stderr says that it is a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def is_shown(**options) -> bool:
    with progress.bar(desc="work", unit="thing", total=1, **options) as bar:
        return not bar.disable


def test_a_bar_gives_what_it_is_given_and_counts(capsys, terminal):
    assert list(progress.bar(iter("abc"), desc="letters", unit="letter", total=3)) == list("abc")
    assert "letters: 100%" in capsys.readouterr().err


def test_only_process_0_shows_a_bar(monkeypatch, terminal):
    assert processes.is_first() and is_shown()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert not processes.is_first() and not is_shown()


def test_a_bar_that_does_not_stay_is_not_written_into_a_log(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert is_shown(leave=True) and not is_shown(leave=False)


def test_silence_ends_with_its_context_and_is_of_one_thread(terminal):
    shown_elsewhere = []
    with progress.silent():
        assert not is_shown()
        with progress.silent(False):
            assert not is_shown()
        thread = threading.Thread(target=lambda: shown_elsewhere.append(is_shown()))
        thread.start()
        thread.join()
    assert is_shown() and shown_elsewhere == [True]


def test_a_resumed_bar_begins_where_it_was(terminal):
    with progress.bar(desc="steps", unit="step", total=8, initial=3) as bar:
        assert bar.n == 3
