"""What ends an answer when sampling: what any of a checkpoint's files, or the template, says."""

import dataclasses

from dft_jax.data.templates import Template

# Where a stop was found: also "config.json", under the tokenizer's own name for it.
TOKENIZER = "tokenizer"
TEMPLATE = "template"
GENERATION = "generation_config.json"


@dataclasses.dataclass(frozen=True)
class Stops:
    """Token ids that end an answer, by where each was found, and what to warn of."""

    sources: dict[str, list[int]]  # tokenizer, template, generation_config.json, config.json
    warnings: list[str]

    @property
    def ids(self) -> list[int]:
        """All of them, in order."""
        found: set[int] = set()
        for ids in self.sources.values():
            found.update(ids)
        return sorted(found)


def find_stops(template: Template) -> Stops:
    """The union of the tokenizer's EOS, the template's end of a turn, and what the files say.

    A list in generation_config.json is how Llama 3 and Qwen name the second token that ends an
    answer; a model that is not stopped there writes on to the limit.
    """
    tokenizer = template.tokenizer
    candidates = {
        TOKENIZER: [tokenizer.eos_token_id],
        TEMPLATE: template.markers(),
        **tokenizer.eos_ids,
    }
    sources = {place: ids for place, ids in candidates.items() if ids}
    declared = tokenizer.eos_ids.get(GENERATION, [])
    warnings = []
    if declared and tokenizer.eos_token_id not in declared:
        shown = ", ".join(f"{id_} ({tokenizer.convert_ids_to_tokens(id_)})" for id_ in declared)
        eos = f"the tokenizer's eos_token is {tokenizer.eos_token_id} ({tokenizer.eos_token})"
        warnings.append(f"{eos}, {GENERATION} says {shown}; either ends an answer here")
    return Stops(sources, warnings)
