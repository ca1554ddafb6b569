"""Templates: what is trained under them, of one answer and of several; which are refused."""

import datetime
import json

import pytest

from dft_jax import assets, config as config_lib
from dft_jax.checkpoints import manifest
from dft_jax.data import rendering
from dft_jax.data.examples import load_examples
from dft_jax.data.sources.rows import BadRow
from dft_jax.data.templates import Template
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.runtime import errors
from dft_jax.training import earlier, identity
from tests import lookalikes


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(assets.TINY)


@pytest.fixture
def opened(tmp_path):
    return lambda name, **changes: load_tokenizer(
        lookalikes.write(name, tmp_path / name, **changes)
    )


@pytest.fixture
def of_file(tokenizer, tmp_path):
    """of_file(source): the template of a .jinja file with the tiny tokenizer."""

    def template(source, its_tokenizer=tokenizer, **options):
        file = tmp_path / "chat.jinja"
        file.write_text(source)
        return Template(str(file), its_tokenizer, **options)

    return template


def conversation(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[turn % 2], "content": content} for turn, content in enumerate(contents)]


def pieces(template, *contents):
    return [(part.text, part.trained) for part in template.parts(conversation(*contents))]


def trained(template, *contents):
    return [text for text, is_trained in pieces(template, *contents) if is_trained]


@pytest.mark.parametrize("name", ["smollm2", "llama3", "mistral", "deepseek_math", "qwen3"])
def test_one_answer_and_two_are_trained_alike(name, opened):
    """The last answer is its text and EOS, whether or not others stand before it."""
    tokenizer = opened(name)
    template = Template("tokenizer", tokenizer, date="2026-01-02")
    one, two = (
        pieces(template, "q", "the answer"),
        pieces(template, "p", "first", "q", "the answer"),
    )
    assert one[-1] == two[-1] and one[-1][0].endswith("the answer" + tokenizer.eos_token)
    prompt = template._render(conversation("p", "first", "q"), add_generation_prompt=True)
    assert "".join(text for text, _ in two) == prompt + two[-1][0]
    assert one[0][0] == template.prompt("q")


def test_an_earlier_answer_ends_with_its_marker_the_last_with_eos(tokenizer):
    template = Template("tokenizer", tokenizer)
    assert trained(template, "1+1?", "2", "sure?", "yes") == ["2<|im_end|>", "yes<|endoftext|>"]
    assert trained(template, "sure?", "yes") == ["yes<|endoftext|>"]


def test_the_answer_is_what_the_template_makes_of_it(opened):
    """DeepSeekMath's writes "Assistant:", and a space before the answer; Llama 3's trims it."""
    template = Template("tokenizer", opened("deepseek_math"))
    assert pieces(template, "q", "A")[-2:] == [
        ("<｜begin▁of▁sentence｜>User: q\n\nAssistant:", False),
        (" A<｜end▁of▁sentence｜>", True),
    ]
    assert trained(Template("tokenizer", opened("llama3")), "q", " A\n") == ["A<|eot_id|>"]


@pytest.mark.parametrize(
    "answer", ["A<|endoftext|>", "A<|endoftext|>\n", "A<|endoftext|><|endoftext|>"]
)
@pytest.mark.parametrize("name", ["tokenizer", "plain", "qwen-boxed"])
def test_eos_in_the_data_is_not_trained_twice(answer, name, tokenizer):
    assert trained(Template(name, tokenizer), "q", answer) == ["A<|endoftext|>"]


def test_eos_in_an_earlier_answer_is_not_trained_twice(opened):
    template = Template("tokenizer", opened("smollm2"))
    assert trained(template, "p", "a<|im_end|>", "q", "b<|im_end|>\n") == [
        "a<|im_end|>",
        "b<|im_end|>",
    ]


def test_an_answer_of_eos_alone_is_refused(tokenizer):
    with pytest.raises(BadRow, match=r"nothing but '<\|endoftext\|>'"):
        trained(Template("plain", tokenizer), "q", " <|endoftext|>")


def test_eos_in_the_middle_of_an_answer_stays(tokenizer):
    assert trained(Template("plain", tokenizer), "q", "a<|endoftext|>b") == [
        "a<|endoftext|>b<|endoftext|>"
    ]


# Name -> (source, what the message says).
REFUSED = {
    "empty": ("", "the template is empty"),
    "white space": (" \n", "the template is empty"),
    "writes nothing": ("{% if false %}{{ messages }}{% endif %}", "the template writes nothing"),
    "no question": ("<|im_start|>assistant\n", "the template leaves the question out"),
    "last word only": (
        "{{ messages[0].content.split() | last }}",
        "the template leaves the question out",
    ),
    "a random choice": (
        "{{ ['a', 'b'] | random }}{{ messages[0].content }}",
        "drew a random number",
    ),
    "random text": ("{{ lipsum(1, false) }}{{ messages[0].content }}", "drew a random number"),
    "an address": ("{{ raise_exception }}{{ messages[0].content }}", "another every time"),
    "a generator": ("{{ messages | select }}{{ messages[0].content }}", "another every time"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_templates_that_nothing_could_be_trained_under(case, of_file):
    source, expected = REFUSED[case]
    with pytest.raises(errors.UserError, match=expected) as refusal:
        of_file(source)
    assert "choose one of plain" in str(refusal.value)


def test_an_empty_template_of_the_tokenizer_is_refused(opened):
    with pytest.raises(errors.UserError, match="data.template='tokenizer': the template is empty"):
        Template("tokenizer", opened("smollm2", chat_template=""))


def test_randomness_on_some_rows_alone_is_refused(of_file):
    template = of_file(
        "{{ messages[0].content }}{% if messages | length > 2 %}{{ [1, 2] | random }}{% endif %}"
    )
    with pytest.raises(errors.UserError, match="drew a random number"):
        template._render(conversation("q", "a", "r"), add_generation_prompt=True)


def test_a_template_without_a_later_question_is_refused(of_file):
    """What is written for one question is no prompt for two."""
    source = "{{ messages[0].content }}:{% for m in messages[1:] %}"
    source += "{% if m.role == 'assistant' %} {{ m.content }}"
    template = of_file(source + "{% endif %}{% endfor %}")
    assert trained(template, "q", "a") == [" a<|endoftext|>"]
    with pytest.raises(BadRow, match=r"leaves message 2 \(of the user\) out, or changes it"):
        template.parts(conversation("q", "a", "r", "b"))


def test_a_template_without_the_answer_is_refused(of_file):
    template = of_file("{{ messages[0].content }}:")
    with pytest.raises(BadRow, match="leaves the answer out"):
        template.parts(conversation("q", "a"))


DATED = "{{ strftime_now('%d %b %Y') }}\n{{ messages[0].content }}\n"


def test_a_dated_template_is_given_the_date(of_file, monkeypatch):
    assert of_file(DATED, date="2001-02-03").prompt("q").startswith("03 Feb 2001\n")
    template = of_file(DATED)
    assert template.date == datetime.date.today().isoformat()
    assert template.prompt("q").startswith(datetime.date.today().strftime("%d %b %Y"))
    assert of_file("{{ messages[0].content }}").date == ""


def dated_config(template):
    config = config_lib.get_default()
    config.data.template = template
    config.data.max_length = 400
    return config


def test_a_run_keeps_its_date(opened, tmp_path, monkeypatch):
    """Begun on one day and resumed on the next, a run under Llama 3's template reads the same data.

    What was left there without a checkpoint is of an earlier start: one from nothing has a day of
    its own.
    """
    tokenizer, days = opened("llama3"), iter(["2026-01-31", "2026-02-01", "2026-02-02"])
    monkeypatch.setattr(earlier, "today", lambda: next(days))
    data, checkpoint = tmp_path / "a.jsonl", tmp_path / "checkpoints/2" / manifest.NAME
    data.write_text('{"prompt": "1+1?", "completion": "2"}\n')

    def start():
        config = dated_config("tokenizer")
        config = earlier.with_date(config, earlier.first_date(config, tmp_path), tokenizer)
        (tmp_path / "config.json").write_text(config_lib.to_json(config))
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.touch()
        examples = load_examples(str(data), config.data, tokenizer, len(tokenizer))
        return (
            config.data.date,
            tokenizer.decode(examples.examples[0].ids),
            identity.kept_on_resume(config),
        )

    first, second = start(), start()
    assert first == second and first[0] == "2026-01-31" and "Today Date: 31 Jan 2026" in first[1]
    assert first[2]["data.date"] == "2026-01-31"
    checkpoint.unlink()
    assert start()[0] == "2026-02-01"
    other = dated_config("tokenizer")
    other.data.date = "2001-02-03"
    assert earlier.first_date(other, tmp_path) == "2001-02-03"


def test_a_run_without_a_dated_template_has_no_date(tokenizer):
    """Its fingerprint is that of runs from before the key was there, which resume."""
    config = earlier.with_date(dated_config("tokenizer"), "2026-01-02", tokenizer)
    assert config.data.date == "" and "data.date" not in identity.kept_on_resume(config)


@pytest.mark.parametrize("date", ["today", "2026-02-30", "26-01-01", "2026-1-1", "20260101"])
def test_wrong_dates_are_refused(date):
    config = config_lib.get_default()
    config.data.date = date
    assert any(
        f"config.data.date={date!r} should be a day" in line for line in config_lib.validate(config)
    )


R1_PROMPT = "<|begin|><|User|>q<|Assistant|><think>\n"


def test_a_thought_that_the_prompt_opens_is_not_opened_again(opened):
    template = Template("tokenizer", opened("r1"))
    expected = [(R1_PROMPT, False), ("hm\n</think>\nA<|end|>", True)]
    assert pieces(template, "q", "<think>\nhm\n</think>\nA") == expected
    assert pieces(template, "q", "hm\n</think>\nA") == expected


@pytest.mark.parametrize(
    "answer", ["A", "<think>\nhm", "hm</think>A<think>", "<think><think>hm</think>A"]
)
def test_a_thought_is_not_left_open(answer, opened):
    with pytest.raises(BadRow, match="opens a thought"):
        Template("tokenizer", opened("r1")).parts(conversation("q", answer))


def test_a_template_that_keeps_the_thought_it_opened(of_file):
    """As Qwen3's for thinking models: the rendered answer has the thought, which may be empty."""
    source = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{{ '<think>\\n' }}"
        "{% if '</think>' in m.content %}"
        "{{ m.content.split('</think>')[0].split('<think>')[-1].strip() }}{% endif %}"
        "{{ '\\n</think>\\n' + m.content.split('</think>')[-1].strip() }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant><think>\\n' }}{% endif %}"
    )
    template = of_file(source)
    prompt = "<user>q<|im_end|><assistant><think>\n"
    assert pieces(template, "q", "<think>hm</think>A") == [
        (prompt, False),
        ("hm\n</think>\nA<|endoftext|>", True),
    ]
    assert trained(template, "q", "A") == ["\n</think>\nA<|endoftext|>"]


@pytest.mark.parametrize("answer", ["<think>hm</think>A", "<think>hm</think>", "hm</think>A"])
def test_a_template_that_drops_a_part_of_the_answer_is_refused(answer, of_file):
    """As the first one of R1's distillations, whose prompt opens no thought: of a thought without
    an answer EOS alone was trained.
    """
    template = of_file(lookalikes.R1.replace("<think>\\n", ""))
    assert trained(template, "q", " A\n") == [" A\n<|endoftext|>"]
    with pytest.raises(BadRow, match="leaves a part of the answer out"):
        template.parts(conversation("q", answer))


def test_qwen3_keeps_a_thought_and_is_refused_what_stands_before_it(opened):
    template = Template("tokenizer", opened("qwen3"))
    assert trained(template, "q", "<think>hm</think>A") == ["<think>\nhm\n</think>\n\nA<|im_end|>"]
    with pytest.raises(BadRow, match="leaves a part of the answer out"):
        template.parts(conversation("q", "Well: <think>hm</think>A"))


def test_qwen3_with_two_answers(opened):
    """The template drops the thoughts of earlier answers, which nobody would sample: only read."""
    template = Template("tokenizer", opened("qwen3"))
    contents = ("p", "<think>\none\n</think>\n\nfirst", "q", "<think>\ntwo\n</think>\n\nsecond")
    prompt = "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\nfirst<|im_end|>\n"
    prompt += "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert pieces(template, *contents) == [
        (prompt, False),
        ("<think>\ntwo\n</think>\n\nsecond<|im_end|>", True),
    ]
    last = trained(template, "p", "first", "q", "second")
    assert last == ["<think>\n\n</think>\n\nsecond<|im_end|>"] == trained(template, "q", "second")


def test_answers_that_are_only_read_are_counted(opened, tmp_path):
    rows = [conversation("p", "first", "q", "second"), conversation("q", "second")]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    config = dated_config("tokenizer").data
    config.rows = "messages"
    tokenizer = opened("qwen3")
    report = load_examples(str(file), config, tokenizer, len(tokenizer)).report
    assert report["answers"] == {"trained": 2, "only_read": 1}
    assert report["first_offenders"][0].startswith(
        "a.jsonl:1: 1 of 2 answers are trained: the template shows"
    )
    assert report["rows"] == {"read": 2, "used_whole": 2, "truncated": 0, "dropped": {}}
    # Of a row of which nothing is trained no answer is.
    config.max_length = 20
    rows.append(conversation("p" * 99, "third"))
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows[1:]))
    report = load_examples(str(file), config, tokenizer, len(tokenizer)).report
    n_trained = report["rows"]["used_whole"] + report["rows"]["truncated"]
    assert report["answers"] == {"trained": n_trained, "only_read": 0} and n_trained < 2


def test_an_answer_of_weight_0_is_read_and_not_trained(opened):
    """The text is that without weights; what is left is trained as before, the last with EOS."""
    template = Template("tokenizer", opened("smollm2"))
    plain = conversation("p", "first", "q", "second", "r", "third")
    whole = template.parts(plain)
    all_text = "".join(part.text for part in whole)
    assert [part.text for part in whole if part.trained] == [
        "first<|im_end|>",
        "second<|im_end|>",
        "third<|im_end|>",
    ]
    for turn in (1, 3):
        weighted = [message | {"only_read": number == turn} for number, message in enumerate(plain)]
        parts = template.parts(weighted)
        expected = [
            part.text for part in whole if part.trained and plain[turn]["content"] not in part.text
        ]
        assert [part.text for part in parts if part.trained] == expected
        assert "".join(part.text for part in parts) == all_text
    last = template.parts([*plain[:5], plain[5] | {"only_read": True}])
    assert [part.text for part in last if part.trained] == ["first<|im_end|>", "second<|im_end|>"]
    assert "".join(part.text for part in last).rstrip() == all_text and not last[-1].trained


def test_answers_that_are_meant_to_be_read_are_no_offence(opened, tmp_path):
    asked, answered = conversation("p", "first")
    row = {"messages": [asked, answered | {"weight": 0}, asked, answered | {"weight": 1}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    config = dated_config("tokenizer").data
    config.rows = "messages"
    tokenizer = opened("smollm2")
    report = load_examples(str(tmp_path / "a.jsonl"), config, tokenizer, len(tokenizer)).report
    assert report["answers"] == {"trained": 1, "only_read": 1} and report["first_offenders"] == []


def test_a_conversation_costs_one_request(opened, monkeypatch):
    template, requests = Template("tokenizer", opened("smollm2")), []
    render_all = rendering.render_all
    monkeypatch.setattr(
        rendering, "render_all", lambda *args: requests.append(args) or render_all(*args)
    )
    for _ in range(5):
        template.parts(conversation("p", "a", "q", "b"))
    assert len(requests) == 5 + 2  # and two for what stands after an answer of each shape
