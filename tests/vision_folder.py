"""A small folder of a Qwen2.5-VL checkpoint: the golden weights, a tokenizer with the tokens of
images, a chat template that writes them, and a processor's settings.
"""

import io
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer

from dft_jax import assets
from tests.conftest import GOLDEN

START, END, IMAGE = 288, 289, 290  # as the golden config.json has them
MARKS = {START: "<|vision_start|>", END: "<|vision_end|>", IMAGE: "<|image_pad|>"}
# What stands for an image in a prompt.
MARK = "<|vision_start|><|image_pad|><|vision_end|>"
# Content of text or of parts, as the published checkpoints' templates take it.
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def write(folder: Path) -> Path:
    """Writes the folder; weights are links."""
    shutil.copytree(GOLDEN / "qwen2_5_vl", folder, ignore=shutil.ignore_patterns("*.npz"))
    tokenizer = Tokenizer.from_file(str(assets.TINY / "tokenizer.json"))
    while tokenizer.get_vocab_size() < START:
        tokenizer.add_special_tokens([f"<|unused_{tokenizer.get_vocab_size()}|>"])
    for text in (MARKS[START], MARKS[END], MARKS[IMAGE]):
        tokenizer.add_special_tokens([AddedToken(text, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((assets.TINY / "tokenizer_config.json").read_text())
    settings["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def png(height: int, width: int, seed: int = 0, format: str = "PNG", **options) -> bytes:
    """A picture of random colours."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format, **options)
    return buffer.getvalue()
