"""Errors a user can mend, and the one place that turns them into an exit code."""

import collections
import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

EXIT_USER_ERROR = 2
EXIT_RESUMABLE = 42  # ended by a signal, all of it saved: the same command goes on
_MAX_LINES = 5


class UserError(ValueError):
    """Something the user gave is wrong: each problem names the value, its place and the remedy.

    Raised at the boundary (configs, files, checkpoints), never inside jitted code.
    """

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def report(self) -> str:
        """At most five lines, one per problem; what does not fit is counted, not hidden.

        Names may come from a hostile file, so nothing that a terminal would obey is printed.
        """
        texts = [" ".join(f"error: {problem}".split()) for problem in self.problems]
        lines = [printable(text) for text in texts]
        if len(lines) > _MAX_LINES:
            hidden = len(lines) - _MAX_LINES + 1
            lines = lines[: _MAX_LINES - 1] + [
                f"error: … and {hidden} more problems; fix these first"
            ]
        return "\n".join(lines)


def printable(text: str) -> str:
    """The text with everything that a terminal would obey, instead of show, written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Stopped(BaseException):
    """A signal asked the run to end. Like KeyboardInterrupt it is no Exception, so nothing mends it
    by mistake.
    """


class DuplicateKey(ValueError):
    """An object of JSON has a key twice."""


def raise_if_any(problems: Sequence[str]) -> None:
    """Raises one UserError with all problems; does nothing when there is none."""
    if problems:
        raise UserError(problems)


@contextlib.contextmanager
def user_errors(
    what: str, remedy: str, kinds: tuple[type[Exception], ...] = (OSError,)
) -> Iterator[None]:
    """Makes exceptions of these kinds a UserError: `what (why); remedy`."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        why = getattr(error, "strerror", None) or first_line(error)
        file = getattr(error, "filename", None)
        named = f": {file}" if file and str(file) not in what else ""
        raise UserError(f"{what} ({why}{named}); {remedy}") from error


def exit_on_user_error(main: Callable[..., None]) -> Callable[..., None]:
    """Decorates a command's main().

    A UserError becomes its message on stderr and exit code 2, Stopped a line and 42. Where there
    are several processes, whatever else is raised ends this one at once: a normal exit would wait
    for the others at a barrier.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(error.report(), file=sys.stderr, flush=True)
            _exit(EXIT_USER_ERROR)
        except Stopped as stopped:
            with contextlib.suppress(OSError):  # nobody may be reading any more
                print(
                    f"stopped by {stopped}; the same command goes on from there",
                    file=sys.stderr,
                    flush=True,
                )
            sys.exit(EXIT_RESUMABLE)
        except Exception:
            if not _is_one_of_many():
                raise
            traceback.print_exc()
            _exit(1)

    return wrapped


def _is_one_of_many() -> bool:
    return "jax" in sys.modules and sys.modules["jax"].process_count() > 1


def _exit(code: int) -> None:
    if _is_one_of_many():
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type when it has none: libraries write many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """`name: old -> new`, by name, for all that differs between two dicts."""
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return {
        name: f"{name}: {old.get(name, 'absent')!r} -> {new.get(name, 'absent')!r}"
        for name in names
    }


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads: of two equal keys the last would win, and other readers may take the first."""
    if len(dict(pairs)) < len(pairs):
        [(key, _)] = collections.Counter(key for key, _ in pairs).most_common(1)
        raise DuplicateKey(f"key {key!r} appears twice in an object; keep one")
    return dict(pairs)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """' (did you mean X?)' for the closest known name, or the empty string."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
