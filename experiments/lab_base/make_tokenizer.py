"""Writes dft_jax/assets/lab: config and tokenizer of the laboratory's model; configs/lab_base.py
makes its weights.

python -m experiments.lab_base.make_tokenizer

A token is a word with the space before it, a digit, or a sign: the model reads numbers digit by
digit.
"""

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from dft_jax.assets import LAB
from dft_jax.data.sources import world
from experiments.tiny.make_tiny import write_model

_SPECIALS = ["<|endoftext|>"]
# That of Qwen2's tokenizer, which transformers puts in place of any other for this model type:
# words with the space before them, single digits, signs.
_PIECES = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer() -> Tokenizer:
    """Byte pairs merged until every piece of the world's texts, of every family, is one token."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_PIECES, "isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=_SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _texts() -> Iterator[str]:
    for family, levels in (
        ("chain", "1-6"),
        ("expression", "1-5"),
        ("operator", "1-3"),
        ("fact", "1-1"),
    ):
        for row in world.Excerpt("pretrain", family, levels, 5000, noise=0.5).rows():
            yield f"{row['question']}\n{row['answer']}"


def main() -> None:
    tokenizer = build_tokenizer()
    sizes = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=3)
    write_model(LAB, tokenizer, "Qwen2Tokenizer", vocab_size=tokenizer.get_vocab_size(), **sizes)


if __name__ == "__main__":
    main()
