"""The GPU table: one machine with one Hopper GPU and `pip install dft_jax[cuda]`. See README.md.

python -m experiments.performance.gpu --out=FOLDER [--rows=head,…] [--limit=90] [--budget=500]
python -m experiments.performance.gpu --ab=train_1.5b --out=FOLDER    # XLA's options compared
python -m experiments.performance.gpu --aot                           # no GPU: compiles the rows
python -m experiments.performance.gpu --tiny --out=ANYWHERE           # every row on a CPU, small

Predictions come first, then the gate; without it nothing is timed. Every attempt is a process of
its own with a limit of seconds, and is written when it ends. When the budget is spent the rest is
left, the report written, and the exit status 0: the same command goes on with what is missing,
unless `--again`. An attempt that does not fit into the device's memory by gpu_aot.csv is none.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from experiments import common
from experiments.performance import gpu_process, records, report, targets

HERE = Path(__file__).parent
TARGETS = {target.id: target for target in targets.GPU}

# Row -> attempts; of those that work, the best counts. Of a training row: shape, rows of a
# micro-batch, rematerialisation, and micro-batches, where it is not all of a step's. With one
# there is no second buffer of gradients. What only an H200 has room for is dropped elsewhere.
ATTEMPTS: dict[str, list[list]] = {
    "ceilings": [[]],
    "tiny_run": [[]],
    "head": [[4096], [8192]],
    "optimizer": [["1.5b"]],
    "train_1.5b": [
        ["1.5b", 8, "none"],
        ["1.5b", 12, "none"],
        ["1.5b", 16, "dots"],
        ["1.5b", 8, "full"],
    ],
    "decode_1.5b": [["1.5b", 512], ["1.5b", 256]],
    "torch_eager": [["1.5b", 8, "full"], ["1.5b", 4, "full"]],
    "recipe": [["1.5b", 4]],
    "profile": [["train_1.5b"]],
    "torch_fused": [["1.5b", 8, "fused"], ["1.5b", 4, "fused"]],
    "train_7b": [["7b", 16, "full", 1], ["7b", 8, "dots"]],
    "decode_7b": [["7b", 256]],
    "train_8b": [["8b", 8, "full"], ["8b", 8, "full", 1]],
}
# Seconds that each is expected to take on sixteen cores, compilation included; the rest: LIMIT_S.
EXPECTED_S = {"ceilings": 15, "gate": 60, "tiny_run": 45, "head": 40, "optimizer": 20}
EXPECTED_S |= {"decode_1.5b": 80, "torch_eager": 60, "recipe": 50, "profile": 60}
LIMIT_S, BUDGET_S = 90, 500
_RESERVE_S = 10  # for the report
_GATE_LIMIT_S = 180  # without it there is nothing
_OTHERS = ("torch_eager", "torch_fused", "recipe")  # rates that ours are divided by
_UNMEASURED = ("tiny_run", "profile")  # they have no line in the table


def is_rate(row: str) -> bool:
    """Is more better?"""
    return row not in ("head", "optimizer")


def fields(attempt: list) -> str:
    return " ".join(map(str, attempt))


# ---- what is worth an attempt


def aot_lines(device_gib: float | None) -> dict[tuple[str, str], dict]:
    """(row, attempt) -> the line of gpu_aot.csv for a device with so much memory."""
    device = "h200" if device_gib and device_gib > 100 else "h100"
    lines = records.read_rows(HERE / "gpu_aot.csv")
    found = [line for line in lines if line["device"] == device]
    return {(line["row"], line["attempt"]): line for line in found}


def too_large(row: str, attempt: list, device_gib: float | None) -> str | None:
    """Why an attempt is none: what XLA allocates for it is more than the device gives."""
    line = aot_lines(device_gib).get((row, fields(attempt)))
    if device_gib is None or line is None or not line["total_gib"]:
        return None
    needed = float(line["total_gib"])
    if needed <= device_gib:
        return None
    return f"not tried: XLA allocates {needed:.1f} GiB, and {device_gib:.1f} are given"


def prediction(row: str, attempt: list, device_gib: float | None) -> float | None:
    """The row's value by the roofline of gpu_aot.csv: tokens/s, or ms."""
    line = aot_lines(device_gib).get((row, fields(attempt)))
    if line is None or not line["predicted_ms"]:
        return None
    milliseconds = float(line["predicted_ms"])
    if is_rate(row):
        return float(line["made"]) / milliseconds * 1e3
    return milliseconds


def in_order(rows: list[str]) -> list[tuple[str, list]]:
    """The first attempt of every row, then the second ones, and so on."""
    most = max(len(ATTEMPTS[row]) for row in rows)
    return [
        (row, ATTEMPTS[row][number])
        for number in range(most)
        for row in rows
        if number < len(ATTEMPTS[row])
    ]


# ---- results


def best(row: str, attempts: list) -> tuple[list, dict] | None:
    """The attempt with the best value of the row's own target."""
    worked = [(attempt, found) for attempt, found in attempts if "value" in found]
    if not worked:
        return None
    sign = 1 if is_rate(row) else -1
    return max(worked, key=lambda pair: sign * pair[1]["value"])


def results_of(row: str, attempts: list, ours: dict | None) -> list[dict]:
    """Lines of the table: the row's own, and those that come with it. `ours` is the training row of
    1.5B.
    """
    ids = [id for id in TARGETS if id == row or id.startswith(_companions(row))]
    chosen = best(row, attempts)
    if chosen is None:
        why = "; ".join(dict.fromkeys(found["gap"] for _, found in attempts))
        return [records.result(TARGETS[id], None, note=why) for id in ids]
    attempt, found = chosen
    about = {"attempt": fields(attempt), "attention": found.get("attention", "")}
    about |= {name: found.get(name) for name in ("device", "rounds", "compile_s", "peak_gib")}
    about |= {"predicted": found.get("predicted"), "note": f"{found['note']} {_tried(attempts)}"}
    # rates of others; the table has ours over theirs
    if row in _OTHERS:
        if ours is None:
            return [records.result(TARGETS[row], None, note="needs train_1.5b")]
        rate = ours["examples_per_s"] if row == "recipe" else ours["value"]
        values = {row: (rate / found["value"], tuple(rate / found[end] for end in ("high", "low")))}
        about |= {"ours": rate, "peer": found["value"]}
    else:
        values = {row: (found["value"], (found["low"], found["high"]))}
        values |= {
            f"{row}_{name}": (value, (None, None)) for name, value in found.get("also", {}).items()
        }
    return [
        records.result(TARGETS[id], value, interval, **about)
        for id, (value, interval) in values.items()
    ]


def _companions(row: str) -> tuple[str, ...]:
    return tuple(f"{row}_{name}" for name in ("mfu", "memory", "dft", "copy"))


def _tried(attempts: list) -> str:
    tried = [
        f"{fields(attempt)}: {found['gap'] if 'gap' in found else format(found['value'], '.6g')}"
        for attempt, found in attempts
    ]
    return f"Tried: {'; '.join(tried)}"


# ---- one session on the machine


@dataclasses.dataclass
class Session:
    """What is measured into a folder: how, and for how long."""

    out: Path
    rows: list[str]
    how: gpu_process.How
    budget_s: float
    again: bool = False

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.kept = self.out / "gpu_attempts.json"
        self.attempts = json.loads(self.kept.read_text()) if self.kept.exists() else {}
        self.device_gib: float | None = None
        self.left_out: list[str] = []

    def left_s(self) -> float:
        return self.budget_s - _RESERVE_S - (time.monotonic() - self.began)

    def measure(self, row: str, attempt: list) -> dict | None:
        """An attempt within the budget; None where that is spent."""
        expected = min(EXPECTED_S.get(row, LIMIT_S), self.how.limit_s)
        if self.left_s() < expected:
            return None
        if row == "profile":
            chosen = best(*attempt, self.attempts.get(*attempt, []))
            if chosen is None:
                return {"gap": f"needs {fields(attempt)}"}
            attempt = [*attempt, *chosen[0]]
        start = time.monotonic()
        limit_s = max(self.how.limit_s, _GATE_LIMIT_S if row == "gate" else 0)
        limit_s = min(limit_s, self.left_s())
        found = gpu_process.measure(row, attempt, dataclasses.replace(self.how, limit_s=limit_s))
        return found | {"seconds": round(time.monotonic() - start, 1), "expected_s": expected}

    def gate(self) -> list[str]:
        """Measures the gate and writes it; returns what failed of what everything depends on."""
        surroundings = records.Surroundings()
        found = self.measure("gate", []) or {"gap": "the budget is spent"}
        missing = [{"case": found.get("gap"), "verdict": "missing", "required": True}]
        lines = [{"part": "gpu", **line} for line in found.get("gate", missing)]
        records.replace_rows(self.out / "gate.csv", "part", {"gpu"}, lines)
        for line in lines:
            backend = f", {line['attention']}" if line.get("attention") else ""
            said = f"{line['verdict']} ({line.get('loss_difference')}{backend})"
            print(f"gate: {line['case']}: {said}", flush=True)
        self.how = dataclasses.replace(self.how, attention=found.get("attention", "auto"))
        if self.how.attention == "blocked":
            print("a kernel of attention differs: the rows go on with blocked", flush=True)
        records.write_surroundings(
            self.out / "gpu_environment.json", "gpu", surroundings.end(found.get("versions", {}))
        )
        failed = [line for line in lines if line["verdict"] != "equal" and line["required"]]
        return [f"gate: {line['case']}" for line in failed]

    def run(self) -> list[str]:
        """Ceilings, gate, and the attempts in order; returns what failed."""
        planned = in_order(self.rows)
        if planned[0][0] == "ceilings":
            self.attempt(*planned.pop(0))
        self.predict(planned)
        failed = self.gate()
        if failed:
            return failed
        for row, attempt in planned:
            self.attempt(row, attempt)
        for text in self.left_out:
            print(f"not started, the budget is spent: {text}", flush=True)
        return [row for row in self.rows if self.has_failed(row)]

    def predict(self, planned: list[tuple[str, list]]) -> None:
        """Prints what is expected, values and seconds, before anything is known."""
        seconds = EXPECTED_S["gate"]
        for row, attempt in planned:
            value = self.prediction(row, attempt)
            expected = EXPECTED_S.get(row, LIMIT_S)
            seconds += expected
            said = "no prediction" if value is None else f"{value:,.0f} predicted"
            print(f"{row} {fields(attempt)}: {said}, at second {seconds}", flush=True)

    def prediction(self, row: str, attempt: list) -> float | None:
        """Of the true shapes; small ones have none."""
        return None if self.how.tiny else prediction(row, attempt, self.device_gib)

    def has_failed(self, row: str) -> bool:
        """It was tried, and no attempt worked; what is not installed is a gap and no failure."""
        found = [result for _, result in self.attempts.get(row, [])]
        gaps = [result["gap"] for result in found if "gap" in result]
        absent = [gap for gap in gaps if gap.endswith(gpu_process.ABSENT)]
        return len(found) > 0 and len(gaps) == len(found) and len(absent) < len(gaps)

    def attempt(self, row: str, attempt: list) -> None:
        """Measures it, unless it is there already, cannot fit, or the budget is spent."""
        known = dict((fields(one), found) for one, found in self.attempts.get(row, []))
        before = known.get(fields(attempt))
        if before and "gap" not in before and not self.again:
            return self.remember(before)
        reason = too_large(row, attempt, self.device_gib)
        found = {"gap": reason} if reason else self.measure(row, attempt)
        if found is None:
            self.left_out.append(f"{row} {fields(attempt)}")
            return
        found["predicted"] = self.prediction(row, attempt)
        self.remember(found)
        self.write(row, attempt, found)

    def remember(self, found: dict) -> None:
        """The device's memory, which only a process that has the device knows."""
        self.device_gib = found.get("limit_gib") or self.device_gib

    def write(self, row: str, attempt: list, found: dict) -> None:
        """An attempt that has ended: into gpu_attempts.json, and into the table."""
        others = [pair for pair in self.attempts.get(row, []) if pair[0] != attempt]
        self.attempts[row] = [*others, [attempt, found]]
        self.out.mkdir(parents=True, exist_ok=True)
        self.kept.write_text(json.dumps(self.attempts, indent=1) + "\n")
        said = found.get("gap") or found.get("value")
        print(f"{row} {fields(attempt)}: {said} ({found.get('seconds', 0)} s)", flush=True)
        ours = best("train_1.5b", self.attempts.get("train_1.5b", []))
        changed = [row, *(other for other in _OTHERS if row == "train_1.5b")]
        for one in changed:
            if one in _UNMEASURED or one not in self.attempts:
                continue
            lines = results_of(one, self.attempts[one], ours and ours[1])
            records.replace_rows(self.out / "gpu.csv", "id", {line["id"] for line in lines}, lines)


def parse_arguments() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--work", type=Path, default=gpu_process.WORK, help="folder of caches")
    parser.add_argument(
        "--rows", default=",".join(ATTEMPTS), help="some of the default, with commas"
    )
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of an attempt")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of everything")
    parser.add_argument("--tiny", action="store_true", help="small shapes: does every row work?")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--aot", action="store_true", help="compile the rows, without a GPU")
    parser.add_argument("--devices", default="h100,h200", help="what --aot compiles for")
    parser.add_argument("--cases", default="", help="some of what --aot compiles, by number")
    parser.add_argument("--texts", type=Path, help="folder for the programs that --aot compiles")
    parser.add_argument("--ab", metavar="ROW", help="compare XLA's options in this row")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    known = {*ATTEMPTS, "study"} if arguments.aot else set(ATTEMPTS)
    if unknown := set(arguments.rows.split(",")) - known:
        parser.error(f"--rows: {', '.join(sorted(unknown))} unknown; known: {', '.join(ATTEMPTS)}")
    if arguments.tiny and arguments.out.resolve() == HERE.resolve():
        parser.error("--tiny gives no results worth keeping: name another folder with --out")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.only:
        print(json.dumps(gpu_process.measured(arguments.only)))
        return
    rows = arguments.rows.split(",")
    if arguments.aot:
        from experiments.performance import aot_tables

        cases = aot_tables.gpu_cases(rows, arguments.devices.split(","))
        sys.exit(
            aot_tables.gpu(arguments.out, cases, arguments.cases, arguments.again, arguments.texts)
        )
    out = arguments.out.absolute()
    how = gpu_process.How(out, arguments.work.absolute(), arguments.tiny, arguments.limit)
    if arguments.ab:
        asked = [arguments.ab, *ATTEMPTS[arguments.ab][0]]
        how = dataclasses.replace(how, limit_s=arguments.budget)
        print(json.dumps(gpu_process.measure("ab", asked, how)))
        return
    gpu_process.unpack_autotune(how)
    session = Session(out, rows, how, arguments.budget, arguments.again)
    failed = session.run()
    gpu_process.pack_autotune(how)
    report.write(out)
    if failed:
        raise SystemExit(f"not measured, or not passed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
