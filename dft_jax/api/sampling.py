"""Completions of the public API."""

from collections.abc import Sequence
from pathlib import Path

from dft_jax.data.templates import AUTO, Template, today
from dft_jax.evals import prompts as prompts_lib
from dft_jax.lm.language_model import LM
from dft_jax.runtime import errors
from dft_jax.sampling.image_prompts import asked, file_at
from dft_jax.sampling.prompt_tokens import prompt_tokens
from dft_jax.sampling.sampler import Request
from dft_jax.sampling.texts import Writer


def sample(
    lm: LM,
    prompts: str | Sequence[str],
    *,
    images: Sequence[str | Path] = (),
    template: str = AUTO,
    n: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    show_progress: bool = True,
) -> list[str] | list[list[str]]:
    """Completions of questions.

    Args:
      prompts: one question, or several.
      images: files that are shown before each question, to a model with images. Its tower is read
        for this call; `lm.with_images()` keeps it for more.
      template: how a question is put: "auto" (as the model was trained, else its own chat
        template), a name of data/templates.py, or a .jinja file.
      n: completions of each.
      temperature: 0 is greedy, and needs n=1.
      top_k: sample from the k most probable tokens; 0 for all.
      top_p: sample from the fewest tokens that hold this share of the probability.
      max_new_tokens: the longest completion.
      seed: a completion depends on this, its question and its number alone.
      stop: texts that end a completion, and are not part of it.

    Returns:
      The n texts of one question; of several, a list of them for each.

    Raises:
      UserError: settings that no sample can have, a prompt that leaves no room for an answer.

    >>> sample(base, "What is 17 * 23?", template="qwen25-math-cot", n=2, temperature=0.7)
    """
    questions = [prompts] if isinstance(prompts, str) else list(prompts)
    stop = [stop] if isinstance(stop, str) else list(stop)
    errors.raise_if_any(_mistakes(n, temperature, top_k, top_p, max_new_tokens, seed, stop))
    if not questions:
        return []
    shown = [file_at(image) for image in images]
    if shown:
        lm = lm.with_images()
    choice = prompts_lib.choose(template, lm.trained, lm.tokenizer, setting="template")
    date, vision = lm.date or today(), lm.model.config.vision
    put = Template(choice.name, lm.tokenizer, setting="template", date=date, vision=vision)
    requests, longest = [], lm.model.config.max_length
    for question in questions:
        prompt = prompt_tokens(lm, put, [asked(question, shown)], longest)
        limit = min(longest - len(prompt.ids), max_new_tokens)
        about = (prompt.ids, temperature, limit, prompt.images)
        requests += [Request(question, number, *about) for number in range(n)]
    lengths = [len(request.prompt_ids) + request.max_new_tokens for request in requests]
    writer = Writer(
        lm,
        put,
        max_length=max(lengths),
        slots=min(64, len(requests)),
        seed=seed,
        top_k=top_k,
        top_p=top_p,
        stop=stop,
    )
    found = _in_groups(writer, requests, n, show_progress)
    return found[0] if isinstance(prompts, str) else found


def _mistakes(
    n: int,
    temperature: float,
    top_k: int,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    stop: Sequence[str],
) -> list[str]:
    """What is wrong with the settings of `sample`, a line each.

    The sampler takes what it is given: with top_k=-1, which is "all" to other engines, no token
    would be left to draw, and every text be empty.
    """
    found = []
    if n < 1 or (temperature == 0 and n > 1):
        found.append(f"n={n}: at least 1, and greedily (temperature=0) just 1")
    # Of NaN none of these holds.
    if not 0 <= temperature <= 10:
        found.append(f"temperature={temperature} should be from 0 (greedy) to 10")
    if top_k < 0:
        found.append(f"top_k={top_k} should be at least 0, which is all tokens")
    if not 0 < top_p <= 1:
        found.append(f"top_p={top_p} should be above 0, at most 1")
    if max_new_tokens < 1:
        found.append(f"max_new_tokens={max_new_tokens} should be at least 1")
    if not 0 <= seed < 2**32:
        found.append(f"seed={seed} should be at least 0 and below {2**32}")
    if "" in stop:
        found.append("stop='' would end every completion at once; leave it out")
    return found


def _in_groups(
    writer: Writer, requests: list[Request], n: int, show_progress: bool
) -> list[list[str]]:
    """The completions of all requests, n of each question; they come as they are finished."""
    texts = {}
    for made in writer.complete(requests, show_progress=show_progress):
        texts[made.request] = made.text
    found = []
    for start in range(0, len(requests), n):
        found.append([texts[request] for request in requests[start : start + n]])
    return found
