"""The training step of `trl.SFTTrainer`, inside the loop of its `train()`; a callback holds it
between turns.

python -m experiments.performance.contenders.trl_side --folder=HF --examples=FILE --setting=best

Of SFTConfig (trl 1.16.0), `--setting=default` keeps all that says how to compute: bf16 autocast and
gradient checkpointing, over float32 weights. `--setting=best` turns both off, which makes it the
float32 step of the others. Both have the fused head (tiles over trained tokens only), sdpa
attention and fused AdamW, which are defaults. Learning rate, moments, decay and clip are those of
the others.

With `--adapter=FOLDER` PEFT puts that adapter over the frozen model, and it is what is trained.
With `--batch=N` the examples are taken N at a time, in order, and every step is noted.
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

_MANY = 1000  # steps of data at least; one pass, so that no turn has the end of an epoch in it
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
    """Notes loss and gradient norm (before clipping) of the first step, which is never timed, or of
    each.
    """

    meter: Meter
    notes_each = False

    def _is_noted(self) -> bool:
        return self.notes_each or self.state.global_step == 0

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self._is_noted():
            self.meter.note(loss=loss.item())
        return loss

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        if self._is_noted():
            self.meter.note(gradient_norm=norm.item())
        return norm


def stand_in_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """SFTTrainer insists on one; the rows are token ids already."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<eos>": 0}, unk_token="<eos>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", pad_token="<eos>"
    )


def load_model(folder: str, dtype: str, adapter: str) -> torch.nn.Module:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    if not adapter:
        return model
    import peft

    return peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--examples", required=True)
    parser.add_argument("--setting", choices=list(_SETTINGS), required=True)
    parser.add_argument("--adapter", default="", help="PEFT folder")
    parser.add_argument("--batch", type=int, default=0, help="examples of a step; 0: all")
    parser.add_argument("--dtype", default="float32", help="of the model's weights")
    parser.add_argument("--learning_rate", type=float, default=1e-5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    packages = ["torch", "transformers", "trl", "accelerate", "datasets"]
    meter = Meter(versions(*packages, *(["peft"] if arguments.adapter else [])))
    examples = Examples.load(arguments.examples)
    columns = zip(examples.ids_NL, examples.labels_NL(), examples.lengths_N, strict=True)
    rows = [
        {"input_ids": ids[:length].tolist(), "labels": labels[:length].tolist()}
        for ids, labels, length in columns
    ]
    batch = arguments.batch or len(rows)
    repeats = -(-_MANY * batch // len(rows))
    config = trl.SFTConfig(
        output_dir=tempfile.mkdtemp(),
        loss_type="dft",
        max_steps=_MANY,
        per_device_train_batch_size=batch,
        learning_rate=arguments.learning_rate,
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
        load_model(arguments.folder, arguments.dtype, arguments.adapter),
        config,
        DataCollatorForLanguageModeling(pad_token_id=0),
        datasets.Dataset.from_list(rows).select(list(range(len(rows))) * repeats),
        processing_class=stand_in_tokenizer(),
        callbacks=[Turns(meter)],
    )
    trainer.meter, trainer.notes_each = meter, arguments.batch > 0
    # Every batch has the same examples, in order: the same step for all contenders.
    trainer._get_train_sampler = lambda dataset=None: torch.utils.data.SequentialSampler(
        trainer.train_dataset
    )
    trainer.train()


if __name__ == "__main__":
    main()
