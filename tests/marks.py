"""Of many cases that are alike, some run with the fast tests and the rest with the slow ones."""

import pytest


def slow_but(fast, cases):
    """`cases` as parameters of a test, all but those in `fast` marked slow.

    A case is a value, or a tuple of values where the test has several parameters.
    """
    missing = [case for case in fast if case not in cases]
    assert not missing, f"no such case: {missing}"
    parameters = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        marks = () if case in fast else pytest.mark.slow
        parameters.append(pytest.param(*values, marks=marks))
    return parameters
