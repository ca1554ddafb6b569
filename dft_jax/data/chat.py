"""Conversations to token ids and a loss mask, tokenised part by part so that the mask is a fact of position.

Two messages under the template `qwen-boxed` (· trained, the rest not):

    <|im_start|>user\\n1+1?<|im_end|>\\n<|im_start|>assistant\\n | 2<|endoftext|>
                                                              | ············ EOS is trained as any other token
"""

import dataclasses
from pathlib import Path

import numpy as np

from dft_jax import errors
from dft_jax.data.sources import BadRow, Message

_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."

# Prompts by name for one question: what stands before the answer, `{input}` being the question. The
# first three are those of the paper's evaluation; `qwen25-math-cot` is the one its training matches.
STYLES = {
    "plain": "{input}\n",
    "qwen-boxed": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{input}\n"
    + _BOXED
    + "<|im_end|>\n<|im_start|>assistant\n",
    "llama-base-boxed": "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant.<|end_of_text|>\n"
    "<|start_header_id|>user<|end_header_id|>\n\n{input}\n"
    + _BOXED
    + "<|end_of_text|>\n<|start_header_id|>assistant<|end_header_id|>\n\n",
    "deepseek-math": "User: {input}\n" + _BOXED + "\n\nAssistant:",
    "qwen25-math-cot": "<|im_start|>system\n"
    + _BOXED
    + "<|im_end|>\n<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of text that is tokenised by itself; `trained` holds for all of its tokens."""

    text: str
    trained: bool


class Template:
    """`data.template`: `tokenizer` (the checkpoint's own), a name of STYLES, or a path to a .jinja file.

    `first_ids` is what stands before the first part: the begin-of-sequence token for a style, if the
    tokenizer by itself begins texts with one (Llama's and DeepSeek's do; inference engines then prompt
    with it), and nothing for a chat template, which writes its own.
    """

    def __init__(self, name: str, tokenizer):
        self.name, self.tokenizer, self.jinja = name, tokenizer, None
        self.first_ids: list[int] = []
        if name == "tokenizer":
            try:
                self.jinja = tokenizer.get_chat_template()  # the default one where there are several
            except ValueError as error:
                raise errors.UserError(
                    "data.template='tokenizer', but the checkpoint's tokenizer has no chat template;"
                    f" choose one of {', '.join(STYLES)} or a .jinja file"
                ) from error
        elif name.endswith(".jinja"):
            try:
                self.jinja = Path(name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise errors.UserError(f"data.template={name!r} cannot be read ({error}); give a UTF-8 file") from error
        elif name in STYLES:
            first = tokenizer("")["input_ids"][:1]
            self.first_ids = first if first and first[0] == tokenizer.bos_token_id else []
        else:
            raise errors.UserError(
                f"data.template={name!r} is unknown{errors.did_you_mean(name, list(STYLES))};"
                f" known: tokenizer, {', '.join(STYLES)}, or a path to a .jinja file"
            )

    def parts(self, messages: list[Message]) -> list[Part]:
        """The conversation cut into untrained text and assistant text; the last answer ends in EOS.

        One answer is trained as the paper does: its text and EOS, whatever the template would put after it.
        Of several, each is trained as the template renders it, up to its end-of-turn marker (white space
        after the marker belongs to what follows), and EOS follows the last.
        """
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

    def _style_parts(self, messages: list[Message]) -> list[Part]:
        if [message["role"] for message in messages] != ["user", "assistant"]:
            raise BadRow(
                f"template {self.name!r} takes one question and one answer, not {len(messages)} messages;"
                " for conversations set data.template='tokenizer' or a .jinja file"
            )
        question, answer = (message["content"] for message in messages)
        prompt = STYLES[self.name].replace("{input}", question)
        return [Part(prompt, False), Part(answer + self.tokenizer.eos_token, True)]

    def _render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        import jinja2

        try:  # transformers renders in jinja2's sandbox
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self.jinja, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except jinja2.TemplateSyntaxError as error:
            raise errors.UserError(f"data.template={self.name!r}:{error.lineno}: {error.message}; mend it") from error
        except jinja2.TemplateError as error:
            raise BadRow(f"template {self.name!r} refused the row ({error}); mend one of them") from error
        except Exception as error:  # the template is a small program: 'a' + 1 raises TypeError
            raise BadRow(f"template {self.name!r} failed ({type(error).__name__}: {error}); mend it") from error


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
