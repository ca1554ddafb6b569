"""The CPU table: dft_jax against TRL, Tunix and a bare PyTorch loop on two cores. See README.md.

python -m experiments.performance.run --work=FOLDER --envs=FOLDER \\
    [--rows=steps,packing,generation,startup,compile]

Everything is measured in turn; results go to the files beside this one after each part, so a part
may be measured alone, or again. Run it on an otherwise quiet machine.
"""

import argparse
import os
import sys
from pathlib import Path

import dft_jax
from experiments import common
from experiments.performance import (
    duel,
    environments,
    parts,
    protocol,
    records,
    report,
    targets,
)

HERE = Path(__file__).parent
PARTS = {
    "steps_T_tuned": lambda settings: parts.steps(settings, "T", True),
    "steps_T_default": lambda settings: parts.steps(settings, "T", False),
    "steps_V_tuned": lambda settings: parts.steps(settings, "V", True),
    "steps_V_default": lambda settings: parts.steps(settings, "V", False),
    "packing": parts.packing,
    "generation": parts.generation,
    "startup": parts.startup,
    "compile": parts.compilation,
}
OURS = {
    "ours": {"dft_jax": dft_jax.__version__} | protocol.versions("jax", "jaxlib", "flax", "optax")
}
NEEDS = {"steps": {"torch", "tunix"}, "generation": {"torch"}}


def chosen(rows: str) -> list[str]:
    """Names of parts; `steps` stands for its four."""
    names = []
    for word in rows.split(","):
        found = [name for name in PARTS if name == word or name.startswith(f"{word}_")]
        if not found:
            raise SystemExit(f"--rows={word}: known are steps, {', '.join(PARTS)}")
        names += found
    return names


def parse_arguments() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for checkpoints, caches and logs"
    )
    parser.add_argument(
        "--envs",
        type=Path,
        required=True,
        help="folder of the peers' environments, built if missing",
    )
    parser.add_argument(
        "--torch_python", help="an environment with torch, transformers and trl instead"
    )
    parser.add_argument("--tunix_python", help="an environment with google-tunix instead")
    parser.add_argument("--rows", default="steps,packing,generation,startup,compile")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--steps",
        type=int,
        default=3,
        help="steps of a training-step contender in each of its turns",
    )
    parser.add_argument("--cores", default="0,1", help="the two cores that everything runs on")
    parser.add_argument("--data", type=Path, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--tokenizer", type=Path, help="folder of Qwen2's tokenizer")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    names = chosen(arguments.rows)
    # children inherit it
    os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
    needed = set().union(*(NEEDS.get(name.split("_")[0], set()) for name in names))
    pythons = environments.pythons(
        arguments.envs.absolute(), arguments.torch_python, arguments.tunix_python, needed
    )
    work = arguments.work.absolute()
    settings = parts.Settings(
        work, pythons, arguments.rounds, arguments.steps, arguments.data, arguments.tokenizer
    )
    work.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names:
        print(name, flush=True)
        surroundings = records.Surroundings()
        try:
            outcome = PARTS[name](settings)
        except (RuntimeError, duel.Failed) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        write(arguments.out, name, outcome, surroundings)
        failed += [
            f"{row['contender']}'s gate"
            for row in outcome.gate
            if row["verdict"] in ("differs", "missing")
        ]
    report.write(arguments.out)
    if failed:
        raise SystemExit(f"not all is measured: {', '.join(failed)}")


def write(out: Path, name: str, outcome: parts.Outcome, surroundings: records.Surroundings) -> None:
    """The part's lines of every file."""
    ids = {row["id"] for row in outcome.results}
    records.replace_rows(out / "cpu.csv", "id", ids, outcome.results)
    records.replace_rows(out / "cpu_rounds.csv", "part", {name}, outcome.rounds)
    kept = [row for row in outcome.results if row["id"] in {t.id for t in targets.BY_PROCESSOR}]
    records.keep_by_processor(out / "cpu_processors.csv", kept)
    records.replace_rows(out / "gate.csv", "part", {name}, outcome.gate)
    records.write_surroundings(
        out / "environment.json", name, surroundings.end(outcome.versions or OURS)
    )
    for row in outcome.results:
        value = "not measured" if row["value"] is None else f"{row['value']:.3f}"
        print(f"  {row['measure']}: {value} ({row['verdict']}) {row.get('note', '')}", flush=True)


if __name__ == "__main__":
    main()
