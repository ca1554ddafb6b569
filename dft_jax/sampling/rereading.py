"""Texts that become long ones while they are made, under LongRoPE (spec.LongRope).

A prompt of 30 tokens, with an original context of 32 and room for 8 more: three tokens are made
with the short factors, the third from the distribution behind 32 tokens. The text of 33 is then
read from its start with the long factors, and the other five are made. So does `generate` of
transformers; its logits of a text, and those of training, are the same at every length.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from dft_jax.models.spec import DecoderSpec
from dft_jax.sampling.decode import Report
from dft_jax.sampling.prompts import SMALLEST, Prompt, Request, Shape, bucket


def first_long_length(spec: DecoderSpec) -> int:
    """Tokens of a text that has just become a long one; 0 of a model to which that is nothing."""
    rope = spec.long_rope
    return 0 if rope is None else rope.original_context + 1


def shape(spec: DecoderSpec, max_length: int) -> Shape:
    """What texts that are read again are padded to, all of which have this first length."""
    return Shape(bucket(first_long_length(spec), SMALLEST, max_length))


def first_limit(request: Request, spec: DecoderSpec) -> int:
    """Tokens that a request makes before its text has to be read again; of most requests, all."""
    before = first_long_length(spec) - len(request.prompt_ids)
    return before if 0 < before < request.max_new_tokens else request.max_new_tokens


def outgrown(
    in_slot: Mapping[int, Request], report: Report, stop_ids: Collection[int]
) -> list[int]:
    """Slots that are idle because of that first limit: they have more tokens to make."""
    found = []
    for slot, request in in_slot.items():
        n = int(report.made_B[slot])
        is_idle = not report.active_B[slot] and n < request.max_new_tokens
        if is_idle and report.outputs_BT[slot, n - 1] not in stop_ids:
            found.append(slot)
    return found


def with_active(report: Report, slots: Sequence[int]) -> Report:
    """The report with these slots active, as they are going to be once they were read again."""
    active_B = np.array(report.active_B)
    active_B[list(slots)] = True
    return dataclasses.replace(report, active_B=active_B)


def text_of(slot: int, request: Request, report: Report) -> Prompt:
    """What is to be read again: the prompt, and what its completion is by now."""
    made = report.outputs_BT[slot, : int(report.made_B[slot])].tolist()
    return Prompt((*request.prompt_ids, *made), (), [request])
