"""Writes the study's model: Qwen2-shaped, 4 layers of width 256, random weights, a real vocabulary
(needs torch).

python experiments/random4_gsm8k/make_checkpoint.py --tokenizer=FOLDER --out=FOLDER
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder with tokenizer files")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(arguments.out)
    for file in arguments.tokenizer.iterdir():
        shutil.copy(file, arguments.out)


if __name__ == "__main__":
    main()
