"""Counts what makes code dense or plain, per 1,000 lines: `python -m tests.density [FOLDER]`.

Numbers of a kind that a reader feels: comprehensions and conditional expressions that pack a loop
or a branch into an expression, splatted calls that hide their arguments, and comments on lines of
their own.
"""

import ast
import io
import pathlib
import sys
import tokenize

ROOT = pathlib.Path(__file__).parents[1]
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def count(file: pathlib.Path) -> dict[str, int]:
    """What is in one file."""
    text = file.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    lines = text.splitlines()
    own_comments = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            own_comments += 1
    splats = 0
    for node in nodes:
        if isinstance(node, ast.Call):
            splats += sum(keyword.arg is None for keyword in node.keywords)
    return {
        "lines": len(lines),
        "comprehensions": sum(isinstance(node, COMPREHENSIONS) for node in nodes),
        "conditional expressions": sum(isinstance(node, ast.IfExp) for node in nodes),
        "splatted calls": splats,
        "own-line comments": own_comments,
        "lines over 100 columns": sum(len(line) > 100 for line in lines),
    }


def total(folder: pathlib.Path) -> dict[str, int]:
    """The sum over all files of a folder."""
    sums: dict[str, int] = {}
    for file in sorted(folder.rglob("*.py")):
        for name, value in count(file).items():
            sums[name] = sums.get(name, 0) + value
    return sums


def per_thousand(sums: dict[str, int]) -> dict[str, float]:
    """Each count per 1,000 lines."""
    return {name: 1000 * value / sums["lines"] for name, value in sums.items() if name != "lines"}


def main() -> None:
    folders = [pathlib.Path(argument) for argument in sys.argv[1:]] or [ROOT / "dft_jax"]
    for folder in folders:
        sums = total(folder)
        print(f"{folder}: {sums['lines']} lines")
        for name, value in per_thousand(sums).items():
            print(f"  {value:6.1f} {name}")


if __name__ == "__main__":
    main()
