"""The program in a completion: a pure function of texts.

It parses what a model wrote, and such text can exhaust or crash an interpreter, so it runs in the
confined process of the tests; `cut`, which only looks for strings, runs anywhere.
"""

import ast
import dataclasses
import re
import textwrap
from collections.abc import Iterator

# What a completion is: it goes on where the prompt, a function without a body, ends; it goes on
# after a docstring that says what to write; or it answers a question.
CONTINUATION, DOCSTRING, ANSWER = "continuation", "docstring", "answer"

_ENDS = ("\n```", "<|endoftext|>", "<|endofmask|>", "</s>")
# EvalPlus' for HumanEval. Never "\n#" or "\nif": both stand in right programs.
STOPS = {
    CONTINUATION: (
        "\ndef ",
        "\nclass ",
        "\nimport ",
        "\nfrom ",
        "\nassert ",
        "\nif __name__",
        "\nprint(",
        *_ENDS,
    ),
    # The function itself is still to come, with its imports and helpers.
    DOCSTRING: ('\n"""', "\nassert", "\nif __name__", "\nprint(", *_ENDS),
}
_PYTHON = ("", "python", "py", "python3")
# A fence that opens a block: on a line of its own, or with its language behind prose.
_OPENS = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,})[ \t]*(?P<language>[\w+-]*)[^`]*")
_OPENS_BEHIND = re.compile(r".*[^`](?P<fence>`{3,})(?P<language>python3?|py)[ \t]*")
_BEGINS_CODE = re.compile(r"^(import|from|def|async def|class|@)\b|^@", re.MULTILINE)
_MOST_REPAIRS = 200
_UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


def cut(completion: str, style: str) -> str:
    """The completion up to the first stop text in it."""
    end = len(completion)
    for stop in STOPS.get(style, ()):
        found = completion.find(stop)
        if found >= 0:
            end = min(end, found)
    return completion[:end]


def code_of(completion: str, prompt: str, entry_point: str, style: str) -> str | None:
    """The program to run; None where an answer has none that defines the function.

    Args:
      prompt: the text that a base model completes: a function without its body, or a docstring.
      entry_point: the name of the function.
      style: CONTINUATION, DOCSTRING or ANSWER.
    """
    if style != ANSWER:
        return f"{prompt.strip()}\n{cut(completion, style)}"
    blocks = _blocks(completion)
    tree = _defining(blocks, completion, entry_point)
    if tree is None:
        tree = _completing(blocks, completion, prompt, entry_point)
    if tree is None:
        return None
    return _with_prompt(tree, prompt, entry_point)


@dataclasses.dataclass(frozen=True)
class _Parsed:
    """A text with its tree."""

    text: str
    tree: ast.Module


def _parsed(text: str) -> _Parsed | None:
    try:
        return _Parsed(text, ast.parse(text))
    except _UNPARSABLE:
        return None


# ---- candidates


def _blocks(completion: str) -> list[str]:
    """The fenced blocks in Python, or all of them where none is; one that is not closed runs to
    the end. Blocks inside lists are indented, and their lines lose that.
    """
    found: list[tuple[str, str]] = []  # language, text
    fence, indent, language, lines = "", "", "", []
    for line in completion.split("\n"):
        if not fence:
            opening = _OPENS.fullmatch(line) or _OPENS_BEHIND.fullmatch(line)
            if opening is not None:
                fence, language, lines = opening["fence"], opening["language"].lower(), []
                indent = opening.groupdict().get("indent") or ""
            continue
        content = line.rstrip().removesuffix(fence)
        is_closed = content != line.rstrip()
        if not is_closed or content.strip():
            lines.append(content.removeprefix(indent) if is_closed else line.removeprefix(indent))
        if is_closed:
            found.append((language, "\n".join(lines)))
            fence = ""
    if fence:
        found.append((language, "\n".join(lines)))
    in_python = [text for language, text in found if language in _PYTHON]
    return in_python or [text for _, text in found]


def _texts(blocks: list[str], completion: str) -> Iterator[str]:
    """What may be the program, the likeliest first."""
    yield from blocks
    if len(blocks) > 1:
        yield "\n".join(blocks)
    begins = _BEGINS_CODE.search(completion)
    if not blocks and begins is not None:
        yield completion[begins.start() :]


def _defining(blocks: list[str], completion: str, entry_point: str) -> _Parsed | None:
    """The first text that parses, perhaps without its last lines, and defines the function."""
    texts = list(_texts(blocks, completion))
    for text in texts:
        parsed = _parsed(text)
        if parsed is not None and _defines(parsed.tree, entry_point):
            return parsed
    # What was cut by the limit of tokens, or goes on in prose.
    for text in texts:
        lines = text.split("\n")
        for _ in range(min(_MOST_REPAIRS, len(lines) - 1)):
            lines.pop()
            parsed = _parsed("\n".join(lines))
            if parsed is not None:
                if _defines(parsed.tree, entry_point):
                    return parsed
                break
    return None


def _completing(
    blocks: list[str], completion: str, prompt: str, entry_point: str
) -> _Parsed | None:
    """The first text that is the function's body: the prompt with it parses, and has more in it."""
    bare = _parsed(prompt)
    if bare is None or not _defines(bare.tree, entry_point):
        return None
    n_bare = len(_body(bare.tree, entry_point))
    for text in [*_texts(blocks, completion), completion]:
        parsed = _parsed(f"{prompt.strip()}\n{text}")
        if parsed is not None and len(_body(parsed.tree, entry_point)) > n_bare:
            return parsed
        # At the margin anything would do for a body; this one has to give something back.
        parsed = _parsed(f"{prompt.strip()}\n{textwrap.indent(text, '    ')}")
        if parsed is not None and _gives_back(_body(parsed.tree, entry_point)[n_bare:]):
            return parsed
    return None


# ---- trees


def _names(node: ast.stmt) -> list[str]:
    """What a statement defines, if it is a definition or an assignment."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _defines(tree: ast.Module, entry_point: str) -> bool:
    return any(entry_point in _names(node) for node in tree.body)


def _body(tree: ast.Module, entry_point: str) -> list[ast.stmt]:
    """The statements of the function."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == entry_point:
            return node.body
    return []


def _gives_back(statements: list[ast.stmt]) -> bool:
    """Whether some statement returns or yields, of these and not of a function among them."""
    waiting: list[ast.AST] = list(statements)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom)):
            return True
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))
    return False


def _with_prompt(parsed: _Parsed, prompt: str, entry_point: str) -> str:
    """The program without its self-tests, behind what the prompt gives: imports and helpers."""
    tree = parsed.tree
    defined: set[str] = set()
    written = set()
    for node in tree.body:
        defined.update(_names(node))
        if _is_import(node):
            written.add(ast.unparse(node))
    given = []
    bare = _parsed(prompt)
    if bare is not None:
        for node in bare.tree.body:
            names = set(_names(node))
            is_helper = bool(names) and entry_point not in names and not names & defined
            is_new_import = _is_import(node) and ast.unparse(node) not in written
            if is_helper or is_new_import:
                given.append(ast.unparse(node))
    future = []
    for node in tree.body:
        # They have to be the first statements of all.
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            future.append(ast.unparse(node))
    return "\n".join([*future, *given, _without_tests(parsed)])


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def _without_tests(parsed: _Parsed) -> str:
    """The text without top-level expressions, asserts, `if __name__ == …` and __future__."""
    lines = parsed.text.split("\n")
    kept = []
    for node in parsed.tree.body:
        if _is_test(node):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
        else:
            kept.append(node)
    text = "\n".join(lines)
    shorter = _parsed(text)
    # Statements that share a line were removed with it.
    if shorter is None or len(shorter.tree.body) != len(kept):
        return ast.unparse(ast.Module(kept, []))
    return text


def _is_test(node: ast.stmt) -> bool:
    if isinstance(node, ast.If):
        return any(
            isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)
        )
    if isinstance(node, ast.ImportFrom):
        return node.module == "__future__"
    return isinstance(node, (ast.Expr, ast.Assert))
