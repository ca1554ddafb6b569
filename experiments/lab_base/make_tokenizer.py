"""Writes config and tokenizer of the laboratory's models: dft_jax/assets/lab, whose weights
configs/lab_base.py makes, and dft_jax/assets/lab_code, of configs/lab_code_base.py.

python -m experiments.lab_base.make_tokenizer

A token is a word with the space before it, a digit, or a sign: the model reads numbers digit by
digit.
"""

import dataclasses
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from dft_jax.assets import LAB, LAB_CODE
from dft_jax.data.sources import programs, world
from experiments.tiny.make_tiny import write_model

_SPECIALS = ["<|endoftext|>"]
# That of Qwen2's tokenizer, which transformers puts in place of any other for this model type:
# words with the space before them, single digits, signs.
_PIECES = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Byte pairs merged until every piece of the texts is one token."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_PIECES, "isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=_SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def world_texts() -> Iterator[str]:
    """Of every family."""
    for family, levels in (
        ("chain", "1-6"),
        ("expression", "1-5"),
        ("operator", "1-3"),
        ("fact", "1-1"),
    ):
        for row in world.Excerpt("pretrain", family, levels, 5000, noise=0.5).rows():
            yield f"{row['question']}\n{row['answer']}"


def program_texts() -> Iterator[str]:
    """Of every family in every style."""
    families = programs.Excerpt("pretrain", "chain:60+expression:30+fact:10", "1-6+1-5+1-1")
    for row in dataclasses.replace(families, n=20_000, noise=0.5, styles=4).rows():
        yield row["prompt"] + row["canonical_solution"]


def main() -> None:
    sizes = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=3)
    for folder, texts in ((LAB, world_texts()), (LAB_CODE, program_texts())):
        tokenizer = build_tokenizer(texts)
        size = tokenizer.get_vocab_size()
        write_model(folder, tokenizer, "Qwen2Tokenizer", vocab_size=size, **sizes)


if __name__ == "__main__":
    main()
