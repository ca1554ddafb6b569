"""The grader of programs: what it gives to the jail, what it runs twice, what it refuses."""

import threading

import pytest

from dft_jax.evals.graders import programs
from dft_jax.evals.jail import extraction, supervisor
from dft_jax.evals.jail.supervisor import Job, Outcome, Unconfined
from dft_jax.evals.tasks.task import Program
from dft_jax.runtime import errors

FUNCTION = Program('def f(x):\n    """Twice."""\n', "f", "setup", "tests", extraction.CONTINUATION)
DOCUMENT = Program('"""\nTwice.\n"""', "f", "", "tests", extraction.DOCSTRING)


# Program, row, style, completion as the jail gets it.
JOBS = {
    "a continued function": (
        FUNCTION,
        {"prompt": 'def f(x):\n    """Twice."""\n', "completion": "    return 2\ndef g(): 1"},
        "continuation",
        "    return 2",
    ),
    "an answer": (
        FUNCTION,
        {"prompt": "<user>Write f.<model>", "completion": "```\ndef f\n```"},
        "answer",
        "```\ndef f\n```",
    ),
    "an answer with its beginning": (
        FUNCTION,
        {"prompt": "x", "answer_prefix": "```python\n", "completion": "def f\n```"},
        "answer",
        "```python\ndef f\n```",
    ),
    "no prompt, a block": (FUNCTION, {"completion": "```\nx\n```"}, "answer", "```\nx\n```"),
    "no prompt, a whole function": (
        FUNCTION,
        {"completion": "def f(x):\n    return 2"},
        "answer",
        "def f(x):\n    return 2",
    ),
    "no prompt, a body": (FUNCTION, {"completion": "    return 2"}, "continuation", "    return 2"),
    "no prompt, after a docstring": (
        DOCUMENT,
        {"completion": "def f(x):\n    return 2\nassert f"},
        "docstring",
        "def f(x):\n    return 2",
    ),
}


@pytest.mark.parametrize("case", JOBS)
def test_what_the_jail_is_given(case):
    program, row, style, completion = JOBS[case]
    job = programs.job_of(program, row)
    assert (job.style, job.completion) == (style, completion)
    assert (job.prompt, job.entry_point, job.setup) == (program.prompt, "f", program.setup)


class FakeJail(supervisor.Jail):
    """Verdicts by the completion; one that is late is so the first time only."""

    fences = (supervisor.LANDLOCK,)

    def __init__(self):
        self.ran = []
        self.threads = set()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def run(self, job):
        self.ran.append(job.completion)
        self.threads.add(threading.current_thread().name)
        if job.completion == "slow" and self.ran.count("slow") == 1:
            return Outcome("timeout", "no verdict within 10 s", None, 10.0)
        verdict = {"endless": "timeout", "killed": "error"}.get(job.completion, "correct")
        return Outcome(verdict, "", job.completion, 0.1)


@pytest.fixture
def jail(monkeypatch):
    one = FakeJail()
    monkeypatch.setattr(programs, "_jail", lambda: one)
    monkeypatch.setattr(programs, "_KNOWN", {})
    return one


def a_job(completion):
    return Job(completion, "", "f", "", "", extraction.ANSWER)


def test_equal_programs_run_once_and_late_ones_twice(jail):
    jobs = [a_job(text) for text in ("right", "slow", "right", "endless", "slow")]
    checked = []
    with programs.Grader(2) as grader:
        found = grader.grade(jobs, progress=False, check=lambda: checked.append(1))
    assert [one.verdict for one in found] == ["correct"] * 3 + ["timeout", "correct"]
    assert found[0].extracted == "right" and found[3].extracted == "endless"
    assert sorted(jail.ran) == ["endless", "endless", "right", "slow", "slow"]
    # What ran twice ran alone.
    assert sorted(jail.ran[-2:]) == ["endless", "slow"] and len(checked) == 5


def test_a_program_is_not_run_again_for_the_next_model(jail):
    """Nor counted less; but one that was late may be in time, and one that was killed may live."""
    jobs = [a_job(text) for text in ("right", "endless", "right", "killed")]
    checked = []
    for _ in range(2):
        with programs.Grader(1) as grader:
            found = grader.grade(jobs, progress=False, check=lambda: checked.append(1))
        assert [one.verdict for one in found] == ["correct", "timeout", "correct", "error"]
    assert len(checked) == 2 * 4
    assert sorted(jail.ran) == ["endless"] * 4 + ["killed"] * 2 + ["right"]


def test_what_a_check_raises_ends_the_grading(jail):
    class Interrupted(Exception):
        pass

    def check():
        raise Interrupted

    with pytest.raises(Interrupted), programs.Grader(1) as grader:
        grader.grade([a_job(str(n)) for n in range(50)], progress=False, check=check)
    assert len(jail.ran) < 10


def test_processes_that_do_not_start_any_more_are_one_line(jail, monkeypatch):
    def fail(job):
        raise Unconfined("two processes were not locked within 60 s: MemoryError")

    monkeypatch.setattr(jail, "run", fail)
    message = r"could not be run \(two processes.*same command"
    with programs.Grader(1) as grader, pytest.raises(errors.UserError, match=message):
        grader.grade([a_job("x")], progress=False)


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is remembered of this machine, before and after."""
    remembering = (programs._require, programs._fences)
    for function in remembering:
        function.cache_clear()
    yield monkeypatch
    for function in remembering:
        function.cache_clear()


def test_a_machine_without_fences_is_refused_with_the_remedy(fresh):
    def refuse(**settings):
        raise Unconfined("landlock: absent; namespaces: unshare: Operation not permitted")

    fresh.setattr(programs, "Jail", refuse)
    with pytest.raises(errors.UserError) as refused:
        programs.require(["gsm8k", "humaneval"])
    [line] = refused.value.problems
    for words in (
        "humaneval runs programs that a model wrote",
        "no way to confine them (landlock: absent; namespaces: unshare:",
        "--programs=skip",
        "--grade=predictions.jsonl",
        "seccomp=unconfined",
    ):
        assert words in line
    programs.require(["gsm8k", "lab"])


def test_a_machine_that_leaks_is_refused_with_the_ways_out(fresh):
    fresh.setattr(programs, "_fences", lambda: (supervisor.LANDLOCK,))
    fresh.setattr(programs, "Jail", lambda *fences, **settings: FakeJail())
    fresh.setattr(programs.selftest, "failures", lambda jail: ["fork is not refused"])
    with pytest.raises(errors.UserError) as refused:
        programs.require(["lab_code"])
    head, way = refused.value.problems
    assert "this machine does not confine them (fences: landlock)" in head
    assert way == "fork is not refused"
    # Where some other process judges, this one may be as it is.
    fresh.setattr(programs.processes, "is_first", lambda: False)
    programs.require(["lab_code"])
