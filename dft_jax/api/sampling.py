"""Completions of the public API."""

from collections.abc import Sequence

from dft_jax.data.stops import find_stops
from dft_jax.data.templates import AUTO, Template, today
from dft_jax.evals import prompts as prompts_lib
from dft_jax.lm.language_model import LM
from dft_jax.models.model import matmul_precision
from dft_jax.runtime import errors, progress
from dft_jax.sampling.answers import answer_sampler
from dft_jax.sampling.sampler import Request


def sample(
    lm: LM,
    prompts: str | Sequence[str],
    *,
    template: str = AUTO,
    n: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    show_progress: bool = True,
) -> list[str] | list[list[str]]:
    """Completions of questions.

    Args:
      prompts: one question, or several.
      template: how a question is put: "auto" (as the model was trained, else its own chat
        template), a name of data/templates.py, or a .jinja file.
      n: completions of each.
      temperature: 0 is greedy, and needs n=1.
      top_k: sample from the k most probable tokens; 0 for all.
      top_p: sample from the fewest tokens that hold this share of the probability.
      max_new_tokens: the longest completion.
      seed: a completion depends on this, its question and its number alone.

    Returns:
      The n texts of one question; of several, a list of them for each.

    >>> sample(base, "What is 17 * 23?", template="qwen25-math-cot", n=2, temperature=0.7)
    """
    questions = [prompts] if isinstance(prompts, str) else list(prompts)
    if n < 1 or (temperature == 0 and n > 1):
        raise errors.UserError(f"n={n}: at least 1, and greedily (temperature=0) just 1")
    choice = prompts_lib.choose(template, lm.trained, lm.tokenizer, setting="template")
    asked = Template(choice.name, lm.tokenizer, setting="template", date=lm.date or today())
    requests, longest = [], lm.model.config.max_length
    for question in questions:
        ids = tuple(asked.prompt_ids(question))
        room = longest - len(ids)
        if room < 1:
            what = f"a prompt of {len(ids)} tokens leaves no room within {longest}"
            raise errors.UserError(f"{what}: {question[:40]!r}…; shorten it")
        for number in range(n):
            limit = min(room, max_new_tokens)
            requests.append(Request(question, number, ids, temperature, limit))
    sampler = answer_sampler(
        lm.model,
        lm.tokenizer,
        # Where a completion ends: whatever the tokenizer, the template or the checkpoint says.
        find_stops(asked),
        max_length=max(len(request.prompt_ids) + request.max_new_tokens for request in requests),
        slots=min(64, len(requests)),
        seed=seed,
        top_k=top_k,
        top_p=top_p,
    )
    texts = {}
    with progress.silent(not show_progress), matmul_precision(str(lm.model.module.compute_dtype)):
        for completion in sampler.sample(lm.params, requests):
            text = lm.tokenizer.decode(list(completion.ids), skip_special_tokens=True)
            texts[completion.request] = text
    # Completions come in the order in which they were finished.
    found = []
    for start in range(0, len(requests), n):
        found.append([texts[request] for request in requests[start : start + n]])
    return found[0] if isinstance(prompts, str) else found
