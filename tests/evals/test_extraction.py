r"""Where the answer of a completion is found, and where there is none."""

import time

import pytest

from dft_jax.evals import extraction, paper_rules

FOUND = [
    (r"so \boxed{5}.", "5"),
    (r"first \boxed{4}, then \boxed{5}", "5"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed {5}", "5"),
    (r"\boxed 5 is it", "5"),
    (r"\fbox{7}", "7"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{x = \fbox{5}}", "x = {5}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    (r"\boxed{$5$}", "5"),
    (r"stray } and { \boxed{8}", "8"),
    (r"\boxed{unclosed, but \boxed{5} closes", "5"),
    (r"\boxed{5} The final answer is $6$.", "5"),
    (r"The final answer is $\frac{3}{4}$. I hope it is correct.", r"\frac{3}{4}"),
    ("The final answer is: 42.", "42"),
    ("the Final Answer is **42**", "42"),
    (r"The final answer is \(x+1\) because", "x+1"),
    ("The final answer is $5$ and $6$.", "$5$ and $6$"),
    ("The final answer is 3. No, the final answer is 4", "4"),
    ("3 + 4 = 7\n#### 7", "7"),
    ("#### 1,234", "1,234"),
    ("#### $5\nmore", "$5"),
]
NOTHING = [
    "",
    "It is 5, I think.",
    r"\boxed{5",
    r"\boxed{3} and then \boxed{4",
    r"\boxed{}",
    "#### Step 3: add",
    r"\boxed",
]


@pytest.mark.parametrize(("completion", "answer"), FOUND)
def test_the_answer_is_found(completion, answer):
    assert extraction.extract(completion) == answer


@pytest.mark.parametrize("completion", NOTHING)
def test_no_answer_is_made_up(completion):
    assert extraction.extract(completion) is None


def test_the_last_number_only_on_request():
    text = "We add 1,200 and 34.5 to get 1,234.5 in all."
    assert extraction.extract(text) is None
    assert extraction.extract(text, last_number=True) == "1234.5"
    assert extraction.extract("nothing", last_number=True) is None
    assert extraction.extract(r"12 \boxed{3", last_number=True) is None  # cut inside its answer


@pytest.mark.parametrize(
    "text",
    ["\\boxed{" * 500_000, "{" * 3_000_000, "}" * 3_000_000, "final answer is " * 200_000, "#### " * 600_000]
    + ["\\boxed{" + "1" * 3_000_000 + "}", "1," * 1_500_000, "$" * 3_000_000, "-" * 3_000_000, " " * 3_000_000]
    + ["\\boxed{" * 20_000 + "}" * 20_000, "\\boxed " * 400_000, "\\boxed{" + "(" * 50 + ")" * 50 + "}"],
    ids=lambda text: f"{text[:8]!r}",
)
def test_megabytes_take_no_time(text):
    start = time.monotonic()
    for last_number in (False, True):
        answer = extraction.extract(text, last_number=last_number)
        assert answer is None or len(answer) <= extraction.ANSWER_CHARS
    paper_rules.extract(text)
    assert time.monotonic() - start < 5


def test_an_answer_at_the_end_of_megabytes_is_found():
    assert extraction.extract("blah { " * 1_000_000 + r"\boxed{5}") == "5"


def test_the_paper_takes_more_for_an_answer():
    assert paper_rules.extract("I add 3 and 4 and get 7 apples") == "7"
    assert paper_rules.extract(r"\boxed{12") == "12"
    assert paper_rules.extract("So the answer is 8.") == "8"
    assert paper_rules.extract("no digits at all") is None


@pytest.mark.parametrize(
    "texts, expected",
    [(("21", "-3"), True), (("0", "0"), True), (("007", "7"), False), (("-0", "0"), False), (("1,000", "1000"), False)],
)
def test_whole_numbers_are_those_written_in_one_way(texts, expected):
    assert extraction.are_whole_numbers(texts) is expected
