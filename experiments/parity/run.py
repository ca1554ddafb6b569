"""Compares the first step of `dft_jax` with that of TRL's `SFTTrainer`; writes results.csv; fails
above 1e-4.

    python experiments/parity/run.py --jax-python=PYTHON --torch-python=PYTHON [--real
    NAME=HF_FOLDER …] [--data FILE]

from the root of the repository. `--jax-python` runs dft_jax, `--torch-python` has torch,
transformers and trl (one environment with everything may serve as both). Cases, run one after the
other on the CPU:

    tiny_sft        the embedded tiny model after 60 steps of SFT (made here, half a minute) on its
                    word problems: small, but with p around 0.7, so that DFT's weight matters; once
                    whole, once in 4 micro-batches
    golden/…        a checkpoint of each family from tests/golden (random, logits far from
                    flat) on random ids
    NAME            each --real checkpoint, on 8 rows of --data in GSM8K's format
"""

import argparse
import csv
import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
LIMIT = 1e-4
GOLDEN = ("llama3", "llama_attention_bias", "mistral", "qwen2_tied", "qwen2_untied", "qwen3")
TRL_NAME = {"sft": "nll", "dft": "dft"}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    checkpoint: pathlib.Path
    data: pathlib.Path | None  # None: random token ids
    examples: int = 8
    max_length: int = 640
    micro_batches: int = 1


def call(*command: object) -> None:
    """Runs a command in the repository, quietly; shows what it said when it fails."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"HF_HUB_OFFLINE": "1", "XLA_FLAGS": "", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )


def make_cases(arguments: argparse.Namespace, scratch: pathlib.Path) -> list[Case]:
    """All cases; trains the tiny model in `scratch` on the way."""
    tiny = scratch / "tiny"
    call(
        arguments.jax_python, "-m", "dft_jax.main", "--config=configs/tiny.py", f"--workdir={tiny}"
    )
    assets = ROOT / "dft_jax/assets/tiny"
    trained = Case("tiny_sft", tiny / "export", assets / "train.jsonl", examples=16, max_length=384)
    cases = [trained, dataclasses.replace(trained, micro_batches=4)]
    cases += [
        Case(f"golden/{name}", ROOT / "tests/golden" / name, None, max_length=32) for name in GOLDEN
    ]
    for text in arguments.real:
        name, _, folder = text.partition("=")
        cases.append(Case(name, pathlib.Path(folder).resolve(), arguments.data.resolve()))
    return cases


def run_case(case: Case, arguments: argparse.Namespace, scratch: pathlib.Path) -> list[dict]:
    """Both sides on one batch; a row of results.csv for each objective."""
    out = scratch / f"{case.name.replace('/', '_')}_{case.micro_batches}"
    common = (f"--checkpoint={case.checkpoint}", f"--micro-batches={case.micro_batches}")
    data = [f"--data={case.data}"] if case.data else []
    sizes = (f"--examples={case.examples}", f"--max-length={case.max_length}")
    call(arguments.jax_python, HERE / "jax_side.py", *common, *data, *sizes, f"--out={out}")
    batch = f"--batch={out / 'batch.npz'}"
    call(arguments.torch_python, HERE / "trl_side.py", *common, batch, f"--out={out / 'trl.json'}")
    ours, theirs = (json.loads((out / f"{side}.json").read_text()) for side in ("jax", "trl"))
    versions = ours["versions"] | theirs["versions"]
    return [
        {
            "checkpoint": case.name,
            "data": case.data.name if case.data else "random ids",
            "examples": case.examples,
            "packed_rows": ours["packed_rows"],
            "micro_batches": case.micro_batches,
            **compare(ours[objective], theirs, TRL_NAME[objective]),
            "versions": " ".join(f"{name}-{version}" for name, version in versions.items()),
        }
        for objective in TRL_NAME
    ]


def compare(ours: dict, theirs: dict, kind: str) -> dict:
    """The numbers of one objective: ours, TRL's, and the relative differences from TRL and from
    float64.
    """
    if ours["trained_tokens"] != theirs["trained_tokens"]:
        raise SystemExit(
            f"trained tokens differ: {ours['trained_tokens']} here,"
            f" {theirs['trained_tokens']} in TRL"
        )
    row = {
        "trained_tokens": ours["trained_tokens"],
        "objective": kind.replace("nll", "sft"),
        "mean_p": ours["mean_p"],
    }
    for what, key in (("loss", "loss"), ("norm", "grad_norm")):
        trl, exact = theirs["trl"][kind][key], theirs["float64"][kind][key]
        row |= {f"{what}_jax": ours[key], f"{what}_trl": trl, f"{what}_float64": exact}
        row[f"{what}_difference"] = abs(ours[key] / trl - 1)
        row[f"{what}_jax_from_float64"] = abs(ours[key] / exact - 1)
        row[f"{what}_trl_from_float64"] = abs(trl / exact - 1)
    return row


def as_text(value) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jax-python", required=True)
    parser.add_argument("--torch-python", required=True)
    parser.add_argument(
        "--real", action="append", default=[], metavar="NAME=HF_FOLDER", help="may be repeated"
    )
    parser.add_argument("--data", type=pathlib.Path, help="rows for --real, in GSM8K's format")
    arguments = parser.parse_args()
    if arguments.real and not arguments.data:
        parser.error("--real needs --data")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in make_cases(arguments, pathlib.Path(scratch)):
            for row in run_case(case, arguments, pathlib.Path(scratch)):
                rows.append(row)
                names = (
                    "checkpoint",
                    "micro_batches",
                    "objective",
                    "mean_p",
                    "loss_difference",
                    "norm_difference",
                )
                print("  ".join(f"{name} {as_text(row[name])}" for name in names), flush=True)
    with open(HERE / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: as_text(value) for name, value in row.items()} for row in rows)
    worst = max(max(row["loss_difference"], row["norm_difference"]) for row in rows)
    print(f"largest relative difference {worst:.2g}, limit {LIMIT:g}")
    if not worst <= LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
