"""Writes the golden checkpoint with a tower: a tiny random Qwen2.5-VL and what `transformers` makes
of text and images with it.

    python tests/golden/make_vision_golden.py

Needs torch and transformers (5.x), no GPU. The folder qwen2_5_vl beside this file then has
config.json and weights as transformers 5 writes them, logits.npz and greedy.npz of text alone as
make_golden.py has them, and

    images.npz   for each of CASES, by its name, in float64 with eager attention, rounded to float32:
                 NAME.token_ids [L], NAME.positions [3, L], NAME.delta, NAME.features [units, D]
                 (row-major units, image after image), NAME.logits [L, V]
    gradients.npz   of GRADIENT_CASE: for each tensor the norm of its gradient, and the gradient's
                 product with the tensor itself; the loss is the mean cross-entropy of the next tokens

The images are pictures.patches. Tensors are bfloat16, as published ones are. What is left of
float32 in the float64 model is what transformers casts by itself: norms and rotary positions.
"""

import pathlib
import shutil
from typing import Any

import numpy as np
import torch
import transformers
from make_golden import greedy
from pictures import patches

HERE = pathlib.Path(__file__).parent / "qwen2_5_vl"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
START, END, IMAGE, VIDEO = 288, 289, 290, 291
TEXT = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 298,
    "eos_token_id": 299,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1000.0,
        "mrope_section": [2, 3, 3],
    },
}
VISION = {
    "depth": 4,
    "hidden_size": 64,
    "num_heads": 4,
    "intermediate_size": 80,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [1, 3],
    "window_size": 112,
    "patch_size": 14,
}
# Text between the images; a grid (rows, columns of patches) for each. Windows are 8 × 8 patches:
# cut at the edge in the second and third case, whole in the last.
CASES: dict[str, list[tuple[int, int]]] = {
    "none": [],
    "small": [(4, 6)],
    "tall": [(20, 12)],
    "two": [(4, 6), (10, 16)],
    "square": [(16, 16)],
}
GRADIENT_CASE = "two"


def random_weights(model: torch.nn.Module) -> None:
    """Matrices and biases ± 0.15 (std), norm scales 1 ± 0.1."""
    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name or "ln_q" in name
            parameter.copy_(1 + 0.1 * noise if is_norm else 0.15 * noise)


def tokens_of(grids: list[tuple[int, int]], generator: torch.Generator) -> list[int]:
    """Three tokens, each image with two after it, and two more."""

    def text(n: int) -> list[int]:
        return torch.randint(START, (n,), generator=generator).tolist()

    ids = text(3)
    for height, width in grids:
        ids += [START, *[IMAGE] * (height * width // 4), END, *text(2)]
    return [*ids, *text(2)]


def pixel_values(grids: list[tuple[int, int]]) -> torch.Tensor:
    """As the processor gives them: normalised in float32, every patch twice after its colour."""
    mean = np.array(MEAN, np.float32)[None, :, None]
    std = np.array(STD, np.float32)[None, :, None]
    made = []
    for number, grid in enumerate(grids):
        pixels = patches(grid, number).reshape(-1, 3, 196).astype(np.float32) / np.float32(255)
        normalised = ((pixels - mean) / std).astype(np.float32)
        made.append(np.repeat(normalised[:, :, None], 2, axis=2).reshape(len(pixels), -1))
    return torch.from_numpy(np.concatenate(made)).double()


def run(model: Any, name: str, generator: torch.Generator) -> tuple[dict[str, Any], torch.Tensor]:
    """What images.npz has of a case, and the logits with their gradient."""
    grids = CASES[name]
    token_ids = torch.tensor([tokens_of(grids, generator)])
    types = (token_ids == IMAGE).int()
    given: dict[str, Any] = {}
    features = torch.zeros(0, TEXT["hidden_size"])
    positions = torch.arange(token_ids.shape[1])[None].repeat(3, 1)
    delta = 0
    if grids:
        grid_thw = torch.tensor([(1, *grid) for grid in grids])
        given = {
            "pixel_values": pixel_values(grids),
            "image_grid_thw": grid_thw,
            "mm_token_type_ids": types,
        }
        found = model.model.get_image_features(given["pixel_values"], grid_thw)
        features = torch.cat(list(found.pooler_output))
        positions, deltas = model.model.get_rope_index(token_ids, types, image_grid_thw=grid_thw)
        positions, delta = positions[:, 0], int(deltas)
    logits = model(token_ids, use_cache=False, **given).logits[0]
    values = {
        f"{name}.token_ids": token_ids[0].numpy().astype(np.int32),
        f"{name}.positions": positions.numpy().astype(np.int32),
        f"{name}.delta": np.int32(delta),
        f"{name}.features": features.detach().numpy().astype(np.float32),
        f"{name}.logits": logits.detach().numpy().astype(np.float32),
    }
    return values, logits


def gradients(model: torch.nn.Module, logits: torch.Tensor, token_ids: np.ndarray) -> Any:
    """For each tensor [2]: the norm of its gradient, and its product with the tensor."""
    targets = torch.from_numpy(token_ids[1:]).long()
    torch.nn.functional.cross_entropy(logits[:-1], targets).backward()
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.double()
        found[name] = np.array([gradient.norm(), (gradient * parameter.detach()).sum()])
    return found


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(HERE, ignore_errors=True)
    config = transformers.Qwen2_5_VLConfig(
        text_config=TEXT,
        vision_config=VISION,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=False,
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    random_weights(model)
    model.to(torch.bfloat16).save_pretrained(HERE)

    load = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained
    reloaded = load(HERE, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(1020)
    token_ids = torch.randint(START, (1, 160), generator=generator)
    with torch.no_grad():
        logits = reloaded(token_ids, use_cache=False).logits
    np.savez(HERE / "greedy.npz", **greedy(reloaded, token_ids[:1]))
    np.savez(
        HERE / "logits.npz", token_ids=token_ids.numpy().astype(np.int32), logits=logits.numpy()
    )

    exact = load(HERE, dtype=torch.float64, attn_implementation="eager").eval()
    values: dict[str, Any] = {}
    for name in CASES:
        of_case, logits = run(exact, name, generator)
        values |= of_case
        if name == GRADIENT_CASE:
            found = gradients(exact, logits, of_case[f"{name}.token_ids"])
            np.savez(HERE / "gradients.npz", **found)
        print(f"{name}: logits {tuple(logits.shape)}, std {float(logits.detach().std()):.2f}")
    np.savez_compressed(HERE / "images.npz", **values)


if __name__ == "__main__":
    main()
