"""Conversations to token ids and a loss mask, tokenised part by part so that the mask is a fact of position.

Two messages under the template `qwen-boxed` (· trained, the rest not):

    <|im_start|>user\\n1+1?<|im_end|>\\n<|im_start|>assistant\\n | 2<|endoftext|>
                                                              | ············ EOS is trained as any other token
"""

import dataclasses
from pathlib import Path

import numpy as np

from dft_jax import errors
from dft_jax.data import rendering
from dft_jax.data.sources import BadRow, Message

_HELPFUL = "You are a helpful assistant."
_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
_ASKED = "{input}\n" + _BOXED
_QWEN = "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
_LLAMA = (
    "<|start_header_id|>system<|end_header_id|>\n\n{system}{end}\n"
    "<|start_header_id|>user<|end_header_id|>\n\n{user}{end}\n<|start_header_id|>assistant<|end_header_id|>\n\n"
)
# Prompts by name for one question: what stands before the answer, `{input}` being the question. `qwen-boxed`,
# `llama-base-boxed` and `deepseek-math` are those of the paper's evaluation; its training matches `qwen25-math-cot`.
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


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of text that is tokenised by itself; `trained` holds for all of its tokens."""

    text: str
    trained: bool


def name_problems(setting: str, name: str) -> list[str]:
    """What is wrong with `name` as a template's, before anything is read."""
    known = ["tokenizer", TOKENIZER_BOXED, *STYLES]
    if name in known or name.endswith(".jinja"):
        return []
    hint = errors.did_you_mean(name, known)
    return [f"{setting}={name!r} is unknown{hint}; known: {', '.join(known)}, or a path to a .jinja file"]


class Template:
    """`data.template`: `tokenizer` (the checkpoint's own), a name of STYLES, or a path to a .jinja file.

    `instruction` is put on a line of its own at the end of every question; `tokenizer-boxed` is `tokenizer` with one.

    `first_ids` is what stands before the first part: the begin-of-sequence token for a style, if the
    tokenizer by itself begins texts with one (Llama's and DeepSeek's do; inference engines then prompt
    with it), and nothing for a chat template, which writes its own.
    """

    def __init__(self, name: str, tokenizer, setting: str = "data.template", instruction: str = ""):
        errors.raise_if_any(name_problems(setting, name))
        self.name, self.tokenizer, self.setting, self.jinja = name, tokenizer, setting, None
        self.first_ids: list[int] = []
        self.instruction = _BOXED if name == TOKENIZER_BOXED else instruction
        if name in ("tokenizer", TOKENIZER_BOXED):
            try:
                self.jinja = tokenizer.get_chat_template()  # the default one where there are several
            except ValueError as error:
                raise errors.UserError(
                    f"{setting}={name!r}, but the checkpoint's tokenizer has no chat template;"
                    f" choose one of {', '.join(STYLES)} or a .jinja file"
                ) from error
        elif name.endswith(".jinja"):
            with errors.told(f"{setting}={name!r} cannot be read", "give a UTF-8 file", (OSError, UnicodeDecodeError)):
                self.jinja = Path(name).read_text(encoding="utf-8-sig")  # a BOM is no text
        else:
            first = tokenizer("")["input_ids"][:1]
            self.first_ids = first if first and first[0] == tokenizer.bos_token_id else []

    @property
    def text(self) -> str:
        """The source of a chat template; of a style its name."""
        return self.name if self.jinja is None else self.jinja

    def parts(self, messages: list[Message]) -> list[Part]:
        """The conversation cut into untrained text and assistant text; the last answer ends in EOS.

        One answer is trained as the paper does: its text and EOS, whatever the template would put after it.
        Of several, each is trained as the template renders it, up to its end-of-turn marker (white space
        after the marker belongs to what follows), and EOS follows the last.
        """
        messages = [self._instructed(message) for message in messages]
        if self.jinja is None:
            return self._style_parts(messages)
        eos = self.tokenizer.eos_token
        answers = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            raise BadRow("no assistant message; add the answer")
        parts, done = [], ""
        for turn in answers:
            before = self._render(messages[:turn], add_generation_prompt=True)
            if not before.startswith(done):
                raise BadRow(f"template {self.name!r} renders earlier turns differently once later ones follow")
            parts.append(Part(before[len(done) :], False))
            if len(answers) == 1:
                return [*parts, Part(messages[turn]["content"] + eos, True)]
            after = self._render(messages[: turn + 1], add_generation_prompt=False)
            if not after.startswith(before):
                raise BadRow(f"template {self.name!r} does not keep the prompt before an answer as it was")
            answer = after[len(before) :].rstrip()
            done = before + answer
            parts.append(Part(answer, True))
        return [*parts[:-1], Part(answer.removesuffix(eos) + eos, True)]

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
        return self.first_ids + self.tokenizer(self.prompt(question), add_special_tokens=False)["input_ids"]

    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: EOS, and the end of a turn where the style, or the chat template, has one."""
        stops = {self.tokenizer.eos_token_id}
        known = self.tokenizer.get_vocab()
        if self.jinja is None:
            return sorted(stops | {known[marker] for marker in _STOPS.get(self.name, ()) if marker in known})
        # The template shows its marker: it is the special token right after an answer.
        answer = "(an answer)"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        try:
            rendered = self._render(turns, add_generation_prompt=False)
        except BadRow:  # a template for questions only has no marker
            return sorted(stops)
        ids = self.tokenizer(rendered.partition(answer)[2].lstrip(), add_special_tokens=False)["input_ids"]
        return sorted(stops | ({ids[0]} & set(self.tokenizer.all_special_ids) if ids else set()))

    def _style_parts(self, messages: list[Message]) -> list[Part]:
        if [message["role"] for message in messages] != ["user", "assistant"]:
            raise BadRow(
                f"template {self.name!r} takes one question and one answer, not {len(messages)} messages;"
                " for conversations set data.template='tokenizer' or a .jinja file"
            )
        question, answer = messages
        return [Part(self._prompt(question), False), Part(answer["content"] + self.tokenizer.eos_token, True)]

    def _render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        variables = self.tokenizer.special_tokens_map
        outcome, text = rendering.render(self.jinja, variables, messages, add_generation_prompt)
        if outcome == "text":
            return text
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
    """Token ids and loss mask of one conversation, as joined from its parts, cut on the right at the limit.

    ids      p p p c c e      prompt, completion, EOS
    trained  0 0 0 1 1 1      the mask of each id as a target
    """

    ids: np.ndarray  # int32 [n]
    trained: np.ndarray  # bool [n]
    cut_tokens: int  # tokens beyond the limit, EOS among them


def join(ids_of_parts: list[list[int]], parts: list[Part], max_length: int) -> Example:
    """Joins tokenised parts. An example that is cut gets no EOS: its answer does not end there."""
    ids = np.concatenate([np.asarray(ids, np.int32) for ids in ids_of_parts])
    trained = np.concatenate([np.full(len(ids), part.trained) for ids, part in zip(ids_of_parts, parts, strict=True)])
    return Example(ids[:max_length], trained[:max_length], max(0, len(ids) - max_length))
