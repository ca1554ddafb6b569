r"""math-verify's parser and comparison, fit for a worker: no string is compiled, numbers exact.

Its parser reads "6" as `sympy.Number("6")`, and that evaluates Python source made of the text. Only
what the grammar took for a number gets there, but nothing should: numbers are built here, decimals
as the fractions that they are.
"""

import functools
import importlib
import re
from collections.abc import Callable
from typing import Any

from dft_jax.evals.graders import spelling

# As the grammar gives numbers.
_INTEGER = re.compile(r"-?[0-9]+")
_DECIMAL = re.compile(r"(-?)([0-9]*)\.?([0-9]*)(?:[eE]([-+]?[0-9]{1,4}))?")
# Letters that the grammar takes for something else: (\gamma - 1) for the gamma function at -1, a
# pole, \Pi for pi.
_SYMBOLS = [
    (re.compile(r"\\gamma(?![A-Za-z])"), r"\\kappa_{g}"),
    (re.compile(r"\\Gamma(?![A-Za-z])(?!\s*\()"), r"\\kappa_{G}"),
    (re.compile(r"\\Pi(?![A-Za-z])"), r"\\kappa_{P}"),
]
# A letter or a command with primes, an index, or both: y'', x_1', x'_{12}.
_NAME = re.compile(r"(\\[A-Za-z]+|[A-Za-z])('*)(?:\s*_\s*(?:\{([^{}]*)\}|(\w)))?('*)")
# To the grammar these are numbers or functions: it has no E_1, and takes I_0 and I_1 for the
# imaginary unit.
_NO_VARIABLES = ("E", "e", "I", "\\gamma", "\\Gamma", "\\Pi")


def patch_math_verify(
    same_value: Callable[[Any, Any], bool], same_equations: Callable[[Any, Any], bool | None]
) -> None:
    """Patches math-verify and sympy in this process: no string is compiled, two equalities go.

    Those were none: M/m = m/M (all letters were made small), and that of two equations without
    solutions, such as n = n + 7 and x^2 = -1. math-verify's own comparison of values is replaced:
    it rounds to six decimals, where 2^-99 is 2^-98, and takes stop for post, as products of
    letters.

    Args:
      same_value: decides whether two expressions are equal.
      same_equations: decides whether two equations are, or leaves that (None) to sympy's solver,
        which takes seconds.
    """
    _compile_no_strings()
    _read_exact_numbers()
    _keep_case()
    _compare_by(same_value, same_equations)


def _compile_no_strings() -> None:
    """Replaces what makes source of its own: then the guard of the worker can be simple.

    sympy's polynomials write source for each number of variables, and its rationals come back from
    mpmath as source; no text of a model is in either.
    """
    import mpmath
    from sympy.polys import monomials

    # Both write source, or read it, when they are first imported: the dataclasses of the one, the
    # names of prefixes in the other, which solve and as_set import.
    importlib.import_module("sympy.integrals.manualintegrate")
    importlib.import_module("sympy.physics.units")

    for name in ("mul", "pow", "ldiv", "div", "lcm", "gcd"):
        plain = getattr(monomials, f"monomial_{name}")
        setattr(monomials.MonomialOps, name, lambda self, plain=plain: plain)
    monomials.MonomialOps.mulpow = lambda self: _monomial_mulpow

    identify = mpmath.identify
    mpmath.identify = lambda *args, **options: _fraction(identify(*args, **options))


def _read_exact_numbers() -> None:
    """Numbers are built here, decimals as fractions, where the parser evaluates Python source."""
    from latex2sympy2_extended import latex2sympy2

    def convert_number(text: str) -> Any:
        # 0,111 is a decimal, 1,111 a thousand.
        if text.startswith("0"):
            return number(text.replace(",", "."))
        return number(text.replace(",", ""))

    latex2sympy2.convert_number = convert_number
    latex2sympy2._Latex2Sympy.parse_number = lambda self, text: number(text.replace(",", ""))


def _keep_case() -> None:
    """Letters are made small, as math-verify does, only where that makes no two of them one."""
    import math_verify.parser
    from latex2sympy2_extended import latex2sympy2

    def latex2sympy(latex: str, **options: Any) -> Any:
        config = latex2sympy2.ConversionConfig(lowercase_symbols=not _uses_both_cases(latex))
        return latex2sympy2.latex2sympy(latex, conversion_config=config, **options)

    math_verify.parser.latex2sympy = latex2sympy


def _compare_by(
    same_value: Callable[[Any, Any], bool], same_equations: Callable[[Any, Any], bool | None]
) -> None:
    """Replaces math-verify's comparisons of values and of equations."""
    import math_verify.grader
    import math_verify.parser
    import sympy

    def solve(*arguments: Any) -> Any:
        solutions = sympy.solve(*arguments)
        # math-verify takes an error for "not equal".
        if not solutions:
            raise ValueError("nothing to compare")
        return solutions

    solve_and_compare = math_verify.grader.sympy_solve_and_compare

    def compare_relations(gold: Any, pred: Any, *precision: int) -> bool:
        if isinstance(gold, sympy.Eq) and isinstance(pred, sympy.Eq):
            verdict = same_equations(gold, pred)
            if verdict is not None:
                return verdict
        return solve_and_compare(gold, pred, *precision)

    math_verify.grader.solve = solve
    math_verify.grader.sympy_solve_and_compare = compare_relations
    math_verify.grader.sympy_numeric_eq = lambda a, b, *precision: same_value(a, b)
    # The symbolic comparison comes after the numeric one, which has decided.
    math_verify.grader.sympy_symbolic_eq = lambda a, b: False
    math_verify.grader.sympy_compare_symbols = same_value
    # Its warnings that time limits are off: the parent of the worker has its own.
    math_verify.grader.TIMEOUT_WARNING_SHOWN = math_verify.parser.TIMEOUT_WARNING_SHOWN = True


def _uses_both_cases(latex: str) -> bool:
    letters = set(re.sub(rf"{spelling.TEXT}|\\[A-Za-z]+", "", latex))
    return any(letter.isupper() and letter.lower() in letters for letter in letters)


def _monomial_mulpow(a: tuple, b: tuple, power: int) -> tuple:
    return tuple(x + y * power for x, y in zip(a, b, strict=True))


def _fraction(formula: Any) -> Any:
    """mpmath's "(5/4)" as a sympy number; None for a formula such as "log(2)".

    None is also mpmath's own word for nothing found.
    """
    import sympy

    if not isinstance(formula, str):
        return None
    match = re.fullmatch(r"(-?)\((-?[0-9]+)/([0-9]+)\)|(-?[0-9]+)", formula)
    if match is None:
        return None
    if match[4]:
        return sympy.Integer(int(match[4]))
    value = sympy.Rational(int(match[2]), int(match[3]))
    if match[1]:
        return -value
    return value


def number(text: str) -> Any:
    """The sympy number that digits stand for, a fraction for a decimal; else a ValueError."""
    import sympy

    text = text.replace(" ", "")
    if _INTEGER.fullmatch(text):
        return sympy.Integer(int(text))
    match = _DECIMAL.fullmatch(text)
    if match is None or not match[2] + match[3]:
        raise ValueError("not a number")
    digits, exponent = int(match[2] + match[3]), int(match[4] or 0) - len(match[3])
    value = sympy.Rational(digits * 10 ** max(exponent, 0), 10 ** max(-exponent, 0))
    if match[1]:
        return -value
    return value


@functools.lru_cache(maxsize=64)
def parse(text: str) -> Any:
    """The sympy object that a spelled answer is, by math-verify's grammar; None where it is none.

    Parsing goes through a grammar to sympy's constructors, never through text. Units are not
    removed: its rule for them drops any of c d g h l m o s t after a number.
    """
    import math_verify.parser as parser
    import sympy

    text = _NAME.sub(_named, text)
    if not spelling.is_readable(text):
        return None
    for command, symbol in _SYMBOLS:
        text = command.sub(symbol, text)
    config = parser.NormalizationConfig(
        True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    try:
        found: Any = parser.parse_latex_cached(parser.normalize_latex(text, config))
        # 1/0 is equal to nothing.
        if found.has(sympy.zoo, sympy.nan):
            return None
        return found
    except MemoryError:
        raise
    except Exception:
        return None


def _named(match: re.Match) -> str:
    r"""A variable that the grammar knows: \kappa_{E1} for E_1, y_{primeprime} for y'', whose primes
    the grammar drops.
    """
    letter = match[1]
    index = match[3] or match[4] or ""
    primes = match[2] + match[5]
    is_new = letter in _NO_VARIABLES and bool(index or primes)
    if not spelling.is_letter(letter) or not (is_new or primes):
        return match[0]
    index += "prime" * len(primes)
    if is_new:
        name = letter.removeprefix("\\")
        return f"\\kappa_{{{name}{index}}}"
    return f"{letter}_{{{index}}}"


def equal(answer: Any, reference: Any) -> bool:
    """math-verify's comparison of two sympy objects.

    An interval also equals the inequality that it is the set of.
    """
    from math_verify.grader import sympy_expr_eq

    try:
        return bool(
            sympy_expr_eq(reference, answer, 6, 15, allow_set_relation_comp=True, strict=True)
        )
    except MemoryError:
        raise
    except Exception:
        return False


def parse_as_published(answer: str) -> list:
    r"""math-verify's own reading, for the paper's rules: [expression, text], [text], or nothing.

    The box makes it take the whole answer; "first_match" keeps it from grading by any fraction
    inside an answer that it cannot parse.
    """
    import math_verify

    config = math_verify.LatexExtractionConfig(boxed_match_priority=0)
    no_timeout: Any = None  # the worker has a limit of its own
    return math_verify.parse(
        f"\\boxed{{{answer}}}", [config], extraction_mode="first_match", parsing_timeout=no_timeout
    )


def verify_as_published(answer: list, reference: list) -> bool:
    """math-verify's own verdict on two such readings."""
    import math_verify

    return math_verify.verify(reference, answer, timeout_seconds=None)
