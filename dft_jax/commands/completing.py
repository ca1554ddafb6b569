"""Completions of prompts, written in the prompts' order while they are made."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from dft_jax.commands.asked_prompts import Prompt
from dft_jax.data.messages import Message, text_of
from dft_jax.data.templates import Template
from dft_jax.lm.language_model import LM
from dft_jax.runtime import errors
from dft_jax.sampling.prompt_tokens import prompt_tokens
from dft_jax.sampling.sampler import Request
from dft_jax.sampling.texts import Text, Writer

# Between two looks of the host: a terminal shows words as they come, and a GPU makes so many tokens
# in a blink.
STEPS_SHOWN = 4
_SLOTS = 64
_CHARACTERS = 8  # of those that cannot be read, in a warning


@runtime_checkable
class Output(Protocol):
    """What text goes to: a terminal, a file, a notebook's cell."""

    def write(self, text: str, /) -> Any: ...

    def flush(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Settings:
    """How completions are sampled; flags of the command."""

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 512
    context: int = 4096
    stop: tuple[str, ...] = ()
    seed: int = 0

    def writer(self, lm: LM, template: Template, *, slots: int, steps_at_once: int) -> Writer:
        """What completes prompts so."""
        return Writer(
            lm,
            template,
            max_length=self.max_length(lm),
            slots=slots,
            seed=self.seed,
            top_k=self.top_k,
            top_p=self.top_p,
            stop=self.stop,
            steps_at_once=steps_at_once,
        )

    def max_length(self, lm: LM) -> int:
        """Tokens of prompt and completion together, at most."""
        return min(self.context, lm.model.config.max_length)


def request_of(
    lm: LM, template: Template, settings: Settings, messages: Sequence[Message], number: int
) -> Request:
    """Completion `number` of a conversation; UserError where it leaves no room for one.

    A single question has the noise that it has in `dft.sample`.
    """
    max_length = settings.max_length(lm)
    prompt = prompt_tokens(lm, template, messages, max_length)
    name = text_of(messages[0])
    if len(messages) > 1:
        name = json.dumps([message | {"content": text_of(message)} for message in messages])
    limit = min(settings.max_new_tokens, max_length - len(prompt.ids))
    return Request(name, number, prompt.ids, settings.temperature, limit, prompt.images)


def unread(lm: LM, template: Template, messages: Sequence[Message]) -> str:
    """What to say where the model never sees some characters of a prompt; empty for nothing."""
    text = template.conversation(messages)
    lost = lm.tokenizer.without_token(text, lm.tokenizer.encode(text))
    if not lost:
        return ""
    shown = "".join(dict.fromkeys(lost))[:_CHARACTERS]
    return f"the tokenizer has no token for {shown!r}; the model never sees that"


def complete(
    lm: LM, template: Template, settings: Settings, prompts: Sequence[Prompt], *, as_json: bool
) -> None:
    """Writes the completions of all prompts to stdout.

    Raises:
      UserError: a prompt that cannot be put, all of them before the first is sampled.
    """
    places, mistakes = [], []
    for prompt in prompts:
        try:
            for number in range(settings.n):
                request = request_of(lm, template, settings, prompt.messages, number)
                places.append((prompt, request))
        except errors.UserError as error:
            mistakes += [f"{prompt.id}: {problem}" for problem in error.problems]
    errors.raise_if_any(mistakes)
    for prompt in prompts:
        lost = unread(lm, template, prompt.messages)
        if lost:
            print(errors.printable(f"warning: {prompt.id}: {lost}"), file=sys.stderr)
    # The same prompt twice is one request, whose completion is sampled once.
    requests = list(dict.fromkeys(request for _, request in places))
    is_shown = not as_json and sys.stdout.isatty()
    writer = settings.writer(
        lm,
        template,
        slots=min(_SLOTS, len(requests)),
        steps_at_once=STEPS_SHOWN,
    )
    if as_json:
        out: Lines | Stream = Lines(sys.stdout, places, lm, template, settings)
    else:
        out = Stream(sys.stdout, places, is_terminal=is_shown)
    # Before the progress of sampling: reading a large model has a bar of its own.
    assert lm.params is not None
    tell = None if as_json else out.tell
    for text in writer.complete(requests, tell, show_progress=not is_shown):
        out.finish(text)


class _InOrder:
    """Takes completions as they are finished, and hands them on in the order of their places."""

    def __init__(self, places: Sequence[tuple[Prompt, Request]]):
        self.places = list(places)
        self.at = 0  # the first place whose completion is not finished
        self.done: dict[Request, Text] = {}

    def tell(self, request: Request, text: str) -> None:
        """Is told of a completion in progress."""

    def finish(self, text: Text) -> None:
        """Is told of one that is finished."""
        self.done[text.request] = text
        # One request may have several places.
        while self.at < len(self.places) and self.places[self.at][1] in self.done:
            prompt, request = self.places[self.at]
            self.write(prompt, self.done[request])
            self.at += 1

    def write(self, prompt: Prompt, text: Text) -> None:
        """Writes a completion in its turn."""
        raise NotImplementedError


class Lines(_InOrder):
    """A line of JSON for each completion."""

    def __init__(
        self,
        out: Output,
        places: Sequence[tuple[Prompt, Request]],
        lm: LM,
        template: Template,
        settings: Settings,
    ):
        super().__init__(places)
        self.out = out
        self.lm = lm
        self.template = template
        self.settings = settings

    def write(self, prompt: Prompt, text: Text) -> None:
        row = {
            "id": prompt.id,
            "sample": text.request.sample,
            "temperature": text.request.temperature,
            "prompt": self.template.conversation(prompt.messages),
            "completion": text.text,
            "tokens": text.tokens,
            "ended_by": text.ended_by,
        }
        if text.request.images:
            row["images"] = [picture.sha256 for picture in text.request.images]
        print(json.dumps(row), file=self.out, flush=True)


class Stream(_InOrder):
    """Completions as text: the first that is not finished grows, the others wait for their turn."""

    def __init__(self, out: Output, places: Sequence[tuple[Prompt, Request]], *, is_terminal: bool):
        super().__init__(places)
        self.out = out
        self.is_terminal = is_terminal
        self.n_written = 0  # characters of the completion whose turn it is
        self.is_headed = False

    def tell(self, request: Request, text: str) -> None:
        """Writes what is new of the completion whose turn it is."""
        if request == self.places[self.at][1]:
            self._grow(text)

    def write(self, prompt: Prompt, text: Text) -> None:
        self._grow(text.text)
        if not text.text.endswith("\n"):
            self.out.write("\n")
        self.out.flush()
        self.n_written, self.is_headed = 0, False

    def _grow(self, text: str) -> None:
        if not self.is_headed and len(self.places) > 1:
            prompt, request = self.places[self.at]
            # An id of JSON may hold what no output can encode.
            self.out.write(f"── {errors.printable(prompt.id)}, {request.sample}\n")
        self.is_headed = True
        self.out.write(as_shown(text[self.n_written :], self.is_terminal))
        self.out.flush()
        self.n_written = len(text)


def as_shown(text: str, is_terminal: bool) -> str:
    """The text as it is; for a terminal without what that would obey: a model may write anything.

    >>> as_shown("a\\033[2Jb\\n", is_terminal=True)
    'a\\\\x1b[2Jb\\n'
    """
    if not is_terminal:
        return text
    lines = text.replace("\t", "    ").split("\n")
    return "\n".join(errors.printable(line) for line in lines)
