"""How tests are run against a function, in this process: only what is right is called here."""

import pytest

from dft_jax.evals.jail import judging

HUMANEVAL = "def check(candidate):\n    assert candidate(7) == 8\n"


@pytest.mark.parametrize("name", ["f", "check"])
@pytest.mark.parametrize("tests", [HUMANEVAL, "assert {name}(7) == 8"], ids=["check", "asserts"])
def test_tests_are_a_function_or_asserts_whatever_the_name(name, tests):
    """MBPP 56 asks for a function `check`, which is not to be called with itself."""
    asked = []

    def call(n):
        asked.append(n)
        return n + 1

    job = {"setup": "", "entry_point": name, "tests": tests.format(name=name)}
    judging.run(job, call)
    assert asked == [7]
    with pytest.raises(AssertionError):
        judging.run(job, lambda n: n)
