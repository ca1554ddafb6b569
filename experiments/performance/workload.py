"""What all contenders work on: random Qwen2-shaped checkpoints and random examples, each written
once to a folder.

Needs numpy and, to write a checkpoint, safetensors. Every contender reads the same files.

A random model gives every target the probability 1/V, and DFT's weight would be the same number
everywhere. So the embedding is drawn large: with tied weights such a model likes to repeat its last
token, and half of the targets are repetitions. Mean p is then between 0.1 and 0.5, as on real text.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

LENGTH = 256  # tokens of an example of the step rows; no padding
TRAINED = 0.5  # the share of an example's tokens that is trained: its second half
_STD, _EMBED_STD, _REPEATED = 0.02, 0.07, 0.5


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model, and how many examples a step of it has."""

    vocab_size: int
    examples: int
    layers: int = 4

    def config(self) -> dict:
        """As in config.json."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": self.vocab_size,
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
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


SHAPES = {
    "T": Shape(vocab_size=8192, examples=8),
    "V": Shape(vocab_size=151_936, examples=2),
    "T16": Shape(vocab_size=8192, examples=8, layers=16),
}


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples of token ids, right-padded with 0 to the longest; of each, what follows its prompt
    is trained.
    """

    ids_NL: np.ndarray
    lengths_N: np.ndarray
    prompts_N: np.ndarray

    def trained_NL(self) -> np.ndarray:
        """True for the tokens that are trained as targets."""
        place_L = np.arange(self.ids_NL.shape[1])
        return (place_L[None] >= self.prompts_N[:, None]) & (
            place_L[None] < self.lengths_N[:, None]
        )

    def labels_NL(self) -> np.ndarray:
        """As Hugging Face takes them: -100 where untrained, not shifted."""
        return np.where(self.trained_NL(), self.ids_NL, -100)

    def in_steps(self, n: int) -> list["Examples"]:
        """So many at a time, in order."""
        starts = range(0, len(self.lengths_N), n)
        columns = (self.ids_NL, self.lengths_N, self.prompts_N)
        return [Examples(*(column[k : k + n] for column in columns)) for k in starts]

    def save(self, file: Path) -> None:
        np.savez(file, ids=self.ids_NL, lengths=self.lengths_N, prompts=self.prompts_N)

    @classmethod
    def load(cls, file: str | Path) -> "Examples":
        arrays = np.load(file)
        return cls(arrays["ids"], arrays["lengths"], arrays["prompts"])


def random_examples(vocab_size: int, lengths: np.ndarray, seed: int = 0) -> Examples:
    """Random ids; each token repeats the one before it with probability one half."""
    generator = np.random.default_rng(seed)
    ids_NL = generator.integers(1, vocab_size, (len(lengths), int(max(lengths))), dtype=np.int32)
    repeats_NL = generator.random(ids_NL.shape) < _REPEATED
    for place in range(1, ids_NL.shape[1]):
        ids_NL[:, place] = np.where(repeats_NL[:, place], ids_NL[:, place - 1], ids_NL[:, place])
    lengths = np.asarray(lengths)
    inside_NL = np.arange(ids_NL.shape[1])[None] < lengths[:, None]
    return Examples(np.where(inside_NL, ids_NL, 0), lengths, (lengths * (1 - TRAINED)).astype(int))


def math_lengths(n: int, longest: int = 2048, seed: int = 0) -> np.ndarray:
    """Lengths like those of mathematical fine-tuning data: log-normal, 512 tokens on average, cut
    at `longest`.
    """
    drawn = np.random.default_rng(seed).lognormal(np.log(longest / 4.7), 0.62, n)
    return np.clip(drawn, longest / 32, longest).astype(int)


def write_checkpoint(shape: Shape, folder: Path, seed: int = 0) -> None:
    """config.json and model.safetensors in the published form, float32."""
    from safetensors.numpy import save_file

    c, generator = shape.config(), np.random.default_rng(seed)
    D, F, V = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    kv = D // c["num_attention_heads"] * c["num_key_value_heads"]

    def normal(*size, std=_STD):
        return generator.normal(scale=std, size=size).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": normal(V, D, std=_EMBED_STD),
        "model.norm.weight": 1 + normal(D),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for name, rows in (("q", D), ("k", kv), ("v", kv)):
            tensors[f"{prefix}.self_attn.{name}_proj.weight"] = normal(rows, D)
            tensors[f"{prefix}.self_attn.{name}_proj.bias"] = normal(rows)
        tensors[f"{prefix}.self_attn.o_proj.weight"] = normal(D, D)
        tensors[f"{prefix}.mlp.gate_proj.weight"] = normal(F, D)
        tensors[f"{prefix}.mlp.up_proj.weight"] = normal(F, D)
        tensors[f"{prefix}.mlp.down_proj.weight"] = normal(D, F)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = 1 + normal(D)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(c, indent=2) + "\n")


def prepare(work: Path, name: str) -> tuple[Path, Path]:
    """The checkpoint's folder and the examples' file of a shape in `work`; written where they are
    missing.
    """
    shape, folder = SHAPES[name], work / f"model_{name}"
    file = work / f"examples_{name}.npz"
    if not (folder / "config.json").exists():
        write_checkpoint(shape, folder)
    random_examples(shape.vocab_size, np.full(shape.examples, LENGTH)).save(file)
    return folder, file
