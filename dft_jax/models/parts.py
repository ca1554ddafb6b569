"""Which parameters of a model with images are trained: those of its text, merger and tower."""

from typing import Any

from dft_jax.types import Params

VISION = "vision"  # of the tower in a tree of parameters, beside those of the text
_MERGER = "merger"  # in the tower's
TEXT, ALL = "text", "all"
# config.train.parts: what is trained. LLaMA-Factory trains the text alone by default.
PARTS = (TEXT, "text+merger", _MERGER, ALL)


def text_of(params: Params) -> Params:
    """The parameters without those of a tower."""
    return {name: part for name, part in params.items() if name != VISION}


def divide(params: Params, parts: str) -> tuple[Params, Params | None]:
    """Parameters that are trained, and the others; None where there are none.

    A model for text alone has no others, whatever `parts` is.
    """
    trained: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, part in params.items():
        if name != VISION:
            (rest if parts == _MERGER else trained)[name] = part
            continue
        for place, values in part.items():
            is_trained = parts == ALL or (place == _MERGER and parts != TEXT)
            (trained if is_trained else rest).setdefault(VISION, {})[place] = values
    return trained, rest or None


def merge(trained: Params, rest: Params) -> Params:
    """All parameters, of the two that `divide` gives."""
    merged = {**rest, **trained}
    if VISION in trained and VISION in rest:
        merged[VISION] = {**rest[VISION], **trained[VISION]}
    return merged
