"""Runs in a bucket, killed as a request of theirs comes or is done, with faults of the store.

The store is `tests/fake_bucket.py`. What is there at the end is copied to a disk, and has to be what
an uninterrupted run on a disk comes to.
"""

import os
import pathlib
import signal
from collections.abc import Iterator

from tests.fake_bucket import Faults, Server, Trap
from tests.faults import launch, state

ADDRESS = "gs://my-bucket/run"
STALE_S = 3.0
# What a run of eight steps does, in its order: method, object, and whether it is done when the kill
# comes. With two checkpoints kept, that of step 2 goes when that of step 6 is complete.
KILLS = (
    ("POST", "run/.lock", True),
    ("POST", "run/config.json", True),
    ("POST", "run/checkpoints/2/state/ocdbt*", False),
    ("POST", "run/checkpoints/2/state/manifest.ocdbt", True),
    ("POST", "run/checkpoints/2/manifest.json", False),
    ("POST", "run/checkpoints/2/manifest.json", True),
    ("POST", "run/metrics.jsonl", False),
    ("POST", "run/checkpoints/4/_CHECKPOINT_METADATA", True),
    ("POST", "run/checkpoints/4/manifest.json", False),
    ("POST", "run/checkpoints/6/manifest.json", True),
    ("DELETE", "run/checkpoints/2/manifest.json", True),
    ("DELETE", "run/checkpoints/*.ocdbt", False),
    ("POST", "run/checkpoints/8/state/d/*", True),
    ("POST", "run/checkpoints/8/commit_success.txt", False),
    ("DELETE", "run/checkpoints/4/state/*", True),
    ("POST", "run/export/model.safetensors", True),
    ("DELETE", "run/.lock", False),
)
FEW_KILLS = (KILLS[2], KILLS[4], KILLS[10], KILLS[15])


def environment(server: Server) -> dict[str, str]:
    return server.environment() | {launch.STALE: str(STALE_S)}


def copy_of(server: Server, folder: pathlib.Path) -> pathlib.Path:
    """The run in the bucket as a folder of this machine."""
    for name, content in server.content(ADDRESS).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def start(server: Server, folder: pathlib.Path, **options):
    """The command on `gs://my-bucket/run`; its log is beside `folder`."""
    return launch.start(folder, address=ADDRESS, environment=environment(server), **options)


def kill_chain(
    folder: pathlib.Path, wanted: dict, kills: tuple[tuple[str, str, bool], ...], faults: Faults
) -> Iterator[dict]:
    """One run, killed at each request in turn, then run to its end and compared with `wanted`."""
    log = folder / "killed"
    rows = []
    with Server(None, faults) as server:
        for method, pattern, is_done in kills:
            process = start(server, log)

            def kill(pid: int = process.pid) -> None:
                os.kill(pid, signal.SIGKILL)

            server.trap = Trap(method, pattern, kill, is_done)
            landed = launch.wait(process) == -9
            rows.append({"case": f"{method} {pattern} {is_done}", "landed": landed})
        server.trap = None
        code = launch.wait(start(server, log))
        detail = f"exit {code}"
        if code == 0:
            found = state.summary(copy_of(server, folder / "copy"))
            detail = ", ".join(name for name in wanted if found[name] != wanted[name])
    for row in rows:
        yield {"kind": "kill, bucket", "ok": not detail, "detail": detail} | row
