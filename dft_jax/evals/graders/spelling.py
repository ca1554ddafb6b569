r"""One spelling for answers that are written in many: √2, sqrt(2) and \sqrt 2 are `\sqrt{2}`.

Only text is looked at and only text comes out, in time linear in it but for brackets inside
brackets. Nothing here may change a value. What cannot be read for certain (digits side by side,
5'6") is left as it is, and `is_readable` says so.
"""

import re

from dft_jax.evals.graders import extraction

# Characters -> what is written instead of each of them.
_CHARACTERS = {
    "\u200b\u200c\u200d\u2060\ufeff\u00ad": "",
    "\u00a0\u2002\u2003\u2009\u200a\u202f\u3000": " ",
    "\u2212\u2013\u2014\u2010\u2011": "-",
    "\u00d7": r"\times ",
    "\u00b7\u22c5\u2219": r"\cdot ",
    "\u00f7": "/",
    "\u2044\u2215": "/",
    "\u2264\u2a7d": r"\le ",
    "\u2265\u2a7e": r"\ge ",
    "\u2260": r"\ne ",
    "\u2248": r"\approx ",
    "\u00b1": r"\pm ",
    "\u2213": r"\mp ",
    "\u221e": r"\infty ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u2208": r"\in ",
    "\u2216": r"\setminus ",
    "\u2205": r"\emptyset ",
    "\u211d": r"\mathbb{R}",
    "\u2124": r"\mathbb{Z}",
    "\u00b0\u00ba": r"^\circ ",
    "\u2032\u2019": "'",
    "\u2033\u201d\u201c": '"',
    "\u2026": r"\ldots ",
    "\u00bd": r"\frac{1}{2}",
    "\u00bc": r"\frac{1}{4}",
    "\u00be": r"\frac{3}{4}",
    "\u2153": r"\frac{1}{3}",
    "\u2154": r"\frac{2}{3}",
}
_GREEK = {
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "ε": "epsilon",
    "θ": "theta",
    "λ": "lambda",
    "μ": "mu",
    "π": "pi",
    "ρ": "rho",
    "σ": "sigma",
    "τ": "tau",
    "φ": "phi",
    "ω": "omega",
    "Δ": "Delta",
    "Ω": "Omega",
}
# From where the characters of ASCII are there once more, in full width.
_FULL_WIDTH = 0xFEE0


def _translation() -> dict[int, str]:
    """For `str.translate`: what is written instead of each character."""
    plain: dict[str, str] = {}
    for characters, instead in _CHARACTERS.items():
        plain |= dict.fromkeys(characters, instead)
    for letter, name in _GREEK.items():
        plain[letter] = f"\\{name} "
    for code in range(ord("!"), ord("~") + 1):
        plain[chr(code + _FULL_WIDTH)] = chr(code)
    return str.maketrans(plain)


_TRANSLATION = _translation()
_GREEK_COMMANDS = {f"\\{name}" for name in _GREEK.values()} | {
    f"\\{name}"
    for name in (
        "zeta eta iota kappa nu xi upsilon chi psi varepsilon vartheta varphi varrho"
        " Gamma Theta Lambda Xi Pi Sigma Upsilon Phi Psi ell hbar"
    ).split()
}
# What may have an index, and its index. A command is taken whole, so that the m of \sum is no
# letter; whether it is one says `is_letter`.
_INDEXED = re.compile(r"(\\[A-Za-z]+|[A-Za-z])\s*_\s*(?:\{((?:[^{}]|\{[^{}]*\})*)\}|(\\[A-Za-z]+))")
_TYPEFACE = re.compile(r"\\(?:text|mathrm|textrm|mathit|textit|mathbf|operatorname)\s*\{([^{}]*)\}")
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉"
_RAISED_RUN = re.compile(f"[{_RAISED}]+")
_LOWERED_RUN = re.compile(f"[{_LOWERED}]+")
_FROM_RAISED = str.maketrans(_RAISED, "0123456789+-n")
_FROM_LOWERED = str.maketrans(_LOWERED, "0123456789")

# A text command; its only group is the text.
TEXT = (
    r"\\(?:text|mathrm|mbox|textrm|textbf|mathbf|textit|mathit|operatorname)"
    r"\s*\{\s*~?\s*([^{}]*?)\s*\}"
)
_FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp"
_NAMES = "pi theta alpha beta gamma lambda omega"
_COMMANDS = "|".join(f"{_FUNCTIONS} {_NAMES}".split())

# (pattern, what is written instead), in this order.
_SPELLINGS = [
    # Sizes of brackets.
    (r"\\(?:left|right)\s*\.", ""),
    (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits)(?![A-Za-z])\s*", ""),
    # Brackets and relations that have several names.
    (r"\\lbrace(?![A-Za-z])|\\\{", r"\\{"),
    (r"\\rbrace(?![A-Za-z])|\\\}", r"\\}"),
    (r"\\lbrack(?![A-Za-z])", "["),
    (r"\\rbrack(?![A-Za-z])", "]"),
    (r"\\(?:langle)(?![A-Za-z])", "("),
    (r"\\(?:rangle)(?![A-Za-z])", ")"),
    (r"\\(?:varnothing|empty)(?![A-Za-z])", r"\\emptyset"),
    (r"\\(?:leqslant|leq)(?![A-Za-z])", r"\\le"),
    (r"\\(?:geqslant|geq)(?![A-Za-z])", r"\\ge"),
    (r"\\neq(?![A-Za-z])", r"\\ne"),
    (r"\\(?:Rbb|R|reals|Reals)(?![A-Za-z])", r"\\mathbb{R}"),
    # Colours and typefaces, which change no value.
    (r"\\(?:color|textcolor)\s*\{[A-Za-z]*\}", ""),
    (r"\\(?:boldsymbol|bm|underline|mathbf|mathit|textit|textbf)\s*\{([^{}a-zA-Z\\]*)\}", r"{\1}"),
    (
        r"\\(?:boldsymbol|bm|underline|mathop|mathsf|emph|[lL]arge|huge|small|normalsize)"
        r"(?![A-Za-z])",
        "",
    ),
    (r"\\(?:texttt|textsf|mathtt)(?![A-Za-z])", r"\\text"),
    (r"\\lg(?![A-Za-z])", r"\\log"),
    # Quotation marks around the whole, and signs of currencies other than the dollar.
    (r"^\s*(\\text\s*\{\s*)?\"([^\"]*)\"\s*(\})?$", r"\1\2\3"),
    (r"[€£¥]\s*(?=[\d.])", ""),
    # The set {x | x > 0} is its rule.
    (
        r"\\\{\s*[A-Za-z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?"
        r"(?:\\mid(?![A-Za-z])|\\vert(?![A-Za-z])|\||:)"
        r"([^{}|:]*[<>=][^{}|:]*|[^{}|:]*\\(?:le|ge|ne)(?![A-Za-z])[^{}|:]*)\\\}$",
        r"\1",
    ),
    # Numbers inside text commands.
    (r"\\(?:text|mathrm|mbox|textrm)\s*\{\s*([-+]?[\d.,]+)\s*\}", r"\1"),
    (r"\\(?:text|mbox|textrm)\s*\{\s*([-+]?\d[\d.,]*)\s+([A-Za-z ]+)\}", r"\1 \\text{ \2}"),
    # The numbers e and i.
    (r"\\(?:mathrm|text|operatorname)\s*\{\s*([ei])\s*\}", r"\1"),
    (r"\\imath(?![A-Za-z])", "i"),
    # Primes.
    (r"\^\s*(?:\{\s*\\prime\s*\\prime\s*\}|\\prime\s*\\prime(?![A-Za-z]))", "''"),
    (r"\^\s*(?:\{\s*(?:\\prime|')\s*\}|\\prime(?![A-Za-z]))", "'"),
    # Degrees.
    (
        r"\^\s*\{\s*(?:\\circ|\\degree|\\deg|\\text\s*\{\s*o\s*\}|\\mathrm\s*\{\s*o\s*\})"
        r"(?![A-Za-z])\s*\}",
        r"^\\circ ",
    ),
    (r"\^\s*(?:\\circ|\\degree|\\deg)(?![A-Za-z])\s*", r"^\\circ "),
    (r"\\(?:degree|deg)(?![A-Za-z])", r"^\\circ "),
    # Fractions and powers.
    (r"\\([dtc])frac(?![A-Za-z])", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\*\*", "^"),
    # Spaces, dollar signs and dots.
    (r"\{,\}", ","),
    (r"\\[!]\s*", ""),
    (r"\\\$|\$", ""),
    (r"(?<=\d)\./", "/"),
    (r"(?<!\\)\\(?:quad|qquad|space)(?![A-Za-z])|(?<!\\)\\[,;:>\s]|~", " "),
    (r"\\(?:dots|cdots|dotsc|ldots)(?![A-Za-z])|\.\.\.", r"\\ldots "),
    # np.arcsin(10/13), as one reference has it.
    (rf"(?<![A-Za-z.])(?:np|numpy|math)\.(?=(?:{_COMMANDS}|sqrt)(?![A-Za-z]))", ""),
    # Functions, constants and roots without their backslash.
    (rf"(?<![\\A-Za-z{{])({_COMMANDS})(?![A-Za-z])(?!\s*\}})", r"\\\1 "),
    (r"(?<![A-Za-z\\])\\?sqrt\s*(\d+|[A-Za-z])(?![A-Za-z\d(])", r"\\sqrt{\1}"),
    (r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}"),
    (r"√\s*\{", r"\\sqrt{"),
    # Percent.
    (r"(?<=\d)\s*(?:percent\b|\\text\s*\{\s*percent\s*\})", r"\\%"),
    (r"(?<![\\])%", r"\\%"),
    # Powers of ten; else 3e-8 is 3·e − 8.
    (r"(?<=\d)\s*(?:x|\*)\s*(?=10\s*\^)", r" \\cdot "),
    (r"(?<![\w.\\])(\d+(?:\.\d*)?)[eE]([-+]?\d+)(?![\w.^])", r"\1 \\cdot 10^{\2}"),
    # Signs before the whole.
    (r"^(?:\s|\\approx(?![A-Za-z])|\\sim(?![A-Za-z])|(?<![<>])=|:)+", ""),
    (r"^\+\s*(?=[\d.\\])", ""),
]
_RULES = [(re.compile(pattern), new) for pattern, new in _SPELLINGS]
# What ends an answer and is no part of it.
_ENDS = re.compile(r"(?:\s|\\\\|\\$|,|;|(?<![\d.])\.(?=$))+$")
# \sin^2 20^\circ; and the bracket after a function, in which there may be degrees.
_OF_AN_ANGLE = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)(?:\s*\^\s*(?:\{[^{}]*\}|\d))?)\s*"
    r"(?:(\d+(?:\.\d+)?|\\frac\{\d+\}\{\d+\}|\\?[A-Za-z]+)\s*\^\\circ(?![A-Za-z])|([({]))"
)
_DEGREE = re.compile(r"\s*\^\\circ(?![A-Za-z])\s*")
_RADIANS = r" \\cdot \\frac{\\pi}{180} "
# Repeating decimals: 0.1\overline{6}, 0.1666\ldots
_OVERLINED = re.compile(
    r"(?<![\w.])(\d*)\.(\d*)\\(?:overline|bar|dot|overbar)\s*(?:\{\s*(\d+)\s*\}|(\d))"
)
_AND_SO_ON = re.compile(r"(?<![\w.])(\d*)\.(\d*?)(\d)\3\3+\s*\\ldots")
# 2 1/6
_MIXED = re.compile(
    r"(?<![\w./^_}\s])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w.])|^(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w.])"
)
# Groups of three digits: 70 000; 70,000
_GROUPS = re.compile(r"(?<![\d.,])(\d{1,3})((?:\s+\d{3})+)(?![\d,])")
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?![\d,])")
# 3 4, 5'6", 3^\circ 20, 3 \ldots; and (fg)', whose prime the parser drops.
_SIDE_BY_SIDE = re.compile(
    r"(?<![_^\d.])\d[\d.]*\s+[\d.]|[\d)\]]\s*['\"]|\d\^\\circ\s*\d|\d\s*\\ldots"
)
# 3(x + 1), which the parser would take for a function.
_PRODUCT = re.compile(r"(?<![\w.^_}])(\d+(?:\.\d+)?)\s*\((?=[^()]*\))")
# What is said in words.
_WORDS = {
    "all real numbers": r"\mathbb{R}",
    "all reals": r"\mathbb{R}",
    "real numbers": r"\mathbb{R}",
    "the real numbers": r"\mathbb{R}",
    "all integers": r"\mathbb{Z}",
    "the empty set": r"\emptyset",
    "empty set": r"\emptyset",
    "no solution": r"\emptyset",
    "no solutions": r"\emptyset",
    "no real solution": r"\emptyset",
    "no real solutions": r"\emptyset",
    "infinity": r"\infty",
    "positive infinity": r"\infty",
    "negative infinity": r"-\infty",
}


def spell(answer: str) -> str:
    """The same answer in the one spelling that is compared and parsed."""
    text = extraction.tidy(answer.replace("...", r"\ldots "))
    text = _RAISED_RUN.sub(lambda match: f"^{{{match[0].translate(_FROM_RAISED)}}}", text)
    text = _LOWERED_RUN.sub(lambda match: f"_{{{match[0].translate(_FROM_LOWERED)}}}", text)
    text = text.translate(_TRANSLATION)
    text = _roots(text)
    for pattern, new in _RULES:
        text = pattern.sub(new, text)
    text = _OVERLINED.sub(lambda match: _repeating(match[1], match[2], match[3] or match[4]), text)
    text = _AND_SO_ON.sub(lambda match: _repeating(match[1], match[2], match[3]), text)
    text = _INDEXED.sub(_with_plain_index, text)
    text = _in_radians(text)
    text = _ENDS.sub("", text).strip()
    text = _mixed(_groups(text))
    text = _PRODUCT.sub(r"\1 \\cdot (", text)
    text = extraction.tidy(text)
    return _WORDS.get(" ".join(bare_words(text).split()), text)


def bare_words(text: str) -> str:
    """The text with its text commands gone, in small letters."""
    return re.sub(TEXT, r"\1", text).lower().strip(" .")


def is_readable(text: str) -> bool:
    r"""Whether the text can be parsed for what it says; not 3 4 nor 5'6", numbers side by side."""
    return _SIDE_BY_SIDE.search(text) is None


def is_letter(token: str) -> bool:
    r"""Whether a letter or a command is the name of a variable: x and \omega, but not \sum."""
    return len(token) == 1 or token in _GREEK_COMMANDS


def _with_plain_index(match: re.Match) -> str:
    r"""m_{max} for m_{\max }, m_{\text {max}} and m_{\rm max}; M_{odot} for M_\odot.

    The parser knows no command in an index, and reads one in \text as another name.
    """
    letter, in_braces, command = match.groups()
    index = _TYPEFACE.sub(r"\1", in_braces or command or "")
    index = re.sub(r"\\rm(?![A-Za-z])|[\s\\]", "", index)
    if not is_letter(letter) or not re.fullmatch(r"[A-Za-z0-9,]+", index):
        return match[0]
    return f"{letter}_{{{index}}}"


def _roots(text: str) -> str:
    r"""sqrt(x), \sqrt(x) and √(x), which TeX reads as the root of a bracket, with braces."""
    parts = []
    start = 0
    text = re.sub(r"∛\s*(\d+|[A-Za-z])", r"\\sqrt[3]{\1}", text)
    for match in re.finditer(r"(?<![A-Za-z\\])\\?sqrt\s*\(|√\s*\(", text):
        end = _closing(text, match.end() - 1)
        if match.start() < start or end < 0:
            continue
        parts.append(text[start : match.start()])
        parts.append("\\sqrt{" + _roots(text[match.end() : end]) + "}")
        start = end + 1
    return "".join([*parts, text[start:]])


def _closing(text: str, start: int) -> int:
    """Where the round bracket opened at `start` is closed, or -1."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return -1


def _in_radians(text: str) -> str:
    r"""\cos 20^\circ as the cosine of 20 \pi / 180: the degrees of what a function is of are a
    part of the value, and no unit of it, such as may be left out.
    """
    parts = []
    start = 0
    for match in _OF_AN_ANGLE.finditer(text):
        function, angle, bracket = match.groups()
        end = match.end()
        if bracket:
            begin = end
            end = _closing(text, begin - 1)
            if bracket == "{":
                end = extraction.matching_brace(text, begin - 1)
            angle = text[begin:end]
            end += 1
        if match.start() < start or end <= 0 or (bracket and not _DEGREE.search(angle)):
            continue
        if not bracket:
            angle += "^\\circ"
        parts.append(text[start : match.start()])
        parts.append(f"{function}({_DEGREE.sub(_RADIANS, angle)})")
        start = end
    return "".join([*parts, text[start:]])


def _repeating(whole: str, begin: str, period: str) -> str:
    """0.1666… as a fraction: whole "0", begin "1", period "6" is 15/90."""
    nines = 10 ** len(begin) * (10 ** len(period) - 1)
    value = int((whole + begin + period) or "0") - int((whole + begin) or "0")
    return f"\\frac{{{value}}}{{{nines}}}"


def _mixed(text: str) -> str:
    """2 1/6 is two and a sixth; with a larger numerator it is nothing that people write."""

    def with_fraction(match: re.Match) -> str:
        whole, numerator, denominator = (part for part in match.groups() if part is not None)
        if int(numerator) >= int(denominator):
            return match[0]
        return f"{whole}\\frac{{{numerator}}}{{{denominator}}}"

    return _MIXED.sub(with_fraction, text)


def _groups(text: str) -> str:
    """70 000 and 70,000 without their separators: digits join in groups of three only."""
    text = _GROUPS.sub(lambda match: match[1] + re.sub(r"\s", "", match[2]), text)

    def joined(match: re.Match) -> str:
        before = text[: match.start()].replace("\\{", "(").replace("\\}", ")")
        opened = before.count("(") + before.count("[")
        closed = before.count(")") + before.count("]")
        # (312,123) is a pair.
        if opened > closed:
            return match[0]
        return match[1].replace(",", "")

    return _THOUSANDS.sub(joined, text)


def key(text: str) -> str:
    """For the comparison of spelled texts: without spaces and text commands, words in small.

    Spaces between digits stay, as another character: 3 4 is not 34.
    """
    text = re.sub(TEXT, r"\1", text)
    text = re.sub(r"(?<=\d)\s+(?=\d)", "\x00", text)
    # \in t is not \int.
    text = re.sub(r"(\\[A-Za-z]+)\s+(?=[A-Za-z])", "\\1\x01", text)
    text = re.sub(r"\s", "", text)
    if re.fullmatch(r"[A-Za-z'.-]{3,}", text):
        return text.lower().strip(".")
    return text


def is_word(text: str) -> bool:
    r"""Whether the answer is a word: three letters or more, in \text or with a vowel.

    Else it is a product of letters.
    """
    inside = re.fullmatch(TEXT, text)
    letters = text
    if inside:
        letters = inside[1]
    letters = re.sub(r"[\s.,'-]", "", letters)
    if not re.fullmatch(r"[A-Za-z]{3,}", letters):
        return False
    return inside is not None or re.search("[aeiouAEIOU]", letters) is not None
