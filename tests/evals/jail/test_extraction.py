"""Which program is found in a completion: a table of what models write."""

import ast

import pytest

from dft_jax.evals.jail import extraction
from dft_jax.evals.jail.extraction import ANSWER, CONTINUATION, DOCSTRING

PROMPT = 'from typing import List\n\n\ndef double(x: int) -> int:\n    """Twice x."""\n'
WITH_HELPER = (
    'import math\n\ndef half(x):\n    return x / 2\n\ndef double(x):\n    """Twice x."""\n'
)
WHOLE = "def double(x):\n    return 2 * x"
BODY = "    return 2 * x"
GIVEN = "from typing import List\n"


# Completion, what runs.
CONTINUED = {
    "a body": (BODY, f"{PROMPT}{BODY}"),
    "another function": (f"{BODY}\n\ndef other():\n    pass", f"{PROMPT}{BODY}\n"),
    "a class": (f"{BODY}\nclass A:\n    pass", f"{PROMPT}{BODY}"),
    "self-tests": (f"{BODY}\n\nassert double(1) == 2", f"{PROMPT}{BODY}\n"),
    "a main block": (f"{BODY}\n\nif __name__ == '__main__':\n    1", f"{PROMPT}{BODY}\n"),
    "a print": (f"{BODY}\nprint(double(1))", f"{PROMPT}{BODY}"),
    "a closing fence": (f"{BODY}\n```\nThis doubles.", f"{PROMPT}{BODY}"),
    "an end of text": (f"{BODY}<|endoftext|>junk", f"{PROMPT}{BODY}"),
    "an import": (f"{BODY}\nimport os", f"{PROMPT}{BODY}"),
    "the first of two stops": (f"{BODY}\nprint(1)\ndef other(): pass", f"{PROMPT}{BODY}"),
    "a comment and an if at the margin": (
        "    y = x\n# twice\n    return 2 * y\nif y: pass",
        f"{PROMPT}    y = x\n# twice\n    return 2 * y\nif y: pass",
    ),
    "an import inside": ("    import os\n    return 2", f"{PROMPT}    import os\n    return 2"),
    "nothing": ("", PROMPT),
}


@pytest.mark.parametrize("case", CONTINUED)
def test_continuations(case):
    completion, program = CONTINUED[case]
    assert extraction.code_of(completion, PROMPT, "double", CONTINUATION) == program
    # White space around a prompt is not part of it.
    assert extraction.code_of(completion, f"\n{PROMPT}\n", "double", CONTINUATION) == program


def test_a_function_after_a_docstring():
    prompt = '"""\nDouble x.\nassert double(1) == 2\n"""'
    completion = f"import math\n\ndef helper():\n    pass\n\n{WHOLE}\n\nassert double(1) == 2\n"
    program = extraction.code_of(completion, prompt, "double", DOCSTRING)
    assert program == f"{prompt}\nimport math\n\ndef helper():\n    pass\n\n{WHOLE}\n"
    more = extraction.code_of(f'{WHOLE}\n"""\nAnother task', prompt, "double", DOCSTRING)
    assert more == f"{prompt}\n{WHOLE}"


# Completion, what runs behind the imports of the prompt; None: no program.
ANSWERED = {
    "a block": (f"```python\n{WHOLE}\n```", WHOLE),
    "a block in prose": (f"Sure.\n\n```python\n{WHOLE}\n```\nIt doubles.", WHOLE),
    "no language": (f"```\n{WHOLE}\n```", WHOLE),
    "py": (f"```py\n{WHOLE}\n```", WHOLE),
    "Python, capital": (f"``` Python\n{WHOLE}\n```", WHOLE),
    "a longer fence": (f"````python\n{WHOLE}\n````", WHOLE),
    "not closed": (f"```python\n{WHOLE}", WHOLE),
    "not closed, cut in a line": (f"```python\n{WHOLE}\n\ndef other(a, b", f"{WHOLE}\n"),
    "closed on the last line of code": (f"```python\n{WHOLE}```", WHOLE),
    "fence behind prose": (f"The code: ```python\n{WHOLE}\n```", WHOLE),
    "bash first": (f"```bash\npip install x\n```\n```python\n{WHOLE}\n```", WHOLE),
    "only another language": (f"```text\n{WHOLE}\n```", WHOLE),
    "an example first": (f"```python\ndouble(2)\n```\n```python\n{WHOLE}\n```", WHOLE),
    "two versions": (f"```python\n{WHOLE}\n```\nor\n```python\n{WHOLE} + 0\n```", WHOLE),
    "in two blocks": (
        "```python\nK = 2\n```\nand\n```python\ndef double(x):\n    return K * x\n```",
        "def double(x):\n    return K * x",
    ),
    "a block in a list": (
        f"1. so\n   ```python\n   {WHOLE.replace(chr(10), chr(10) + '   ')}\n   ```",
        WHOLE,
    ),
    "bare": (WHOLE, WHOLE),
    "bare in prose": (f"Here it is.\n\n{WHOLE}", WHOLE),
    "bare, prose behind": (f"{WHOLE}\n\nThis is what was asked for.", f"{WHOLE}\n"),
    "an import first": (f"I use math.\nimport math\n{WHOLE}", f"import math\n{WHOLE}"),
    "a decorator": (f"So:\n@cache\n{WHOLE}", f"@cache\n{WHOLE}"),
    "a lambda": ("```python\ndouble = lambda x: 2 * x\n```", "double = lambda x: 2 * x"),
    "a body in a block": (
        f"```python\n{BODY}\n```",
        f'def double(x: int) -> int:\n    """Twice x."""\n{BODY}',
    ),
    "a body at the margin": (
        "```python\nreturn 2 * x\n```",
        f'def double(x: int) -> int:\n    """Twice x."""\n{BODY}',
    ),
    "a bare body": (BODY, f'def double(x: int) -> int:\n    """Twice x."""\n{BODY}'),
    "self-tests": (
        f"```python\n{WHOLE}\n\nassert double(1) == 3\nprint(double(2))\n```",
        f"{WHOLE}\n",
    ),
    "a main block": (f"```python\n{WHOLE}\nif __name__ == '__main__':\n    main()\n```", WHOLE),
    "statements that share a line": (
        f"```python\n{WHOLE}\nprint(1); K = 2\n```",
        f"{WHOLE}\nK = 2",
    ),
    "refusal": ("I cannot do that.", None),
    "nothing": ("", None),
    "another function": ("```python\ndef triple(x):\n    return 3 * x\n```", None),
    "only a call": ("```python\nprint(double(2))\n```", None),
    "broken": ("```python\ndef double(x)\n    return\n```", None),
    "NUL": ("```python\ndef double(x):\n    return '\0'\n```", None),
    "half a surrogate": ("```python\ndef double(x):\n    return '\ud800'\n```", None),
}


@pytest.mark.parametrize("case", ANSWERED)
def test_answers(case):
    completion, program = ANSWERED[case]
    found = extraction.code_of(completion, PROMPT, "double", ANSWER)
    if program is None:
        assert found is None
        return
    # As trees: empty lines are left where a test was.
    assert found is not None and found.startswith(GIVEN)
    assert ast.dump(ast.parse(found)) == ast.dump(ast.parse(GIVEN + program))


def test_what_the_prompt_gives_is_there():
    """Imports, and helpers that an answer does not repeat; its own are kept."""
    found = extraction.code_of(f"```python\n{WHOLE}\n```", WITH_HELPER, "double", ANSWER)
    assert "import math" in found and "def half(x):" in found and found.endswith(WHOLE)
    own = f"def half(x):\n    return 0\n\n{WHOLE}"
    found = extraction.code_of(f"```python\n{own}\n```", WITH_HELPER, "double", ANSWER)
    assert found == f"import math\n{own}"
    future = f"from __future__ import annotations\n{WHOLE}"
    found = extraction.code_of(f"```python\n{future}\n```", PROMPT, "double", ANSWER)
    compile(found, "", "exec")


@pytest.mark.parametrize("style", [CONTINUATION, DOCSTRING])
def test_no_stop_cuts_a_body(style):
    """Each begins at the margin, where a body is over; "\\n#" and "\\nif" are in right programs."""
    for stop in extraction.STOPS[style]:
        assert stop.startswith(("\n", "<"))
        assert not "\n# a comment".startswith(stop) and not "\nif x:".startswith(stop)
