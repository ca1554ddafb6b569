"""Text that tokenizers read differently, and conversations made of it; the same in every run."""

import random

_PIECES = (
    *(
        "the",
        "The",
        " answer",
        "is",
        "Question",
        "x",
        "don't",
        "I'll",
        "IT'S",
        "def f(x):",
        "return",
        "assistant",
    ),
    *(
        "0",
        "7",
        "42",
        "1234",
        "12345678",
        "3.14",
        "1,000,000",
        "6  5",
        "١٢٣",
        "½",
        "x²",
        "Ⅷ",
        "1e-5",
        "0x1F",
    ),
    *(
        " ",
        "  ",
        "   ",
        "        ",
        "\t",
        "\n",
        "\n\n",
        " \n",
        "\n ",
        "\r\n",
        "\n\n\n",
        "\u00a0",
        "\u3000",
        "\u200b",
    ),
    *(
        "é",
        "e\u0301",
        "ñ",
        "n\u0303",
        "Å",
        "A\u030a",
        "ﬁ",
        "가",
        "\u1100\u1161",
        "İ",
        "ß",
        "ǆ",
        "\u0301",
    ),
    *("你好", "こんにちは", "Привет", "שלום", "مرحبا", "नमस्ते", "ไทย", "Ελλάδα", "한국어", "ÀÉÎ"),
    *("😀", "👩\u200d👩\u200d👧", "🇩🇪", "👍🏽", "✓", "→", "∑", "≤", "\ufffd", "𝔸", "\U0001f9ee"),
    *(
        ".",
        ",",
        "!",
        "?",
        "...",
        ":",
        "::",
        ";",
        "--",
        "—",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "**",
        "####",
        "$",
    ),
    *(
        "\\boxed{",
        "<<48/2=24>>",
        "\\frac{1}{2}",
        "a_{i}^2",
        "</s>",
        "<|im_end|>",
        "<s>",
        "<think>",
        "▁",
        "Ġ",
        "'s",
        '"',
        "`",
    ),
)
_MARKERS = ("</s>", "<|im_end|>", "<think>")


def strings(n: int, seed: int = 0) -> list[str]:
    """`n` strings of a few pieces each: digits, spaces, scripts, marks, emoji, code, markers."""
    rng = random.Random(seed)
    found = ["", " ", "6  5", "a .b", "12 .5", "  two spaces before", "trailing  ", "\n", *_PIECES]
    while len(found) < n:
        pieces = [rng.choice(_PIECES) for _ in range(rng.randint(1, 12))]
        found.append(rng.choice(("", " ")).join(pieces))
    return found[:n]


def conversations(n: int, seed: int = 0, most_answers: int = 3) -> list[list[dict[str, str]]]:
    """`n` conversations of one answer or several, some with a system message, of the same kind of
    text.
    """
    rng = random.Random(seed)
    texts = [text for text in strings(3000, seed + 1) if text.strip()]
    # An answer that ends in EOS, or thinks, has rules of its own.
    answers = [text for text in texts if not any(marker in text for marker in _MARKERS)]
    found = []
    for _ in range(n):
        messages = []
        if rng.random() < 0.2:
            messages.append({"role": "system", "content": rng.choice(texts)})
        for _ in range(rng.randint(1, most_answers)):
            messages.append({"role": "user", "content": rng.choice(texts)})
            messages.append({"role": "assistant", "content": rng.choice(answers)})
        found.append(messages)
    return found
