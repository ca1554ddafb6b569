"""What a run left behind, as plain values: hashes of its state, its metrics, its debris."""

import hashlib
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from dft_jax.checkpoints import manifest
from tests.faults import launch

DEBRIS = ("*tmp*", "*.removed", "*.unfinished", "*.old", "*.damaged", ".sha256*")


def steps(workdir: pathlib.Path) -> list[int]:
    """Steps with a manifest."""
    names = [file.parent.name for file in (workdir / "checkpoints").glob(f"*/{manifest.NAME}")]
    return sorted(int(name) for name in names if name.isdigit())


def state_sha256(workdir: pathlib.Path, step: int) -> str:
    """Of every array of a checkpoint with its path, as Orbax by itself reads it."""
    folder = (workdir / f"checkpoints/{step}/state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=on_host))
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        digest.update(
            f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode() + array.tobytes()
        )
        assert not np.issubdtype(array.dtype, np.floating) or np.isfinite(array).all(), (
            f"{workdir}: {path} not finite"
        )
    return digest.hexdigest()


def debris(workdir: pathlib.Path) -> list[str]:
    return sorted(
        {str(file.relative_to(workdir)) for pattern in DEBRIS for file in workdir.rglob(pattern)}
    )


def file_sha256(file: pathlib.Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def summary(workdir: pathlib.Path) -> dict:
    """All that must not depend on what happened on the way."""
    last = steps(workdir)[-1]
    return {
        "steps": steps(workdir),
        "state": state_sha256(workdir, last),
        "metrics": launch.rows(workdir),
        "export": file_sha256(workdir / "export/model.safetensors"),
        "debris": debris(workdir),
    }
