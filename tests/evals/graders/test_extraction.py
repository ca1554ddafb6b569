r"""Where the answer of a completion is found, and where there is none."""

import time

import pytest

from dft_jax.evals.graders import extraction, paper

FOUND = [
    (r"so \boxed{5}.", "5"),
    (r"first \boxed{4}, then \boxed{5}", "5"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed {5}", "5"),
    (r"\boxed 5 is it", "5"),
    (r"\boxed 4 at first, then \boxed 5 is it", "5"),
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
    (r"\boxed{5} and more \boxed{}", "5"),
    (r"\boxed{5} Let me check: \boxed{6", "5"),
    (r"\boxed{3} and \boxed{5}", "3, 5"),
    (r"$x=\boxed{3}$ or $x=\boxed{5}$", "3, 5"),
    (r"\boxed{3}, \boxed{4}, and \boxed{5}", "3, 4, 5"),
    (r"\boxed{3}, so \boxed{5}", "5"),
    (r"\boxed{5} and \boxed{5}", "5"),
    (r"The final answer is $\$42$.", r"\$42"),
    ("The final answer is `42`.", "42"),
    ("The final answer is $42, which is even", "$42"),
    ("Final Answer: 42", "42"),
    ("**Final Answer:** 42", "42"),
    ("**Answer**: $42$", "42"),
    ("Answer:\n\n42", "42"),
    ("Answer: 41\nAnswer: 42</s>", "42"),
    ("#### 42<|im_end|>", "42"),
    ("#### **42**", "42"),
    ("#### x = 42", "x = 42"),
    ("#### 42 (since 40 + 2)", "42"),
    ("#### The answer is 42", "42"),
    ("#### 42.", "42"),
    ("#### 42 apples", "42 apples"),
    ("#### 7\n#### Notes", "7"),
]
NOTHING = [
    "",
    "It is 5, I think.",
    r"\boxed{5",
    r"\boxed{} \fbox{ }",
    "#### 2) Second step",
    "#### 1. First\n#### 2. Second",
    "#### 3 Third",
    "The answer is 42",
    "This answers: 42",
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


@pytest.mark.parametrize(
    ("text", "whole", "cut"),
    [
        (r"\boxed{3} and then \boxed{4", "3", None),
        # opened too long ago to be the answer
        (r"\boxed{3} and then \boxed{4" + " 0" * 200, "3", "3"),
        (r"\boxed{3} and then", "3", "3"),
        (r"\boxed{4", None, None),
    ],
)
def test_a_truncated_text_was_cut_inside_the_box_it_ends_in(text, whole, cut):
    assert extraction.extract(text) == whole
    assert extraction.extract(text, truncated=True) == cut


@pytest.mark.parametrize(
    ("marker", "text"),
    [
        ("box", r"\boxed{42}"),
        ("final", "The final answer is 42."),
        ("hashes", "#### 42"),
        ("colon", "Answer: 42"),
        ("is", "So the answer is 42."),
    ],
)
def test_what_marks_an_answer_is_an_option(marker, text):
    others = [each for each in extraction.MARKERS if each != marker]
    assert extraction.extract(text, markers=(marker,)) == "42"
    if marker != "final":  # "the answer is" is part of it
        assert extraction.extract(text, markers=others) is None
    assert (extraction.extract(text) == "42") == (marker in extraction.DEFAULT_MARKERS)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("range 3-5", "5"),
        ("2024-01-05", "05"),
        ("it is -5", "-5"),
        ("x-7", "7"),
        ("= -0.5", "-0.5"),
    ],
)
def test_a_hyphen_after_a_digit_is_no_sign(text, number):
    assert extraction.find_last_number(text) == number
    assert paper.extract("3-5") == "-5"  # as the original reads it


def test_the_last_number_only_on_request():
    text = "We add 1,200 and 34.5 to get 1,234.5 in all."
    assert extraction.extract(text) is None
    assert extraction.extract(text, last_number=True) == "1234.5"
    assert extraction.extract("nothing", last_number=True) is None
    assert extraction.extract(r"12 \boxed{3", last_number=True) is None  # cut inside its answer


@pytest.mark.parametrize(
    "text",
    [
        *[
            "\\boxed{" * 500_000,
            "\\boxed{1} and " * 200_000,
            "\\boxed{}" * 300_000,
            "{" * 3_000_000,
        ],
        *["}" * 3_000_000, "final answer is " * 200_000, "#### " * 600_000, "Answer: " * 300_000],
        *["\\boxed{" + "1" * 3_000_000 + "}", "1," * 1_500_000, "$" * 3_000_000, "-" * 3_000_000],
        *[
            " " * 3_000_000,
            ">" * 3_000_000,
            "\n" * 3_000_000 + "****" * 100_000,
            "answer is " * 200_000,
        ],
        *["\nAnswer: " * 200_000, "\\boxed " * 400_000, "\\boxed{" + "(" * 50 + ")" * 50 + "}"],
        "\\boxed{" * 20_000 + "}" * 20_000,
    ],
    ids=lambda text: f"{text[:8]!r}",
)
def test_megabytes_take_no_time(text):
    start = time.monotonic()
    for last_number in (False, True):
        answer = extraction.extract(
            text, last_number=last_number, markers=extraction.MARKERS, truncated=True
        )
        assert answer is None or len(answer) <= extraction.ANSWER_CHARS
    paper.extract(text)
    assert time.monotonic() - start < 5


def test_an_answer_at_the_end_of_megabytes_is_found():
    assert extraction.extract("blah { " * 1_000_000 + r"\boxed{5}") == "5"


def test_the_paper_takes_more_for_an_answer():
    assert paper.extract("I add 3 and 4 and get 7 apples") == "7"
    assert paper.extract(r"\boxed{12") == "12"
    assert paper.extract("So the answer is 8.") == "8"
    assert paper.extract("no digits at all") is None


@pytest.mark.parametrize(
    "texts, expected",
    [
        (("21", "-3"), True),
        (("0", "0"), True),
        (("007", "7"), False),
        (("-0", "0"), False),
        (("1,000", "1000"), False),
    ],
)
def test_whole_numbers_are_those_written_in_one_way(texts, expected):
    assert extraction.are_whole_numbers(texts) is expected
