"""Strict settings for every test: eight simulated devices, warnings as errors (pyproject), no
silent rank promotion.
"""

import os
import signal
import subprocess
import sys
import threading

from tests import xla

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    and threading.current_thread() is threading.main_thread()
):
    # a shell's background job ignores it, and so would ours
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["XLA_FLAGS"] = xla.flags(8, os.environ.get("XLA_FLAGS", ""))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
# Bytecode is kept, also where the environment says otherwise (images of containers do): without it
# every worker compiles 7 s of tests, and every command that they start 0.6 s of the package.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Equal programs are compiled once, in this process and in the commands that tests start.
CACHE = os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "compilations")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import math
import pathlib
import re

import jax
import pytest
from jax.sharding import AxisType

from tests import private_jax, typecheck  # noqa: F401 — --jaxtyping-packages finds typecheck here

jax.config.update("jax_numpy_rank_promotion", "raise")

private_jax.keep_programs_of_several_devices_in_memory()

GOLDEN = pathlib.Path(__file__).parent / "golden"


def make_mesh(data=1, fsdp=1, tensor=1, sequence=1, expert=1):
    sizes = (data, fsdp, tensor, sequence, expert)
    axes = ("data", "fsdp", "tensor", "sequence", "expert")
    devices = jax.devices()[: math.prod(sizes)]
    return jax.make_mesh(sizes, axes, (AxisType.Auto,) * 5, devices=devices)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """A worker compiles thousands, of which the next module needs few."""
    yield
    private_jax.forget_programs()


@pytest.fixture(scope="session")
def mesh1():
    return make_mesh()


@pytest.fixture(scope="session")
def mesh8():
    return make_mesh(2, 2, 2)


@pytest.fixture(scope="session")
def shared():
    """The folder of real data beside a developer's checkout; tests that need it are skipped
    elsewhere.
    """
    folder = pathlib.Path(__file__).parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the folder of real problems and tokenizers is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def real_models():
    """The folder that DFT_JAX_REAL_MODELS names, with a folder for each pretrained checkpoint;
    without it, skipped.
    """
    folder = os.environ.get("DFT_JAX_REAL_MODELS")
    if not folder:
        pytest.skip("DFT_JAX_REAL_MODELS names no folder of pretrained checkpoints")
    assert pathlib.Path(folder).is_dir(), f"DFT_JAX_REAL_MODELS={folder} is not a folder"
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """An uninterrupted run of tests/faults, by the real command as a user starts it."""
    from tests.faults import launch

    workdir = tmp_path_factory.mktemp("whole") / "run"
    command = [
        sys.executable,
        "-m",
        "dft_jax.main",
        "--config=configs/tiny.py",
        *launch.ARGUMENTS[1:],
    ]
    environment = os.environ | {"XLA_FLAGS": xla.flags(1)}
    options = dict(cwd=launch.ROOT, env=environment, capture_output=True, text=True, timeout=300)
    done = subprocess.run([*command, f"--workdir={workdir}"], **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


@pytest.fixture(scope="session")
def bucket_server():
    """A store that this process takes for Cloud Storage; tests use `bucket`."""
    from tests import fake_bucket

    with fake_bucket.Server() as server:
        os.environ.update(server.environment())
        yield server


@pytest.fixture
def bucket(bucket_server, request):
    """The store without faults, and the address of a folder in it for this test alone."""
    from tests import fake_bucket

    bucket_server.faults, bucket_server.trap = fake_bucket.Faults(), None
    name = re.sub(r"\W", "_", request.node.name)
    yield bucket_server, f"gs://my-bucket/{name}"
    bucket_server.faults, bucket_server.trap = fake_bucket.Faults(), None


@pytest.fixture
def refused(tmp_path, capfd, monkeypatch):
    """refused(overrides, expected): the tiny config with these overrides does nothing but say what
    is wrong.
    """
    from dft_jax import main
    from tests.commands import TINY, check_refused

    def check(overrides, expected):
        fixed = [
            TINY,
            f"--workdir={tmp_path}/run",
            "--config.data.heldout=",
            "--config.data.rows=fields",
        ]
        check_refused(main.main, [*fixed, *overrides], expected, tmp_path, capfd, monkeypatch)

    return check
