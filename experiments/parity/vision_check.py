"""Qwen2.5-VL as wide as the 3B, two layers and two blocks deep, with its whole vocabulary: made by
`transformers`, trained here on rows with images, exported, and read by `transformers` again.

    python experiments/parity/vision_check.py --tokenizer=FOLDER --out=FOLDER [--parts=all]

Needs one environment with dft_jax and torch, and 16 GiB. `--tokenizer` is a folder with the
tokenizer of Qwen2; what Qwen2.5-VL adds to it is added here. The rows are made pictures of cards.
`transformers` reads files, scales and cuts pictures and places tokens by itself: from here it has
the token ids alone. Fails where positions differ, or logits by more than 1e-4 of the largest.
"""

import argparse
import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import dft_jax as dft
from dft_jax import config as config_lib
from dft_jax.data.batches import Packer
from dft_jax.lm.run import SavedRun, open_run
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.models.hf.safetensors import weights_dtype
from dft_jax.models.model import build, head, with_tower
from dft_jax.training.inputs import load_data

LIMIT = 1e-4
# What the tokenizer of Qwen2 lacks, from its 151,646th token on.
ADDED = (
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
FIRST_ADDED, START, END, IMAGE, VIDEO = 151646, 151652, 151653, 151655, 151656
TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [16, 24, 24],
    },
}
VISION = {
    "depth": 2,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "fullatt_block_indexes": [1],
    "window_size": 112,
}


def write_checkpoint(folder: pathlib.Path, tokenizer_folder: pathlib.Path) -> None:
    """Random weights in bfloat16, config.json, processor and tokenizer."""
    config = transformers.Qwen2_5_VLConfig(
        text_config=TEXT,
        vision_config=VISION,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(ADDED)})
    ids = tokenizer.convert_tokens_to_ids(list(ADDED))
    assert ids == list(range(FIRST_ADDED, VIDEO + 1)), ids
    tokenizer.save_pretrained(folder)


def train(checkpoint: pathlib.Path, workdir: pathlib.Path, steps: int, parts: str) -> SavedRun:
    config = config_lib.get_default()
    config.model.path = str(checkpoint)
    config.data.train = "cards(split=train, n=64)"
    config.data.rows, config.data.image_field = "fields", "images"
    config.data.template, config.data.max_length = "plain", 256
    config.train.update(steps=steps, global_batch=8, parts=parts, seed=0)
    config.optimizer.learning_rate = 1e-4
    dft.finetune(None, config, workdir)
    run = open_run(workdir)
    dft.export(run.lm, workdir / "export")
    return run


def compare(run: SavedRun, examples: int) -> tuple[float, float, float]:
    """Of the run's parameters here and of its export there: the largest difference of logits, their
    largest, and the share of positions with the same most probable token.
    """
    folder = run.workdir / "export"
    dtype = weights_dtype(folder)
    theirs = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    lm = run.lm.with_images()
    model = with_tower(build(lm.model.config, lm.model.mesh, compute_dtype="float32"))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype).astype("float32"), lm.params)
    config = run.config.copy_and_resolve_references()
    data, _ = load_data(config, lm.source, load_tokenizer(lm.source), model)
    vision = model.config.vision
    row_length = max(len(example.ids) for example in data.examples)
    packer = Packer(
        data,
        model.mesh,
        [[n] for n in range(examples)],
        accumulation=1,
        row_length=row_length,
        vision=vision,
    )

    @jax.jit
    def logits_of(params, batch):
        hidden_BLD = model.apply(params, batch)
        return jnp.einsum("LD,VD->LV", hidden_BLD[0], head(params))

    worst, largest, same = 0.0, 0.0, []
    for number in range(examples):
        example = data.examples[number]
        n = len(example.ids) - 1  # the last token is a target alone
        batch = jax.tree.map(lambda leaf: leaf[0], packer.pack([number]).batch)
        with jax.default_matmul_precision("highest"):
            ours_LV = np.asarray(logits_of(params, batch))[:n]
        given = torch_inputs(example, config.data.image_max_pixels)
        types = given["mm_token_type_ids"]
        positions, _ = theirs.model.get_rope_index(
            given["input_ids"], types, image_grid_thw=given["image_grid_thw"]
        )
        ours_L3 = np.asarray(batch.images.positions_BL3)[0, :n]
        np.testing.assert_array_equal(ours_L3.T, positions[:, 0, :n].numpy())
        with torch.no_grad():
            theirs_LV = theirs(**given, use_cache=False).logits[0, :n].numpy()
        worst = max(worst, float(np.abs(ours_LV - theirs_LV).max()))
        largest = max(largest, float(np.abs(theirs_LV).max()))
        same.append(ours_LV.argmax(-1) == theirs_LV.argmax(-1))
    return worst, largest, float(np.mean(np.concatenate(same)))


def torch_inputs(example, max_pixels: int) -> dict[str, torch.Tensor]:
    processor = Qwen2VLImageProcessorPil(max_pixels=max_pixels)
    pictures = [Image.open(io.BytesIO(picture.file.read())) for picture in example.images]
    ids = torch.tensor(example.ids[None], dtype=torch.long)
    found = processor(pictures, return_tensors="pt")
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": found["pixel_values"],
        "image_grid_thw": found["image_grid_thw"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--parts", default="all", help="train.parts")
    parser.add_argument("--examples", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    checkpoint = arguments.out / "checkpoint"
    if not checkpoint.exists():
        write_checkpoint(checkpoint, arguments.tokenizer)
    run = train(
        checkpoint, arguments.out / f"run_{arguments.parts}", arguments.steps, arguments.parts
    )
    worst, largest, same = compare(run, arguments.examples)
    print(
        f"step {run.step} of parts={arguments.parts}: positions equal; largest |difference|"
        f" {worst:.2e} of logits up to {largest:.2f}; most probable token equal at {same:.2%}"
    )
    if not worst <= LIMIT * largest:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
