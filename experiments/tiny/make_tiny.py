"""Writes dft_jax/assets/tiny: an untrained Qwen2-shaped model's config, a byte tokenizer and word
problems.

python -m experiments.tiny.make_tiny
"""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dft_jax.assets import TINY

_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
_NAMES, _THINGS = (
    ("Ann", "Bob", "Cara", "Dan", "Eve", "Finn"),
    ("apples", "books", "coins", "pens", "shells"),
)


def problem(rng: random.Random) -> dict[str, str]:
    """A two-step word problem with its worked answer, in GSM8K's form."""
    name, other = rng.sample(_NAMES, 2)
    thing, count, more, factor = (
        rng.choice(_THINGS),
        rng.randint(2, 9),
        rng.randint(1, 9),
        rng.choice((2, 3)),
    )
    total = (count + more) * factor
    question = (
        f"{name} has {count} {thing} and finds {more} more. {other} has {factor} times as"
        f" many. How many has {other}?"
    )
    answer = (
        f"{name} has {count}+{more}={count + more}. {other} has"
        f" {count + more}*{factor}={total}.\n#### {total}"
    )
    return {"question": question, "answer": answer}


def write_model(
    folder: Path,
    tokenizer: Tokenizer,
    tokenizer_class: str,
    *,
    more: dict | None = None,
    **sizes: int,
) -> None:
    """Tokenizer files, and the config.json of a Qwen2 of these sizes; `more` are settings of the
    tokenizer.
    """
    end = _SPECIALS[0]
    settings = {
        "tokenizer_class": tokenizer_class,
        "eos_token": end,
        "pad_token": end,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **sizes,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "float32",
    }
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, value in (
        ("tokenizer_config.json", settings | (more or {})),
        ("config.json", config),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    # One token a byte, no merges: any text goes in and comes out again.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*_SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_SPECIALS)
    sizes = dict(vocab_size=264, hidden_size=64, intermediate_size=192, num_hidden_layers=2)
    write_model(
        TINY, tokenizer, "PreTrainedTokenizerFast", more={"chat_template": _TEMPLATE}, **sizes
    )
    rng = random.Random(0)
    rows = list({json.dumps(problem(rng)): None for _ in range(1200)})  # each problem once
    (TINY / "train.jsonl").write_text("\n".join(rows[:512]) + "\n")
    (TINY / "heldout.jsonl").write_text("\n".join(rows[512:576]) + "\n")


if __name__ == "__main__":
    main()
