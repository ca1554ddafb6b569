"""The texts of a study: read once, packed once, measured under every arm."""

import dataclasses
from pathlib import Path

from dft_jax import sharding
from dft_jax.data import account, batches
from dft_jax.data.examples import load_examples
from dft_jax.data.templates import Example, Template
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.model import Model
from dft_jax.runtime import errors
from dft_jax.study import measures
from dft_jax.study.spec import Spec, Text


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A text as it is measured.

    `answers` are the places of each example's answer, None where the spec asks for no answers;
    `sha256` is of the ids that were packed.
    """

    packed: measures.PackedText
    answers: list[range] | None
    examples: int
    sha256: str

    @property
    def have_images(self) -> bool:
        return any(batch.images is not None for batch in self.packed.batches)


def read_text(text: Text, spec: Spec, source: Path, tokenizer: Tokenizer, model: Model) -> HeldOut:
    """The first examples of a text that are short enough, packed.

    `source` is the checkpoint's folder, which says how a model with images reads them.

    Raises:
      UserError: there are none, or fewer than the spec asks for, or none has the answer's mark.
    """
    config = spec.config.data.copy_and_resolve_references().unlock()
    config.rows = text.rows
    # A text is measured as it is: its answers, and each row once.
    config.update(weight_field="", prompt_weight=0.0)
    vision = model.config.vision
    read = load_examples(
        text.path,
        config,
        tokenizer,
        model.config.vocab_size,
        vision=vision,
        source=source,
        split="test",
    )
    # A cut example has lost its end, where the answer is: it is left out, not measured in part.
    longest = text.max_length or config.max_length
    whole: list[Example] = []
    for example in read.examples:
        if not example.cut_tokens and len(example.ids) <= longest:
            whole.append(example)
    if text.max_examples:
        whole = whole[: text.max_examples]
    if len(whole) < text.max_examples or not whole:
        found = f"{len(whole)} examples of at most {longest} tokens in {text.path}"
        raise errors.UserError(f"texts: {text.name}: {found}; ask for fewer, or for longer ones")
    # Every device gets as many rows of a batch as every other.
    shards = sharding.batch_shards(model.mesh)
    rows = -(-spec.rows_at_once // shards) * shards
    return HeldOut(
        packed=measures.pack(whole, batches.row_length(config), rows, vision=vision),
        answers=_answers(text, whole, tokenizer),
        examples=len(whole),
        sha256=account.digest(whole),
    )


def _answers(text: Text, examples: list[Example], tokenizer: Tokenizer) -> list[range] | None:
    """The places of each example's answer, an empty range where it has none."""
    if not text.answer_mark:
        return None
    answers = []
    for example in examples:
        answers.append(measures.answer_places(example, tokenizer, text.answer_mark))
    if not any(answers):
        raise errors.UserError(
            f"texts: {text.name}: no example has {text.answer_mark!r}; correct answer_mark"
        )
    return answers


def refuse_undated(spec: Spec, tokenizer: Tokenizer) -> None:
    """UserError where a template writes the date and the spec has none.

    A study goes over several days: the arms of the second would read another text.
    """
    names = [spec.config.data.template]
    if spec.evaluation:
        names.append(spec.evaluation.prompt)
    for name in names:
        if Template(name, tokenizer).is_dated and not spec.config.data.date:
            raise errors.UserError(
                f"the template {name!r} writes the date, which differs between the days of a"
                " study; give one in the spec, as in config.data.date = '2026-07-26'"
            )
