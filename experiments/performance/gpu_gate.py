"""The correctness gate of the GPU table: nothing is timed that computes something else.

Each line compares two ways of computing the same, names the attention backend that ran, and says
what a difference stops: everything (`required`), or only the use of a kernel of attention, after
which the rows go on with `blocked` and say so.
"""

import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dft_jax.models.attention import select
from dft_jax.models.model import matmul_precision
from dft_jax.runtime import errors
from experiments.performance import programs, workload
from experiments.performance.contenders import adapter

# Relative to the largest number of each array, or of loss and gradient norm.
_EXACT, _BFLOAT16 = 1e-4, 3e-2
# Of a kernel, over the root mean square of all positions: as select's own test has it.
_KERNEL_LIMIT = 0.15
_KERNELS = {"gpu": "cudnn", "tpu": "splash"}
_MODELS = ("1.5b", "7b", "8b")  # whose heads the kernel is tried with


def relative(found, expected) -> float:
    """The largest difference in a tree, relative to the largest number of each leaf; NaN stays."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    differences = [float(jnp.abs(f - e).max() / jnp.abs(e).max()) for f, e in pairs]
    return float(np.max(differences))


def line(
    case: str, difference: float, limit: float, attention: str = "", required: bool = True
) -> dict:
    """A line of gate.csv. A NaN differs."""
    verdict = "equal" if difference <= limit else "differs"
    return {
        "contender": "ours",
        "case": case,
        "loss_difference": difference,
        "verdict": verdict,
        "attention": attention,
        "required": required,
    }


def head_lines(tiny: bool) -> list[dict]:
    """The head against full logits: loss and both gradients in float32, and bfloat16 against
    float32.
    """
    sizes = (256, 64, 512) if tiny else (4096, 1536, 32_768)
    chunk, lines = sizes[0] // 4, []
    for objective in ("sft", "dft"):
        dense = functools.partial(programs.dense_loss, objective=objective)
        with matmul_precision("float32"):
            problem = programs.head_problem(*sizes, jnp.float32)
            expected = jax.jit(jax.value_and_grad(dense, argnums=(0, 1)))(*problem)
            found = programs.head_function(objective, chunk)(*problem)
        case = f"head against full logits, {objective}"
        lines.append(line(f"{case}, float32", relative(found, expected), _EXACT))
        half = (problem[0].astype(jnp.bfloat16), *problem[1:])
        found = programs.head_function(objective, chunk)(*half)
        lines.append(line(f"{case}, bfloat16", relative(found, expected), _BFLOAT16))
    return lines


def kernel_lines(tiny: bool) -> list[dict]:
    """The packed call of the device's own kernel against separate examples in float32: output, dq,
    dk and dv, for the heads of each model.
    """
    mesh, lines = adapter.one_device_mesh(), []
    name = _KERNELS.get(mesh.devices.flat[0].platform)
    for shape in _MODELS if name else ():
        model = programs.build(shape, tiny, mesh, "blocked", compute_dtype="bfloat16")
        case = f"{name} packed against separate, heads of {shape}"
        try:
            found = select.packed_errors(name, model.config, mesh, "bfloat16", model.module.block)
        except Exception as error:  # whatever a kernel's compiler throws
            print(f"{case}: {errors.first_line(error)}", file=sys.stderr)
            found = {"output": np.nan}
        lines += [
            line(f"{case}, {quantity}", error, _KERNEL_LIMIT, name, required=False)
            for quantity, error in found.items()
        ]
    return lines


def step_lines(tiny: bool) -> list[dict]:
    """Whole steps on the same examples: packed against one to a row in float32, bfloat16 against
    float32, and the backend that rows run against `blocked`.
    """
    exact, half = gate_model("float32", "blocked", tiny), gate_model("bfloat16", "blocked", tiny)
    packed = step_facts(exact, "packed", tiny)
    difference = facts_difference(packed, step_facts(exact, "padded", tiny))
    case = "packed against separate examples, float32"
    lines = [line(case, difference, _EXACT, "blocked")]
    blocked = step_facts(half, "packed", tiny)
    difference = facts_difference(blocked, packed)
    lines.append(line("a step in bfloat16 against float32", difference, _BFLOAT16, "blocked"))
    native = gate_model("bfloat16", "auto", tiny)
    name = native.module.backend
    if name != "blocked":
        case = f"{name} against blocked in a step, bfloat16"
        difference = facts_difference(step_facts(native, "packed", tiny), blocked)
        lines.append(line(case, difference, _BFLOAT16, name, required=False))
    return lines


def gate_model(dtype: str, attention: str, tiny: bool):
    return programs.build("gate", tiny, None, attention, compute_dtype=dtype)


def step_facts(model, layout: str, tiny: bool) -> dict:
    """Loss and gradient norm of the first step of a small model."""
    config = adapter.make_config(str(model.module.compute_dtype))
    examples = programs.math_examples(model.config.vocab_size, tiny)
    few = workload.Examples(examples.ids_NL[:8], examples.lengths_N[:8], examples.prompts_N[:8])
    trainee = adapter.Trainee(config, model, "sft", None)
    trainee.step(adapter.lay_out(few, layout, 128 if tiny else 2048))
    return trainee.facts()


def facts_difference(found: dict, expected: dict) -> float:
    """The larger relative difference of loss and gradient norm; NaN if one of them is."""
    names = ("loss", "gradient_norm")
    return float(np.max([abs(found[name] / expected[name] - 1) for name in names]))


PARTS: tuple[Callable[[bool], list[dict]], ...] = (head_lines, kernel_lines, step_lines)


def gate(*, tiny: bool) -> dict:
    """All lines, and the backend that the rows may use: `auto`, or `blocked` after a difference."""
    lines = [found for part in PARTS for found in part(tiny)]
    kernels = [found for found in lines if not found["required"]]
    is_sound = all(found["verdict"] == "equal" for found in kernels)
    versions = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    return {
        "gate": lines,
        "attention": "auto" if is_sound else "blocked",
        "versions": {"gpu": versions},
    }
