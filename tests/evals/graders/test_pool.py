"""Grading: what counts as the same answer, and that no answer runs code, hangs the grader, or
changes another.
"""

import ast
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import time

import pytest

from dft_jax.evals.graders import extraction, pool
from dft_jax.evals.graders.pool import Graded, Grader
from dft_jax.runtime import sandbox
from tests.evals.graders.grading_hangs import HANGS, HEAVY
from tests.evals.graders.grading_payloads import PAYLOADS

HERE = pathlib.Path(__file__).parent
SOURCES = sorted(pathlib.Path(pool.__file__).parents[1].rglob("*.py"))
PAIRS = [json.loads(line) for line in (HERE / "labelled_pairs.jsonl").read_text().splitlines()]
BOXED = [(f"Thus \\boxed{{{pair['answer']}}}.", pair["reference"]) for pair in PAIRS]


def run(script, *arguments, stdin=""):
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[2])}
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def strict():
    with Grader(workers=2) as grader:
        yield grader


@pytest.fixture(scope="module")
def paper():
    with Grader(workers=2, mode="paper") as grader:
        yield grader


@pytest.fixture(scope="module")
def verdicts(strict):
    return [graded.verdict for graded in strict.grade(BOXED, progress=False)]


# They run text, where the kernel confines them; the next test sees that they run nowhere else.
CONFINED = ("candidate", "judging")


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_no_evaluator_is_named(file):
    if file.parent.name == "jail" and file.stem in CONFINED:
        pytest.skip("runs in the jail only")
    banned = {
        "eval",
        "exec",
        "compile",
        "sympify",
        "parse_expr",
        "__import__",
        "pickle",
        "S",
        "lambdify",
        "nsimplify",
    }
    for node in ast.walk(ast.parse(file.read_text())):
        names = {getattr(node, "id", None), getattr(node, "name", None)}
        # re.compile makes no code of text, and config.eval is a part of the settings.
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in (
            "re",
            "config",
            "self.config",
        ):
            names.add(node.attr)
        assert not names & banned, f"{file.name}:{getattr(node, 'lineno', '?')}"


def test_what_runs_text_is_imported_in_the_jail_only():
    users = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names} | set((node.module or "").split("."))
                if names & set(CONFINED):
                    users.add(file.name)
    assert users == {"inside.py"}


@pytest.mark.slow
def test_no_payload_raises_an_event():
    """Without the guard, so that it is seen that nothing gets as far as the guard."""
    assert len(PAYLOADS) >= 30
    pairs = [(payload, reference) for payload in PAYLOADS for reference in ("5", payload + "+1")]
    [seen] = run("grading_payloads.py", stdin=json.dumps(pairs))
    assert seen["events"] == []
    assert len(seen["verdicts"]) == 2 * len(pairs)


def test_the_recorder_sees_what_sympy_would_do():
    """The test above could not fail if its recorder saw nothing."""
    code = "import sys; from tests.evals.graders import grading_payloads as g; import sympy\n"
    code += "seen = []\nsys.addaudithook(lambda *a: g.is_suspect(*a) and seen.append(a[0]))\n"
    code += "sympy.Number('6'); print(seen)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE.parents[2]
    )
    assert "compile" in done.stdout and "exec" in done.stdout


@pytest.mark.parametrize("mode", pool.MODES)
def test_no_payload_does_anything(mode, tmp_path, request):
    canary = tmp_path / "canary"
    grader = request.getfixturevalue(mode)
    texts = [payload.replace("CANARY", str(canary)) for payload in PAYLOADS]
    items = [(f"\\boxed{{{text}}}", "5") for text in texts] + [
        (f"The final answer is {text}", "5") for text in texts
    ]
    graded = grader.grade(items, progress=False)
    assert not canary.exists()
    assert {one.verdict for one in graded} <= {"wrong", "no_answer"}


def test_the_guard_refuses(tmp_path):
    guard = sandbox.Guard()
    source = compile("1", "<string>", "exec")
    module = compile("1", __file__, "exec")
    refused = [
        ("compile", ("1", "<string>")),
        ("exec", (source,)),
        ("open", ("f", "w", os.O_WRONLY | os.O_CREAT)),
    ]
    refused += [
        ("os.system", ("ls",)),
        ("subprocess.Popen", ()),
        ("socket.connect", ()),
        ("os.remove", ()),
    ]
    for event, arguments in refused:
        with pytest.raises(PermissionError):
            guard(event, arguments)
    for event, arguments in [
        ("exec", (module,)),
        ("open", ("f", "r", os.O_RDONLY)),
        ("import", ("sympy",)),
    ]:
        guard(event, arguments)
    assert len(guard.refused) == len(refused)


@pytest.mark.slow
def test_hangs_cost_little_and_the_grader_goes_on():
    *items, peak = run("grading_hangs.py", "1")
    kinds = [item["kind"] for item in items]
    assert kinds == ["hang"] * len(HANGS) + ["heavy"] * len(HEAVY) and len(HANGS) >= 24
    allowed = {"hang": ("timeout", "no_answer"), "heavy": ("wrong", "timeout")}
    for item in items:
        assert item["verdict"] in allowed[item["kind"]], item
        assert item["seconds"] < 1 + 1 and item["easy"] == "correct", item
    assert 0 < peak["peak_gib"] <= 2


@pytest.mark.slow
def test_the_default_limit_is_five_seconds():
    item, _ = run("grading_hangs.py", "5", "1")
    assert item["verdict"] == "timeout" and 4.9 < item["seconds"] < 6


def test_memory_is_limited():
    with Grader(workers=1, memory_gb=0.75) as grader:
        grader.grade([(r"\boxed{1+1}", "2")], progress=False)
        limits = resource.prlimit(grader.workers[0].process.pid, resource.RLIMIT_AS)
    assert limits == (0.75 * 2**30, 0.75 * 2**30)


@pytest.mark.slow
def test_memory_that_runs_out_is_a_timeout():
    """A number of 1.25 GB: Python raises MemoryError, and math-verify makes a plain "not equal" of
    it.
    """
    item = (r"\boxed{2^{10^{10}}}", "5")
    with Grader(workers=1, memory_gb=0.5, wall_s=60) as grader:
        grader.grade([(r"\boxed{1+1}", "2")], progress=False)
        process = grader.workers[0].process
        start = time.monotonic()
        [graded] = grader.grade([item], progress=False)
        assert graded.verdict == "timeout" and time.monotonic() - start < 30
        [after] = grader.grade([(r"\boxed{1+2}", "3")], progress=False)
    assert after.verdict == "correct" and process.returncode is not None  # by another worker


def test_the_parents_memory_is_not_the_workers():
    code = "from dft_jax.evals.graders import pool; print(pool.peak_kib())"
    ballast = bytearray(300 * 2**20)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE.parents[2]
    )
    assert int(done.stdout) < 200 * 2**10 < len(ballast), done.stderr


def test_labelled_pairs(verdicts):
    mistakes = [
        pair
        for pair, verdict in zip(PAIRS, verdicts, strict=True)
        if (verdict == "correct") != pair["equal"]
    ]
    assert len(PAIRS) >= 120 and mistakes == []


@pytest.mark.parametrize("workers", [1, 3])
def test_neither_workers_nor_order_matter(workers, verdicts):
    order = list(range(len(BOXED)))
    random.Random(workers).shuffle(order)
    with Grader(workers=workers) as grader:
        graded = grader.grade([BOXED[i] for i in order], progress=False)
    assert [one.verdict for one in graded] == [verdicts[i] for i in order]


def test_the_pool_gives_math_verifys_verdicts(verdicts):
    """Called directly in this process, as it comes, on the pairs that have no rule of ours before
    the comparison.
    """
    import math_verify

    config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    kinds = "units text dollars degrees percentage thousands bases point scientific small".split()
    kinds += ["letters", "unsolvable"]
    compared = 0
    for pair, verdict in zip(PAIRS, verdicts, strict=True):
        if pair["kind"] in kinds:
            continue
        sides = [
            math_verify.parse(f"\\boxed{{{pair[side]}}}", config, parsing_timeout=None)
            for side in ("reference", "answer")
        ]
        assert (verdict == "correct") == math_verify.verify(*sides, timeout_seconds=None), pair
        compared += 1
    assert compared >= 40


def references(shared):
    """The ground truths of the seven benchmarks, by file name."""

    def rows(name):
        return [
            json.loads(line)
            for line in (shared / "data" / f"{name}.jsonl").read_text().splitlines()
        ]

    found = {
        name: [str(row["answer"]) for row in rows(name)]
        for name in ("math500", "aime24", "aime25", "amc23")
    }
    found["minerva"] = [extraction.extract(row["solution"]) for row in rows("minerva")]
    found["olympiadbench"] = [row["final_answer"][0] for row in rows("olympiadbench")]
    found["gsm8k_test"] = [row["answer"].rsplit("####", 1)[1].strip() for row in rows("gsm8k_test")]
    return found


def test_ground_truths(shared, strict):
    """Every ground truth equals itself; a sample of each benchmark's is not equal to a number that
    none has.
    """
    found = references(shared)
    sizes = dict(
        math500=500, aime24=30, aime25=30, amc23=40, minerva=272, olympiadbench=675, gsm8k_test=1319
    )
    assert {name: len(answers) for name, answers in found.items()} == sizes
    for name, answers in found.items():
        graded = strict.grade(
            [(f"\\boxed{{{answer}}}", answer) for answer in answers], progress=False
        )
        assert {one.verdict for one in graded} == {"correct"}, name
        sample = random.Random(0).sample(answers, min(40, len(answers)))
        for wrong in ("987654321.5", "{} + 7"):
            items = [(f"\\boxed{{{wrong.format(answer)}}}", answer) for answer in sample]
            graded = strict.grade(items, progress=False)
            assert {one.verdict for one in graded} <= {"wrong", "timeout"}, (name, wrong)


LENIENT = [  # (completion, reference): the paper's grader accepts, the strict one does not
    (r"\boxed{50}", "0.5"),
    (r"\boxed{0.5}", "50"),
    (r"\boxed{5\text{ km}}", r"5\text{ m}"),
    (r"\boxed{(1,2)}", "[1,2]"),
    (r"\boxed{1,2}", "12"),
    (r"\boxed{3.1416}", r"3.14159"),
    ("We get 7 apples", "7"),
    (r"we find 5 and write \boxed{5", "5"),
]


def test_the_papers_rules_accept_more(strict, paper):
    assert {one.verdict for one in paper.grade(LENIENT, progress=False)} == {"correct"}
    assert {one.verdict for one in strict.grade(LENIENT, progress=False)} == {"wrong", "no_answer"}


@pytest.mark.parametrize(
    ("completion", "reference", "verdict"),
    [
        (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", "correct"),
        (r"\boxed{x = 5}", "5", "correct"),
        (r"\boxed{6}", "5", "wrong"),
        (r"\boxed{500.1}", "5", "wrong"),
        (r"\boxed{\text{Tuesday}}", "Tuesday", "correct"),
        (r"\boxed{(1,2)}", "(2,1)", "wrong"),
        (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", "correct"),
        ("nothing", "5", "no_answer"),
    ],
)
def test_the_papers_rules(paper, completion, reference, verdict):
    assert paper.grade([(completion, reference)], progress=False)[0].verdict == verdict


def test_what_comes_back(strict):
    items = [(r"\boxed{5}", "5"), ("?", "5"), (r"\boxed{4}", "5"), (r"\boxed{5}", "5")]
    assert strict.grade(items, progress=False) == [
        Graded("correct", "5"),
        Graded("no_answer", None),
        Graded("wrong", "4"),
        Graded("correct", "5"),
    ]
    assert strict.grade([], progress=False) == []


def test_the_last_number_is_an_option():
    with Grader(workers=1, last_number=True) as grader:
        assert grader.grade([("We get 7 apples", "7")], progress=False) == [Graded("correct", "7")]


def test_a_dead_worker_is_replaced():
    with Grader(workers=1) as grader:
        grader.grade([(r"\boxed{1+1}", "2")], progress=False)
        grader.workers[0].process.kill()
        grader.workers[0].process.wait()
        verdicts = [
            one.verdict
            for one in grader.grade([(r"\boxed{1+2}", "3"), (r"\boxed{1+3}", "4")], progress=False)
        ]
    assert verdicts[1] == "correct" and set(verdicts) <= {"correct", "error"}


def test_workers_import_no_jax():
    code = "import sys; from dft_jax.evals.graders import pool; pool.patch_math_verify()\n"
    code += "print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE.parents[2]
    )
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize(
    "options",
    [
        dict(mode="loose"),
        dict(workers=0),
        dict(wall_s=0),
        dict(memory_gb=0.1),
        dict(answer_markers=()),
        dict(answer_markers=("box", "hope")),
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Grader(**options)
