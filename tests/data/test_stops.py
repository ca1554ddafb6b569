"""What ends an answer: every file that says so is heard, and named."""

import json

import pytest

from dft_jax.data.stops import find_stops
from dft_jax.data.templates import Template
from dft_jax.models.hf.locate import load_tokenizer
from tests import lookalikes


@pytest.fixture
def stops(tmp_path):
    """stops(style, generation, model): of a SmolLM2-like folder whose files say these ids."""

    def find(style="tokenizer", generation=None, model=None, **changes):
        folder = lookalikes.write("smollm2", tmp_path / "folder", **changes)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
        (folder / "config.json").write_text(json.dumps({"eos_token_id": model, "vocab_size": 900}))
        return find_stops(Template(style, load_tokenizer(folder)))

    return find


def test_lists_are_read(stops):
    """Where [0, 1, 5, 7] was not read the model wrote to the limit, and its last box counted."""
    found = stops(style="plain", generation=[2, 1, 5, 7], model=[0, 2])
    assert found.ids == [0, 1, 2, 5, 7] and found.warnings == []
    assert found.sources == {
        "tokenizer": [2],
        "generation_config.json": [2, 1, 5, 7],
        "config.json": [0, 2],
    }


def test_numbers_and_their_absence_are_read(stops):
    assert stops(style="plain", generation=2, model=0).ids == [0, 2]
    assert stops(style="plain").sources == {"tokenizer": [2]}


def test_the_marker_of_the_template_counts(stops):
    """Qwen's base models: a turn ends with <|im_end|>, a text with <|endoftext|>."""
    found = stops(eos_token="<|endoftext|>", generation=0)
    assert found.ids == [0, 2] and found.sources["template"] == [2]
    assert stops(style="qwen-boxed", eos_token="<|endoftext|>").sources["template"] == [0, 2]
    # no marker of Llama's in this vocabulary
    assert stops(style="llama-ins-boxed").sources == {"tokenizer": [2]}


def test_two_answers_to_what_ends_a_text_are_warned_about(stops):
    """Qwen3's base models: their tokenizer says <|im_end|>, and they write <|endoftext|>."""
    found = stops(style="plain", generation=0, model=0)
    assert found.ids == [0, 2]
    [warning] = found.warnings
    assert warning.startswith(
        "the tokenizer's eos_token is 2 (<|im_end|>), generation_config.json says 0 (<|endoftext"
    )


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
def test_real_models(name, real_models):
    tokenizer = load_tokenizer(real_models / name)
    end = tokenizer.get_vocab()["<|im_end|>"]
    found = find_stops(Template("tokenizer", tokenizer))
    assert found.ids == [end] and found.warnings == []
    assert found.sources == dict.fromkeys(
        ("tokenizer", "template", "generation_config.json", "config.json"), [end]
    )
