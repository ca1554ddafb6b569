r"""Answers to problems with images: pairs that were labelled by hand, and VLMEvalKit's rule."""

import random
import re

import pytest

from dft_jax.evals.graders import choices
from dft_jax.evals.graders.choices import Reference
from dft_jax.evals.tasks.task import Option


def options(*texts):
    return tuple(Option(letter, text) for letter, text in zip("ABCDEFGH", texts, strict=False))


ANGLES = options("40°", "60°", "120°", "140°")
LENGTHS = options(r"$6 \mathrm{~m}$", r"$8 \mathrm{~m}$", r"$10 \mathrm{~cm}$", "No correct answer")
LETTERS = options("A", "B", "C", "D", "E")
OTHER_LETTERS = options("A", "B", "D", "F", "G")
PAIRS = options("1 and 3", "1 and 5", "2 and 4", "2 and 4", "It can be A or B.")
SHAPES = options("A circle", "A square", "Right triangle", "Not enough information")
LISTS = options("300, 400", "400, 300", "3000, 4000", "4000, 3000")
UNSEEN = tuple(Option(letter, "") for letter in "ABCDEFGH")
VALUES = options("-5", "5", "1:2", r"\frac{1}{2}x")

# Options, right letter, completion, what is extracted (None: no answer).
CHOSEN = [
    # letters alone
    (ANGLES, "B", r"\boxed{B}", "B"),
    (ANGLES, "B", r"\boxed{(B)}", "B"),
    (ANGLES, "B", r"\boxed{B)}", "B"),
    (ANGLES, "B", r"\boxed{B.}", "B"),
    (ANGLES, "B", r"\boxed{B:}", "B"),
    (ANGLES, "B", r"\boxed{[B]}", "B"),
    (ANGLES, "B", r"\boxed{\text{B}}", "B"),
    (ANGLES, "B", r"\boxed{\text{(B)}}", "B"),
    (ANGLES, "B", r"$$\boxed{\mathrm{B}}$$", "B"),
    (ANGLES, "B", r"\boxed{\textbf{(B)}}", "B"),
    (ANGLES, "B", r"\boxed{\left(B\right)}", "B"),
    (ANGLES, "B", r"\boxed{$B$}", "B"),
    (ANGLES, "B", r"\boxed{\(B\)}", "B"),
    (ANGLES, "B", r"\boxed{ option B }", "B"),
    (ANGLES, "B", r"\boxed{\text{Option (B)}}", "B"),
    (ANGLES, "B", r"\boxed{\text{The correct answer is B}}", "B"),
    (ANGLES, "B", r"\boxed B", "B"),
    # which is none of the options, or none at all
    (ANGLES, "B", r"\boxed{E}", None),
    (ANGLES, "B", r"\boxed{b}", None),
    (ANGLES, "B", r"\boxed{}", None),
    (ANGLES, "B", r"\boxed{ }", None),
    (ANGLES, "B", "", None),
    (ANGLES, "B", "B", None),
    (ANGLES, "B", "I would say (B).", None),
    # behind a marker
    (ANGLES, "B", "The answer is B because the angles add up to 180°.", "B"),
    (ANGLES, "B", "The answer is B, since DE is parallel to BC.", "B"),
    (ANGLES, "B", "The answer is B. It follows from the sum of the angles.", "B"),
    (ANGLES, "B", "the correct answer is: **(B)**", "B"),
    (ANGLES, "B", "So the answer is (B) 60°.", "B"),
    (ANGLES, "B", "Answer: B", "B"),
    (ANGLES, "B", "**Answer:** B", "B"),
    (ANGLES, "B", "**Answer**: B", "B"),
    (ANGLES, "B", "<Thought process>: 180 - 120 <Answer>: B", "B"),
    (ANGLES, "B", "Answer:\n\nB\nThe rest follows.", "B"),
    (ANGLES, "B", "Final answer: option B", "B"),
    (ANGLES, "B", "Answer: A\nNo, I was wrong. The answer is C. Answer: B", "B"),
    (ANGLES, "B", "The answer is C. Let me check. Answer: B. Hm, the answer is D", "D"),
    (ANGLES, "B", "The answer is not C.", None),
    (ANGLES, "B", "The answer isn't clear", None),
    # a box comes before a marker, and the last one before others
    (ANGLES, "B", r"The answer is A. \boxed{B}", "B"),
    (ANGLES, "B", r"\boxed{B}. The answer is A.", "B"),
    (ANGLES, "B", r"First \boxed{A}. Now correctly: \boxed{B}", "B"),
    (ANGLES, "B", r"\boxed{A} or \boxed{B}", None),
    (ANGLES, "B", r"\boxed{\boxed{B}}", "B"),
    (ANGLES, "B", r"The answer is B. \boxed{I do not know}", None),
    # with the text of the option
    (ANGLES, "B", r"\boxed{B: 60^\circ}", "B"),
    (ANGLES, "B", r"\boxed{B:60°}", "B"),
    (ANGLES, "B", r"\boxed{(B)\ 60}", "B"),
    (ANGLES, "B", r"\boxed{\text{B. }60^{\circ}}", "B"),
    (ANGLES, "C", r"\boxed{\textbf{(C)}~120^\circ}", "C"),
    (SHAPES, "A", r"\boxed{\text{A. A circle}}", "A"),
    (SHAPES, "B", r"\boxed{\text{(B) A square}}", "B"),
    (VALUES, "A", r"\boxed{(A) -5}", "A"),
    (VALUES, "A", r"\boxed{(A)-5}", "A"),
    (VALUES, "B", r"\boxed{(A)-7}", None),
    # several
    (ANGLES, "B", r"\boxed{A and B}", None),
    (ANGLES, "B", r"\boxed{A, B}", None),
    (ANGLES, "B", r"\boxed{(B) or (C)}", None),
    (ANGLES, "B", r"\boxed{B. or C}", None),
    (ANGLES, "A", r"\boxed{A. 40° B. 60° C. 120° D. 140°}", None),
    (ANGLES, "A", "The answer is (A) 40° (B) 60° (C) 120° (D) 140°", None),
    (ANGLES, "A", "Answer: A:40°, B:60°, C:120°, D:140°", None),
    # the text alone
    (ANGLES, "B", r"\boxed{60^\circ}", "B"),
    (ANGLES, "B", r"\boxed{60}", "B"),
    (ANGLES, "B", r"\boxed{60 \text{ degrees}}", "B"),
    (ANGLES, "B", r"\boxed{180 - 120}", "B"),
    (ANGLES, "B", r"\boxed{\angle CED = 60^\circ}", "B"),
    (ANGLES, "B", r"\boxed{60^\circ, 120^\circ}", None),
    (ANGLES, "B", r"\boxed{61}", None),
    (ANGLES, "B", "The answer is 120°.", "C"),
    (LENGTHS, "B", r"\boxed{8}", "B"),
    (LENGTHS, "B", r"\boxed{8 \text{ m}}", "B"),
    (LENGTHS, "B", r"\boxed{8\text{ cm}}", None),
    (LENGTHS, "C", r"\boxed{10 \mathrm{cm}}", "C"),
    (LENGTHS, "D", r"\boxed{\text{No correct answer}}", "D"),
    (SHAPES, "C", r"\boxed{\text{right triangle}}", "C"),
    (LISTS, "A", r"\boxed{300, 400}", None),  # two options are this list, in another order
    (LISTS, "A", r"\boxed{\text{A. 300, 400}}", "A"),
    (VALUES, "C", r"\boxed{1:2}", "C"),
    (VALUES, "D", r"\boxed{\frac{x}{2}}", "D"),
    # texts that are letters, or that two options have
    (LETTERS, "C", r"\boxed{C}", "C"),
    (LETTERS, "C", r"\boxed{\text{(C) C}}", "C"),
    (LETTERS, "C", r"\boxed{\text{(C) D}}", None),
    (OTHER_LETTERS, "D", r"\boxed{F}", "D"),
    (OTHER_LETTERS, "C", r"\boxed{D}", "D"),
    (OTHER_LETTERS, "C", r"\boxed{C. D}", "C"),
    (PAIRS, "A", r"\boxed{1 and 3}", "A"),
    (PAIRS, "C", r"\boxed{2 and 4}", None),
    (PAIRS, "E", r"\boxed{\text{It can be A or B.}}", "E"),
    # where only the image shows the options
    (UNSEEN, "F", r"\boxed{F}", "F"),
    (UNSEEN, "F", r"\boxed{\text{(F) 12}}", "F"),
    (UNSEEN, "F", r"\boxed{12}", None),
    # two letters are asked for
    (ANGLES, "CD", r"\boxed{C, D}", "CD"),
    (ANGLES, "CD", r"\boxed{\text{D and C}}", "CD"),
    (ANGLES, "CD", "Answer: (C) and (D)", "CD"),
    (ANGLES, "CD", r"\boxed{C} and \boxed{D}", "CD"),
    (ANGLES, "CD", r"\boxed{C}", "C"),
    (ANGLES, "CD", r"\boxed{A, C, D}", "ACD"),
]

# Reference, completion, verdict, of problems without options.
VALUED = [
    ("6", r"\boxed{6}", "correct"),
    ("6", "The answer is 6.", "correct"),
    ("6", "Answer: 6 apples", "correct"),
    ("6", r"\boxed{\text{six}}", "wrong"),
    ("6", "six", "no_answer"),
    ("6", "I count 6", "no_answer"),
    (r"$\frac{1}{3}$", r"\boxed{1/3}", "correct"),
    (r"\frac{3}{4}\pi", r"\boxed{\frac{3\pi}{4}}", "correct"),
    (r"50.27 \mathrm{~cm}", r"\boxed{50.27}", "correct"),
    (r"50.27 \mathrm{~cm}", r"\boxed{50.27 \text{ cm}}", "correct"),
    (r"50.27 \mathrm{~cm}", r"\boxed{50.27 \text{ m}}", "wrong"),
    (r"4.4 \mathrm{m}", r"The length is \boxed{4.4}", "correct"),
    (r"53.6^\circ", r"\boxed{53.6}", "correct"),
    (r"212° \mathrm{T}", r"\boxed{212^\circ \text{ T}}", "correct"),
    (r"212° \mathrm{T}", r"\boxed{212^\circ}", "wrong"),
    ("(3,-4)", r"\boxed{(3, -4)}", "correct"),
    ("(3,-4)", r"\boxed{(-4, 3)}", "wrong"),
    ("C", r"\boxed{(C)}", "correct"),
    ("2", r"\boxed{1} and \boxed{2}", "wrong"),
    ("90", r"\boxed{9^{9^{9^{9}}}}", "timeout"),
]


@pytest.fixture(scope="module")
def grader():
    with choices.Grader(workers=1) as grader:
        yield grader


def test_labelled_choices(grader):
    items = [(completion, Reference(right, known)) for known, right, completion, _ in CHOSEN]
    mistakes = []
    for (_, right, completion, expected), graded in zip(
        CHOSEN, grader.grade(items, progress=False), strict=True
    ):
        verdict = "no_answer"
        if expected is not None:
            verdict = "correct" if expected == right else "wrong"
        if (graded.extracted, graded.verdict) != (expected, verdict):
            mistakes.append((completion, expected, graded))
    assert not mistakes


@pytest.mark.slow
def test_labelled_values(grader):
    items = [(completion, Reference(reference)) for reference, completion, _ in VALUED]
    mistakes = []
    for (_, completion, expected), graded in zip(
        VALUED, grader.grade(items, progress=False), strict=True
    ):
        if graded.verdict != expected:
            mistakes.append((completion, expected, graded))
    assert not mistakes


def test_a_box_that_was_cut_is_no_answer(grader):
    items = [(r"\boxed{A}, no: \boxed{B", Reference("A", ANGLES))]
    assert grader.grade(items, progress=False, truncated=[True])[0].extracted is None
    assert grader.grade(items, progress=False, truncated=[False])[0].extracted == "A"


@pytest.mark.parametrize(
    "answer, known, letters",
    [
        ("D", ANGLES, "D"),
        ("(C)", ANGLES, "C"),
        ("C\nD", ANGLES, "CD"),
        ("False", options("True", "False"), "B"),
        (r"090^\circ T", options(r"090^\circ T", r"180^\circ T"), "A"),
        ("F", ANGLES, None),
        ("2 and 4", PAIRS, None),
        ("60", ANGLES, None),
    ],
)
def test_references(answer, known, letters):
    assert choices.reference_of(answer, known) == letters


def test_votes_are_by_letter_without_a_comparison(monkeypatch):
    with choices.Grader(workers=1) as grader:
        monkeypatch.setattr(grader.pool, "classes", None)
        verdicts = ["wrong", "correct", "no_answer", "wrong", "correct", "wrong"]
        found = grader.classes(["A", "B", None, "C", "B", "A"], verdicts)
    assert found[1] == found[4] == 0 and found[2] is None
    assert found[0] == found[5] != found[3] and 0 not in (found[0], found[3])


def test_votes_of_values_are_by_meaning(grader):
    answers, verdicts = ["1/2", "0.5", "3"], ["correct", "correct", "wrong"]
    assert grader.classes(answers, verdicts) == [0, 0, 1]


@pytest.mark.parametrize(
    "completion, letter",
    [
        ("Answer: B", "B"),
        ("<Thought process>: 2 + 3. <Answer>: B", "B"),
        ("Answer: A\nAnswer: B", "B"),
        ("The Answer is B", None),
        ("Answer: (B)", None),
        ("**Answer:** B", None),
        (r"Answer: \boxed{B}", None),
        (r"\boxed{B}", None),
        ("the answer: B", None),
        ("B", "B"),
        ("A triangle has three sides, so it is C", "A"),
        ("Because of this", "B"),
        ("Answer: No correct answer", None),
        ("Answer: H", "H"),
        ("Answer: I", None),
        ("Answer", None),
        ("", None),
    ],
)
def test_what_vlmevalkit_reads(completion, letter):
    assert choices.extract_as_vlmevalkit(completion) == letter
    with choices.Grader(workers=1, mode="vlmevalkit") as grader:
        [graded] = grader.grade([(completion, Reference("B", ANGLES))], progress=False)
    verdict = {None: "no_answer", "B": "correct"}.get(letter, "wrong")
    assert (graded.verdict, graded.extracted) == (verdict, letter)


def test_vlmevalkit_against_a_naive_reading():
    """Character by character, of random texts of what the rule looks at."""
    rng = random.Random(0)
    pieces = ["Answer", "answer", "A", "B", "I", "(", ">", "<", ":", ".", " ", "\n", "*", "x"]
    n_found = 0
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 8)))
        place = text.rfind("Answer")
        rest = text[place + 6 :] if place >= 0 else text
        kept = "".join(character for character in rest if character not in "><:.").strip()
        expected = kept[0] if kept and kept[0] in "ABCDEFGH" else None
        assert choices.extract_as_vlmevalkit(text) == expected, text
        n_found += expected is not None
    assert 300 < n_found < 2700


def test_settings_that_are_not_of_these_rules():
    with pytest.raises(ValueError, match="mode='paper': choose one of strict, vlmevalkit"):
        choices.Grader(mode="paper")
    with pytest.raises(ValueError, match="what marks an answer is fixed"):
        choices.Grader(last_number=True)
    with pytest.raises(ValueError, match="what marks an answer is fixed"):
        choices.Grader(answer_markers=("box",))


def test_reading_is_linear_in_the_text(grader):
    """A megabyte of what the patterns begin with, in some seconds at most."""
    for piece in ("answer is ", r"\boxed{", "(A", "A. ", "answer***", "and A"):
        text = piece * (10**6 // len(piece))
        grader.grade([(text, Reference("A", ANGLES))], progress=False)
        assert choices.extract_as_vlmevalkit(text) in (None, "A")
    assert re.fullmatch("[A-H]", choices.letter_of("B", ANGLES))
