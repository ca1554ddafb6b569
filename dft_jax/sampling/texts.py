"""Completions as text, shown while they are made, and ended by texts as well as by tokens.

Whoever wants completions of prompts as text takes these: the public API, and the command that
completes and chats.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from dft_jax.data.stops import find_stops
from dft_jax.data.templates import Template
from dft_jax.lm.language_model import LM
from dft_jax.models.model import matmul_precision
from dft_jax.runtime import errors, progress
from dft_jax.sampling.answers import answer_sampler
from dft_jax.sampling.decode import STEPS_AT_ONCE
from dft_jax.sampling.sampler import Request

# How a completion ended: by a token that ends answers, by one of the texts, or at the limit.
BY_TOKEN, BY_TEXT, BY_LIMIT = "stop", "stop_text", "length"
# What a decoder writes for bytes that are no character yet.
_INCOMPLETE = "\ufffd"

# Told of the text of a completion so far, as it grows.
OnText = Callable[[Request, str], None]


@dataclasses.dataclass(frozen=True)
class Text:
    """A completion without what ended it; `tokens` are those it took, the last one among them."""

    request: Request
    text: str
    tokens: int
    ended_by: str


def until_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first place where one of the stop texts begins.

    >>> until_stop("a\\nb###c", ["###", "\\n\\n"])
    'a\\nb'
    """
    found = [text.find(one) for one in stop]
    places = [place for place in found if place >= 0]
    return text[: min(places, default=len(text))]


def n_until_stop(
    ids: Sequence[int], decode: Callable[[Sequence[int]], str], stop: Sequence[str]
) -> int:
    """With how many of the tokens one of the stop texts is there; 0 where none is.

    How many come after it, before the host looks, depends on how often it looks; this does not.

    >>> n_until_stop([97, 35, 35, 98], lambda ids: bytes(ids).decode(), ["##"])
    3
    """

    def has_stop(n: int) -> bool:
        text = decode(ids[:n])
        return until_stop(text, stop) != text

    if not stop or not has_stop(len(ids)):
        return 0
    # What is once there stays: a decoder writes from left to right.
    return bisect.bisect_left(range(len(ids)), True, key=has_stop)


def shown_of(text: str, stop: Sequence[str]) -> str:
    """What may be shown of a text that grows: all that will stay whatever comes.

    Kept back are bytes that are no character yet, and what may be the beginning of a stop text.

    >>> shown_of("a\\nb##", ["###"])
    'a\\nb'
    """
    before = until_stop(text, stop)
    if before != text:
        return before
    text = text.rstrip(_INCOMPLETE)
    kept_back = 0
    for one in stop:
        for length in range(1, len(one)):
            if text.endswith(one[:length]):
                kept_back = max(kept_back, length)
    return text[: len(text) - kept_back]


class Writer:
    """Completes prompts of one model under one template. What it compiles serves every call.

    Args:
      max_length: tokens of prompt and completion together.
      slots: completions in progress at once, at most.
      stop: texts that end a completion, and are not part of it.
      steps_at_once: as for the Sampler: how many tokens come at once to whoever is shown them.
    """

    def __init__(
        self,
        lm: LM,
        template: Template,
        *,
        max_length: int,
        slots: int,
        seed: int = 0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        steps_at_once: int = STEPS_AT_ONCE,
    ):
        self.lm = lm
        self.stop = tuple(stop)
        stops = find_stops(template)
        self._stop_ids = frozenset(stops.ids)
        self._sampler = answer_sampler(
            lm.model,
            lm.tokenizer,
            # Where a completion ends: whatever the tokenizer, the template or the checkpoint says.
            stops,
            max_length=max_length,
            slots=slots,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
            steps_at_once=steps_at_once,
        )

    def complete(
        self,
        requests: Sequence[Request],
        on_text: OnText | None = None,
        show_progress: bool = False,
    ) -> Iterator[Text]:
        """Yields the text of every request, as they are finished; `on_text` is told of each before.

        Raises:
          UserError: the model's logits are not finite.
        """

        def watch(request: Request, ids: tuple[int, ...]) -> int:
            if on_text is not None:
                on_text(request, shown_of(self._decode(ids), self.stop))
            return n_until_stop(ids, self._decode, self.stop)

        # Who neither shows nor stops needs not be told.
        watcher = watch if on_text is not None or self.stop else None
        precision = matmul_precision(str(self.lm.model.module.compute_dtype))
        with progress.silent(not show_progress), precision:
            for made in self._sampler.sample(self.lm.params, requests, watch=watcher):
                if not math.isfinite(made.entropy):
                    what = "the model's logits are not finite (NaN or infinite)"
                    remedy = "its weights are damaged, or too large for the type; try float32"
                    raise errors.UserError(f"{what}: {remedy}")
                yield self._text(made.request, made.ids)

    def _text(self, request: Request, ids: tuple[int, ...]) -> Text:
        whole = self._decode(ids)
        text = until_stop(whole, self.stop)
        if text != whole:
            return Text(request, text, len(ids), BY_TEXT)
        ended_by = BY_TOKEN if ids[-1] in self._stop_ids else BY_LIMIT
        return Text(request, text, len(ids), ended_by)

    def _decode(self, ids: Sequence[int]) -> str:
        """The text of a completion, without the token that ended it.

        A checkpoint may end its answers with a token that is not special to its tokenizer, which
        would be decoded as others are.
        """
        if ids and ids[-1] in self._stop_ids:
            ids = ids[:-1]
        return self.lm.tokenizer.decode(ids, skip_special_tokens=True)
