"""Functions of Python files that a user names: configs and specs of studies."""

import importlib.util
import os
import re
import traceback
from typing import Any

from dft_jax.runtime import errors


def call_file(given: str, flag: str, function: str, kind: str, example: str, remedy: str) -> Any:
    """What `function` of the Python file `FILE` or `FILE:argument` returns, called with the
    argument if there is one.

    Raises:
      UserError: no such file, no such function in it, or an exception from it, named with its line.
    """
    file, colon, argument = given.partition(":")
    if not os.path.isfile(file):
        raise errors.UserError(
            f"{flag}={file}: no such file (looked from {os.getcwd()}); correct the path"
        )
    found = importlib.util.spec_from_file_location(f"{kind}_file", file)
    if found is None or found.loader is None:
        raise errors.UserError(
            f"{flag}={file}: a {kind} is a Python file, with a name that ends in .py"
        )
    try:
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        if not hasattr(module, function):
            raise errors.UserError(f"{file}: no {function}() in it; see {example}")
        make = getattr(module, function)
        return make(argument) if colon else make()
    except errors.UserError:
        raise
    except SyntaxError as error:
        raise errors.UserError(f"{error.filename}:{error.lineno}: {error.msg}; {remedy}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [str(frame.lineno) for frame in frames if frame.filename == found.origin]
        what = f"{type(error).__name__}: {summary(error)}"
        raise errors.UserError(f"{':'.join([file, *lines[-1:]])}: {what}; {remedy}") from error


def summary(error: Exception) -> str:
    """The message on one line, without the section that ConfigDict would list."""
    text = str(error.args[0]) if error.args else "no message"
    return " ".join(
        re.sub(r' Other fields present: "\{.*?\}"', "", text).replace("\\n", " ").split()
    )
