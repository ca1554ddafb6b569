"""The laboratory's world: right answers without noise, wrong ones with it, disjoint splits."""

import re

import pytest

from dft_jax import assets
from dft_jax.data.sources import world
from dft_jax.data.sources.locate import read_rows
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.runtime import errors
from tests.marks import slow_but

FAMILIES = [("chain", "1-6"), ("expression", "1-5"), ("operator", "1-3"), ("fact", "1-1")]


def answer_of(question: str) -> int:
    """Solves a question from its text, without the generator."""
    if "has" not in question:
        text = (
            question.removeprefix("Compute ")
            .removesuffix(" from left to right.")
            .removesuffix("=?")
        )
        first, *rest = re.findall(r"\d+|[-+*@]", text)
        value = int(first)
        for symbol, number in zip(rest[::2], map(int, rest[1::2]), strict=True):
            value = {
                "+": value + number,
                "-": value - number,
                "*": value * number,
                "@": (2 * value + number) % 30,
            }[symbol]
        return value
    counts, sentences = {}, question.split(". ")
    for sentence in sentences[:-1]:
        who, *_ = words = sentence.split()
        if " than " in sentence:
            number = int(words[2])
            counts[who] = counts[words[-1]] + (number if "more" in words else -number)
        elif " times " in sentence:
            counts[who] = counts[words[-1]] * int(words[2])
        elif words[-1] == "together":
            counts[who] = counts[words[6]] + counts[words[8]]
        else:
            counts[who] = int(words[2])
    return counts[re.search(r"does (\w+) have", sentences[-1])[1]]


@pytest.mark.parametrize("family,levels", FAMILIES)
@pytest.mark.parametrize("styles", [1, 4])
def test_solutions_without_noise_are_right(family, levels, styles):
    for row in world.Excerpt("train", family, levels, 300, styles=styles, seed=1).rows():
        lines = re.findall(r"(\d+)([-+*@])(\d+)(?:=| is )(\d+)", row["answer"])
        assert all(world.apply(int(a), symbol, int(b)) == int(c) for a, symbol, b, c in lines)
        assert len(lines) == row["level"] - (family == "chain")
        assert row["answer"].endswith(f"\n#### {answer_of(row['question'])}")


def test_noise_makes_the_share_of_wrong_steps():
    steps = wrong = 0
    for row in world.Excerpt("pretrain", "chain", "2-6", 2000, noise=0.08).rows():
        for a, symbol, b, c in re.findall(r"(\d+)([-+*@])(\d+)=(\d+)", row["answer"]):
            steps += 1
            wrong += world.apply(int(a), symbol, int(b)) != int(c)
    assert 0.065 < wrong / steps < 0.095


def key_of(question: str) -> tuple:
    """What a question computes, told from its text: names by their order, no things."""
    order: list[str] = []
    for name in re.findall(rf"\b({'|'.join(world.NAMES)})\b", question):
        if name not in order:
            order.append(name)
    text = re.sub("|".join(world.THINGS), "things", question)
    return tuple(
        re.sub(
            rf"\b({'|'.join(world.NAMES)})\b", lambda match: str(order.index(match[1])), text
        ).split()
    )


@pytest.mark.parametrize("family,levels", slow_but(FAMILIES[:3], FAMILIES))
def test_splits_share_no_problem(family, levels):
    keys = {
        split: {key_of(row["question"]) for row in world.Excerpt(split, family, levels, 800).rows()}
        for split in world.SPLITS
    }
    assert all(keys.values())
    for one in keys:
        for other in keys:
            assert one == other or not keys[one] & keys[other], (one, other)


def test_a_part_is_the_same_every_time_and_another_with_another_seed():
    one, again, other = (list(world.Excerpt("train", n=50, seed=seed).rows()) for seed in (0, 0, 1))
    assert one == again != other
    questions = [row["question"] for row in world.Excerpt("test", "chain", "2-4", 400).rows()]
    assert len(set(map(key_of, questions))) == 400


def test_data_names_it_like_a_file():
    rows = list(
        read_rows(
            "world(split=train, family=chain:60+fact:40, levels=2-4+1-1, n=30, noise=0.15)",
            None,
            "train",
        )
    )
    assert (
        len(rows) == 30
        and rows[3].origin == "world[3]"
        and set(rows[3].value) == {"question", "answer", "level"}
    )


def test_tokenizer_has_a_token_for_every_word():
    tokenizer = load_tokenizer(assets.LAB)
    for family, levels in FAMILIES:
        for row in world.Excerpt("test", family, levels, 100, noise=0.1).rows():
            text = f"{row['question']}\n{row['answer']}"
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
            pieces = [tokenizer.convert_ids_to_tokens(id_) for id_ in tokenizer.encode(text)]
            assert all(len(piece) == 1 or not piece.isdigit() for piece in pieces)
            assert len(pieces) <= len(re.findall(r"[A-Za-z]+|\d|[^\w\s]+|\s", text))


@pytest.mark.parametrize(
    "path,expected",
    [
        (
            "world(splits=train)",
            "world has no parameter 'splits' (did you mean 'split'?); known: split, family",
        ),
        ("world(split=dev)", "split='dev' should be one of test, validation, train, pretrain"),
        (
            "world(family=chian)",
            "family='chian' should be one of chain, expression, operator, fact",
        ),
        ("world(family=chain:x)", "a weight is a number"),
        ("world(levels=4)", "levels='4' should be a range such as 2-4"),
        ("world(levels=4-2)", "levels='4-2' should be a range"),
        ("world(levels=1-2+1-2)", "one for each of 1 families"),
        ("world(n=many)", "n='many' should be int, such as 1000"),
        ("world(noise=2)", "noise from 0 to 1"),
    ],
)
def test_bad_parts_are_refused(path, expected):
    with pytest.raises(errors.UserError, match=re.escape(expected)):
        world.parse(path)
