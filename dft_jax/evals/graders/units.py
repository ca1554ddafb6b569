r"""The unit at the end of an answer: 5 \text{ m/s}, 12 red apples, \$5 million, 90^\circ, 204_5.

A unit is taken off only where it surely is one. In \text (or \mathrm, \mbox, …) every word of it
has to be known or a counted noun; in plain letters also no single letter, which is a variable: 6m
is not 6, and 3t is not 3d. Number words multiply: 5 million is 5000000, and never 5.
"""

import dataclasses
import re
from fractions import Fraction

from dft_jax.evals.graders import spelling

# Unit -> the words for it, in small letters and in the singular.
_NAMES = {
    "m": "m meter metre",
    "km": "km kilometer kilometre kms",
    "cm": "cm centimeter centimetre cms",
    "mm": "mm millimeter millimetre",
    "nm": "nm nanometer nanometre",
    "mi": "mi mile",
    "in": "in inch inche",
    "ft": "ft foot feet",
    "yd": "yd yard",
    "ly": "ly lightyear",
    "pc": "pc parsec",
    "au": "au",
    "s": "s sec second",
    "ms": "ms millisecond",
    "min": "min minute",
    "h": "h hr hour",
    "day": "day d",
    "week": "week",
    "month": "month",
    "year": "year yr",
    "g": "g gram",
    "kg": "kg kilogram kilo",
    "mg": "mg milligram",
    "ton": "ton tonne",
    "lb": "lb pound",
    "oz": "oz ounce",
    "l": "l liter litre",
    "ml": "ml milliliter millilitre",
    "gallon": "gallon gal",
    "quart": "quart",
    "pint": "pint",
    "cup": "cup",
    "acre": "acre",
    "hectare": "hectare",
    "dollar": "dollar usd buck",
    "cent": "cent",
    "euro": "euro",
    "penny": "penny pennie pence",
    "nickel": "nickel",
    "dime": "dime",
    "rupee": "rupee",
    "degree": "degree deg",
    "celsius": "celsius",
    "fahrenheit": "fahrenheit",
    "radian": "radian rad",
    "K": "kelvin k",
    "J": "joule j",
    "kJ": "kilojoule kj",
    "cal": "calorie cal",
    "eV": "ev electronvolt",
    "erg": "erg",
    "N": "newton n",
    "W": "watt w",
    "kW": "kilowatt kw",
    "V": "volt v",
    "A": "ampere amp a",
    "C": "coulomb c",
    "ohm": "ohm",
    "Hz": "hertz hz",
    "Pa": "pascal pa",
    "atm": "atm atmosphere",
    "mol": "mol mole",
    "T": "tesla t",
    "mph": "mph",
    "kph": "kph kmph kmh",
    "bit": "bit",
    "byte": "byte",
}
_CANONICAL: dict[str, str] = {}
for _unit, _words in _NAMES.items():
    _CANONICAL |= dict.fromkeys(_words.split(), _unit)
_NUMBER_WORDS = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
# What is counted, and is no plural in -s, or is written in the singular.
_COUNTED = frozenset(
    """
    people men women children students mice geese fish sheep feet teeth way person child man woman
    dollar apple unit time case point number integer digit solution pair term card ball coin game
    book page player team side vertex vertices edge face triangle square circle dice die pieces
    piece marble sq permutation subset element arrangement combination function sequence value
    root zero factor divisor multiple prime line plane each
    """.split()
)
# Words that change a value, or say that the number is not the answer.
_NO_NOUNS = frozenset(
    """
    or and to of from than then but not no none non minus plus times over more less fewer most
    least at between about percent half halves thirds quarters fourths fifths sixths sevenths
    eighths ninths tenths hundredths thousandths tens ones twos threes hundreds scores quarter
    third fourth fifth squared cubed factorial factorials choose mod modulo remainder remainders
    pi pis log logs ln sin cos tan exp sqrt if when where is are be does equals equal plus
    something with without except unless either neither both twice thrice double triple divided
    multiplied times power powers negative positive sine sines cosine cosines base bases
    plus_or_minus raised exponent max greater larger smaller below above up under beyond infinity
    undefined this these its has was yes unknown cos sec csc cot arcsin arccos arctan versus vs
    ratio dozenth always less_than inches_and als perhaps
    """.split()
)
# Before a unit, and behind it.
_SQUARE = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWER_BEHIND = {"squared": 2, "cubed": 3}
# A text command with its power, a product or division sign, or space.
_PIECE = re.compile(
    r"\\(?:text|mathrm|mbox|textrm|textit|mathit|operatorname)\s*\{([^{}]*)\}"
    r"(?:\s*\^\s*(?:\{\s*(-?\d)\s*\}|(\d)))?|(\\cdot|\\times|/|\\per)|(\s+)"
)
# A word and its power, a division, or what stands between words.
_WORD = re.compile(r"([A-Za-z]+)(?:\s*\^\s*\{?\s*(-?\d)\s*\}?)?|(/|\bper\b)|([.,·*\s-]+)")
# a.m. and p.m.
_HALF_OF_DAY = re.compile(r"\s*[aApP]\.?\s*[mM]\.?\s*")
# \frac{\text{miles}}{\text{hour}}
_FRACTION = re.compile(
    rf"\\frac\s*\{{({spelling.TEXT}[^{{}}]*)\}}\s*\{{({spelling.TEXT}[^{{}}]*)\}}$"
)
# Words behind a number, apart from it or glued to it: 5 cm, 5cm^2.
_PLAIN_TAIL = re.compile(
    r"(?<=[\d})\]%])(\s+[A-Za-z][A-Za-z0-9/^.{} -]*|[A-Za-z]{2,}(?:\s*\^\s*\{?[23]\}?)?)$"
)
# 90^\circ, 20^\circ\text{ C}
_DEGREES = re.compile(r"\s*\^\\circ\s*(?:\\(?:text|mathrm)\s*\{\s*)?([CF]?)\s*\}?$")
# 204_5, (204)_{5}, 204_{\text{base }5}; and 204 (base 5).
_BASE = re.compile(
    r"\(?(\d+)\)?\s*_\s*\{?\s*(?:\\(?:text|mathrm)\{)?\s*(?:base\s*)?(\d+|two|eight|ten)\s*\}*$"
)
_BASE_WORDS = re.compile(r"(\d+)\s*(?:\\text\s*\{\s*)?\(?base\s*(\d+)\)?\s*\}?$")
_BASE_NAMES = {"two": "2", "eight": "8", "ten": "10"}


@dataclasses.dataclass(frozen=True)
class Measured:
    """An answer apart: its value's text, what number words multiply it by, and its unit.

    `unit` holds (name, power) pairs of the physical units, sorted; it is empty where there are
    none, be it for a noun. `base` is that of a number such as 204_5, 0 for none.
    """

    value: str
    factor: int = 1
    unit: tuple[tuple[str, int], ...] = ()
    base: int = 0


def measure(text: str, shortest: int = 3) -> Measured:
    """The spelled answer without its unit.

    Args:
      shortest: letters that a unit in plain letters has at least. Of a reference these are 3, since
        3 mg may be a force; of an answer 2; and 1 where the other side has a unit.
    """
    base = _BASE.fullmatch(text) or _BASE_WORDS.fullmatch(text)
    if base:
        return Measured(base[1], base=int(_BASE_NAMES.get(base[2], base[2])))
    degrees = _DEGREES.search(text)
    if degrees and degrees.start() > 0:
        name = {"C": "celsius", "F": "fahrenheit", "": "degree"}[degrees[1]]
        return Measured(text[: degrees.start()], unit=((name, 1),))
    found = _in_text(text) or _in_fraction(text) or _in_plain(text, shortest)
    return found or Measured(text)


def _in_text(text: str) -> Measured | None:
    r"""A unit in text commands at the end: \text{ m}/\text{s}^2, \text{ million dollars}."""
    # The pieces that touch one another and the end of the text.
    pieces: list[re.Match] = []
    for match in _PIECE.finditer(text):
        if pieces and pieces[-1].end() != match.start():
            pieces.clear()
        pieces.append(match)
    if not pieces or pieces[-1].end() != len(text):
        return None
    # The first of them that is a text command begins the unit.
    while pieces and pieces[0][1] is None:
        pieces.pop(0)
    if not pieces:
        return None
    words = ""
    for piece in pieces:
        power = piece[2] or piece[3]
        if piece[1] is not None:
            words += f" {piece[1]}"
            if power:
                words += f"^{power}"
        elif piece[4] in ("/", "\\per"):
            words += " / "
        else:
            words += " "
    return _measured(text[: pieces[0].start()], words, shortest=1)


def _in_fraction(text: str) -> Measured | None:
    match = _FRACTION.search(text)
    if match is None or match.start() == 0:
        return None
    return _measured(text[: match.start()], f"{match[2]} / {match[4]}", shortest=1)


def _in_plain(text: str, shortest: int) -> Measured | None:
    """A unit in plain letters after a number, in which no letter may be."""
    match = _PLAIN_TAIL.search(text)
    if match is None or re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text[: match.start()])):
        return None
    found = _measured(text[: match.start()], match[0], shortest)
    # 12apples: what is glued to the number has to be a unit.
    is_glued = not match[0][0].isspace()
    if found is None or (is_glued and not found.unit):
        return None
    return found


def _measured(value: str, words: str, shortest: int) -> Measured | None:
    """The value with the unit that the words are; None where they are none."""
    value = value.strip().rstrip("\\").strip()
    if not value or value[-1] in "+-=<>(,/^_":
        return None
    # 3 p.m. is no 3, and a.m. no ampere metre.
    if _HALF_OF_DAY.fullmatch(words):
        return None
    parsed = _parse(words, shortest)
    if parsed is None:
        return None
    factor, unit = parsed
    # "x = 5, 6 million" does not say what the million belongs to.
    if factor != 1 and re.search(r"[=<>,]|\\(?:le|ge|ne|in|cup|text)(?![A-Za-z])", value):
        return None
    return Measured(value, factor, unit)


@dataclasses.dataclass
class _Reading:
    """What the words of a unit have said so far."""

    factor: int = 1  # of number words
    powers: dict[str, int] = dataclasses.field(default_factory=dict)  # of physical units
    has_noun: bool = False
    sign: int = 1  # -1 behind "per" or a slash
    power_ahead: int = 1  # of "square" and "cubic", for the unit that follows
    last: str = ""  # the unit just read, for "squared" and "cubed"

    def read(self, word: str, power: str | None, shortest: int) -> bool:
        """Takes one word in; False if it is no unit and no noun."""
        lower = word.lower()
        singular = lower.removesuffix("s")
        name = _known(word, shortest)
        if lower in _POWER_BEHIND and self.last:
            self.powers[self.last] *= _POWER_BEHIND[lower]
        elif lower in _SQUARE and not power:
            self.power_ahead = _SQUARE[lower]
        elif singular in _NUMBER_WORDS and not self.powers and self.sign == 1:
            self.factor *= _NUMBER_WORDS[singular]
        elif name:
            change = self.sign * int(power or 1) * self.power_ahead
            self.powers[name] = self.powers.get(name, 0) + change
            self.power_ahead = 1
            self.last = name
        elif _is_noun(lower):
            self.has_noun = self.has_noun or lower in _COUNTED or lower.endswith("s")
            self.last = ""
        else:
            return False
        return True

    @property
    def says_something(self) -> bool:
        """Whether there was a unit, a counted noun or a number word."""
        return bool(self.powers or self.has_noun or self.factor != 1 or self.power_ahead != 1)


def _parse(words: str, shortest: int) -> tuple[int, tuple[tuple[str, int], ...]] | None:
    """Factor and unit of words such as "million dollars per hour"; None for other words."""
    reading = _Reading()
    end = 0
    for match in _WORD.finditer(words):
        if match.start() != end:
            return None
        end = match.end()
        if match[3]:
            reading.sign = -1
            reading.last = ""
        if match[1] is not None and not reading.read(match[1], match[2], shortest):
            return None
    if end != len(words) or not reading.says_something:
        return None
    return reading.factor, _product(reading.powers)


def _product(powers: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((name, power) for name, power in powers.items() if power))


def _known(word: str, shortest: int) -> str | None:
    word = word.lower()
    if len(word) < shortest:
        return None
    return _CANONICAL.get(word) or _CANONICAL.get(word.removesuffix("s"))


def _is_noun(word: str) -> bool:
    """Whether the word may stand before or be a counted noun: red apples, different ways."""
    return len(word) >= 3 and word not in _NO_NOUNS and word.removesuffix("s") not in _NUMBER_WORDS


def has_dollar_sign(answer: str) -> bool:
    r"""Whether an answer as written stands for an amount of dollars: \\$5, -$5, but not $5$."""
    match = re.match(r"\s*-?\s*(\\?)\$\s*-?(?=[\d.])", answer)
    return match is not None and (match[1] == "\\" or answer.count("$") - answer.count("\\$") == 1)


def in_base(digits: str, base: int) -> Fraction | None:
    """The number that digits stand for in a base; None if they do not."""
    if not 2 <= base <= 36:
        return None
    try:
        return Fraction(int(digits, base))
    except ValueError:
        return None
