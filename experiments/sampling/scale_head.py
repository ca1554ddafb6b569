"""Scales a checkpoint's last norm, and so its logits: a random model whose next-token entropy is
like a trained one's.

python experiments/sampling/scale_head.py --model=FOLDER --factor=10 --out=FOLDER
"""

import argparse
import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--factor", required=True, type=float)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    shutil.copytree(arguments.model, arguments.out)
    tensors = load_file(arguments.model / "model.safetensors")
    tensors["model.norm.weight"] *= arguments.factor
    file = arguments.out / "model.safetensors"
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
