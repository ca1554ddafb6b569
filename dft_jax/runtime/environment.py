"""What a reader of numbers needs to know about where they were made."""

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from dft_jax.runtime import files

_VERSIONS_OF = (
    "jax jaxlib flax optax orbax-checkpoint grain transformers datasets numpy safetensors".split()
)


def describe() -> dict[str, Any]:
    """What a reader of the numbers needs to know about where they were made."""
    import dft_jax

    return {
        "dft_jax": dft_jax.__version__,
        "git": commit_of(Path(dft_jax.__file__).parent),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _VERSIONS_OF},
        "devices": {"count": jax.device_count(), "kind": jax.devices()[0].device_kind},
        "processes": jax.process_count(),
        "command": sys.argv,
    }


def commit_of(package: Path) -> dict[str, Any] | None:
    """The commit that a package's code is of: its checkout's, or the one that pip installed it
    from; None for neither.

    A repository that a virtual environment lies in knows nothing of what is installed there.
    """
    # In a hook, or for another tool, these name a repository that is not the one around the
    # package.
    others = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in others}

    def git(*arguments):
        how = dict(cwd=package, env=environment, capture_output=True, text=True, check=True)
        return subprocess.run(["git", *arguments], **how).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        if Path(git("rev-parse", "--show-toplevel")).resolve() == package.resolve().parent:
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, no repository, or one that does not hold the package
    return _installed_from(package)


def _installed_from(package: Path) -> dict[str, Any] | None:
    """What pip says of a package that it installed from a commit; never the address, which may hold
    a token.
    """
    try:
        distribution = metadata.distribution(package.name)
        if Path(distribution.locate_file(package.name)).resolve() != package.resolve():
            return None  # another copy is installed
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        return {"commit": origin["vcs_info"]["commit_id"], "dirty": False}
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        return None


_PROGRAM_OPTIONS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
)


def process_facts() -> dict[str, Any]:
    """What must be the same on every process of a job besides its settings: packages, code,
    devices, options.

    Other versions and options make other programs, whose collectives wait for each other or mix
    what does not belong together; other numbers of devices shift which rows a process fills.
    """
    here = Path(__file__).parents[1]
    described = describe()
    facts = {f"versions.{name}": version for name, version in described["versions"].items()}
    facts["versions.dft_jax"] = described["dft_jax"]
    facts["code_sha256"] = files.digest(here.rglob("*.py"))
    facts["devices.local_count"] = jax.local_device_count()
    facts["devices.kind"] = jax.local_devices()[0].device_kind
    for name in _PROGRAM_OPTIONS:
        facts[f"options.{name}"] = str(getattr(jax.config, name, None))
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        # Where a host dumps its programs is its own business.
        flags = [
            flag for flag in os.environ.get(name, "").split() if not flag.startswith("--xla_dump")
        ]
        facts[f"environment.{name}"] = " ".join(flags)
    return facts
