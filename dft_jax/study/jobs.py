"""What one process does of a study: the arms of its share, one variant after the other."""

import contextlib
from pathlib import Path

from dft_jax import config as config_lib
from dft_jax.runtime import errors, folders
from dft_jax.study import grid, laboratory, records, run
from dft_jax.study.clock import Clock
from dft_jax.study.spec import Spec


def carry_out(spec: Spec, folder: Path, share: grid.Share, minutes: float) -> None:
    """Does what is not done of a share's arms; `minutes` is as in `Clock`.

    Raises:
      Stopped: a signal, or the time is over; what is done so far is saved.
      UserError: something given is wrong, or another process is at work on the same.
    """
    mine = share.of(spec.arms)
    variants = grid.variants(spec)
    # All of them now: the last one would be refused after hours.
    for variant in variants:
        errors.raise_if_any(config_lib.validate(variant.config))
    is_part = share.count > 1 or len(variants) > 1
    for variant in variants:
        arms = [arm for arm in variant.arms if arm in mine]
        held = records.Records(folder, variant)
        if is_part and (not arms or all(held.is_complete(arm) for arm in (None, *arms))):
            continue
        # Before there is a folder: what is refused leaves nothing.
        lab = laboratory.open_laboratory(variant, records.stream_version(folder))
        # A process that does all arms has the folder for itself; jobs have their arms' locks.
        lock = contextlib.nullcontext()
        if share.count == 1:
            lock = folders.locked(folder, "--out")
        with lock:
            run.Study(lab, folder, Clock(minutes)).run(arms)
