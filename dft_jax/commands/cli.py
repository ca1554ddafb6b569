"""Command lines: absl flags and ml_collections configs, with every mistake as one clear line and
exit code 2.
"""

import importlib.metadata
import importlib.util
import os
import re
import sys
import traceback
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from dft_jax import config as config_lib
from dft_jax.runtime import errors

_HEARTBEAT_S = 30  # after which a silent process counts as dead, and ends the others

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the job's other processes (TPU pod, srun, …)."
)


def define_config():
    """The --config=FILE[:argument] flag with its --config.key=value overrides."""
    if "config" in flags.FLAGS:  # one process may import several commands
        return flags.FLAGS["config"]
    holder = config_flags.DEFINE_config_file(
        "config", None, "Config file, e.g. configs/tiny.py:objective=sft."
    )
    flags.FLAGS["config"].parser = _ConfigFile()
    return holder


def parse(required: list[str], positional: str = "") -> list[str]:
    """Parses sys.argv; returns the positional arguments, of which there are none unless
    `positional` names them.

    Raises:
      UserError: unknown or missing flags, unreadable config files, unknown keys, values of the
      wrong type.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(_help())
        sys.exit(0)
    _refuse_unknown_keys()
    try:
        rest = flags.FLAGS(sys.argv)[1:]
    except flags.Error as error:
        if isinstance(error.__context__, errors.UserError):  # of a config file; absl wraps it
            raise error.__context__ from None
        raise errors.UserError(_wrong_type(error) or _summary(error)) from error
    # the file's config lacks an overridden key
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise errors.UserError(
            f"--config: {_summary(error)}; start from dft_jax.config.get_default()"
        ) from error
    if rest and not positional:
        raise errors.UserError(f"unexpected argument {rest[0]!r}; options are written --name=value")
    missing = [positional] if positional and not rest else []
    missing += [f"--{name}" for name in required if not flags.FLAGS[name].value]
    if missing:
        raise errors.UserError(f"{missing[0]} is required; --help lists the options")
    return rest


def _help() -> str:
    """The command's docstring, and the flags of this project that it knows."""
    modules = flags.FLAGS.flags_by_module_dict()
    ours = [name for name in modules if name.startswith("dft_jax") or name == sys.argv[0]]
    return "\n".join(
        [
            sys.modules["__main__"].__doc__ or "",
            *(flags.FLAGS.module_help(name) for name in sorted(ours)),
        ]
    )


def join_processes() -> None:
    """Joins the processes of one job.

    They are named by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or, with
    --distributed, found by JAX itself: TPU pods, Slurm steps (srun), Open MPI, Kubernetes.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    remedy = "start them with srun or on a TPU pod, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID"
    with errors.user_errors("the job's processes were not found", remedy, (KeyError, ValueError)):
        if address:
            count, index = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
            jax.distributed.initialize(
                address, count, index, heartbeat_timeout_seconds=_HEARTBEAT_S
            )
        elif _DISTRIBUTED.value:
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_S)


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
    if found is None:
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
        what = f"{type(error).__name__}: {_summary(error)}"
        raise errors.UserError(f"{':'.join([file, *lines[-1:]])}: {what}; {remedy}") from error


class _ConfigFile(flags.ArgumentParser):
    """Calls get_config(argument) of a file; what goes wrong there is told with its line, not with a
    traceback.
    """

    def parse(self, path: str) -> ConfigDict:
        config = call_file(
            path, "--config", "get_config", "config", "configs/tiny.py", "mend the config file"
        )
        file = path.partition(":")[0]
        if not isinstance(config, ConfigDict):
            raise errors.UserError(
                f"{file}: get_config() should return a ConfigDict, not {type(config).__name__}"
            )
        return config.lock()


def _refuse_unknown_keys() -> None:
    """All keys of a run are in the default config, so that the command line can be checked before
    any file is read.
    """
    matches = [re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in sys.argv[1:]]
    known = config_lib.flatten(config_lib.get_default())
    keys = [match[1] for match in matches if match]
    errors.raise_if_any([config_lib.unknown_key(key) for key in keys if key not in known])


def _wrong_type(error: flags.Error) -> str | None:
    match = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error))
    if not match:
        return None
    default = config_lib.flatten(config_lib.get_default())[match[1]]
    return f"config.{match[1]}={match[2]} should be {type(default).__name__}, such as {default!r}"


def _summary(error: Exception) -> str:
    """The message on one line, without the section that ConfigDict would list."""
    text = str(error.args[0]) if error.args else "no message"
    return " ".join(
        re.sub(r' Other fields present: "\{.*?\}"', "", text).replace("\\n", " ").split()
    )
