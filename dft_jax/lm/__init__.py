"""A language model opened from wherever it is: a Hugging Face folder, a hub id, or a run."""
