"""The cache of compiled programs: one for each machine, of limited size."""

import contextlib
import hashlib
import importlib.util
import os
from pathlib import Path

import jax

from dft_jax.runtime import system

CACHE_BYTES = 4 * 2**30  # of compiled programs, in all


def keep_compilations() -> None:
    """Keeps compiled programs in the user's cache (or where JAX_COMPILATION_CACHE_DIR says), for
    the next start.

    Not those of several CPU devices: read back, they no longer keep their collectives in order, and
    wait for each other for ever (XLA with jax 0.10.2).
    """
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        jax.config.update("jax_enable_compilation_cache", False)
    elif not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        caches = home / "dft_jax" / "compilations"
        with contextlib.suppress(OSError):  # a home that cannot be written: every start compiles
            cache = caches / machine_name()
            cache.mkdir(parents=True, exist_ok=True)
            prune(caches, CACHE_BYTES)
            jax.config.update("jax_compilation_cache_dir", str(cache))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def machine_name() -> str:
    """Names what compiled programs depend on: backend, jaxlib, and the processor's instructions.

    Homes are shared by machines: a program for instructions that another processor lacks is refused
    at each start, with a page of errors, or ends the process.
    """
    jaxlib = importlib.metadata.version("jaxlib")
    processor = hashlib.sha256(system.processor().encode()).hexdigest()[:12]
    return f"{jax.default_backend()}-{jaxlib}-{processor}"


def prune(folder: Path, most_bytes: int) -> None:
    """Removes the files that were not used for longest, until the rest has at most so many bytes.

    JAX has a limit of its own, which a run that is killed while it writes an entry breaks for good.
    """
    files = [(file, file.stat()) for file in folder.rglob("*") if file.is_file()]
    files.sort(key=lambda found: max(found[1].st_atime, found[1].st_mtime))
    size = sum(stat.st_size for _, stat in files)
    for file, stat in files:
        if size <= most_bytes:
            return
        file.unlink(missing_ok=True)  # another process may do the same
        size -= stat.st_size
