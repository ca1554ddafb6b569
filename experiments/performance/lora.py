"""Twenty steps of DFT on GSM8K with adapters of rank 8 and of the whole model: dft_jax beside PEFT
and TRL. See README.md.

python -m experiments.performance.lora --model=HF --data=FOLDER --work=FOLDER --torch_python=PYTHON

`HF` is a checkpoint in the form of Hugging Face, `FOLDER` of the data has gsm8k_train.jsonl, and
PYTHON an environment with torch, transformers, trl and peft. Each side is a process of its own, one
after the other, and does the same twenty steps from the same weights and the same adapter; the next
round has them in the opposite order. A round that is measured again replaces its lines.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import jax
import numpy as np

from dft_jax import config as config_lib
from dft_jax.data.examples import load_examples
from dft_jax.models import adapters
from dft_jax.models.hf import peft
from dft_jax.models.hf.locate import load_tokenizer, read_config
from experiments import common
from experiments.performance import duel, environments, records, report
from experiments.performance.contenders import adapter
from experiments.performance.workload import Examples

HERE = Path(__file__).parent
RANK, ALPHA = 8, 16.0
RATES = {"lora": 1e-4, "full": 1e-5}
# Side: (whose, what is trained, dtype of the weights, dtype of products). PyTorch computes in the
# dtype that the weights have.
SIDES = {
    "ours_lora": ("ours", "lora", "float32", "float32"),
    "trl_lora": ("trl", "lora", "float32", "float32"),
    "ours_full": ("ours", "full", "float32", "float32"),
    "trl_full": ("trl", "full", "float32", "float32"),
    # Only where they are asked for.
    "ours_lora_bf16_base": ("ours", "lora", "bfloat16", "float32"),
    "ours_lora_bf16": ("ours", "lora", "bfloat16", "bfloat16"),
    "trl_lora_bf16": ("trl", "lora", "bfloat16", "bfloat16"),
}
_USUAL = "ours_lora,trl_lora,ours_full,trl_full"


@dataclasses.dataclass(frozen=True)
class Work:
    """What every side gets."""

    model: Path
    examples: Path
    adapter: Path
    batch: int
    longest: int  # tokens of an example
    steps: int


def write_examples(arguments: argparse.Namespace, file: Path) -> None:
    """The first rows of GSM8K that have between `shortest` and `longest` tokens, with the model's
    own template: rows of about one length, so that padding them to the longest costs nobody much.
    """
    config = config_lib.get_default().data
    config.rows, config.max_length = "gsm8k", 2048
    tokenizer, spec = load_tokenizer(arguments.model), read_config(arguments.model)
    data = str(arguments.data / "gsm8k_train.jsonl")
    found = load_examples(data, config, tokenizer, spec.vocab_size, max_rows=arguments.rows)
    wanted = range(arguments.shortest, arguments.longest + 1)
    kept = [example for example in found.examples if len(example.ids) in wanted]
    n = arguments.steps * arguments.batch
    assert len(kept) >= n, f"only {len(kept)} of {arguments.rows} rows have such a length"
    ids_NL = np.zeros((n, arguments.longest), np.int32)
    for row, example in zip(ids_NL, kept, strict=False):
        row[: len(example.ids)] = example.ids
    prompts = np.array([int(np.argmax(example.trained)) for example in kept[:n]])
    examples = Examples(ids_NL, np.array([len(example.ids) for example in kept[:n]]), prompts)
    # `Examples` trains all that follows the prompt, and so does the template.
    for row, example in zip(examples.trained_NL(), kept, strict=False):
        assert (row[: len(example.ids)] == example.trained).all()
    examples.save(file)


def write_first_adapter(model_folder: Path, folder: Path) -> None:
    """The adapter that every side begins with, as PEFT has it: A uniform, B zero."""
    config = adapter.make_config(**{"lora.rank": RANK, "lora.alpha": ALPHA})
    model = adapter.build(config, model_folder)
    pairs = peft.pairs_of(adapters.init_adapters(jax.random.key(0), model), model)
    base = {"path": str(model_folder), "revision": "", "sha256": ""}
    folder.mkdir(parents=True, exist_ok=True)
    peft.write_adapter(pairs, model.lora, base, folder)


def contender(side: str, work: Work, pythons: dict[str, str]) -> duel.Contender:
    whose, trained, dtype, compute_dtype = SIDES[side]
    arguments = [f"--folder={work.model}", f"--examples={work.examples}", f"--batch={work.batch}"]
    arguments += [f"--dtype={dtype}", f"--learning_rate={RATES[trained]}"]
    if trained == "lora":
        arguments.append(f"--adapter={work.adapter}")
    if whose == "ours":
        arguments += [f"--row_length={work.longest}", f"--compute_dtype={compute_dtype}"]
        return duel.Contender(side, pythons["ours"], "lora_ours", tuple(arguments))
    return duel.Contender(side, pythons["torch"], "trl_side", (*arguments, "--setting=best"))


def resident_gib(process_id: int, name: str) -> float:
    """VmRSS or VmHWM of a process."""
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**20


def forget_peak(process_id: int) -> None:
    """VmHWM begins again at what is resident now (proc(5), clear_refs)."""
    Path(f"/proc/{process_id}/clear_refs").write_text("5")


def measure(side: str, work: Work, pythons: dict[str, str]) -> tuple[dict, list[dict], dict]:
    """A row of results, each step's wall seconds and facts, and versions."""
    logs = work.examples.parent / "logs"
    process = duel.Process(contender(side, work, pythons), logs / f"{side}.log", tuned=False)
    steps, process_id = [], process.child.pid
    try:
        for number in range(work.steps):
            if number == report.LORA_WARM:
                whole = resident_gib(process_id, "VmHWM")
                forget_peak(process_id)
            spent = process.turn("step", 1)
            facts = {name: spent["facts"][name] for name in ("loss", "gradient_norm")}
            steps.append({"wall_s": spent["wall_s"], "cpu_s": spent["cpu_s"]} | facts)
        peak = resident_gib(process_id, "VmHWM")
    finally:
        process.stop()
    timed = np.array([step["wall_s"] for step in steps[report.LORA_WARM :]])
    row = {
        "step_s": float(np.median(timed)),
        "fastest_s": float(timed.min()),
        "slowest_s": float(timed.max()),
        "step_cpu_s": float(np.median([step["cpu_s"] for step in steps[report.LORA_WARM :]])),
        "first_step_s": steps[0]["wall_s"],
        "all_steps_s": sum(step["wall_s"] for step in steps),
        "training_peak_gib": peak,
        "process_peak_gib": max(peak, whole),
    }
    return row, steps, process.versions


def parse_arguments() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of examples and logs")
    parser.add_argument("--envs", type=Path, help="folder of the peers' environments")
    parser.add_argument("--torch_python", help="an environment with torch, trl and peft instead")
    parser.add_argument("--round", type=int, default=0, help="its number; odd ones are turned")
    parser.add_argument("--sides", default=_USUAL, help="empty: only the inputs")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4, help="examples of a step")
    parser.add_argument("--shortest", type=int, default=129, help="tokens of an example")
    parser.add_argument("--longest", type=int, default=160)
    parser.add_argument("--rows", type=int, default=2000, help="of GSM8K, among which to look")
    parser.add_argument("--out", type=Path, default=HERE)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    os.sched_setaffinity(0, {0, 1})  # children inherit it
    folder = arguments.work.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    n = arguments.steps * arguments.batch
    work = Work(
        model=arguments.model.absolute(),
        examples=folder / f"examples_{n}_{arguments.shortest}_{arguments.longest}.npz",
        adapter=folder / "adapter",
        batch=arguments.batch,
        longest=arguments.longest,
        steps=arguments.steps,
    )
    pythons = {"ours": sys.executable}
    pythons["torch"] = environments.python_of("torch", arguments.envs, arguments.torch_python)
    if not work.examples.exists():
        write_examples(arguments, work.examples)
    if not (work.adapter / peft.CONFIG_NAME).exists():
        write_first_adapter(work.model, work.adapter)
    if not arguments.sides:
        return
    sides = arguments.sides.split(",")
    if arguments.round % 2:
        sides.reverse()
    for place, side in enumerate(sides):
        surroundings = records.Surroundings()
        row, steps, versions = measure(side, work, pythons)
        about = surroundings.end(versions)
        key = f"{arguments.round} {side}"
        whose, trained, dtype, compute_dtype = SIDES[side]
        named = {"id": key, "round": arguments.round, "place": place, "side": whose}
        named |= {"trained": trained, "weights": dtype, "products": compute_dtype}
        named |= {"steps": work.steps, "batch": work.batch}
        named |= {"longest": work.longest}
        row |= {name: about[name] for name in ("cores_used_by_others", "commit", "date")}
        row["versions"] = " ".join(f"{name}={version}" for name, version in versions.items())
        records.replace_rows(arguments.out / "lora.csv", "id", {key}, [named | row])
        lines = [{"id": key, "step": n + 1} | step for n, step in enumerate(steps)]
        records.replace_rows(arguments.out / "lora_steps.csv", "id", {key}, lines)
        print(
            f"{key}: {row['step_s']:.2f} s a step, {row['training_peak_gib']:.2f} GiB", flush=True
        )
    report.write(arguments.out)


if __name__ == "__main__":
    main()
