"""What ends an answer when sampling: what any of a checkpoint's files, or the template, says."""

import dataclasses

from dft_jax.data.templates import Template

TOKENIZER, TEMPLATE, GENERATION = "tokenizer", "template", "generation_config.json"


@dataclasses.dataclass(frozen=True)
class Stops:
    """Token ids that end an answer, by where each was found, and what to tell of them."""

    sources: dict[str, list[int]]  # tokenizer, template, generation_config.json, config.json
    warnings: list[str]

    @property
    def ids(self) -> list[int]:
        """All of them, in order."""
        return sorted({id_ for ids in self.sources.values() for id_ in ids})


def find_stops(template: Template) -> Stops:
    """The union of the tokenizer's EOS, the template's end of a turn, and what the files say.

    A list in generation_config.json is how Llama 3 and Qwen name the second token that ends an
    answer; a model that is not stopped there writes on to the limit.
    """
    tokenizer = template.tokenizer
    sources = {
        TOKENIZER: [tokenizer.eos_token_id],
        TEMPLATE: template.markers(),
        **tokenizer.eos_ids,
    }
    declared = tokenizer.eos_ids.get(GENERATION, [])
    warnings = []
    if declared and tokenizer.eos_token_id not in declared:
        shown = ", ".join(f"{id_} ({tokenizer.convert_ids_to_tokens(id_)})" for id_ in declared)
        what = f"the tokenizer's eos_token is {tokenizer.eos_token_id} ({tokenizer.eos_token})"
        warnings.append(f"{what}, {GENERATION} says {shown}; either ends an answer here")
    return Stops({place: ids for place, ids in sources.items() if ids}, warnings)
