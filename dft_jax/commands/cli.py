"""Command lines: absl flags and ml_collections configs, with every mistake as one clear line and
exit code 2.
"""

import re
import sys

from absl import flags
from ml_collections import config_flags

from dft_jax import config as config_lib
from dft_jax.runtime import cluster, errors
from dft_jax.runtime.options import Config
from dft_jax.runtime.python_files import summary

_AUTO = "auto"


class _BoolOrAuto(flags.BooleanParser):
    """As of a boolean flag, and `auto`, which is None."""

    syntactic_help = "true, false or auto"

    def parse(self, argument: str | int) -> bool | None:
        if argument == _AUTO:
            return None
        return super().parse(argument)


_DISTRIBUTED = flags.DEFINE_flag(
    flags.Flag(
        _BoolOrAuto(),
        None,
        "distributed",
        None,
        "Join the job's other processes (TPU pod, srun, …). By default, auto, where JAX finds more"
        " than one.",
        boolean=True,
    )
)
_JOIN_SECONDS = flags.DEFINE_integer(
    "join_seconds", cluster.JOIN_S, "In which all processes of a job have to be there.", 1
)


def define_config() -> flags.Flag | flags.FlagHolder:
    """The --config=FILE[:argument] flag with its --config.key=value overrides."""
    if "config" in flags.FLAGS:  # one process may import several commands
        return flags.FLAGS["config"]
    holder = config_flags.DEFINE_config_file(
        "config", None, "Config file, e.g. configs/tiny.py:objective=sft."
    )
    flags.FLAGS["config"].parser = _ConfigFile()
    return holder


def parse(
    required: list[str], positional: str = "", known: flags.FlagValues = flags.FLAGS
) -> list[str]:
    """Parses sys.argv; returns the positional arguments, of which there are none unless
    `positional` names them.

    `known` are the command's flags, where it has names that mean another thing to other commands.

    Raises:
      UserError: unknown or missing flags, unreadable config files, unknown keys, values of the
      wrong type.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(_help(known))
        sys.exit(0)
    _refuse_unknown_keys()
    try:
        rest = known(sys.argv)[1:]
    except flags.Error as error:
        if isinstance(error.__context__, errors.UserError):  # of a config file; absl wraps it
            raise error.__context__ from None
        raise errors.UserError(_wrong_type(error) or summary(error)) from error
    # the file's config lacks an overridden key
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise errors.UserError(
            f"--config: {summary(error)}; start from dft_jax.config.get_default()"
        ) from error
    if rest and not positional:
        raise errors.UserError(f"unexpected argument {rest[0]!r}; options are written --name=value")
    if positional and not rest:
        raise errors.UserError(f"{positional} is required; --help lists the options")
    for name in required:
        if not known[name].value:
            raise errors.UserError(f"--{name} is required; --help lists the options")
    return rest


def _help(known: flags.FlagValues) -> str:
    """The command's docstring, and the flags of this project that it knows."""
    modules = known.flags_by_module_dict()
    ours = [name for name in modules if name.startswith("dft_jax") or name == sys.argv[0]]
    lines = [sys.modules["__main__"].__doc__ or ""]
    for name in sorted(ours):
        lines.append(known.module_help(name))
    if "config" in known:
        lines.append(config_lib.describe())
    return "\n".join(lines)


def join_processes() -> None:
    """Joins the processes of one job, as --distributed says: see runtime/cluster.py."""
    cluster.join(_DISTRIBUTED.value, _JOIN_SECONDS.value)


class _ConfigFile(flags.ArgumentParser):
    """Calls get_config(argument) of a file; what goes wrong there is told with its line, not with a
    traceback.
    """

    def parse(self, path: str) -> Config:
        return config_lib.from_file(path, "--config")


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
