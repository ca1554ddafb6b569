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
    """The commit of a package's code: its checkout's, or the one that pip installed it from.

    None for neither. A repository that a virtual environment lies in knows nothing of what is
    installed there.
    """
    try:
        # An error where the repository does not hold the package.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        top = Path(_git(package, "rev-parse", "--show-toplevel"))
        if top.resolve() == package.resolve().parent:
            commit = _git(package, "rev-parse", "HEAD")
            return {"commit": commit, "dirty": bool(_git(package, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        # No git, no repository, or one that does not hold the package.
        pass
    return _installed_from(package)


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, of the repository around a folder."""
    environment = dict(os.environ)
    # In a hook, or for another tool, these name another repository.
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE"):
        environment.pop(name, None)
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _installed_from(package: Path) -> dict[str, Any] | None:
    """What pip says of a package that it installed from a commit.

    Never the address, which may hold a token.
    """
    try:
        distribution = metadata.distribution(package.name)
        installed = Path(str(distribution.locate_file(package.name)))
        # Another copy may be installed than the one that runs.
        if installed.resolve() != package.resolve():
            return None
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        return {"commit": origin["vcs_info"]["commit_id"], "dirty": False}
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        return None


# Options of JAX that change the programs it makes.
_PROGRAM_OPTIONS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
)


def process_facts() -> dict[str, Any]:
    """What must be the same on every process of a job besides its settings.

    These are packages, code, devices and options. Other versions and options make other programs,
    whose collectives wait for each other or mix what does not belong together; other numbers of
    devices shift which rows a process fills.
    """
    package = Path(__file__).parents[1]
    described = describe()
    facts: dict[str, Any] = {}
    for name, version in described["versions"].items():
        facts[f"versions.{name}"] = version
    facts["versions.dft_jax"] = described["dft_jax"]
    facts["code_sha256"] = files.digest(package.rglob("*.py"))
    facts["devices.local_count"] = jax.local_device_count()
    facts["devices.kind"] = jax.local_devices()[0].device_kind
    for name in _PROGRAM_OPTIONS:
        facts[f"options.{name}"] = str(getattr(jax.config, name, None))
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        flags = os.environ.get(name, "").split()
        # Where a host dumps its programs changes none of them.
        kept = [flag for flag in flags if not flag.startswith("--xla_dump")]
        facts[f"environment.{name}"] = " ".join(kept)
    return facts
