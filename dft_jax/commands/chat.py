"""A chat in a terminal: a conversation that grows, answers that appear while they are made."""

import contextlib
import sys
import time
from collections.abc import Callable

from dft_jax.commands.completing import (
    STEPS_SHOWN,
    Output,
    Settings,
    as_shown,
    request_of,
    unread,
)
from dft_jax.data.messages import Message
from dft_jax.data.templates import Template
from dft_jax.lm.language_model import LM
from dft_jax.runtime import errors
from dft_jax.sampling.sampler import Request
from dft_jax.sampling.texts import BY_LIMIT, Text

_HELP = """/again        another answer to the last question
/new          begin a new conversation
/system TEXT  what stands before the conversation; without a text: nothing
/quit         end, as Ctrl-D; Ctrl-C ends an answer
A line that ends in \\ goes on in the next."""
_ASKED = "you> "
_MORE = "...> "
# What a terminal obeys: dim, and plain again.
_DIM, _PLAIN = "\033[2m", "\033[0m"


class Chat:
    """A conversation with a model, or under a template for single questions, one after another.

    Args:
      read: reads a line after showing its argument; EOFError ends the chat.
      out: where answers go.
    """

    def __init__(
        self,
        lm: LM,
        template: Template,
        settings: Settings,
        *,
        system: str = "",
        read: Callable[[str], str] = input,
        out: Output = sys.stdout,
    ):
        self.lm = lm
        self.template = template
        self.settings = settings
        self.read = read
        self.out = out
        self.has_memory = template.jinja is not None
        self.system = system
        self.turns: list[Message] = []
        self.number = 0  # of the answer to the last question
        self.writer = settings.writer(lm, template, slots=1, steps_at_once=STEPS_SHOWN)

    def run(self) -> None:
        """Reads and answers until the user ends it."""
        with contextlib.suppress(ImportError):
            # Gives `input` its history and keys; some builds of Python lack it.
            import readline  # noqa: F401
        # With a bar; the first answer would have to wait for it in silence.
        assert self.lm.params is not None
        self._note(f"a chat with {self.lm.name}; /help lists what else there is")
        if not self.has_memory:
            self._note(f"{self.template.name!r} has no turns: each line is a prompt of its own")
        while True:
            # Ctrl-C ends what is going on, wherever it comes; `_answer` keeps what it had written.
            try:
                line = self._line()
                if line.strip() == "/quit":
                    return
                self._obey(line)
            except EOFError:
                self.out.write("\n")
                return
            except KeyboardInterrupt:
                self.out.write("\n")
                self._note("/quit or Ctrl-D ends the chat")
            except errors.UserError as error:
                self._note(error.report())

    def _line(self) -> str:
        """One line, or several where each but the last ends in a backslash."""
        line = self.read(_ASKED)
        while line.endswith("\\"):
            line = line[:-1] + "\n" + self.read(_MORE)
        return line

    def _obey(self, line: str) -> None:
        """Answers a question, or does what a line that begins with a slash says."""
        word, _, rest = line.strip().partition(" ")
        if not word:
            return
        if word == "/again":
            self._again()
        elif word == "/new":
            self.turns = []
            self._note("a new conversation")
        elif word == "/system":
            self._set_system(rest.strip())
        elif word == "/help":
            self._note(_HELP)
        elif word.startswith("/") and word[1:].isalpha() and not rest:
            self._note(f"{word} is no command; /help lists them")
        else:
            self._ask(line)

    def _set_system(self, text: str) -> None:
        if not self.has_memory:
            self._note(f"{self.template.name!r} has no place for it")
            return
        self.system, self.turns = text, []
        self._note("a new conversation")

    def _ask(self, question: str) -> None:
        if not self.has_memory:
            self.turns = []
        self.number = 0
        asked: Message = {"role": "user", "content": question}
        self._answer([*self.turns, asked])

    def _again(self) -> None:
        if not self.turns:
            self._note("nothing was asked yet")
        elif self.settings.temperature == 0:
            self._note("greedily (--temperature=0) there is one answer only")
        else:
            self.number += 1
            self._answer(self.turns[:-1])

    def _answer(self, turns: list[Message]) -> None:
        """Writes the next answer to a conversation, and keeps both."""
        messages = turns
        if self.system:
            messages = [{"role": "system", "content": self.system}, *turns]
        request = request_of(self.lm, self.template, self.settings, messages, self.number)
        lost = unread(self.lm, self.template, messages)
        if lost:
            self._note(lost)
        growing = _Growing(self.out)
        began = time.perf_counter()
        made: Text | None = None
        try:
            for made in self.writer.complete([request], growing.tell):
                growing.tell(request, made.text)
        except KeyboardInterrupt:
            made = None
        answer = growing.text
        if not answer.endswith("\n"):
            self.out.write("\n")
        if made is None:
            self._note("ended by Ctrl-C")
        else:
            took = time.perf_counter() - began
            cut = ", cut at the limit" if made.ended_by == BY_LIMIT else ""
            self._note(f"{made.tokens} tokens{cut}, {made.tokens / took:.1f} a second")
        # An empty answer is one too; without it the next question would be part of this one.
        self.turns = [*turns, {"role": "assistant", "content": answer}]

    def _note(self, text: str) -> None:
        """Says something that is not the model's."""
        self.out.write(f"{_DIM}{as_shown(text, is_terminal=True)}{_PLAIN}\n")
        self.out.flush()


class _Growing:
    """Writes what is new of a text, each time that it is told of it."""

    def __init__(self, out: Output):
        self.out = out
        self.text = ""

    def tell(self, request: Request, text: str) -> None:
        self.out.write(as_shown(text[len(self.text) :], is_terminal=True))
        self.out.flush()
        self.text = text
