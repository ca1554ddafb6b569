"""Carries out a study: many fine-tunings of one model, measured in one process.

SPEC=experiments/real/dynamics.py
python -m dft_jax.study --spec=$SPEC:model=FOLDER,data=FOLDER --out=STUDY --minutes=170
python -m dft_jax.study --spec=$SPEC --out=STUDY --status
python -m dft_jax.study --spec=$SPEC --out=STUDY --report

The same command resumes what was stopped or killed: each phase of an arm (train, held out,
evaluate, prune) leaves a done-file in STUDY/done, and is skipped from then on, even where its
checkpoint is gone. STUDY/done may be copied from elsewhere. --status and --report read done-files
only, take seconds, and may be asked for while a study runs.

Exit codes: 0 done; 2 something given is wrong, and the message says what; 42 stopped by a signal,
or the next phase would not fit into --minutes; all of it is saved, and the same command resumes.
"""

from pathlib import Path

from absl import flags

from dft_jax.commands import cli
from dft_jax.runtime import compilation_cache, errors, folders, interrupts
from dft_jax.study import records, report, spec as spec_lib
from dft_jax.study.clock import Clock

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


def main() -> None:
    cli.parse(required=["spec", "out"])
    # They are required, so neither is None.
    folder = folders.local_folder(_OUT.value or "", "--out")
    spec = records.with_first_warmup(spec_lib.read(_SPEC.value or ""), folder)
    done = records.Records(folder, spec)
    # These need no model, and leave an --out alone that another process works in.
    if _STATUS.value or _REPORT.value:
        if not folder.is_dir():
            raise errors.UserError(
                f"--out={folder}: no such folder; correct the path, or run the study first"
            )
        if _STATUS.value:
            print(records.status(done))
        if _REPORT.value:
            print(report.write(done, folder))
        return
    _run(spec, folder)
    print(records.status(done))
    print(report.write(done, folder))


def _run(spec: spec_lib.Spec, folder: Path) -> None:
    # Slow to import, and not needed above.
    from dft_jax.study import laboratory, run

    compilation_cache.keep_compilations()
    with interrupts.Interrupts():
        # Before there is a folder: what is refused leaves nothing.
        lab = laboratory.open_laboratory(spec, records.stream_version(folder))
        with folders.locked(folder, "--out"):
            run.Study(lab, folder, Clock(_MINUTES.value)).run()


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
