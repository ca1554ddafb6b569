"""Whether two expressions have the same value: exact for rational numbers, by many digits for
others, by points else.

No floats: 2^-99 and 2^-98 are the same to six decimals, and 1 - 2^-99 is 1 to fifteen digits.
"""

import random
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

# of a value that is not rational; two that agree in them are compared with as many as their numbers
# need
DIGITS = 60
MOST_DIGITS = 4_000
# how far a rounded decimal may be off, whatever its last digit allows
RELATIVE = Fraction(1, 10**6)
LEAST_DIGITS = 6  # of a decimal that stands for what it is rounded from
POINTS = 4  # at which expressions with variables are compared
# beyond those of the largest whole number in them, so that x is seen beside 10^33
POINT_DIGITS = 40
INTEGER_POINTS = 12  # of functions with steps, such as floor

_DECIMAL = re.compile(
    r"(?<![\w.])(\d*)\.(\d+)(?:\s*(?:\\cdot|\\times|\*)\s*10\s*\^\s*(?:\{\s*([-+]?\d{1,4})\s*\}|(\d)))?"
)
_PLAIN = re.compile(
    r"(-?)\s*(?:(\d+)(?:\.(\d*))?|\.(\d+)|\\frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}|(\d+)\s*/\s*(\d+))"
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

        a, b = (side.doit() if isinstance(side, sympy.MatrixExpr) else side for side in (a, b))
        if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
            if a.shape != b.shape:
                return False
            return all(self.same(*pair) for pair in zip(a.flat(), b.flat(), strict=True))
        if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
            return False
        percent = [_percent(side) for side in (a, b)]
        if percent[0] is not None and percent[1] is not None:
            return self.same(*percent)
        for one, other in ((percent[0], b), (percent[1], a)):
            if one is not None and self._same(one, other):  # 50 for 50 %
                return True
        return self._same(a, b)

    def _same(self, a: Any, b: Any) -> bool:
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
        sides = [
            self._evaluated(equation.lhs) - self._evaluated(equation.rhs) for equation in (a, b)
        ]
        if sides[0].free_symbols != sides[1].free_symbols:
            return False
        verdicts = [_vanishes_on(sides[0], sides[1]), _vanishes_on(sides[1], sides[0])]
        if False in verdicts:
            return False
        return None if None in verdicts else True

    def _evaluated(self, expression: Any) -> Any:
        import sympy

        if self.has_imaginary_unit:
            letters = [symbol for symbol in expression.free_symbols if symbol.name == "i"]
            expression = expression.subs(dict.fromkeys(letters, sympy.I))
        unknown = expression.atoms(sympy.core.function.AppliedUndef, sympy.Derivative)
        expression = expression.xreplace(
            {function: sympy.Symbol(str(function)) for function in unknown}
        )
        names = {symbol: sympy.Symbol(symbol.name) for symbol in expression.free_symbols}
        # real on one side and complex on the other, they would never be equal
        expression = expression.subs(names)
        expression = expression.replace(
            lambda part: isinstance(part, sympy.UnevaluatedExpr), lambda part: part.args[0]
        )
        return expression.doit()

    def same_fractions(self, a: Fraction, b: Fraction) -> bool:
        if a == b:
            return True
        return (abs(a) in self.last_digits) != (abs(b) in self.last_digits) and self._is_rounded(
            a, b
        )

    def _is_rounded(self, a: Fraction, b: Fraction) -> bool:
        """Whether one of the two is a decimal of six digits or more that the other is written as,
        rounded or cut.

        A whole number is not: 2.19e6 is 2190000, and not 2190001.
        """
        decimal, exact = (a, b) if abs(a) in self.last_digits else (b, a)
        unit = self.last_digits[abs(decimal)]
        off = abs(exact) - abs(decimal)
        is_near = abs(off) <= unit / 2 or 0 <= off < unit
        is_long = abs(decimal) >= unit * 10 ** (LEAST_DIGITS - 1)
        # What has another, longer decimal is that one: 4.03188 is not 4.03188 + 10^-16.
        is_decimal = (
            exact.denominator == 1 or exact.denominator > 10**9 and 10**60 % exact.denominator == 0
        )
        return (
            is_long
            and not is_decimal
            and decimal * exact > 0
            and is_near
            and abs(off) <= RELATIVE * abs(exact)
        )

    def _same_numbers(self, a: Any, b: Any) -> bool:
        parts_a, parts_b = _parts(a, DIGITS), _parts(b, DIGITS)
        if parts_a is None or parts_b is None:
            return _is_zero(a - b)
        if _agree(parts_a, parts_b, Fraction(1, 10**45)):
            digits = _digits_needed(a, b)
            return digits <= DIGITS or _agree(
                _parts(a, digits), _parts(b, digits), Fraction(1, 10 ** (digits - 15))
            )
        if parts_a[1] or parts_b[1]:
            return False
        are_decimals = [abs(parts[0]) in self.last_digits for parts in (parts_a, parts_b)]
        return any(are_decimals) and self._is_rounded(parts_a[0], parts_b[0])


def plain(text: str) -> Fraction | None:
    """The value of digits, of a decimal and of one fraction, without a parser; None for anything
    else.
    """
    match = _PLAIN.fullmatch(text.strip())
    if match is None:
        return None
    sign, whole, decimals, only_decimals, *fraction = match.groups()
    if whole is not None or only_decimals is not None:
        decimals = only_decimals or decimals or ""
        value = Fraction(int((whole or "") + decimals), 10 ** len(decimals))
    else:
        above, below = (int(part) for part in fraction if part is not None)
        if below == 0:
            return None
        value = Fraction(above, below)
    return -value if sign else value


def _uses_imaginary_unit(answer: str, reference: str) -> bool:
    """Whether i is the unit: not where it is an index, nor one of the unit vectors."""
    letters = [re.sub(r"\\[A-Za-z]+", " ", text) for text in (answer, reference)]
    if any("j" in text for text in letters):
        return False
    is_index = r"_\s*(?:i(?![A-Za-z])|\{[^{}]*(?<![A-Za-z])i(?![A-Za-z])[^{}]*\})|\\hat\s*\{?\s*i"
    return re.search(is_index, f"{answer} {reference}") is None


def _percent(expression: Any) -> Any:
    """What stands before the percent sign; None without one."""
    import sympy

    hundredth = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
    is_percent = isinstance(expression, sympy.Mul) and expression.args[1:] == (hundredth,)
    return expression.args[0] if is_percent else None


def _parts(expression: Any, digits: int) -> tuple[Fraction, Fraction] | None:
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
        part = sympy.Rational(0) if is_unsure else sympy.Rational(part)
        parts.append(Fraction(int(part.p), int(part.q)))
    return parts[0], parts[1]


def _agree(
    a: tuple[Fraction, Fraction] | None, b: tuple[Fraction, Fraction] | None, relative: Fraction
) -> bool:
    if a is None or b is None:
        return False
    size = max(*map(abs, a), *map(abs, b))
    return all(abs(x - y) <= relative * size for x, y in zip(a, b, strict=True))


def _digits_needed(a: Any, b: Any) -> int:
    """As many as the largest whole number in the two has, and some more: they may differ in its
    last one.
    """
    import sympy

    bits = max(
        (int(atom).bit_length() for side in (a, b) for atom in side.atoms(sympy.Integer)), default=0
    )
    digits = bits * 3 // 10 + 20
    if digits > MOST_DIGITS:
        raise MemoryError("more digits than are compared")  # which is a `timeout`
    return max(digits, DIGITS)


def _is_zero(expression: Any) -> bool:
    import sympy

    return bool(sympy.simplify(expression).is_zero)


def _same_functions(a: Any, b: Any) -> bool:
    """Whether two expressions with variables agree: at points of any sign, or of positive ones
    where roots need it.

    Agreement at random points to 85 digits is no proof, but what is no identity does not pass.
    Variables are positive for a second try, so that the root of 1/n is one by the root of n; |x|
    does not become x by it.
    """
    import sympy

    steps = (sympy.floor, sympy.ceiling, sympy.Mod, sympy.frac)
    points = _integers if a.has(*steps) or b.has(*steps) else _fractions
    digits = _digits_needed(a, b) + POINT_DIGITS
    verdict = _agree_at(a, b, points(a, b, positive=False), digits)
    if verdict is None:
        return _is_zero(a - b)
    if verdict or a.has(sympy.Abs, sympy.sign) or b.has(sympy.Abs, sympy.sign):
        return verdict
    return bool(_agree_at(a, b, points(a, b, positive=True), digits))


def _vanishes_on(expression: Any, equation: Any) -> bool | None:
    """Whether an expression is zero where another one is; None if that is linear in none of its
    variables.
    """
    zero = (Fraction(0), Fraction(0))
    for point in _fractions(expression, equation, positive=True):
        solution = _solution(equation, point)
        values = (
            [_parts_at(expression, solution), _parts_at(expression, point)] if solution else [None]
        )
        if None in values:
            return None
        if not _agree(values[0], zero, Fraction(0)) and not _is_small(values[0], values[1]):
            return False
    return True


def _is_small(a: tuple[Fraction, Fraction], scale: tuple[Fraction, Fraction]) -> bool:
    return max(map(abs, a)) <= Fraction(1, 10**20) * max(1, *map(abs, scale))


def _solution(equation: Any, point: dict) -> dict | None:
    """The point moved along one variable to where the equation, linear in it, is zero."""
    for symbol in sorted(point, key=lambda symbol: symbol.name):
        values = [_parts_at(equation, point | {symbol: place}) for place in (0, 1, 2)]
        if None in values or any(value[1] for value in values):
            continue
        low, middle, high = (value[0] for value in values)
        slope = middle - low
        if slope and abs(high - middle - slope) <= Fraction(1, 10**25) * abs(slope):
            import sympy

            root = -low / slope
            return point | {symbol: sympy.Rational(root.numerator, root.denominator)}
    return None


def _agree_at(a: Any, b: Any, points: Iterator[dict], digits: int) -> bool | None:
    """Whether they agree at every point at which both have a value; None if there are not two."""
    seen = 0
    for point in points:
        values = [_parts_at(side, point, digits) for side in (a, b)]
        if None in values:
            continue
        seen += 1
        if not _agree(*values, Fraction(1, 10 ** (digits - 15))):
            return False
    return True if seen >= 2 else None


def _parts_at(
    expression: Any, point: dict, digits: int = POINT_DIGITS
) -> tuple[Fraction, Fraction] | None:
    try:
        value = expression.evalf(digits, subs=point)
        return _parts(value, digits) if not value.free_symbols else None
    except (ArithmeticError, NotImplementedError, TypeError, ValueError):
        return None


def _symbols(a: Any, b: Any) -> list:
    return sorted(a.free_symbols | b.free_symbols, key=lambda symbol: symbol.name)


def _fractions(a: Any, b: Any, positive: bool) -> Iterator[dict]:
    """Points with values between 1/9 and 9, of either sign unless positive; the same ones each
    time.
    """
    import sympy

    dice = random.Random(positive)
    for number in range(POINTS):
        signs = [1 if positive or number == 0 else dice.choice((-1, 1)) for _ in _symbols(a, b)]
        yield {
            symbol: sign * sympy.Rational(dice.randint(101, 907), dice.choice((101, 499, 907)))
            for symbol, sign in zip(_symbols(a, b), signs, strict=True)
        }


def _integers(a: Any, b: Any, positive: bool) -> Iterator[dict]:
    import sympy

    dice = random.Random(2 + positive)
    for _ in range(INTEGER_POINTS):
        yield {symbol: sympy.Integer(dice.randint(1, 99)) for symbol in _symbols(a, b)}
