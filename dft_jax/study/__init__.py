"""Studies: many fine-tunings of one model, measured against their steps; see `python -m dft_jax.study --help`."""
