"""Carries a study out: the phases of every arm in one process, each once.

Model, tokenizer and data are loaded once (laboratory.py), and each program is compiled once
(programs.py). A study that was stopped or killed resumes with the same command: phases with a
done-file are skipped, and an arm in progress resumes from its checkpoint, or is trained again up to
where it was (training.py).
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from dft_jax.evals import planning, runner
from dft_jax.models.model import matmul_precision
from dft_jax.runtime import folders
from dft_jax.study import measures, records as records_lib, spec as spec_lib
from dft_jax.study.clock import Clock
from dft_jax.study.laboratory import Laboratory
from dft_jax.study.spec import Arm, Phase
from dft_jax.study.training import Training
from dft_jax.training.exporting import export_trained
from dft_jax.types import Params

# How long a job waits for an arm of its own that another process is at. The lock of a killed one on
# another machine outlives it by a minute or so.
_PATIENCE_S = 180.0
_POLL_S = 2.0


class Study:
    """Carries a spec out in `folder`."""

    def __init__(self, lab: Laboratory, folder: Path, clock: Clock):
        self.lab = lab
        self.folder = folder
        self.clock = clock
        self.records = records_lib.Records(folder, lab.spec)
        self.made_by = records_lib.made_by()
        learn_speeds(clock, self.records)

    def run(self, arms: Sequence[Arm] | None = None) -> None:
        """Does what is not done, of `arms` where they are given.

        Other processes may be at work on other arms in the same folder. The base is measured by
        whichever comes first.

        Raises:
          Stopped: a signal, or the time is over; what is done so far is saved.
          Busy: another process was at work on one of these arms for minutes, and still is.
        """
        if arms is None:
            arms = self.lab.spec.arms
        # For measuring and sampling too, not only for steps.
        with matmul_precision(self.lab.spec.config.model.compute_dtype):
            self._try(None)
            left = list(arms)
            while left:
                left = self._wait_for_one(left)
            # Whoever was at it may have been killed.
            self._try(None)

    def _wait_for_one(self, left: list[Arm]) -> list[Arm]:
        """Does what can be done of these arms; returns those that others are at."""
        began = time.monotonic()
        while True:
            refusals = {arm: self._try(arm) for arm in left}
            busy = [arm for arm, refusal in refusals.items() if refusal]
            if len(busy) < len(left):
                return busy
            if time.monotonic() - began > _PATIENCE_S:
                refusal = refusals[busy[0]]
                assert refusal is not None, "only what was refused is busy"
                raise refusal
            self.clock.check()
            time.sleep(_POLL_S)

    def _try(self, arm: Arm | None) -> folders.Busy | None:
        """Does an arm, or the base, unless it is done; where another process is at it, its lock's
        refusal.
        """
        if self.records.is_complete(arm):
            return None
        # The lock is the kernel's, or the file server's: a process that is killed loses it.
        place = self.folder / "locks" / spec_lib.name_of(arm)
        try:
            with folders.locked(place, "--out"):
                # Perhaps done between the two.
                if self.records.is_complete(arm):
                    return None
                if arm is None:
                    self._run_base()
                else:
                    self._run_arm(arm)
        except folders.Busy as refusal:
            return refusal
        return None

    def _run_base(self) -> None:
        self.records.open_arm(None, self.lab.contents)
        base = self.lab.programs.base
        for phase in spec_lib.phases_of(self.lab.spec, None):
            if self.records.is_done(phase):
                continue
            if phase.kind == "heldout":
                self.clock.require(str(phase), {"heldout": 1})
                self._measure(phase, base)
            else:
                self.clock.require(str(phase), {"evaluate": self._n_requests()})
                self._evaluate(phase, base)

    def _run_arm(self, arm: Arm) -> None:
        spec = self.lab.spec
        self.records.open_arm(arm, self.lab.contents)
        checkpoints = self.folder / "checkpoints" / arm.name
        training = Training(self.lab, arm, checkpoints, self.records, self.clock)
        *work, prune = spec_lib.phases_of(spec, arm)
        left = [phase for phase in work if not self.records.is_done(phase)]
        keeps_parameters = spec.keep == "parameters"
        if left or keeps_parameters:
            with training:
                for step in spec.measured_at:
                    self._train_to(training, step)
                # Sampling may take hours, and an export may fail on a full disk.
                if spec.evaluation or keeps_parameters:
                    training.save()
                for phase in left:
                    if phase.kind == "evaluate":
                        self.clock.require(str(phase), {"evaluate": self._n_requests()})
                        self._evaluate(phase, training.params)
                if keeps_parameters:
                    self._keep(arm, training.params)
        # The done-file last: an arm that is killed in between is pruned the next time.
        shutil.rmtree(checkpoints, ignore_errors=True)
        self.records.write(prune, 0.0, 0, self.made_by, {"kept": spec.keep})

    def _train_to(self, training: Training, last: int) -> None:
        """Trains up to step `last`, and measures there, as far as that is not done."""
        if training.step > last:
            return
        arm = training.arm
        train_phase = Phase(arm, "train", last)
        heldout_phase = Phase(arm, "heldout", last)
        is_measured = self.records.is_done(heldout_phase)
        # Both must fit in the time that is left, and saving where it is over within them.
        work: dict[str, float] = {"train": last - training.step, "heldout": 1, "save": 1}
        if is_measured:
            work["heldout"] = 0
        self.clock.require(f"{arm.name} from step {training.step} to {last}", work)
        if training.step < last:
            first = training.step
            begin = time.monotonic()
            training.to(last)
            seconds = time.monotonic() - begin
            self.clock.learn("train", seconds, last - first)
            if not self.records.is_done(train_phase):
                results = {"steps": training.rows}
                self.records.write(train_phase, seconds, last - first, self.made_by, results)
        training.rows = []
        if not is_measured:
            self._measure(heldout_phase, training.params)

    def _keep(self, arm: Arm, params: Params) -> None:
        out = self.folder / "exports" / arm.name
        out.parent.mkdir(parents=True, exist_ok=True)
        spec = self.lab.spec
        config = spec_lib.config_of(spec, arm)
        export_trained(params, self.lab.model, self.lab.source, out, config, spec.measured_at[-1])

    def _measure(self, phase: Phase, params: Params) -> None:
        """Reads every text, token by token."""
        begin = time.monotonic()
        results = {}
        for name, text in self.lab.texts.items():
            found = measures.measure_text(
                self.lab.programs.measure,
                params,
                text.packed,
                text.answers,
                self.lab.model.mesh,
                self.clock.check,
            )
            results[name] = measures.to_json(found)
            shown = f"nll {found.nll:.4f}, p {found.mean_p:.4f}, entropy {found.entropy:.4f}"
            print(f"{phase}: {name}: {shown}", flush=True)
        seconds = time.monotonic() - begin
        self.clock.learn("heldout", seconds, 1)
        self.records.write(phase, seconds, 1, self.made_by, results)

    def _plan(self) -> planning.Plan:
        plan = self.lab.plan
        assert plan is not None, "only a spec with an evaluation has a phase for it"
        return plan

    def _n_requests(self) -> int:
        return len(self._plan().requests)

    def _evaluate(self, phase: Phase, params: Params) -> None:
        """Samples the problems and grades the answers."""
        begin = time.monotonic()
        inputs = spec_lib.inputs_of(self.lab.spec, phase.arm) | self.lab.contents
        identity = {
            "study": self.lab.spec.name,
            "inputs_sha256": spec_lib.digest(inputs, "evaluate"),
        }
        out = self.folder / "evaluations" / phase.arm_name
        summary = runner.evaluate(self._plan(), self.lab.model, lambda: params, out, identity)
        seconds = time.monotonic() - begin
        n_requests = self._n_requests()
        self.clock.learn("evaluate", seconds, n_requests)
        results = {"results": summary["results"]}
        self.records.write(phase, seconds, n_requests, self.made_by, results)


def learn_speeds(clock: Clock, records: records_lib.Records) -> None:
    """How long phases took before, from done-files, the newest last."""
    found = []
    for phase in spec_lib.phases(records.spec):
        done = records.read(phase)
        if done:
            found.append((done.finished_at, phase.kind, done.seconds, done.work))
    for _, kind, seconds, work in sorted(found):
        clock.learn(kind, seconds, work)
