"""Which prompt a model is read with: `auto` is the one that it was trained with.

A run says in its config.json what it was trained with, an export in its dft_jax.json. Of another
checkpoint nobody knows: then its own chat template is used, and `plain` where it has none.
"""

import dataclasses
from pathlib import Path
from typing import Any

from dft_jax.data.templates import AUTO, SEVERAL
from dft_jax.evals.saved import ANOTHER_FOLDER
from dft_jax.runtime import errors
from dft_jax.runtime.files import read_json

_NAMED = "as named, or as the evaluation was begun"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A prompt by its name in data/templates.py, why it is this one, and a warning for the user."""

    name: str
    why: str
    warning: str = ""  # empty for none


def choose(
    asked: str, trained: str, tokenizer: Any, instruction: str = "", setting: str = "--prompt"
) -> Choice:
    """The prompt for `asked`, which may be `auto`; `trained` is the model's own, empty where
    unknown.

    Raises:
      UserError: `auto` of a model that was trained with several.
    """
    if asked == AUTO:
        return _chosen(trained, tokenizer, setting)
    if not trained or (_is_same(asked, trained) and not instruction):
        return Choice(asked, _NAMED)
    with_text = f" with the instruction {instruction!r}" if instruction else ""
    what = f"{setting}={asked!r}{with_text}, but the model was trained with {trained!r}"
    return Choice(
        asked, _NAMED, f"{what}: part of any difference may be the prompt; {AUTO!r} takes that one"
    )


def _is_same(asked: str, trained: str) -> bool:
    files = Path(asked), Path(trained)
    if asked == trained or not all(file.suffix == ".jinja" and file.is_file() for file in files):
        return asked == trained
    return files[0].read_bytes() == files[1].read_bytes()


def _chosen(trained: str, tokenizer: Any, setting: str) -> Choice:
    if trained.startswith(SEVERAL):
        listed = trained.removeprefix(SEVERAL)
        what = f"{setting}={AUTO}: the model was trained with several prompts ({listed})"
        raise errors.UserError(f"{what}, and none of them is right for all; name one")
    if trained:
        return Choice(trained, "what the model was trained with")
    try:
        tokenizer.get_chat_template()
    except ValueError:
        return Choice("plain", "the tokenizer has no chat template")
    return Choice("tokenizer", "the checkpoint's own chat template")


def unread(benchmark: str, prompts: list[str], tokenizer: Any) -> list[str]:
    """A warning where characters of a benchmark's prompts have no token, so that the model never
    sees them.
    """
    lost = [
        text
        for prompt in prompts
        if (text := tokenizer.without_token(prompt, tokenizer.encode(prompt)))
    ]
    if not lost:
        return []
    shown = "".join(dict.fromkeys("".join(lost)))[:8]
    what = f"{benchmark}: the tokenizer has no token for some characters (such as {shown!r})"
    return [
        f"{what} in the prompts of {len(lost)} of {len(prompts)} problems;"
        " the model never sees them"
    ]


def shared(trained: dict[str, str]) -> str:
    """The one prompt that these models were trained with, as far as they say: name -> prompt or
    empty.

    Raises:
      UserError: they differ, so that no prompt is right for all.
    """
    known = {name: prompt for name, prompt in trained.items() if prompt}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{name}: {prompt!r}" for name, prompt in known.items())
        raise errors.UserError(
            f"--prompt={AUTO}: the models were trained with different ones ({listed}); name one"
        )
    return next(iter(known.values()), "")


def recorded(evaluation: Path) -> str:
    """The prompt of an evaluation that was begun, from its evaluation.json; empty where there is
    none.
    """
    if not evaluation.is_file():
        return ""
    prompt = read_json(evaluation, ANOTHER_FOLDER).get("prompt", "")
    return prompt if isinstance(prompt, str) else ""
