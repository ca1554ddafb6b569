"""How demonstrations are read under models that are already trained: prompt, date, length."""

import sys
from collections.abc import Mapping

import jax

from dft_jax import config as config_lib
from dft_jax.analysis.asked import Reading
from dft_jax.data import templates
from dft_jax.data.examples import Examples, load_examples
from dft_jax.data.templates import AUTO, Template, today
from dft_jax.evals import prompts
from dft_jax.evals.evaluation import announce
from dft_jax.lm.language_model import LM
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.runtime import distributed, errors, processes
from dft_jax.runtime.options import Config

# Examples at once.
_BATCH = 64


def config_for(models: Mapping[str, LM], asked: Reading, prefix: str = "--") -> Config:
    """The config by which demonstrations are read, as far as all these models can read.

    Args:
      prefix: stands before the names of settings in messages.

    Raises:
      UserError: unknown rows or prompt, models that were trained with different prompts, or a
      folder or a column of images that nothing is read from.
    """
    errors.raise_if_any(asked.mistakes(prefix))
    config = config_lib.get_default()
    config.data.rows = asked.rows
    config.data.prompt_field = asked.prompt_field
    config.data.completion_field = asked.completion_field
    config.data.max_rows = asked.max_rows
    config.data.template = _prompt(models, asked.prompt, prefix)
    dates = {name: lm.date for name, lm in models.items()}
    tokenizer = next(iter(models.values())).tokenizer
    config.data.date = _date(tokenizer, dates, config.data.template, prefix)
    # What one of them cannot read would be cut for it alone.
    longest = min(lm.model.config.max_length for lm in models.values())
    config.data.max_length = min(asked.context, longest)
    config.data.image_field = asked.image_field
    config.data.image_folder = asked.image_folder
    config.data.image_min_pixels = asked.image_min_pixels
    if asked.image_max_pixels:
        config.data.image_max_pixels = asked.image_max_pixels
    # Whatever fits the context is scored: four patches are a token.
    config.data.image_max_patches = 4 * config.data.max_length
    config.train.global_batch = max(_BATCH, jax.device_count())
    return config


def read(path: str, lm: LM, config: Config, split: str = "train") -> Examples:
    """The examples of a data path as tokens of this model.

    Raises:
      UserError: data that cannot be read, or without a trained token.
    """
    model = lm.model.config
    return load_examples(
        path,
        config.data,
        lm.tokenizer,
        model.vocab_size,
        vision=model.vision,
        source=lm.source,
        split=split,
        max_rows=config.data.max_rows,
    )


def _prompt(models: Mapping[str, LM], asked: str, prefix: str) -> str:
    """The prompt for demonstrations that all these models read, announced."""
    trained = {name: lm.trained for name, lm in models.items()}
    tokenizer = next(iter(models.values())).tokenizer
    # What the models were trained with, where they agree.
    if asked == AUTO:
        choice = prompts.choose(asked, prompts.shared(trained), tokenizer)
        announce(choice)
        return choice.name
    errors.raise_if_any(templates.name_problems(f"{prefix}prompt", asked))
    for name, prompt in trained.items():
        choice = prompts.choose(asked, prompt, tokenizer)
        if choice.warning and processes.is_first():
            print(f"warning: {name}: {choice.warning}", file=sys.stderr)
    return asked


def _date(tokenizer: Tokenizer, dates: Mapping[str, str], prompt: str, prefix: str) -> str:
    """The day that a dated prompt is given for all models; empty where it writes no date.

    It is the first of `dates`, those that the models were trained with by name, else today.
    """
    if not Template(prompt, tokenizer, setting=f"{prefix}prompt").is_dated:
        return ""
    known = {name: date for name, date in dates.items() if date}
    first = next(iter(known.values()), "") or today()
    # Hosts may be on either side of midnight.
    date = distributed.decided("date", first, lambda dates: dates[0])
    # One date for all, since a comparison needs the same tokens.
    for name, trained_on in known.items():
        if trained_on != date and processes.is_first():
            what = f"{name} was trained with the date {trained_on} in its prompt, and reads {date}"
            print(f"warning: {what}", file=sys.stderr)
    return date
