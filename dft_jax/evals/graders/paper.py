r"""The string rules of the grader behind the paper's numbers, anew, and nothing is evaluated.

They are lenient on purpose, since they are there to reproduce published numbers: 100 times and a
hundredth of the reference pass, `(1,2)` passes for `[1,2]`, `1,2` for `12`, `km` for `m`, and a
text without a marked answer is graded by its last number. Where the original hands the answer to a
Python evaluator, the strict comparison stands in.
"""

import re
from collections.abc import Callable

from dft_jax.evals.graders import extraction

RELATIVE_TOLERANCE = 1e-4

# Patterns of the units that are taken off; behind a number, a brace or a space, with a power.
_UNITS = """
    degrees? degree miles? mile inch(?:es)? feet foot ft yards? meters? metres? m cm km mm dm kg g
    grams? mg hours? hrs? minutes? mins? seconds? secs? s days? weeks? months? years? dollars?
    cents? mph kmph kph units? square cubic percent points? ways? people liters? litres? gallons?
    ounces? pounds? lbs?
    """.split()
_UNIT = re.compile(rf"(?<=[\d\s}}])(?:\s*\b(?:{'|'.join(_UNITS)})\b)+\s*(?:\^\{{?\d\}}?)?$")
_TRAILING_TEXT = re.compile(
    r"(?<=[\d}\s.])\\(?:text|mbox|mathrm|textbf)\s*\{[^{}]*\}(?:\^\{?-?\d\}?)?$"
)
_MATRIX = re.compile(r"\\begin\{[pb]matrix\}(.*)\\end\{[pb]matrix\}", re.DOTALL)
# The hyphen of 3-5 is a sign to the original.
_LAST_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_DIGITS = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")

Equal = Callable[[str, str], bool]


def extract(completion: str) -> str | None:
    """The answer by the paper's order: last box, "the answer is", else the last number."""
    text = completion[-extraction.TAIL_CHARS :]
    if "boxed" in text:
        rest = text.rsplit("boxed", 1)[1]
        if rest.startswith("{"):
            end = extraction.matching_brace(rest, 0)
            # A box that was cut counts as an answer here.
            if end < 0:
                end = len(rest)
            answer = rest[1:end]
        else:
            answer = rest.split("$", 1)[0]
    elif "he answer is" in text:
        answer = text.rsplit("he answer is", 1)[1]
    elif "final answer is" in text:
        answer = text.rsplit("final answer is", 1)[1]
    else:
        numbers = _LAST_NUMBER.findall(text) or [""]
        answer = numbers[-1].replace(",", "")
    answer = answer.strip().split("\n", 1)[0].lstrip(":").rstrip("./")
    if not answer or len(answer) > extraction.ANSWER_CHARS:
        return None
    return answer


def normalize(answer: str) -> str:
    r"""The canonical string: without spaces, units, dollar signs and text commands.

    `\tfrac12` becomes `\frac{1}{2}`.
    """
    text = answer.strip().replace("\n", "").rstrip(".").replace("\\!", "")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    text = text.replace("\\left", "").replace("\\right", "")
    text = re.sub(r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}", text)
    text = text.replace("\\end{array}", "\\end{pmatrix}").replace("bmatrix", "pmatrix")
    text = text.replace("\\neq", "\\ne").replace("\\leq", "\\le").replace("\\geq", "\\ge")
    text = text.replace("\\{", "{").replace("\\}", "}")
    text = _TRAILING_TEXT.sub("", text).strip()
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "").replace("$", "")
    text = re.sub(r"\\(?:text|mbox|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", text)
    text = _UNIT.sub("", text).strip()
    # "x = 5" is 5.
    text = re.sub(r"^[a-zA-Z]\s*=\s*(?=.)", "", text)
    text = text.replace("\\%", "").replace("%", "").replace("∞", "\\infty")
    text = text.replace("\\cdot", "").replace("j", "i")
    # Decimals, fractions and roots in one spelling.
    text = re.sub(r"(?<![\d])\.(\d)", r"0.\1", text)
    text = re.sub(r"(\d+)\.0+(?!\d)", r"\1", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"^(-?\d+)/(\d+)$", r"\\frac{\1}{\2}", text)
    return text.replace(" ", "")


def _number(text: str) -> float | None:
    """The number that digits stand for, percent as hundredths; None for anything else."""
    text = text.replace(",", "")
    scale = 1.0
    if text.endswith("%"):
        text = text[:-1].rstrip("\\")
        scale = 0.01
    if not _DIGITS.fullmatch(text):
        return None
    return float(text) * scale


def close(a: float, b: float) -> bool:
    """Whether two numbers are equal within the paper's tolerance."""
    return abs(a - b) <= RELATIVE_TOLERANCE * max(abs(a), abs(b))


def equal(answer: str, reference: str, symbolic: Equal) -> bool:
    """Whether the paper's grader takes `answer` for `reference`.

    `symbolic` decides what strings leave open.
    """
    return _equal(normalize(answer), normalize(reference), symbolic, depth=0)


def _equal(answer: str, reference: str, symbolic: Equal, depth: int) -> bool:
    if answer.lower() == reference.lower():
        return True
    a, b = _number(answer), _number(reference)
    if a is not None and b is not None:
        # A percentage and its share are one answer here.
        return close(a, b / 100) or close(a, b) or close(a, b * 100)
    if not answer or depth > 3:
        return False
    if _bare(answer) == _bare(reference):
        return True
    parts, reference_parts = _parts(answer), _parts(reference)
    if parts and reference_parts:
        if len(parts) != len(reference_parts):
            return False
        pairs = zip(parts, reference_parts, strict=True)
        return all(_equal(*pair, symbolic, depth + 1) for pair in pairs)
    # "x=5" for "5", and the other way round.
    if "=" in answer and "=" not in reference and answer.index("=") <= 2:
        return _equal(answer.split("=", 1)[1], reference, symbolic, depth + 1)
    if "=" in reference and "=" not in answer and reference.index("=") <= 2:
        return _equal(answer, reference.split("=", 1)[1], symbolic, depth + 1)
    return symbolic(answer, reference)


def _bare(text: str) -> str:
    """Without brackets of any kind, which makes an interval of a point and a set of a list."""
    return re.sub(r"[][(){}]", "", text).lower()


def _parts(text: str) -> list[str] | None:
    """The cells of a matrix, or the parts of a tuple; None for anything else."""
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        cells = []
        for row in filter(None, matrix[1].split("\\\\")):
            cells.extend(row.split("&"))
        return cells
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and "," in text:
        return text[1:-1].split(",")
    return None
