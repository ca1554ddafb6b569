"""A training loop written by hand with PyTorch and transformers: forward, loss, backward, clip,
AdamW.

python -m experiments.performance.contenders.torch_loop --folder=HF --examples=FILE \\
    --objective=dft --head=full

`--head=full` takes the logits that the model returns; `--head=trained` calls the output layer on
the trained positions only, which is the best that a few lines can do. `--device=cuda` is for the
table of the GPU.
"""

import argparse

import torch
import torch.nn.functional as F
import transformers

from experiments.performance.protocol import Meter, versions
from experiments.performance.workload import Examples


def mean_loss(model, ids, labels, objective: str, head: str):
    """Mean over the trained tokens of -log p, for DFT times p without its gradient."""
    targets = labels[:, 1:]
    is_trained = targets != -100
    if head == "full":
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        nll = F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="none"
        )
    else:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        nll = F.cross_entropy(
            model.lm_head(hidden[is_trained]).float(), targets[is_trained], reduction="none"
        )
    weight = torch.exp(-nll).detach() if objective == "dft" else 1.0
    return (weight * nll).sum() / is_trained.sum()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--examples", required=True)
    parser.add_argument("--objective", choices=["sft", "dft"], required=True)
    parser.add_argument("--head", choices=["full", "trained"], default="full")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    meter = Meter(versions("torch", "transformers"))
    examples = Examples.load(arguments.examples)
    assert (examples.lengths_N == examples.ids_NL.shape[1]).all(), (
        "no padding, so no attention mask"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.folder, dtype=torch.float32
    ).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    ids, labels = (torch.from_numpy(x).long() for x in (examples.ids_NL, examples.labels_NL()))
    is_first = True
    while True:
        meter.tick(lambda: None)
        loss = mean_loss(model, ids, labels, arguments.objective, arguments.head)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if is_first:
            meter.note(loss=loss.item(), gradient_norm=norm.item())
            is_first = False


if __name__ == "__main__":
    main()
