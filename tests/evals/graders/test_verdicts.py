"""What the strict grader takes for one answer: kinds of pairs, edits of right answers, votes."""

import json
import pathlib
import random

import pytest

from dft_jax.evals.graders.pool import Grader
from tests.evals.graders import gold_edits

HERE = pathlib.Path(__file__).parent
KINDS = [json.loads(line) for line in (HERE / "labelled_kinds.jsonl").read_text().splitlines()]
GOLDS = [  # one of each form that the benchmarks have
    "$6m$",
    "42",
    "-7",
    "1.25",
    "3.89e-10",
    r"\frac{14}{3}",
    r"3\sqrt{13}",
    r"\frac{\sqrt{3}}{4}",
    r"2k+2",
    r"x^3+3x-6",
    r"\frac{1}{m} t",
    r"288 \pi",
    r"6 - 5i",
    r"(3,4]",
    r"\left( 3, \frac{\pi}{2} \right)",
    r"(2,\infty)",
    "16,3,1,1",
    "-2,-2",
    r"$(0,2),(0,-2),(4,23)$",
    r"90^\circ",
    r"5.4 \text{ cents}",
    r"864 \mbox{ inches}^2",
    r"\text{east}",
    "204_5",
    "62.5%",
    r"y = 2x + 3",
    r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}",
    r"$\left\lfloor\frac{2 n}{3}\right\rfloor+1$",
    r"\frac{1}{b-a}\left(e^{-a t}-e^{-b t}\right)",
    r"$\frac{2016}{2017^{2}}$",
]


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=2) as grader:
        yield grader


def mistakes(grader, rows):
    """The rows whose verdict is another one, with it."""
    graded = grader.grade([(row["completion"], row["reference"]) for row in rows], progress=False)
    return [
        (row, one) for row, one in zip(rows, graded, strict=True) if one.verdict != row["verdict"]
    ]


def as_rows(cases, verdict):
    return [
        {"completion": f"\\boxed{{{text}}}", "reference": gold, "verdict": verdict}
        for _, gold, text in cases
    ]


def test_some_pairs_of_every_kind(grader):
    assert len(KINDS) >= 600
    chosen = [row for number, row in enumerate(KINDS) if number % 6 == 0]
    assert {row["kind"] for row in chosen} == {row["kind"] for row in KINDS}
    assert mistakes(grader, chosen) == []


@pytest.mark.parametrize("kind", ["names with an index", "degrees", "primes", "values of events"])
def test_all_pairs_of_a_kind(grader, kind):
    """References of benchmarks and of their kind; the answers, as models write them, are made."""
    rows = [row for row in KINDS if row["kind"] == kind]
    assert len(rows) >= 10
    assert mistakes(grader, rows) == []


@pytest.mark.slow
def test_all_pairs_of_every_kind(grader):
    assert mistakes(grader, KINDS) == []


def test_edits_of_each_form_are_refused_and_respellings_accepted(grader):
    changed, kept = gold_edits.cases({"forms": GOLDS})
    assert len(changed) >= 250 and len(kept) >= 150
    dice = random.Random(0)
    assert mistakes(grader, as_rows(dice.sample(changed, 80), "wrong")) == []
    assert mistakes(grader, as_rows(dice.sample(kept, 80), "correct")) == []


@pytest.mark.slow
def test_edits_of_the_benchmarks_answers(grader, shared):
    """5,000 edits and 4,000 respellings of the right answers of seven benchmarks."""
    changed, kept = gold_edits.cases(gold_edits.golds(shared / "data"), whole_numbers=40)
    dice = random.Random(0)
    edited = as_rows(dice.sample(changed, 5_200), "wrong")
    others = mistakes(grader, edited)
    accepted = [pair for pair in others if pair[1].verdict == "correct"]
    failed = [pair for pair in others if pair[1].verdict == "error"]
    print(
        f"{len(edited)} edits, {len(accepted)} accepted, {len(others) - len(accepted)} not decided"
    )
    assert len(accepted) <= 3 and failed == [], others
    respelled = mistakes(grader, as_rows(dice.sample(kept, 4_000), "correct"))
    assert respelled == []


def cases_of(shared, name):
    rows = [
        json.loads(line)
        for line in (shared / "cases" / name).read_text(encoding="utf-8").splitlines()
    ]
    return [row | {"verdict": row["expected"]} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "allowed"), [("grading.jsonl", 8), ("grading_right_now.jsonl", 0)]
)
def test_cases_from_public_reports(grader, shared, name, allowed):
    if not (shared / "cases" / name).is_file():
        pytest.skip(f"no {name} beside this checkout")
    wrong = mistakes(grader, cases_of(shared, name))
    assert len(wrong) <= allowed, wrong


def test_answers_of_one_meaning_are_one_class(grader):
    answers = [
        "0.75",
        r"\frac{3}{4}",
        None,
        "2",
        "2.0",
        r"\frac{4}{2}",
        "x+1",
        "1+x",
        "y",
        r"\dfrac34",
    ]
    verdicts = ["correct", "correct", "no_answer", *["wrong"] * 6, "correct"]
    assert grader.classes(answers, verdicts) == [0, 0, None, 1, 1, 1, 2, 2, 3, 0]


def test_what_is_compared_is_the_answer_with_its_spaces(grader):
    assert grader.classes([r"\pi x", r"x \cdot \pi", r"2 \pi x"], ["wrong"] * 3) == [1, 1, 2]


def test_classes_of_none_and_of_the_correct_alone(grader):
    assert grader.classes([], []) == []
    assert grader.classes([None, None], ["no_answer"] * 2) == [None, None]
    assert grader.classes(["1", "2"], ["wrong", "wrong"]) == [1, 2]  # 0 is the correct ones' only
    assert grader.classes(["1", " 1 ", "$1$"], ["timeout", "wrong", "error"]) == [1, 1, 1]


def test_comparisons_of_one_problem_are_bounded(grader, monkeypatch):
    """64 different answers are 2,016 pairs; of the eight most frequent 28 are compared."""
    seen = []

    def verdicts(pairs):
        seen.extend(pairs)
        return [(pair, "wrong") for pair in pairs]

    monkeypatch.setattr(grader, "_verdicts", verdicts)
    classes = grader.classes([f"x+{number}" for number in range(64)], ["wrong"] * 64)
    assert len(seen) == 28 and sorted(classes) == list(range(1, 65))


def test_a_truncated_completion_has_no_earlier_answer(grader):
    items = [(r"\boxed{5} or rather \boxed{6", "5")] * 2
    verdicts = [one.verdict for one in grader.grade(items, progress=False, truncated=[False, True])]
    assert verdicts == ["correct", "no_answer"]
