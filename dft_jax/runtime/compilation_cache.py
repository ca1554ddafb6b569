"""The cache of compiled programs: one for each machine, of limited size."""

import contextlib
import hashlib
import importlib.metadata
import os
from pathlib import Path

import jax

from dft_jax.runtime import system

CACHE_BYTES = 4 * 2**30  # of compiled programs, in all


def keep_compilations() -> None:
    """Keeps compiled programs for the next start, in the user's cache.

    JAX_COMPILATION_CACHE_DIR names another folder. Disabled on multi-device CPU: executables read
    back from disk can deadlock in collectives (jax 0.10.2).
    """
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    caches = home / "dft_jax" / "compilations"
    # In a home that cannot be written every start compiles.
    with contextlib.suppress(OSError):
        cache = caches / machine_name()
        cache.mkdir(parents=True, exist_ok=True)
        prune(caches, CACHE_BYTES)
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # JAX keeps programs that took a second; a start compiles many that take less.
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
    entries = []
    for file in folder.rglob("*"):
        if file.is_file():
            stat = file.stat()
            used_at = max(stat.st_atime, stat.st_mtime)
            entries.append((used_at, stat.st_size, file))
    entries.sort(key=lambda entry: entry[0])
    total = sum(n_bytes for _, n_bytes, _ in entries)
    for _, n_bytes, file in entries:
        if total <= most_bytes:
            return
        # Another process may do the same at this moment.
        file.unlink(missing_ok=True)
        total -= n_bytes
