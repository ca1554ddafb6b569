"""Checkpoints as Hugging Face has them."""
