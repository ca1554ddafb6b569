"""The check of annotations at run time (tests/typecheck.py) does refuse a wrong call."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CHECKER = "tests.typecheck.checked"

# As pytest's option does it.
CALLS = f"""
import sys
from jaxtyping import install_import_hook
from tests import typecheck
install_import_hook("dft_jax", "{CHECKER}")

import numpy as np
from dft_jax.evals import scores
verdicts_PS = np.ones((3, 2))
if sys.argv[1] == "right":
    assert scores.pass_at_k(verdicts_PS, 1).shape == (3,)
elif sys.argv[1] == "one axis for two":
    scores.pass_at_k(verdicts_PS[0], 1)
else:
    scores.pass_at_k(verdicts_PS, "1")
"""


@pytest.mark.parametrize(
    "call, named",
    [
        ("right", None),
        ("one axis for two", "parameter 'correct_PS'"),
        pytest.param("text for a number", "parameter 'k'", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_call_is_refused(call, named):
    done = subprocess.run(
        [sys.executable, "-c", CALLS, call], cwd=ROOT, capture_output=True, text=True
    )
    if named is None:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1
        assert "jaxtyping.TypeCheckError: Type-check error whilst checking the" in done.stderr
        assert named in done.stderr


def test_ci_has_the_check_on():
    last = [line for line in (ROOT / ".ci/run").read_text().splitlines() if "-m pytest" in line][-1]
    assert last.endswith(f" --jaxtyping-packages=dft_jax,{CHECKER}")
