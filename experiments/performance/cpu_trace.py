"""Where the time of a training step on a CPU goes, operation by operation.

    python -m experiments.performance.cpu_trace --work=WORK

Profiles steps of the models T and V as in the CPU table (with tuned malloc), and divides the time
between what XLA's threads worked on: where two operations run at once, each has half. An operation
that XLA does not name in its trace, such as a product by Eigen, is in the rest, or in what runs
beside it. `--read=FOLDER` reads what another version has left: a profile and `steps.hlo`.
"""

import collections
import dataclasses
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from experiments import common
from experiments.performance import aot, duel, hlo_text, records, workload

FIELDS = [
    "processor",
    "commit",
    "model",
    "kind",
    "operation",
    "type",
    "of",
    "runs",
    "ms",
    "step_ms",
]
STEPS = 3
LEAST_MS = 0.5  # of a step; what takes less is not written
REST = "(no operation is named)"
KIND_OF_REST = "not named"
# Operations by the first of these that is inside of them, and slices by their result.
_KINDS = {
    "product": ("dot", "convolution"),
    "collective": ("all-reduce", "all-gather", "all-to-all", "reduce-scatter"),
    "gather or scatter": ("gather", "scatter"),
    "reduction": ("reduce",),
    "copy or transposition": ("transpose", "copy"),
}


@dataclasses.dataclass(frozen=True)
class Segment:
    """A thread works on an operation, and on nothing inside of it."""

    begin_ns: float
    end_ns: float
    name: str


def innermost(events: Sequence[tuple[float, float, str]]) -> Iterator[Segment]:
    """Segments of one thread's events (begin, end, name), which are nested or apart."""
    # Of the events that are open: end, name, and up to where their time is given away.
    open_events: list[list] = []

    def close_until(time_ns: float) -> Iterator[Segment]:
        while open_events and open_events[-1][0] <= time_ns:
            end_ns, name, since_ns = open_events.pop()
            yield Segment(since_ns, end_ns, name)
            if open_events:
                open_events[-1][2] = end_ns

    for begin_ns, end_ns, name in sorted(events, key=lambda event: (event[0], -event[1])):
        yield from close_until(begin_ns)
        if open_events:
            outer = open_events[-1]
            yield Segment(outer[2], begin_ns, outer[1])
            outer[2] = begin_ns
        open_events.append([end_ns, name, begin_ns])
    yield from close_until(float("inf"))


def shared_out(segments: Sequence[Segment], known: set[str]) -> collections.Counter[str]:
    """Nanoseconds by operation; those at work at the same time share it. Names that are not `known`
    are no operations.
    """
    changes = []
    for segment in segments:
        if segment.end_ns > segment.begin_ns:
            changes += [(segment.begin_ns, 1, segment.name), (segment.end_ns, -1, segment.name)]
    running: collections.Counter[str] = collections.Counter()
    found: collections.Counter[str] = collections.Counter()
    before_ns = 0.0
    for time_ns, change, name in sorted(changes):
        at_work = [other for other, count in running.items() if count and other in known]
        if running.total():
            for other in at_work or [REST]:
                found[other] += (time_ns - before_ns) / max(len(at_work), 1)
        running[name] += change
        before_ns = time_ns
    return found


def kind_of(instruction: hlo_text.Instruction, program: hlo_text.Program) -> str:
    """What an operation is: that of the most telling one inside of it."""
    inside, results = {instruction.base}, {instruction.base}
    for name in hlo_text.called_by(instruction, "calls"):
        computation = program.computations[name]
        inside |= {other.base for other in computation.values()}
        root = hlo_text.root_of(computation)
        results |= {root.base, *(computation[name].base for name in root.operands[:1])}
    for kind, opcodes in _KINDS.items():
        if inside.intersection(opcodes):
            return kind
    if results & {"dynamic-update-slice", "dynamic-slice"}:
        return "slice or update"
    return "elementwise"


def operations(program: hlo_text.Program) -> dict[str, hlo_text.Instruction]:
    """Those that run by themselves: not inside of fusions, and not what only calls others."""
    inside = set()
    for computation in program.computations.values():
        for instruction in computation.values():
            if instruction.opcode == "fusion":
                inside.update(hlo_text.called_by(instruction, "calls"))
    found = {}
    for name, computation in program.computations.items():
        if name not in inside:
            found |= computation
    return {
        name: instruction
        for name, instruction in found.items()
        if instruction.opcode not in ("while", "call", "conditional")
    }


def read(folder: pathlib.Path) -> list[dict]:
    """Rows of the steps that were profiled into `folder`."""
    import jax

    program = hlo_text.parse((folder / "steps.hlo").read_text())
    known = operations(program)
    (profile,) = folder.glob("**/*.xplane.pb")
    segments, runs = [], collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(profile)).planes:
        for line in plane.lines:
            # Python's own threads wait for XLA's.
            if line.name.startswith("tf_"):
                events = [
                    (event.start_ns, event.start_ns + event.duration_ns, event.name)
                    for event in line.events
                ]
                segments += innermost(events)
                runs.update(name for _, _, name in events)
    rows = []
    for name, nanoseconds in shared_out(segments, set(known)).most_common():
        about = {"kind": KIND_OF_REST, "operation": name}
        if name in known:
            instruction = known[name]
            written = re.search(r'op_name="([^"]*)"', instruction.attributes)
            about |= {
                "kind": kind_of(instruction, program),
                "type": instruction.type.split("{")[0],
                "of": "/".join(written[1].split("/")[-3:]) if written else "",
                "runs": round(runs[name] / STEPS),
            }
        rows.append(about | {"ms": round(nanoseconds / 1e6 / STEPS, 3)})
    return rows


def record(work: pathlib.Path, model_name: str, folder: pathlib.Path) -> float:
    """Profiles some steps into `folder`; the median seconds of seven others.

    Again, where the profiled ones took a tenth more than those: the machine did something else.
    """
    import jax

    from dft_jax import sharding
    from experiments.performance.contenders import adapter

    checkpoint, file = workload.prepare(work, model_name)
    config = adapter.make_config()
    trainee = adapter.Trainee(config, adapter.build(config, checkpoint), "dft", checkpoint)
    batches = adapter.lay_out(workload.Examples.load(file), "padded", workload.LENGTH)
    for _ in range(3):
        trainee.step(batches)
    trainee.finish()
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        trainee.step(batches)
        trainee.finish()
        seconds.append(time.perf_counter() - start)
    length = batches[0].tokens_BL.shape[1]
    batch = sharding.device_batch(batches[0], trainee.model.mesh, length)
    lowered = trainee.train_step.lower(trainee.frozen, trainee.state, batch)
    (folder / "steps.hlo").write_text(lowered.compile().as_text())
    for _ in range(9):
        shutil.rmtree(folder / "plugins", ignore_errors=True)
        with jax.profiler.trace(str(folder)):
            start = time.perf_counter()
            for _ in range(STEPS):
                trainee.step(batches)
            trainee.finish()
            profiled_s = (time.perf_counter() - start) / STEPS
        if profiled_s < 1.1 * statistics.median(seconds):
            return statistics.median(seconds)
    raise SystemExit("no three steps in nine went undisturbed: is the machine quiet?")


def summary(rows: Sequence[dict]) -> str:
    """By kind, and the ten operations that took most."""
    kinds: collections.Counter[str] = collections.Counter()
    for row in rows:
        kinds[row["kind"]] += row["ms"]
    parts = [{"kind": kind, "ms": f"{ms:.1f}"} for kind, ms in kinds.most_common()]
    first = [{name: row.get(name, "") for name in FIELDS[3:-1]} for row in rows[:10]]
    return f"{common.markdown_table(parts)}\n\n{common.markdown_table(first)}"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--work", type=pathlib.Path, help="as of experiments.performance.run")
    parser.add_argument("--models", default="T,V")
    parser.add_argument("--read", type=pathlib.Path, help="a folder with a profile and steps.hlo")
    parser.add_argument("--commit", help="of the version that left it")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--in_environment", action="store_true", help="used by the script itself")
    arguments = parser.parse_args()
    if not arguments.in_environment and not arguments.read:
        # Each in a process of its own, with the malloc of the CPU table.
        for model in arguments.models.split(","):
            command = [sys.executable, "-m", "experiments.performance.cpu_trace", *sys.argv[1:]]
            command += ["--in_environment", f"--models={model}"]
            subprocess.run(command, env=duel.environment(tuned=True), check=True)
        return
    model = arguments.models
    folder, step_s = arguments.read, None
    if folder is None:
        os.sched_setaffinity(0, {0, 1})
        folder = arguments.work / f"trace_{model}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        step_s = record(arguments.work, model, folder)
    about = {
        "processor": records.machine()["cpu"],
        "commit": arguments.commit or aot.package_commit(),
        "model": model,
        "step_ms": "" if step_s is None else round(1e3 * step_s, 1),
    }
    rows = [about | row for row in read(folder)]
    print(f"{model}, {about['processor']}, {about['commit']}: {about['step_ms']} ms a step\n")
    print(summary(rows), flush=True)
    # In the place of the same model's rows, of this version on this processor.
    file = arguments.out / "cpu_trace.csv"
    same = {name: about[name] for name in FIELDS[:3]}
    others = [row for row in records.read_rows(file) if not same.items() <= row.items()]
    shown = [row for row in rows if row["ms"] >= LEAST_MS]
    records.write_rows(file, others + [{n: row.get(n) for n in FIELDS} for row in shown])


if __name__ == "__main__":
    main()
