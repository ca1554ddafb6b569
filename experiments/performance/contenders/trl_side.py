"""The training step of `trl.SFTTrainer`, inside the loop of its `train()`; a callback holds it
between turns.

python -m experiments.performance.contenders.trl_side --folder=HF --examples=FILE --setting=best

Of SFTConfig (trl 1.16.0), `--setting=default` keeps all that says how to compute: bf16 autocast and
gradient checkpointing, over float32 weights. `--setting=best` turns both off, which makes it the
float32 step of the others. Both have the fused head (tiles over trained tokens only), sdpa
attention and fused AdamW, which are defaults. Learning rate, moments, decay and clip are those of
the others.
"""

import argparse
import tempfile
import warnings

import datasets
import tokenizers
import torch
import transformers
import trl
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from experiments.performance.protocol import Meter, versions
from experiments.performance.workload import Examples

_MANY = 1000  # steps of data; one pass, so that no turn has the end of an epoch in it
_SETTINGS = {
    "best": dict(bf16=False, gradient_checkpointing=False, logging_strategy="no"),
    "default": {},
}


class Turns(transformers.TrainerCallback):
    def __init__(self, meter: Meter):
        self.meter = meter

    def on_step_begin(self, *args, **kwargs) -> None:
        self.meter.tick(lambda: None)


class Trainer(trl.SFTTrainer):
    """Notes loss and gradient norm (before clipping) of the first step, which is never timed."""

    meter: Meter

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step == 0:
            self.meter.note(loss=loss.item())
        return loss

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        if self.state.global_step == 0:
            self.meter.note(gradient_norm=norm.item())
        return norm


def stand_in_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """SFTTrainer insists on one; the rows are token ids already."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<eos>": 0}, unk_token="<eos>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", pad_token="<eos>"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--examples", required=True)
    parser.add_argument("--setting", choices=list(_SETTINGS), required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    meter = Meter(versions("torch", "transformers", "trl", "accelerate", "datasets"))
    examples = Examples.load(arguments.examples)
    rows = [
        {"input_ids": ids.tolist(), "labels": labels.tolist()}
        for ids, labels in zip(examples.ids_NL, examples.labels_NL(), strict=True)
    ]
    config = trl.SFTConfig(
        output_dir=tempfile.mkdtemp(),
        loss_type="dft",
        max_steps=_MANY,
        per_device_train_batch_size=len(rows),
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.01,
        max_grad_norm=1.0,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **_SETTINGS[arguments.setting],
    )
    trainer = Trainer(
        transformers.AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32),
        config,
        DataCollatorForLanguageModeling(pad_token_id=0),
        datasets.Dataset.from_list(rows).select(list(range(len(rows))) * _MANY),
        processing_class=stand_in_tokenizer(),
        callbacks=[Turns(meter)],
    )
    trainer.meter = meter
    # Every batch is the whole set of examples, in order: the same step for all contenders.
    trainer._get_train_sampler = lambda dataset=None: torch.utils.data.SequentialSampler(
        trainer.train_dataset
    )
    trainer.train()


if __name__ == "__main__":
    main()
