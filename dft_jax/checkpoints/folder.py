"""The folder of a run's checkpoints: which are complete, which are removed, which quarantined.

    8              a checkpoint; complete once it has a manifest, which is written last
    4.damaged      differed from its manifest when the run was resumed, and was quarantined
    6.unfinished   has no manifest, and nothing before it is complete; removed when a later one is
    2.removed      on its way out: renamed first, so that a reader never sees half of it
    *.orbax-checkpoint-tmp*   what Orbax was writing when the run was killed

In a bucket there are neither of the last two: see storage.py. Everything here is done by process 0
alone.
"""

import sys

from dft_jax.checkpoints import manifest, storage
from dft_jax.checkpoints.storage import Folder

_DAMAGED = ".damaged"
_UNFINISHED = ".unfinished"
_REMOVED = ".removed"
_TEMPORARY = ("*.orbax-checkpoint-tmp*", f"*{_REMOVED}")


def complete_steps(folder: Folder) -> list[int]:
    """Steps with a manifest, in no order."""
    names = [path.name for path in storage.of(folder).complete(folder)]
    return [int(name) for name in names if name.isdigit()]


def newest_step(folder: Folder, but_not: list[int]) -> int | None:
    """The newest complete step that is not among `but_not`, None where there is none."""
    return max(set(complete_steps(folder)) - set(but_not), default=None)


def sweep(folder: Folder) -> bool:
    """Clears up after a run that was killed while it saved or removed a checkpoint.

    Returns:
      False for what no killed run leaves behind: several checkpoints, and none with a manifest.
    """
    remove_temporary(folder)
    incomplete = []
    for path in folder.iterdir():
        if path.name.isdigit() and not (path / manifest.NAME).exists():
            incomplete.append(path)
    if len(incomplete) > 1 and not complete_steps(folder):
        warn(
            f"{folder}: {len(incomplete)} checkpoints and no {manifest.NAME};"
            " were they copied without?"
        )
        return False
    store = storage.of(folder)
    # A single one is what a kill leaves behind: one checkpoint is saved at a time.
    for path in incomplete:
        warn(f"{path} has no {manifest.NAME}, so its save was never completed; it is not used")
        store.remove(path.with_suffix(_UNFINISHED), ignore_errors=True)
        if complete_steps(folder):
            store.remove(path)
        else:
            # It is all there is of hours of training, should someone want to look at it.
            store.move(path, path.with_suffix(_UNFINISHED))
    return True


def remove_temporary(folder: Folder) -> None:
    """Removes what a run was writing or removing when it was killed or its disk was full."""
    store = storage.of(folder)
    for path in store.matching(folder, _TEMPORARY):
        store.remove(path, ignore_errors=True)


def retire(folder: Folder, newest: int, keep: int, every: int, best: int | None = None) -> None:
    """Removes what the complete checkpoint `newest` makes superfluous.

    Args:
      keep: complete checkpoints to keep, `newest` among them.
      every: those of other steps than its multiples are removed first, then the oldest.
      best: a step that stays whatever `keep` says.
    """
    store = storage.of(folder)
    # What the clock saved between two steps of `every` is removed first: it is newer by minutes.
    older = [step for step in complete_steps(folder) if step < newest]
    older.sort(key=lambda step: (step % every == 0, step))
    n_removed = max(len(older) + 1 - keep, 0)
    for step in older[:n_removed]:
        if step == best:
            continue
        try:
            remove(folder, step)
        except OSError as error:
            # No reason to say that the new one was not saved.
            warn(f"{folder / str(step)} cannot be removed ({error.strerror or error})")
    for path in folder.glob(f"*{_UNFINISHED}"):
        if int(path.stem) <= newest:
            store.remove(path, ignore_errors=True)


def remove(folder: Folder, step: int) -> None:
    """Removes a complete checkpoint.

    Raises:
      OSError: it stays as it is.
    """
    storage.of(folder).withdraw(folder / str(step), f"{step}{_REMOVED}")


def quarantine(folder: Folder, step: int, problems: list[str]) -> None:
    """Renames a damaged checkpoint, so that no run uses it and a user can look at it."""
    path = folder / str(step)
    damaged = path.with_suffix(_DAMAGED)
    warn(f"{path} is damaged and set aside as {damaged.name}: {'; '.join(problems[:3])}")
    store = storage.of(folder)
    store.remove(damaged, ignore_errors=True)
    store.move(path, damaged)


def quarantined(folder: Folder) -> list[Folder]:
    """The damaged checkpoints that were set aside, by step."""
    return sorted(folder.glob(f"*{_DAMAGED}"), key=lambda path: (len(path.stem), path.stem))


def size_text(folder: Folder) -> str:
    """The size of a folder's files for a reader, such as 12.3 MB."""
    n_bytes = storage.of(folder).size(folder)
    if n_bytes is None:
        return "of unknown size"
    size = float(n_bytes)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
