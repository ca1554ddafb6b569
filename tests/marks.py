"""Of many cases that are alike, some run with the fast tests, some with the slow ones, and some only
before a release (`-m more`).
"""

import pytest


def slow_but(fast, cases, slow=None):
    """`cases` as parameters of a test: those in `fast` run always, those in `slow` (None: all others)
    with the slow tests, and what is left is marked `more`.

    A case is a value, or a tuple of values where the test has several parameters.
    """
    missing = [case for case in [*fast, *(slow or [])] if case not in cases]
    assert not missing, f"no such case: {missing}"
    parameters = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        marks = ()
        if case not in fast:
            marks = pytest.mark.slow if slow is None or case in slow else pytest.mark.more
        parameters.append(pytest.param(*values, marks=marks))
    return parameters
