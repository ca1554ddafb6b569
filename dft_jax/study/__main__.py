"""Carries out a study: many fine-tunings of one model, and what is measured of them, in one
process.

python -m dft_jax.study --spec=experiments/real/dynamics.py:model=FOLDER,data=FOLDER --out=STUDY --minutes=170
python -m dft_jax.study --spec=experiments/real/dynamics.py --out=STUDY --status
python -m dft_jax.study --spec=experiments/real/dynamics.py --out=STUDY --report

The same command continues what was stopped or killed: each phase of an arm (train, held out,
evaluate, prune) leaves a done-file in STUDY/done, and is skipped from then on, even where its
checkpoint is gone. STUDY/done may be copied from elsewhere. --status and --report read done-files
only, take seconds, and may be asked for while a study runs.

Exit codes: 0 done; 2 something given is wrong, and the message says what; 42 stopped by a signal,
or the next phase would not fit into --minutes; all of it is saved, and the same command continues.
"""

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
    folder = folders.local_folder(_OUT.value, "--out")
    spec = spec_lib.read(_SPEC.value)
    found = records.Records(folder, spec)
    if _STATUS.value or _REPORT.value:
        if not folder.is_dir():
            raise errors.UserError(
                f"--out={folder}: no such folder; correct the path, or run the study first"
            )
        if _STATUS.value:
            print(records.status(found))
        if _REPORT.value:
            print(report.write(found, folder))
        return
    _run(spec, folder)
    print(records.status(found))
    print(report.write(found, folder))


def _run(spec: spec_lib.Spec, folder) -> None:
    from dft_jax.study import run  # slow to import, and not needed above

    compilation_cache.keep_compilations()
    with interrupts.Interrupts():
        # Before there is a folder: what is refused leaves nothing.
        lab = run.open_laboratory(spec, records.stream_version(folder))
        with folders.locked(folder, "--out"):
            run.Study(lab, folder, Clock(_MINUTES.value)).run()


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
