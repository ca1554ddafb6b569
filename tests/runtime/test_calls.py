"""Settings that are written as a call."""

import pytest

from dft_jax.runtime import calls, errors


@pytest.mark.parametrize(
    "text, name, arguments",
    [
        ("dft", "dft", {}),
        ("dft()", "dft", {}),
        (" power( alpha = 0.5 ) ", "power", {"alpha": "0.5"}),
        ("world(split=train, n=100,)", "world", {"split": "train", "n": "100"}),
        ("mixed(alpha=)", "mixed", {"alpha": ""}),
        ("mixed(alpha)", "mixed", {"alpha": ""}),
    ],
)
def test_a_call_is_taken_apart(text, name, arguments):
    assert calls.parse(text) == calls.Call(name, arguments)


@pytest.mark.parametrize("text", ["", "dft(", "dft)", "data/train.jsonl", "world(1).jsonl", "a b"])
def test_other_text_is_no_call(text):
    assert calls.parse(text) is None


def test_unknown_arguments_are_refused_with_the_known_ones():
    call = calls.parse("power(alfa=1)")
    call.require_known("objective", ["alfa"])
    with pytest.raises(errors.UserError) as caught:
        call.require_known("objective='power(alfa=1)'", ["alpha"])
    assert caught.value.problems == [
        "objective='power(alfa=1)': power has no parameter 'alfa' (did you mean 'alpha'?);"
        " known: alpha"
    ]
    with pytest.raises(errors.UserError, match="known: none"):
        call.require_known("objective", [])
