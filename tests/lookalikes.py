"""Small checkpoint folders with the tokenizers' steps, classes and templates of known models; made,
not committed.
"""

import functools
import json
from pathlib import Path

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests import text

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Llama 3.1's: dated, with a header for each message, contents trimmed.
LLAMA3 = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\\n\\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token }}"
    "{% else %}{{ m['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# As Qwen3's: the thought of an answer is shown only after the last question, where it may be empty.
QWEN3 = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set content = m['content'] %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{% set thought = '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if loop.index0 > ns.last %}{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}"
    "{{ content.lstrip('\\n') }}"
    "{% else %}{{ content }}{% endif %}{% else %}{{ content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As DeepSeek-R1's: a prompt opens a thought, and answers are shown without theirs.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}"
    "{% elif m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)
_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _corpus() -> list[str]:
    source = "\n".join(file.read_text() for file in sorted(Path(__file__).parent.glob("*.py"))[:8])
    return [*source.splitlines(), *text.strings(1500, seed=9)]


def _byte_level(pre_tokenizer, special, vocab_size=900, **options) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _bytes_of(*steps):
    """Steps, then bytes; the steps have split the text already."""
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def smollm2() -> tuple[Tokenizer, dict]:
    digits = pre_tokenizers.Digits(individual_digits=True)
    steps = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "eos_token": "<|im_end|>",
        "bos_token": "<|im_start|>",
    }
    return _byte_level(steps, _CHATML_TOKENS), config | {
        "unk_token": "<|endoftext|>",
        "chat_template": CHATML,
    }


def qwen2_class() -> tuple[Tokenizer, dict]:
    """Named Qwen2Tokenizer, but without NFC and with GPT-2's splitting."""
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|endoftext|>",
        "chat_template": CHATML,
    }
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), _CHATML_TOKENS), config


def qwen3() -> tuple[Tokenizer, dict]:
    split = pre_tokenizers.Split(Regex(_LLAMA3_SPLIT.replace("{1,3}", "")), "isolated")
    tokenizer = _byte_level(_bytes_of(split), _CHATML_TOKENS)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens(["<think>", "</think>"])
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    return tokenizer, config | {"chat_template": QWEN3}


def llama3() -> tuple[Tokenizer, dict]:
    special = (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    )
    split = pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated")
    tokenizer = _byte_level(_bytes_of(split), special, ignore_merges=True)
    begin = processors.TemplateProcessing(
        "<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), begin]
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>"}
    config |= {
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": True,
        "chat_template": LLAMA3,
    }
    return tokenizer, config


def deepseek_math() -> tuple[Tokenizer, dict]:
    special = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
    patterns = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    tokenizer = _byte_level(
        _bytes_of(*splits, pre_tokenizers.Digits(individual_digits=True)), special
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    config = {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    return tokenizer, config | {
        "bos_token": special[0],
        "eos_token": special[1],
        "chat_template": DEEPSEEK,
    }


def mistral() -> tuple[Tokenizer, dict]:
    """SentencePiece's way: a space before the text, spaces as ▁, what is unknown in bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(_corpus(), trainers.BpeTrainer(vocab_size=700, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocab = {name: id_ for id_, name in enumerate(dict.fromkeys(names))}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    return tokenizer, config | {"add_bos_token": True, "legacy": False, "chat_template": MISTRAL}


def r1() -> tuple[Tokenizer, dict]:
    special = ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>")
    tokenizer = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), special)
    config = {
        "tokenizer_class": "LlamaTokenizerFast",
        "bos_token": special[0],
        "eos_token": special[1],
    }
    return tokenizer, config | {"chat_template": R1}


MAKERS = {
    maker.__name__: maker
    for maker in (smollm2, qwen2_class, qwen3, llama3, deepseek_math, mistral, r1)
}


@functools.cache
def _texts(name: str) -> tuple[str, str]:
    tokenizer, config = MAKERS[name]()
    return tokenizer.to_str(), json.dumps(config)


def write(name: str, folder: Path, **changes) -> Path:
    """The folder of a lookalike: tokenizer.json, and tokenizer_config.json with `changes`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, config = _texts(name)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    settings = {
        key: value for key, value in (json.loads(config) | changes).items() if value is not None
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
