"""Whether two expressions have the same value.

Rational numbers are compared exactly, other numbers by many digits, expressions with variables at
points. No floats: 2^-99 and 2^-98 are the same to six decimals, and 1 - 2^-99 is 1 to fifteen
digits.
"""

import random
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

# Of a value that is not rational; two that agree in them are compared with as many as their numbers
# need, up to the larger limit.
DIGITS = 60
MOST_DIGITS = 4_000
# How far a rounded decimal may be off, whatever its last digit allows.
RELATIVE = Fraction(1, 10**6)
# Of a decimal that stands for what it is rounded from.
LEAST_DIGITS = 6
# At which expressions with variables are compared.
POINTS = 4
# Beyond those of the largest whole number in them, so that x is seen beside 10^33.
POINT_DIGITS = 40
# Of functions with steps, such as floor.
INTEGER_POINTS = 12

# Real and imaginary part of a number.
Parts = tuple[Fraction, Fraction]
_ZERO = (Fraction(0), Fraction(0))

# A decimal, perhaps times a power of ten.
_DECIMAL = re.compile(
    r"(?<![\w.])(\d*)\.(\d+)"
    r"(?:\s*(?:\\cdot|\\times|\*)\s*10\s*\^\s*(?:\{\s*([-+]?\d{1,4})\s*\}|(\d)))?"
)
# Digits, a decimal, \frac{1}{2} and 1/2.
_PLAIN = re.compile(
    r"(-?)\s*(?:(\d+)(?:\.(\d*))?|\.(\d+)"
    r"|\\frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}|(\d+)\s*/\s*(\d+))"
)
# i as an index, or as a unit vector.
_I_AS_INDEX = re.compile(
    r"_\s*(?:i(?![A-Za-z])|\{[^{}]*(?<![A-Za-z])i(?![A-Za-z])[^{}]*\})|\\hat\s*\{?\s*i"
)


class Comparison:
    """One comparison of two texts: what of them is a decimal, and whether i is the imaginary unit.

    A decimal is the exact fraction it writes. With six digits or more it also stands for what is
    rounded, or cut, to its last digit, within a millionth: 0.0833333333 is 1/12. Two decimals are
    equal if they are the same number.
    """

    def __init__(self, answer: str, reference: str):
        self.last_digits: dict[Fraction, Fraction] = {}
        for text in (answer, reference):
            for whole, decimals, power, digit in _DECIMAL.findall(text):
                scale = Fraction(10) ** int(power or digit or 0)
                unit = scale / 10 ** len(decimals)
                self.last_digits[int(whole + decimals) * unit] = unit
        self.has_imaginary_unit = _uses_imaginary_unit(answer, reference)

    def same(self, a: Any, b: Any) -> bool:
        """Whether two sympy objects, no sets nor relations, have one value."""
        import sympy

        if isinstance(a, sympy.MatrixExpr):
            a = a.doit()
        if isinstance(b, sympy.MatrixExpr):
            b = b.doit()
        if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
            if a.shape != b.shape:
                return False
            return all(self.same(*pair) for pair in zip(a.flat(), b.flat(), strict=True))
        if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
            return False
        percent_a, percent_b = _percent(a), _percent(b)
        if percent_a is not None and percent_b is not None:
            return self.same(percent_a, percent_b)
        # 50 for 50 %.
        if percent_a is not None and self._same(percent_a, b):
            return True
        if percent_b is not None and self._same(percent_b, a):
            return True
        return self._same(a, b)

    def _same(self, a: Any, b: Any) -> bool:
        """Whether two expressions have one value."""
        import sympy

        a, b = self._evaluated(a), self._evaluated(b)
        if a == b:
            return a not in (sympy.nan, sympy.zoo)
        if a.has(sympy.nan, sympy.zoo, sympy.oo) or b.has(sympy.nan, sympy.zoo, sympy.oo):
            return False
        if a.is_Rational and b.is_Rational:
            return self.same_fractions(Fraction(int(a.p), int(a.q)), Fraction(int(b.p), int(b.q)))
        if not a.free_symbols and not b.free_symbols:
            return self._same_numbers(a, b)
        return _same_functions(a, b)

    def same_equations(self, a: Any, b: Any) -> bool | None:
        """Whether two equations have the same solutions; None where that cannot be seen at points.

        It can be where each is linear in one of its variables: then points of its solutions are
        known.
        """
        zero_of_a = self._evaluated(a.lhs) - self._evaluated(a.rhs)
        zero_of_b = self._evaluated(b.lhs) - self._evaluated(b.rhs)
        if zero_of_a.free_symbols != zero_of_b.free_symbols:
            return False
        verdicts = (_vanishes_on(zero_of_a, zero_of_b), _vanishes_on(zero_of_b, zero_of_a))
        if False in verdicts:
            return False
        if None in verdicts:
            return None
        return True

    def _evaluated(self, expression: Any) -> Any:
        """The expression in plain symbols, so that equal names are equal symbols."""
        import sympy

        if self.has_imaginary_unit:
            letters = [symbol for symbol in expression.free_symbols if symbol.name == "i"]
            expression = expression.subs(dict.fromkeys(letters, sympy.I))
        # f(x) of an unknown f, and derivatives, are values like any others.
        unknown = expression.atoms(sympy.core.function.AppliedUndef, sympy.Derivative)
        functions = {function: sympy.Symbol(str(function)) for function in unknown}
        expression = expression.xreplace(functions)
        # Real on one side and complex on the other, symbols would never be equal.
        names = {symbol: sympy.Symbol(symbol.name) for symbol in expression.free_symbols}
        expression = expression.subs(names)
        expression = expression.replace(
            lambda part: isinstance(part, sympy.UnevaluatedExpr), lambda part: part.args[0]
        )
        return expression.doit()

    def same_fractions(self, a: Fraction, b: Fraction) -> bool:
        """Whether two rational numbers are one, or one is the other as a rounded decimal."""
        if a == b:
            return True
        is_one_a_decimal = (abs(a) in self.last_digits) != (abs(b) in self.last_digits)
        return is_one_a_decimal and self._is_rounded(a, b)

    def _is_rounded(self, a: Fraction, b: Fraction) -> bool:
        """Whether one is the other as a decimal of six digits or more, rounded or cut.

        A whole number is not: 2.19e6 is 2190000, and not 2190001.
        """
        decimal, exact = a, b
        if abs(a) not in self.last_digits:
            decimal, exact = b, a
        unit = self.last_digits[abs(decimal)]
        off = abs(exact) - abs(decimal)
        is_near = abs(off) <= unit / 2 or 0 <= off < unit
        is_long = abs(decimal) >= unit * 10 ** (LEAST_DIGITS - 1)
        if not is_long or not is_near or decimal * exact <= 0:
            return False
        # What has another, longer decimal is that one: 4.03188 is not 4.03188 + 10^-16.
        has_long_decimal = exact.denominator > 10**9 and 10**60 % exact.denominator == 0
        if exact.denominator == 1 or has_long_decimal:
            return False
        return abs(off) <= RELATIVE * abs(exact)

    def _same_numbers(self, a: Any, b: Any) -> bool:
        """Whether two numbers, one of which is not rational, agree in all digits that matter."""
        parts_a, parts_b = _parts(a, DIGITS), _parts(b, DIGITS)
        if parts_a is None or parts_b is None:
            return _is_zero(a - b)
        if _agree(parts_a, parts_b, Fraction(1, 10**45)):
            digits = _digits_needed(a, b)
            if digits <= DIGITS:
                return True
            tolerance = Fraction(1, 10 ** (digits - 15))
            return _agree(_parts(a, digits), _parts(b, digits), tolerance)
        real_a, imaginary_a = parts_a
        real_b, imaginary_b = parts_b
        if imaginary_a or imaginary_b:
            return False
        is_one_a_decimal = abs(real_a) in self.last_digits or abs(real_b) in self.last_digits
        return is_one_a_decimal and self._is_rounded(real_a, real_b)


def plain(text: str) -> Fraction | None:
    """The value of digits, a decimal or one fraction, without a parser; None for anything else."""
    match = _PLAIN.fullmatch(text.strip())
    if match is None:
        return None
    sign, whole, decimals, only_decimals, *fraction = match.groups()
    if whole is not None or only_decimals is not None:
        decimals = only_decimals or decimals or ""
        value = Fraction(int((whole or "") + decimals), 10 ** len(decimals))
    else:
        numerator, denominator = (int(part) for part in fraction if part is not None)
        if denominator == 0:
            return None
        value = Fraction(numerator, denominator)
    if sign:
        return -value
    return value


def _uses_imaginary_unit(answer: str, reference: str) -> bool:
    """Whether i is the unit: not where it is an index, nor one of the unit vectors."""
    texts = f"{answer} {reference}"
    # Beside j, i is a unit vector too.
    letters = re.sub(r"\\[A-Za-z]+", " ", texts)
    if "j" in letters:
        return False
    return _I_AS_INDEX.search(texts) is None


def _percent(expression: Any) -> Any:
    """What stands before the percent sign; None without one."""
    import sympy

    hundredth = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
    if isinstance(expression, sympy.Mul) and expression.args[1:] == (hundredth,):
        return expression.args[0]
    return None


def _parts(expression: Any, digits: int) -> Parts | None:
    """Real and imaginary part as fractions, to so many digits; None where there is no such number.

    A part of which not one digit is sure is 0.
    """
    import sympy

    if expression.is_Rational:
        return Fraction(int(expression.p), int(expression.q)), Fraction(0)
    value = expression.evalf(digits, maxn=max(10 * digits, 1_000))
    if not value.is_number:
        return None
    parts = []
    for part in value.as_real_imag():
        if not (part.is_Float or part.is_Rational) or not part.is_finite:
            return None
        is_unsure = part.is_Float and part._prec <= 1
        if is_unsure:
            parts.append(Fraction(0))
        else:
            exact: Any = sympy.Rational(part)
            parts.append(Fraction(int(exact.p), int(exact.q)))
    return parts[0], parts[1]


def _agree(a: Parts | None, b: Parts | None, relative: Fraction) -> bool:
    """Whether both are known and differ by no more than this part of the largest of them."""
    if a is None or b is None:
        return False
    size = max(*map(abs, a), *map(abs, b))
    return all(abs(x - y) <= relative * size for x, y in zip(a, b, strict=True))


def _digits_needed(a: Any, b: Any) -> int:
    """As many as the largest whole number in the two has, and more: it may differ in its last one.

    Raises:
      MemoryError: more than MOST_DIGITS; the verdict is `timeout` then.
    """
    import sympy

    integers = a.atoms(sympy.Integer) | b.atoms(sympy.Integer)
    bits = max((int(integer).bit_length() for integer in integers), default=0)
    # A decimal digit is log2(10) = 3.3 bits.
    digits = bits * 3 // 10 + 20
    if digits > MOST_DIGITS:
        raise MemoryError("more digits than are compared")
    return max(digits, DIGITS)


def _is_zero(expression: Any) -> bool:
    import sympy

    return bool(sympy.simplify(expression).is_zero)


def _same_functions(a: Any, b: Any) -> bool:
    """Whether two expressions with variables agree at points of any sign, or at positive ones.

    Agreement at random points to 85 digits is no proof, but what is no identity does not pass.
    Variables are positive for a second try, so that the root of 1/n is one by the root of n; |x|
    does not become x by it.
    """
    import sympy

    steps = (sympy.floor, sympy.ceiling, sympy.Mod, sympy.frac)
    points = _fractions
    if a.has(*steps) or b.has(*steps):
        points = _integers
    digits = _digits_needed(a, b) + POINT_DIGITS
    verdict = _agree_at(a, b, points(a, b, positive=False), digits)
    if verdict is None:
        return _is_zero(a - b)
    if verdict or a.has(sympy.Abs, sympy.sign) or b.has(sympy.Abs, sympy.sign):
        return verdict
    return bool(_agree_at(a, b, points(a, b, positive=True), digits))


def _vanishes_on(expression: Any, equation: Any) -> bool | None:
    """Whether an expression is zero where another one is.

    None where that cannot be seen: the other one is linear in none of its variables.
    """
    for point in _fractions(expression, equation, positive=True):
        solution = _solution(equation, point)
        if not solution:
            return None
        there, elsewhere = _parts_at(expression, solution), _parts_at(expression, point)
        if there is None or elsewhere is None:
            return None
        if not _agree(there, _ZERO, Fraction(0)) and not _is_small(there, elsewhere):
            return False
    return True


def _is_small(value: Parts, scale: Parts) -> bool:
    return max(map(abs, value)) <= Fraction(1, 10**20) * max(1, *map(abs, scale))


def _solution(equation: Any, point: dict[Any, Any]) -> dict[Any, Any] | None:
    """The point moved along one variable to where the equation, linear in it, is zero."""
    import sympy

    for symbol in sorted(point, key=lambda symbol: symbol.name):
        reals = []
        for place in (0, 1, 2):
            value = _parts_at(equation, point | {symbol: place})
            if value is not None and not value[1]:
                reals.append(value[0])
        if len(reals) < 3:
            continue
        low, middle, high = reals
        slope = middle - low
        is_linear = abs(high - middle - slope) <= Fraction(1, 10**25) * abs(slope)
        if slope and is_linear:
            root = -low / slope
            return point | {symbol: sympy.Rational(root.numerator, root.denominator)}
    return None


def _agree_at(a: Any, b: Any, points: Iterator[dict[Any, Any]], digits: int) -> bool | None:
    """Whether they agree at every point at which both have a value; None if there are not two."""
    seen = 0
    for point in points:
        value_a, value_b = _parts_at(a, point, digits), _parts_at(b, point, digits)
        if value_a is None or value_b is None:
            continue
        seen += 1
        if not _agree(value_a, value_b, Fraction(1, 10 ** (digits - 15))):
            return False
    if seen < 2:
        return None
    return True


def _parts_at(expression: Any, point: dict[Any, Any], digits: int = POINT_DIGITS) -> Parts | None:
    """The value at a point; None where there is none, such as a division by zero."""
    try:
        value = expression.evalf(digits, subs=point)
        if value.free_symbols:
            return None
        return _parts(value, digits)
    except (ArithmeticError, NotImplementedError, TypeError, ValueError):
        return None


def _symbols(a: Any, b: Any) -> list[Any]:
    return sorted(a.free_symbols | b.free_symbols, key=lambda symbol: symbol.name)


def _fractions(a: Any, b: Any, positive: bool) -> Iterator[dict[Any, Any]]:
    """Points with values between 1/9 and 9, of either sign unless positive; the same each time."""
    import sympy

    dice = random.Random(positive)
    symbols = _symbols(a, b)
    for number in range(POINTS):
        signs = [1] * len(symbols)
        # The first point is positive in any case: roots and logarithms have a value there.
        if not positive and number > 0:
            signs = [dice.choice((-1, 1)) for _ in symbols]
        point = {}
        for symbol, sign in zip(symbols, signs, strict=True):
            numerator, denominator = dice.randint(101, 907), dice.choice((101, 499, 907))
            point[symbol] = sign * sympy.Rational(numerator, denominator)
        yield point


def _integers(a: Any, b: Any, positive: bool) -> Iterator[dict[Any, Any]]:
    """Points with whole numbers below 100; the same each time."""
    import sympy

    dice = random.Random(2 + positive)
    for _ in range(INTEGER_POINTS):
        yield {symbol: sympy.Integer(dice.randint(1, 99)) for symbol in _symbols(a, b)}
