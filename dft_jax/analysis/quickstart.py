"""What DFT does against SFT, in minutes on two CPU cores: fine-tune, sample, compare.

python -m dft_jax.analysis.quickstart --out=runs/quickstart

It fine-tunes the laboratory's base with both and prints one table (base, SFT, DFT; avg@16 at
several temperatures, greedy, pass@16, maj@16; problems like the demonstrations, harder ones, and a
format that is in none of them), draws curves.png, histogram.png and comparison.png, and says what
follows. With the same --out it resumes where it was stopped.
"""

import time
from pathlib import Path
from typing import Any

from absl import flags

from dft_jax import api
from dft_jax.commands import cli
from dft_jax.evals import planning, runner
from dft_jax.lab.recipe import OBJECTIVES, conclusion, draw, lab_config, settings
from dft_jax.lm.language_model import LM
from dft_jax.models.model import matmul_precision
from dft_jax.runtime import compilation_cache, errors, folders, interrupts

_OUT = flags.DEFINE_string("out", None, "Folder to write.", allow_override=True)


def _evaluate(plan: planning.Plan, lm: LM, folder: Path, identity: dict[str, Any]) -> None:
    with matmul_precision("float32"):
        runner.evaluate(plan, lm.model, lambda: lm.params, folder, identity)


def main() -> None:
    cli.parse(required=[])
    compilation_cache.keep_compilations()
    began = time.perf_counter()
    # Not the flag's default: other commands have the flag too, and one process may import several.
    out = folders.local_folder(_OUT.value or "runs/quickstart", "--out")
    base = api.load(lab_config("sft").model.path, compute_dtype="float32")
    plan = planning.plan(settings(), base.tokenizer, base.model)
    with folders.locked(out, "--out"), interrupts.Interrupts():
        _evaluate(plan, base, out / "eval/base", {"objective": "base", "step": 0})
        for objective in OBJECTIVES:
            run = api.train(lab_config(objective), out / objective)
            identity = {"objective": objective, "step": run.step}
            # An older version's run has none.
            if "run_id" in run.identity:
                identity["run_id"] = run.identity["run_id"]
            _evaluate(plan, run.lm, out / "eval" / objective, identity)
    made = api.compare({name: out / "eval" / name for name in ("base", *OBJECTIVES)})
    draw(made.rows, out)
    print(made)
    print(conclusion(made.rows))
    seconds = time.perf_counter() - began
    pictures = "curves.png, histogram.png, comparison.png, comparison.csv"
    print(f"{seconds:.0f} s; {out}: {pictures}")


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
