"""Conversations to text, cut into parts of which some are trained; data/tokenize.py does the rest.

Two messages under the template `qwen-boxed`; what is trained has dots below it, EOS among it:

    <|im_start|>user\\n1+1?<|im_end|>\\n<|im_start|>assistant\\n | 2<|endoftext|>
                                                              | ··············
"""

import dataclasses
import datetime
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dft_jax.data import answers, image_marks, messages as content, rendering
from dft_jax.data.image_files import Picture
from dft_jax.data.messages import Message, is_only_read
from dft_jax.data.rendering import Beginning
from dft_jax.data.sources.rows import BadRow
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.spec import VisionSpec
from dft_jax.runtime import errors, options

_HELPFUL = "You are a helpful assistant."
_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
_ASKED = "{input}\n" + _BOXED
_QWEN = (
    "<|im_start|>system\n{system}<|im_end|>\n"
    "<|im_start|>user\n{user}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_LLAMA = (
    "<|start_header_id|>system<|end_header_id|>\n\n{system}{end}\n"
    "<|start_header_id|>user<|end_header_id|>\n\n{user}{end}\n"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
# Prompts by name for one question: what stands before the answer, `{input}` being the question.
# `qwen-boxed`, `llama-base-boxed` and `deepseek-math` are those of the paper's evaluation; its
# training matches `qwen25-math-cot`.
STYLES = {
    "plain": "{input}\n",
    "raw": "{input}",
    "qwen-boxed": _QWEN.format(system=_HELPFUL, user=_ASKED),
    "llama-base-boxed": _LLAMA.format(system=_HELPFUL, user=_ASKED, end="<|end_of_text|>"),
    "llama-ins-boxed": _LLAMA.format(system=_HELPFUL, user=_ASKED, end="<|eot_id|>"),
    "deepseek-math": f"User: {_ASKED}\n\nAssistant:",
    "qwen25-math-cot": _QWEN.format(system=_BOXED, user="{input}"),
}
# The checkpoint's own template, with the instruction at the end of each question.
TOKENIZER_BOXED = "tokenizer-boxed"
# of an evaluation: as the model was trained
AUTO = "auto"
# Begins what stands in the place of a template's name where a model was trained with several.
SEVERAL = "several: "
# What ends an answer under a style besides EOS, where the tokenizer has it as one token.
_STOPS = {
    "qwen-boxed": ("<|im_end|>", "<|endoftext|>"),
    "qwen25-math-cot": ("<|im_end|>", "<|endoftext|>"),
    "llama-base-boxed": ("<|eot_id|>", "<|end_of_text|>"),
    "llama-ins-boxed": ("<|eot_id|>", "<|end_of_text|>"),
}

# What a template is tried with.
_QUESTION = "(a question)"
_ANSWER = "(an answer)"
_ADDRESS = re.compile(r"\w+ at 0x[0-9a-f]+>")  # how Python shows an object that has no text


def date_problems(setting: str, date: str) -> list[str]:
    """What is wrong with a date for templates; empty is none."""
    if not date or _is_day(date):
        return []
    return [
        f"{setting}={date!r} should be a day, as in 2026-07-26, or empty for the day on which the"
        " run begins"
    ]


def _is_day(date: str) -> bool:
    # fromisoformat reads other spellings too, such as 20260726.
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
        return False
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        return False
    return True


def today() -> str:
    """YYYY-MM-DD, by the clock of this machine."""
    return datetime.date.today().isoformat()


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a conversation's text; a token is trained if it begins in a part that is."""

    text: str
    trained: bool


def several(template_of: Mapping[str, str]) -> str:
    """What is said of a model that was trained with several templates; by the name of a source."""
    listed = [f"{Path(template).name!r} of {name}" for name, template in template_of.items()]
    return SEVERAL + ", ".join(listed)


def name_problems(setting: str, name: str) -> list[str]:
    """What is wrong with `name` as a template's, before anything is read."""
    known = ["tokenizer", TOKENIZER_BOXED, *STYLES]
    if name in known or name.endswith(".jinja"):
        return []
    problem = options.unknown(f"{setting}={name!r} is unknown", name, known)
    return [f"{problem}, or a path to a .jinja file"]


class Template:
    """`data.template`: `tokenizer` (the checkpoint's own), a name of STYLES, or a .jinja file.

    `tokenizer-boxed` is `tokenizer` with an instruction.

    `first_ids` is what stands before the text: the begin-of-sequence token for a style, if the
    tokenizer begins texts with one (Llama's and DeepSeek's do; inference engines then prompt with
    it), and nothing for a chat template, which writes its own.

    Args:
      setting: what the user calls the template, for messages.
      instruction: text on a line of its own at the end of every question.
      date: YYYY-MM-DD, which a template that writes the date is given; empty for today's.
      vision: of a model that reads images; without it a style has nothing to write for one.

    Raises:
      UserError: no such template, or one that no answer can be trained under: it is empty, leaves
        the question out, is not the same every time, or runs away.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        setting: str = "data.template",
        instruction: str = "",
        date: str = "",
        vision: VisionSpec | None = None,
    ):
        errors.raise_if_any(name_problems(setting, name))
        self.name = name
        self.tokenizer = tokenizer
        self.setting = setting
        self.vision = vision
        self.instruction = instruction
        if name == TOKENIZER_BOXED:
            self.instruction = _BOXED
        self.jinja = self._source()
        self.first_ids: list[int] = []
        if self.jinja is None:
            self.first_ids = tokenizer.first_ids
        self.date = ""
        if self.is_dated:
            self.date = date or today()
        # What the template writes after an answer, by the roles of the conversation up to it.
        self._tails: dict[tuple[str, ...], str] = {}
        # Before any row is read: what is wrong with every row is not said of the first.
        if self.jinja is not None:
            self._check()

    def _source(self) -> str | None:
        """The source of a chat template; None of a style."""
        if self.name in ("tokenizer", TOKENIZER_BOXED):
            try:
                # The default one where there are several.
                return self.tokenizer.get_chat_template()
            except ValueError as error:
                raise errors.UserError(
                    f"{self.setting}={self.name!r}, but the checkpoint's tokenizer has {error};"
                    f" choose one of {', '.join(STYLES)} or a .jinja file"
                ) from error
        if not self.name.endswith(".jinja"):
            return None
        with errors.user_errors(
            f"{self.setting}={self.name!r} cannot be read",
            "give a UTF-8 file",
            (OSError, UnicodeDecodeError),
        ):
            # A byte order mark is no text.
            return Path(self.name).read_text(encoding="utf-8-sig")

    @property
    def text(self) -> str:
        """The source of a chat template; of a style its name."""
        if self.jinja is None:
            return self.name
        return self.jinja

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
        read_only = [turn for turn, message in enumerate(messages) if is_only_read(message)]
        messages = [self._seen(message) for message in messages]
        if self.jinja is None:
            return self._style_parts(messages)
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise BadRow("no assistant message; add the answer")
        # The conversation up to each answer, as a prompt for it and with it: one call of the worker
        # for all of them.
        beginnings: list[Beginning] = []
        for turn in turns:
            beginnings.append((messages[:turn], True))
            beginnings.append((messages[: turn + 1], False))
        rendered = self._render_all(beginnings)
        prompts = rendered[0::2]
        shown = rendered[1::2]
        self._require_all(messages[: turns[-1]], prompts[-1])
        # Cut the last prompt, which holds all earlier turns, at each answer that is trained.
        last_prompt = prompts[-1]
        parts: list[Part] = []
        done = 0
        for number, turn in enumerate(turns):
            if turn in read_only:
                continue
            is_last = number == len(turns) - 1
            tail = self._tail(messages[: turn + 1])
            answer = answers.cut_out(
                messages[turn]["content"], prompts[number], shown[number], tail, self.name
            )
            if is_last:
                answer += self._eos
            else:
                answer += tail.rstrip()
            start = len(prompts[number])
            if is_last or last_prompt.startswith(prompts[number] + answer):
                parts.append(Part(last_prompt[done:start], False))
                parts.append(Part(answer, True))
                done = start + len(answer)
        if turns[-1] in read_only:
            parts.append(Part(shown[-1][done:], False))
        return parts

    def prompt(self, question: str, n_images: int = 0) -> str:
        """What stands before the answer to one question, after so many images."""
        message = self._seen(content.question(question, n_images))
        text = self._prompt(message)
        self._require_images([message], text)
        return text

    def _prompt(self, message: Message) -> str:
        # replace, because a question may hold braces, which format would read.
        if self.jinja is None:
            return STYLES[self.name].replace("{input}", self._with_marks(message))
        return self._render([message], add_generation_prompt=True)

    @functools.cached_property
    def image_mark(self) -> str:
        """What a prompt has for an image; see image_marks.py."""
        return image_marks.mark_of(self.tokenizer, self.vision)

    def _with_marks(self, message: Message) -> str:
        """The text of a message, with a mark where an image stands."""
        pieces = []
        for part in content.parts_of(message):
            pieces.append(self.image_mark if part["type"] == "image" else part["text"])
        return "".join(pieces)

    def _seen(self, message: Message) -> Message:
        """What a template sees of a message: an answer without its end, a question with the
        instruction.
        """
        seen = content.as_shown(message)
        if seen["role"] == "assistant":
            return seen | {"content": answers.without_end(seen["content"], self._eos)}
        if seen["role"] == "user" and self.instruction:
            return content.with_line(seen, self.instruction)
        return seen

    def conversation(self, messages: Sequence[Message]) -> str:
        """What stands before the next answer of a conversation, whose last message is the user's.

        Raises:
          BadRow: the template cannot render it, or is one for single questions.
        """
        seen = [self._seen(message) for message in messages]
        if self.jinja is None:
            if len(seen) > 1:
                what = f"template {self.name!r} takes one question, and no other messages"
                raise BadRow(f"{what}; for conversations give a chat template")
            return self._prompt(seen[0])
        text = self._render(seen, add_generation_prompt=True)
        self._require_all(seen, text)
        return text

    def prompt_ids(self, question: str, answer_prefix: str = "", n_images: int = 0) -> list[int]:
        """The prompt as a model reads it, tokenised as for training, and how an answer begins.

        Each image is one token between those that begin and end it (image_rows.expand repeats it).
        """
        text = self.prompt(question, n_images) + answer_prefix
        return self.first_ids + self.tokenizer.encode(text)

    def markers(self) -> list[int]:
        """Tokens that end an answer besides EOS: the end of a turn, where there is one."""
        if self.jinja is None:
            known = self.tokenizer.get_vocab()
            return sorted(known[marker] for marker in _STOPS.get(self.name, ()) if marker in known)
        # The template shows its marker: it is the special token right after an answer.
        question = {"role": "user", "content": "?"}
        answer = {"role": "assistant", "content": _ANSWER}
        try:
            tail = self._tail([question, answer])
        except BadRow:
            # A template for questions only has no marker.
            return []
        first = self.tokenizer.encode(tail.lstrip())[:1]
        return [id_ for id_ in first if id_ in self.tokenizer.added_ids]

    def _check(self) -> None:
        """Refuses a template under which no answer could be trained, whatever the data."""
        setting = f"{self.setting}={self.name!r}"
        remedy = f"fix it, or choose one of {', '.join(STYLES)} or another .jinja file"
        assert self.jinja is not None, "styles need no check"
        if not self.jinja.strip():
            raise errors.UserError(f"{setting}: the template is empty; {remedy}")
        try:
            prompt = self.prompt(_QUESTION)
        except BadRow:
            # A template for other conversations than this one; its rows will show.
            return
        if not prompt.strip():
            raise errors.UserError(f"{setting}: the template writes nothing; {remedy}")
        if _QUESTION not in prompt:
            raise errors.UserError(f"{setting}: the template leaves the question out; {remedy}")
        address = _ADDRESS.search(prompt)
        if address is not None:
            changes = f"the template writes {address[0]!r}, which is another every time"
            raise errors.UserError(f"{setting}: {changes}; {remedy}")

    @property
    def _eos(self) -> str:
        """What ends every answer."""
        eos = self.tokenizer.eos_token
        assert eos is not None, "tokenizers without EOS are refused when they are read"
        return eos

    def _require_all(self, messages: list[Message], prompt: str) -> None:
        """BadRow where a question or the system's text is not in the prompt for the last answer."""
        for number, message in enumerate(messages):
            role = message["role"]
            is_kept = all(text.strip() in prompt for text in content.texts_of(message))
            if role != "assistant" and not is_kept:
                raise BadRow(
                    f"template {self.name!r} leaves message {number} (of the {role}) out, or"
                    " changes it; fix the template, or give another"
                )
        self._require_images(messages, prompt)

    def _require_images(self, messages: list[Message], prompt: str) -> None:
        """BadRow where a prompt has fewer images than its conversation."""
        n_images = sum(map(content.n_images, messages))
        if n_images and prompt.count(self.image_mark) < n_images:
            raise BadRow(
                f"template {self.name!r} does not write {self.image_mark} for each image; take the"
                " model's own, or a style"
            )

    def _style_parts(self, messages: list[Message]) -> list[Part]:
        """One question and one answer under a style."""
        if [message["role"] for message in messages] != ["user", "assistant"]:
            raise BadRow(
                f"template {self.name!r} takes one question and one answer, not"
                f" {len(messages)} messages;"
                " for conversations set data.template='tokenizer' or a .jinja file"
            )
        question, answer = messages
        return [
            Part(self._prompt(question), False),
            Part(answer["content"] + self._eos, True),
        ]

    def _tail(self, messages: list[Message]) -> str:
        """What the template writes after the last message of such a conversation, an answer."""
        roles = tuple(message["role"] for message in messages)
        if roles not in self._tails:
            probe = [*messages[:-1], {"role": "assistant", "content": _ANSWER}]
            text = self._render(probe, add_generation_prompt=False)
            _, found, tail = text.rpartition(_ANSWER)
            if not found:
                raise BadRow(f"template {self.name!r} leaves the answer out; fix it")
            self._tails[roles] = tail
        return self._tails[roles]

    def _render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        return self._render_all([(messages, add_generation_prompt)])[0]

    def _render_all(self, beginnings: Sequence[Beginning]) -> list[str]:
        """The text of several beginnings of a conversation."""
        assert self.jinja is not None, "styles are not rendered"
        rendered = rendering.render_all(
            self.jinja, self.tokenizer.special_tokens_map, beginnings, self.date
        )
        # Rendering ends at the first that fails.
        outcome, text = rendered[-1]
        if outcome == "text":
            return [text for _, text in rendered]
        if outcome == "syntax":
            raise errors.UserError(f"{self.setting}={self.name!r}:{text}; fix it")
        if outcome in rendering.RUNAWAY:
            raise errors.UserError(
                f"{self.setting}={self.name!r}: rendering one conversation"
                f" {rendering.RUNAWAY[outcome]};"
                f" fix the template, or choose one of {', '.join(STYLES)} or a .jinja file"
            )
        # A template that fails is wrong itself; one that refuses may be right about the row.
        remedy = "fix one of them"
        if outcome == "failed":
            remedy = "fix it"
        raise BadRow(f"template {self.name!r} {outcome} ({text}); {remedy}")


@dataclasses.dataclass(frozen=True)
class Example:
    """Token ids and loss mask of one conversation, cut on the right at the limit.

    ids      p p p c c e      prompt, completion, EOS
    trained  0 0 0 1 1 1      the mask of each id as a target

    In the loss a token weighs `weight`, and `weight · prompt_weight` where it is of no answer: a
    prompt_weight above 0 trains the prompt as well. With weight 3 and prompt_weight 0.5, of the
    five targets:

    targets    p   p   c c e
    mask       1   1   1 1 1
    weights    1.5 1.5 3 3 3
    """

    ids: np.ndarray  # int32 [n]
    trained: np.ndarray  # bool [n]
    cut_tokens: int  # tokens beyond the limit, EOS among them
    n_characters: int = 0  # of the text, before the cut
    lost_characters: str = ""  # those of them that the tokenizer has no token for
    weight: float = 1.0  # of the row, above 0
    prompt_weight: float = 0.0
    # In the order of their tokens, of which each has as many as units (image_rows.expand).
    images: tuple[Picture, ...] = ()
    # What these tokens are; they are read, never a target. No token of a model without images.
    image_token: int = -1

    @property
    def n_patches(self) -> int:
        return sum(picture.n_patches for picture in self.images)

    @property
    def cuts_an_image(self) -> bool:
        """Whether the limit has taken an image, a part of one or what ends it."""
        if not self.images:
            return False
        n_tokens = sum(picture.n_tokens for picture in self.images)
        is_image = self.ids == self.image_token
        return bool(is_image[-1]) or int(is_image.sum()) < n_tokens

    @property
    def is_plain(self) -> bool:
        """Whether all its trained tokens weigh 1."""
        return self.weight == 1 and self.prompt_weight in (0, 1)

    def target_mask(self) -> np.ndarray:
        """Which targets are trained, bool [n - 1]: never the first token, nor those of images."""
        if self.prompt_weight:
            return self.ids[1:] != self.image_token
        return self.trained[1:]

    def target_weights(self) -> np.ndarray:
        """What each target weighs, float32 [n - 1]; 0 where it is not trained."""
        weights = np.where(self.trained[1:], 1.0, self.prompt_weight * self.target_mask())
        return (self.weight * weights).astype(np.float32)
