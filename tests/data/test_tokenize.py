"""Ids are those of the whole text, masks those of the answers, prompts those of sampling."""

import unicodedata

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from dft_jax.data.sources.rows import BadRow
from dft_jax.data.templates import Part, Template
from dft_jax.data.tokenize import tokenize
from dft_jax.models.hf.locate import load_tokenizer
from tests import lookalikes, text
from tests.marks import slow_but

# Tokenizer and template -> what the template writes after an answer.
CHATS = {
    ("smollm2", "tokenizer"): "<|im_end|>\n",
    ("qwen3", "tokenizer"): "<|im_end|>\n",
    ("llama3", "tokenizer"): "<|eot_id|>",
    ("mistral", "tokenizer"): "</s>",
    ("deepseek_math", "tokenizer"): "<｜end▁of▁sentence｜>",
}
STYLES = [("llama3", "llama-ins-boxed"), ("qwen3", "qwen25-math-cot"), ("mistral", "plain")]
DATE = "2026-01-02"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """opened(name): the product's tokenizer of a lookalike, and the library's of the same file."""
    folder = tmp_path_factory.mktemp("lookalikes")

    def open_one(name):
        path = lookalikes.write(name, folder / name)
        backend = Tokenizer.from_file(str(path / "tokenizer.json"))
        return load_tokenizer(path), lambda one: backend.encode(one, add_special_tokens=False).ids

    return open_one


def whole_text(template, messages, tail):
    """The conversation as jinja renders it in this process, ended by EOS instead of `tail`."""
    if template.jinja is None:
        return (
            template.prompt(messages[0]["content"])
            + messages[1]["content"]
            + template.tokenizer.eos_token
        )
    source = template.jinja.replace("strftime_now('%d %b %Y')", "'02 Jan 2026'")
    [rendered], _ = render_jinja_template(
        [messages], chat_template=source, **template.tokenizer.special_tokens_map
    )
    return rendered.removesuffix(tail) + template.tokenizer.eos_token


def runs(example):
    """The ids of each trained stretch."""
    flags = np.concatenate([[False], example.trained, [False]])
    edges = np.flatnonzero(np.diff(flags)).reshape(-1, 2)
    return [example.ids[start:end] for start, end in edges]


def comparable(one, name):
    """SentencePiece's decoder moves spaces behind markers; NFC is what Qwen's file asks for."""
    if name == "mistral":
        one = one.replace(" ", "").replace("▁", "")
    return unicodedata.normalize("NFC", one)


def check_parts(name, style, opened, wanted, seed=0):
    """Compares `wanted` accepted conversations with the library; returns how many were refused."""
    tokenizer, encode = opened(name)
    template = Template(style, tokenizer, date=DATE)
    accepted = refused = 0
    while accepted < wanted:
        seed += 1
        many = text.conversations(500, seed, most_answers=3 if style == "tokenizer" else 1)
        if style != "tokenizer":
            many = [messages[-2:] for messages in many]
        parts = [template.parts(messages) for messages in many]
        examples = tokenize(parts, tokenizer, template.first_ids, 10**6)
        for messages, its_parts, example in zip(many, parts, examples, strict=True):
            whole = "".join(part.text for part in its_parts)
            assert whole == whole_text(template, messages, CHATS.get((name, style), ""))
            ids = encode(whole)
            if isinstance(example, BadRow):
                refused += 1
                starts = np.cumsum([len(part.text) for part in its_parts])
                prompts = [encode(whole[:start]) for start in starts[0 : len(its_parts) - 1 : 2]]
                assert any(ids[: len(prompt)] != prompt for prompt in prompts)
                continue
            accepted += 1
            assert example.ids.tolist() == template.first_ids + ids
            answers = [comparable(part.text, name) for part in its_parts if part.trained]
            assert [comparable(tokenizer.decode(run), name) for run in runs(example)] == answers
    return refused


@pytest.mark.parametrize("name, style", [*CHATS, *STYLES])
def test_parts_are_the_whole(name, style, opened):
    check_parts(name, style, opened, wanted=300)


@pytest.mark.parametrize(
    "name, style", slow_but([], [*CHATS, *STYLES], slow=[("qwen3", "tokenizer"), *STYLES])
)
def test_parts_are_the_whole_in_20000_conversations(name, style, opened):
    refused = check_parts(name, style, opened, wanted=20_000, seed=100)
    print(f"{name} {style}: 20000 compared, {refused} refused")


def conversation(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[turn % 2], "content": content} for turn, content in enumerate(contents)]


def one_example(messages, template, tokenizer, max_length=10**6):
    [example] = tokenize([template.parts(messages)], tokenizer, template.first_ids, max_length)
    if isinstance(example, BadRow):
        raise example
    return example


def test_the_first_word_of_every_answer_is_whole(opened):
    """Part by part, SentencePiece would put a space before every question and answer."""
    tokenizer, encode = opened("mistral")
    template = Template("plain", tokenizer)
    example = one_example(conversation("What is 1+1?", "the answer is 2"), template, tokenizer)
    assert (
        tokenizer.decode(example.ids, skip_special_tokens=True) == "What is 1+1?\nthe answer is 2"
    )
    assert example.ids.tolist() == [1, *encode("What is 1+1?\nthe answer is 2</s>")]
    chat = Template("tokenizer", tokenizer)
    example = one_example(conversation("q", "the answer", "Question", "is x"), chat, tokenizer)
    assert example.ids.tolist() == encode(
        "<s>[INST] q [/INST] the answer</s>[INST] Question [/INST] is x</s>"
    )
    assert [tokenizer.decode(run) for run in runs(example)] == ["the answer</s>", "is x</s>"]


def test_an_answer_that_changes_the_prompts_tokens_is_refused(opened):
    """The prompt's "\\n" and the answer's become one token: another prompt than is sampled from."""
    tokenizer, encode = opened("qwen3")
    template = Template("qwen25-math-cot", tokenizer)
    assert len(encode("assistant\n\nSo")) == len(encode("assistant\nSo"))  # there is such a token
    with pytest.raises(
        BadRow, match=r"the prompt ends in the token '\\n' by itself, but before .* in '\\n\\n'"
    ):
        one_example(conversation("1+1?", "\nSo 2"), template, tokenizer)
    assert one_example(conversation("1+1?", "So 2"), template, tokenizer).trained.any()


def test_a_prompt_whose_tokens_depend_on_what_follows_is_refused(opened):
    """GPT-2 reads "\\n\\n" before a word as two tokens, at the end of a prompt as one."""
    tokenizer, encode = opened("smollm2")
    assert encode("x\n\n") != encode("x\n\nyes")[: len(encode("x\n\n"))]
    with pytest.raises(BadRow, match="give a template that ends otherwise"):
        one_example(conversation("1+1?", "yes"), Template("llama-ins-boxed", tokenizer), tokenizer)


def test_a_token_that_ends_an_answer_is_trained_whole(opened, tmp_path):
    """Without a marker between them, an answer's last line break and the next one are one token."""
    tokenizer, encode = opened("qwen3")
    assert len(encode("\n\n")) == 1
    file = tmp_path / "chat.jinja"
    file.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    template = Template(str(file), tokenizer)
    messages = conversation("a", "b\n", "c", "d")
    assert template.parts(messages) == [
        Part("user: a\nassistant:", False),
        Part(" b\n", True),
        Part("\nuser: c\nassistant:", False),
        Part(" d<|im_end|>", True),
    ]
    example = one_example(messages, template, tokenizer)
    assert example.ids.tolist() == encode(
        "user: a\nassistant: b\n\nuser: c\nassistant: d<|im_end|>"
    )
    assert [tokenizer.decode(run) for run in runs(example)] == [" b\n\n", " d<|im_end|>"]


def test_prompts_are_sampled_as_they_are_trained(opened):
    for name, style in [*CHATS, *STYLES]:
        tokenizer, _ = opened(name)
        template = Template(style, tokenizer, date=DATE)
        for question in text.strings(60, seed=3):
            prompt_ids = template.prompt_ids(question)
            try:
                example = one_example(
                    conversation(question, "the answer is 42"), template, tokenizer
                )
            except BadRow:
                continue
            assert example.ids[: len(prompt_ids)].tolist() == prompt_ids
            assert (
                not example.trained[: len(prompt_ids)].any()
                and example.trained[len(prompt_ids) :].all()
            )


def test_a_cut_example(opened):
    tokenizer, _ = opened("llama3")
    template = Template("plain", tokenizer)
    whole = one_example(conversation("q", "the answer is 42"), template, tokenizer)
    cut = one_example(conversation("q", "the answer is 42"), template, tokenizer, max_length=6)
    assert cut.ids.tolist() == whole.ids[:6].tolist() and cut.cut_tokens == len(whole.ids) - 6
    assert tokenizer.eos_token_id == whole.ids[-1] and tokenizer.eos_token_id not in cut.ids
    assert whole.ids[0] == tokenizer.bos_token_id and not whole.trained[0]
