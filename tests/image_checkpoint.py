"""The golden checkpoint of Qwen2.5-VL as a folder with a tokenizer, whose tokens images have."""

import json
import shutil

from dft_jax import assets
from tests.image_examples import FOLDER

# Beyond the 259 tokens of assets/tiny; in its text each image is these three.
START, IMAGE, END = 259, 260, 261
MARK = "<|vision_start|><|image_pad|><|vision_end|>"
MIN_PIXELS, MAX_PIXELS = 28 * 28, 28 * 28 * 40


def image_checkpoint(folder):
    """Writes the checkpoint to `folder`, which it returns."""
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.npz"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "vision_start_token_id": START,
        "image_token_id": IMAGE,
        "vision_end_token_id": END,
        "video_token_id": 262,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(assets.TINY / "tokenizer_config.json", folder)
    tokenizer = json.loads((assets.TINY / "tokenizer.json").read_text())
    like = tokenizer["added_tokens"][0]
    for number, content in enumerate(MARK.replace("><", "> <").split()):
        tokenizer["added_tokens"].append(like | {"id": START + number, "content": content})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    limits = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    (folder / "preprocessor_config.json").write_text(json.dumps(limits))
    return folder
