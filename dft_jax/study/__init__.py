"""Studies: many fine-tunings of one model, measured against their steps (see __main__.py)."""
