"""The tokenizer is what tokenizer.json says, whatever class transformers would make of it; bad
folders are named.
"""

import json
import shutil

import pytest
import transformers
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram, WordLevel

from dft_jax import assets
from dft_jax.models.hf import tokenizer as ours
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.models.hf.tokenizer import differs_in_transformers
from dft_jax.runtime import errors
from tests import lookalikes, text
from tests.conftest import GOLDEN

STRINGS = text.strings(2500)
REAL = ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")


def ids_of_file(folder, strings):
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch(strings, add_special_tokens=False)]


def ids_of_product(folder, strings):
    return load_tokenizer(folder)(strings, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", lookalikes.MAKERS)
def test_ids_of_lookalikes_are_those_of_the_file(name, tmp_path):
    folder = lookalikes.write(name, tmp_path / name)
    assert ids_of_product(folder, STRINGS) == ids_of_file(folder, STRINGS)


@pytest.mark.parametrize(
    "folder",
    [assets.TINY, assets.LAB, assets.LAB_CLEAN, assets.LAB_CODE],
    ids=lambda folder: folder.name,
)
def test_ids_of_the_shipped_models_are_those_of_the_file(folder):
    assert ids_of_product(folder, STRINGS) == ids_of_file(folder, STRINGS)


@pytest.mark.parametrize("name", REAL)
def test_ids_of_real_models_are_those_of_the_file(name, real_models, request):
    folder, strings = real_models / name, list(STRINGS)
    problems = request.config.rootpath.parent / "shared" / "data" / "gsm8k_train.jsonl"
    if problems.exists():
        strings += [json.loads(line)["question"] for line in problems.read_text().splitlines()]
    assert ids_of_product(folder, strings) == ids_of_file(folder, strings)


def test_digits_stay_digits(tmp_path):
    """SmolLM2's class is GPT2Tokenizer, which knows no Digits step: two spaces before a digit were
    one token.
    """
    tokenizer = load_tokenizer(lookalikes.write("smollm2", tmp_path))
    pieces = [tokenizer.convert_ids_to_tokens(id_) for id_ in tokenizer.encode("6  52")]
    assert pieces in (["6", "ĠĠ", "5", "2"], ["6", "Ġ", "Ġ", "5", "2"])


def test_no_normalisation_that_the_file_does_not_ask_for(tmp_path):
    """A folder of class Qwen2Tokenizer got NFC and Qwen's splitting, whatever its file said."""
    tokenizer = load_tokenizer(lookalikes.write("qwen2_class", tmp_path / "plain"))
    assert tokenizer.encode("e\u0301") != tokenizer.encode("\u00e9")
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "e\u0301"
    with_nfc = load_tokenizer(lookalikes.write("qwen3", tmp_path / "nfc"))
    assert with_nfc.encode("e\u0301") == with_nfc.encode("\u00e9")


def test_spaces_stay(tmp_path):
    """transformers 5.8 made a DeepSeekMath tokenizer that lost every space."""
    tokenizer = load_tokenizer(lookalikes.write("deepseek_math", tmp_path))
    assert tokenizer.decode(tokenizer.encode("What is 1 + 1?")) == "What is 1 + 1?"


@pytest.mark.parametrize("name", lookalikes.MAKERS)
def test_decoding_leaves_spaces_before_full_stops(name, tmp_path):
    """Llama 3's tokenizer_config.json asks for a clean-up that makes 'a.b' of 'a .b': graded text,
    and code.
    """
    tokenizer = load_tokenizer(lookalikes.write(name, tmp_path, clean_up_tokenization_spaces=True))
    for one in ("a .b", "we have 12 .5", "3 , 4 ?", "do n't"):
        assert tokenizer.decode(tokenizer.encode(one)) == one
        ids = [*tokenizer.encode(one), tokenizer.eos_token_id]
        assert tokenizer.decode(ids, skip_special_tokens=True) == one
        assert tokenizer.decode(ids) == one + tokenizer.eos_token


@pytest.mark.parametrize("is_sequence", [False, True])
def test_a_decoder_that_cleans_up_is_one_that_does_not(is_sequence, tmp_path):
    """That of word pieces does by default, by itself or among other steps, and then nothing else
    has to ask for it.
    """
    folder, tokens = lookalikes.write("llama3", tmp_path), ["a", ".", "b", "?"]
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cleans = decoders.WordPiece(cleanup=True)
    backend.decoder = decoders.Sequence([cleans]) if is_sequence else cleans
    backend.save(str(folder / "tokenizer.json"))
    assert (
        backend.decoder.decode(tokens)
        != "a . b ?"
        == load_tokenizer(folder).backend.decoder.decode(tokens)
    )


@pytest.mark.parametrize("name", ["qwen3", "llama3", "mistral", "smollm2"])
def test_vocabularies_with_bytes_read_all_text(name, tmp_path):
    tokenizer = load_tokenizer(lookalikes.write(name, tmp_path))
    assert tokenizer.reads_all
    assert all(tokenizer.without_token(one, []) == "" for one in STRINGS[:10]), (
        "nothing is compared"
    )


def test_characters_without_a_token():
    """They vanish without an unknown token, and are that token where there is one; white space does
    not count.
    """
    laboratory = load_tokenizer(assets.LAB)
    assert not laboratory.reads_all
    for one, lost in (
        ("f(2)! is (2)", "(())!"),
        ("1 + 1 = 2", ""),
        ("很好。", "很好。"),
        ("a\tb\u00a0c", ""),
    ):
        assert sorted(laboratory.without_token(one, laboratory.encode(one))) == sorted(lost)


EOS = "</s>"


@pytest.mark.parametrize(
    "model, normaliser",
    [
        (Unigram([("?", 0.0), (EOS, 0.0), ("a", -1.0), ("é", -1.0)], unk_id=0), normalizers.NFC()),
        (WordLevel({"?": 0, EOS: 1, "a": 2, "é": 3}, unk_token="?"), normalizers.NFC()),
        (WordLevel({"?": 0, EOS: 1, "▁a": 2, "▁é": 3}, unk_token="?"), normalizers.Prepend("▁")),
    ],
    ids=["unigram", "words", "spaces"],
)
def test_an_unknown_token_stands_for_nothing(model, normaliser):
    """Not even for the question mark that it is written as; what the normaliser changes is not
    lost.
    """
    backend = Tokenizer(model)
    backend.normalizer, backend.pre_tokenizer = normaliser, pre_tokenizers.Split("-", "removed")
    backend.add_special_tokens([EOS])
    if isinstance(normaliser, normalizers.Prepend):
        backend.decoder = decoders.Replace("▁", " ")
    tokenizer = ours.Tokenizer(backend, ours.Settings({"eos_token": EOS}))
    assert not tokenizer.reads_all
    asked = "a" if isinstance(normaliser, normalizers.Prepend) else "e\u0301"
    assert tokenizer.without_token(asked, tokenizer.encode(asked)) == ""
    assert tokenizer.without_token("b", tokenizer.encode("b")) == "b"
    assert tokenizer.without_token("?", tokenizer.encode("?")) == "?"


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path):
    """As a file saved after training holds them: every example would be cut to 4 tokens, and
    padded.
    """
    folder = lookalikes.write("smollm2", tmp_path)
    expected = ids_of_file(folder, STRINGS[:200])
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    backend.save(str(folder / "tokenizer.json"))
    assert ids_of_product(folder, STRINGS[:200]) == expected


def test_what_a_text_begins_with(tmp_path):
    begins = {
        name: load_tokenizer(lookalikes.write(name, tmp_path / name)) for name in lookalikes.MAKERS
    }
    with_bos = {
        name
        for name, tokenizer in begins.items()
        if tokenizer.first_ids == [tokenizer.bos_token_id]
    }
    # DeepSeekMath's file has no step that adds BOS; its tokenizer_config.json says add_bos_token.
    assert with_bos == {"llama3", "mistral", "deepseek_math"}
    assert all(begins[name].first_ids == [] for name in begins.keys() - with_bos)


def test_special_tokens_of_old_folders_stand_in_a_file_of_their_own(tmp_path):
    folder = lookalikes.write("smollm2", tmp_path, eos_token=None)
    (folder / "special_tokens_map.json").write_text(
        '{"eos_token": {"content": "<|im_end|>", "lstrip": false}}'
    )
    assert load_tokenizer(folder).eos_token == "<|im_end|>"


def test_a_special_token_that_the_file_does_not_mark_is_still_one_token(tmp_path):
    """As transformers reads it: </s> in the vocabulary and named in tokenizer_config.json, but no
    added token.
    """
    folder = lookalikes.write("smollm2", tmp_path)
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["added_tokens"] = [
        token for token in raw["added_tokens"] if token["content"] != "<|im_end|>"
    ]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("2<|im_end|>")[1:] == [tokenizer.eos_token_id] == [2]
    assert tokenizer.decode([5, 2], skip_special_tokens=True) == tokenizer.decode([5])


def test_an_old_file_of_added_tokens_counts_where_the_settings_list_none(tmp_path):
    """As for transformers; one that agrees is in order."""
    folder = lookalikes.write("smollm2", tmp_path)
    added_tokens({"<|im_end|>": 2})(folder)
    assert load_tokenizer(folder).eos_token_id == 2
    added_tokens({"<|new|>": 900})(folder)
    settings(added_tokens_decoder={"2": {"content": "<|im_end|>"}})(folder)
    assert load_tokenizer(folder).eos_token_id == 2


def test_templates_in_every_place(tmp_path):
    def template(folder):
        return load_tokenizer(folder).get_chat_template()

    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    assert template(lookalikes.write("smollm2", tmp_path / "a", chat_template=several)) == "d"
    own = lookalikes.write("smollm2", tmp_path / "b")
    (own / "chat_template.jinja").write_text("in a file")
    assert template(own) == "in a file"
    with pytest.raises(ValueError, match=r"no chat template by default \(it has tools\)"):
        template(lookalikes.write("smollm2", tmp_path / "c", chat_template=several[:1]))


@pytest.mark.slow
def test_vocabulary_with_merges(shared, tmp_path):
    """Without tokenizer.json the class says how text is split; nothing else can, so another class
    is refused.
    """
    source = shared / "tokenizers" / "qwen2"
    tokenizer = load_tokenizer(source)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", 151643)
    assert (
        tokenizer.decode(tokenizer.encode("a .b 12")) == "a .b 12"
        and len(tokenizer.encode("12")) == 2
    )
    folder = shutil.copytree(source, tmp_path / "other", copy_function=shutil.copyfile)
    raw = json.loads((folder / "tokenizer_config.json").read_text())
    folder.joinpath("tokenizer_config.json").write_text(
        json.dumps(raw | {"tokenizer_class": "LlamaTokenizer"})
    )
    with pytest.raises(
        errors.UserError, match="no tokenizer.json, and vocab.json and merges.txt do not say"
    ):
        load_tokenizer(folder)


def dropout(folder):
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["dropout"] = 0.5
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def settings(**changes):
    def change(folder):
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def added_tokens(content):
    """As a file of its own, which folders have that are older than the list in the settings."""

    def change(folder):
        file = folder / "tokenizer_config.json"
        raw = json.loads(file.read_text())
        raw.pop("added_tokens_decoder", None)
        file.write_text(json.dumps(raw))
        (folder / "added_tokens.json").write_text(json.dumps(content))

    return change


def only(name):
    def change(folder):
        (folder / "tokenizer.json").unlink()
        (folder / name).write_bytes(b"vocabulary")

    return change


def generation(**content):
    return lambda folder: (folder / "generation_config.json").write_text(json.dumps(content))


def model(**content):
    return lambda folder: (folder / "config.json").write_text(
        json.dumps({"vocab_size": 900} | content)
    )


# Name -> (what is done to the folder, what the message says).
WRONG = {
    "sentencepiece alone": (
        only("tokenizer.model"),
        ["no tokenizer.json; tokenizer.model alone is not read", "copy"],
    ),
    "tekken alone": (
        only("tekken.json"),
        ["no tokenizer.json; tekken.json alone is not read", "AutoTokenizer"],
    ),
    "tiktoken alone": (
        only("qwen.tiktoken"),
        ["qwen.tiktoken alone is not read", "copy tokenizer.json"],
    ),
    "random merges": (dropout, ["dropout=0.5 makes the ids of a text random", "set it to null"]),
    "split markers": (
        settings(split_special_tokens=True),
        ["split_special_tokens=true would cut", "false"],
    ),
    "eos of another model": (
        settings(eos_token="</s>"),
        ["eos_token='</s>'", "no token of the vocabulary"],
    ),
    "no eos": (
        settings(eos_token=None),
        ["has no eos_token, so no answer could end", "tokenizer_config.json"],
    ),
    "another vocabulary": (
        settings(added_tokens_decoder={"7": {"content": "<|im_end|>"}}),
        [
            "token '<|im_end|>' is 7 there, tokenizer.json has it as 2",
            "take both files from the same model",
        ],
    ),
    "a token too many": (
        settings(added_tokens_decoder={"900": {"content": "<|new|>"}}),
        ["token '<|new|>' is 900 there, tokenizer.json has no such token"],
    ),
    "a token too many in an old file": (
        added_tokens({"<|im_end|>": 2, "<|new|>": 900}),
        ["added_tokens.json: token '<|new|>' is 900 there, tokenizer.json has no such token;"],
    ),
    "an old file of another vocabulary": (
        added_tokens({"<|im_end|>": 7}),
        ["added_tokens.json: token '<|im_end|>' is 7 there, tokenizer.json has it as 2"],
    ),
    "eos as text": (
        generation(eos_token_id="</s>"),
        ['generation_config.json: eos_token_id="</s>" should be'],
    ),
    "eos in a list as text": (
        generation(eos_token_id=[2, "x"]),
        ['eos_token_id=[2, "x"] should be'],
    ),
    "eos true": (
        generation(eos_token_id=True),
        ["eos_token_id=true should be the number of a token"],
    ),
    "eos below zero": (generation(eos_token_id=-1), ["eos_token_id=-1 should be"]),
    "eos beyond the model": (
        model(eos_token_id=[2, 900]),
        ["config.json: eos_token_id=[2, 900]", "vocab_size=900"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_folders_are_refused_by_name(case, tmp_path):
    change, expected = WRONG[case]
    folder = lookalikes.write("smollm2", tmp_path)
    change(folder)
    with pytest.raises(errors.UserError) as refusal:
        load_tokenizer(folder)
    for part in expected:
        assert part in str(refusal.value)


def test_what_transformers_makes_of_an_exported_folder_is_said(tmp_path, monkeypatch):
    """Whichever classes its version rebuilds: one that reads the file is silent, one that loses
    digits is named.
    """
    folder = lookalikes.write("smollm2", tmp_path / "a")
    tokenizer = load_tokenizer(folder)
    read = transformers.PreTrainedTokenizerFast.from_pretrained
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda folder, **_: read(folder)
    )
    assert differs_in_transformers(folder, tokenizer) == ""
    other = lookalikes.write("qwen2_class", tmp_path / "b")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: read(other))
    found = differs_in_transformers(folder, tokenizer)
    assert "gives other ids than tokenizer.json for" in found and "as for '6  5'" in found

    def fails(*_, **__):
        raise KeyError("unknown class")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fails)
    assert "cannot read the tokenizer (KeyError: 'unknown class')" in differs_in_transformers(
        folder, tokenizer
    )


def test_golden_folders_have_no_tokenizer():
    with pytest.raises(errors.UserError, match="no tokenizer.json, nor a vocabulary"):
        load_tokenizer(GOLDEN / "llama")
