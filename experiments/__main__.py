"""Lists the studies, or starts the script of one.

python -m experiments                                 # every study with its question
python -m experiments lab/main_comparison -- --jobs=2
python -m experiments sampling/speed -- --help

What follows -- goes to the script. Run it from the root of the repository.
"""

import pathlib
import re
import subprocess
import sys

from dft_jax.runtime import errors

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent

# The command of each study: a module and the arguments that it always has.
COMMANDS: dict[str, tuple[str, ...]] = {
    "grading/ground_truths": ("experiments.grading.ground_truths",),
    "grading/published_pairs": ("experiments.grading.published_pairs",),
    "humaneval": (
        "dft_jax.evaluate",
        "--benchmarks=humaneval",
        "--prompt=tokenizer",
        "--temperature=",
    ),
    "import_memory": ("experiments.import_memory.measure",),
    "intervals": ("experiments.intervals.coverage",),
    "lab/again": ("experiments.lab.again.run",),
    "lab/code": ("experiments.lab.run", "code"),
    "lab/dynamics": ("experiments.lab.run", "dynamics"),
    "lab/family": ("experiments.lab.run", "family"),
    "lab/granularity": ("experiments.lab.run", "granularity"),
    "lab/learning_rate_batch": ("experiments.lab.run", "learning_rate_batch"),
    "lab/main_comparison": ("experiments.lab.run", "main_comparison"),
    "lab/offline_rl": ("experiments.lab.run", "offline_rl"),
    "lab/sharpening": ("experiments.lab.run", "sharpening"),
    "lab/token_probabilities": ("experiments.lab.run", "token_probabilities"),
    "lab/vision": ("experiments.lab.run", "vision"),
    "lab_base": ("dft_jax.main", "--config=configs/lab_base.py", "--workdir=runs/lab_base"),
    "lab_code_base": (
        *("dft_jax.main", "--config=configs/lab_code_base.py"),
        "--workdir=runs/lab_code_base",
    ),
    "lab_vision_base": (
        *("dft_jax.main", "--config=configs/lab_vision_base.py"),
        "--workdir=runs/lab_vision_base",
    ),
    "long_rows": ("experiments.long_rows.compile",),
    "objectives": ("experiments.objectives.cost",),
    "parity": ("experiments.parity.run",),
    "performance": ("experiments.performance.run",),
    "performance/gpu": ("experiments.performance.gpu",),
    "performance/lora": ("experiments.performance.lora",),
    "performance/tpu": ("experiments.performance.tpu",),
    "planner": ("experiments.planner.check",),
    "planner/table": ("experiments.planner.table",),
    "pods": ("experiments.pods.compile", "--out=experiments/pods/results.csv"),
    "pods/report": ("experiments.pods.report",),
    "random4_gsm8k": ("experiments.random4_gsm8k.analyse",),
    "rates": ("experiments.rates.run",),
    "real": ("dft_jax.study",),
    "reliability": ("tests.faults",),
    "reliability/save_cost": ("experiments.reliability.save_cost",),
    "sampling/near_ties": ("experiments.sampling.near_ties",),
    "sampling/slots": ("experiments.sampling.slots",),
    "sampling/speed": ("experiments.sampling.speed",),
    "shared_files": ("experiments.shared_files.measure",),
    "theory": ("experiments.theory.notebook",),
}


def readme(name: str) -> pathlib.Path:
    """The README of a study: in the folder of its name, or of its script's."""
    file = HERE / name / "README.md"
    return file if file.exists() else (HERE / name).parent / "README.md"


def question(name: str) -> str:
    """The question at the top of a study's README."""
    found = re.search(r"^- \*\*Question\.\*\* (.+)$", readme(name).read_text("utf-8"), re.M)
    assert found, f"{readme(name)} has no line `- **Question.** …`"
    return found[1]


def listing() -> str:
    """Each study with its question; a study of several scripts says it once."""
    lines = []
    asked = ""
    for name in COMMANDS:
        text = question(name)
        lines.append(f"{name:26}{text if text != asked else '(the same study)'}")
        asked = text
    return "\n".join(lines)


def command(arguments: list[str]) -> list[str]:
    """The command line of a study.

    Raises:
      UserError: no study of that name, or arguments of its script before `--`.
    """
    name, *rest = arguments
    if name not in COMMANDS:
        hint = errors.did_you_mean(name, list(COMMANDS))
        raise errors.UserError(f"no study {name!r}{hint}; known: {', '.join(COMMANDS)}")
    if rest and rest[0] != "--":
        raise errors.UserError(f"{rest[0]!r}: what the script should get comes after --")
    return [sys.executable, "-m", *COMMANDS[name], *rest[1:]]


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        print(listing())
        return
    line = command(arguments)
    print("+", *line[1:], flush=True)
    sys.exit(subprocess.run(line, cwd=ROOT).returncode)


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
