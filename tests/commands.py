"""Runs a command's main() inside the test process, as `python -m` would, and says what a user saw."""

import dataclasses
import pathlib
import sys

import jax
from absl import flags

from dft_jax.runtime import errors

ROOT = pathlib.Path(__file__).parents[1]
TINY = f"--config={ROOT}/configs/tiny.py"

compiled: list[str] = []


def _listen(event: str, duration_s: float, **details) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        compiled.append(details["fun_name"])


jax.monitoring.register_event_duration_secs_listener(_listen)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`compiled`: names of the functions that XLA compiled meanwhile; always empty for a
    subprocess.
    """

    code: int
    stdout: str
    stderr: str
    compiled: tuple[str, ...] = ()


def run_command(main, arguments, capfd, monkeypatch) -> Outcome:
    """Calls `main` with these command-line arguments; flags are as new, whatever ran before."""
    _reset_flags()
    monkeypatch.setattr(sys, "argv", [f"{main.__module__}.py", *arguments])
    compiled.clear()
    capfd.readouterr()
    code = 0
    cached = jax.config.jax_enable_compilation_cache
    try:
        errors.exit_on_user_error(main)()
    except SystemExit as error:
        code = error.code
    finally:
        # The command switches it off where there are several CPU devices; the tests after this one
        # need it.
        jax.config.update("jax_enable_compilation_cache", cached)
    return Outcome(code, *capfd.readouterr(), tuple(compiled))


def _reset_flags() -> None:
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)  # made by the overrides of an earlier command line
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()


def tree(folder: pathlib.Path) -> dict[str, bytes | None]:
    """Everything under a folder: relative path -> content, None for a folder."""
    files = sorted(folder.rglob("*"))
    return {
        str(file.relative_to(folder)): None if file.is_dir() else file.read_bytes()
        for file in files
    }


def assert_refused(outcome: Outcome, *expected: str) -> None:
    """Exit code 2 and at most five lines, all of them messages that together hold every expected
    text.

    Before them an evaluation may have said which weights it evaluates, with which prompt, and a
    warning on it.
    """
    notes = ("evaluating ", "prompt: ", "warning: ")
    lines = [line for line in outcome.stderr.splitlines() if not line.startswith(notes)]
    assert outcome.code == errors.EXIT_USER_ERROR, outcome
    assert 1 <= len(lines) <= 5, outcome.stderr
    assert all(line.startswith("error: ") for line in lines), outcome.stderr
    assert "Traceback" not in outcome.stderr
    missing = [text for text in expected if text not in outcome.stderr]
    assert not missing, f"{missing} not in:\n{outcome.stderr}"
    assert outcome.compiled == (), "the mistake was found only after a compilation"


def check_refused(main, arguments, expected, folder, capfd, monkeypatch) -> None:
    """Runs the command in `folder`, which holds all that it could write to: refused, and nothing
    was written.
    """
    monkeypatch.chdir(folder)
    before = tree(folder)
    assert_refused(run_command(main, arguments, capfd, monkeypatch), *expected)
    assert tree(folder) == before, "something was written"
