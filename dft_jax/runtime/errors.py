"""User-facing errors, and the one place that maps them to exit codes."""

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

EXIT_USER_ERROR = 2
# Ended by a signal, with the state saved: the same command resumes. Job scripts requeue on it.
EXIT_RESUMABLE = 42
_MAX_LINES = 5


class UserError(ValueError):
    """Something the user gave is wrong: each problem names the value, its place and the remedy.

    Raised at the boundary (configs, files, checkpoints), never inside jitted code.
    """

    # Whether nothing may be asked of JAX any more.
    ends_at_once = False

    def __init__(self, problems: str | Sequence[str]):
        if isinstance(problems, str):
            problems = [problems]
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))

    def report(self) -> str:
        """At most five lines, one per problem; what does not fit is counted, not hidden.

        Names may come from a hostile file, so nothing that a terminal would obey is printed.
        """
        lines = []
        for problem in self.problems:
            on_one_line = " ".join(f"error: {problem}".split())
            lines.append(printable(on_one_line))
        if len(lines) > _MAX_LINES:
            shown = lines[: _MAX_LINES - 1]
            hidden = len(lines) - len(shown)
            lines = [*shown, f"error: … and {hidden} more problems; fix these first"]
        return "\n".join(lines)


def printable(text: str) -> str:
    """The text with everything that a terminal would obey, instead of show, written out."""
    written = []
    for character in text:
        if not character.isprintable():
            # As in source code, without the quotes: \\x1b for the escape that begins a command.
            character = repr(character)[1:-1]
        written.append(character)
    return "".join(written)


class Stopped(BaseException):
    """Raised when a signal asked the run to stop.

    A BaseException, like KeyboardInterrupt, so that `except Exception` cannot swallow it.
    """


class DuplicateKey(ValueError):
    """An object of JSON has a key twice."""


def raise_if_any(problems: Sequence[str]) -> None:
    """Raises one UserError with all problems; does nothing when there is none."""
    if problems:
        raise UserError(problems)


@contextlib.contextmanager
def user_errors(
    problem: str, remedy: str, kinds: tuple[type[Exception], ...] = (OSError,)
) -> Iterator[None]:
    """Makes exceptions of these kinds a UserError: `problem (cause); remedy`."""
    try:
        yield
    # A UserError is a ValueError, which may be among the kinds, and says all of this already.
    except UserError:
        raise
    except kinds as error:
        cause = getattr(error, "strerror", None) or first_line(error)
        file = getattr(error, "filename", None)
        if file and str(file) not in problem:
            cause = f"{cause}: {file}"
        raise UserError(f"{problem} ({cause}); {remedy}") from error


def exit_on_user_error(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a command's main().

    A UserError becomes its message on stderr and exit code 2, Stopped a line and 42. Where there
    are several processes, whatever else is raised ends this one at once: a normal exit would wait
    for the others at a barrier.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(error.report(), file=sys.stderr, flush=True)
            _exit(EXIT_USER_ERROR, at_once=error.ends_at_once)
        except Stopped as stopped:
            line = f"stopped by {stopped}; the same command resumes from there"
            # Nobody may be reading any more.
            with contextlib.suppress(OSError):
                print(line, file=sys.stderr, flush=True)
            # A normal exit: all processes stop at the same step, so all come to the barrier.
            sys.exit(EXIT_RESUMABLE)
        except Exception:
            if not _is_one_of_many():
                raise
            traceback.print_exc()
            _exit(1, at_once=True)

    return wrapped


def _is_one_of_many() -> bool:
    # Without importing JAX, which takes seconds, to say that a flag is unknown.
    return "jax" in sys.modules and sys.modules["jax"].process_count() > 1


def _exit(code: int, at_once: bool) -> NoReturn:
    """Ends the process; one of many at once, without waiting for the others."""
    if at_once or _is_one_of_many():
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def first_line(error: BaseException) -> str:
    """An exception's type, and the first line of its message: libraries write many."""
    kind = type(error).__name__
    text = str(error).strip()
    if not text:
        return kind
    return f"{kind}: {text.splitlines()[0].strip()}"


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """`name: old -> new`, by name, for all that differs between two dicts."""
    found = {}
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            before = old.get(name, "absent")
            after = new.get(name, "absent")
            found[name] = f"{name}: {before!r} -> {after!r}"
    return found


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads, where the last of two equal keys would win; other readers take the first."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise DuplicateKey(f"key {key!r} appears twice in an object; keep one")
        values[key] = value
    return values


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """' (did you mean X?)' for the closest known name, or the empty string."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    if not close:
        return ""
    return f" (did you mean {close[0]!r}?)"
