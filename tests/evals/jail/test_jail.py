"""The jail: hostile programs, the self-test and its refusal, real problems; each for every set of
fences that this machine allows.
"""

import ast
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dft_jax.evals.jail import extraction, selftest, supervisor
from dft_jax.evals.jail.supervisor import HERE, LANDLOCK, NAMESPACES, Jail, Job, Unconfined
from tests.evals.jail import campaign, hostile

SETS = [(LANDLOCK,), (NAMESPACES,), (LANDLOCK, NAMESPACES)]
ADD = "def f(x):\n    "
CANDIDATE = "def check(candidate):\n    assert candidate(1) == 2\n"


def names(fences):
    return "+".join(fences)


def require(fences):
    """Skips where this machine does not have these fences, with the reason."""
    try:
        with Jail(fences) as jail:
            why = jail.why_not()
    except Unconfined as error:
        why = str(error)
    if why:
        pytest.skip(f"{names(fences)}: {why}")


def any_jail():
    try:
        return Jail()
    except Unconfined as error:
        pytest.skip(str(error))


def job(body, tests=CANDIDATE, **more):
    return Job("", ADD + body, "f", "", tests, "continuation", **{"wall_s": 20.0} | more)


def test_the_self_test_passes_here():
    with any_jail() as jail:
        assert selftest.failures(jail) == []


@pytest.mark.slow
def test_jail_has_five_verdicts():
    """With all fences of this machine; two interpreters start for each line."""
    with any_jail() as jail, ThreadPoolExecutor(4) as pool:
        jobs = {
            "correct": job("return x + 1"),
            "wrong": job("return x + 2"),
            "no_answer": Job("Sorry.", "", "f", "", CANDIDATE, "answer", 20.0),
            "timeout": job("while True: pass", wall_s=0.3),
            "error": job("import os; os._exit(0)"),
        }
        found = dict(zip(jobs, pool.map(jail.run, jobs.values()), strict=True))
        assert {verdict: one.verdict for verdict, one in found.items()} == {v: v for v in jobs}
        assert found["correct"].program == ADD + "return x + 1\n"
        assert found["wrong"].reason == "AssertionError"
    assert not os.path.exists(jail._base)


# ---- hostile programs


def test_there_are_enough_hostile_programs_and_they_would_do_harm():
    """Without a fence: those that can be tried."""
    assert len(hostile.ESCAPES) + len(hostile.ENDLESS) + len(hostile.CHEATS) >= 96
    assert len(hostile.HARMLESS) >= 30 and hostile.ESCAPES.keys() >= hostile.HARMLESS


@pytest.mark.slow
def test_jail_control_without_fences_the_same_programs_get_out():
    with campaign.Surroundings() as around:
        assert campaign.control(hostile, around.env) == []


@pytest.fixture
def own(tmp_path):
    """The jail under a path of this test, so that its processes are known from those of others."""
    folder = tmp_path / "jail"
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


# With all fences every program is tried; with each by itself and as another user every fifth, another
# fifth each time. What campaign.py tries without a part is all of them.
FIFTHS = [(0, SETS[0]), (1, SETS[1]), (2, SETS[0]), (3, SETS[1]), (4, SETS[2])]


def fifth_of(case):
    return f"{case[0]}::5-{names(case[1])}"


@pytest.mark.slow
def test_jail_contains_hostile_programs(own):
    require(SETS[-1])
    bad, verdicts = campaign.run(supervisor, hostile, SETS[-1], own)
    assert bad == []
    assert len(verdicts) >= 96 and "correct" not in verdicts.values()


@pytest.mark.slow
@pytest.mark.parametrize("case", FIFTHS[:2], ids=fifth_of)
def test_jail_of_one_fence_contains_hostile_programs(case, own):
    start, fences = case
    require(fences)
    bad, verdicts = campaign.run(supervisor, hostile, fences, own, part=slice(start, None, 5))
    assert bad == []
    assert len(verdicts) >= 96 / 5 and "correct" not in verdicts.values()


@pytest.fixture(scope="module")
def copy():
    """The jail and the campaign where any user may read them."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jail-copy-"))
    folder.chmod(0o755)
    shutil.copytree(HERE, folder / "jail", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("campaign.py", "hostile.py"):
        shutil.copy(pathlib.Path(__file__).with_name(name), folder)
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("case", FIFTHS[2:], ids=fifth_of)
def test_jail_contains_hostile_programs_of_a_user_without_rights(case, copy):
    start, fences = case
    require(fences)
    # Under a name of its own, as in `own`.
    folder = copy / names(fences) / "jail"
    shutil.copytree(copy / "jail", folder)
    done = as_nobody([copy / "campaign.py", folder, *fences, f"{start}::5"])
    found = json.loads(done.stdout)
    assert found["user"] == 65534 and found["ran"] >= 96 / 5
    assert found["bad"] == [] and found["verdicts"]["correct"] == 0


def as_nobody(arguments):
    """A script run by the system's interpreter, as a user without any right."""
    python = "/usr/bin/python3"
    if os.getuid() != 0 or not shutil.which("setpriv") or not os.path.exists(python):
        pytest.skip("needs root, setpriv and a system's Python, to become another user")
    code = "import sys; sys.exit(sys.version_info < (3, 11))"
    if subprocess.run([python, "-c", code]).returncode:
        pytest.skip(f"{python} is older than 3.11")
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command = [*user, python, "-B", *map(str, arguments)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


# ---- a fence taken away


TAKEN = {
    "seccomp": ("filter_calls()\n", ("fork", "thread", "chmod_canary", "execute")),
    "limits": ("limit(cpu_s, memory_bytes)\n", ("probe of memory: correct, not timeout",)),
    "Landlock": ("confine_files(readable, listable)\n", ("read_canary", "write_canary")),
    "capabilities": ("drop_capabilities()\n", ("become_another",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("taken", TAKEN)
def test_jail_without_a_fence_is_refused_by_the_self_test(taken, copy, tmp_path):
    if taken == "capabilities" and os.getuid() != 0:
        pytest.skip("only root has any")
    require((LANDLOCK,))
    line, expected = TAKEN[taken]
    folder = tmp_path / "jail"
    shutil.copytree(copy / "jail", folder)
    file = folder / "fences.py"
    assert file.read_text().count(f"    {line}") == 1
    file.write_text(file.read_text().replace(f"    {line}", "    pass\n"))
    with Jail((LANDLOCK,), folder=folder) as jail:
        found = "\n".join(selftest.failures(jail))
    for word in expected:
        assert word in found


def test_jail_needs_a_fence_around_files():
    """There is no way to ask for none."""
    with pytest.raises(Unconfined, match="no fence around files"):
        Jail(())


def test_other_systems_and_processors_are_refused(monkeypatch):
    monkeypatch.setattr(supervisor.platform, "machine", lambda: "riscv64")
    with pytest.raises(Unconfined, match="riscv64: system calls are known of x86_64 and aarch64"):
        Jail()
    monkeypatch.setattr(supervisor.sys, "platform", "darwin")
    with pytest.raises(Unconfined, match="has no such fences"):
        Jail()


# ---- the judge


# Body of f(x), tests, verdict, what the reason says.
JUDGED = {
    "an assert that is false": (
        "return x",
        "assert f(1) == 2, 'why'",
        "wrong",
        "AssertionError: why",
    ),
    "an error": ("return y", CANDIDATE, "wrong", "NameError: name 'y' is not defined"),
    "an error that is expected": (
        "raise KeyError(x)",
        "try:\n    f(1)\nexcept KeyError:\n    pass\nelse:\n    raise AssertionError",
        "correct",
        "",
    ),
    "tests that catch all": (
        "import os; os._exit(0)",
        "try:\n    f(1)\nexcept BaseException:\n    pass",
        "error",
        "ended",
    ),
    "tests that call nothing": ("return 2", "pass", "error", "call no function"),
    "a check that is not called for": (
        "return 3",
        "def check(c):\n    assert c(1) == 2",
        "wrong",
        "",
    ),
    "memory": ("return bytearray(3 * 2**30)", CANDIDATE, "timeout", "memory"),
    "sets": ("return {x, x + 1}", "assert f(1) == {1, 2}", "correct", ""),
    "iterators": ("return (i for i in range(x))", "assert list(f(3)) == [0, 1, 2]", "correct", ""),
    "tuples are no lists": ("return [x]", "assert f(1) == (1,)", "wrong", ""),
    "keywords and large numbers": ("return x ** 5000", "assert f(x=7) == 7 ** 5000", "correct", ""),
    "an address in a reason": ("raise ValueError(object())", CANDIDATE, "wrong", "at 0x…>"),
    "print": ("print(x); return x + 1", CANDIDATE, "correct", ""),
    "the helper of a setup": ("return x", "assert helper(f(1)) == 2", "correct", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", JUDGED)
def test_jail_judges(case):
    body, tests, verdict, reason = JUDGED[case]
    one = Job(
        "", ADD + body, "f", "def helper(x):\n    return x + 1\n", tests, "continuation", 20.0
    )
    with any_jail() as jail:
        outcome = jail.run(one)
    assert (outcome.verdict, reason in outcome.reason) == (verdict, True), outcome


@pytest.mark.slow
def test_jail_gives_a_program_the_same_world_each_time():
    """Order of sets, and random numbers."""
    body = "import random; return repr([random.random(), set('abcdefgh'), hash('a')])"
    with any_jail() as jail:
        reasons = {jail.run(job(body, "raise ValueError(f(1))")).reason for _ in range(2)}
    assert len(reasons) == 1 and "ValueError: [" in reasons.pop()


@pytest.mark.slow
def test_jail_has_numpy_where_it_is_asked_for():
    import numpy

    packages = os.path.realpath(pathlib.Path(numpy.__file__).parents[1])
    tests = "import numpy as np\nassert np.allclose(f(1), [1.0, 2.0])"
    body = "import numpy as np; return [np.float64(x), np.int64(2)]"
    with Jail(any_jail().fences, packages=packages) as jail:
        outcome = jail.run(job(body, tests, imports_numpy=True))
    assert outcome.verdict == "correct", outcome


@pytest.mark.slow
@pytest.mark.parametrize("fences", SETS, ids=names)
def test_jail_leaves_nothing_when_its_supervisor_is_killed(fences, own, tmp_path):
    """Not even a program that wants to outlive it."""
    require(fences)
    body = "import ctypes, time; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0); time.sleep(10**6)"
    code = (
        "import pathlib\nfrom dft_jax.evals.jail.supervisor import *\n"
        f"with Jail({fences!r}, folder=pathlib.Path({str(own)!r})) as jail:\n"
        f"    jail.run(Job('', {ADD + body!r}, 'f', '', 'f(1)', 'continuation', 600.0))\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    wait_for(lambda: len(campaign.processes(own)) >= 2)
    # By now they are locked, and the program sleeps.
    time.sleep(3.0)
    assert len(campaign.processes(own)) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not campaign.processes(own))


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- real problems


@pytest.fixture(scope="module")
def humaneval(request):
    return [
        json.loads(line)
        for line in open(request.getfixturevalue("shared") / "data/humaneval.jsonl")
    ]


def continuation(row, body):
    return Job(
        body, row["prompt"], row["entry_point"], row["prompt"], row["test"], "continuation", 30.0
    )


def answer(row, text):
    prompt = row["prompt"].strip()
    return Job(text, prompt, row["entry_point"], row["prompt"], row["test"], "answer", 30.0)


def verdicts(fences, jobs):
    with Jail(fences) as jail, ThreadPoolExecutor(2) as pool:
        return [outcome.verdict for outcome in pool.map(jail.run, jobs)]


@pytest.mark.slow
@pytest.mark.parametrize("fences", SETS, ids=names)
def test_jail_passes_right_programs_and_fails_empty_ones(fences, humaneval):
    """All with all fences; each by itself, with every fourth."""
    require(fences)
    rows = humaneval if fences == SETS[-1] else humaneval[::4]
    right = verdicts(fences, [continuation(row, row["canonical_solution"]) for row in rows])
    empty = verdicts(fences, [continuation(row, "    pass\n") for row in rows])
    assert (right.count("correct"), empty.count("correct")) == (len(rows), 0)
    assert len(humaneval) == 164


def indented(text, by):
    return "\n".join(by + line for line in text.split("\n"))


# How a model may write a right answer: of the whole function and of its body.
ANSWERS = {
    "a block": lambda whole, body: (
        f"Here:\n```python\n{whole}\n```\nIt works.\n```bash\npython x.py\n```"
    ),
    "not closed": lambda whole, body: f"```bash\npip\n```\nSure:\n\n```python\n{whole}",
    "no language": lambda whole, body: f"```\n{whole}\n```",
    "bare, in prose": lambda whole, body: (
        f"The function is as follows.\n\n{whole}\n\nThat is all there is."
    ),
    "its body": lambda whole, body: body,
    "a block in a list": lambda whole, body: (
        f"1. write\n   ```py\n{indented(whole, '   ')}\n   ```\n2. done"
    ),
    "with self-tests": lambda whole, body: (
        f"```python\n{whole}\n\nassert False\nprint(1)\nif __name__ == '__main__':\n    1 / 0\n```"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", ANSWERS)
def test_jail_finds_the_program_in_an_answer(form, humaneval):
    """The function itself in all answers; every tenth is judged too."""
    jobs = []
    for number, row in enumerate(humaneval):
        whole = row["prompt"] + row["canonical_solution"]
        text = ANSWERS[form](whole, row["canonical_solution"])
        name = row["entry_point"]
        # These answers are right, and known: what is found of them needs no jail.
        found = extraction.code_of(text, row["prompt"].strip(), name, extraction.ANSWER)
        assert functions(found)[name] == functions(whole)[name], row["task_id"]
        if number % 10 == 0:
            jobs.append(answer(row, text))
    assert set(verdicts(any_jail().fences, jobs)) == {"correct"}


def functions(program):
    """Of each function at the margin its tree, as text."""
    nodes = ast.parse(program).body
    return {node.name: ast.dump(node) for node in nodes if isinstance(node, ast.FunctionDef)}


@pytest.mark.slow
def test_jail_fails_solutions_that_were_changed(humaneval):
    """Another result of the same kind, for twenty of them."""
    jobs = []
    for row in humaneval[:20]:
        name = row["entry_point"]
        whole = row["prompt"] + row["canonical_solution"]
        changed = (
            f"{whole}\n_right = {name}\ndef _other(value):\n"
            "    if isinstance(value, bool):\n        return not value\n"
            "    if isinstance(value, (int, float)):\n        return value + 1\n"
            "    if isinstance(value, (list, str, tuple)):\n        return value + value[:1] or [1]\n"
            "    return 0 if value is None else None\n"
            f"def {name}(*args):\n    return _other(_right(*args))\n"
        )
        jobs.append(Job("", changed, name, row["prompt"], row["test"], "continuation", 30.0))
    assert "correct" not in verdicts(any_jail().fences, jobs)
