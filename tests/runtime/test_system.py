"""What Linux alone has is not needed: tests/macos makes this machine lack what macOS lacks."""

import os
import pathlib
import resource
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import jax
import pytest

from dft_jax.runtime import compilation_cache, sandbox, system

ROOT = pathlib.Path(__file__).parents[2]
STAND_IN = ROOT / "tests/macos"
NOTE = "note: macOS does not limit the memory of the processes that grade and that render templates"


def refuse(what, limits):
    raise ValueError("current limit exceeds maximum limit")


def no_file(*_, **__):
    raise FileNotFoundError


@pytest.fixture
def macos(monkeypatch):
    """This process as on macOS: no /proc, and `getrusage` gives 3 GiB, in bytes."""
    monkeypatch.setattr(system, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(system.Path, "read_text", no_file)
    usage = SimpleNamespace(ru_maxrss=3 * 2**30)
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(resource, "setrlimit", refuse)
    return usage


def test_peak_memory_is_one_number_in_one_unit(macos, monkeypatch):
    """macOS counts bytes, others without /proc count KiB; who asks gets KiB, or GiB of them."""
    assert system.peak_kib() == 3 * 2**20 and system.peak_gib() == 3
    monkeypatch.setattr(system.sys, "platform", "freebsd")
    macos.ru_maxrss = 3 * 2**20
    assert system.peak_kib() == 3 * 2**20 and system.peak_gib() == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_an_ended_process_is_nobody_elses():
    """Neither before somebody has waited for it, nor afterwards: never this process's own."""
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(OSError, match="VmHWM"):
        system.status_kib("VmHWM", ended.pid)
    ended.wait()
    with pytest.raises(OSError):
        system.status_kib("VmHWM", ended.pid)
    assert system.status_kib("VmHWM") > 1000


def test_a_limit_that_the_system_lacks_is_left_out(macos):
    assert not system.limit_memory(2**30) and not system.limit_processor_s(1)
    system.forbid_core_dumps()
    assert system.mapped_kib() == 0 and system.name() == "macOS"


UNDER_A_HARD_LIMIT = """
import resource
from dft_jax.runtime import system
for what in (resource.RLIMIT_CPU, resource.RLIMIT_AS):
    resource.setrlimit(what, (2**33, 2**33))
assert all(system.limit_processor_s(seconds) for seconds in (2**34, 500, 600))
assert resource.getrlimit(resource.RLIMIT_CPU) == (600, 2**33)
assert system.limit_memory(2**34)
assert resource.getrlimit(resource.RLIMIT_AS) == (2**33, 2**33)
"""


def run(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def test_limits_stay_below_those_of_a_login_node():
    """`ulimit -t` and `ulimit -v` set hard limits, beyond which setrlimit raises."""
    done = run(UNDER_A_HARD_LIMIT)
    assert done.returncode == 0, done.stderr


def test_windows_ends_in_one_line():
    done = run("import sys; sys.platform = 'win32'; import dft_jax.runtime.errors")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "not on Windows itself; use WSL 2" in done.stderr


def test_workers_without_limits_of_memory_work_and_it_is_said_once(monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(STAND_IN))  # workers get it from here
    monkeypatch.setattr(system, "sys", SimpleNamespace(platform="darwin"))
    sandbox._note_missing.cache_clear()
    for _ in range(2):
        worker = sandbox.Worker("tests.runtime.test_sandbox:serve", 20.0, 200)
        assert worker.ask(["echo", 5]) == 5
        assert worker.ask(["fill", 300 * 2**20]) == 300 * 2**20
        worker.kill()
    sandbox._note_missing.cache_clear()
    assert capfd.readouterr().err.count(NOTE) == 1


@pytest.fixture
def cache_settings():
    """JAX's settings of the cache, put back afterwards."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in (*names, "jax_enable_compilation_cache")}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_by_backend_jaxlib_and_processor(
    tmp_path, monkeypatch, cache_settings
):
    """A home may be shared by machines whose processors know other instructions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    folders = []
    for flags in ("flags : sse avx", "flags : sse avx amx", "flags : sse avx"):
        monkeypatch.setattr(system, "processor", lambda flags=flags: flags)
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.keep_compilations()
        folders.append(pathlib.Path(jax.config.jax_compilation_cache_dir))
    assert folders[0] == folders[2] != folders[1] and all(folder.is_dir() for folder in folders)
    assert folders[0].parent == tmp_path / "dft_jax/compilations"
    assert folders[0].name.startswith(f"cpu-{metadata.version('jaxlib')}-")
    compilation_cache.keep_compilations()  # what the user has set stays
    assert pathlib.Path(jax.config.jax_compilation_cache_dir) == folders[2]


def test_the_cache_is_kept_below_its_limit(tmp_path, monkeypatch, cache_settings):
    """What was not used for longest goes, also what an older version left beside the folders."""
    caches = tmp_path / "dft_jax/compilations"
    (caches / "cpu-1").mkdir(parents=True)
    for age, name in enumerate(("cpu-1/new", "cpu-1/used", "cpu-1/old", "jit_older_version")):
        (caches / name).write_bytes(bytes(100))
        os.utime(caches / name, (1e9 - age, 1e9 - age))
    os.utime(caches / "cpu-1/old", (1e9 + 1, 1e9 - 2))  # read since
    compilation_cache.prune(caches, 400)
    assert len([file for file in caches.rglob("*") if file.is_file()]) == 4
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(compilation_cache, "CACHE_BYTES", 250)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.keep_compilations()
    assert {file.name for file in caches.rglob("*") if file.is_file()} == {"new", "old"}


def test_a_processor_is_named_by_its_instructions(monkeypatch):
    here = system.processor()
    assert here == system.processor() and len(here) > 5
    info = "processor : 0\nmodel name : X\nflags : sse avx\nbogomips : {}\n"
    info += "processor : 1\nflags : sse avx\n"
    texts = [info.format(4000), info.format(4001), info.format(4000).replace("avx", "avx512")]
    named = []
    for text in texts:
        monkeypatch.setattr(system.Path, "read_text", lambda _, text=text: text)
        named.append(system.processor())
    assert named[0] == named[1] != named[2]


GRADES = r"""
from dft_jax.evals.graders.pool import Grader
items = [(rf"\boxed{{(x+y+z)^{{{n}}}+x^{{{n}}}}}", "1") for n in range(10, 22)]
items += [(r"\boxed{1+1}", "2"), (r"\boxed{10^{10^{10}}}", "1")]
processes, verdicts = set(), []
with Grader(workers=1, wall_s=5, memory_gb=0.5) as grader:
    for item in items:
        [graded] = grader.grade([item], progress=False)
        verdicts.append(graded.verdict)
        processes |= {worker.process.pid for worker in grader.workers}
print(verdicts.count("wrong"), *verdicts[-2:], len(processes))
"""


@pytest.mark.slow
def test_grading_on_macos():
    """Wrong answers stay wrong; where bytes were taken for KiB, what grew the worker was late."""
    done = run(GRADES, PYTHONPATH=f"{STAND_IN}{os.pathsep}{ROOT}")
    assert done.stdout.split() == ["12", "correct", "timeout", "1"], done.stdout + done.stderr
    assert done.stderr.count(NOTE) == 1


@pytest.mark.slow
def test_a_run_with_a_chat_template_and_an_evaluation_on_macos(tmp_path):
    environment = {"PYTHONPATH": f"{STAND_IN}{os.pathsep}{ROOT}", "XLA_FLAGS": ""}
    train = [
        "main",
        "--config=configs/tiny.py",
        f"--workdir={tmp_path}/run",
        "--config.train.steps=2",
    ]
    settings = ["--max_problems=2", "--samples=1", "--temperature=1.0", "--max_new_tokens=8"]
    sample = [
        "evaluate",
        f"--model={tmp_path}/run",
        "--benchmarks=lab",
        *settings,
        f"--out={tmp_path}/eval",
    ]
    for module, *arguments in (train, sample):
        command = [sys.executable, "-m", f"dft_jax.{module}", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count(NOTE) == 1, done.stderr[-3000:]
    assert (tmp_path / "run/export/model.safetensors").exists() and (
        tmp_path / "eval/scores.json"
    ).exists()
