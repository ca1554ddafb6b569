"""A sampler of answers, which end where a checkpoint says and have only tokens it can read."""

from dft_jax.data.stops import Stops
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.model import Model
from dft_jax.sampling.decode import STEPS_AT_ONCE
from dft_jax.sampling.sampler import Sampler

# Tokens between two looks for stop texts: what comes behind one is made for nothing.
_STEPS_WATCHED = 16


def answer_sampler(
    model: Model,
    tokenizer: Tokenizer,
    stops: Stops,
    *,
    max_length: int,
    slots: int,
    seed: int,
    top_k: int,
    top_p: float,
    steps_at_once: int = STEPS_AT_ONCE,
    has_stop_texts: bool = False,
) -> Sampler:
    """Makes a sampler whose completions end at `stops`; what else is given is the Sampler's.

    Args:
      has_stop_texts: whether whoever samples looks for texts too, and ends completions there.
    """
    # Every id that the tokenizer has, and those that files of the checkpoint say end a text.
    last = max({*tokenizer.get_vocab().values(), *stops.ids})
    return Sampler(
        model,
        stop_ids=stops.ids,
        max_length=max_length,
        slots=slots,
        seed=seed,
        top_k=top_k,
        top_p=top_p,
        vocab_size=last + 1,
        steps_at_once=min(steps_at_once, _STEPS_WATCHED) if has_stop_texts else steps_at_once,
    )
