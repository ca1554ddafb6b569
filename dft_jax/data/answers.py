"""What a chat template makes of an answer, cut out of the conversation that it renders."""

import re

from dft_jax.data.sources.rows import BadRow

# What a thought of a reasoning model stands between.
_THOUGHT = "<think>"
_THOUGHT_END = "</think>"
_OPENS = re.compile(rf"{_THOUGHT}\s*$")  # at the end of a prompt


def without_end(answer: str, eos: str) -> str:
    """An answer without EOS at its end: some data has it there, and one is added to every answer.

    Raises:
      BadRow: nothing is left of it.
    """
    if eos not in answer:
        return answer
    while answer.rstrip().endswith(eos):
        answer = answer.rstrip().removesuffix(eos)
    if not answer.strip():
        raise BadRow(
            f"the answer is nothing but {eos!r}; remove the row or set data.bad_rows='drop'"
        )
    return answer


def cut_out(answer: str, prompt: str, shown: str, tail: str, template: str) -> str:
    """What the template makes of an answer, the last message of a conversation.

    Args:
      answer: as the data has it.
      prompt: the conversation up to that answer, as a model is prompted with it.
      shown: the conversation with it.
      tail: what the template writes after an answer.
      template: its name, for messages.

    Raises:
      BadRow: it is not to be found there, not whole, or not after its prompt.
    """
    # Where the answer ends cannot be found by looking for its text: templates strip answers, and
    # drop their thoughts.
    if not shown.endswith(tail):
        raise BadRow(
            f"template {template!r} ends this answer otherwise than others; fix one of them"
        )
    found = shown[len(prompt) :].removesuffix(tail)
    thought = _OPENS.search(prompt)
    if thought is None:
        _require_kept(prompt, shown, template)
        _require_whole(answer, found, template)
        return found
    # The prompt has opened a thought, which the answer continues and has to close.
    if not shown.startswith(prompt) or _THOUGHT in found:
        _require_kept(prompt[: thought.start()], shown, template)
        # The template shows the answer without its thought, or opens the thought again: take the
        # answer as the data has it, then.
        found = answer.lstrip().removeprefix(_THOUGHT)
        if prompt.endswith("\n"):
            found = found.removeprefix("\n")
    if _THOUGHT_END not in found or _THOUGHT in found:
        raise BadRow(
            f"template {template!r} opens a thought ({_THOUGHT}) before the answer, which has to"
            f" close it with {_THOUGHT_END}, once; fix the answer, or give a template that opens"
            " none"
        )
    _require_whole(answer.lstrip().removeprefix(_THOUGHT), found, template)
    return found


def _require_kept(prompt: str, shown: str, template: str) -> None:
    """BadRow where the conversation with an answer does not begin as the prompt for it."""
    if not shown.startswith(prompt):
        raise BadRow(f"template {template!r} does not keep the prompt before an answer as it was")


def _require_whole(answer: str, found: str, template: str) -> None:
    """BadRow where the template shows less of an answer than the data has, or something else."""
    # Templates add white space and take some away.
    if "".join(answer.split()) not in "".join(found.split()):
        raise BadRow(
            f"template {template!r} leaves a part of the answer out, or changes it (some drop its"
            " thought); fix the answer, or give another template"
        )
