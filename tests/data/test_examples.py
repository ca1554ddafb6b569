"""From rows to examples: positional masks, the account of tokens, every format alike."""

import json

import pytest
from tokenizers import Tokenizer, processors

from dft_jax import assets, config as config_lib
from dft_jax.data import packing
from dft_jax.data.examples import load_examples
from dft_jax.data.templates import STYLES, Template
from dft_jax.models.hf import tokenizer as ours
from dft_jax.models.hf.locate import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(assets.TINY)


def data_config(**changes):
    config = config_lib.get_default().data
    config.max_length = 128
    config.update(changes)
    return config


def write_rows(tmp_path, rows):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def load(tmp_path, values, tokenizer, **changes):
    return load_examples(write_rows(tmp_path, values), data_config(**changes), tokenizer, 264)


def trained_text(example, tokenizer):
    return tokenizer.decode(example.ids[example.trained])


def test_completion_and_eos_are_trained_and_nothing_else(tmp_path, tokenizer):
    (example,) = load(tmp_path, [{"prompt": "1+1?", "completion": "2"}], tokenizer).examples
    assert trained_text(example, tokenizer) == "2<|endoftext|>"
    assert (
        tokenizer.decode(example.ids)
        == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|endoftext|>"
    )


def test_mask_is_positional(tmp_path, tokenizer):
    """The prompt holds the very tokens of the completion, and EOS, which is also the pad token."""
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = [{"prompt": "say 2<|endoftext|>", "completion": "2"}]
    (example,) = load(tmp_path, rows, tokenizer).examples
    assert example.trained.sum() == 2 and example.trained[-2:].all()


def test_a_cut_example_has_no_eos_and_is_counted(tmp_path, tokenizer):
    rows = [{"prompt": "p", "completion": "x" * 500}, {"prompt": "p", "completion": "short"}]
    examples = load(tmp_path, rows, tokenizer, max_length=64)
    assert len(examples.examples[0].ids) == 64
    assert tokenizer.eos_token_id not in examples.examples[0].ids
    assert examples.examples[1].ids[-1] == tokenizer.eos_token_id
    assert examples.report["rows"]["truncated"] == 1
    assert examples.report["first_offenders"][0].startswith("train.jsonl:1: truncated")


def test_the_account_balances(tmp_path, tokenizer):
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a" * 300, "completion": "too late"},
        {"prompt": "a", "completion": "b" * 300},
        {"prompt": "no completion"},
        {"prompt": "a", "completion": "  "},
        {"prompt": "c", "completion": "d"},
    ]
    report = load(tmp_path, rows, tokenizer, bad_rows="drop").report
    assert report["rows"] == {
        "read": 6,
        "used_whole": 2,
        "truncated": 1,
        "dropped": {"prompt_too_long": 1, "bad_row": 2},
    }
    assert any(
        "train.jsonl:4" in offender and "'completion'" in offender
        for offender in report["first_offenders"]
    )
    tokens = report["tokens"]
    template = Template("tokenizer", tokenizer)
    whole = [
        sum(len(tokenizer(part.text)["input_ids"]) for part in template.parts(conversation(row)))
        for row in rows
        if row.get("completion", "").strip()
    ]
    assert tokens["read"] == sum(whole) == tokens["used"] + tokens["truncated"] + tokens["dropped"]


def conversation(row):
    return [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]


def test_only_assistant_turns_of_a_conversation_are_trained(tmp_path, tokenizer):
    turns = [
        ("system", "Be brief."),
        ("user", "1+1?"),
        ("assistant", "2"),
        ("user", "sure?"),
        ("assistant", "yes"),
    ]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    (example,) = load(tmp_path, rows, tokenizer, rows="messages", max_length=256).examples
    assert trained_text(example, tokenizer) == "2<|im_end|>yes<|endoftext|>"


@pytest.mark.parametrize("style", sorted(STYLES))
def test_named_styles(style, tokenizer):
    prompt, answer = Template(style, tokenizer).parts(
        conversation({"prompt": "Q {input}?", "completion": "A"})
    )
    assert prompt.text == STYLES[style].replace("{input}", "Q {input}?") and not prompt.trained
    assert answer.text == "A<|endoftext|>" and answer.trained


def test_a_tokenizer_that_begins_texts_with_bos_begins_the_prompt_with_it(tmp_path):
    """As Llama's and DeepSeek's do: once, first, untrained; a chat template writes its own."""
    backend = Tokenizer.from_file(str(assets.TINY / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        "<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    llama = ours.Tokenizer(
        backend, ours.Settings({"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"})
    )
    config = data_config(template="plain")
    file = write_rows(tmp_path, [{"prompt": "1+1?", "completion": "2"}])
    (example,) = load_examples(file, config, llama, 264).examples
    assert llama.decode(example.ids) == "<|im_start|>1+1?\n2<|endoftext|>"
    assert trained_text(example, llama) == "2<|endoftext|>"


def test_template_file(tmp_path, tokenizer):
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "
    )
    prompt, answer = Template(str(file), tokenizer).parts(
        conversation({"prompt": "Q", "completion": "A"})
    )
    assert (prompt.text, answer.text) == ("[user] Q\n[assistant] ", "A<|endoftext|>")


def test_every_file_format_gives_the_same_examples(tmp_path, tokenizer):
    import datasets

    rows = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))  # no newline at the end
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paths = [tmp_path / "a.jsonl", tmp_path / "a.json", tmp_path / "a.parquet", folder]
    digests = {load_examples(str(p), data_config(), tokenizer, 264).report["sha256"] for p in paths}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "rows, row",
    [
        ("gsm8k", {"question": "Q", "answer": "A\n#### 4"}),
        ("numina", {"problem": "Q", "solution": "A\n#### 4", "source": "x", "messages": []}),
        ("math", {"problem": "Q", "solution": "A\n#### 4", "level": 5}),
    ],
)
def test_row_formats(rows, row, tmp_path, tokenizer):
    (example,) = load(tmp_path, [row], tokenizer, rows=rows).examples
    assert trained_text(example, tokenizer) == "A\n#### 4<|endoftext|>"


def test_gsm8k_with_the_real_tokenizer(shared):
    """Real problems through the real vocabulary: all used, EOS at every end, rows well filled."""
    tokenizer = load_tokenizer(shared / "tokenizers/qwen2")
    config = data_config(rows="gsm8k", max_length=1024)
    path = str(shared / "data/gsm8k_train.jsonl")
    examples = load_examples(path, config, tokenizer, len(tokenizer), max_rows=1500)
    assert examples.report["rows"] == {
        "read": 1500,
        "used_whole": 1500,
        "truncated": 0,
        "dropped": {},
    }
    assert all(example.ids[-1] == tokenizer.eos_token_id for example in examples.examples)
    text = tokenizer.decode(examples.examples[0].ids)
    assert text.startswith(
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed"
    )
    sizes = [packing.slots(example) for example in examples.examples[:256]]
    fewest = -(-sum(sizes) // 1024)  # no packing can take fewer rows
    assert fewest <= len(packing.best_fit(sizes, 1024)) <= fewest + 2
