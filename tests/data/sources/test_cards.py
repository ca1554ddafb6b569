"""The laboratory's pictures: answers that are right, or wrong as they were asked to be, and splits
that share nothing.
"""

import functools
import math
import re

import pytest

from dft_jax import assets
from dft_jax.data import images
from dft_jax.data.sources import cards, world
from dft_jax.data.sources.locate import is_hub_id, is_made, read_rows
from dft_jax.evals.graders import extraction
from dft_jax.evals.tasks import benchmarks
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.runtime import errors
from tests.data.sources.test_pictures import read
from tests.data.sources.test_world import answer_of, key_of

FAMILIES = ("card", "cards", "picture_chain")


@functools.cache
def rows_of(family, **values):
    return list(cards.Excerpt(family=family, **values).rows())


def value_of(row, numbers):
    """The answer to a row's question, had its picture these numbers; told from its text."""
    if row["prompt"] == "Which number is shown?":
        [number] = numbers
        return number
    if row["prompt"] == "What is the sum of the two numbers?":
        left, right = numbers
        return left + right
    [number] = numbers
    asked = re.sub(r"as many (\w+) as the picture shows", rf"{number} \1", row["prompt"], count=1)
    return answer_of(asked)


def said_of(row):
    """The numbers that the completion says the picture shows."""
    [said] = re.findall(r"^The picture shows ([\d and]+)\.", row["completion"])
    return tuple(map(int, said.split(" and ")))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("styles", [1, 4])
def test_answers_without_noise_are_right(family, styles):
    for row in rows_of(family, n=100, styles=styles, seed=1):
        numbers = tuple(row["numbers"])
        assert said_of(row) == numbers and all(1 <= number <= 30 for number in numbers)
        assert row["answer"] == str(value_of(row, numbers))
        assert row["completion"].endswith(f"\n#### {row['answer']}")
        lines = re.findall(r"(\d+)([-+*])(\d+)(?:=| is )(\d+)", row["completion"])
        assert all(world.apply(int(a), symbol, int(b)) == int(c) for a, symbol, b, c in lines)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_show_the_numbers(family):
    """A naive reader of pixels finds those that the row says, in order."""
    for row in rows_of(family, n=100, styles=4, seed=1)[:8]:
        [picture] = row["images"]
        assert read(picture["bytes"], len(row["numbers"])) == tuple(row["numbers"])
        width = 28 * len(row["numbers"]) + 28
        assert images.decode(picture["bytes"]).shape == (56, width, 3)


def test_the_count_is_in_the_picture_only():
    """Of a chain as the world has it nothing changes but the first sentence."""
    for row in rows_of("picture_chain", n=100, styles=4, seed=1):
        first, _, rest = row["prompt"].partition(". ")
        who, *words = first.split()
        assert re.fullmatch(r"has as many \w+ as the picture shows", " ".join(words))
        [number] = row["numbers"]
        asked = f"{who} has {number} {words[3]}. {rest}"
        assert f"{who} has {number} {words[3]}." in row["completion"]
        assert answer_of(asked) == int(row["answer"])


def share_within(count, n, share):
    """Whether a count of n is within 4 standard deviations of its share."""
    return abs(count - n * share) <= 4 * math.sqrt(n * share * (1 - share))


def is_lookalike(said, shown):
    """Whether one digit differs, told from the texts."""
    pairs = zip(str(said), str(shown), strict=False)
    return len(str(said)) == len(str(shown)) and sum(a != b for a, b in pairs) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_misread_rows_are_consistent(family):
    """One number is another with one digit wrong, all else follows from it, and the answer that
    evaluation knows stays right.
    """
    n, n_misread, places = 400, 0, set()
    for row in rows_of(family, split="pretrain", n=n, noise_read=0.15):
        said, shown = said_of(row), tuple(row["numbers"])
        wrong = [place for place in range(len(shown)) if said[place] != shown[place]]
        if wrong:
            [place] = wrong
            places.add(place)
            assert is_lookalike(said[place], shown[place]) and 1 <= said[place] <= 30
            n_misread += 1
        assert row["answer"] == str(value_of(row, shown))
        assert row["completion"].endswith(f"\n#### {value_of(row, said)}")
    assert share_within(n_misread, n, 0.15) and n_misread > 0
    assert places == set(range(len(shown)))


def test_noise_of_steps_is_that_of_the_world():
    """And apart from reading: what the picture shows is said rightly."""
    steps = wrong = 0
    for row in rows_of("picture_chain", n=300, noise=0.15, levels="3-6"):
        assert said_of(row) == tuple(row["numbers"])
        for a, symbol, b, c in re.findall(r"(\d+)([-+*])(\d+)(?:=| is )(\d+)", row["completion"]):
            steps += 1
            wrong += world.apply(int(a), symbol, int(b)) != int(c)
    assert steps > 800 and share_within(wrong, steps, 0.15)


@pytest.mark.parametrize("number", range(1, 31))
def test_lookalikes(number):
    found = cards.lookalikes(number)
    assert found == [other for other in range(1, 31) if is_lookalike(other, number)] and found


def test_rare_numbers_are_as_rare_as_asked():
    """Ten of thirty numbers are above 20: 0.1 · 10 of 20 + 0.1 · 10."""
    n = 200
    for rare, share in ((1.0, 1 / 3), (0.1, 1 / 21), (0.0, 0.0)):
        count = sum(row["numbers"][0] > 20 for row in rows_of("picture_chain", n=n, rare=rare))
        assert share_within(count, n, share), (rare, count)


def problem_of(row):
    """What a row asks, told from its text, its numbers and, where only reading is asked, pixels."""
    if row["prompt"] == "Which number is shown?":
        return row["images"][0]["bytes"]
    if row["prompt"] == "What is the sum of the two numbers?":
        return tuple(sorted(row["numbers"]))
    return (*row["numbers"], *key_of(row["prompt"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_no_problem(family):
    # Of sums there are not many: 465, of which a test has an eighth or so.
    n = 40 if family == "cards" else 120
    keys = {}
    for split in world.SPLITS:
        keys[split] = {problem_of(row) for row in rows_of(family, split=split, n=n)}
    for one in keys:
        for other in keys:
            assert one == other or not keys[one] & keys[other], (one, other)
    assert len(keys["test"]) == n


def test_a_chain_has_the_split_that_it_has_without_a_picture():
    """A model may have read the world's text before."""
    with_pictures = set()
    for row in rows_of("picture_chain", split="test", levels="2-2", n=60):
        [number] = row["numbers"]
        asked = re.sub(
            r"as many (\w+) as the picture shows", rf"{number} \1", row["prompt"], count=1
        )
        with_pictures.add(key_of(asked))
    for split in ("train", "pretrain", "validation"):
        texts = world.Excerpt(split, "chain", "2-2", 60).rows()
        assert not with_pictures & {key_of(row["question"]) for row in texts}
    # Of chains of two there are so few that the same ones are found.
    texts = world.Excerpt("test", "chain", "2-2", 60).rows()
    assert len(with_pictures & {key_of(row["question"]) for row in texts}) > 10


def test_an_excerpt_is_the_same_every_time_and_another_with_another_seed():
    values = dict(family="card+cards+picture_chain", n=40, noise=0.1, noise_read=0.1)
    one, again, other = (list(cards.Excerpt(**values, seed=seed).rows()) for seed in (0, 0, 1))
    assert one == again != other
    assert len({row["images"][0]["bytes"] for row in one}) == 40


def test_noise_changes_no_problem_until_it_is_drawn():
    """Demonstrations that differ in reading alone begin with the same problem."""
    plain, noisy = (rows_of("card", n=5, noise_read=share) for share in (0.0, 1.0))
    assert plain[0]["prompt"] == noisy[0]["prompt"] and plain[0]["images"] == noisy[0]["images"]
    assert plain[0]["completion"] != noisy[0]["completion"]


def test_data_names_it_like_a_file():
    path = "cards(split=train, family=card:25+picture_chain:75, levels=1-1+2-4, n=30)"
    rows = list(read_rows(path, None, "train"))
    assert len(rows) == 30 and rows[3].origin == "cards[3]"
    assert {"prompt", "completion", "images", "answer", "numbers", "level"} == set(rows[3].value)
    assert is_made(path) and not is_hub_id(path) and not is_made("openai/gsm8k")


@pytest.mark.parametrize(
    "path, expected",
    [
        ("cards(noise_reed=1)", "no parameter 'noise_reed' (did you mean 'noise_read'?)"),
        ("cards(split=dev)", "split='dev' should be one of test, validation, train, pretrain"),
        ("cards(family=chain)", "family='chain' should be one of card, cards, picture_chain"),
        ("cards(family=card:x)", "a weight is a number"),
        ("cards(levels=4-2)", "levels='4-2' should be a range"),
        ("cards(n=many)", "n='many' should be int, such as 1000"),
        ("cards(noise=2)", "noise from 0 to 1"),
        ("cards(noise_read=1.5)", "noise_read=1.5 should be from 0 to 1"),
        ("cards(noise_read=nan)", "noise_read=nan should be from 0 to 1"),
        ("cards(rare=-1)", "rare=-1 should be from 0 to 1"),
    ],
)
def test_bad_excerpts_are_refused(path, expected):
    with pytest.raises(errors.UserError, match=re.escape(expected)):
        cards.parse(path)


def test_tokenizer_has_a_token_for_every_word():
    tokenizer = load_tokenizer(assets.LAB_VISION)
    for family in FAMILIES:
        for row in rows_of(family, n=100, styles=4, seed=1):
            text = f"{row['prompt']}\n{row['completion']}"
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
            assert len(ids) <= len(re.findall(r"[A-Za-z]+|\d|[^\w\s]+|\s", text))
            # The model goes on behind the prompt: no token may reach over its end.
            prompt_ids = tokenizer.encode(f"{row['prompt']}\n")
            assert ids == prompt_ids + tokenizer.encode(row["completion"])


@pytest.mark.parametrize(
    "name, family, count",
    [
        ("lab_vision", "picture_chain", 200),
        ("lab_vision_card", "card", 300),
        ("lab_vision_cards", "cards", 60),
    ],
)
def test_benchmarks_ask_with_pictures(name, family, count):
    """Each problem as its row has it, and a right demonstration is graded as right."""
    problems = benchmarks.load(name)
    rows = rows_of(family, split="test", n=count)
    assert len(problems) == count and len({problem_of(row) for row in rows}) == count
    for problem, row in zip(problems, rows, strict=True):
        assert problem.question == row["prompt"] and problem.answer == row["answer"]
        assert [image.read() for image in problem.images] == [row["images"][0]["bytes"]]
        assert extraction.extract(row["completion"]) == row["answer"]
    assert benchmarks.count_warning(name, problems) == ""
    # Every number is read by somebody.
    if family == "card":
        assert {int(problem.answer) for problem in problems} == set(range(1, 31))
