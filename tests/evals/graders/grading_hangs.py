"""Answers that keep a computer algebra system busy for ever, or fill its memory, and large ones
that do not.

As a command (`grading_hangs.py WALL_S [FIRST_N]`) it grades them one by one with one worker and
prints, for each, verdict, seconds and the largest resident memory of the worker, and then the
largest of all. Memory that lasted for less than the sampling interval is missed; the kernel's own
high-water mark is what is sampled.
"""

import json
import sys
import threading
import time

# none of these can be decided: `timeout`, or `no_answer` where extraction refuses the text
HANGS = [
    "9^{9^{9^{9}}}",
    "2^{2^{2^{2^{2^{2}}}}}",
    "10^{10^{10}}",
    "7^{10^{11}} - 7^{10^{11}-1}",
    "^".join(["9"] * 20),
    r"\sin(9^{9^{9^{9}}})",
    "10^{999999999} \\pmod{7}",
    "(10^{10})!",
    "((9!)!)!",
    r"\frac{(10^{9})!}{(10^{9}-2)!}",
    r"\binom{10^{12}}{5\cdot 10^{11}}",
    r"\binom{(10!)!}{9!}",
    r"\sum_{n=1}^{10^{12}} \frac{1}{n^{n}}",
    r"\prod_{n=1}^{10^{9}} (n+\frac{1}{n})",
    r"\int_0^1 \frac{\sin(x^x)}{\log(1+x^5)+\cos x} dx",
    "(x+y)^{10^{8}}+x",  # memory before time
    "(" * 39 + "1" + ")" * 39,
    "(" * 900 + "1" + ")" * 900,
    r"\sqrt{" * 60 + "2" + "}" * 60,
    "{" * 400_000 + "1" + "}" * 400_000,
    r"\frac{1}{" * 200_000 + "x" + "}" * 200_000,
    "1" * 1_000_000,
    "1+" * 600_000 + "1",
    "9^{9!}" * 200_000,
]
HEAVY = [  # large, but decided: `wrong`, or `timeout` on a slow machine
    r"\begin{pmatrix}" + r"9^{9^{9}} & " * 60 + r"1 \end{pmatrix}",
    "(x+y+z+1)^{400}-(x+y+z+1)^{399}",
    "((1+x)^{99}+(1+y)^{99})^{99}",
    "((((3!)!)!)!)!",
    r"\sqrt{" * 30 + "2" + "}" * 30,
    "1+" * 990 + "1",
    "9" * 1990,
    r"\frac{1}{" * 35 + "x" + "}" * 35,
    "x^{10^{10}}+x",
    "x^{123456789123}-1",
]


def timed(grader, answer: str) -> dict:
    """Verdict, seconds and peak of one answer; an easy item first, so that no start of a worker is
    in its time.
    """
    from dft_jax.runtime import system

    easy = grader.grade([("\\boxed{2+3}", "5")], progress=False)[0].verdict
    process, peaks, done = grader.workers[0].process.pid, [0], threading.Event()

    def sample():
        while not done.wait(0.02):
            try:
                peaks.append(system.status_kib("VmHWM", process))
            except OSError:
                return  # killed

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.monotonic()
    verdict = grader.grade([(f"\\boxed{{{answer}}}", "123456789")], progress=False)[0].verdict
    seconds = time.monotonic() - start
    done.set()
    sampler.join()
    return {
        "verdict": verdict,
        "seconds": round(seconds, 3),
        "gib": round(max(peaks) / 2**20, 3),
        "easy": easy,
    }


if __name__ == "__main__":
    from dft_jax.evals.graders.pool import Grader

    items = [("hang", answer) for answer in HANGS] + [("heavy", answer) for answer in HEAVY]
    largest = 0.0
    with Grader(workers=1, wall_s=float(sys.argv[1])) as grader:
        for kind, answer in items[: int(sys.argv[2]) if len(sys.argv) > 2 else None]:
            row = {"kind": kind, "answer": answer[:40]} | timed(grader, answer)
            largest = max(largest, row["gib"])
            print(json.dumps(row), flush=True)
    print(json.dumps({"peak_gib": largest}))
