"""A PyTorch training step on random weights of a given shape, for the GPU table; `tiny` runs use it
on a CPU.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from experiments.performance.workload import Examples


def step_seconds(config: dict, examples: Examples, head: str, rounds: int) -> np.ndarray:
    """Seconds of each of `rounds` DFT steps, after two that are dropped.

    `head` is `full` (the logits that the model returns) or `fused` (TRL's head, which never has
    them whole).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    architecture = transformers.AutoConfig.for_model(
        **{k: v for k, v in config.items() if k != "torch_dtype"}
    )
    with device:
        model = (
            transformers.AutoModelForCausalLM.from_config(architecture, attn_implementation="sdpa")
            .float()
            .train()
        )
    if head == "fused":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    ids, labels = (
        torch.from_numpy(x).long().to(device) for x in (examples.ids_NL, examples.labels_NL())
    )

    def logp():
        """Of the trained tokens; zero elsewhere."""
        if head == "fused":
            return model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        targets = labels[:, 1:].flatten()
        return -F.cross_entropy(
            logits.flatten(0, 1).float(), targets, ignore_index=-100, reduction="none"
        )

    n_trained, seconds = (labels[:, 1:] != -100).sum(), []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            logp_N = logp().float()
        loss = -(logp_N.exp().detach() * logp_N).sum() / n_trained
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert np.isfinite(loss.item())  # waits for the device
        seconds.append(time.perf_counter() - start)
    return np.array(seconds[2:])
