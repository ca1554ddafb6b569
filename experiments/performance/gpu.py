"""The GPU table: one machine with one Hopper GPU and `pip install dft_jax[cuda]`. See README.md.

python -m experiments.performance.gpu --out=experiments/performance [--rows=head,…] [--again]
python -m experiments.performance.gpu --tiny --out=ANYWHERE     # every row on a CPU, small shapes

The gate comes first; without it nothing is timed. Every measurement is a process of its own, so one
that runs out of memory costs only its own row. What is there already is kept, unless `--again`. A
row that cannot be measured is a gap.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from experiments import common
from experiments.performance import gpu_rows, records, report, targets

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
TARGETS = {target.id: target for target in targets.GPU}
_LIMIT_S = 1800

# Row -> attempts (each a process); of those that work, the best counts. Rows a micro-batch,
# rematerialisation.
ATTEMPTS: dict[str, list[list]] = {
    "train_1.5b": [
        ["1.5b", 8, "none"],
        ["1.5b", 16, "none"],
        ["1.5b", 16, "dots"],
        ["1.5b", 8, "full"],
    ],
    "train_7b": [["7b", 8, "dots"], ["7b", 8, "full"], ["7b", 4, "full"]],
    "train_8b": [["8b", 8, "dots"], ["8b", 8, "full"], ["8b", 4, "full"]],
    "torch_eager": [["1.5b", 8, "full"], ["1.5b", 4, "full"]],
    "torch_fused": [["1.5b", 8, "fused"], ["1.5b", 4, "fused"]],
    "recipe": [["1.5b", 4], ["1.5b", 2]],
    "head": [[1024], [4096], [8192]],
    "optimizer": [["1.5b"]],
    "decode_1.5b": [["1.5b", 256], ["1.5b", 512]],
    "decode_7b": [["7b", 256], ["7b", 512]],
}


def measure(row: str, attempt: list, tiny: bool, in_process: bool) -> dict:
    """One measurement: what `gpu_rows` found, or {"gap": why not}."""
    if in_process:
        return gpu_rows.measure(row, attempt, tiny)
    command = [
        sys.executable,
        "-m",
        "experiments.performance.gpu",
        f"--only={json.dumps([row, attempt])}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_MEM_FRACTION": ".95"}
    try:
        done = subprocess.run(
            command + ["--tiny"] * tiny,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return {"gap": f"not done within {_LIMIT_S} s"}
    if done.returncode:
        said = [
            line
            for line in done.stderr.splitlines()
            if "Error" in line or "RESOURCE_EXHAUSTED" in line
        ]
        return {"gap": (said or done.stderr.strip().splitlines() or ["died"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def best(row: str, attempts: list[tuple[list, dict]]) -> tuple[list, dict] | None:
    """The attempt with the best value of the row's own target."""
    worked = [(attempt, found) for attempt, found in attempts if "gap" not in found]
    if not worked:
        return None
    sign = 1 if gpu_rows.is_rate(row) else -1
    return max(worked, key=lambda pair: sign * pair[1]["value"])


def results_of(row: str, attempts: list[tuple[list, dict]], ours: dict | None) -> list[dict]:
    """Lines of the table: the row's own, and those that come with it. `ours` is the training row of
    1.5B.
    """
    chosen = best(row, attempts)
    ids = [
        id
        for id in TARGETS
        if id == row or id.startswith((f"{row}_mfu", f"{row}_memory", f"{row}_dft"))
    ]
    if chosen is None:
        why = "; ".join(dict.fromkeys(found["gap"] for _, found in attempts))
        return [records.result(TARGETS[id], None, note=why) for id in ids]
    attempt, found = chosen
    tried = "; ".join(
        f"{' '.join(map(str, other))}:"
        f" {result['gap'] if 'gap' in result else format(result['value'], '.6g')}"
        for other, result in attempts
    )
    about = {
        "attempt": " ".join(map(str, attempt)),
        "device": found["device"],
        "rounds": found["rounds"],
    }
    about |= {"peak_gib": found.get("peak_gib"), "note": f"{found['note']} Tried: {tried}"}
    # rates of others; the table has ours over theirs
    if row in ("torch_eager", "torch_fused", "recipe"):
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


def table(
    out: Path, rows: list[str], *, tiny: bool, again: bool, in_process: bool = False
) -> list[str]:
    """Measures the gate and `rows` into `out`; returns what failed or could not be measured."""
    surroundings = records.Surroundings()
    file, kept = out / "gpu.csv", out / "gpu_attempts.json"
    attempts = json.loads(kept.read_text()) if kept.exists() else {}
    gate = measure("gate", [], tiny, in_process)
    lines = [
        {"part": "gpu", **line}
        for line in gate.get("gate", [{"case": gate.get("gap"), "verdict": "missing"}])
    ]
    records.replace_rows(out / "gate.csv", "part", {"gpu"}, lines)
    for line in lines:
        print(line, flush=True)
    failed = [f"gate: {line['case']}" for line in lines if line["verdict"] != "equal"]
    if failed:
        return failed
    for row in rows:
        known = {line["id"]: line for line in records.read_rows(file)}
        if not again and known.get(row, {}).get("value"):
            continue
        attempts[row] = [
            (attempt, measure(row, attempt, tiny, in_process)) for attempt in ATTEMPTS[row]
        ]
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(attempts, indent=1) + "\n")
        ours = best("train_1.5b", attempts.get("train_1.5b", []))
        found = results_of(row, attempts[row], ours and ours[1])
        records.replace_rows(file, "id", {line["id"] for line in found}, found)
        for line in found:
            print(
                f"{line['measure']}: {line['value']} ({line['verdict']}) {line['note']}", flush=True
            )
            failed += [line["id"]] if line["value"] is None else []
    records.write_surroundings(
        out / "gpu_environment.json", "gpu", surroundings.end(gate["versions"])
    )
    return failed


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument(
        "--rows", default=",".join(ATTEMPTS), help="some of the default, with commas"
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes: does every row work?")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(gpu_rows.measure(*json.loads(arguments.only), arguments.tiny)))
        return
    rows = arguments.rows.split(",")
    if unknown := set(rows) - set(ATTEMPTS):
        parser.error(f"--rows: {', '.join(sorted(unknown))} unknown; known: {', '.join(ATTEMPTS)}")
    if arguments.tiny and arguments.out.resolve() == HERE.resolve():
        parser.error("--tiny gives no results worth keeping: name another folder with --out")
    failed = table(arguments.out, rows, tiny=arguments.tiny, again=arguments.again)
    report.write(arguments.out)
    if failed:
        raise SystemExit(f"not measured, or not passed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
