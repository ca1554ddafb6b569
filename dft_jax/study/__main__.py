"""Carries out a study: many fine-tunings of one model, measured in one process.

SPEC=experiments/real/dynamics.py
python -m dft_jax.study --spec=$SPEC:model=FOLDER,data=FOLDER --out=STUDY --minutes=170
python -m dft_jax.study --spec=$SPEC --out=STUDY --status
python -m dft_jax.study --spec=$SPEC --out=STUDY --report

python -m dft_jax.study --spec=$SPEC --out=STUDY --grid=objective=sft,dft \\
    --grid=optimizer.learning_rate=1e-5,3e-5 --grid=train.seed=0,1,2
python -m dft_jax.study --spec=$SPEC --out=STUDY --array=8      # as each of 8 jobs of an array
python -m dft_jax.study --spec=$SPEC --out=STUDY --arm=2/8      # the same by hand

--grid makes the arms: every combination of the values, in place of the spec's arms; keys are those
of a config (objective, optimizer.*, train.* but steps and epochs), and what no grid names is as the
spec's config has it. --array and --arm do every eighth arm, from the first, second, … on, in a
folder that all jobs share: each arm is done once, and nobody waits for another. Whoever finds all
done writes the report; --report does it at any time.

The same command resumes what was stopped or killed: each phase of an arm (train, held out,
evaluate, prune) leaves a done-file in STUDY/done, and is skipped from then on, even where its
checkpoint is gone. STUDY/done may be copied from elsewhere. --status and --report read done-files
only, take seconds, and may be asked for while a study runs.

Exit codes: 0 done; 2 something given is wrong, and the message says what; 42 stopped by a signal,
or the next phase would not fit into --minutes; all of it is saved, and the same command resumes.
"""

import contextlib
import functools
import math
import sys

from absl import flags

from dft_jax.commands import cli
from dft_jax.runtime import compilation_cache, errors, folders, interrupts
from dft_jax.study import grid, records, report, spec as spec_lib

_SPEC = flags.DEFINE_string(
    "spec", None, "File with get_spec(argument), and after a colon its argument."
)
_OUT = flags.DEFINE_string("out", None, "Folder of the study.", allow_override=True)
_MINUTES = flags.DEFINE_float(
    "minutes", 0.0, "Begin no phase that would end later than this; 0: no limit.", 0.0
)
_STATUS = flags.DEFINE_bool("status", False, "Print what is done and what is left, and end.")
_REPORT = flags.DEFINE_bool(
    "report", False, "Write report.md, results.csv and curves.png, and end."
)


_GRID = flags.DEFINE_multi_string(
    "grid", [], "KEY=VALUE,VALUE,…: arms with each of these; several make their product."
)
_ARM = flags.DEFINE_string("arm", "", "N/M: do every M-th arm from the N-th on.")
_ARRAY = flags.DEFINE_integer(
    "array",
    0,
    "The same, of so many jobs; Slurm's or Kubernetes' index says which one this is.",
    0,
)


def main() -> None:
    verb = _take_verb()
    cli.parse(required=["spec", "out"])
    # They are required, so neither is None.
    folder = folders.local_folder(_OUT.value or "", "--out")
    if math.isnan(_MINUTES.value):  # which a flag's range lets through
        raise errors.UserError("--minutes=nan is no number; give one, or leave it out")
    share = grid.share(_ARM.value, _ARRAY.value)
    arms_of = None
    if _GRID.value:
        arms_of = functools.partial(grid.arms_of, grid.parse(_GRID.value))
    spec = records.with_first_warmup(spec_lib.read(_SPEC.value or "", arms_of), folder)
    done = records.Records(folder, spec)
    # These need no model, and leave an --out alone that another process works in.
    asks_status = _STATUS.value or verb == "status"
    asks_report = _REPORT.value or verb == "report"
    if asks_status or asks_report:
        if not folder.is_dir():
            raise errors.UserError(
                f"--out={folder}: no such folder; correct the path, or run the study first"
            )
        if asks_status:
            print(records.status(done))
        if asks_report:
            print(report.write(done, folder))
        return
    folders.require_plain(folder, "--out")
    # Slow to import, and not needed above.
    from dft_jax.study import jobs

    compilation_cache.keep_compilations()
    with interrupts.Interrupts():
        jobs.carry_out(spec, folder, share, _MINUTES.value)
    print(records.status(done))
    if share.count == 1:
        print(report.write(done, folder))
        return
    if not all(done.is_complete(arm) for arm in (None, *spec.arms)):
        print("other jobs have the rest; the last one writes the report, or --report")
        return
    # Two may find all done at the same moment.
    with contextlib.suppress(folders.Busy), folders.locked(folder / "locks" / "report", "--out"):
        print(report.write(done, folder))


def _take_verb() -> str:
    """`run`, `status` or `report`, which may stand before the flags; removed from sys.argv."""
    if len(sys.argv) > 1 and sys.argv[1] in ("run", "status", "report"):
        return sys.argv.pop(1)
    return "run"


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
