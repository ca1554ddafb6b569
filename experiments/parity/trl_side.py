"""One optimizer step of the real `trl.SFTTrainer` on a given batch: its loss and gradient norm, for
`nll` and `dft`.

    python experiments/parity/trl_side.py --checkpoint HF_FOLDER --batch batch.npz --out trl.json
    [--micro-batches M]

Needs torch, transformers 5.x and trl 1.16; CPU, float32, eager attention. `batch.npz` holds,
right-padded,

    token_ids       [N, L]   5 8 2 9 0 0
    attention_mask  [N, L]   1 1 1 1 0 0
    labels          [N, L]   . . 2 9 . .     (. = -100: not trained; aligned with
                                             token_ids, shifted inside the loss)

What TRL does (read in trl 1.16.0 and transformers 5.23.0). `SFTTrainer` patches the model with a
fused LM head that returns log p of each next token, 0 where labels[:, 1:] is -100.
`SFTTrainer.compute_loss` takes -log p, for `loss_type="dft"` times `exp(log p).detach()`, sums, and
divides by `num_items_in_batch`: labels[:, 1:] != -100 counted over *all* micro-batches of the step
and all ranks (`Trainer._get_num_items_in_batch`). So both losses are means over the step's trained
tokens, whatever `--micro-batches` is; a label at position 0 is neither trained nor counted.

The numbers come from `trainer.train()` with learning rate 0: the loss is the sum of what
`training_step` returns (for `nll`, the mean nll), the gradient is read before the optimizer step,
unclipped. Beside them stands `float64`: the same losses from full float64 logits in plain torch,
which share no code with TRL.
"""

import argparse
import json
import pathlib
import tempfile

import datasets
import numpy as np
import tokenizers
import torch
import transformers
import trl
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

IGNORED = -100


def load_model(checkpoint: str, dtype: torch.dtype) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=dtype, attn_implementation="eager"
    )


def load_rows(path: str) -> list[dict[str, list[int]]]:
    """The rows without their padding; raises ValueError where the batch is not right-padded or
    trains padding.
    """
    batch = np.load(path)
    token_ids, attention_mask, labels = batch["token_ids"], batch["attention_mask"], batch["labels"]
    lengths = attention_mask.sum(1)
    inside = np.arange(token_ids.shape[1]) < lengths[:, None]
    if (inside != attention_mask.astype(bool)).any():
        raise ValueError(
            f"{path}: attention_mask must be ones then zeros in every row (right padding)"
        )
    if (labels[~inside] != IGNORED).any() or ((labels != IGNORED) & (labels != token_ids)).any():
        raise ValueError(
            f"{path}: labels must equal token_ids or be {IGNORED}, and be {IGNORED} on padding"
        )
    return [
        {"input_ids": ids[:length].tolist(), "labels": targets[:length].tolist()}
        for ids, targets, length in zip(token_ids, labels, lengths, strict=True)
    ]


def count_trained(rows: list[dict]) -> int:
    return sum(label != IGNORED for row in rows for label in row["labels"][1:])


def load_tokenizer(folder: str | None) -> transformers.PreTrainedTokenizerBase:
    """SFTTrainer insists on a tokenizer; the rows are token ids already, so without a folder a
    one-word one will do.
    """
    if folder:
        return transformers.AutoTokenizer.from_pretrained(folder)
    one_word = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<eos>": 0}, unk_token="<eos>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=one_word, eos_token="<eos>", pad_token="<eos>"
    )


def gradient_norm(model: torch.nn.Module) -> float:
    """Global L2 norm over `parameters()`, which yields a tied tensor once; summed in float64."""
    return (
        sum(p.grad.double().square().sum().item() for p in model.parameters() if p.grad is not None)
        ** 0.5
    )


class RecordingTrainer(trl.SFTTrainer):
    """Keeps the loss of every micro-batch; each is already a share of the global token mean."""

    def training_step(self, *args, **kwargs):
        self.micro_losses.append(super().training_step(*args, **kwargs))
        return self.micro_losses[-1]


class RecordGradient(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.norm = gradient_norm(model)


def trl_step(
    checkpoint: str, rows: list[dict], tokenizer, loss_type: str, micro_batches: int
) -> dict[str, float]:
    recorder = RecordGradient()
    with tempfile.TemporaryDirectory() as scratch:
        config = trl.SFTConfig(
            output_dir=scratch,
            loss_type=loss_type,
            max_steps=1,
            learning_rate=0.0,
            max_grad_norm=0.0,
            per_device_train_batch_size=len(rows) // micro_batches,
            gradient_accumulation_steps=micro_batches,
            max_length=None,
            packing=False,
            bf16=False,
            activation_checkpointing=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = RecordingTrainer(
            load_model(checkpoint, torch.float32),
            config,
            # TRL would pad with the tokenizer's pad id, which a tiny vocabulary lacks; id 0 exists
            # in all.
            DataCollatorForLanguageModeling(pad_token_id=0),
            datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[recorder],
        )
        trainer.micro_losses = []
        trainer.train()
    assert len(trainer.micro_losses) == micro_batches, trainer.micro_losses
    return {"loss": sum(loss.item() for loss in trainer.micro_losses), "grad_norm": recorder.norm}


def float64_step(checkpoint: str, rows: list[dict], loss_type: str) -> dict[str, float]:
    """The definition: mean over trained tokens of -log p, or of -sg(p) log p; one row at a time, no
    padding.
    """
    model = load_model(checkpoint, torch.float64)
    total = 0.0
    for row in rows:
        targets = torch.tensor(row["labels"][1:])
        logits = model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        logits, targets = logits[targets != IGNORED], targets[targets != IGNORED]
        log_p = (logits - logits.logsumexp(-1, keepdim=True)).gather(1, targets[:, None])
        weight = log_p.detach().exp() if loss_type == "dft" else 1.0
        loss = (-weight * log_p).sum() / count_trained(rows)
        loss.backward()
        total += loss.item()
    return {"loss": total, "grad_norm": gradient_norm(model)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, text in (
        ("checkpoint", "HF folder"),
        ("batch", "npz, see above"),
        ("out", "JSON file to write"),
    ):
        parser.add_argument(f"--{name}", required=True, help=text)
    parser.add_argument(
        "--tokenizer", help="folder; by default a stand-in, since the rows hold token ids"
    )
    parser.add_argument(
        "--micro-batches", type=int, default=1, help="accumulation steps; must divide the rows"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = load_rows(args.batch)
    if args.micro_batches < 1 or len(rows) % args.micro_batches:
        parser.error(f"--micro-batches {args.micro_batches} does not divide the {len(rows)} rows")
    tokenizer = load_tokenizer(args.tokenizer)
    result = {
        "trl": {},
        "float64": {},
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, trl)},
    }
    result |= {
        "rows": len(rows),
        "micro_batches": args.micro_batches,
        "trained_tokens": count_trained(rows),
    }
    for kind in ("nll", "dft"):
        result["trl"][kind] = trl_step(args.checkpoint, rows, tokenizer, kind, args.micro_batches)
        result["float64"][kind] = float64_step(args.checkpoint, rows, kind)
    pathlib.Path(args.out).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
