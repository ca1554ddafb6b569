"""Damages files of a checkpoint as disks and people do, and looks at what a run makes of it."""

import os
import pathlib
import random
import shutil
from collections.abc import Iterator

from dft_jax.checkpoints import manager
from dft_jax.runtime import errors
from tests.faults import launch, state

KINDS = ("bit flip", "truncation", "zeroed page", "deletion", "swapped files")
_PAGE = 4096


def damage(
    file: pathlib.Path, kind: str, others: list[pathlib.Path], chance: random.Random
) -> str | None:
    """Damages a file; returns what it did, None where it cannot (an empty file has no bits)."""
    content = bytearray(file.read_bytes())
    if kind == "deletion":
        file.unlink()
        return "deleted"
    if kind == "swapped files":
        different = [other for other in others if other.read_bytes() != content]
        if not different:
            return None
        other = chance.choice(different)
        held = other.read_bytes()
        other.write_bytes(content)
        file.write_bytes(held)
        return f"swapped with {other.name}"
    if not content:
        return None
    if kind == "bit flip":
        bit = chance.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        return f"bit {bit}"
    if kind == "truncation":
        length = chance.randrange(len(content))
        os.truncate(file, length)
        return f"cut to {length} of {len(content)} bytes"
    starts = [
        start for start in range(0, len(content), _PAGE) if any(content[start : start + _PAGE])
    ]
    if not starts:
        return None
    start = chance.choice(starts)
    content[start : start + _PAGE] = bytes(len(content[start : start + _PAGE]))
    file.write_bytes(content)
    return f"page at {start} zeroed"


def corruptions(whole: pathlib.Path, folder: pathlib.Path, count: int, seed: int) -> Iterator[dict]:
    """Damages the newest of two checkpoints `count` times: the older one must be restored.

    Every tenth time the real command takes the run up again as well, and must end as the undamaged
    one did.
    """
    older, newest = state.steps(whole)
    good, wanted = state.state_sha256(whole, older), state.summary(whole)
    files = sorted(
        p.relative_to(whole) for p in (whole / f"checkpoints/{newest}").rglob("*") if p.is_file()
    )
    chance, number = random.Random(seed), 0
    cases = [(file, kind) for kind in KINDS for file in files]
    chance.shuffle(cases)
    for index in range(10 * count):
        if number == count:
            return
        file, kind = cases[index % len(cases)]
        workdir = folder / f"damaged{seed}.{number}"
        shutil.copytree(whole, workdir)
        others = [workdir / other for other in files if other != file]
        what = damage(workdir / file, kind, others, chance)
        if what is not None:
            number += 1
            inside = str(file.relative_to(f"checkpoints/{newest}"))
            outcome = _judge(workdir, older, newest, good)
            if not outcome and number % 10 == 0:
                code = launch.run(workdir)
                found = state.summary(workdir)
                found["debris"] = [
                    name
                    for name in found["debris"]
                    if ".damaged" not in name and ".unfin" not in name
                ]
                outcome = (
                    "" if code == 0 and found == wanted else f"resumed: exit {code}, or another end"
                )
            yield {
                "kind": "corruption",
                "case": kind,
                "file": inside,
                "what": what,
                "ok": not outcome,
            } | {"detail": outcome}
        shutil.rmtree(workdir)


def _judge(workdir: pathlib.Path, older: int, newest: int, good: str) -> str:
    """What is wrong with how the damage was met; nothing where all is well."""
    with manager.Checkpoints(workdir / "checkpoints") as checkpoints:
        try:
            found = checkpoints.newest(repair=True)
        except errors.UserError as error:
            return str(error)
    if found != older:
        return f"step {found} was taken for whole"
    if (workdir / f"checkpoints/{newest}").exists():
        return f"step {newest} was not set aside"
    return "" if state.state_sha256(workdir, older) == good else f"step {older} is not as it was"
