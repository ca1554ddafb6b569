"""Conversations to text, cut into parts of which some are trained (data/tokenize.py makes token ids
of them).

Two messages under the template `qwen-boxed` (· trained, the rest not):

    <|im_start|>user\\n1+1?<|im_end|>\\n<|im_start|>assistant\\n | 2<|endoftext|>
                                                              | ············ EOS is trained as any other token
"""

import dataclasses
import datetime
import re
from pathlib import Path

import numpy as np

from dft_jax.data import rendering
from dft_jax.data.messages import Message, is_only_read
from dft_jax.data.sources.rows import BadRow
from dft_jax.runtime import errors

_HELPFUL = "You are a helpful assistant."
_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
_ASKED = "{input}\n" + _BOXED
_QWEN = "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
_LLAMA = (
    "<|start_header_id|>system<|end_header_id|>\n\n{system}{end}\n"
    "<|start_header_id|>user<|end_header_id|>\n\n{user}{end}\n<|start_header_id|>assistant<|end_header_id|>\n\n"
)
# Prompts by name for one question: what stands before the answer, `{input}` being the question.
# `qwen-boxed`, `llama-base-boxed` and `deepseek-math` are those of the paper's evaluation; its
# training matches `qwen25-math-cot`.
STYLES = {
    "plain": "{input}\n",
    "qwen-boxed": _QWEN.format(system=_HELPFUL, user=_ASKED),
    "llama-base-boxed": _LLAMA.format(system=_HELPFUL, user=_ASKED, end="<|end_of_text|>"),
    "llama-ins-boxed": _LLAMA.format(system=_HELPFUL, user=_ASKED, end="<|eot_id|>"),
    "deepseek-math": f"User: {_ASKED}\n\nAssistant:",
    "qwen25-math-cot": _QWEN.format(system=_BOXED, user="{input}"),
}
# The checkpoint's own template, with the instruction at the end of each question.
TOKENIZER_BOXED = "tokenizer-boxed"
# What ends an answer under a style besides EOS, where the tokenizer has it as one token.
_STOPS = dict.fromkeys(("qwen-boxed", "qwen25-math-cot"), ("<|im_end|>", "<|endoftext|>"))
_STOPS |= dict.fromkeys(("llama-base-boxed", "llama-ins-boxed"), ("<|eot_id|>", "<|end_of_text|>"))

# What a template is tried with, and what a thought of a reasoning model stands between.
_QUESTION, _ANSWER = "(a question)", "(an answer)"
_THOUGHT, _THOUGHT_END = "<think>", "</think>"
_OPENS = re.compile(rf"{_THOUGHT}\s*$")  # at the end of a prompt
_ADDRESS = re.compile(r"\w+ at 0x[0-9a-f]+>")  # how Python shows an object that has no text


def date_problems(setting: str, date: str) -> list[str]:
    """What is wrong with a date for templates; empty is none."""
    if not date or re.fullmatch(r"\d{4}-\d{2}-\d{2}", date) and _is_day(date):
        return []
    return [
        f"{setting}={date!r} should be a day, as in 2026-07-26, or empty for the day on which the run begins"
    ]


def _is_day(date: str) -> bool:
    try:
        return bool(datetime.date.fromisoformat(date))
    except ValueError:
        return False


def today() -> str:
    """YYYY-MM-DD, by the clock of this machine."""
    return datetime.date.today().isoformat()


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a conversation's text; a token is trained if it begins in a part that is."""

    text: str
    trained: bool


def name_problems(setting: str, name: str) -> list[str]:
    """What is wrong with `name` as a template's, before anything is read."""
    known = ["tokenizer", TOKENIZER_BOXED, *STYLES]
    if name in known or name.endswith(".jinja"):
        return []
    hint = errors.did_you_mean(name, known)
    return [
        f"{setting}={name!r} is unknown{hint}; known: {', '.join(known)}, or a path to a .jinja file"
    ]


class Template:
    """`data.template`: `tokenizer` (the checkpoint's own), a name of STYLES, or a path to a .jinja
    file.

    `tokenizer-boxed` is `tokenizer` with an instruction.

    `first_ids` is what stands before the text: the begin-of-sequence token for a style, if the
    tokenizer begins texts with one (Llama's and DeepSeek's do; inference engines then prompt with
    it), and nothing for a chat template, which writes its own.

    Args:
      setting: what the user calls the template, for messages.
      instruction: text on a line of its own at the end of every question.
      date: YYYY-MM-DD, which a template that writes the date is given; empty for today's.

    Raises:
      UserError: no such template, or one that no answer can be trained under: it is empty, leaves
      the question out, is
        not the same every time, or runs away.
    """

    def __init__(
        self,
        name: str,
        tokenizer,
        setting: str = "data.template",
        instruction: str = "",
        date: str = "",
    ):
        errors.raise_if_any(name_problems(setting, name))
        self.name, self.tokenizer, self.setting, self.jinja = name, tokenizer, setting, None
        self.first_ids: list[int] = []
        self._tails: dict[tuple[str, ...], str] = {}
        self.instruction = _BOXED if name == TOKENIZER_BOXED else instruction
        if name in ("tokenizer", TOKENIZER_BOXED):
            try:
                # the default one where there are several
                self.jinja = tokenizer.get_chat_template()
            except ValueError as error:
                raise errors.UserError(
                    f"{setting}={name!r}, but the checkpoint's tokenizer has {error};"
                    f" choose one of {', '.join(STYLES)} or a .jinja file"
                ) from error
        elif name.endswith(".jinja"):
            with errors.user_errors(
                f"{setting}={name!r} cannot be read",
                "give a UTF-8 file",
                (OSError, UnicodeDecodeError),
            ):
                self.jinja = Path(name).read_text(encoding="utf-8-sig")  # a BOM is no text
        else:
            self.first_ids = tokenizer.first_ids
        self.date = ""
        if self.is_dated:
            self.date = date or today()
        if self.jinja is not None:
            self._check()

    @property
    def text(self) -> str:
        """The source of a chat template; of a style its name."""
        return self.name if self.jinja is None else self.jinja

    @property
    def is_dated(self) -> bool:
        """Whether the template may write the date, as Llama 3's does."""
        return self.jinja is not None and "strftime_now" in self.jinja

    def parts(self, messages: list[Message]) -> list[Part]:
        """The conversation cut into untrained text and assistant text; the last answer ends in EOS.

        The last answer is trained as the paper does: its text and EOS, whatever the template would
        put after it. It makes no difference whether it is the only one. An earlier one is trained
        as the template renders it, up to its end-of-turn marker (white space after the marker
        belongs to what follows).

        An earlier answer that the template shows otherwise once later turns follow is read, but not
        trained: nobody would sample it in that form. Qwen3's template does so, which drops the
        thoughts of earlier answers. So is one that says that it is only read.

        Raises:
          BadRow: the template cannot render the conversation, or not so that each prompt comes
          before its answer.
        """
        only_read = [turn for turn, message in enumerate(messages) if is_only_read(message)]
        messages = [self._instructed(self._without_end(message)) for message in messages]
        if self.jinja is None:
            return self._style_parts(messages)
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise BadRow("no assistant message; add the answer")
        asked = []
        for turn in turns:
            asked += [(messages[:turn], True), (messages[: turn + 1], False)]
        rendered = self._render_all(asked)
        prompts, shown = rendered[0::2], rendered[1::2]
        self._require_all(messages[: turns[-1]], prompts[-1])
        parts, done = [], 0
        for number, turn in enumerate(turns):
            if turn in only_read:
                continue
            is_last = number == len(turns) - 1
            answer, tail = self._answer(prompts[number], shown[number], messages[: turn + 1])
            answer += self.tokenizer.eos_token if is_last else tail.rstrip()
            start = len(prompts[number])
            if is_last or prompts[-1].startswith(prompts[number] + answer):
                parts += [Part(prompts[-1][done:start], False), Part(answer, True)]
                done = start + len(answer)
        if turns[-1] in only_read:
            parts.append(Part(shown[-1][done:], False))
        return parts

    def prompt(self, question: str) -> str:
        """What stands before the answer to one question."""
        return self._prompt(self._instructed({"role": "user", "content": question}))

    def _prompt(self, message: Message) -> str:
        if self.jinja is None:
            return STYLES[self.name].replace("{input}", message["content"])
        return self._render([message], add_generation_prompt=True)

    def _instructed(self, message: Message) -> Message:
        if not self.instruction or message["role"] != "user":
            return message
        return {**message, "content": f"{message['content']}\n{self.instruction}"}

    def prompt_ids(self, question: str) -> list[int]:
        """The prompt as a model reads it, tokenised as for training."""
        return self.first_ids + self.tokenizer.encode(self.prompt(question))

    def markers(self) -> list[int]:
        """Tokens that end an answer besides EOS: the end of a turn where the style, or the chat
        template, has one.
        """
        if self.jinja is None:
            known = self.tokenizer.get_vocab()
            return sorted(known[marker] for marker in _STOPS.get(self.name, ()) if marker in known)
        # The template shows its marker: it is the special token right after an answer.
        try:
            tail = self._tail(
                [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
            )
        except BadRow:  # a template for questions only has no marker
            return []
        first = self.tokenizer.encode(tail.lstrip())[:1]
        return [id_ for id_ in first if id_ in self.tokenizer.added_ids]

    def _check(self) -> None:
        """Refuses a template under which no answer could be trained, whatever the data."""
        where = f"{self.setting}={self.name!r}"
        remedy = f"mend it, or choose one of {', '.join(STYLES)} or another .jinja file"
        if not self.jinja.strip():
            raise errors.UserError(f"{where}: the template is empty; {remedy}")
        try:
            prompt = self.prompt(_QUESTION)
        except BadRow:
            return  # a template for other conversations than this one; its rows will tell
        if _QUESTION not in prompt:
            what = (
                "the template leaves the question out"
                if prompt.strip()
                else "the template writes nothing"
            )
            raise errors.UserError(f"{where}: {what}; {remedy}")
        if _ADDRESS.search(prompt):
            what = (
                f"the template writes {_ADDRESS.search(prompt)[0]!r}, which is another every time"
            )
            raise errors.UserError(f"{where}: {what}; {remedy}")

    def _without_end(self, message: Message) -> Message:
        """What a template sees of a message, an answer without the EOS that the data has at its
        end.

        One EOS is added to it, and one is enough.
        """
        eos, content = self.tokenizer.eos_token, message["content"]
        message = {"role": message["role"], "content": content}
        if message["role"] != "assistant" or eos not in content:
            return message
        while content.rstrip().endswith(eos):
            content = content.rstrip().removesuffix(eos)
        if not content.strip():
            raise BadRow(
                f"the answer is nothing but {eos!r}; remove the row or set data.bad_rows='drop'"
            )
        return {**message, "content": content}

    def _require_all(self, messages: list[Message], prompt: str) -> None:
        """BadRow where the text of a question or of the system is not in the prompt for the last
        answer.
        """
        for number, message in enumerate(messages):
            if message["role"] != "assistant" and message["content"].strip() not in prompt:
                what = f"leaves message {number} (of the {message['role']}) out, or changes it"
                raise BadRow(f"template {self.name!r} {what}; mend the template, or give another")

    def _style_parts(self, messages: list[Message]) -> list[Part]:
        if [message["role"] for message in messages] != ["user", "assistant"]:
            raise BadRow(
                f"template {self.name!r} takes one question and one answer, not {len(messages)} messages;"
                " for conversations set data.template='tokenizer' or a .jinja file"
            )
        question, answer = messages
        return [
            Part(self._prompt(question), False),
            Part(answer["content"] + self.tokenizer.eos_token, True),
        ]

    def _answer(self, prompt: str, shown: str, messages: list[Message]) -> tuple[str, str]:
        """What the template makes of the last message, an answer, and what it writes after it.

        Args:
          prompt: the conversation up to that answer, as a model is prompted with it.
          shown: the conversation with it.
        """
        tail = self._tail(messages)
        if not shown.endswith(tail):
            raise BadRow(
                f"template {self.name!r} ends this answer otherwise than others; mend one of them"
            )
        thought = _OPENS.search(prompt)
        if thought is None:
            if not shown.startswith(prompt):
                raise BadRow(
                    f"template {self.name!r} does not keep the prompt before an answer as it was"
                )
            return shown[len(prompt) :].removesuffix(tail), tail
        # The prompt has opened a thought, which the answer goes on with and has to close.
        answer = shown[len(prompt) :].removesuffix(tail)
        if not shown.startswith(prompt) or _THOUGHT in answer:
            if not shown.startswith(prompt[: thought.start()]):
                raise BadRow(
                    f"template {self.name!r} does not keep the prompt before an answer as it was"
                )
            # The template shows the answer without its thought, or opens the thought again: as the
            # data has it, then.
            answer = messages[-1]["content"].lstrip().removeprefix(_THOUGHT)
            if prompt.endswith("\n"):
                answer = answer.removeprefix("\n")
        if _THOUGHT_END not in answer or _THOUGHT in answer:
            raise BadRow(
                f"template {self.name!r} opens a thought ({_THOUGHT}) before the answer, which has to close it with"
                f" {_THOUGHT_END}, once; mend the answer, or give a template that opens none"
            )
        return answer, tail

    def _tail(self, messages: list[Message]) -> str:
        """What the template writes after the last message of such a conversation, an answer."""
        shape = tuple(message["role"] for message in messages)
        if shape not in self._tails:
            probe = [*messages[:-1], {"role": "assistant", "content": _ANSWER}]
            before, found, tail = self._render(probe, add_generation_prompt=False).rpartition(
                _ANSWER
            )
            if not found:
                raise BadRow(f"template {self.name!r} leaves the answer out; mend it")
            self._tails[shape] = tail
        return self._tails[shape]

    def _render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        return self._render_all([(messages, add_generation_prompt)])[0]

    def _render_all(self, asked: list[tuple[list[Message], bool]]) -> list[str]:
        """The text of several beginnings of a conversation, with a prompt for the next answer or
        without.
        """
        rendered = rendering.render_all(
            self.jinja, self.tokenizer.special_tokens_map, asked, self.date
        )
        outcome, text = rendered[-1]
        if outcome == "text":
            return [text for _, text in rendered]
        if outcome == "syntax":
            raise errors.UserError(f"{self.setting}={self.name!r}:{text}; mend it")
        if outcome in rendering.RUNAWAY:
            raise errors.UserError(
                f"{self.setting}={self.name!r}: rendering one conversation {rendering.RUNAWAY[outcome]};"
                f" mend the template, or choose one of {', '.join(STYLES)} or a .jinja file"
            )
        remedy = "mend it" if outcome == "failed" else "mend one of them"
        raise BadRow(f"template {self.name!r} {outcome} ({text}); {remedy}")


@dataclasses.dataclass(frozen=True)
class Example:
    """Token ids and loss mask of one conversation, cut on the right at the limit (see
    data/tokenize.py).

    ids      p p p c c e      prompt, completion, EOS
    trained  0 0 0 1 1 1      the mask of each id as a target
    """

    ids: np.ndarray  # int32 [n]
    trained: np.ndarray  # bool [n]
    cut_tokens: int  # tokens beyond the limit, EOS among them
    n_characters: int = 0  # of the text, before the cut
    lost_characters: str = ""  # those of them that the tokenizer has no token for
