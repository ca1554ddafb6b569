"""Answers that keep a computer algebra system busy for ever, or fill its memory.

As a command (`grading_hangs.py WALL_S`) it grades them one by one with one worker and prints, for each, verdict and
seconds, and then the largest resident memory that any worker had.
"""

import json
import resource
import sys
import time

HANGS = [
    "9^{9^{9^{9}}}",
    "9^{9^{9^{9^{9}}}}",
    "2^{2^{2^{2^{2^{2}}}}}",
    "10^{10^{10}}",
    "7^{10^{11}} - 7^{10^{11}-1}",
    "(10^{10})!",
    "((9!)!)!",
    "((((3!)!)!)!)!",
    "10000000000!",
    r"\binom{10^{12}}{5\cdot 10^{11}}",
    r"\binom{(10!)!}{9!}",
    r"\sum_{n=1}^{10^{12}} \frac{1}{n^{n}}",
    r"\prod_{n=1}^{10^{9}} (n+\frac{1}{n})",
    r"\int_0^1 \frac{\sin(x^x)}{\log(1+x^5)+\cos x} dx",
    "(x+y+z+1)^{400}-(x+y+z+1)^{399}",
    "((1+x)^{99}+(1+y)^{99})^{99}",
    r"\sqrt{" * 30 + "2" + "}" * 30,
    "(" * 39 + "1" + ")" * 39,
    "(" * 900 + "1" + ")" * 900,
    "{" * 400_000 + "1" + "}" * 400_000,
    "1" * 1_000_000,
    "1+" * 600_000 + "1",
    "1+" * 990 + "1",
    "9" * 1990,
    "^".join(["9"] * 20),
    r"\frac{1}{" * 35 + "x" + "}" * 35,
    r"\begin{pmatrix}" + r"9^{9^{9}} & " * 60 + r"1 \end{pmatrix}",
    r"\sin(9^{9^{9^{9}}})",
    "10^{999999999} \\pmod{7}",
]

if __name__ == "__main__":
    from dft_jax.evals.grading import Grader

    with Grader(workers=1, wall_s=float(sys.argv[1])) as grader:
        for hang in HANGS[: int(sys.argv[2]) if len(sys.argv) > 2 else None]:
            # An easy item first, so that the time of the hard one has no start of a worker in it.
            easy = grader.grade([("\\boxed{2+3}", "5")], progress=False)[0].verdict
            start = time.monotonic()
            graded = grader.grade([(f"\\boxed{{{hang}}}", "123456789")], progress=False)[0]
            seconds = time.monotonic() - start
            print(
                json.dumps({"answer": hang[:40], "verdict": graded.verdict, "seconds": seconds, "easy": easy}),
                flush=True,
            )
    print(json.dumps({"peak_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20}))
