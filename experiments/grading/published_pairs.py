"""math-verify's verdict on its own published test pairs, called directly and through our worker
pool.

    python experiments/grading/published_pairs.py --tests=MATH_VERIFY_CLONE/tests
    --out=experiments/grading/results.csv

The pairs are read from the parametrized tests with `ast`, and not kept here. Each is judged four
times:

direct  as its test does it
latex   the same call with the LaTeX reader only, which is the one that our workers use
pool    math-verify's extraction gives the text of the answer on each side (the whole text where
        it gives none, or one cut inside a brace), and that text goes, in a box, through our
        extraction and worker, strict rules
whole   the prediction goes into our pool as it stands, where it marks an answer by a box or
        "final answer is"; the reference is that of `pool`
"""

import argparse
import ast
import csv
import dataclasses
import pathlib
from importlib import metadata

import math_verify

from dft_jax.evals.graders import extraction, pool as grading

COLUMNS = ("id", "options", "expected", "direct", "latex", "pool", "whole")
WORDS = {1: "correct", 0: "wrong"}


@dataclasses.dataclass(frozen=True)
class Pair:
    """One published case; `options` are those of the test's `compare_strings`."""

    id: str  # file, test, number of the case
    gold: str
    prediction: str
    expected: bool
    options: dict


def read_pairs(folder: pathlib.Path) -> tuple[list[Pair], list[str]]:
    """The pairs of all tests with gold and pred, and the ids of cases that are no literals."""
    pairs, skipped = [], []
    for file in sorted(folder.glob("test_*.py")):
        for test in ast.parse(file.read_text()).body:
            if not isinstance(test, ast.FunctionDef) or not test.decorator_list:
                continue
            decorator = test.decorator_list[0]
            if ast.unparse(decorator.func) != "pytest.mark.parametrize":
                continue
            names = [name.strip() for name in ast.literal_eval(decorator.args[0]).split(",")]
            if names[:2] != ["gold", "pred"]:
                continue
            for number, case in enumerate(decorator.args[1].elts):
                id = f"{file.stem.removeprefix('test_')}.{test.name.removeprefix('test_')}.{number}"
                try:
                    values = dict(zip(names, ast.literal_eval(case), strict=True))
                except ValueError:
                    skipped.append(id)
                    continue
                gold, prediction = values.pop("gold"), values.pop("pred")
                expected = bool(values.pop("expected" if "expected" in values else "result"))
                pairs.append(Pair(id, gold, prediction, expected, _options(test) | values))
    return pairs, skipped


def _options(test: ast.FunctionDef) -> dict:
    """The literal keywords of the call of compare_strings; none where a test calls parse and verify
    itself.
    """
    calls = [node for node in ast.walk(test) if isinstance(node, ast.Call)]
    [call] = [call for call in calls if ast.unparse(call.func) == "compare_strings"] or [None]
    if call is None:
        return {"match_types": None}
    return {
        word.arg: ast.literal_eval(word.value)
        for word in call.keywords
        if isinstance(word.value, (ast.List, ast.Constant))
    }


def configs(match_types: list[str] | None) -> list:
    """What the published `compare_strings` makes of match_types; None for the defaults."""
    if match_types is None:
        return [math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig()]
    kinds = {
        "latex": math_verify.LatexExtractionConfig(boxed_match_priority=0),
        "expr": math_verify.ExprExtractionConfig(),
    }
    return [kinds[kind] for kind in match_types]


def verified(pair: Pair, only_latex: bool = False) -> bool:
    """The verdict as its test reaches it."""
    options = dict(pair.options)
    kinds = configs(options.pop("match_types", ["latex", "expr"]))
    if only_latex:
        kinds = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    gold, prediction = (
        math_verify.parse(pair.gold, kinds),
        math_verify.parse(pair.prediction, kinds),
    )
    options["float_rounding"] = options.pop("precision", 6)
    return math_verify.verify(gold, prediction, **options)


def answer_text(pair: Pair, text: str) -> str:
    """The text that math-verify takes for the answer; the whole where it finds none, or cuts it
    inside a brace.
    """
    found = math_verify.parse(text, configs(pair.options.get("match_types", ["latex", "expr"])))
    answer = found[-1] if found and isinstance(found[-1], str) else text
    return answer if answer.count("{") == answer.count("}") else text


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--tests", type=pathlib.Path, required=True)
    arguments.add_argument("--out", type=pathlib.Path, required=True)
    options = arguments.parse_args()
    pairs, skipped = read_pairs(options.tests)
    texts = [(answer_text(pair, pair.prediction), answer_text(pair, pair.gold)) for pair in pairs]
    marked = [extraction.extract(pair.prediction) is not None for pair in pairs]
    with grading.Grader(workers=1) as grader:
        pool = grader.grade(
            [(f"\\boxed{{{answer}}}", reference) for answer, reference in texts], progress=False
        )
        whole = grader.grade(
            [(pair.prediction, text[1]) for pair, text in zip(pairs, texts, strict=True)],
            progress=False,
        )
    rows = []
    for pair, one, other, is_marked in zip(pairs, pool, whole, marked, strict=True):
        verdicts = [int(verified(pair)), int(verified(pair, only_latex=True)), one.verdict]
        verdicts.append(other.verdict if is_marked else "")
        settings = " ".join(
            f"{key}={value}" for key, value in pair.options.items() if key != "match_types"
        )
        rows.append([pair.id, settings, int(pair.expected), *verdicts])
    with options.out.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    print(
        {name: metadata.version(name) for name in ("math-verify", "latex2sympy2_extended", "sympy")}
    )
    print(f"{len(rows)} pairs; not literal, left out: {', '.join(skipped)}")
    groups = {
        "all": rows,
        "with the default options": [row for row in rows if not row[1]],
        "that LaTeX alone does not decide": [row for row in rows if row[4] != row[2]],
        "with a marked answer": [row for row in rows if row[6]],
    }
    for name, group in groups.items():
        counts = {
            COLUMNS[i]: sum(row[i] in (row[2], WORDS[row[2]]) for row in group if row[i] != "")
            for i in range(3, 7)
        }
        print(f"{name}: {len(group)}; as expected: {counts}")


if __name__ == "__main__":
    main()
