"""Writes config, tokenizer and preprocessor_config.json of dft_jax/assets/lab_vision, whose weights
configs/lab_vision_base.py makes.

python -m experiments.lab_vision_base.make_files

The text part has the sizes of the laboratory's other models, and its tokenizer is built as theirs,
on the texts of the world and of the cards.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from dft_jax.assets import LAB_VISION
from dft_jax.data.sources import cards
from dft_jax.models import vision
from experiments.lab_base import make_tokenizer

# Around an image, and what stands for its tokens; where Qwen2.5-VL has them, other ids.
IMAGE_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
_TOWER = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 4,
    "out_hidden_size": 128,
    "fullatt_block_indexes": [1],
    "window_size": 56,
    "patch_size": 14,
    "spatial_patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_chans": vision.COLOURS,
    "hidden_act": "silu",
    "tokens_per_second": 2,
}
_TEXT = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    # A head has 32 dimensions, so 16 pairs: by time, row and column in the shares of Qwen2.5-VL.
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}
_PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 56 * 56,
    "max_pixels": 28 * 28 * 64,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": list(vision.MEAN),
    "image_std": list(vision.STD),
}


def card_texts() -> Iterator[str]:
    """Of every family, with chains of 1 to 6 people."""
    families = cards.Excerpt("pretrain", "picture_chain+cards+card", "1-6+1-1+1-1", 3000, noise=0.5)
    for row in families.rows():
        yield f"{row['prompt']}\n{row['completion']}"


def tokenizer() -> Tokenizer:
    """That of the laboratory, with the words of the cards and the tokens of images."""
    texts = itertools.chain(make_tokenizer.world_texts(), card_texts())
    built = make_tokenizer.build_tokenizer(texts)
    built.add_special_tokens(list(IMAGE_TOKENS))
    return built


def config(built: Tokenizer) -> dict:
    """As the hub has those of Qwen2.5-VL: the text's keys at the top."""
    start, end, pad = (built.token_to_id(token) for token in IMAGE_TOKENS)
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "vocab_size": built.get_vocab_size(),
        **_TEXT,
        "image_token_id": pad,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "vision_config": _TOWER,
    }


def write(folder: Path) -> None:
    """All files but the weights."""
    built = tokenizer()
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    folder.mkdir(exist_ok=True)
    built.save(str(folder / "tokenizer.json"))
    for name, value in (
        ("tokenizer_config.json", settings),
        ("config.json", config(built)),
        ("preprocessor_config.json", _PREPROCESSOR),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    write(LAB_VISION)
