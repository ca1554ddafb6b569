"""The strict grader on the ground truths of the seven benchmarks: each against itself, and against
wrong answers.

    python experiments/grading/ground_truths.py --benchmark_data=FOLDER

`scientific` takes the references such as 3.89e-10, and writes them as models do, 3.89 \\times
10^{-10}; `one percent off` is that times 1.01. Every verdict that is not the expected one is
printed.
"""

import argparse
import collections
import re

from dft_jax.evals.graders import pool
from dft_jax.evals.tasks import benchmarks


def answers(reference: str) -> dict[str, tuple[str, str]]:
    """What is graded against a reference, by name: the answer, and the verdict it should get."""
    found = {
        "itself": (reference, "correct"),
        "987654321.5": ("987654321.5", "wrong"),
        "+ 7": (f"{reference} + 7", "wrong"),
        "+ 987654321": (f"{reference} + 987654321", "wrong"),
    }
    if re.fullmatch(r"-?\d+(\.\d+)?e-?\d+", reference):
        mantissa, exponent = reference.split("e")
        found["scientific"] = (f"{mantissa} \\times 10^{{{exponent}}}", "correct")
        found["one percent off"] = (
            f"{float(mantissa) * 1.01:.10g} \\times 10^{{{exponent}}}",
            "wrong",
        )
    return found


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--benchmark_data", required=True)
    folder = arguments.parse_args().benchmark_data
    with pool.Grader(workers=1) as grader:
        for name in benchmarks.MATH:
            cases = [
                (problem, kind, answer, expected)
                for problem in benchmarks.load(name, folder)
                for kind, (answer, expected) in answers(problem.answer).items()
            ]
            items = [(f"\\boxed{{{answer}}}", problem.answer) for problem, _, answer, _ in cases]
            counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
            for (problem, kind, answer, expected), graded in zip(
                cases, grader.grade(items, progress=False), strict=True
            ):
                counts[kind][graded.verdict] += 1
                if graded.verdict != expected:
                    print(
                        f"  {name} {problem.id}: {answer!r} against {problem.answer!r} is"
                        f" {graded.verdict}"
                    )
            for kind, verdicts in counts.items():
                print(f"{name:14}{kind:16}{dict(verdicts)}", flush=True)


if __name__ == "__main__":
    main()
