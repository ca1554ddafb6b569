r"""The paper's table of images: Qwen2.5-VL on WeThink, one epoch.

Source: arXiv 2508.05629v3, table 4.

    python -m dft_jax.main --config=configs/wethink_qwen25_vl.py:objective=dft,data=wethink.jsonl \
        --workdir=runs/wethink_dft

Arguments: objective (dft); size: 3b, 7b; data: rows in the form of LLaMA-Factory, `conversations`
with a mark <image> for each of `images`, whose files lie beneath the folder of the data
(data.image_folder names another). Those of the hub, yangjie-cv/WeThink_Multimodal_Reasoning_120K
(the default), have to be put into that form first, as their authors' repository says, and their
images come from eighteen other sets and are fetched apart; as they are they are refused. Hardware:
3b on one 80 GB GPU or v5e-16. Expect (the paper's strict scores of the 3b, base / SFT / DFT):
MathVerse 33.8 / 35.7 / 37.5, MathVision 21.3 / 21.0 / 22.3, WeMath 4.1 / 23.3 / 23.7; they were
scored by VLMEvalKit, whose rules are others than ours (docs/images.md). Not re-run here.

As in LLaMA-Factory's defaults, the text is trained, tower and merger are frozen, and images are
scaled to at most 768 × 768 pixels. The batch is not published: here 256.
"""

from dft_jax import config as config_lib
from dft_jax.runtime import errors

_SIZES = {"3b": "Qwen/Qwen2.5-VL-3B-Instruct", "7b": "Qwen/Qwen2.5-VL-7B-Instruct"}

_HUB = "yangjie-cv/WeThink_Multimodal_Reasoning_120K"


def get_config(argument: str = ""):
    chosen = config_lib.parse_argument(argument, objective="dft", size="3b", data=_HUB)
    if chosen["size"] not in _SIZES:
        raise errors.UserError(
            f"--config=…:size={chosen['size']}: unknown size; known: {', '.join(_SIZES)}"
        )
    config = config_lib.get_default()
    config.objective = chosen["objective"]
    config.model.path = _SIZES[chosen["size"]]
    config.model.remat = "full"
    config.data.train = chosen["data"]
    config.data.rows = "sharegpt"
    config.data.max_length = 4096
    config.optimizer.learning_rate = 5e-5
    config.train.global_batch = 256
    config.train.accumulation = 8
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config
