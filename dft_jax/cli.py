"""Command lines: absl flags and ml_collections configs, with every mistake as one clear line and exit code 2."""

import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from dft_jax import config as config_lib
from dft_jax import errors


def define_config():
    """The --config=FILE[:argument] flag with its --config.key=value overrides."""
    return config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/tiny.py:objective=sft.")


def parse(required: list[str]) -> None:
    """Parses sys.argv.

    Raises:
      UserError: unknown or missing flags, unreadable config files, unknown keys, values of the wrong type.
    """
    try:
        rest = flags.FLAGS(sys.argv)[1:]
    except errors.UserError:
        raise
    except flags.Error as error:
        raise errors.UserError(str(error).splitlines()[0]) from error
    except (AttributeError, KeyError) as error:
        raise errors.UserError(_unknown_key(error)) from error
    except SyntaxError as error:
        raise errors.UserError(f"{error.filename}:{error.lineno}: {error.msg}; mend the config file") from error
    except Exception as error:  # whatever a config file raises; config_flags puts its traceback into the text
        raise errors.UserError(f"--config: {_last_line(error)}") from error
    if rest:
        raise errors.UserError(f"unexpected argument {rest[0]!r}; options are written --name=value")
    for name in required:
        if flags.FLAGS[name].value is None:
            raise errors.UserError(f"--{name} is required; --help lists the options")


def config_value(holder) -> ConfigDict:
    """The parsed config; the file may fail only when it is read."""
    config = holder.value
    if not isinstance(config, ConfigDict):
        raise errors.UserError(f"--config: get_config() should return a ConfigDict, not {type(config).__name__}")
    return config


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _unknown_key(error: Exception) -> str:
    known = list(config_lib.flatten(config_lib.get_default()))
    for argument in sys.argv[1:]:
        key = argument.removeprefix("--config.").partition("=")[0]
        if argument.startswith("--config.") and key not in known:
            return f"config.{key}: unknown key{errors.did_you_mean(key, known)}"
    return f"--config: {error}: not a key of the config; start from dft_jax.config.get_default()"
